"""What wrappers are made of: layers over layers, and managers over managers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from msgspec.structs import replace

from contract_engine.memory.errors import ConfigurationError, CorruptDataError, InvalidInputError
from contract_engine.working_memory.errors import UnreadableMemoryError
from contract_engine.working_memory.layers import Flow, Layer
from contract_engine.working_memory.manager import AsyncWorkingMemoryManager, WorkingMemoryManager
from contract_engine.working_memory.records import Item, Record, RecordKey
from contract_engine.working_memory.stores import AsyncStore, Store

_NO_LIMIT = 2**62

Revise = Callable[[Record | None], Record | None]
Manager = TypeVar("Manager", bound=WorkingMemoryManager | AsyncWorkingMemoryManager)


class Wrapping:
    """A layer that leaves everything to the one below; wrappers say what they do otherwise.

    ``reads_metadata``: it goes by what stands in the metadata of a record, and can do nothing with encrypted ones.
    """

    reads_metadata = False

    def __init__(self, below: Layer) -> None:
        self.below = below

    def read(self, keys: Sequence[RecordKey]) -> Flow[list[Record | None]]:
        """See :class:`Layer`."""
        return self.below.read(keys)

    def write(self, records: Sequence[tuple[RecordKey, Record]]) -> Flow[None]:
        """See :class:`Layer`."""
        return self.below.write(records)

    def change(self, key: RecordKey, revise: Revise) -> Flow[Record | None]:
        """See :class:`Layer`."""
        return self.below.change(key, revise)

    def remove(self, keys: Sequence[RecordKey]) -> Flow[int]:
        """See :class:`Layer`."""
        return self.below.remove(keys)


class Sealing(Wrapping, ABC):
    """A layer below which items have another form; earlier versions of a record are treated as the record itself is.

    But for a version that cannot be opened: whoever reads the record as it is now need not know, and whoever asks for
    that version is told.
    """

    @abstractmethod
    def seal(self, key: RecordKey, item: Item) -> Item:
        """Return the item as it is to be below, with a mark of what was done."""

    @abstractmethod
    def open(self, key: RecordKey, item: Item, room: Room) -> Item:
        """Return the item of :meth:`seal`; one whose last mark is not ours as it is.

        ``room`` is that of all items of a record and of its versions.
        """

    def new_room(self) -> Room:
        """Return how much may be made of what a record and its versions hold."""
        return Room(_NO_LIMIT)

    def seal_metadata(self, key: RecordKey, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the metadata of a record as they are to be below."""
        return metadata

    def open_metadata(self, key: RecordKey, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the metadata of :meth:`seal_metadata`."""
        return metadata

    def read(self, keys: Sequence[RecordKey]) -> Flow[list[Record | None]]:
        """See :class:`Layer`."""
        found = yield from self.below.read(keys)
        return [record and self.opened(key, record) for key, record in zip(keys, found, strict=True)]

    def write(self, records: Sequence[tuple[RecordKey, Record]]) -> Flow[None]:
        """See :class:`Layer`."""
        yield from self.below.write([(key, self.sealed(key, record)) for key, record in records])

    def change(self, key: RecordKey, revise: Revise) -> Flow[Record | None]:
        """See :class:`Layer`."""
        known = Known()

        def below(sealed: Record | None) -> Record | None:
            opened = sealed and self.opened(key, sealed, known)
            revised = revise(opened)
            if revised is None or revised is opened:
                return None if revised is None else sealed  # left as it is: not sealed anew either
            return self.sealed(key, revised, known)

        found = yield from self.below.change(key, below)
        return found and self.opened(key, found, known)

    def is_current(self, item: Item) -> bool:
        """Tell whether a sealed item that stays as it is may stay in the form it has."""
        return True

    def sealed(self, key: RecordKey, record: Record, known: Known | None = None) -> Record:
        """Return a record as it is to be below."""
        if record.left is not None:  # this layer or one below could not open it
            return replace(record, left=None) if record.left[0] is self else record
        return replace(
            record,
            items=tuple(self._sealed_item(key, item, known) for item in record.items),
            metadata=self.seal_metadata(key, record.metadata),
            versions=tuple(self.sealed(key, version, known) for version in record.versions),
        )

    def opened(self, key: RecordKey, record: Record, known: Known | None = None) -> Record:
        """Return the record of :meth:`sealed`."""
        room = self.new_room()
        present = self._opened(key, record, known, room)
        if not record.versions:
            return present
        # The newest first: where there is no room for all, these are asked for most.
        versions = [self._opened_version(key, version, known, room) for version in reversed(record.versions)]
        return replace(present, versions=tuple(reversed(versions)))

    def _opened(self, key: RecordKey, record: Record, known: Known | None, room: Room) -> Record:
        return replace(
            record,
            items=tuple(self._opened_item(key, item, known, room) for item in record.items),
            metadata=self.open_metadata(key, record.metadata),
        )

    def _opened_version(self, key: RecordKey, version: Record, known: Known | None, room: Room) -> Record:
        if version.left is not None:
            return version
        try:
            return self._opened(key, version, known, room)
        except (UnreadableMemoryError, CorruptDataError) as exc:
            return replace(version, left=(self, exc.with_traceback(None)))

    def _sealed_item(self, key: RecordKey, item: Item, known: Known | None) -> Item:
        sealed = None if known is None else known.sealed(item)
        if sealed is None or not self.is_current(sealed):
            sealed = self.seal(key, item)
            if known is not None:
                known.note(sealed, item)
        return sealed

    def _opened_item(self, key: RecordKey, item: Item, known: Known | None, room: Room) -> Item:
        opened = None if known is None else known.opened(item)
        if opened is None:
            opened = self.open(key, item, room)
            if known is not None:
                known.note(item, opened)
        return opened


class Room:
    """How many bytes may still be made of one record."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


class Known:
    """Both forms of items, for as long as a change is tried: what stays is neither opened nor sealed again."""

    def __init__(self) -> None:
        self._by_sealed: dict[tuple[object, ...], tuple[Item, Item]] = {}
        self._by_opened: dict[int, tuple[Item, Item]] = {}

    def note(self, sealed: Item, opened: Item) -> None:
        self._by_sealed[sealed.memory_id, sealed.text, sealed.marks] = sealed, opened
        self._by_opened[id(opened)] = sealed, opened  # which is kept here, so that no other one gets its id

    def opened(self, sealed: Item) -> Item | None:
        found = self._by_sealed.get((sealed.memory_id, sealed.text, sealed.marks))
        return found[1] if found is not None and found[0] == sealed else None

    def sealed(self, opened: Item) -> Item | None:
        found = self._by_opened.get(id(opened))
        return None if found is None else found[0]


def same_contents(one: Record, other: Record) -> bool:
    """Tell whether two records say the same of the same moment, whatever else is kept with them."""
    return (one.items, one.metadata, one.created_at, one.last_update) == (
        other.items,
        other.metadata,
        other.created_at,
        other.last_update,
    )


class Wrapped(Generic[Manager]):
    """What both colours of a wrapper have: another manager of the same colour, whose records go through one layer more.

    Times, limits, prefix and store are those of the manager within, but its methods are not called: a wrapper has its
    own, over the layers of both. So a class that overrides one of them (``store``, ``retrieve``...) is refused:
    override it in a subclass of the outermost wrapper.
    """

    def __init__(self, manager: Manager, wrap: Callable[[Layer], Layer]) -> None:
        self._check_manager(manager)
        self.manager = manager
        self.layer = wrap(manager.layer)
        self.prefix = manager.prefix
        self.max_bytes = manager.max_bytes
        self.wall_clock = manager.wall_clock

    def _check_manager(self, manager: object) -> None:
        colour = WorkingMemoryManager if isinstance(self, WorkingMemoryManager) else AsyncWorkingMemoryManager
        if not isinstance(manager, colour):
            # Marks, versions and a change that loses no race have no place in the four methods of an IMemoryManager.
            remedy = f"derive it from {colour.__name__} and give it a store_of_records"
            raise InvalidInputError("manager", f"{type(manager).__name__} is no {colour.__name__}: {remedy}")
        for name, method in vars(colour).items():
            is_of_callers = not name.startswith("_") and name not in ("close", "aclose")
            if is_of_callers and getattr(type(manager), name) is not method:
                problem = f"{type(manager).__name__} overrides {name}(), which no wrapper calls"
                raise ConfigurationError("manager", f"{problem}: override it in a subclass of the outermost wrapper")

    @property
    def store_of_records(self) -> Store | AsyncStore:
        """Where the records are kept in the end."""
        return self.manager.store_of_records

    @property
    def ttl(self) -> float | None:
        """The time to live of the manager within."""
        return self.manager.ttl

    @ttl.setter
    def ttl(self, seconds: float | None) -> None:
        self.manager.ttl = seconds


class Wrapper(Wrapped[WorkingMemoryManager], WorkingMemoryManager):
    """A wrapper that blocks. To close it is to close the manager within, which opens again at its next call."""

    def close(self) -> None:
        """Close the manager within."""
        self.manager.close()


class AsyncWrapper(Wrapped[AsyncWorkingMemoryManager], AsyncWorkingMemoryManager):
    """:class:`Wrapper` for an event loop."""

    async def aclose(self) -> None:
        """:meth:`Wrapper.close`."""
        await self.manager.aclose()
