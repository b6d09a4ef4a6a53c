"""Earlier contents of records, kept with them in the store, where every process sees them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from msgspec.structs import replace

from contract_engine.memory.errors import CorruptDataError
from contract_engine.working_memory.layers import Flow, Layer
from contract_engine.working_memory.manager import AsyncWorkingMemoryManager, WorkingMemoryManager
from contract_engine.working_memory.records import Record, RecordKey, Ttl
from contract_engine.working_memory.settings import check_count
from contract_engine.working_memory.wrapping import AsyncWrapper, Manager, Revise, Wrapped, Wrapper, Wrapping


class VersionedLayer(Wrapping):
    """Puts what a record was before beside what it is, in the same atomic step."""

    def __init__(self, below: Layer, *, keep: int) -> None:
        super().__init__(below)
        self._keep = check_count("keep", keep, least=1, most=1000)

    def write(self, records: Sequence[tuple[RecordKey, Record]]) -> Flow[None]:
        """Put records in place of what is there, one after the other: each is a change of its own."""
        for key, record in records:
            try:
                yield from self.change(key, lambda _, record=record: record)  # type: ignore[misc]
            except CorruptDataError:  # what is there is nobody's, and no version of anything
                yield from self.below.write([(key, record)])

    def change(self, key: RecordKey, revise: Revise) -> Flow[Record | None]:
        """See :class:`Layer`."""

        def kept(current: Record | None) -> Record | None:
            revised = revise(current)
            if revised is None or current is None or revised is current or revised.ttl_seconds is Ttl.AS_BEFORE:
                return revised
            # Whoever wraps this one may have given the earlier contents another form, but never drops any.
            versions = revised.versions or current.versions
            if _newest(versions) == _newest(current.versions):  # else one that wraps this one has kept it already
                named = replace(current, versions=(), last_update=_later(current.last_update, versions))
                versions = (*versions, named)
            return replace(revised, versions=versions[-self._keep :])

        return self.below.change(key, kept)


def _newest(versions: Sequence[Record]) -> str | None:
    return versions[-1].last_update if versions else None


def _later(last_update: str, versions: Sequence[Record]) -> str:
    """Return what names a version after these: when it was written, or just after the newest of them.

    So no two of them have the same name, whatever the clock says, and none has that of one which is gone. What the
    record itself says stays as it is: by that a repeated write is recognised.
    """
    if not versions or _moment(last_update) > (newest := _moment(versions[-1].last_update)):
        return last_update
    return (newest + timedelta(microseconds=1)).isoformat()


def _moment(timestamp: str) -> datetime:
    moment = datetime.min
    with suppress(ValueError):  # others may have written anything
        moment = datetime.fromisoformat(timestamp)
    if moment.year == datetime.max.year:  # there may be nothing later
        moment = datetime.min
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class _Versioned(Wrapped[Manager]):
    """What both colours have."""

    def __init__(self, manager: Manager, *, keep: int = 10) -> None:
        super().__init__(manager, partial(VersionedLayer, keep=keep))


class Versioned(_Versioned[WorkingMemoryManager], Wrapper):
    """Keeps the last ``keep`` contents a record had before, for ``get_memory_history`` and ``restore_version``.

    They are in the record itself, so they come and go with it: deleting the record deletes them, deleting one memory of
    several leaves it in them. No write is lost between two processes; each is a read and an exchange, also in a batch.
    The ``timestamp`` of a version is when it was written, a microsecond after the one before where that is no later.
    A version that cannot be read stays as it is; a record whose present contents cannot be is not written over: delete
    it first. Two of these wrappers around one manager keep each contents once, as many as the smaller ``keep`` says.
    """


class AsyncVersioned(_Versioned[AsyncWorkingMemoryManager], AsyncWrapper):
    """:class:`Versioned` for an event loop."""
