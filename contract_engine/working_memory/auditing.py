"""Who read or wrote what and when, without a word of what it says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

from contract_engine.memory.errors import ConfigurationError, MemoryServiceError
from contract_engine.memory.hooks import tell_all
from contract_engine.working_memory.layers import Flow, Layer
from contract_engine.working_memory.manager import AsyncWorkingMemoryManager, WorkingMemoryManager
from contract_engine.working_memory.records import Record, RecordKey
from contract_engine.working_memory.settings import check_function
from contract_engine.working_memory.wrapping import AsyncWrapper, Manager, Revise, Wrapped, Wrapper, Wrapping

logger = logging.getLogger(__name__)

_actor: ContextVar[str | None] = ContextVar("actor", default=None)


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One operation on one record.

    ``at``: seconds since 1970, when it was over. ``operation``: ``read``, ``write``, ``change`` or ``remove``.
    ``outcome``: ``done``, ``absent`` where a read or a change found nothing or left nothing, ``unfinished`` where the
    caller was cancelled, else the name of the error. ``items``: how many memories were read or are there now.
    """

    at: float
    actor: str | None
    operation: str
    memory_type: str
    conversation_id: str
    outcome: str
    items: int | None


Sink = Callable[[AuditEvent], object]


@contextmanager
def acting_as(actor: str) -> Iterator[None]:
    """Name who acts, for all that is audited within, in this thread or task."""
    token = _actor.set(_checked_actor(actor))
    try:
        yield
    finally:
        _actor.reset(token)


def _checked_actor(actor: object) -> str:
    if not isinstance(actor, str):
        raise ConfigurationError("actor", f"expected a text, got {type(actor).__name__}")
    return actor


def log_event(event: AuditEvent) -> None:
    """Write an event to this module's logger, at level INFO."""
    logger.info(
        "%s %s %s:%s by %s: %s, %s memories",
        event.at,
        event.operation,
        event.memory_type,
        event.conversation_id,
        event.actor,
        event.outcome,
        event.items,
    )


class AuditedLayer(Wrapping):
    """Tells a sink of every operation, after it; what the sink raises is logged once and harms nobody."""

    def __init__(
        self,
        below: Layer,
        *,
        sink: Sink,
        actor: str | None,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(below)
        self._sink = check_function("sink", sink)
        self._own_actor = None if actor is None else _checked_actor(actor)
        self._clock = check_function("clock", clock)
        self._has_failed = False

    def read(self, keys: Sequence[RecordKey]) -> Flow[list[Record | None]]:
        """See :class:`Layer`."""
        with self._told("read", keys) as counts:
            found = yield from self.below.read(keys)
            counts.extend(None if record is None else len(record.items) for record in found)
        return found

    def write(self, records: Sequence[tuple[RecordKey, Record]]) -> Flow[None]:
        """See :class:`Layer`."""
        with self._told("write", [key for key, _ in records]) as counts:
            yield from self.below.write(records)
            counts.extend(len(record.items) for _, record in records)

    def change(self, key: RecordKey, revise: Revise) -> Flow[Record | None]:
        """See :class:`Layer`."""
        with self._told("change", [key]) as counts:
            record = yield from self.below.change(key, revise)
            counts.append(None if record is None else len(record.items))
        return record

    def remove(self, keys: Sequence[RecordKey]) -> Flow[int]:
        """See :class:`Layer`."""
        with self._told("remove", keys) as counts:
            removed = yield from self.below.remove(keys)
            counts.extend(0 for _ in keys)
        return removed

    @contextmanager
    def _told(self, operation: str, keys: Sequence[RecordKey]) -> Iterator[list[int | None]]:
        counts: list[int | None] = []
        outcome = "unfinished"
        try:
            yield counts
            outcome = "done"
        except MemoryServiceError as exc:
            outcome = type(exc).__name__
            raise
        finally:
            actor = _actor.get() or self._own_actor
            for number, key in enumerate(keys):
                items = counts[number] if outcome == "done" else None
                said = "absent" if outcome == "done" and items is None else outcome
                event = AuditEvent(
                    self._clock(), actor, operation, str(key.memory_type), key.conversation_id, said, items
                )
                self._tell(event)

    def _tell(self, event: AuditEvent) -> None:
        tell_all((self._sink,), event, self._log_failure)

    def _log_failure(self, _sink: object, failure: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            logger.error("the audit sink failed; this is said once", exc_info=failure)


class _Audited(Wrapped[Manager]):
    """What both colours have."""

    def __init__(
        self,
        manager: Manager,
        *,
        sink: Sink = log_event,
        actor: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(manager, partial(AuditedLayer, sink=sink, actor=actor, clock=clock))


class Audited(_Audited[WorkingMemoryManager], Wrapper):
    """Tells ``sink`` of every operation on a record: an :class:`AuditEvent`, without texts, metadata or queries.

    The actor is that of :func:`acting_as`, else ``actor``. The sink is called in the caller's thread or task, so it
    should be quick; what it raises is logged once and changes nothing. Where it stands within a :class:`Retrying`
    every attempt is told, outside of it only the outcome.
    """


class AsyncAudited(_Audited[AsyncWorkingMemoryManager], AsyncWrapper):
    """:class:`Audited` for an event loop."""
