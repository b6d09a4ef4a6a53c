"""The store that is being left: any object with ``add_chat_message`` and ``get_chat_history``, and what it can do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from contract_engine.memory._effects import Flow, call_legacy
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.errors import ConfigurationError, LegacyUnavailableError
from contract_engine.memory.models import Message
from contract_engine.memory.outbox import Pending

WINDOW = 20
"""How many messages before those in doubt are compared, so that a message said twice is told from one written twice."""


class Legacy:
    """A legacy object as flows; every call passes a breaker of its own.

    It needs ``add_chat_message(session_id, message)`` and ``get_chat_history(session_id)``, blocking or coroutines. (A
    blocking adapter has coroutines run on one event loop, in a daemon thread; whatever the store holds open, such as
    connections, is to be opened by its methods, there.) It may offer more: a ``limit`` of ``get_chat_history``;
    ``add_chat_messages(session_id, messages)``, which is called for what has gathered and should be atomic; a keyword
    ``message_id`` (``message_ids``) of the two that add, together with ``has_message(session_id, message_id)``: then it
    is asked before anything is written again. That alone writes nothing twice as long as no call outlasts the lease of
    its relay (30 s), nor takes effect after it has failed; a store that keeps an id once, as
    :class:`LegacySwisperStore` does, has no message twice whatever happens. An answer of False is a failure, but where
    such a store turns out to have what it was given. One that keeps each id once may offer
    ``add_to_sessions(sessions)`` too, which is called with the messages of several sessions by their ids and answers
    the sessions that have all of theirs now: where sessions are many, most of the time goes into commits.
    """

    def __init__(self, store: Any, *, breaker: CircuitBreaker | None = None) -> None:
        for name in ("add_chat_message", "get_chat_history"):
            if not callable(getattr(store, name, None)):
                raise ConfigurationError("legacy_store", f"{type(store).__name__} has no method {name}")
        self.store = store
        self.breaker = breaker or CircuitBreaker(
            5,
            1.0,
            name="legacy",
            counts=_counts,
            backoff=2.0,
            max_recovery_timeout=30.0,
            jitter=0.2,
        )
        self._has_limit = _takes(store.get_chat_history, "limit")
        self._has_batches = callable(getattr(store, "add_chat_messages", None))
        self._knows_ids = _takes(store.add_chat_message, "message_id") and callable(getattr(store, "has_message", None))
        self._batch_takes_ids = self._has_batches and _takes(store.add_chat_messages, "message_ids")

    @property
    def takes_sessions(self) -> bool:
        """Whether one call may give it messages of several sessions, and again whatever became of that."""
        return self._knows_ids and callable(getattr(self.store, "add_to_sessions", None))

    def add_to_sessions(self, sessions: Mapping[str, Sequence[Pending]]) -> Flow[set[str]]:
        """Write messages of several sessions, of each in their order; answers the sessions that have them all."""
        given = {name: {one.message_id: one.message for one in pending} for name, pending in sessions.items()}
        work = partial(self.store.add_to_sessions, given)
        return set((yield from call_legacy("add_to_sessions", work, self.breaker)))

    @property
    def most_at_once(self) -> int:
        """How many messages one call may give it: one, unless it takes several and would know them again."""
        is_batch_safe = self._has_batches and (self._batch_takes_ids or not self._knows_ids)
        return 500 if is_batch_safe else 1

    def add(self, session_id: str, pending: Sequence[Pending]) -> Flow[None]:
        """Write messages in their order: one, or several where it takes several."""
        work: Callable[[], Any]
        if len(pending) == 1:
            one = pending[0]
            keywords = {"message_id": one.message_id} if self._knows_ids else {}
            name, work = "add_chat_message", partial(self.store.add_chat_message, session_id, one.message, **keywords)
        else:
            ids = {"message_ids": [one.message_id for one in pending]} if self._batch_takes_ids else {}
            messages = [one.message for one in pending]
            name, work = "add_chat_messages", partial(self.store.add_chat_messages, session_id, messages, **ids)
        answer = yield from call_legacy(name, work, self.breaker)
        if answer is False and not (yield from self._has_all(session_id, pending)):
            raise LegacyUnavailableError("it answered False", is_tried=True)

    def history(self, session_id: str, limit: int | None = None) -> Flow[list[Message]]:
        """Read the newest ``limit`` messages, oldest first."""
        keywords = {"limit": limit} if limit is not None and self._has_limit else {}
        work = partial(self.store.get_chat_history, session_id, **keywords)
        found = yield from call_legacy("get_chat_history", work, self.breaker)
        messages = list(found or ())
        return messages if limit is None or len(messages) <= limit else messages[len(messages) - limit :]

    def count_written(
        self, session_id: str, pending: Sequence[Pending], preceding: Callable[[], Flow[list[Message]]]
    ) -> Flow[int]:
        """Answer how many of the first pending messages it holds already, where nobody has noted it.

        ``preceding`` reads the messages of the log before them.
        """
        if self._knows_ids:
            return (yield from self._count_known(session_id, pending))
        held = yield from self.history(session_id, len(pending) + WINDOW)
        return overlap(held, (yield from preceding()), [one.message for one in pending])

    def count_known(self, session_id: str, pending: Sequence[Pending]) -> Flow[int]:
        """Answer how many of the first pending messages it says to have; 0 where it knows no ids."""
        return (yield from self._count_known(session_id, pending)) if self._knows_ids else 0

    def count_in(
        self,
        held: Sequence[Message],
        session_id: str,
        pending: Sequence[Pending],
        preceding: Sequence[Message],
        *,
        at_least: int,
    ) -> Flow[int]:
        """Answer how many of the first pending messages a history shows that has just been read.

        ``at_least``: :meth:`count_known` of before that.
        """
        if self._knows_ids:
            # It may have got more while it was read; of these only the end of what was read can show any.
            pending = pending[: (yield from self._count_known(session_id, pending))]
        if len(pending) <= at_least:
            return at_least
        messages = [one.message for one in pending]
        if not preceding and len(held) <= len(messages) and all(map(is_same, held, messages)):
            # A session that begins with what is being relayed. It could be an older history that was the same and was
            # not imported; so whoever writes does not go by this, but most readers would see their session twice.
            return max(at_least, len(held))
        recent = held[max(0, len(held) - len(pending) - WINDOW) :]
        return max(at_least, overlap(recent, preceding, messages))

    def _has_all(self, session_id: str, pending: Sequence[Pending]) -> Flow[bool]:
        """Whether False meant that they were there already, as a store that knows ids may say."""
        return self._knows_ids and (yield from self._count_known(session_id, pending)) == len(pending)

    def _count_known(self, session_id: str, pending: Sequence[Pending]) -> Flow[int]:
        for count, one in enumerate(pending):
            has = partial(self.store.has_message, session_id, one.message_id)
            if not (yield from call_legacy("has_message", has, self.breaker)):
                return count
        return len(pending)


def overlap(held: Sequence[Message], preceding: Sequence[Message], pending: Sequence[Message]) -> int:
    """Return how many of ``pending`` the end of ``held`` shows already, as far as that is sure.

    A message is the same if it has every field of ours: a store may add some of its own. What was written stands right
    behind what precedes it in the log; an end that does not go on from there is somebody else's, or from before the
    log, however much it looks like ours, and counts as none. So does the very beginning of a log, which has nothing to
    stand behind. Where several answers fit, because the same things were said again and again, it is the smallest: to
    write twice is better than not at all. Never more than was written, if nobody else writes there.
    """
    for count in range(len(pending) + 1):
        expected = [*preceding, *pending[:count]]
        compared = min(len(expected), len(held))
        if compared <= count:
            continue
        if all(map(is_same, held[len(held) - compared :], expected[len(expected) - compared :])):
            return count
    return 0


def is_same(theirs: Any, ours: Message) -> bool:
    """Whether the legacy store holds our message: with every field of ours, and any of its own besides."""
    return isinstance(theirs, dict) and all(name in theirs and theirs[name] == value for name, value in ours.items())


def _takes(method: Any, name: str) -> bool:
    try:
        return name in inspect.signature(method).parameters
    except (TypeError, ValueError):  # some that are written in C do not tell
        return False


def _counts(exc: BaseException) -> bool:
    return not isinstance(exc, ConfigurationError)
