"""Wishes: what a session asks its summaries to keep, as far as the words of a sentence can tell."""

from __future__ import annotations

from collections.abc import Iterable

from contract_engine.memory.summarizers.salience import content_stems, is_common

WANTED = 1.0
"""Added to the salience of a wanted sentence, which is between 0 and 1: it comes before what nobody asked for."""
PREFIX_CHARS = 6
"""Words that begin alike are taken for one: allergy, allergies and allergic differ behind this."""
_ASKING = frozenset(
    ("keep", "everyth", "anyth", "remember", "alway", "never", "important", "mention", "note", "summary", "summarize")
)


class Wishes:
    """The subjects of a session's instructions; none where it has given no instructions."""

    def __init__(self, instructions: str) -> None:
        stems = [stem for stem in content_stems(instructions) if stem not in _ASKING] if instructions else []
        # Words of every conversation would single out nothing, unless there are no others.
        self._subjects = frozenset(map(_beginning, [stem for stem in stems if not is_common(stem)] or stems))

    def bonus(self, stems: Iterable[str]) -> float:
        """Return what a sentence with these stems is worth beyond its salience."""
        return 0.0 if not self._subjects or self._subjects.isdisjoint(map(_beginning, stems)) else WANTED


def _beginning(stem: str) -> str:
    return stem[:PREFIX_CHARS]
