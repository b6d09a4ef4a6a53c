"""How long a record lives, told by its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from msgspec.structs import replace

from contract_engine.memory.errors import ConfigurationError
from contract_engine.working_memory.encryption import SEALED_METADATA
from contract_engine.working_memory.layers import Flow, Layer
from contract_engine.working_memory.manager import AsyncWorkingMemoryManager, WorkingMemoryManager
from contract_engine.working_memory.records import Record, RecordKey, Ttl
from contract_engine.working_memory.stores import check_ttl
from contract_engine.working_memory.wrapping import AsyncWrapper, Manager, Revise, Wrapped, Wrapper, Wrapping


class TtlStrategyLayer(Wrapping):
    """Says of each record by itself how long it is to live; nothing is shared between two calls."""

    reads_metadata = True

    def __init__(
        self,
        below: Layer,
        strategies: Mapping[str, float | None],
        *,
        field: str,
        default: float | Ttl | None,
    ) -> None:
        super().__init__(below)
        self._strategies = _checked(strategies)
        self._field = _checked_field(field)
        self._default = default if isinstance(default, Ttl) else check_ttl(default, "default")

    def write(self, records: Sequence[tuple[RecordKey, Record]]) -> Flow[None]:
        """See :class:`Layer`."""
        return self.below.write([(key, self._timed(record)) for key, record in records])

    def change(self, key: RecordKey, revise: Revise) -> Flow[Record | None]:
        """See :class:`Layer`."""

        def timed(current: Record | None) -> Record | None:
            revised = revise(current)
            return revised if revised is None or revised is current else self._timed(revised)

        return self.below.change(key, timed)

    def _timed(self, record: Record) -> Record:
        if record.ttl_seconds is not Ttl.OF_THE_STORE:
            return record  # somebody above has said it already
        if SEALED_METADATA in record.metadata:
            problem = "cannot see encrypted metadata: wrap Encrypted in TTLStrategy, not the other way round"
            raise ConfigurationError("strategies", problem)
        value = record.metadata.get(self._field)
        named = value if isinstance(value, str) else None
        return replace(record, ttl_seconds=self._strategies.get(named, self._default))


class _TTLStrategy(Wrapped[Manager]):
    """What both colours have."""

    def __init__(
        self,
        manager: Manager,
        strategies: Mapping[str, float | None],
        *,
        field: str = "user_type",
        default: float | Ttl | None = Ttl.OF_THE_STORE,
    ) -> None:
        super().__init__(manager, partial(TtlStrategyLayer, strategies=strategies, field=field, default=default))


class TTLStrategy(_TTLStrategy[WorkingMemoryManager], Wrapper):
    """Gives each record the time to live that ``strategies`` have for ``field`` of its metadata.

    ``strategies``: seconds by value, None for ever; ``default`` is for all other values, and without one it is the time
    to live of the manager within. An update goes by the metadata the record then has. Those of its memories do not
    count; so ``store_rich``, which gives a record none, goes by what it has already. Of two such wrappers the outer
    one decides. Metadata that are encrypted outside of it are a :class:`ConfigurationError`.
    """


class AsyncTTLStrategy(_TTLStrategy[AsyncWorkingMemoryManager], AsyncWrapper):
    """:class:`TTLStrategy` for an event loop."""


def _checked(strategies: object) -> dict[str | None, float | None]:
    if not isinstance(strategies, Mapping) or not all(isinstance(name, str) for name in strategies):
        raise ConfigurationError("strategies", "expected a mapping from texts to seconds")
    return {name: check_ttl(seconds, f"strategies[{name!r}]") for name, seconds in strategies.items()}


def _checked_field(field: object) -> str:
    if not isinstance(field, str) or not field:
        raise ConfigurationError("field", "expected the name of a metadata field")
    return field
