"""Names in an English text, by which its notes can be held against what was said."""

from __future__ import annotations

import re
from collections.abc import Iterator

from contract_engine.memory.summarizers.evidence import Known
from contract_engine.memory.summarizers.salience import content_stems
from contract_engine.memory.summarizers.units import MONTHS

# Not the first word of a statement; and no word all in capitals, which is often short for what was said.
_NAME = re.compile(r"(?:(?<=[^\W_][ ])|(?<=,[ ]))[A-Z][a-z]{2,}(?![^\W_])")
_WORD = re.compile(r"[^\W\d_]{2,}")
_MONTH_NUMBERS = {month: str(number) for number, month in enumerate(MONTHS, 1)}


def unknown_names(text: str, known: Known, stems: set[str]) -> list[str]:
    """Return the names that are nowhere in what is known, whose stems are ``stems``."""
    return [
        name for name in _names(text) if not stems.issuperset(content_stems(name)) and not _is_month(name, known, stems)
    ]


def _names(text: str) -> Iterator[str]:
    """Give the words that begin with a capital inside a sentence; none of a text written as titles are."""
    words = _WORD.findall(text)
    if 2 * sum(word[0].isupper() for word in words) <= len(words):
        yield from _NAME.findall(text)


def _is_month(name: str, known: Known, stems: set[str]) -> bool:
    """Whether it may be the month of a date that was told in numbers, or shorter."""
    number = _MONTH_NUMBERS.get(name[:3])
    return number is not None and (number in known.pieces or name[:3].lower() in stems)
