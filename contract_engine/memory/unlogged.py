"""While PostgreSQL is away: acknowledged messages wait in Redis, and are logged in their order when it is back.

The unlogged list is the only place where Redis holds what nothing else does, so it has no TTL. Its messages are logged,
"drained", by whoever touches the session first; the log keeps a message id once, so it does no harm when two drain at
once, or when one dies in the middle.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from contract_engine.memory._effects import Command, Flow, scan, spawn
from contract_engine.memory._layout import parse_unlogged, parse_unlogged_head
from contract_engine.memory.assignment import Assignment, Attempt
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import CorruptDataError, MemoryServiceError
from contract_engine.memory.folding import Folding
from contract_engine.memory.hooks import MessagesDrained, observers
from contract_engine.memory.keys import SessionKeys, session_of_key, unlogged_pattern
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.models import Entry, Outgoing, Placed, SessionState
from contract_engine.memory.session_cache import REDIS_TROUBLE, SessionCache, new_ticket

logger = logging.getLogger(__name__)

MAX_SEQ = 2**53
"""Lua counts in doubles."""

ROUND = 500
"""Messages in one transaction: it holds the session's row meanwhile."""
ROUND_BYTES = 1024 * 1024
"""About as much is read from Redis at once: a reply has to be there within the deadline."""

RETRY_SECONDS = 1.0
"""How often one process has a session drained in the background because it was read."""

REMEMBERED = 10_000
"""Sessions whose last background drain a process remembers."""


class _Waiting(NamedTuple):
    """Messages to be logged, and the elements of the list they were read from.

    ``after`` is the last message of the log when the first of them was acknowledged, and ``epoch`` the life of the
    session it belongs to; 0 where that is not known. ``newest`` is the last element of the list, empty where it was
    lost. Without elements and entries only what came later than a drain is to go waits there.
    """

    epoch: int
    after: int
    entries: list[Entry]
    elements: list[bytes]
    newest: bytes

    def follows(self, before: _Waiting) -> bool:
        """Whether these stood right behind those of ``before`` in one list."""
        is_one_list = self[:2] == before[:2]
        return is_one_list and bool(before.entries) and self.entries[0].seq == before.entries[-1].seq + 1


