"""What the soak's workers asked for and were told, as they wrote it down, a line at a time."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Key = tuple[str, int]
"""A message by who said it and which of theirs it was."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An acknowledgement. A turn has no receipt: ``seqs`` and ``durable`` are None."""

    at: float
    seqs: list[int] | None
    durable: bool | None
    degraded: bool

    @property
    def is_final(self) -> bool:
        """Whether its numbers are the last word."""
        return bool(self.durable) and not self.degraded

    @property
    def is_for_all(self) -> bool:
        """Whether everybody who reads from now on is to see it."""
        return self.durable is not False and not self.degraded


@dataclass(slots=True)
class Said:
    """One append, turn or batch. No answer: nobody knows how it ended. Several: it was sent again under its id."""

    session: str
    writer: str
    numbers: list[int]
    begun: float
    digests: list[int] | None = None
    answers: list[Answer] = field(default_factory=list)
    is_refused: bool = False

    @property
    def keys(self) -> list[Key]:
        return [(self.writer, number) for number in self.numbers]

    @property
    def answered(self) -> float:
        return self.answers[0].at if self.answers else math.inf

    @property
    def is_degraded(self) -> bool:
        return any(answer.degraded for answer in self.answers)

    @property
    def may_have_waited(self) -> bool:
        """Whether it may have been acknowledged by Redis alone, and logged later."""
        return any(not answer.durable and answer.degraded for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Read:
    """One context: the last message it shows and, where that was noted, those it shows word for word."""

    session: str
    reader: str
    begun: float
    ended: float
    last_seq: int
    complete: bool = True
    degraded: bool = False
    watermark: int | None = None
    kept: list[Key] | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Fold:
    """One summary in the log: what it covers has the place it has for good."""

    last_seq: int
    at: float


def is_folded(folds: Iterable[Fold], place: float, moment: float) -> bool:
    """Whether a place of the log was in a summary before this moment."""
    return any(fold.last_seq >= place and fold.at < moment for fold in folds)


@dataclass(slots=True)
class Clearing:
    """One erasure. Without an answer nobody knows how it ended."""

    session: str
    begun: float
    answered: float = math.inf


@dataclass(slots=True)
class Journals:
    """What all workers wrote down."""

    said: dict[str, Said] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    clearings: dict[str, Clearing] = field(default_factory=dict)
    folds: dict[str, list[Fold]] = field(default_factory=dict)
    relayed: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def read(self, lines: Iterable[str]) -> None:
        """Take in one journal; a last line that was cut by a SIGKILL is left out."""
        for line in lines:
            if not line.endswith("\n"):
                continue
            kind, at, *rest = json.loads(line)
            if kind == "begin":  # digests where the writer notes them
                session, call, writer, numbers, *digests = rest
                self.said[call] = Said(session, writer, numbers, at, *digests)
            elif kind == "ok":
                call, *told = rest
                self.said[call].answers.append(Answer(at, *told))
            elif kind == "fail":  # for certain: refused before anything was written
                self.said[rest[0]].is_refused = True
            elif kind == "read":
                session, reader, begun, last_seq, complete, degraded, *shown = rest
                self.reads.append(Read(session, reader, begun, at, last_seq, complete, degraded, *_shown(*shown)))
            elif kind == "clear":
                session, call = rest
                self.clearings[call] = Clearing(session, at)
            elif kind == "cleared":
                self.clearings[rest[0]].answered = at
            elif kind == "fold":  # not by a worker: that one was there, the log tells
                self.folds.setdefault(rest[0], []).append(Fold(rest[1], at))
            elif kind == "relayed":  # nor this: which sessions a legacy store is given, too
                self.relayed.append(rest[0])
            elif kind == "violation":
                self.violations.append(rest[0])

    @property
    def acknowledged(self) -> int:
        return sum(len(one.numbers) for one in self.said.values() if one.answers)


def digest(message: Mapping[str, Any]) -> int:
    """Return what a journal keeps of a message, to know it again."""
    return zlib.crc32(json.dumps(message, sort_keys=True).encode())


def name_of(key: Key) -> str:
    return f"{key[0]}-{key[1]}"


def _shown(watermark: int | None = None, kept: Sequence[Sequence[Any]] = (), source: str = "") -> tuple[Any, ...]:
    return () if watermark is None else (watermark, [(writer, n) for writer, n in kept], source)
