"""What the soak's workers asked for and were told, against what is in the log in the end. Pure functions.

For every session: numbers without a gap; every acknowledged message exactly once; one whose end nobody knows at most
once; a batch whole or not at all; each writer's messages in the order in which it said them; and what was answered
before another call began stands before it, whoever made the two calls.

One exception to the last: a message that Redis alone holds, when Redis goes away too. What is said then goes into the
log, is acknowledged as degraded, and the log has it before the message that nobody could see.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Key = tuple[str, int]
"""A message by who said it and which of theirs it was."""

SHOWN = 5
"""Violations of one session that are listed; the others are counted."""


@dataclass(slots=True)
class Said:
    """One append, turn or batch. ``answered`` is None where nobody knows how it ended."""

    session: str
    writer: str
    numbers: list[int]
    begun: float
    answered: float | None = None
    seqs: list[int] | None = None
    durable: bool | None = None
    degraded: bool = False

    @property
    def keys(self) -> list[Key]:
        return [(self.writer, number) for number in self.numbers]


@dataclass(slots=True)
class Journals:
    """What all workers wrote down."""

    said: dict[str, Said] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def read(self, lines: Iterable[str]) -> None:
        """Take in one journal; a last line that was cut by a SIGKILL is left out."""
        for line in lines:
            if not line.endswith("\n"):
                continue
            kind, at, *rest = json.loads(line)
            if kind == "begin":
                session, call, writer, numbers = rest
                self.said[call] = Said(session, writer, numbers, at)
            elif kind == "ok":
                call, *told = rest
                one = self.said[call]
                one.answered, (one.seqs, one.durable, one.degraded) = at, told
            elif kind == "violation":
                self.violations.append(rest[0])

    @property
    def acknowledged(self) -> int:
        return sum(len(one.numbers) for one in self.said.values() if one.answered is not None)


Rows = Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]]


def violations_of(journals: Journals, logged: Rows) -> list[str]:
    """Return what is wrong with the log of all sessions, given what was said."""
    found = list(journals.violations)
    by_session: dict[str, list[Said]] = defaultdict(list)
    for one in journals.said.values():
        by_session[one.session].append(one)
    for session in sorted(set(logged) | set(by_session)):
        found += [f"{session}: {text}" for text in _session_violations(by_session[session], logged.get(session, ()))]
    return found


def _session_violations(said: Sequence[Said], rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[str]:
    if [seq for seq, _ in rows] != list(range(1, len(rows) + 1)):
        return [f"the numbers are not 1 to {len(rows)}"]
    keys: list[Key] = [(message["writer"], message["n"]) for _, message in rows]
    places = {key: place for place, key in enumerate(keys, start=1)}
    known = {key for one in said for key in one.keys}
    wrong = [f"{_name(key)} is there {count} times" for key, count in Counter(keys).items() if count > 1]
    wrong += [f"{_name(key)} is there, and nobody said it" for key in keys if key not in known]
    for one in said:
        there = [places.get(key) for key in one.keys]
        if one.answered is not None and None in there:
            kind = {True: "logged", False: "unlogged", None: "turn"}[one.durable]
            wrong.append(f"{_name(one.keys[0])}, acknowledged ({kind}) at {one.answered:.3f}, is lost")
        elif None in there and any(place is not None for place in there):
            wrong.append(f"{_name(one.keys[0])}: half of a batch is there, {there}")
        elif None not in there:
            assert there[0] is not None
            if there != list(range(there[0], there[0] + len(there))):
                wrong.append(f"{_name(one.keys[0])}: the batch is torn, {there}")
            if one.durable and not one.degraded and one.seqs != there:
                wrong.append(f"{_name(one.keys[0])}: the receipt said {one.seqs}; the log has {there}")
    wrong += _order_violations(said, places)
    return [*wrong[:SHOWN], f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else wrong


def _order_violations(said: Sequence[Said], places: Mapping[Key, int]) -> list[str]:
    """Whoever was answered before another call began must stand before it."""
    placed = sorted(((places[one.keys[0]], one) for one in said if one.keys[0] in places), key=lambda pair: pair[0])
    wrong = []
    latest: Said | None = None  # the call that began last, of those that stand before and could see Redis
    for place, one in placed:
        if latest is not None and one.answered is not None and one.answered < latest.begun:
            wrong.append(
                f"{_name(one.keys[0])} (number {place}, durable {one.durable}) was acknowledged at {one.answered:.3f}, "
                f"and stands behind {_name(latest.keys[0])} (durable {latest.durable}), begun at {latest.begun:.3f}"
            )
        is_overtaking = one.degraded or one.answered is None
        if not is_overtaking and (latest is None or one.begun > latest.begun):
            latest = one
    return wrong


def context_violations(
    session: str, context: Mapping[str, Any], rows: Sequence[tuple[int, Mapping[str, Any]]]
) -> list[str]:
    """Hold a context against the log: a summary of 1..W, and the messages W+1..N word for word."""
    watermark = context["watermark"]
    wrong = []
    if context["last_seq"] != len(rows):
        wrong.append(f"the context ends at {context['last_seq']}, the log at {len(rows)}")
    if context["buffer_messages"] != [message for _, message in rows[watermark:]]:
        wrong.append(f"the context does not have the messages behind {watermark}")
    if not context["complete"] or bool(context["current_summary"]) != (watermark > 0):
        wrong.append(f"the summary does not reach to {watermark}")
    if context["degraded"]:
        wrong.append("still degraded")
    return [f"{session}: {text}" for text in wrong]


def range_violations(session: str, ranges: Sequence[tuple[int, int, int]], last_seq: int) -> list[str]:
    """Hold the summary versions of a session against each other: each goes on where the one before it ended."""
    expected = 1
    for place, (version, first, last) in enumerate(ranges, start=1):
        if version != place or first != expected or not first <= last <= last_seq:
            return [f"{session}: summary {version} covers {first} to {last}; expected was {place}, from {expected}"]
        expected = last + 1
    return []


def _name(key: Key) -> str:
    return f"{key[0]}-{key[1]}"
