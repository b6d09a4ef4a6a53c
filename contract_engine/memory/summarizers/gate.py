"""The gate: whether what a language model wrote may take the place of what the built-in summarizer keeps.

Pure functions of the answer and of what was asked. A reason is one word, which is counted and logged; nothing of the
answer is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

from contract_engine.memory.errors import ConfigurationError
from contract_engine.memory.summarizers.answer import Notes, notes_of, plain_answer, says_nothing
from contract_engine.memory.summarizers.evidence import Known, weight
from contract_engine.memory.summarizers.extractive import ExtractiveSummarizer
from contract_engine.memory.summarizers.form import read, written
from contract_engine.memory.summarizers.languages import begins_as_refusal, is_english, is_other_language
from contract_engine.memory.summarizers.names import unknown_names
from contract_engine.memory.summarizers.request import SummaryRequest
from contract_engine.memory.summarizers.salience import content_stems
from contract_engine.memory.summarizers.sentences import one_line
from contract_engine.memory.summarizers.transcript import Turn
from contract_engine.memory.summarizers.units import Unit, is_tool_label

REASONS = (
    "empty",
    "none",
    "refusal",
    "echo",
    "malformed",
    "wrong_language",
    "invented",
    "wrong_speaker",
    "over_budget",
    "lost_facts",
)
"""Why an answer is rejected, in the order in which it is looked at."""

_STEP = 40
_MUCH = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """From where on an answer is rejected. Shares are of 1.

    ``refusal_chars``: only an answer up to this long can be a refusal. ``echo_chars``: so many characters copied word
    for word in one run that is half of the answer, or ``echo_share`` of messages far above the budget, are an echo.
    ``max_stray``: share of lines that are no notes; fewer are left out. ``max_invented``: share of notes with a number,
    id, address, link or day that nobody named, in English also a name, or without one word of the source; fewer are
    left out. The same share holds for notes in the mouth of a tool or a user that only the other one can have told.
    ``same_language``: the answer must be in a language of the messages; not looked at in a session with instructions of
    its own, which may ask for another.
    ``clip_ratio``: an answer up to this many times its budget is cut down to it at whole notes, the best ones kept.
    ``min_kept``: numbers, ids, addresses and links it must keep, as a share of the worth of those that the built-in
    summarizer keeps in the same budget; ``min_evidence``: where that keeps less than this (an id is 3, a number of two
    digits or more 1), there is no such test.
    """

    refusal_chars: int = 400
    echo_chars: int = 800
    echo_share: float = 0.8
    max_stray: float = 0.25
    max_invented: float = 0.2
    same_language: bool = True
    clip_ratio: float = 2.0
    min_kept: float = 0.5
    min_evidence: int = 6

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "same_language":
                if not isinstance(value, bool):
                    raise ConfigurationError(item.name, f"expected True or False, got {value!r}")
                continue
            least, most = (1, 100) if item.name == "clip_ratio" else (0, 1) if item.type == "float" else (1, 10**9)
            kind = int if item.type == "int" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
                raise ConfigurationError(item.name, f"expected a number from {least} to {most}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one answer is held against: the turns it was asked about, and what else the model was told.

    ``prompt``: the texts of ours it was sent. ``baseline``: what the built-in summarizer makes of the same turns in the
    same budget; empty, and it is not looked at what was lost. ``is_cut``: the model was stopped before its end.
    """

    turns: Sequence[Turn]
    max_tokens: int
    count_tokens: Callable[[str], int]
    before: str = ""
    instructions: str = ""
    prompt: Sequence[str] = ()
    boundary: str = ""
    baseline: str = ""
    is_cut: bool = False

    @property
    def speakers(self) -> frozenset[str]:
        """Whose notes an answer may hold."""
        told = {turn.speaker for turn in self.turns} | {unit.speaker for unit in read(self.before)}
        return frozenset(told - {""})

    @property
    def speech(self) -> str:
        """What people and assistants said."""
        return "\n".join(turn.text for turn in self.turns if turn.is_speech)

    @property
    def days(self) -> frozenset[str]:
        """The days an answer may name above its notes."""
        return frozenset(turn.day for turn in self.turns if turn.day)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``text`` in the form of a summary and within its budget, or the ``reason`` why there is none.

    ``dropped``: how many notes and lines were left out of a text that is otherwise good.
    """

    text: str
    reason: str = ""
    dropped: int = 0


def judge(answer: str, part: Part, settings: GateSettings) -> Verdict:
    """Return what of an answer may become summary."""
    text = plain_answer(answer)
    if not text:
        return Verdict("", "empty")
    if says_nothing(text):
        return Verdict("", "none")
    notes = notes_of(text, part.speakers, part.days)
    if _is_refusal(text, notes, part, settings):
        return Verdict("", "refusal")
    if _is_echo(text, notes, part, settings):
        return Verdict("", "echo")
    lines = sum(1 for line in text.splitlines() if line.strip())
    if not notes.units or len(notes.stray) > settings.max_stray * lines:
        return Verdict("", "malformed")
    units = notes.units[:-1] if part.is_cut and len(notes.units) > 1 else notes.units
    one_language = settings.same_language and not part.instructions
    if one_language and _is_other_language(units, part):
        return Verdict("", "wrong_language")
    grounded = list(_grounded(units, part, one_language=one_language))
    if not grounded or len(units) - len(grounded) > settings.max_invented * len(units):
        return Verdict("", "invented")
    speakers = _Speakers.of(part)
    owned = [unit for unit in grounded if not speakers.is_wrong(unit)]
    if not owned or len(grounded) - len(owned) > settings.max_invented * len(units):
        return Verdict("", "wrong_speaker")
    text = written(owned)
    tokens = part.count_tokens(text)
    if tokens > settings.clip_ratio * part.max_tokens:
        return Verdict("", "over_budget")
    if tokens > part.max_tokens:
        text = clipped(text, part.max_tokens, part.count_tokens)
        if not text:
            return Verdict("", "over_budget")
    if has_lost_facts(text, part.baseline, settings):
        return Verdict("", "lost_facts")
    return Verdict(text, dropped=len(units) - len(owned) + len(notes.stray))


def clipped(text: str, max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Return the notes of ``text`` worth most, whole and in their order, within ``max_tokens``."""
    request = SummaryRequest(previous=text, messages=(), max_tokens=max_tokens, count_tokens=count_tokens)
    return ExtractiveSummarizer(readable=True).summarize(request)


