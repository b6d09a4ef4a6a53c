"""What the adapter of a migration does, as flows: both stores are written, and the phase says which one is read."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from contract_engine.memory._effects import Flow, pause, spawn
from contract_engine.memory._manager_flows import ManagerFlows
from contract_engine.memory.errors import (
    ConfigurationError,
    ContentionError,
    InvalidInputError,
    StoreUnavailableError,
)
from contract_engine.memory.hooks import observers
from contract_engine.memory.keys import check_limit, check_session_id
from contract_engine.memory.legacy import WINDOW, Legacy
from contract_engine.memory.message_log import LOG_TROUBLE, LogFlows
from contract_engine.memory.models import Message, Receipt
from contract_engine.memory.outbox import Backlog, Outbox, PendingIds, PendingSession, WaitingSession
from contract_engine.memory.phases import Phase, PhaseSetting, check_phase
from contract_engine.memory.relaying import Relay, RelaySettings, Round
from contract_engine.memory.session_cache import REDIS_TROUBLE
from contract_engine.memory.session_store import AsyncPostgresSessionStore, PostgresSessionStore
from contract_engine.memory.shadow_reads import ShadowReads

logger = logging.getLogger(__name__)

PHASE_SECONDS = 1.0
"""How long a process goes by the phase it has read."""

BACKLOG_SECONDS = 5.0
"""How often a process that relays counts what waits, where somebody listens."""

FIRST_PAUSE_SECONDS, ATTEMPTS = 0.005, 6
"""How a reader waits for a relay of the same session that is under way, each time twice as long."""


class DualWriteStats(NamedTuple):
    """What one adapter has done since it was made.

    ``written`` messages were acknowledged and ``relayed`` given to the legacy store; ``failed`` relays of a session
    were put off. Of ``compared`` reads the two stores had other messages in ``mismatches``.
    """

    written: int
    relayed: int
    failed: int
    compared: int
    mismatches: int


class DualFlows:
    """A manager and the legacy store beside it. ``legacy`` is None where that is the manager's own log."""

    def __init__(
        self,
        manager: ManagerFlows,
        legacy: Legacy | None,
        *,
        phase: PhaseSetting | None = None,
        shadow_rate: float = 0.01,
        settings: RelaySettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        if not manager.config.is_durable:
            raise ConfigurationError(
                "memory_manager",
                "a dual write needs a database: in ephemeral mode nothing would hold what the legacy store has not got "
                "yet, and Redis may lose it; set DATABASE_URL",
            )
        self._manager = manager
        self._legacy = legacy
        self._first_phase = phase or PhaseSetting(Phase.COEXISTENCE, 0.0)
        self._clock = clock
        self._log = LogFlows(manager.config)
        self.outbox = Outbox(manager.config)
        self._shadow = ShadowReads(self.outbox, rate=shadow_rate, rng=rng or random.Random())
        settings = settings or RelaySettings()
        self._relay = None if legacy is None else Relay(legacy, self.outbox, manager.waiting(), settings)
        self._known: tuple[PhaseSetting, float] | None = None
        self.last_backlog: Backlog | None = None
        self._looked_at = -BACKLOG_SECONDS
        self._written = self._relayed = self._failed = 0

    @property
    def is_dual(self) -> bool:
        """Whether there are two stores to write."""
        return self._legacy is not None

    def append(self, session_id: object, message: object, message_id: str | None) -> Flow[Receipt]:
        # The phase first, and before anything is written: a tenant that writes to two stores is to have one, and where
        # Redis has evicted what waits, all but the end of it, nothing else tells that it is to be relayed.
        if self._legacy is not None:
            yield from self._phase()
        flow = self._manager.append(session_id, message, message_id, is_relayed=self._legacy is not None)
        receipt = yield from flow
        self._written += 1
        return receipt

    def add_chat_message(self, session_id: object, message: object, message_id: str | None) -> Flow[bool]:
        try:
            yield from self.append(session_id, message, message_id)
        except (StoreUnavailableError, ContentionError) as exc:
            logger.warning("session %s: a message was not acknowledged: %s", session_id, exc)
            return False
        return True

    def get_chat_history(self, session_id: object, limit: object) -> Flow[list[Message]]:
        checked = check_session_id(session_id)
        most = None if limit is None else check_limit(limit)
        if self._legacy is None:
            return (yield from self._new_history(checked, most))
        setting = yield from self._phase()
        if setting.serves_new(checked):
            return (yield from self._new_history(checked, most))
        yield from self._log_waiting(checked)
        if setting.phase is not Phase.GRADUAL or not self._shadow.is_drawn():
            return (yield from self._old_history(self._legacy, checked, most))
        end = yield from self.outbox.log_end(checked)
        found = yield from self._old_history(self._legacy, checked, most)
        yield from spawn(lambda: self._shadow.compare(checked, found, end, most), f"comparison of session {checked}")
        return found

    def _new_history(self, session_id: str, limit: int | None) -> Flow[list[Message]]:
        yield from self._log_waiting(session_id)
        return (yield from self._log.history(session_id, limit))

    def _log_waiting(self, session_id: str) -> Flow[None]:
        """Have logged what waits in Redis since the database was away: it was acknowledged, so it is to be read."""
        waiting = self._manager.waiting()
        try:
            yield from waiting.drain(session_id)
        except REDIS_TROUBLE as exc:
            if waiting.is_begun(session_id):
                raise  # this process knows that there is something
            logger.info("session %s: nobody can tell whether messages wait to be logged: %s", session_id, exc)

    def _old_history(self, legacy: Legacy, session_id: str, limit: int | None) -> Flow[list[Message]]:
        """Read the legacy store and what it is still to be given, in order and each once."""
        owed: PendingSession | None = None
        for attempt in range(ATTEMPTS):
            # Before the legacy store: what is relayed in between is in both then, and in neither the other way round.
            owed = yield from self._owed(session_id, owed)
            if owed.is_leased and attempt < ATTEMPTS - 1:
                yield from pause(FIRST_PAUSE_SECONDS * 2**attempt)
                continue
            known = (yield from legacy.count_known(session_id, owed.pending)) if owed.in_doubt else 0
            wanted = limit
            if limit is not None and owed.pending:
                # The last answer counts whatever others have written until then, and nobody knows how much that is.
                wanted = None if attempt == ATTEMPTS - 1 else max(limit, len(owed.pending) + WINDOW)
            held = yield from legacy.history(session_id, wanted)
            if not owed.pending:
                return held
            now = yield from self.outbox.pending_ids(session_id)
            is_settled = _is_settled(owed, now)
            if is_settled or attempt == ATTEMPTS - 1:
                written = 0
                if owed.in_doubt or now.in_doubt or not is_settled:
                    written = yield from self._count_written(legacy, session_id, held, owed, known)
                found = [*held, *(one.message for one in owed.pending[written:])]
                return found if limit is None else found[max(0, len(found) - limit) :]
            yield from pause(FIRST_PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the last attempt answers")

    def _owed(self, session_id: str, before: PendingSession | None) -> Flow[PendingSession]:
        """Read what is owed; of what was read before the messages are not read again."""
        if before is not None:
            now = yield from self.outbox.pending_ids(session_id)
            known = {one.message_id: one for one in before.pending}
            if all(name in known for name in now.places):
                pending = [known[name]._replace(seq=seq) for name, seq in now.places.items()]
                return PendingSession(pending, now.in_doubt, now.is_leased)
        return (yield from self.outbox.pending(session_id))

    def _count_written(
        self, legacy: Legacy, session_id: str, held: Sequence[Message], owed: PendingSession, known: int
    ) -> Flow[int]:
        preceding = yield from self.outbox.preceding(session_id, owed.pending[0].seq, WINDOW)
        # What was said after it was known what is owed may have been relayed before the legacy store was read.
        _, since = yield from self.outbox.logged_behind(session_id, owed.pending[-1].seq)
        return (yield from legacy.count_in(held, session_id, [*owed.pending, *since], preceding, at_least=known))

    def _phase(self) -> Flow[PhaseSetting]:
        """Answer the phase in force, read at most once a second; where the database is away, the one known last."""
        known = self._known
        if known is not None and self._clock() - known[1] < PHASE_SECONDS:
            return known[0]
        try:
            return (yield from self.read_phase())
        except LOG_TROUBLE:
            if known is None:
                raise
            return known[0]

    def read_phase(self) -> Flow[PhaseSetting]:
        asked_at = self._clock()
        found = yield from self.outbox.read_phase()
        if found is None:
            # A tenant has a phase where it has a legacy store: this adapter would only pretend to be one that has.
            found = self._first_phase
            if self._legacy is not None:
                found = yield from self.outbox.begin_phase(found)
        self._known = found, asked_at
        return found

    def set_phase(self, phase: object, percentage: object) -> Flow[PhaseSetting]:
        setting = check_phase(phase, percentage)
        if self._legacy is None:
            return (yield from self.read_phase())
        yield from self.outbox.set_phase(setting)
        self._known = setting, self._clock()
        return setting

    def relay_once(self) -> Flow[Round]:
        if self._relay is None:
            return Round(0, 0, False)
        done = yield from self._relay.round()
        self._relayed += done.relayed
        self._failed += done.failed
        if observers.is_active and self._clock() - self._looked_at >= BACKLOG_SECONDS:
            yield from self.backlog()
        return done

    def settle(self, timeout_seconds: object) -> Flow[bool]:
        if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, int | float) or timeout_seconds < 0:
            raise InvalidInputError("timeout_seconds", f"expected a number of seconds, got {timeout_seconds!r}")
        until = self._clock() + timeout_seconds
        while True:
            if not (yield from self.outbox.has_pending()):
                return True
            left = until - self._clock()
            if left <= 0:
                return False
            # What another relay is at or has put off is waited for.
            if not (yield from self.relay_once()).relayed:
                yield from pause(min(left, 0.05))

    def backlog(self) -> Flow[Backlog]:
        self.last_backlog = yield from self.outbox.backlog()
        self._looked_at = self._clock()
        return self.last_backlog

    def waiting_sessions(self, limit: object) -> Flow[list[WaitingSession]]:
        return (yield from self.outbox.waiting(check_limit(limit, least=1)))

    def retry(self, session_id: object) -> Flow[list[str]]:
        return (yield from self.outbox.retry(None if session_id is None else check_session_id(session_id)))

    def stats(self) -> DualWriteStats:
        return DualWriteStats(
            self._written, self._relayed, self._failed, self._shadow.compared, self._shadow.mismatches
        )


def _is_settled(before: PendingSession, now: PendingIds) -> bool:
    """Whether the legacy store was given nothing in between, nor, in doubt, anything that was not pending before."""
    if before.is_leased or now.is_leased or before.in_doubt != now.in_doubt:
        return False
    known = [one.message_id for one in before.pending]
    pending = list(now.places)
    return (pending if now.in_doubt else pending[: len(known)]) == known


def shares_log(manager: ManagerFlows, legacy: object) -> bool:
    """Whether a legacy store is the very log of the manager: then one write is both.

    Another URL may lead there too, by way of a pooler or with the port spelled out, and each message would be logged
    twice then: with the same tenant it is refused.
    """
    if not isinstance(legacy, PostgresSessionStore | AsyncPostgresSessionStore):
        return False
    theirs, mine = legacy.config, manager.config
    if theirs.tenant != mine.tenant:
        return False
    if theirs.database_url != mine.database_url:
        raise ConfigurationError(
            "legacy_store",
            f"{type(legacy).__name__} has the tenant of the manager under another database_url, which may be the same "
            "log: give both the same URL, so that one write is both, or the legacy store a tenant of its own",
        )
    return True
