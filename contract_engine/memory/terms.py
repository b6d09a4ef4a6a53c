"""Terms: what a message can be found by, in any language, and what a question asks for.

The same function makes both, so whatever it does to a word it does on both sides. A term is a short text without NUL,
blanks, quotes or backslashes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache

from contract_engine.memory.summarizers.salience import content_stems
from contract_engine.memory.summarizers.units import MONTHS, message_units

ASKS = "?"
"""The term of messages that end with a question. Nobody can look for it: no word of a question is a sign."""
MAX_TERM_CHARS = 48
"""What is kept of a longer one: at most 192 of the 2,046 bytes that a lexeme of PostgreSQL may have."""
MAX_MESSAGE_TERMS = 4096
"""What one message is found by, at most: with the longest terms less than the megabyte a tsvector may have."""
MAX_ROOT_CHARS = 5
"""Words of other alphabets are found by their beginning too, which most of their endings leave alone."""
MAX_QUERY_CHARS = 4096
"""What is read of a question."""
MAX_QUERY_TERMS = 12
"""How many terms of a question are looked for; each costs a look at every message. Where there are more: the last ones
of its last sentence with a question mark (or of its last one), half of all; those with a digit; the longest; of equally
long ones every second first, since pairs of characters overlap, and those near the end.
"""

# Thai to Khmer, Chinese and Japanese put no blanks between words, and in Korean what stands between two is a word with
# its particles: pairs of characters serve for words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
# The signs of Indic vowels are not letters to Python, but are to their readers.
_LETTER = rf"(?:[^\W_{_UNSPACED}]|[\u0900-\u0dff])"
_TOKEN = re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|{_LETTER}+(?:['’.,:/@+#_&~-]+{_LETTER}+)*")
_PART = re.compile(r"\d+|(?:[^\W\d_]|[\u0900-\u0dff])+")
_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)*")
_NUMBER = re.compile(r"(\d+(?:[.,:]\d+)*)(?:st|nd|rd|th)?")
_DIGIT = re.compile(r"\d")
_GROUPING = re.compile(r",(?=\d{3}(?!\d))")
_QUOTES = re.compile("['’]")
_ISO_DATE = re.compile(r"(?<!\d)(\d{4})-([01]\d)-([0-3]\d)(?!\d)")
# Accents, the vowel signs of Arabic and Hebrew, and what cannot be seen: people leave them out of what they ask.
_MARKS = re.compile(
    "[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]"
)
_ARTICLE = re.compile("^[وف]?(?:ال|بال|لل)(?=...)")
_ELISION = re.compile(r"[a-hj-z]'([a-z]{2,})")
_QUESTION_MARKS = ("?", "？", "؟")
_SENTENCE = re.compile(r"[^.!?。！？؟\n]+")
_QUESTION = re.compile(rf"{_SENTENCE.pattern}(?=[?？؟])")
_CLOSERS = " \"')]}”’»」』）"
_DOUBLE = re.compile(r"([b-df-hj-np-tv-z])\1$")

_MONTHS = {
    month.lower(): month[:3].lower()
    for month in (
        "January",
        "February",
        "March",
        "April",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    )
} | {"sept": "sep"}


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split("/") for pair in text.split())


_NUMBERS = _pairs("two/2 three/3 four/4 five/5 six/6 seven/7 eight/8 nine/9 ten/10 eleven/11 twelve/12")
_IRREGULAR = _pairs(
    """ate/eat began/begin bought/buy broke/break brought/bring built/build caught/catch children/child chose/choose
    chosen/choose drank/drink drawn/draw drew/draw driven/drive drove/drive eaten/eat fallen/fall fed/feed feet/foot
    fell/fall felt/feel flew/fly forgot/forget fought/fight found/find gave/give given/give grew/grow grown/grow
    heard/hear held/hold hid/hide kept/keep knew/know known/know led/lead left/leave lost/lose made/make meant/mean
    men/man met/meet mice/mouse paid/pay ran/run rode/ride said/say sang/sing sat/sit saw/see seen/see sent/send
    shown/show slept/sleep sold/sell spent/spend spoke/speak stood/stand sung/sing swam/swim taken/take taught/teach
    teeth/tooth thought/think threw/throw told/tell took/take understood/understand woke/wake women/woman won/win
    wore/wear written/write wrote/write"""
)


def message_terms(message: Mapping[str, object], at_seconds: float) -> list[str]:
    """Return what a message can be found by, each term as often as it stands there, and ``ASKS`` where it asks.

    Its texts, tool calls and their answers, and who said it on which day; ``at_seconds`` since 1970 counts where it has
    no ``timestamp`` of its own.
    """
    units = message_units([message], [at_seconds])
    found = [ASKS] if units and units[-1].text.rstrip(_CLOSERS).endswith(_QUESTION_MARKS) else []
    for label in dict.fromkeys(label for unit in units for label in (unit.speaker, unit.day)):
        found += text_terms(label)
    for unit in units:
        found += text_terms(unit.text)
        if len(found) >= MAX_MESSAGE_TERMS:
            break
    return found[:MAX_MESSAGE_TERMS]


def query_terms(query: str) -> list[str]:
    """Return the different terms of a question; none where it holds nothing but function words or signs."""
    found = list(dict.fromkeys(text_terms(query[:MAX_QUERY_CHARS], is_query=True)))
    if len(found) <= MAX_QUERY_TERMS:
        return found
    places = {term: place for place, term in enumerate(found)}
    # Cut at a point, a word with one in it is another: that is none of those found.
    asked = sorted({places[term] for term in _asked(query[:MAX_QUERY_CHARS]) if term in places})
    asked = asked[-(MAX_QUERY_TERMS // 2) :]
    telling = sorted(
        set(range(len(found))).difference(asked),
        key=lambda place: (not _DIGIT.search(found[place]), -len(found[place]), place % 2, -place),
    )
    return [found[place] for place in sorted([*asked, *telling[: MAX_QUERY_TERMS - len(asked)]])]


def _asked(query: str) -> list[str]:
    """Return the terms of the sentence that asks: the last with a question mark, or the last one."""
    for pattern in (_QUESTION, _SENTENCE):
        for sentence in reversed(pattern.findall(query)):
            if terms := text_terms(sentence, is_query=True):
                return terms
    return []


def text_terms(text: str, *, is_query: bool = False) -> list[str]:
    """Return the terms of a text, in order."""
    return [term[:MAX_TERM_CHARS] for term in _terms(_normal(text), is_query=is_query)]


def _normal(text: str) -> str:
    """Return the text in lower case, in one form of Unicode and without marks; dates as their parts."""
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = unicodedata.normalize("NFC", _MARKS.sub("", decomposed)).casefold()
    return _ISO_DATE.sub(_spelled_date, text.lower())


def _spelled_date(match: re.Match[str]) -> str:
    year, month, day = map(int, match.groups())
    return f"{match[0]} {day} {MONTHS[month - 1]} {year}".lower() if 1 <= month <= 12 else match[0]


def _terms(text: str, *, is_query: bool) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        token = match[0]
        if match["unspaced"]:
            yield from _grams(token, is_query=is_query)
        elif _WORD.fullmatch(token):
            yield from _word_terms(token)
        elif number := _NUMBER.fullmatch(token):
            yield _GROUPING.sub("", number[1])
        else:
            parts = _PART.findall(token)
            if len(parts) != 1 or parts[0] != token:
                yield _QUOTES.sub("", token)
            for part in parts:
                yield from _word_terms(part)


def _grams(run: str, *, is_query: bool) -> Iterator[str]:
    """Give the pairs of characters of a run, and its single ones: those of a question only where one stands alone."""
    if len(run) == 1 or not is_query:
        yield from run
    for start in range(len(run) - 1):
        yield run[start : start + 2]


@lru_cache(maxsize=20_000)
def _word_terms(word: str) -> tuple[str, ...]:
    """Return what a word of letters or digits is found by: nothing for an English function word."""
    if word.isdigit():
        return (word,)
    if not word.isascii():
        word = _ARTICLE.sub("", word)
        return (word,) if len(word) <= MAX_ROOT_CHARS else (word, word[:MAX_ROOT_CHARS])
    word = word.replace("’", "'")
    elided = _ELISION.fullmatch(word)
    stems = content_stems(_english_base(elided[1] if elided else word))
    return tuple(_rooted(stem) for stem in stems)


def _english_base(word: str) -> str:
    return _MONTHS.get(word) or _NUMBERS.get(word) or _IRREGULAR.get(word, word)


def _rooted(stem: str) -> str:
    """Return what "baking" and "bake", "planned" and "plans", "story" and "stories" share."""
    again = content_stems(stem)
    root = again[0] if again else stem
    if len(root) > 3:
        root = _DOUBLE.sub(r"\1", root.removesuffix("e"))
        if root.endswith("y"):
            root = root[:-1] + "i"
    return root
