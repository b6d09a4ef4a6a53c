"""A session as a whole: the log and its copy in Redis kept as one, whichever of the two is there to answer.

With a log, a message is acknowledged when its row is committed; Redis is told afterwards, and where it cannot be told
or cannot follow, the next reader reads the log. Without a log (ephemeral mode) Redis is the truth.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from contract_engine.memory._effects import Command, Flow, pause
from contract_engine.memory.assignment import Assignment, Attempt
from contract_engine.memory.config import MemoryConfig, SessionLimits
from contract_engine.memory.errors import ContentionError, MemoryServiceError, StoreUnavailableError
from contract_engine.memory.folding import ATTEMPTS, Folding
from contract_engine.memory.hooks import MessagesUnlogged, observers
from contract_engine.memory.keys import SessionKeys
from contract_engine.memory.message_log import LOG_TROUBLE, LogFlows
from contract_engine.memory.models import Loaded, Outgoing, Placed, Receipt, SessionState, empty_session
from contract_engine.memory.recall import Recall
from contract_engine.memory.refining import Refining
from contract_engine.memory.session_cache import INSTALLED, OVERTAKEN, REDIS_TROUBLE, WAITING, SessionCache
from contract_engine.memory.telling import Telling
from contract_engine.memory.token_counter import TokenCounter
from contract_engine.memory.unlogged import Unlogged
from contract_engine.memory.untold import Untold

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, PAUSES = 0.002, 4
"""How a reader waits for another that rebuilds the same buffer, each time twice as long; then it reads the log too."""

REBUILDS = 3
"""How often one rebuild reads the log: where writers overtake a reading, what they append waits for the next one."""

# What the append script answers; see there.
_STALE, _APPENDED, _FOLD_DUE, _PRECEDED = 0, 1, 2, 4


class Appended(msgspec.Struct, frozen=True):
    """Messages that were acknowledged; ``loaded`` is the session after them where the caller asked for it."""

    placed: Placed
    outgoing: Sequence[Outgoing]
    loaded: Loaded | None
    is_durable: bool
    degraded: bool

    @property
    def receipts(self) -> list[Receipt]:
        """What the callers of these messages are given, one each."""
        pairs = zip(self.placed.seqs, self.outgoing, strict=True)
        return [Receipt(seq, message.message_id, self.is_durable, self.degraded) for seq, message in pairs]


class _Followed(NamedTuple):
    """How Redis followed the log.

    ``is_preceded``: not at all, since earlier messages wait there to be logged. ``is_placed``: nobody can have logged
    such messages before these, and moved them by it, since these were logged.
    """

    state: SessionState | None
    is_preceded: bool = False
    is_placed: bool = False


class Sessions:
    """One tenant's sessions, as flows. ``log`` is None in ephemeral mode; ids and messages have been checked.

    ``is_away`` says whether a call to Redis would be rejected without being tried: with a log, none is made then.
    ``refines``: there is a language model, which refines what is folded.
    """

    def __init__(
        self,
        config: MemoryConfig,
        counter: TokenCounter,
        *,
        log: LogFlows | None,
        at_cap: str = "fold",
        is_away: Callable[[], bool] | None = None,
        refines: bool = False,
    ) -> None:
        self.cache = SessionCache(config)
        self.recall = None if log is None else Recall(config, log)
        self._untold = Untold()
        self.telling = Telling(self.cache, self._untold)
        later = self.telling.distrust_later
        self.folding = Folding(
            config, counter, self.cache, log=log, distrust=later, after_fold=self._spawn_what_folds_leave
        )
        self.refining = None if log is None else Refining(counter, self.folding, log)
        self.refines = refines
        self._log = log
        self._is_away = is_away or (lambda: False)
        self._limits = config.limits
        self._assign_settings = self.cache.assign_settings(at_cap)
        alone = self.folding if log is None else Folding(config, counter, self.cache, log=None, distrust=later)
        self._folding_alone = alone
        self._assignment = Assignment(self.cache, alone, self._assign_command)
        self.unlogged = None if log is None else Unlogged(config, self.cache, alone, log)

    def _spawn_what_folds_leave(self, session_id: str) -> Flow[None]:
        """Have what was folded made searchable, and refined."""
        if self.recall is not None:
            yield from self.recall.spawn_index(session_id)
        if self.refining is not None and self.refines:
            yield from self.refining.spawn(session_id)

    def _assign_command(self, keys: SessionKeys, messages: Sequence[Any], attempt: Attempt) -> Command:
        return self.cache.assign_command(
            keys, messages, ticket=attempt.ticket, settings=self._assign_settings, message_id=attempt.message_id
        )

    def append(self, session_id: str, outgoing: Sequence[Outgoing], *, read: bool = False) -> Flow[Appended]:
        """Acknowledge messages, in order; with ``read`` answer the session too, in the same round trip to Redis."""
        loaded: Loaded | None = None
        if self._log is None or self.unlogged is None:
            placed, state = yield from self._assignment.append(session_id, outgoing, read=read)
            if read:
                if state is None or state.exceeds_caps:
                    state = yield from self.folding.read_within_caps(session_id)
                loaded = Loaded(state or empty_session(self._limits), "redis", False)
            return Appended(placed, outgoing, loaded, is_durable=False, degraded=False)
        try:
            if self.unlogged.is_begun(session_id):
                yield from self.unlogged.drain_own(session_id)
            placed = yield from self._log.append(session_id, outgoing)
        except LOG_TROUBLE as exc:
            return (yield from self._append_unlogged(self.unlogged, session_id, outgoing, read=read, cause=exc))
        # Committed: from here on nothing may turn the acknowledgement into a failure.
        if self._is_away():
            observers.fell_back("breaker_open")
            self._untold.note(session_id, placed.seqs[-1])
            loaded = (yield from self._load_log(session_id)) if read else None
            return Appended(placed, outgoing, loaded, is_durable=True, degraded=True)
        followed, is_left = _Followed(None), False
        try:
            followed = yield from self._follow(session_id, placed, outgoing, read=read)
            if followed.is_preceded:
                try:
                    is_left = yield from self.unlogged.drain_in_front(session_id)
                except LOG_TROUBLE as exc:
                    # They cannot be told of while those before them still wait; so they wait too, and the log will keep
                    # them once.
                    return (yield from self._append_unlogged(self.unlogged, session_id, outgoing, read=read, cause=exc))
            if not followed.is_placed:
                placed = (yield from self._log.find(session_id, outgoing)) or placed
        except GeneratorExit:  # the caller was cancelled, and Redis told or not
            self._untold.note(session_id, placed.seqs[-1])
            raise
        except MemoryServiceError as exc:
            logger.info("session %s: message %d is in the log, Redis not told: %s", session_id, placed.seqs[-1], exc)
            observers.fell_back("redis_unavailable")
            self._untold.note(session_id, placed.seqs[-1])
            yield from self.telling.spawn()
            loaded = (yield from self._load_log(session_id, waits=followed.is_preceded)) if read else None
            return Appended(placed, outgoing, loaded, is_durable=True, degraded=True)
        if read:
            state = followed.state
            loaded = (yield from self.load(session_id)) if state is None else Loaded(state, "redis", False)
        return Appended(placed, outgoing, loaded, is_durable=True, degraded=is_left)

    def _append_unlogged(
        self,
        unlogged: Unlogged,
        session_id: str,
        outgoing: Sequence[Outgoing],
        *,
        read: bool,
        cause: StoreUnavailableError,
    ) -> Flow[Appended]:
        """Go on in Redis; where it is away too, raise what is wrong with the log."""
        logger.info("session %s: acknowledged by Redis alone: %s", session_id, cause)
        expected = self._untold.expected(session_id)
        try:
            placed, state = yield from unlogged.append(session_id, outgoing, read=read, expected_seq=expected)
        except REDIS_TROUBLE as exc:
            raise cause from exc
        observers.fell_back("postgres_unavailable")
        if observers.is_active:
            observers.tell(MessagesUnlogged(len(outgoing)))
        loaded = None
        if read:  # without a state somebody has logged it and cleared the way for a rebuild
            loaded = (yield from self.load(session_id)) if state is None else Loaded(state, "redis", True)
        return Appended(placed, outgoing, loaded, is_durable=False, degraded=True)

    def _follow(self, session_id: str, placed: Placed, outgoing: Sequence[Outgoing], *, read: bool) -> Flow[_Followed]:
        """Let Redis follow the log. Answers the session if it was asked for and Redis could tell it."""
        if placed.seqs[-1] - placed.seqs[0] != len(placed.seqs) - 1:
            # A batch of which some was stored before: no script can place it, so the next reader rebuilds.
            yield from self.cache.forget_buffer(session_id)
            return _Followed(None, is_preceded=True)
        answer, ticket, reading = yield from self.cache.append(session_id, placed, outgoing, read=read)
        if self._untold:
            yield from self.telling.spawn()
        is_placed = answer in (_APPENDED, _FOLD_DUE)
        if answer == _FOLD_DUE:
            yield from self.folding.spawn(session_id, ticket)
        elif not is_placed:
            status, ticket = answer[0], int(answer[1])
            if status == _PRECEDED:
                return _Followed(None, is_preceded=True)
            if status == _STALE:
                state = yield from self._rebuild(session_id, ticket)
                if state is not None and state.is_fold_due:
                    yield from self.folding.spawn(session_id, 0)
                return _Followed(state, is_placed=state is not None and state.revision == placed.revision)
        state = None if reading is None else reading.state
        return _Followed(state if state is not None and state.is_complete else None, is_placed=is_placed)

    def load(self, session_id: str) -> Flow[Loaded]:
        """Read the session in one round trip to Redis; from the log where Redis cannot tell it."""
        if self.unlogged is None:
            state = yield from self.cache.read_alone(session_id)
            if state is not None and state.exceeds_caps:  # its limits have just been lowered
                state = yield from self.folding.read_within_caps(session_id)
            return Loaded(state or empty_session(self._limits), "redis", False)
        if self._is_away():
            observers.fell_back("breaker_open")
            return (yield from self._load_log(session_id))
        for attempt in range(ATTEMPTS):
            loaded = yield from self._load(session_id, self.unlogged, attempt)
            if loaded is not None:
                return loaded
        raise ContentionError(session_id, ATTEMPTS)

    def _load(self, session_id: str, unlogged: Unlogged, attempt: int) -> Flow[Loaded | None]:
        """Read the session; None where it is to be read again: messages that waited have been logged, or somebody else
        is about to put the buffer in place.
        """
        # Looked at before the read: what is settled while it is on its way says nothing of the copy it brings.
        note = self._untold.current(session_id)
        waits = False
        try:
            reading = yield from self.cache.read(session_id)
            state = reading.state
            waits = state is not None and state.is_unlogged
            if state is not None and state.is_unlogged:
                if note is not None:  # its numbers are provisional, and tell nothing of what it lacks
                    state = msgspec.structs.replace(state, is_doubtful=True)
                return (yield from self._load_unlogged(session_id, unlogged, state))
            if state is not None and state.is_complete and self._untold.allows(session_id, note, state.last_seq):
                if self._untold:
                    yield from self.telling.spawn()
                return Loaded(state, "redis", False)
            if state is not None and state.is_doubtful and self._log is not None:
                try:
                    yield from self._log.check()
                except LOG_TROUBLE as exc:
                    # To claim it would be to delete the only copy anybody can read now.
                    logger.info("session %s: nobody can tell whether its copy is up to date: %s", session_id, exc)
                    return Loaded(state, "redis", True)
            ticket, is_alone = yield from self.cache.claim(session_id, reading.seen)
            if ticket == WAITING:
                waits = True
                return (yield from self._load_drained(session_id, unlogged))
            if not is_alone and attempt < PAUSES:
                yield from pause(FIRST_PAUSE_SECONDS * 2**attempt)
                return None
        except REDIS_TROUBLE as exc:
            logger.info("session %s: read from the log: %s", session_id, exc)
            observers.fell_back("redis_unavailable")
            return (yield from self._load_log(session_id, waits=waits))
        state = yield from self._rebuild(session_id, ticket)
        if state is None:
            yield from self._forget_quietly(session_id)
        else:
            observers.fell_back("buffer_missing")
        if self._untold:
            yield from self.telling.spawn()
        return Loaded(state or empty_session(self._limits), "postgres", False)

    def _load_unlogged(self, session_id: str, unlogged: Unlogged, state: SessionState) -> Flow[Loaded | None]:
        """Answer with a copy that is ahead of the log, if it is whole; else only where the log cannot be asked."""
        if state.is_complete:
            observers.fell_back("unlogged")
            yield from unlogged.spawn_drain(session_id)
            return Loaded(state, "redis", True)
        try:
            return (yield from self._load_drained(session_id, unlogged))
        except LOG_TROUBLE as exc:
            logger.info("session %s: what came before is not known now: %s", session_id, exc)
            return Loaded(state, "redis", True)

    def _load_drained(self, session_id: str, unlogged: Unlogged) -> Flow[Loaded | None]:
        """Log what waits; None: read again, to put the buffer in place. While others go on in Redis the log is read,
        which has all that was acknowledged before this began.
        """
        if not (yield from unlogged.drain(session_id)).is_left:
            return None
        observers.fell_back("unlogged")
        return (yield from self._load_log(session_id))

    def _load_log(self, session_id: str, *, waits: bool = False) -> Flow[Loaded]:
        """Read the session from the log alone; ``waits``: Redis has just said that more does there, and is away."""
        state = (yield from self.folding.read_within_caps(session_id)) or empty_session(self._limits)
        if waits or (self.unlogged is not None and self.unlogged.is_begun(session_id)):
            # It lacks what Redis alone has, where this process has appended it, or knows of it.
            state = msgspec.structs.replace(state, is_doubtful=True)
        return Loaded(state, "postgres", True)

    def _rebuild(self, session_id: str, ticket: int) -> Flow[SessionState | None]:
        """Read the session from the log and install it in Redis under ``ticket`` (0: do not).

        Answers what was read: it holds every message acknowledged before the read began, whether or not the
        installation was refused in favour of something newer. None where the log has no such session.
        """
        state: SessionState | None = None
        for _ in range(REBUILDS):
            note = self._untold.current(session_id)
            try:
                state = yield from self.folding.read_within_caps(session_id)
                if state is None or ticket == 0:
                    return state
                answer = yield from self.cache.install(session_id, state, ticket)
            except (*REDIS_TROUBLE, *LOG_TROUBLE, ContentionError) as exc:
                if state is None:
                    raise
                logger.info("session %s: read from the log, not cached: %s", session_id, exc)
                return state
            if answer == INSTALLED:
                self._untold.settle(session_id, note)
            if answer != OVERTAKEN:
                break
        return state

    def _forget_quietly(self, session_id: str) -> Flow[None]:
        try:
            yield from self.cache.forget(session_id)
        except REDIS_TROUBLE as exc:
            logger.info("session %s: keys left to expire: %s", session_id, exc)

    def fold_further(self, session_id: str, state: SessionState) -> Flow[SessionState | None]:
        """Fold until the context is within the caps with all it shows, where the messages alone are.

        None where the session has changed meanwhile. Where nothing can be written now, the fold is for this answer.
        """
        folding = self._folding_alone if state.is_unlogged else self.folding
        try:
            return (yield from folding.fold(session_id, state, hard=True))
        except (*LOG_TROUBLE, *REDIS_TROUBLE) as exc:
            logger.info("session %s: folded for one answer, not kept: %s", session_id, exc)
            return (yield from folding.fold(session_id, state, hard=True, is_kept=False))

    def change_limits(self, session_id: str, changes: Mapping[str, int]) -> Flow[SessionLimits]:
        """Set the session's limits for every process; what exceeds new caps is folded before the next read."""
        if self._log is None:
            yield from self.cache.configure(session_id, changes)
            state = yield from self.folding.read_within_caps(session_id)
            return state.limits if state is not None else self._limits.with_changes(changes)
        limits = yield from self._log.change_limits(session_id, changes)
        yield from self.telling.distrust(session_id)
        return limits

    def erase(self, session_id: str, erase_rows: Callable[[str], Flow[Any]] | None = None) -> Flow[Any]:
        """Delete the session everywhere. Raises where a server is away: then call again, some of it is still there.

        ``erase_rows`` is what deletes it from the log, where that is to answer more.
        """
        erased: Any = None
        trouble: MemoryServiceError | None = None
        if self._log is not None:
            try:
                waits = yield from self.cache.has_unlogged(session_id)
            except REDIS_TROUBLE as exc:
                waits, trouble = False, exc
            if waits:
                # It goes first: whoever is about to log it then finds the epoch gone under which it was read. But it
                # does not go alone: by then the log has answered, and no relay is to be waited for.
                yield from self._log.quiet(session_id)
                yield from self.cache.forget(session_id)
            erased = yield from (erase_rows or self._log.erase)(session_id)
        if self.unlogged is not None:
            # Before the last step: what is appended after that waits, and is remembered.
            self.unlogged.forget_begun(session_id)
        note = self._untold.note(session_id, math.inf)
        if trouble is not None:  # the last step needs Redis too, which is not waited for twice
            raise trouble
        yield from self.cache.forget(session_id)
        self._untold.settle(session_id, note)
        return erased

    def drop_copy(self, session_id: str) -> Flow[None]:
        """Delete what Redis has of a session whose rows were erased or replaced; what waits there is logged first."""
        note = self._untold.note(session_id, math.inf)
        for _ in range(ATTEMPTS):
            if (yield from self.cache.drop(session_id)):
                self._untold.settle(session_id, note)
                return
            if self.unlogged is not None:
                yield from self.unlogged.drain(session_id)
        raise ContentionError(session_id, ATTEMPTS)
