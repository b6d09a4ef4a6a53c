"""Merging: a segment joins a summary that has a budget, and what is oldest makes room for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from contract_engine.memory.summarizers.extractive import ExtractiveSummarizer
from contract_engine.memory.summarizers.form import appended, read, written
from contract_engine.memory.summarizers.request import SummaryRequest
from contract_engine.memory.summarizers.units import Unit

KEPT_SHARE = 0.5
"""Of the budget, for the newest notes, which stay as they are; a segment that is longer stays as it is too."""


def merged(text: str, segment: str, *, max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Return ``text`` with ``segment`` behind it, in at most ``max_tokens`` tokens.

    While there is room both stay as they are, byte for byte. Then the oldest notes are shortened by the built-in
    summarizer; the newest, and the segment, stay as they are. A segment above the budget is shortened itself.
    """
    whole = appended(text, segment)
    if count_tokens(whole) <= max_tokens:
        return whole
    if count_tokens(segment) > max_tokens:
        return _shortened(read(segment), max_tokens, count_tokens)
    notes = read(text)
    start = _first_kept(notes, segment, int(max_tokens * KEPT_SHARE), count_tokens)
    newest = appended(written(notes[start:]), segment)
    room = max_tokens - count_tokens(newest)
    while room > 0:
        oldest = read(_shortened(notes[:start], room, count_tokens))
        joined = appended(written([*oldest, *notes[start:]]), segment)
        excess = count_tokens(joined) - max_tokens
        if excess <= 0:
            return joined
        room -= excess
    return newest


def _first_kept(notes: Sequence[Unit], segment: str, max_tokens: int, count_tokens: Callable[[str], int]) -> int:
    """Return from which note on all fit in ``max_tokens`` together with the segment."""
    low, high = 0, len(notes)
    while low < high:
        middle = (low + high) // 2
        if count_tokens(appended(written(notes[middle:]), segment)) <= max_tokens:
            high = middle
        else:
            low = middle + 1
    return low


def _shortened(notes: Sequence[Unit], max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    return ExtractiveSummarizer(readable=False).summarize(
        SummaryRequest(previous=written(notes), messages=(), max_tokens=max_tokens, count_tokens=count_tokens)
    )
