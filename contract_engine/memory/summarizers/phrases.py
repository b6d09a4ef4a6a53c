"""Phrases: what the notes of a summary were shortened from, found again in the messages, for people to read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from contract_engine.memory.summarizers.form import lines, read, rewritten
from contract_engine.memory.summarizers.notes import noted, speaker_names
from contract_engine.memory.summarizers.units import Unit, message_units

_WORD = re.compile(r"\w+")


class ReadableText(NamedTuple):
    """A summary text in whole phrases: ``as_stored`` of its ``notes`` stand as they are stored.

    Those are notes that no message says: the messages are gone, or a language model or a caller wrote the note.
    """

    text: str
    notes: int
    as_stored: int


class Phrases:
    """The notes of some summary texts, and the phrases that messages say in their place.

    A phrase is of the same speaker on the same day, and shortened as a summary shortens it gives the note. Where two
    give the same note, the earlier one is meant: both were said.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._phrases: dict[Unit, Unit | None] = dict.fromkeys(unit for text in texts for unit in read(text))
        self._names = speaker_names(self._phrases)
        # A note has no word that its phrase has not: only phrases with the longest of one are shortened.
        self._longest: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for note in self._phrases:
            self._longest[note.day, note.speaker].add(max(_WORD.findall(note.text), key=len, default=""))
        self._missing = len(self._phrases)

    @property
    def are_found(self) -> bool:
        """Whether the phrase of every note is known."""
        return not self._missing

    def look_through(self, messages: Sequence[Mapping[str, object]], times: Sequence[float]) -> None:
        """Look for the phrases in messages that follow those looked through before."""
        units = message_units(messages, times)
        self._names |= speaker_names(units)
        for unit in units:
            longest = self._longest.get((unit.day, unit.speaker))
            if longest is None or longest.isdisjoint(_WORD.findall(unit.text)):
                continue
            for note in _notes_of(unit, self._names):
                if note in self._phrases and self._phrases[note] is None:
                    self._phrases[note] = unit
                    self._missing -= 1

    def readable(self, text: str) -> ReadableText:
        """Return one of the texts with the phrases in place of the notes; a line without one stays as it is."""
        found: list[str] = []
        count = as_stored = 0
        for line, notes in lines(text):
            phrases = [self._phrases.get(note) for note in notes]
            count += len(notes)
            as_stored += phrases.count(None)
            whole = list(dict.fromkeys(phrase or note for phrase, note in zip(phrases, notes, strict=True)))
            found.append(line if whole == notes else rewritten(line, whole))
        return ReadableText("\n".join(found), count, as_stored)


def _notes_of(unit: Unit, names: frozenset[str]) -> Iterator[Unit]:
    """Give what a summary can hold of a unit: it as it is, and shortened once, and again.

    ``names`` are those of the speakers, which a fold may not have known all.
    """
    first = [unit, *_shortened([unit], names, again=False)]
    yield from dict.fromkeys([*first, *_shortened(first, names, again=True)])


def _shortened(units: Sequence[Unit], names: frozenset[str], *, again: bool) -> Iterator[Unit]:
    yield from noted(units, names, again=again)
    yield from noted(units, frozenset(), again=again)
