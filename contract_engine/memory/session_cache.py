"""The copy of a session in Redis: reading it, following the log with it, replacing it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from contract_engine.memory import _scripts
from contract_engine.memory._effects import (
    Command,
    Flow,
    RedisCall,
    redis_call,
    redis_call_and_run,
    redis_call_once,
    redis_call_spread,
)
from contract_engine.memory._layout import (
    element_bytes,
    element_rest,
    header_tail,
    is_unlogged_header,
    parse_session,
    parse_summary,
    read_commands,
    row_bytes,
    summary_bytes,
)
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import (
    ConfigurationError,
    CorruptDataError,
    PoolExhaustedError,
    RedisUnavailableError,
    StoreMisconfiguredError,
)
from contract_engine.memory.keys import SessionKeys, session_keys
from contract_engine.memory.models import Outgoing, Placed, SessionState, Summary, empty_session

logger = logging.getLogger(__name__)

WAITING = -1
"""In place of a ticket: acknowledged messages are in the unlogged list."""

INSTALLED, OVERTAKEN = 1, 2
"""Of a buffer that was read from the log: it is in place; messages behind what was read are acknowledged."""

TICKET_TTL_SECONDS = 30
"""How long a rebuild may take before another process takes it over."""

DRAIN_LEASE_MS = 10_000
"""How long the background drain of one process keeps those of others away; they would do no harm."""

HISTORY_LENGTH = 100
"""Summary versions kept in ephemeral mode; with a database all of them are."""

# What the lease script answers where it has taken the place of something else; see there.
_NO_LEASE = 2

REDIS_TROUBLE = (RedisUnavailableError, PoolExhaustedError, StoreMisconfiguredError)
"""What makes a caller do without Redis where there is a log."""


class Reading(NamedTuple):
    """What a read found.

    ``seen`` is the first element of the list, empty where there was none. ``summary`` is what is cached, whether or not
    there is a buffer to go with it. ``is_damaged``: there is a list, and nobody can read it.
    """

    state: SessionState | None
    seen: bytes
    summary: Summary
    is_damaged: bool


class WaitingList(NamedTuple):
    """An unlogged list: how many wait in all, its head, its newest element, and the oldest ones."""

    length: int
    head: bytes
    newest: bytes
    elements: list[bytes]


class SessionCache:
    """One tenant's sessions in Redis, as flows. Nothing here knows the log.

    ``damaged`` counts values under our keys that were none of ours, each of them a miss.
    """

    def __init__(self, config: MemoryConfig, *, clock: Callable[[], float] = time.time) -> None:
        self._prefix, self._tenant = config.key_prefix, config.tenant
        self._default_limits = config.limits
        self._limits = _scripts.limits_text(config.limits)
        self._buffer_ttl = config.buffer_ttl_seconds
        # Without a log the session lives and dies as a whole, so every key gets the buffer's deadline.
        self._summary_ttl = config.summary_ttl_seconds if config.is_durable else config.buffer_ttl_seconds
        self._is_durable = config.is_durable
        self._lease_ms = int(config.fold_lease_seconds * 1000)
        self._clock = clock
        self.damaged = 0

    def keys(self, session_id: str) -> SessionKeys:
        """Name the session's keys."""
        return session_keys(self._prefix, self._tenant, session_id)

    def now_ms(self) -> int:
        """Return the wall clock in milliseconds; it dates things and never orders them."""
        return int(self._clock() * 1000)

    def read(self, session_id: str) -> Flow[Reading]:
        """Read the session in one round trip."""
        replies, run = yield from redis_call_and_run(*read_commands(self.keys(session_id)))
        return self.reading(replies, run, session_id)

    def reading(self, replies: list[Any], run: int, session_id: str) -> Reading:
        """Interpret the replies of the read commands; what is not ours is logged and treated as absent.

        ``run`` is that of the server which gave them. Without a log there is nothing to hold an older copy against.
        """
        elements = replies[0]
        seen = elements[0] if isinstance(elements, list) and elements else b""
        try:
            state = parse_session(replies, run if self._is_durable else None)
        except CorruptDataError as exc:
            logger.warning("session %s: %s under our keys; it is replaced", session_id, exc)
            self.damaged += 1
            return Reading(None, seen, parse_summary(replies[1], None), True)
        if state is not None:
            if state.summary.version != state.summary_version and replies[1] is not None:
                # A newer one may be that of a fold which came between the two commands of this read.
                self.damaged += parse_summary(replies[1], None).version < state.summary_version
            return Reading(state, seen, state.summary, False)
        return Reading(None, seen, parse_summary(replies[1], None), False)

    def read_alone(self, session_id: str) -> Flow[SessionState | None]:
        """Read a session that no log keeps; a buffer nobody can read is given up, and the session goes on."""
        reading = yield from self.read(session_id)
        if reading.is_damaged:
            yield from redis_call(_scripts.discard_call(self.keys(session_id), seen=reading.seen))
        if reading.state is None and reading.summary.version:
            return empty_session(self._default_limits, reading.summary)
        return reading.state

    def append(
        self, session_id: str, placed: Placed, outgoing: Sequence[Outgoing], *, read: bool
    ) -> Flow[tuple[Any, int, Reading | None]]:
        """Let the buffer follow the log; answers what the script did, the ticket it had, and what was ``read`` then.

        Sent again it has another ticket: the first may have been put in place, and been erased with the session since.
        """
        keys = self.keys(session_id)
        reads = read_commands(keys) if read else ()
        messages: list[object] = []
        for seq, at_ms, message in zip(placed.seqs, placed.at_ms, outgoing, strict=True):
            messages += (message.tokens, element_bytes(seq, message.tokens, at_ms, element_rest(message)))
        ticket = 0

        def commands() -> tuple[Command, ...]:
            nonlocal ticket
            ticket = new_ticket()
            append = _scripts.append_call(
                keys,
                epoch=placed.epoch,
                revision=placed.revision,
                first_seq=placed.seqs[0],
                at_ms=placed.at_ms[-1],
                buffer_ttl=self._buffer_ttl,
                summary_ttl=self._summary_ttl,
                ticket=ticket,
                ticket_ttl=TICKET_TTL_SECONDS,
                lease_ms=self._lease_ms,
                messages=messages,
            )
            return (append, *reads)

        call = RedisCall(commands(), commands)
        replies: list[Any] = yield call
        return replies[0], ticket, self.reading(replies[1:], call.run, session_id) if read else None

    def assign_command(
        self, keys: SessionKeys, messages: Sequence[object], *, ticket: int, settings: str, message_id: bytes
    ) -> Command:
        """Return the call that appends where the buffer gives the numbers; ``messages``: tokens, rest, tokens, ..."""
        return _scripts.assign_call(
            keys,
            at_ms=self.now_ms(),
            ttl=self._buffer_ttl,
            ticket=ticket,
            settings=settings,
            message_id=message_id,
            messages=messages,
        )

    def assign_settings(self, at_cap: str) -> str:
        """Return what never changes of that call."""
        return f"{at_cap},{self._lease_ms},{self._limits}"

    def claim(self, session_id: str, seen: bytes) -> Flow[tuple[int, bool]]:
        """Take a ticket to replace a buffer that a reader could not use, and tell whether nobody else is at it.

        0 where it has been replaced since, ``WAITING`` where messages have to be logged first.
        """
        keys = self.keys(session_id)

        def commands() -> tuple[Command, ...]:  # as for an append, never the same ticket twice
            return (_scripts.claim_call(keys, ticket=new_ticket(), ticket_ttl=TICKET_TTL_SECONDS, seen=seen),)

        (answer,) = yield from redis_call_once(*commands(), again=commands)
        ticket, is_fresh = answer
        return int(ticket), bool(is_fresh)

    def install(self, session_id: str, state: SessionState, ticket: int) -> Flow[int]:
        """Put a session that was read from the log in place, and answer ``INSTALLED``.

        ``OVERTAKEN``: the reading is out of date, and is to be repeated. Anything else: the ticket is.
        """
        (answer,) = yield from redis_call(
            _scripts.install_call(
                self.keys(session_id),
                ticket=ticket,
                header=header_tail(state),
                buffer_ttl=self._buffer_ttl,
                summary_ttl=self._summary_ttl,
                summary=summary_bytes(state.summary),
                elements=[row_bytes(row) for row in state.rows],
            )
        )
        return int(answer)

    def commit(
        self, session_id: str, state: SessionState, summary: Summary, *, new_revision: int, history_entry: bytes
    ) -> Flow[bool]:
        """Put a new summary in place and trim what it covers; False where the session has moved on since ``state``."""
        (done,) = yield from redis_call_once(
            _scripts.commit_call(
                self.keys(session_id),
                epoch=state.epoch,
                revision=state.revision,
                version=state.summary_version,
                new_revision=new_revision,
                watermark=summary.last_seq,
                buffer_ttl=self._buffer_ttl,
                summary_ttl=self._summary_ttl,
                summary=summary_bytes(summary),
                history_entry=history_entry,
                history_length=HISTORY_LENGTH,
                at_ms=next((entry.at_ms for entry in state.entries if entry.seq == summary.last_seq), 0),
            ),
            again=None,
        )
        return bool(done)

    def pin(self, session_id: str, state: SessionState, summary: Summary) -> Flow[bool]:
        """Change what is pinned where there is no log; False where the session has moved on since ``state``."""
        (done,) = yield from redis_call_once(
            _scripts.pin_call(
                self.keys(session_id),
                epoch=state.epoch,
                revision=state.revision,
                version=state.summary_version,
                ttl=self._buffer_ttl,
                summary=summary_bytes(summary._replace(version=max(1, state.summary_version))),
            ),
            again=None,
        )
        return bool(done)

    def configure(self, session_id: str, changes: Mapping[str, int]) -> Flow[None]:
        """Set limits where there is no log, beginning the session if need be."""
        now_ms = self.now_ms()
        (header,) = yield from redis_call(
            _scripts.configure_call(
                self.keys(session_id),
                epoch=_new_epoch(now_ms),
                at_ms=now_ms,
                ttl=self._buffer_ttl,
                limits=self._limits,
                changes=changes,
            )
        )
        if header == 0:
            raise ConfigurationError("summary_trigger_tokens", "is above max_buffer_tokens")

    def lease(self, session_id: str, lease_token: int) -> Flow[bool]:
        """Take the lease of a fold, unless somebody holds it."""
        return (yield from self._lease(self.keys(session_id).fold, lease_token, self._lease_ms))

    def _lease(self, key: str, lease_token: int, lease_ms: int) -> Flow[bool]:
        (taken,) = yield from redis_call(_scripts.lease_call(key, lease_token=lease_token, lease_ms=lease_ms))
        if taken == _NO_LEASE:
            logger.warning("%s: no lease of ours; it is replaced", key)
            self.damaged += 1
        return bool(taken)

    def release(self, session_id: str, lease_token: int) -> Flow[None]:
        """Give back the lease of a fold, if it is still held."""
        yield from redis_call(_scripts.release_call(self.keys(session_id).fold, lease_token=lease_token))

    def append_unlogged_command(
        self,
        keys: SessionKeys,
        messages: Sequence[object],
        *,
        expected_seq: int,
        message_id: bytes,
        is_relayed: bool,
    ) -> Command:
        """Return the call that appends while the log is away; ``messages``: tokens, rest, tokens, ..."""
        return _scripts.append_unlogged_call(
            keys,
            buffer_ttl=self._buffer_ttl,
            summary_ttl=self._summary_ttl,
            limits=self._limits,
            expected_seq=expected_seq,
            message_id=message_id,
            is_relayed=is_relayed,
            messages=messages,
        )

    def read_unlogged(
        self, session_id: str, *, most_messages: int, most_bytes: int, newest: bytes
    ) -> Flow[WaitingList | None]:
        """Read the oldest messages of the unlogged list, none where ``newest`` (empty: any) does not wait any more.

        None where there is no such key.
        """
        keys = self.keys(session_id)
        call = _scripts.waiting_call(keys, most_messages=most_messages, most_bytes=most_bytes, newest=newest)
        (found,) = yield from redis_call(call)
        return None if found is None else WaitingList(found[0], found[1], found[2], found[3:])

    def has_unlogged(self, session_id: str) -> Flow[bool]:
        """Whether messages wait to be logged."""
        (count,) = yield from redis_call(Command(("EXISTS", self.keys(session_id).unlogged)))
        return bool(count)

    def unlogged_among(self, session_ids: Sequence[str]) -> Flow[list[str]]:
        """Name those of some sessions that have messages waiting to be logged, in one round trip."""
        keys = [self.keys(session_id) for session_id in session_ids]
        found = yield from redis_call_spread(
            *(Command(("EXISTS", one.unlogged)) for one in keys),
            # Redis may have evicted the list alone: the header says then that there was one.
            *(Command(("LINDEX", one.buffer, 0)) for one in keys),
        )
        pairs = zip(session_ids, found, found[len(keys) :], strict=False)
        return [name for name, waits, header in pairs if waits or is_unlogged_header(header)]

    def drained(self, session_id: str, elements: Sequence[bytes]) -> Flow[int]:
        """Take elements that are in the log off the list; answers how many still wait."""
        first, last = (elements[0], elements[-1]) if elements else (b"", b"")
        call = _scripts.drained_call(self.keys(session_id), count=len(elements), first=first, last=last)
        (left,) = yield from redis_call(call)
        return int(left)

    def lease_drain(self, session_id: str, lease_token: int) -> Flow[bool]:
        """Take the lease of a drain, unless somebody holds it."""
        return (yield from self._lease(self.keys(session_id).drain, lease_token, DRAIN_LEASE_MS))

    def release_drain(self, session_id: str, lease_token: int) -> Flow[None]:
        """Give back the lease of a drain."""
        yield from redis_call(_scripts.release_call(self.keys(session_id).drain, lease_token=lease_token))

    def forget_buffer(self, session_id: str) -> Flow[None]:
        """Have the next reader or writer rebuild the buffer from the log, after what waits to be logged."""
        yield from redis_call(_scripts.forget_call(self.keys(session_id)))

    def drop(self, session_id: str) -> Flow[bool]:
        """Delete every key of the session; False where messages wait to be logged: then nothing was deleted."""
        (done,) = yield from redis_call(_scripts.drop_call(self.keys(session_id)))
        return bool(done)

    def forget(self, session_id: str) -> Flow[int]:
        """Delete every key of the session; answers how many there were."""
        (count,) = yield from redis_call(Command(("DEL", *self.keys(session_id))))
        return int(count)


def new_ticket() -> int:
    """Return a number nobody else uses at the same time; below 2^53, so that Lua keeps it exact."""
    return random.getrandbits(52) | 1


def _new_epoch(now_ms: int) -> int:
    return now_ms * 1000 + random.randrange(1000)
