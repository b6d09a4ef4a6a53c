"""What the soak's workers asked for and were told, against what is in the log in the end. Pure functions.

For every session: numbers from 1 without a gap; every acknowledged message exactly once and as it was said; one whose
end nobody knows at most once, one that was refused not at all; a batch whole or not at all; each writer's messages in
the order in which it said them; what was answered before another call began stands before it, whoever made the two
calls; a number for one message, and the one its receipt said. What was erased stays away.

What was read: ``soak_reads``.

Exceptions, as in the guarantees. A message that Redis alone holds, when Redis goes away too: what is said then goes
into the log, is acknowledged as degraded, and the log has it, and all before it, before the message that nobody could
see; so has what was folded, by somebody for whom Redis was away, before whoever said it had found what waits there. The
number in a receipt that is degraded, or not durable, is not the last word. What was acknowledged or read as degraded,
others may not see for a moment; its writer does, where the log has it. A read that is not complete promises nothing. No
reads may be noted of a Redis that is full and evicts nothing, or came back with an old copy: they may lack what they
should show.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

from soak_journal import Clearing, Fold, Journals, Key, Read, Said, digest, is_folded, name_of
from soak_reads import Shown

SHOWN = 5
"""Violations of one session that are listed; the others are counted."""


Row = tuple[int, Mapping[str, Any]]
Rows = Mapping[str, Sequence[Row]]


def violations_of(journals: Journals, logged: Rows, *, shown: int = SHOWN) -> list[str]:
    """Return what is wrong with the log of all sessions, given what was said."""
    found = list(journals.violations)
    by_session: dict[str, _Session] = defaultdict(_Session)
    for one in journals.said.values():
        by_session[one.session].said.append(one)
    for read in journals.reads:
        by_session[read.session].reads.append(read)
    for clearing in journals.clearings.values():
        by_session[clearing.session].clearings.append(clearing)
    for session, folds in journals.folds.items():
        by_session[session].folds = folds
    for session in journals.relayed:
        by_session[session].is_relayed = True
    for session in sorted(set(logged) | set(by_session)):
        wrong = by_session[session].violations(logged.get(session, ()))
        more = [f"and {len(wrong) - shown} more"] if len(wrong) > shown else []
        found += [f"{session}: {text}" for text in wrong[:shown] + more]
    return found


@dataclass(slots=True)
class _Session:
    """What was said, read and erased in one session."""

    said: list[Said] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    clearings: list[Clearing] = field(default_factory=list)
    folds: Sequence[Fold] = ()
    is_relayed: bool = False

    def violations(self, rows: Sequence[Row]) -> list[str]:
        if wrong := _number_violations([seq for seq, _ in rows]):
            return wrong  # by place nothing else could be said
        places = {key_of(message): seq for seq, message in rows}
        wrong = self._presence_violations(rows)
        for one in self.said:
            wrong += self._call_violations(one, places)
        wrong += _receipt_violations([one for one in self.said if not self._may_be_erased(one.begun)])
        wrong += _order_violations(self.said, places, self.folds, is_relayed=self.is_relayed)
        return wrong + Shown(self.reads, self.said, self.clearings, places, self.folds).violations()

    def _may_be_erased(self, begun: float) -> bool:
        return any(begun < one.answered for one in self.clearings)

    def _is_erased(self, answered: float) -> bool:
        return any(one.answered < math.inf and answered < one.begun for one in self.clearings)

    def _presence_violations(self, rows: Sequence[Row]) -> list[str]:
        pairs = (zip(one.keys, one.digests or repeat(None), strict=False) for one in self.said)
        digests = dict(chain.from_iterable(pairs))
        counts = Counter(key_of(message) for _, message in rows)
        wrong = [f"{name_of(key)} is there {count} times" for key, count in counts.items() if count > 1]
        wrong += [f"{name_of(key)} is there, and nobody said it" for key in counts if key not in digests]
        for _, message in rows:
            expected = digests.get(key_of(message))
            if expected is not None and expected != digest(message):
                wrong.append(f"{name_of(key_of(message))} is not what was said")
        return wrong

    def _call_violations(self, one: Said, places: Mapping[Key, int]) -> list[str]:
        """Whether the messages of one call are there, or not there, together and where its receipts said."""
        there = [places.get(key) for key in one.keys]
        present = [place for place in there if place is not None]
        name = name_of(one.keys[0])
        if one.is_refused:
            return [f"{name} is there, and it was refused"] if present else []
        if present and self._is_erased(one.answered):
            return [f"{name} is there, and it was erased"]
        if one.answers and None in there and not self._may_be_erased(one.begun):
            kind = {True: "logged", False: "unlogged", None: "turn"}[one.answers[0].durable]
            lost = name_of(one.keys[there.index(None)])
            return [f"{lost}, acknowledged ({kind}) at {one.answered:.3f}, is lost"]
        if present and None in there:
            return [f"{name}: half of a batch is there, {there}"]
        if not present:
            return []
        is_whole = present == list(range(present[0], present[0] + len(present)))
        wrong = [] if is_whole else [f"{name}: the batch is torn, {present}"]
        told = [answer.seqs for answer in one.answers if answer.is_final and answer.seqs != present]
        return wrong + [f"{name}: the receipt said {seqs}; the log has {present}" for seqs in told]


def _number_violations(seqs: Sequence[int]) -> list[str]:
    wrong = [f"number {seq} is there {count} times" for seq, count in Counter(seqs).items() if count > 1]
    if seqs and min(seqs) != 1:
        wrong.append(f"the numbers begin at {min(seqs)}")
    if missing := sorted(set(range(min(seqs, default=1), max(seqs, default=0) + 1)) - set(seqs)):
        wrong.append(f"of the numbers to {max(seqs)} there is no {', '.join(map(str, missing[:SHOWN]))}")
    return wrong


def _receipt_violations(said: Iterable[Said]) -> list[str]:
    """One message has one number, and one number has one message."""
    wrong, given = [], dict[int, Key]()
    for one in said:
        told = [answer.seqs for answer in one.answers if answer.is_final and answer.seqs]
        if any(seqs != told[0] for seqs in told):
            wrong.append(f"{name_of(one.keys[0])} was acknowledged with the numbers {told}")
        for key, seq in zip(one.keys, told[0] if told else (), strict=False):
            if given.setdefault(seq, key) != key:
                wrong.append(f"number {seq} was given to {name_of(given[seq])} and to {name_of(key)}")
    return wrong


def _order_violations(
    said: Sequence[Said], places: Mapping[Key, int], folds: Sequence[Fold], *, is_relayed: bool
) -> list[str]:
    """Whoever was answered before another call began must stand before it.

    What ``is_relayed`` may have its place for good as soon as it is logged, where the relay lacks Redis.
    """
    placed = sorted(((places[one.keys[0]], one) for one in said if one.keys[0] in places), key=lambda pair: pair[0])
    wrong = []
    latest: Said | None = None  # began last, of those that stand before and could see Redis
    folded: Said | None = None  # and of those that were folded before they had looked there
    for place, one in placed:
        before = latest if one.may_have_waited else _later(latest, folded)
        if before is not None and one.answered < before.begun:
            whose = "its own" if before.writer == one.writer else "another writer's"
            wrong.append(
                f"{name_of(one.keys[0])} (number {place}, durable {one.answers[0].durable}) was acknowledged at "
                f"{one.answered:.3f}, and stands behind {whose} {name_of(before.keys[0])} "
                f"(durable {before.answers[0].durable}), begun at {before.begun:.3f}"
            )
        if one.answers and one.answers[0].durable and one.is_degraded:
            latest = folded = None  # Redis was away, and readers of the log may have folded what stands before this
        elif one.answers and not one.is_degraded:
            if is_relayed or is_folded(folds, place, one.answered):
                folded = _later(folded, one)
            else:
                latest = _later(latest, one)
    return wrong


def _later(first: Said | None, second: Said | None) -> Said | None:
    """Answer which of two began later."""
    return second if first is None or (second is not None and second.begun > first.begun) else first


def context_violations(session: str, context: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Hold a context against the log: a summary of 1..W, and the messages W+1..N word for word."""
    watermark, last_seq = context["watermark"], context["last_seq"]
    is_within = 0 <= watermark <= len(rows)
    problems = {
        f"the context ends short, at {last_seq} of {len(rows)}": last_seq < len(rows),
        f"the context ends beyond the log, at {last_seq} of {len(rows)}": last_seq > len(rows),
        f"the summary reaches to {watermark} of {len(rows)}": not is_within,
        f"no summary, and the watermark is {watermark}": watermark and not context["current_summary"],
        "a summary, and the watermark is 0": context["current_summary"] and not watermark,
        "not complete": not context["complete"],
        "still degraded": context["degraded"],
    }
    wrong = [text for text, holds in problems.items() if holds]
    wrong += _buffer_violations(context["buffer_messages"], watermark, rows) if is_within else []
    return [f"{session}: {text}" for text in wrong]


