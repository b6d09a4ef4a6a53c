"""The relay: gives the legacy store what the outbox holds, in order, whoever wrote it and whatever has died since."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from contract_engine.memory._effects import Flow
from contract_engine.memory.errors import InvalidInputError, LegacyUnavailableError, MemoryServiceError
from contract_engine.memory.intake import new_message_id
from contract_engine.memory.keys import check_limit
from contract_engine.memory.legacy import WINDOW, Legacy
from contract_engine.memory.outbox import Claim, ClaimedSession, Outbox, Pending
from contract_engine.memory.unlogged import Unlogged

logger = logging.getLogger(__name__)

SESSIONS, MESSAGES, BYTES = 25, 500, 4 * 1024 * 1024
"""Sessions claimed at once at most, messages of each that are read, and about how much of all of them together. Several
relays at work share a backlog by claims."""

HOLD_SECONDS = 1.0
"""How long sessions are held at most, but until a first message is written, and for a call to the legacy store that is
under way: whoever erases one has to wait for its relay."""

DRAIN_SECONDS = 0.5
"""How much of that may go by until what waits in Redis is logged; what it was too short for goes on the next time."""

GROUP_SECONDS = 0.15
"""How long sessions wait for those that were claimed with them. Then what is done is noted, and the others are given
back: whoever reads a session has to wait for its relay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """How a relay goes about it.

    A lease lasts ``lease_seconds``: so long after its holder died a session waits. A session whose first message failed
    is tried again after ``first_delay_seconds``, then twice that and so on up to ``max_delay_seconds``, shortened at
    random by up to half; after ``park_after`` failures, while the legacy store answered, it is parked. A relay looks
    for what others have left every ``poll_seconds``.
    """

    lease_seconds: float = 30.0
    first_delay_seconds: float = 0.2
    max_delay_seconds: float = 60.0
    park_after: int = 5
    poll_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lease_seconds", "first_delay_seconds", "max_delay_seconds", "poll_seconds"):
            value: object = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**6:
                raise InvalidInputError(name, f"expected a number of seconds above 0, got {value!r}")
        check_limit(self.park_after, least=1, field="park_after")


class Round(NamedTuple):
    """What one round did: messages relayed, sessions that failed, and whether there may be more to do at once."""

    relayed: int
    failed: int
    is_more: bool


@dataclass(slots=True)
class _Group:
    """What one round has claimed: sessions not begun, what was done and is not noted, and how it went so far."""

    lease: str
    waiting: list[Claim]
    notes_at: float
    ends_at: float
    latest: float
    has_written: bool = False
    done: list[tuple[str, str]] = field(default_factory=list)
    begun: int = 0
    relayed: int = 0
    failed: int = 0
    is_cut: bool = False
    has_progress: bool = False
    is_apart: bool = False

    @property
    def stops_at(self) -> float:
        """When no more is written. A first write has longer: where it takes long to come to it, none ever would be."""
        return self.ends_at if self.has_written else self.latest

    def note(self, claim: Claim, read: ClaimedSession, written: Sequence[Pending]) -> list[tuple[str, str]]:
        """Count what was written of a session; answers the rows of the outbox that are done."""
        self.relayed += len(written)
        done = [(claim.session_id, message_id) for message_id in read.gone]
        done += [(claim.session_id, one.message_id) for one in written]
        self.has_progress |= bool(done)
        return done


class _Failure(NamedTuple):
    """Why a session is put off.

    ``in_doubt``: the legacy store may have got a message of which no note was taken. ``counts``: it was asked to take
    one, so that the message may be at fault.
    """

    reason: str
    in_doubt: bool
    counts: bool


