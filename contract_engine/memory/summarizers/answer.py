"""An answer: what a language model wrote, read as notes in the form of a summary."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from contract_engine.memory.summarizers.form import read
from contract_engine.memory.summarizers.sentences import one_line
from contract_engine.memory.summarizers.units import MAX_LABEL_CHARS, MONTHS, Unit, clean_label

MAX_ANSWER_CHARS = 128 * 1024

_THOUGHT = re.compile(r"\A\s*<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"\A\s*```[a-z]*\n(.*?)\n?```\s*\Z", re.DOTALL | re.IGNORECASE)
_NOTHING = re.compile(r"\W*none\W*", re.IGNORECASE)
_BULLET = re.compile(r"(?:[-*+•–]|\d{1,3}[.)]) +")
_HEADER = re.compile(r"[#*_ ]*\[([^\[\]]{1,30})\][*_: ]*")
_DATED = re.compile(r"(?:[-*] )?\[([^\[\]]{1,30})\] +(?=\S)")
_DAY = re.compile(rf"(\d{{1,2}}) ({'|'.join(MONTHS)})[a-z]*\.?,?(?: (\d{{4}}))?", re.IGNORECASE)
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

    Marks that models add are taken off: bullets, bold labels, a label on a line of its own above its bullets. Any other
    line is stray. Where there is one day only, notes need not name it.
    """
    stray: list[str] = []
    spellings = {speaker.casefold(): speaker for speaker in speakers} | {speaker: speaker for speaker in speakers}
    lines = list(_canonical(text, spellings, stray))
    if len(days) == 1 and not any(line.startswith("[") for line in lines):
        lines = [f"[{next(iter(days))}]", *lines]
    return Notes(read("\n".join(lines)), stray)


def _canonical(text: str, speakers: dict[str, str], stray: list[str]) -> Iterator[str]:
    """Give the lines of an answer that are in the form, put into its very spelling; the others go to ``stray``."""
    speaker = current = ""
    for raw in text.splitlines():
        line = one_line(raw)
        if not line or says_nothing(line):
            continue
        if header := _HEADER.fullmatch(line) or _DATED.match(line):
            day = _day(header[1])
            if day is None:
                stray.append(line)
                continue
            if day != current:
                yield f"[{day}]"
                current, speaker = day, ""
            line = line[header.end() :]
            if not line:
                continue
        bullet = _BULLET.match(line)
        said = line[bullet.end() :] if bullet else line
        colon = said.replace("：", ":").find(":")
        label = clean_label(said[:colon]) if 0 < colon <= 2 * MAX_LABEL_CHARS else ""
        known = speakers.get(label) or speakers.get(label.casefold())
        if known:
            fact = said[colon + 1 :].strip(" *")
            speaker = "" if fact else known
            if fact:
                yield f"{known}: {fact}"
        elif bullet and speaker:
            yield f"{speaker}: {said}"
        else:
            stray.append(line)


def _day(text: str) -> str | None:
    """Return a day as summaries write it, None for what is no day."""
    if text.strip().lower() == "no date":
        return "no date"
    if iso := _ISO_DAY.fullmatch(text.strip()):
        month = int(iso[2])
        return f"{int(iso[3])} {MONTHS[month - 1]} {iso[1]}" if 1 <= month <= 12 else None
    if match := _DAY.fullmatch(text.strip()):
        year = f" {match[3]}" if match[3] else ""
        return f"{int(match[1])} {match[2].capitalize()}{year}"
    return None
