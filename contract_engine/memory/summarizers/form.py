"""The form of a summary text: written from units, and read back to the same units.

    [8 May 2023]
    Ana: We moved to Porto. The rent is 900 euros; no pets
    tool get_order: order_id #W12, status delivered
    [no date]
    - A sentence of nobody.

Only a whole line can be a date, and only the beginning of a line a speaker. No unit holds a line break, so nothing
that is said can pass for either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from contract_engine.memory.summarizers.sentences import joined, one_line, plain_lines, sentences
from contract_engine.memory.summarizers.units import (
    MAX_LABEL_CHARS,
    MONTHS,
    SAME_HEAD,
    Unit,
    clean_label,
    has_heads,
)

MAX_TEXT_CHARS = 128 * 1024
"""What is read of a summary text: far above any budget, so only texts written by others are ever cut."""

_NO_DATE = "no date"
_HEADER = re.compile(rf"\[(?:(\d{{1,2}} (?:{'|'.join(MONTHS)}))(?: (\d{{1,4}}))?|{_NO_DATE})\]")
_LABELLED = re.compile(rf"([^:]{{1,{MAX_LABEL_CHARS}}}): (.+)")
_NOBODY = "- "


def written(units: Sequence[Unit]) -> str:
    """Return the text of units in their order."""
    lines: list[str] = []
    current = year = ""
    for (day, speaker), said in groupby(units, key=lambda unit: (unit.day, unit.speaker)):
        if day != current:
            date, _, its_year = day.rpartition(" ")
            lines.append(f"[{(date if its_year == year else day) or _NO_DATE}]")
            current, year = day, its_year or year
        texts = [unit.text for unit in said]
        lines.append(label_text(speaker) + joined(_with_short_heads(texts) if has_heads(speaker) else texts))
    return "\n".join(lines)


def label_text(speaker: str) -> str:
    """Return what a line of this speaker begins with."""
    return f"{speaker}: " if speaker else _NOBODY


def read(text: str) -> list[Unit]:
    """Return the units of a summary text.

    A text in another form (a person's, a model's) gives its sentences, with a speaker where a line names one.
    """
    units: list[Unit] = []
    day = year = ""
    for raw in text[:MAX_TEXT_CHARS].splitlines():
        line = one_line(raw)
        header = _HEADER.fullmatch(line)
        if header and (not header[1] or (year := header[2] or year)):
            day = f"{header[1]} {year}" if header[1] else ""
            continue
        ours = _own_line(line)
        if ours is None:
            line = " ".join(plain_lines(line))
            ours = _own_line(line) or ("", line)
        speaker, said = ours
        texts = sentences(said)
        units += (Unit(day, speaker, text) for text in (_with_heads(texts) if has_heads(speaker) else texts))
    return units


def _with_short_heads(facts: Sequence[str]) -> list[str]:
    """Return facts of one line, each of which begins as the one before it with a sign in place of that beginning."""
    short: list[str] = []
    before = ""
    for fact in facts:
        head, _, rest = fact.partition(", ")
        short.append(SAME_HEAD + rest if head and rest and head == before else fact)
        before = head
    return short


def _with_heads(texts: Sequence[str]) -> list[str]:
    """Return the facts that ``_with_short_heads`` has shortened."""
    facts: list[str] = []
    head = ""
    for text in texts:
        if fact := text.lstrip(SAME_HEAD):
            if fact != text and head:
                facts.append(f"{head}, {fact}")
            else:
                facts.append(fact)
                head = fact.partition(", ")[0]
    return facts


def _own_line(line: str) -> tuple[str, str] | None:
    """Return speaker and text of a line as ``written`` makes them, ``None`` for any other line."""
    if line.startswith(_NOBODY):
        return "", line.removeprefix(_NOBODY)
    match = _LABELLED.fullmatch(line)
    if match and match[1] == clean_label(match[1]):
        return match[1], match[2]
    return None
