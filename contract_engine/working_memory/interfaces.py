"""What a program may expect of any memory manager."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from contract_engine.working_memory.models import IMemoryInput, IWorkingMemory


@runtime_checkable
class IMemoryManager(Protocol):
    """A manager whose calls block."""

    def store(self, input: IMemoryInput) -> str:
        """Keep the memories of ``input.data`` in place of what the conversation had, and return their key."""
        ...

    def retrieve(self, input: IMemoryInput) -> list[IWorkingMemory]:
        """Return the memories that are asked for."""
        ...

    def update(self, input: IMemoryInput) -> None:
        """Replace what is there; where there is nothing, nothing is created."""
        ...

    def delete(self, input: IMemoryInput) -> None:
        """Delete what is there, if anything is."""
        ...


@runtime_checkable
class IAsyncMemoryManager(Protocol):
    """A manager whose calls are awaited."""

    async def store(self, input: IMemoryInput) -> str:
        """:meth:`IMemoryManager.store`."""
        ...

    async def retrieve(self, input: IMemoryInput) -> list[IWorkingMemory]:
        """:meth:`IMemoryManager.retrieve`."""
        ...

    async def update(self, input: IMemoryInput) -> None:
        """:meth:`IMemoryManager.update`."""
        ...

    async def delete(self, input: IMemoryInput) -> None:
        """:meth:`IMemoryManager.delete`."""
        ...
