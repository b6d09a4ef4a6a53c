"""Wishes: what a session asks its summaries to keep, as far as the words of a sentence can tell."""

from __future__ import annotations

from collections.abc import Iterable

from contract_engine.memory.summarizers.languages import function_words
from contract_engine.memory.summarizers.salience import content_stems, is_common

WANTED = 1.0
"""Added to the salience of a wanted sentence, which is between 0 and 1: it comes before what nobody asked for."""
PREFIX_CHARS = 6
"""Words that begin alike are taken for one: allergy, allergies and allergic differ behind this."""
HANGUL_PREFIX_CHARS = 2
"""The same in Korean, where particles follow a noun of two or three signs without a blank."""
_ASKING = frozenset(
    ("keep", "everyth", "anyth", "remember", "alway", "never", "important", "mention", "note", "summary", "summarize")
)
_ASKING_ELSEWHERE = """
    alles alle bitte über behalte behalten merke merken wichtig immer tout toute toutes garde gardez concerne toujours
    todo toda todos todas sobre guarda recuerda siempre tutto tutti conserva ricorda riguarda sempre tudo guarde lembre
    onthoud bewaar altijd всё все об про сохраняй сохрани запомни помни
    모든 모두 것을 것은 관한 대한 기억 남겨 주세요 꼭"""


class Wishes:
    """The subjects of a session's instructions; none where it has given no instructions."""

    def __init__(self, instructions: str) -> None:
        stems = content_stems(instructions) if instructions else []
        if stems and _ASKING.isdisjoint(stems):  # else it is English, whose function words are no stems
            idle = frozenset(content_stems(" ".join((_ASKING_ELSEWHERE, *function_words(instructions)))))
            stems = [stem for stem in stems if stem not in idle]
        stems = [stem for stem in stems if stem not in _ASKING]
        # Words of every conversation would single out nothing, unless there are no others.
        self._subjects = frozenset(map(_beginning, [stem for stem in stems if not is_common(stem)] or stems))

    def bonus(self, stems: Iterable[str]) -> float:
        """Return what a sentence with these stems is worth beyond its salience."""
        return 0.0 if not self._subjects or self._subjects.isdisjoint(map(_beginning, stems)) else WANTED


def _beginning(stem: str) -> str:
    return stem[: HANGUL_PREFIX_CHARS if "가" <= stem[0] <= "힣" else PREFIX_CHARS]