class Relay:
    """Gives one legacy store what one tenant owes it. Any number of relays may be at work, in any number of processes.

    One holds a session at a time, by a lease, and no longer than it takes to relay that session and, for a moment,
    those claimed with it. What there is no time for is given back; that is no failure. A row of the outbox is removed
    after the legacy store has taken its message; one that dies in between leaves the session in doubt, and the next one
    looks first what is there. By id where the legacy object knows ids and keeps each once (see :class:`Legacy`):
    exactly once. Else by comparing the end of its history: a message can be written twice then, if it is the first of
    its session, if what was said repeats itself, or if others write there too. None is left out, unless another writer
    has just said the very same there.
    """

    def __init__(self, legacy: Legacy, outbox: Outbox, unlogged: Unlogged, settings: RelaySettings) -> None:
        self.legacy = legacy
        self.settings = settings
        self._outbox = outbox
        self._unlogged = unlogged
        self._sessions = SESSIONS
        self._together = 1

    def round(self) -> Flow[Round]:
        """Relay what is due of some sessions. Raises where the database is away."""
        if self.legacy.breaker.turns_away():
            return Round(0, 0, False)
        lease, seconds, started = new_message_id(), self.settings.lease_seconds, time.monotonic()
        latest = started + seconds / 2
        ends_at = min(latest, started + HOLD_SECONDS)
        claims = yield from self._outbox.claim(lease, sessions=self._sessions, lease_seconds=seconds)
        if not claims:
            return Round(0, 0, False)
        try:
            # Between the two: whatever waits now comes after what was owed when the sessions were claimed, and no more
            # than that is read; what waited before is logged now, in front of what was logged behind it.
            drained, unknown = yield from self._unlogged.drain_known(
                [one.session_id for one in claims], min(latest, started + DRAIN_SECONDS)
            )
            if unknown:  # what waits there unseen is never to go before what is read now
                yield from self._outbox.fix(lease, unknown)
            late = [one for one in claims if one.session_id not in drained]
            ready = [one for one in claims if one.session_id in drained]
            found = yield from self._outbox.read_claimed(ready, messages=MESSAGES, most_bytes=BYTES)
        except MemoryServiceError:
            # Nothing was written: nobody need wait until the lease is over, and then look whether something was.
            yield from self._outbox.give_back(lease, claims)
            raise
        if late:  # to one or the other, messages may come faster than anybody logs them
            yield from self._outbox.give_back(lease, late, is_last=True)
        group = _Group(lease, ready, min(time.monotonic() + GROUP_SECONDS, ends_at), ends_at, latest)
        group.is_cut = bool(late)
        # What did not fit in with those before was not read, and is given back.
        while group.waiting and (read := found.get(group.waiting[0].session_id)) is not None:
            several = self._untroubled(group, found)
            if len(several) > 1:
                yield from self._relay_together(group, several, found)
            else:
                yield from self._relay_session(group, group.waiting.pop(0), read)
        yield from self._note(group)
        self._adapt(group)
        is_more = group.is_cut or group.has_progress or not group.failed
        return Round(group.relayed, group.failed, is_more)

    def _adapt(self, group: _Group) -> None:
        """Claim as many sessions the next time as there was time for, and more where much of it was left."""
        if group.is_cut:
            self._sessions = max(1, group.begun)
        elif time.monotonic() < group.notes_at - GROUP_SECONDS / 2:
            self._sessions = min(SESSIONS, self._sessions * 2)

    def _note(self, group: _Group) -> Flow[None]:
        """Take note of what is done, and give back the sessions that were not begun."""
        done, group.done = group.done, []
        yield from self._outbox.finish(group.lease, done, kept=())
        if group.waiting:
            waiting, group.waiting, group.is_cut = group.waiting, [], True
            yield from self._outbox.give_back(group.lease, waiting)

    def _untroubled(self, group: _Group, found: Mapping[str, ClaimedSession]) -> list[Claim]:
        """Answer which of the next sessions are to be written in one call: none that has failed is among them."""
        if not self.legacy.takes_sessions or group.is_apart:
            return []

        def is_untroubled(claim: Claim) -> bool:
            read = found.get(claim.session_id)
            return not claim.attempts and read is not None and bool(read.pending)

        return list(takewhile(is_untroubled, group.waiting[: self._together]))

    def _relay_together(
        self, group: _Group, claims: Sequence[Claim], found: Mapping[str, ClaimedSession]
    ) -> Flow[None]:
        """Write several sessions in one call; where that fails, all that are left one by one: not all are to blame."""
        started = time.monotonic()
        if started >= (group.notes_at if group.begun else group.stops_at):
            yield from self._note(group)
            return
        try:
            held = yield from self.legacy.add_to_sessions(
                {one.session_id: found[one.session_id].pending for one in claims}
            )
        except LegacyUnavailableError as exc:
            logger.info("%d sessions are relayed one by one now: %s", len(claims), exc.reason)
            group.waiting[: len(claims)] = [one._replace(in_doubt=True) for one in claims]
            group.is_apart, self._together = True, 1
            return
        group.has_written = True
        self._pace(len(claims), time.monotonic() - started)
        del group.waiting[: len(claims)]
        for claim in claims:
            read = found[claim.session_id]
            if claim.session_id in held:
                group.begun += 1
                group.done += group.note(claim, read, read.pending)
            else:
                yield from self._relay_session(group, claim, read)

    def _pace(self, sessions: int, seconds: float) -> None:
        """Have more sessions written together the next time, or fewer: they wait for each other."""
        if seconds > GROUP_SECONDS:
            self._together = max(1, sessions // 2)
        elif seconds < GROUP_SECONDS / 2:
            self._together = min(SESSIONS, max(self._together, 2 * sessions))

    def _relay_session(self, group: _Group, claim: Claim, read: ClaimedSession) -> Flow[None]:
        started = time.monotonic()
        written, failure = yield from self._write(group, claim, read.pending)
        done = group.note(claim, read, written)
        is_late = bool(read.pending) and not done and failure is None
        group.begun += not is_late
        if failure is not None:
            group.failed += 1
            yield from self._outbox.finish(group.lease, done, kept=[claim.session_id])
            yield from self._put_off(group.lease, claim, failure, has_progress=bool(done))
        elif done:
            group.done += done
            self._pace(1, time.monotonic() - started)
        elif is_late:  # the time was up before the first of them
            group.is_cut = True
            yield from self._outbox.give_back(group.lease, [claim])
        else:
            yield from self._outbox.recount(group.lease, claim.session_id)

    def _write(
        self, group: _Group, claim: Claim, pending: Sequence[Pending]
    ) -> Flow[tuple[Sequence[Pending], _Failure | None]]:
        """Write the messages of a session, while there is time; answers those that are there, and what has failed."""
        written = 0
        # After a call for several no look is taken: what such a store has already it passes over.
        if claim.in_doubt and pending and not group.is_apart:
            session_id, seq = claim.session_id, pending[0].seq
            # Beside other sessions there may have been less room than the one had who left it in doubt.
            alone = yield from self._outbox.read_claimed([claim], messages=MESSAGES, most_bytes=BYTES)
            pending = alone[session_id].pending
            try:
                written = yield from self.legacy.count_written(
                    session_id, pending, lambda: self._outbox.preceding(session_id, seq, WINDOW)
                )
            except LegacyUnavailableError as exc:
                # It does not even answer that: no message is to blame.
                return (), _Failure(exc.reason, in_doubt=True, counts=False)
        while written < len(pending):
            now = time.monotonic()
            if now >= group.stops_at:
                break
            if now >= group.notes_at and (group.waiting or group.done):
                yield from self._note(group)
            # After a failure one by one, so that only what is behind the message at fault waits.
            most = 1 if claim.attempts else self.legacy.most_at_once
            some = pending[written : written + most]
            try:
                yield from self.legacy.add(claim.session_id, some)
            except LegacyUnavailableError as exc:
                is_in_doubt = exc.is_tried or (claim.in_doubt and group.is_apart)
                return pending[:written], _Failure(exc.reason, in_doubt=is_in_doubt, counts=exc.is_tried)
            group.has_written = True
            written += len(some)
        return pending[:written], None

    def _put_off(self, lease: str, claim: Claim, failure: _Failure, *, has_progress: bool) -> Flow[None]:
        settings = self.settings
        attempts = (0 if has_progress else claim.attempts) + failure.counts
        delay = min(settings.first_delay_seconds * 2 ** min(max(attempts - 1, 0), 30), settings.max_delay_seconds)
        parks = failure.counts and attempts >= settings.park_after
        if parks:
            logger.error("session %s: parked after %d attempts: %s", claim.session_id, attempts, failure.reason)
        else:
            logger.warning("session %s: not relayed, tried again later: %s", claim.session_id, failure.reason)
        how = {
            "counted": int(failure.counts),
            "error": failure.reason,
            "in_doubt": failure.in_doubt,
            "delay_seconds": delay * random.uniform(0.5, 1.0),
            "parks": parks,
        }
        yield from self._outbox.put_off(lease, claim.session_id, how)
