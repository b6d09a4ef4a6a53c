"""Notes: English sentences without the words that carry no fact, so that a budget of tokens holds more of what is said.

Left out are openers, intensifiers, articles, auxiliaries, the subject "I", and who is addressed. Negations, modals and
what stands beside a number or a time stay, for they change what is said. Other languages are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from contract_engine.memory.summarizers.facts import without_keys
from contract_engine.memory.summarizers.sentences import one_line, sentences
from contract_engine.memory.summarizers.units import Unit

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_MARKS = ".,;:!?…"
_AROUND_WORDS = "\"'“”‘’([{)]}" + _MARKS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION_WORDS = _words(
    """a about after all am an and are as at be because been but by can could did do does for from had has have he her
    him his how i i'm i've i'll i'd if in is it it's its just like me my not of on or our out she so some that that's
    the their them then there they this to too up us was we we're were what when which who will with would you you're
    your"""
)
_ENGLISH_ALONE = _FUNCTION_WORDS - _words("a am an as at do for has her him i if in is me my on or so was")
"""Function words that are no words of other languages too."""
_DROPPED = _words(
    """a an the am are is was were be been being i i'm i've i'd it's that's there's we're you're really very just pretty
    quite super totally definitely actually basically literally absolutely truly simply also too so such kinda sorta oh
    well yeah"""
)
_DROPPED_LATER = _DROPPED | _words("of in on at and this it there")
_CONTRACTED = re.compile(r"(?P<subject>he|she|they|who)['’](?:s|re|ve)\b", re.IGNORECASE)
_MODALS = _words("not will would could can may might must should shall won't wouldn't couldn't can't shouldn't")
_SUBJECTS = _words("i i'm i've i'd so really just")
_HAVE = _words("have has had")
_PARTICIPLE = re.compile(
    r"\w+ed|been|gone|done|made|seen|had|got|gotten|given|taken|known|come|become|grown|found|felt|met|left|lost|read|"
    r"run|said|sent|told|thought|written|won|put|kept|heard|learnt|always|never|already|recently|finally"
)
_TIMES = _words(
    """today tonight yesterday tomorrow now ago day days week weeks weekend weekends month months year years hour hours
    minute minutes morning afternoon evening night noon midnight summer winter spring fall autumn last next past since
    monday tuesday wednesday thursday friday saturday sunday january february march april may june july august september
    october november december one two three four five six seven eight nine ten eleven twelve once twice couple few"""
)
_OPENER = re.compile(
    r"""(?<![\w'’-])  # "book the car" has no "ok", and "an espresso, I" no "so"
        (?: (?:well|so|yeah|yes|yep|yup|oh|ooh|aw+|hey|hi|hello|wow|whoa|okay|ok|anyway|and|but|also|plus|by\ the\ way|
            btw|actually|honestly|to\ be\ honest|you\ know|i\ mean|in\ fact|of\ course|sure|sure\ thing|ha(?:ha)+|lol|
            hmm+|um+|uh|right|cool|nice|great|awesome|absolutely|definitely|totally|exactly|no\ problem|thanks|
            thank\ you)\b
            (?:\ (?:so\ much|a\ lot|a\ bunch))?
            (?: [,!.…–-]+\ ? | \ (?=(?:i|we|my|the|it)\b) )
            (?: (?-i:[A-Z])[^\W\d_]+[,!.]\ ? )?
          | (?:hey|hi|hello|thanks|wow|congrats)\ (?-i:[A-Z])[^\W\d_]+[,!.]\ ?
        )+""",
    re.IGNORECASE | re.VERBOSE,
)
_TAIL = re.compile(
    r",? (?:you know|though|as well|too|right|haha|lol|of course|for sure|i think|i guess)(?=[.!?]*$)", re.IGNORECASE
)
_HEDGE = re.compile(
    r"""\b(?: i\ (?:(?:really|also|just)\ )?(?:think|guess|believe|feel|know|mean|suppose|bet|figure)
              (?:\ like)?(?:\ that)?\s
            | (?:kind|sort)\ of\s
            | a\ (?:bit|little|lot)(?:\ of)?\s(?!\w*\ ?ago)
            | lots\ of\s
            | in\ order\ (?=to\ )
            | (?:glad|happy|great|good|nice|sorry)\ to\ hear\s(?:that\ )?
        )""",
    re.IGNORECASE | re.VERBOSE,
)
_ADDRESSED = re.compile(r"(?:^|,) ?(?P<name>[A-Z][^\W\d_]+)(?=[,.!?;]|$)")
_AT_THE_EDGES = re.compile(r"^[\s,;:.!?…–—-]+|[\s,;:–—-]+$")


def speaker_names(units: Iterable[Unit]) -> frozenset[str]:
    """Return the words of the speakers' names, in lower case."""
    labels = {unit.speaker for unit in units if not unit.is_tool}
    return frozenset(name for label in labels for name in label.lower().split())


def noted(units: Iterable[Unit], names: frozenset[str], *, again: bool = False) -> Iterator[Unit]:
    """Give the units, the English sentences of people shortened; what is nothing but filling is left out."""
    for unit in units:
        if unit.is_tool:
            yield Unit(unit.day, unit.speaker, without_keys(unit.text))
        elif not is_english(unit.text):
            yield unit
        else:
            for note in sentences(one_line(shortened(unit.text, names=names, again=again))):
                yield Unit(unit.day, unit.speaker, note)


def is_english(text: str) -> bool:
    """Tell whether enough of the words are English function words, and hardly a letter is of another alphabet."""
    if not text.isascii():
        letters = [letter for letter in text if letter.isalpha()]
        if sum(not letter.isascii() for letter in letters) > 0.02 * len(letters):
            return False
    words = _WORD.findall(text.lower().replace("’", "'"))
    known = [word for word in words if word in _FUNCTION_WORDS]
    return len(known) >= 0.12 * len(words) and not _ENGLISH_ALONE.isdisjoint(known)


def shortened(text: str, *, names: frozenset[str] = frozenset(), again: bool = False) -> str:
    """Return an English sentence without the words that carry no fact; what is short already comes back as it is.

    ``names``, in lower case, are those of the speakers. ``again``: a note of an earlier summary, whose prepositions go
    too.
    """
    while (shorter := _shortened(text, names, _DROPPED_LATER if again else _DROPPED)) != text:
        text = shorter
    return text


def _shortened(text: str, names: frozenset[str], dropped: frozenset[str]) -> str:
    text = _ADDRESSED.sub(lambda match: "" if _is_one_of(match["name"].lower(), names) else match[0], text)
    text = _HEDGE.sub("", _TAIL.sub("", _OPENER.sub("", text) if _OPENER.match(text) else text))
    if "'" in text or "’" in text:
        text = _CONTRACTED.sub(r"\g<subject>", text)
    words = text.split()
    bare = [word.strip(_AROUND_WORDS) for word in text.lower().replace("’", "'").split()]
    kept: list[str] = []
    for place, word in enumerate(words):
        if (bare[place] in dropped or _is_auxiliary(bare, place)) and not _is_held(bare, place):
            mark = word[len(word.rstrip(_MARKS)) :]
            if mark and kept and kept[-1][-1] not in _MARKS:
                kept[-1] += mark
        else:
            kept.append(word)
    return _AT_THE_EDGES.sub("", " ".join(kept))


def _is_one_of(name: str, names: frozenset[str]) -> bool:
    """Tell whether a name, or the beginning of one as friends use it, is that of a speaker."""
    return name in names or (len(name) >= 3 and any(known.startswith(name) for known in names))


def _is_auxiliary(bare: list[str], place: int) -> bool:
    return bare[place] in _HAVE and place + 1 < len(bare) and _PARTICIPLE.fullmatch(bare[place + 1]) is not None


def _is_held(bare: list[str], place: int) -> bool:
    """Tell whether a word stays for the sake of one beside it."""
    following = bare[place + 1] if place + 1 < len(bare) else ""
    if following == "not":
        return True
    if bare[place] in _SUBJECTS:
        return False
    before = bare[place - 1] if place else ""
    if bare[place] in ("be", "been") and before in _MODALS:
        return True
    return any(word in _TIMES or any(map(str.isdigit, word)) for word in (before, following))