def has_lost_facts(text: str, baseline: str, settings: GateSettings) -> bool:
    """Tell whether ``text`` holds far less evidence than ``baseline``, a summary of the same in the same budget."""
    expected = weight(baseline)
    return expected >= settings.min_evidence and weight(text) < settings.min_kept * expected


def _is_refusal(text: str, notes: Notes, part: Part, settings: GateSettings) -> bool:
    """A refusal opens the answer, is short, and was not said by anybody in the messages."""
    if len(text) > settings.refusal_chars:
        return False
    if not notes.units:
        return begins_as_refusal(text)
    first = notes.units[0].text
    opening = notes.stray[0] if notes.stray and text.lstrip(" *-#>").startswith(notes.stray[0][:20]) else first
    if not begins_as_refusal(opening):
        return False
    heard = one_line(" ".join(turn.text for turn in part.turns)).casefold()
    return opening.casefold().strip(" .!…") not in heard and (opening is not first or len(notes.units) == 1)


def _is_echo(text: str, notes: Notes, part: Part, settings: GateSettings) -> bool:
    if part.boundary and part.boundary in text:
        return True
    said = one_line(text)
    if any(
        len(line) >= _STEP * 2 and line in said for told in part.prompt for line in map(one_line, told.splitlines())
    ):
        return True
    source = one_line(" ".join(turn.text for turn in part.turns))
    if max(_copied(said, source), default=0) >= max(settings.echo_chars, len(said) / 2):
        return True
    if part.count_tokens(source) <= _MUCH * part.max_tokens:
        return False  # to copy what nearly fits is no summary, but loses little either
    noted = one_line(" ".join(unit.text for unit in notes.units))
    return sum(_copied(noted, source)) > settings.echo_share * len(source)


def _copied(said: str, source: str) -> Iterator[int]:
    """Give the lengths of the runs of ``said`` that stand in ``source``: all of 80 characters, some shorter ones."""
    places = {source[at : at + _STEP]: at for at in range(0, len(source) - _STEP + 1, _STEP)}
    at = done = 0
    while at + _STEP <= len(said):
        place = places.get(said[at : at + _STEP])
        if place is None:
            at += 1
            continue
        start, end, behind, ahead = at, at + _STEP, place, place + _STEP
        while start > done and behind > 0 and said[start - 1] == source[behind - 1]:
            start, behind = start - 1, behind - 1
        while end < len(said) and ahead < len(source) and said[end] == source[ahead]:
            end, ahead = end + 1, ahead + 1
        yield end - start
        at = done = end


def _is_other_language(units: Sequence[Unit], part: Part) -> bool:
    speech = {turn.speaker for turn in part.turns if turn.is_speech}
    return is_other_language(part.speech, "\n".join(unit.text for unit in units if unit.speaker in speech))


def _grounded(units: Sequence[Unit], part: Part, *, one_language: bool) -> Iterator[Unit]:
    """Give the notes that say nothing nobody said, as far as that can be told.

    In ``one_language`` a note of some length has a word in common with its source, and in English, where a capital
    inside a sentence means a name, its names too.
    """
    days = part.days
    texts = [turn.text for turn in part.turns]
    known = Known.of([*texts, part.before, part.instructions, *days, *part.speakers])
    stems = set(content_stems(known.text))
    has_names = one_language and is_english(part.speech)
    for unit in units:
        own = {stem for stem in content_stems(unit.text.casefold()) if not stem[0].isdigit()}
        is_alien = one_language and len(own) >= 4 and own.isdisjoint(stems)
        is_foreign = has_names and not unit.is_tool and bool(unknown_names(unit.text, known, stems))
        is_told = (not unit.day or not days or unit.day in days) and not known.unknown(unit.text)
        if is_told and not is_alien and not is_foreign:
            yield unit


@dataclass(frozen=True, slots=True)
class _Speakers:
    """What all but the users said, and all but the tools: to tell whose a note cannot be.

    Numbers in a user's note may be those of a tool: "asked to cancel #W12", where the words were "the first one,
    please". A note of an assistant may rest on anything.
    """

    users: frozenset[str]
    without_users: Known
    without_tools: Known

    @classmethod
    def of(cls, part: Part) -> _Speakers:
        known = [part.before, part.instructions, *part.days]
        return cls(
            frozenset(turn.speaker for turn in part.turns if turn.is_user),
            Known.of(map(one_line, [*known, *(turn.text for turn in part.turns if not turn.is_user)])),
            Known.of(map(one_line, [*known, *(turn.text for turn in part.turns if not is_tool_label(turn.speaker))])),
        )

    def is_wrong(self, unit: Unit) -> bool:
        """Whether a tool tells numbers that only users named, or it or a user words that only the other one said."""
        by_users, by_tools = self.without_tools.says(unit.text), self.without_users.says(unit.text)
        if unit.is_tool:
            return by_users > by_tools or weight(" ".join(self.without_users.unknown(unit.text))) > 0
        return unit.speaker in self.users and by_tools > by_users
