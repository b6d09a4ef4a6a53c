"""Earlier contents of records, kept with them in the store, where every process sees them."""

from __future__ import annotations

from collections.abc import Sequence
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
            earlier = (*(revised.versions or current.versions), replace(current, versions=()))
            return replace(revised, versions=earlier[-self._keep :])

        return self.below.change(key, kept)


class _Versioned(Wrapped[Manager]):
    """What both colours have."""

    def __init__(self, manager: Manager, *, keep: int = 10) -> None:
        super().__init__(manager, partial(VersionedLayer, keep=keep))


class Versioned(_Versioned[WorkingMemoryManager], Wrapper):
    """Keeps the last ``keep`` contents a record had before, for ``get_memory_history`` and ``restore_version``.

    They are in the record itself, so they come and go with it: deleting the record deletes them, deleting one memory of
    several leaves it in them. No write is lost between two processes; each is a read and an exchange, also in a batch.
    """


class AsyncVersioned(_Versioned[AsyncWorkingMemoryManager], AsyncWrapper):
    """:class:`Versioned` for an event loop."""
