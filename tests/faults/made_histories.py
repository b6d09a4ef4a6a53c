"""Journals as workers write them, a line at a time, and whole histories that are in order by construction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from soak_history import violations_of
from soak_journal import Journals, digest

Key = tuple[str, int]


def message(key: Key, content: str = "") -> dict[str, Any]:
    writer, n = key
    return {"role": "user", "writer": writer, "n": n, "content": content or f"Order {n} of {writer}"}


def rows_of(keys: Sequence[Key]) -> list[tuple[int, dict[str, Any]]]:
    return [(seq, message(key)) for seq, key in enumerate(keys, start=1)]


def line(*fields: object) -> str:
    return json.dumps(fields) + "\n"


def begin(at: float, call: str, numbers: list[int], session: str = "s") -> str:
    writer = call.partition("-")[0]
    return line("begin", at, session, call, writer, numbers, [digest(message((writer, n))) for n in numbers])


def ok(at: float, call: str, seqs: list[int] | None, *, durable: bool | None = True, degraded: bool = False) -> str:
    return line("ok", at, call, seqs, durable, degraded)


def read(
    begun: float,
    ended: float,
    last_seq: int,
    *,
    by: str = "r",
    complete: bool = True,
    degraded: bool = False,
    kept: Sequence[Key] | None = None,
    watermark: int | None = None,
) -> str:
    """Return the line of a read; where what it shows is noted, its watermark is such that the messages end it."""
    shown = () if kept is None else (last_seq - len(kept) if watermark is None else watermark, kept, "redis")
    return line("read", ended, "s", by, begun, last_seq, complete, degraded, *shown)


def clear(begun: float, answered: float | None) -> list[str]:
    answer = [] if answered is None else [line("cleared", answered, "clearing")]
    return [line("clear", begun, "s", "clearing"), *answer]


def judged(history: Sequence[str], log: Mapping[str, Sequence[Key]], *, shown: int = 100) -> list[str]:
    return judged_rows(history, {session: rows_of(keys) for session, keys in log.items()}, shown=shown)


def judged_rows(history: Sequence[str], rows: Mapping[str, Any], *, shown: int = 100) -> list[str]:
    journals = Journals()
    journals.read(history)
    return violations_of(journals, rows, shown=shown)


# -- histories


@dataclass
class Called:
    """One call of a made history: when it began, what it said, and how it was answered."""

    keys: list[Key]
    begun: float
    effect: float
    answered: float | None = None
    kind: str = "append"
    degraded: bool = False


@dataclass
class Reading:
    """One read of a made history."""

    begun: float
    ended: float
    last_seq: int
    degraded: bool
    watermark: int
    kept: list[Key]

    def line(self) -> str:
        seen = {"degraded": self.degraded, "watermark": self.watermark, "kept": self.kept}
        return read(self.begun, self.ended, self.last_seq, **seen)  # type: ignore[arg-type]  # by name


@dataclass
class Made:
    """A history that a log with this order of effects explains."""

    calls: list[Called] = field(default_factory=list)
    log: list[Key] = field(default_factory=list)
    reads: list[Reading] = field(default_factory=list)
    clearings: list[tuple[float, float]] = field(default_factory=list)
    again: list[Called] = field(default_factory=list)
    seqs: dict[Key, int] = field(default_factory=dict)

    def lasting(self, *kinds: str) -> list[Called]:
        """Return calls of some kinds that began when every clearing had ended: nothing may have erased them."""
        cleared = max((ended for _, ended in self.clearings), default=0.0)
        return [one for one in self.calls if one.kind in kinds and one.begun >= cleared]

    def final(self, *kinds: str) -> list[Called]:
        """Return those of them that were not acknowledged as degraded."""
        return [one for one in self.lasting(*kinds) if not one.degraded]

    def lines(self) -> list[str]:
        found = []
        for one in self.calls:
            call = f"{one.keys[0][0]}-{one.keys[0][1]}"
            found.append(begin(one.begun, call, [n for _, n in one.keys]))
            if one.kind == "refused":
                found.append(line("fail", one.effect, call))
            for at in [one.answered] + [one.effect + 9.0] * (one in self.again):
                if at is not None:
                    seqs = None if one.kind == "turn" else [self.seqs[key] for key in one.keys]
                    durable = None if one.kind == "turn" else one.kind != "unlogged"
                    found.append(ok(at, call, seqs, durable=durable, degraded=one.degraded))
        found += [one.line() for one in self.reads]
        for number, (begun, ended) in enumerate(self.clearings):
            found += [line("clear", begun, "s", f"c{number}"), line("cleared", ended, f"c{number}")]
        return found

    def judged(self) -> list[str]:
        return judged(self.lines(), {"s": self.log})


Step = tuple[str, int, int, int]
"""What happens, who does it, how long before its effect the call begins, and how long after it ends."""

STEPS = (
    "append",
    "append",
    "turn",
    "batch",
    "resent",
    "lost",
    "landed",
    "refused",
    "unlogged",
    "drained",
    "read",
    "clear",
)
ENDING: tuple[Step, ...] = (
    ("append", 0, 1, 1),
    ("batch", 1, 1, 1),
    ("append", 0, 1, 1),
    ("turn", 2, 1, 1),
    ("resent", 1, 1, 1),
    ("unlogged", 2, 1, 1),
    ("append", 0, 1, 1),
    ("refused", 3, 1, 1),
    ("lost", 3, 1, 1),
    ("append", 1, 1, 1),
    ("read", 0, 1, 1),
    ("append", 0, 1, 1),
    ("read", 0, 1, 1),
)
"""What every made history ends with, so that it has something of each kind."""

ERASED: tuple[Step, ...] = (("append", 0, 1, 0), ("batch", 1, 1, 0), ("clear", 0, 0, 0))


def made(steps: Sequence[Step]) -> Made:
    """Carry out the steps one after the other; the calls around them overlap as far as each writer's own do not."""
    history = Made()
    free = [0.0] * 4
    said = [0] * 4
    waiting: list[Called] = []
    now = 0.0

    def drain() -> None:
        for one in waiting:
            history.log += one.keys
        waiting.clear()

    for place, (kind, writer, before, after) in enumerate((*steps, *ENDING)):
        if place == len(steps):
            drain()
            now += 10.0  # every call before has ended
        begun = max(now + 1.0 - before, free[writer] + 0.25)
        now = max(now + 1.0, begun + 0.25)
        ended = now + 0.25 + after
        if kind == "drained":
            drain()
            continue
        if kind == "read":
            folded = len(history.log) // 2
            shown = history.log[folded:]
            history.reads.append(Reading(begun, ended, len(history.log), bool(waiting), folded, shown))
            continue
        if kind == "clear":
            history.clearings.append((begun, ended))
            history.log.clear()
            waiting.clear()
            continue
        free[writer] = ended
        numbers = range(said[writer] + 1, said[writer] + 1 + (3 if kind == "batch" else 1))
        said[writer] = numbers[-1]
        one = Called([("abcd"[writer], n) for n in numbers], begun, now, None if kind in ("lost", "landed") else ended)
        one.kind, one.degraded = kind, kind == "unlogged" or bool(waiting)
        history.calls.append(one)
        if kind == "unlogged":
            waiting.append(one)
            history.seqs |= dict.fromkeys(one.keys, 1)
        elif kind == "refused":
            one.answered = None
        elif kind != "lost":
            start = len(history.log) + 1
            history.seqs |= {key: start + offset for offset, key in enumerate(one.keys)}
            history.log += one.keys
            if kind == "resent":
                history.again.append(one)
        if place >= len(steps):
            drain()
    return history
