"""Salience: how much a sentence is worth keeping, judged by its words alone.

A logistic of fixed weights; a few of them are for English words, the others for numbers, names and signs of any
language, and Chinese, Japanese and the facts of tools have weights of their own. Old and new sentences are scored
alike, so a summary may be scored again at every fold without drifting.
"""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from importlib.resources import files

from contract_engine.memory.summarizers.units import Unit, fact_of

SHORT_WORD = 3
"""Letters of a word with one beyond ASCII that is taken for common: the list of common words is English."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,:]\d+)*")
_CJK_RUN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_CJK = re.compile(_CJK_RUN.pattern.removesuffix("+"))
_SUFFIX = re.compile(r"(?<=...)(?:ing|ed|es|ly|s)$")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STOP_WORDS = _words(
    """a about after again all also am an and any are as at be been being both but by can could did do does doing done
    don each few for from get go going got had has have having he her here hers him his how i i'd i'll i'm i've if in
    into is it it's its just know let let's like lot me more most much my no nor not of off oh ok okay on only or other
    our ours out over own really s same she should so some such t than that that's the their theirs them then there
    these they they're thing things this those to too up us very was way we we're well were what when where which who
    whom why will with would yeah yes you you're your yours"""
)
_NUMBERS = _words(
    "two three four five six seven eight nine ten eleven twelve twenty thirty fifty hundred thousand once twice"
)
_DATES = _words(
    """jan january feb february march apr april june jul july aug august sep sept september oct october nov november dec
    december monday mondays tuesday tuesdays wednesday wednesdays thursday thursdays friday fridays saturday saturdays
    sunday sundays birthday anniversary"""
)
_KIN = _words(
    """address boss brother cat dad daughter dog email family father friend friends home husband job kid kids mom mother
    name partner phone sister son wife"""
)
_DECISIONS = _words(
    """agree agreed book choose chose confirm confirmed decide decided deciding going gonna i'll must need plan planned
    planning plans should want will"""
)
_EVENTS = _words(
    """adopted attended booked bought called camped created finished
    found gave got graduated hiked hosted joined learned
    lost made married met moved opened ordered organized painted passed performed played ran read received reserved saw
    signed started took travelled traveled tried visited volunteered went won wrote"""
)
_FIRST_PERSON = _words("i i'm i've i'd i'll my we we're we've our")
_SECOND_PERSON = _words("you your you're you've yours")
_PREFERENCES = _words(
    """allergic enjoy enjoyed enjoying enjoys fan favorite favourite hate hates like liked likes love loved loves prefer
    prefers"""
)
_REASONS = _words("because due reason since therefore")
_PRAISE = _words(
    """amazing awesome congrats congratulations cool glad great impressive inspiring luck nice proud sorry sounds thank
    thanks welcome wonderful wow"""
)
_NEGATIONS = _words("not no never")

_WORD_WEIGHTS = (
    (0.4, _DECISIONS),
    (0.4, _EVENTS),
    (0.3, _FIRST_PERSON),
    (0.2, _PREFERENCES),
    (0.2, _REASONS),
    (-0.5, _PRAISE),
    (-0.4, _SECOND_PERSON),
)

_RELATIVE_TIME = re.compile(
    r"\b(?:yesterday|today|tonight|tomorrow|recently|weekend|ago|(?:last|next|past|this) (?:\w+ )?"
    r"(?:week|weekend|month|year|night|summer|winter|spring|fall|autumn|\w+day|tues|fri|sat|sun|mon)|"
    r"since (?!(?:i|we|you|he|she|they|it|my|our|his|her|their|the|that|this)\b)\w+|"
    r"for (?:\w+ )?(?:years|months|weeks|days))\b"
)
_RELATIVE_WORDS = _words("yesterday today tonight tomorrow recently weekend ago last next past this since for")
"""One of these is in whatever ``_RELATIVE_TIME`` finds."""
_IN_IDENTIFIERS = re.compile(r"[_@/]|www")
_QUOTE = re.compile(r"[\"“„«»][^\"“”„«»]{2,}[\"“”«»]")
_IDENTIFIER = re.compile(
    r"https?://\S|www\.\w|[\w.+-]+@[\w-]+\.\w|(?<!\w)#?(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9][\w-]{3,}|"
    r"\b\w+_\w+|(?<!\w)[~/]\w+/\w|#\w*\d|\b\d{5,}\b"
)
_IDENTIFYING_VALUE = re.compile(
    r"(?<![\w.-])#?(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9][\w-]{3,}(?![\w-])|\b\d{6,}\b|[\w.+-]+@[\w-]+\.\w"
)
_CAPITAL = re.compile(r"(?<=[\w,;] )(?!I\b)[^\W\d_a-z][^\W\d_]*[a-z]?\b|\b[A-Z]{2,}\b")
_DIGIT = re.compile(r"\d")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_PERSONAL = re.compile(r"\bi live\b|\bi work\b|\bi am from\b|\bi'm from\b|\bborn\b")
_LIST = re.compile(r",[^,]+,| \w+, (?:\w+ ){0,2}(?:and|or) ")
_GREETING = re.compile(r"(?:hey|hi|hello|bye|see you|take care|good (?:morning|evening|night)|how are you)\b")
_MONEY = re.compile(r"[$€£¥]|\d ?(?:元|块|円|万|usd|eur)", re.IGNORECASE)
_CLOCK = re.compile(r"\d{1,2}:\d\d")
_ISO_DATE = re.compile(r"\b\d{4}-\d\d-\d\d")
_CJK_QUOTE = re.compile(r"[《「『“\"]")
_CJK_PLACE = re.compile("酒店|饭店|餐厅|公园|大学|医院|公司|机场|博物馆|[店馆院园寺宫山路街城楼站桥湖]")
_CJK_LIST = re.compile("、|, ")
_CJK_QUESTION = re.compile(r"[?？]|吗|呢|什么|哪|多少|几[个点]|か[。？]?$")


