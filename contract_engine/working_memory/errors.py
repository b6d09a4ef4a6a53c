"""What can go wrong here and nowhere else in the package."""

from __future__ import annotations

from contract_engine.memory.errors import MemoryServiceError


class WrapperMissingError(MemoryServiceError):
    """A memory was written through a wrapper that this manager does not have, so its text cannot be shown."""

    def __init__(self, mark: str, name: str) -> None:
        super().__init__(f"{name} was written through the {mark!r} wrapper; read it through a manager that has it")
        self.mark = mark
