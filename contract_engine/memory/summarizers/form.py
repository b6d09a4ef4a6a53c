"""The form of a summary text: written from units, and read back to the same units.

    8 May 2023
    Ana: We moved to Porto. The rent is 900 euros; no pets
    tool get_order: order_id #W12, status delivered; & items item_id 77, price 20
    11 May
    & order_id #W13, status sent
    no date
    - A sentence of nobody.

Only a whole line can be a date (in brackets too: so earlier versions wrote it), and only the beginning of a line a
speaker; ``&`` there is the speaker of the line before. No unit holds a line break, so nothing that is said can pass for
either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby

from contract_engine.memory.summarizers.facts import with_signs, without_signs
from contract_engine.memory.summarizers.sentences import joined, one_line, plain_lines, sentences
from contract_engine.memory.summarizers.units import (
    CALL_LABEL,
    MAX_LABEL_CHARS,
    MONTHS,
    Unit,
    clean_label,
    is_tool_label,
)

MAX_TEXT_CHARS = 128 * 1024
"""What is read of a summary text: far above any budget, so only texts written by others are ever cut."""

_NO_DATE = "no date"
_HEADER = re.compile(rf"\[?(?:(\d{{1,2}} (?:{'|'.join(MONTHS)}))(?: (\d{{1,4}}))?|{_NO_DATE})\]?")
_LABELLED = re.compile(rf"([^:]{{1,{MAX_LABEL_CHARS}}}): (.+)")
_NOBODY = "- "
_SAME_SPEAKER = "& "


def written(units: Sequence[Unit]) -> str:
    """Return the text of units in their order."""
    found: list[str] = []
    current = year = ""
    before: str | None = None
    for (day, speaker), said in groupby(units, key=lambda unit: (unit.day, unit.speaker)):
        if day != current:
            date, _, its_year = day.rpartition(" ")
            found.append((date if its_year == year else day) or _NO_DATE)
            current, year = day, its_year or year
        told = _told(speaker, tuple(unit.text for unit in said))
        found.append((_SAME_SPEAKER if speaker == before else label_text(speaker)) + told)
        before = speaker
    return "\n".join(found)


def appended(text: str, segment: str) -> str:
    """Return ``text`` and ``segment`` as one text that gives the units of both; each stays as it is.

    What begins without a date would else be read as of the last day of ``text``.
    """
    if not text or not segment:
        return text or segment
    before, behind = read(text), read(segment)
    is_dated = before and behind and before[-1].day and not behind[0].day
    return f"{text}\n{_NO_DATE}\n{segment}" if is_dated else f"{text}\n{segment}"


@lru_cache(maxsize=2**11)
def _told(speaker: str, texts: tuple[str, ...]) -> str:
    """Return what a line tells after its label. Remembered, since a fold writes most lines several times."""
    return joined(with_signs(texts, are_calls=speaker == CALL_LABEL) if is_tool_label(speaker) else texts)


def label_text(speaker: str) -> str:
    """Return what a line of this speaker begins with."""
    return f"{speaker}: " if speaker else _NOBODY


def read(text: str) -> list[Unit]:
    """Return the units of a summary text.

    A text in another form (a person's, a model's) gives its sentences, with a speaker where a line names one.
    """
    return [unit for _, units in lines(text) for unit in units]


def lines(text: str) -> Iterator[tuple[str, list[Unit]]]:
    """Give each line of a summary text as it is, with its units: a date has none."""
    day = year = before = ""
    for raw in text[:MAX_TEXT_CHARS].splitlines():
        line = one_line(raw)
        header = _HEADER.fullmatch(line)
        if header and (not header[1] or (year := header[2] or year)):
            day = f"{header[1]} {year}" if header[1] else ""
            yield raw, []
            continue
        ours = _own_line(line)
        if line.startswith(_SAME_SPEAKER):
            ours = before, line.removeprefix(_SAME_SPEAKER)
        if ours is None:
            line = " ".join(plain_lines(line))
            ours = _own_line(line) or ("", line)
        speaker, said = ours
        before = speaker
        texts = sentences(said)
        if is_tool_label(speaker):
            texts = without_signs(texts, are_calls=speaker == CALL_LABEL)
        yield raw, [Unit(day, speaker, text) for text in texts]


def rewritten(line: str, units: Sequence[Unit]) -> str:
    """Return a line of a summary text with other units of the same speaker in the place of its own."""
    speaker = units[0].speaker
    told = _told(speaker, tuple(unit.text for unit in units))
    return (_SAME_SPEAKER if line.startswith(_SAME_SPEAKER) else label_text(speaker)) + told


def _own_line(line: str) -> tuple[str, str] | None:
    """Return speaker and text of a line as ``written`` makes them, ``None`` for any other line."""
    if line.startswith(_NOBODY):
        return "", line.removeprefix(_NOBODY)
    match = _LABELLED.fullmatch(line)
    if match and match[1] == clean_label(match[1]):
        return match[1], match[2]
    return None