@lru_cache(maxsize=1)
def _common_words() -> frozenset[str]:
    """Load the stems that many unrelated conversations share; first use costs a file read."""
    listed: list[str] = json.loads(files(__package__).joinpath("common_words.json").read_text("utf-8"))
    return frozenset(listed) | frozenset(map(_stem, listed))


def is_common(stem: str) -> bool:
    """Tell whether the stem is one that many unrelated conversations share."""
    return stem in _common_words()


def _stem(word: str) -> str:
    return _SUFFIX.sub("", word)


def content_stems(text: str) -> list[str]:
    """Return the stems of the words that carry content, in order; Chinese and Japanese as pairs of characters."""
    stems: list[str] = []
    for word in _WORD.findall(text):
        if word[0] > "⺀" and _CJK.match(word):
            for run in _CJK_RUN.findall(word):
                stems += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
        elif stem := _content_stem(word):
            stems.append(stem)
    return stems


@lru_cache(maxsize=2**15)
def _content_stem(word: str) -> str:
    """Return the stem of a word that carries content, of any other an empty text."""
    lowered = word.lower().replace("’", "'")
    if lowered in _STOP_WORDS:
        return ""
    stem = _stem(lowered.partition("'")[0])
    return stem if len(stem) > 1 or stem.isdigit() else ""


def salience(unit: Unit, stems: list[str], names: frozenset[str] = frozenset()) -> float:
    """Return between 0 and 1 how much the unit is worth.

    ``stems`` are those of its text; ``names`` are those of the speakers, whose mention is no news.
    """
    if unit.is_tool:
        value = _tool_value(unit, stems)
    elif not unit.text.isascii() and 3 * len(_CJK.findall(unit.text)) > len(unit.text):
        value = _cjk_value(unit, stems)
    else:
        value = _prose_value(unit.text, stems, names)
    if unit.speaker in ("system", "developer"):
        # Instructions are sent again with every call; what they say is seldom news about the conversation.
        value -= 2
    return 1 / (1 + math.exp(-value))


def _prose_value(text: str, stems: list[str], names: frozenset[str]) -> float:
    common = _common_words()
    distinct = set(stems)
    rare = sum(
        stem not in common and not stem[0].isdigit() and (len(stem) > SHORT_WORD or stem.isascii()) for stem in distinct
    )
    lowered = text.lower().replace("’", "'")
    words = set(_WORD.findall(lowered))
    value = -3 + 0.35 * min(rare, 6) + 0.15 * min(len(distinct) - rare, 10)
    capitals = (word.lower() for word in _CAPITAL.findall(text))
    value += min(2, sum(word not in _STOP_WORDS and word not in names for word in capitals))
    value += sum(weight for weight, listed in _WORD_WEIGHTS if not listed.isdisjoint(words))
    has_digit = _DIGIT.search(text)
    # What is cheap to see goes before the patterns that would be tried at every place of the text.
    value += 1.2 * bool(not _RELATIVE_WORDS.isdisjoint(words) and _RELATIVE_TIME.search(lowered))
    value += 1.2 * bool(_QUOTE.search(text))
    value += 1.5 * bool((has_digit or _IN_IDENTIFIERS.search(text)) and _IDENTIFIER.search(text))
    value += 0.8 * bool(has_digit or not _NUMBERS.isdisjoint(words))
    value += 0.6 * bool(not _DATES.isdisjoint(words) or (has_digit and _YEAR.search(text)))
    value += 0.6 * bool(("my" in words and not _KIN.isdisjoint(words)) or _PERSONAL.search(lowered))
    value += 0.5 * bool(_LIST.search(text))
    value -= 0.9 * text.rstrip("\"')").endswith(("?", "？", "؟"))
    value -= 0.8 * (text.count(" ") < 4)
    value -= 0.3 * bool(_GREETING.match(lowered))
    return value - 0.2 * (not _NEGATIONS.isdisjoint(words) or "n't" in lowered)


def _cjk_value(unit: Unit, stems: list[str]) -> float:
    text = unit.text
    value = -4.5 + 1.8 * min(1.0, len(text) / 30)
    value += 2.0 * bool(_DIGIT.search(text))
    value -= 1.2 * bool(_CJK_QUESTION.search(text))
    value += 0.8 * bool(_MONEY.search(text))
    value += 0.6 * min(3, len(_CJK_PLACE.findall(text)))
    value += 0.5 * min(3, len(_CJK_LIST.findall(text)))
    value += 0.5 * (unit.speaker == "assistant")
    value += 0.5 * bool(_CJK_QUOTE.search(text))
    value += 0.3 * bool(_IDENTIFIER.search(text))
    return value + 0.1 * min(6, len(set(stems)) / 4)


def _tool_value(unit: Unit, stems: list[str]) -> float:
    value = -3.5 + min(1.0, len(stems) / 12)
    value += 2.0 * bool(_IDENTIFYING_VALUE.search(fact_of(unit)))
    value += 1.5 * bool(_ISO_DATE.search(unit.text))
    value += 0.8 * bool(_DIGIT.search(unit.text))
    value += 0.6 * bool(_LIST.search(unit.text))
    return value + 0.3 * bool(_CLOCK.search(unit.text))
