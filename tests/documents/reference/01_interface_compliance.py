# Document: Memory Reference Implementations
# Section: Interface Compliance

from arshai.core.interfaces.imemorymanager import IMemoryManager, IMemoryInput

class IMemoryManager:
    """Interface for memory management implementations."""

    def store(self, input: IMemoryInput) -> str:
        """Store memory data and return storage key."""
        pass

    def retrieve(self, input: IMemoryInput) -> List[IWorkingMemory]:
        """Retrieve memory data matching the input criteria."""
        pass

    def update(self, input: IMemoryInput) -> None:
        """Update existing memory data."""
        pass

    def delete(self, input: IMemoryInput) -> None:
        """Delete memory data."""
        pass