def _buffer_violations(kept: Sequence[Mapping[str, Any]], watermark: int, rows: Sequence[Row]) -> list[str]:
    """Name what is wrong with messages that are not those behind the watermark."""
    logged = {key_of(message): (place, message) for place, (_, message) in enumerate(rows, start=1)}
    keys = [key_of(message) for message in kept]
    places = [logged[key][0] for key in keys if key in logged]
    first, last = min(places, default=len(rows) + 1), max(places, default=len(rows) + 1)
    missing = {key: place for key, (place, _) in logged.items() if place > watermark and key not in keys}
    found = {
        "between the summary and the messages": [key for key, place in missing.items() if place < first],
        "missing among the messages": [key for key, place in missing.items() if first < place < last],
        "missing at the end": [key for key, place in missing.items() if place > last],
        "in the summary and word for word": [key for key in keys if key in logged and logged[key][0] <= watermark],
        "twice": [key for key, count in Counter(keys).items() if count > 1],
        "not in the log": [key for key in keys if key not in logged],
        "not word for word": [key for key, one in zip(keys, kept, strict=True) if logged.get(key, (0, one))[1] != one],
        "out of order": [] if places == sorted(places) else keys,
    }
    return [f"{text}: {', '.join(map(name_of, names))}" for text, names in found.items() if names]


def range_violations(session: str, ranges: Sequence[tuple[int, int, int]], last_seq: int) -> list[str]:
    """Hold the summary versions of a session against each other: each goes on where the one before it ended."""
    expected = 1
    for place, (version, first, last) in enumerate(ranges, start=1):
        problems = {
            f"version {version} is there twice": version < place,
            f"version {place} is missing": version > place,
            f"{expected} to {first - 1} are in no summary": first > expected,
            f"{first} to {expected - 1} are in two summaries": first < expected,
            "it covers nothing": last < first,
            f"it reaches beyond {last_seq}": last > last_seq,
        }
        if wrong := [text for text, holds in problems.items() if holds]:
            return [f"{session}: summary {version}, of {first} to {last}: {wrong[0]}"]
        expected = last + 1
    return []


def key_of(message: Mapping[str, Any]) -> Key:
    return message["writer"], message["n"]
