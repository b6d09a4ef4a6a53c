"""A session as a whole: the log and its copy in Redis kept as one, whichever of the two is there to answer.

With a log, a message is acknowledged when its row is committed; Redis is told afterwards, and where it cannot be told
or cannot follow, the next reader reads the log. Without a log (ephemeral mode) Redis is the truth.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from contract_engine.memory._effects import Command, Flow, redis_call, redis_call_once, spawn
from contract_engine.memory._layout import element_rest, read_commands
from contract_engine.memory.config import MemoryConfig, SessionLimits
from contract_engine.memory.errors import (
    ContentionError,
    MemoryServiceError,
    MessageConflictError,
)
from contract_engine.memory.folding import ATTEMPTS, Folding
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.models import Outgoing, Placed, Receipt, SessionState, empty_session
from contract_engine.memory.serializer import json_text
from contract_engine.memory.session_cache import REDIS_TROUBLE, SessionCache, new_ticket
from contract_engine.memory.token_counter import TokenCounter

logger = logging.getLogger(__name__)

# What the append and assign scripts answer; see there.
_STALE, _APPENDED, _FOLD_DUE = 0, 1, 2
_FULL, _KNOWN, _CONFLICT = 0, 3, 4


class Loaded(NamedTuple):
    """A session that was read, where from, and whether that was because Redis is away."""

    state: SessionState
    source: str
    degraded: bool


class Appended(NamedTuple):
    """Messages that were acknowledged; ``loaded`` is the session after them where the caller asked for it."""

    receipts: list[Receipt]
    loaded: Loaded | None


class Sessions:
    """One tenant's sessions, as flows. ``log`` is None in ephemeral mode; ids and messages have been checked."""

    def __init__(
        self, config: MemoryConfig, counter: TokenCounter, *, log: LogFlows | None, at_cap: str = "fold"
    ) -> None:
        self.cache = SessionCache(config)
        self.folding = Folding(config, counter, self.cache, log=log)
        self._log = log
        self._limits = config.limits
        self._at_cap = at_cap
        # Sessions whose copy in Redis may lack what this process knows to be in the log: the last message to expect.
        self._unconfirmed: dict[str, float] = {}

    def append(self, session_id: str, outgoing: Sequence[Outgoing], *, read: bool = False) -> Flow[Appended]:
        """Acknowledge messages, in order; with ``read`` answer the session too, in the same round trip to Redis."""
        if self._log is None:
            placed, state = yield from self._assign(session_id, outgoing, read=read)
            receipts = _receipts(placed, outgoing, is_durable=False, degraded=False)
            if not read:
                return Appended(receipts, None)
            if state is None or state.exceeds_caps:
                state = yield from self.folding.read_within_caps(session_id)
            return Appended(receipts, Loaded(state or empty_session(self._limits), "redis", False))
        placed = yield from self._log.append(session_id, outgoing)
        # Committed: from here on nothing may turn the acknowledgement into a failure.
        state = None
        degraded = False
        try:
            state = yield from self._follow(session_id, placed, outgoing, read=read)
        except MemoryServiceError as exc:
            logger.info("session %s: message %d is in the log, Redis not told: %s", session_id, placed.seqs[-1], exc)
            self._unconfirmed[session_id] = placed.seqs[-1]
            degraded = True
        receipts = _receipts(placed, outgoing, is_durable=True, degraded=degraded)
        if not read:
            return Appended(receipts, None)
        if state is not None:
            return Appended(receipts, Loaded(state, "redis", False))
        return Appended(receipts, (yield from self._load_log(session_id, degraded=degraded)))

    def _follow(
        self, session_id: str, placed: Placed, outgoing: Sequence[Outgoing], *, read: bool
    ) -> Flow[SessionState | None]:
        """Let Redis follow the log. Answers the session if it was asked for and Redis could tell it."""
        if placed.seqs[-1] - placed.seqs[0] != len(placed.seqs) - 1:
            # A batch of which some was stored before: no script can place it, so the next reader rebuilds.
            yield from self.cache.forget_buffer(session_id)
            return None
        keys = self.cache.keys(session_id)
        ticket = new_ticket()
        call = self.cache.append_command(keys, placed, outgoing, ticket=ticket)
        replies = yield from redis_call(call, *(read_commands(keys) if read else ()))
        answer = replies[0]
        if answer == _FOLD_DUE:
            yield from self._spawn_fold(session_id, ticket)
        elif answer != _APPENDED and answer[0] == _STALE:
            state = yield from self._rebuild(session_id, int(answer[1]))
            if state is not None and state.is_fold_due:
                yield from self._spawn_fold(session_id, 0)
            return state
        if not read:
            return None
        state = self.cache.reading(replies[1:], session_id).state
        return state if state is not None and state.is_complete else None

    def _assign(
        self, session_id: str, outgoing: Sequence[Outgoing], *, read: bool
    ) -> Flow[tuple[Placed, SessionState | None]]:
        """Append where there is no log: all of ``outgoing`` in one script, after a fold where a cap is in the way."""
        keys = self.cache.keys(session_id)
        messages: list[object] = []
        for message in outgoing:
            messages += (message.tokens, element_rest(message))
        reads = read_commands(keys) if read else ()
        for attempt in range(ATTEMPTS):
            token = new_ticket()

            def commands(message_id: bytes, token: int = token) -> tuple[Command, ...]:
                call = self.cache.assign_command(
                    keys, messages, lease_token=token, at_cap=self._at_cap, message_id=message_id
                )
                return (call, *reads)

            # A fresh id cannot be there yet, so the script need not look for it; after a lost reply it may be. They are
            # appended together or not at all: the first one stands for all.
            known_id = json_text(outgoing[0].message_id) if outgoing[0].is_retry_safe else b""
            replies = yield from redis_call_once(
                *commands(known_id), again=lambda: commands(json_text(outgoing[0].message_id))
            )
            answer = replies[0]
            status, first, at_ms = (_APPENDED, answer, self.cache.now_ms()) if type(answer) is int else answer
            if status == _FULL:
                # Every tenth time without waiting for whoever makes room: it may have died.
                is_patient = attempt % 10 != 9
                has_rows = yield from self.folding.make_room(session_id, outgoing, is_patient=is_patient)
                if not has_rows and len(outgoing) > 1:
                    return (yield from self._assign_halves(session_id, outgoing, read=read))
                continue
            if status == _CONFLICT:
                raise MessageConflictError(outgoing[0].message_id)
            if status == _FOLD_DUE:
                yield from self._spawn_fold(session_id, token)
            seqs = tuple(range(first, first + len(outgoing)))
            placed = Placed(seqs, (at_ms,) * len(outgoing), 0, 0, status == _KNOWN)
            return placed, self.cache.reading(replies[1:], session_id).state if read else None
        raise ContentionError(session_id, ATTEMPTS)

    def _assign_halves(
        self, session_id: str, outgoing: Sequence[Outgoing], *, read: bool
    ) -> Flow[tuple[Placed, SessionState | None]]:
        """Append a batch that is larger than a whole buffer, half by half."""
        middle = len(outgoing) // 2
        first, _ = yield from self._assign(session_id, outgoing[:middle], read=False)
        second, state = yield from self._assign(session_id, outgoing[middle:], read=read)
        return Placed(first.seqs + second.seqs, first.at_ms + second.at_ms, 0, 0, False), state

    def _spawn_fold(self, session_id: str, lease_token: int) -> Flow[None]:
        yield from spawn(lambda: self.folding.fold_when_due(session_id, lease_token), f"fold of session {session_id}")

    def load(self, session_id: str) -> Flow[Loaded]:
        """Read the session in one round trip to Redis; from the log where Redis cannot tell it."""
        if self._log is None:
            state = yield from self.cache.read_alone(session_id)
            if state is not None and state.exceeds_caps:  # its limits have just been lowered
                state = yield from self.folding.read_within_caps(session_id)
            return Loaded(state or empty_session(self._limits), "redis", False)
        try:
            reading = yield from self.cache.read(session_id)
            state = reading.state
            if state is not None and state.is_complete and self._is_confirmed(session_id, state):
                return Loaded(state, "redis", False)
            ticket = yield from self.cache.claim(session_id, reading.seen)
        except REDIS_TROUBLE as exc:
            logger.info("session %s: read from the log: %s", session_id, exc)
            return (yield from self._load_log(session_id, degraded=True))
        state = yield from self._rebuild(session_id, ticket)
        if state is None:
            yield from self._forget_quietly(session_id)
        return Loaded(state or empty_session(self._limits), "postgres", False)

    def _is_confirmed(self, session_id: str, state: SessionState) -> bool:
        expected = self._unconfirmed.get(session_id)
        if expected is None:
            return True
        if state.last_seq < expected:
            return False
        self._unconfirmed.pop(session_id, None)
        return True

    def _load_log(self, session_id: str, *, degraded: bool) -> Flow[Loaded]:
        state = yield from self.folding.read_within_caps(session_id)
        return Loaded(state or empty_session(self._limits), "postgres", degraded)

    def _rebuild(self, session_id: str, ticket: int) -> Flow[SessionState | None]:
        """Read the session from the log and install it in Redis under ``ticket`` (0: do not).

        Answers what was read: it holds every message acknowledged before the read began, whether or not the
        installation was refused in favour of something newer. None where the log has no such session.
        """
        state = yield from self.folding.read_within_caps(session_id)
        if state is None or ticket == 0:
            return state
        try:
            if (yield from self.cache.install(session_id, state, ticket)):
                self._unconfirmed.pop(session_id, None)
        except REDIS_TROUBLE as exc:
            logger.info("session %s: read from the log, not cached: %s", session_id, exc)
        return state

    def _forget_quietly(self, session_id: str) -> Flow[None]:
        try:
            yield from self.cache.forget(session_id)
        except REDIS_TROUBLE as exc:
            logger.info("session %s: placeholder left to expire: %s", session_id, exc)

    def change_limits(self, session_id: str, changes: Mapping[str, int]) -> Flow[SessionLimits]:
        """Set the session's limits for every process; what exceeds new caps is folded before the next read."""
        if self._log is None:
            yield from self.cache.configure(session_id, changes)
            state = yield from self.folding.read_within_caps(session_id)
            return state.limits if state is not None else self._limits.with_changes(changes)
        limits = yield from self._log.change_limits(session_id, changes)
        yield from self.distrust(session_id)
        return limits

    def distrust(self, session_id: str) -> Flow[None]:
        """Have the next reader rebuild the copy in Redis: the log has changed in another way than by an append."""
        self._unconfirmed[session_id] = math.inf
        try:
            yield from self.cache.forget_buffer(session_id)
        except REDIS_TROUBLE as exc:
            # Its revision is old: the next append replaces it, and this process does not believe it before.
            logger.info("session %s: Redis not told of a change: %s", session_id, exc)

    def erase(self, session_id: str) -> Flow[None]:
        """Delete the session everywhere. Raises where a server is away: then call again, some of it is still there."""
        if self._log is not None:
            yield from self._log.erase(session_id)
            self._unconfirmed[session_id] = math.inf
        yield from self.cache.forget(session_id)
        self._unconfirmed.pop(session_id, None)


def _receipts(placed: Placed, outgoing: Sequence[Outgoing], *, is_durable: bool, degraded: bool) -> list[Receipt]:
    pairs = zip(placed.seqs, outgoing, strict=True)
    return [Receipt(seq, message.message_id, is_durable, degraded) for seq, message in pairs]


def context_of(loaded: Loaded, session_id: str) -> dict[str, Any]:
    """Return the dict that ``get_context`` answers."""
    return loaded.state.as_context(session_id, source=loaded.source, degraded=loaded.degraded)