class Drain:
    """A drain under way: what it has logged of a session, and how far it is to go.

    That is ``newest``, the last element that waited when it began: others, whom the log does not answer, can add to the
    list faster than it is logged. ``is_left``: something waits all the same. ``count`` messages were logged.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.newest = b""
        self.is_left = False
        self.count = 0
        self._epoch, self._reached = 0, 0
        self._before: _Waiting | None = None

    def place(self, epoch: int, found: _Waiting) -> tuple[int, bool]:
        """Answer the message of the log that these come after, 0 where nobody knows, and whether it waited as well."""
        # Another drain may have logged the next ones meanwhile: then there is a gap in the numbers.
        if self._epoch == epoch and self._reached and self._before is not None and found.follows(self._before):
            return self._reached, True
        return found.after if found.epoch == epoch else 0, False

    def note(self, epoch: int, found: _Waiting, reached: int, left: int) -> None:
        """Take note that these are in the log up to the message ``reached``, and how many still wait."""
        self.count += len(found.entries)
        self.is_left = left > 0
        # With none left, what comes to wait now was acknowledged later than all that is logged.
        self._epoch, self._reached, self._before = epoch, reached if left else 0, found


class Unlogged:
    """One tenant's messages that wait to be logged."""

    def __init__(self, config: MemoryConfig, cache: SessionCache, folding: Folding, log: LogFlows) -> None:
        self._cache = cache
        self._log = log
        self._prefix, self._tenant = config.key_prefix, config.tenant
        self._assignment = Assignment(cache, folding, self._append_command)
        self._last_attempt: dict[str, float] = {}
        self._begun: dict[str, float] = {}

    def _append_command(self, keys: SessionKeys, messages: Sequence[Any], attempt: Attempt) -> Command:
        return self._cache.append_unlogged_command(
            keys,
            messages,
            expected_seq=attempt.expected_seq,
            message_id=attempt.message_id,
            is_relayed=attempt.is_relayed,
        )

    def append(
        self, session_id: str, outgoing: Sequence[Outgoing], *, read: bool, expected_seq: float
    ) -> Flow[tuple[Placed, SessionState | None]]:
        """Acknowledge messages in Redis alone, with provisional numbers.

        ``expected_seq``: the last message that this process knows to be in the log; infinity: believe no copy. A copy
        in Redis that lacks it is given up; the session then begins there as one of which nobody knows what came before.
        """
        expected = int(min(expected_seq, MAX_SEQ))
        answer = yield from self._assignment.append(session_id, outgoing, read=read, expected_seq=expected)
        self._begun.setdefault(session_id, time.time())
        return answer

    def is_begun(self, session_id: str) -> bool:
        """Whether this process has appended here and not seen it logged: then that comes before its next message."""
        return session_id in self._begun

    def forget_begun(self, session_id: str) -> None:
        """Take note that the session is being erased: what this process has appended goes with it, unlogged."""
        self._begun.pop(session_id, None)

    def backlog(self) -> tuple[int, float | None]:
        """Return how many sessions of this process wait, for all it knows, and since when the first of them does.

        The time is in seconds since the epoch. Nobody is asked: what other processes have appended is not in it.
        """
        since = list(self._begun.values())
        return len(since), min(since, default=None)

    def drain(self, session_id: str) -> Flow[Drain]:
        """Log what waits by now, in order and exactly once; raises where a server is away: then the rest still waits.

        What comes to wait meanwhile may, too.
        """
        drain = Drain(session_id)
        # A process that has appended here need not ask Redis first whether there is something: the log may be away.
        if self.is_begun(session_id) or (yield from self._cache.unlogged_among([session_id])):
            while (yield from self._log_some(drain)):
                pass
        return drain

    def _log_some(self, drain: Drain) -> Flow[bool]:
        """Log the oldest messages that wait; False where no more are to be logged."""
        session_id = drain.session_id
        # The epoch is asked for first and the list read after it: a session erased meanwhile has another epoch then,
        # and nothing of it is logged.
        epoch = yield from self._log.begin_session(session_id)
        was_begun = self._begun.pop(session_id, None)
        try:
            found = yield from self._waiting(session_id, drain.newest)
            if found is None:
                # Somebody has logged it, or erased the session: then its name is not to stay behind.
                yield from self._log.end_empty_session(session_id, epoch)
                drain.is_left = False
                return False
            if found.entries or found.elements:
                drain.newest = drain.newest or found.newest
                after, is_continued = drain.place(epoch, found)
                reached = yield from self._log.log_unlogged(
                    session_id, epoch, found.entries, after, is_continued=is_continued
                )
                if reached is None:  # erased meanwhile, and maybe begun anew
                    drain.is_left = bool((yield from self._cache.unlogged_among([session_id])))
                    return drain.is_left
                drain.note(epoch, found, reached, (yield from self._cache.drained(session_id, found.elements)))
                if observers.is_active:
                    observers.tell(MessagesDrained(len(found.entries)))
                logger.info("session %s: %d messages logged that had waited in Redis", session_id, len(found.entries))
            else:
                drain.is_left = True
            if drain.is_left and was_begun is not None:  # of these, too, some may be of this process
                self._begun.setdefault(session_id, was_begun)
        except (MemoryServiceError, GeneratorExit):  # the other one: the caller was cancelled
            self._begun[session_id] = time.time() if was_begun is None else was_begun
            raise
        return drain.is_left and bool(found.elements)

    def drain_in_front(self, session_id: str) -> Flow[bool]:
        """Log what waits in front of what the caller has logged; True where others, whom the log does not answer, have
        gone on in Redis meanwhile. Their copy lacks what the caller has logged, and is not believed any more then.
        """
        is_left = (yield from self.drain(session_id)).is_left
        if is_left:
            yield from self._cache.forget_buffer(session_id)
        return is_left

    def drain_known(self, session_ids: Sequence[str], until: float) -> Flow[tuple[list[str], list[str]]]:
        """Log what waits of some sessions, in turns, for as long as there is time, which is one of the monotonic clock.

        Answers those that are done; and those of them where Redis does not say whether something waits: it waits on.
        Raises where the log is away.
        """
        is_known = True
        waiting: Sequence[str] = session_ids
        try:
            waiting = yield from self._cache.unlogged_among(session_ids)
        except REDIS_TROUBLE:
            is_known = False  # each is asked for by itself: of a Cluster the other servers may answer
        drains = deque(Drain(session_id) for session_id in waiting)
        unknown: list[str] = []
        while drains:
            drain = drains.popleft()
            try:
                waits = is_known or (yield from self._cache.unlogged_among([drain.session_id]))
                if waits and (yield from self._log_some(drain)):
                    drains.append(drain)
            except REDIS_TROUBLE:
                unknown.append(drain.session_id)
            if time.monotonic() >= until:
                break
        if unknown:
            logger.info("%d sessions: Redis does not say whether messages wait to be logged", len(unknown))
        late = {drain.session_id for drain in drains}
        return [session_id for session_id in session_ids if session_id not in late], unknown

    def drain_own(self, session_id: str) -> Flow[None]:
        """Log what this process has appended here, unless Redis is away: then it waits on."""
        yield from self._drain_unless(REDIS_TROUBLE, session_id)

    def _drain_unless(self, trouble: type[Exception] | tuple[type[Exception], ...], session_id: str) -> Flow[None]:
        try:
            yield from self.drain(session_id)
        except trouble as exc:
            logger.info("session %s: messages still wait to be logged: %s", session_id, exc)

    def _waiting(self, session_id: str, newest: bytes) -> Flow[_Waiting | None]:
        """Return the oldest messages that wait up to ``newest`` (empty: whatever waits), None where there is none."""
        found = yield from self._cache.read_unlogged(
            session_id, most_messages=ROUND, most_bytes=ROUND_BYTES, newest=newest
        )
        if found is not None and found.length and not found.elements:
            return _Waiting(0, 0, [], [], found.newest)
        if found is None or not found.elements:
            if found is not None:
                logger.warning("session %s: no list of ours under the unlogged key; it is deleted", session_id)
                self._cache.damaged += 1
            # Redis may have evicted the list alone. The buffer then says that there was one, and has the end of it.
            reading = yield from self._cache.read(session_id)
            if reading.state is not None and reading.state.is_unlogged:
                return _Waiting(0, 0, reading.state.entries, [], b"")
            if found is not None or reading.is_damaged:
                # Whatever lies there holds no message, and would keep everybody from rebuilding for ever.
                yield from self._cache.drained(session_id, ())
            return None
        entries = []
        for element in found.elements:
            try:
                entries.append(parse_unlogged(element))
            except CorruptDataError as exc:
                logger.warning("session %s: %s under our keys; it is dropped", session_id, exc)
                self._cache.damaged += 1
        if len(entries) < len(found.elements) == found.length:
            # The buffer has the end of what waits, too; what is logged already is not logged twice.
            state = (yield from self._cache.read(session_id)).state
            if state is not None and state.is_unlogged:
                noted = {entry.message_id: entry.is_relayed for entry in entries}
                ends = [entry._replace(is_relayed=noted.get(entry.message_id)) for entry in state.entries]
                held = {entry.message_id for entry in ends}
                entries = [*(entry for entry in entries if entry.message_id not in held), *ends]
        elements = found.elements
        if len(entries) == len(elements) < found.length:
            # The messages of a batch have one time: it is left to the next round as a whole.
            cut = next(at for at, entry in enumerate(entries) if entry.at_ms == entries[-1].at_ms)
            if cut:
                entries, elements = entries[:cut], elements[:cut]
        return _Waiting(*parse_unlogged_head(found.head), entries, elements, found.newest)

    def spawn_drain(self, session_id: str) -> Flow[None]:
        """Drain in the background, at most once in a while and by one process at a time."""
        now = time.monotonic()
        if now - self._last_attempt.get(session_id, -RETRY_SECONDS) < RETRY_SECONDS:
            return
        if len(self._last_attempt) >= REMEMBERED:
            self._last_attempt.clear()
        self._last_attempt[session_id] = now
        yield from spawn(lambda: self._drain_quietly(session_id), f"drain of session {session_id}")

    def _drain_quietly(self, session_id: str) -> Flow[None]:
        token = new_ticket()
        try:
            if (yield from self._cache.lease_drain(session_id, token)):
                # Whatever comes of it the lease is given back: the next one need not wait until it is over.
                yield from self._drain_unless(MemoryServiceError, session_id)
                yield from self._cache.release_drain(session_id, token)
        except MemoryServiceError as exc:
            logger.info("session %s: messages still wait to be logged: %s", session_id, exc)

    def sessions(self) -> Flow[list[str]]:
        """Name the sessions that have messages waiting, by looking through all of Redis."""
        found = yield from scan(unlogged_pattern(self._prefix, self._tenant))
        named = (session_of_key(self._prefix, self._tenant, key.decode("utf-8", "replace")) for key in found)
        return sorted({session_id for session_id in named if session_id is not None})
