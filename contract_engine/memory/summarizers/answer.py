"""An answer: what a language model wrote, read as notes in the form of a summary."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from contract_engine.memory.summarizers.form import read
from contract_engine.memory.summarizers.sentences import one_line
from contract_engine.memory.summarizers.units import MAX_LABEL_CHARS, MONTHS, Unit, clean_label

MAX_ANSWER_CHARS = 128 * 1024

_THOUGHT = re.compile(r"\A\s*<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"\A\s*```[a-z]*\n(.*?)\n?```\s*\Z", re.DOTALL | re.IGNORECASE)
_NOTHING = re.compile(r"\W*none\W*", re.IGNORECASE)
_BULLET = re.compile(r"(?:[-*+•–]|\d{1,3}[.)]) +")
_SAME_SPEAKER = "& "
_HEADER_MARKS = "#*_: "
_HEADER = re.compile(r"\[?([^\[\]]{1,30})\]?")
_DATED = re.compile(r"(?:[-*] )?\[([^\[\]]{1,30})\] +(?=\S)")
_MONTH = (
    "Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sep(?:t(?:ember)?)?|Oct(?:ober)?"
    "|Nov(?:ember)?|Dec(?:ember)?"
)
_DAY = re.compile(rf"(\d{{1,2}}) ({_MONTH})\.?,?(?: (\d{{1,4}}))?", re.IGNORECASE)
_ISO_DAY = re.compile(r"(\d{4})-(\d\d)-(\d\d)")


@dataclass(frozen=True, slots=True)
class Notes:
    """The units of an answer, and the lines that are none."""

    units: list[Unit]
    stray: list[str]


def plain_answer(text: str) -> str:
    """Return an answer without the thoughts before it and the fence around it, which say nothing about it."""
    text = _THOUGHT.sub("", text[:MAX_ANSWER_CHARS], count=1).strip()
    fenced = _FENCE.fullmatch(text)
    return fenced[1].strip() if fenced else text


def says_nothing(text: str) -> bool:
    """Tell whether the answer is the agreed word for nothing to note."""
    return _NOTHING.fullmatch(text) is not None


def notes_of(text: str, speakers: Collection[str], days: Collection[str]) -> Notes:
    """Return the notes of an answer: lines of ``speakers`` under ``days``, in the form of a summary.

    Marks that models add are taken off: brackets around a day, bullets, bold labels, a label on a line of its own above
    its bullets. Any other line is stray. Where there is one day only, notes need not name it.
    """
    stray: list[str] = []
    spellings = {speaker.casefold(): speaker for speaker in speakers} | {speaker: speaker for speaker in speakers}
    lines = list(_canonical(text, spellings, days, stray))
    is_undated = all(day is None for day, _ in lines)
    default = next(iter(days)) if len(days) == 1 and is_undated else ""
    units = [replace(unit, day=default if day is None else day) for day, line in lines for unit in read(line)]
    return Notes(units, stray)


def _canonical(
    text: str, speakers: dict[str, str], days: Collection[str], stray: list[str]
) -> Iterator[tuple[str | None, str]]:
    """Give the lines of an answer that are notes, with their speakers, and the day above them; None above the first.

    The others go to ``stray``. One of them also ends what a sign for the same speaker may stand for: it may have named
    somebody else.
    """
    day: str | None = None
    speaker = before = ""
    year = 0
    for raw in text.splitlines():
        line = one_line(raw)
        if not line or says_nothing(line):
            continue
        header = _HEADER.fullmatch(line.strip(_HEADER_MARKS))
        opening = header or _DATED.match(line)
        if opening:
            found = _day(opening[1], days, year)
            if found is not None:
                year = _year(found) or year
                if found != day:
                    day, speaker = found, ""
                if header:
                    continue
                line = line[opening.end() :]
            elif "[" in opening[0]:
                stray.append(line)
                continue
        if before and line.startswith(_SAME_SPEAKER):
            yield day, f"{before}: {line.removeprefix(_SAME_SPEAKER)}"
            continue
        bullet = _BULLET.match(line)
        said = line[bullet.end() :] if bullet else line
        colon = said.replace("：", ":").find(":")
        label = clean_label(said[:colon]) if 0 < colon <= 2 * MAX_LABEL_CHARS else ""
        known = speakers.get(label) or speakers.get(label.casefold())
        if known:
            fact = said[colon + 1 :].strip(" *")
            speaker, before = "" if fact else known, known
            if fact:
                yield day, f"{known}: {fact}"
        elif bullet and speaker:
            yield day, f"{speaker}: {said}"
        else:
            before = ""
            stray.append(line)


def _day(text: str, days: Collection[str], year: int) -> str | None:
    """Return a day as units have it, empty for the line that says there is none, None for what is no day.

    A day without a year has that of the days above it, ``year``, or where nobody named it so the next one it was named
    with.
    """
    text = text.strip()
    if text.lower() == "no date":
        return ""
    if iso := _ISO_DAY.fullmatch(text):
        month = int(iso[2])
        return f"{int(iso[3])} {MONTHS[month - 1]} {int(iso[1])}" if 1 <= month <= 12 else None
    match = _DAY.fullmatch(text)
    if match is None:
        return None
    date = f"{int(match[1])} {match[2][:3].capitalize()}"
    if match[3]:
        return f"{date} {int(match[3])}"
    named = sorted(_year(day) for day in days if day.startswith(f"{date} "))
    if named and year not in named:
        year = next((one for one in named if one > year), named[0])
    # A day that nobody named stays one, for the gate to see; without any year it cannot be written.
    year = year or min(map(_year, days), default=0)
    return f"{date} {year}" if year else None


def _year(day: str) -> int:
    return int(day.rpartition(" ")[2] or 0)
