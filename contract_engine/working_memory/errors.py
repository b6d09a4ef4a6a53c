"""What can go wrong here and nowhere else in the package."""

from __future__ import annotations

from collections.abc import Sequence

from contract_engine.memory.errors import MemoryServiceError
from contract_engine.working_memory.records import RecordKey


class WrapperMissingError(MemoryServiceError):
    """A memory was written through a wrapper that this manager does not have, so its text cannot be shown."""

    def __init__(self, mark: str, name: str) -> None:
        super().__init__(f"{name} was written through the {mark!r} wrapper; read it through a manager that has it")
        self.mark = mark


class UnreadableMemoryError(MemoryServiceError):
    """A memory is there and cannot be given back as it was; nothing was changed.

    ``readable``: where that is an earlier version, the timestamps of those that can be restored all the same.
    """

    def __init__(self, key: RecordKey, problem: str) -> None:
        super().__init__(f"{key.memory_type}:{key.conversation_id}: {problem}")
        self.key = key
        self.problem = problem
        self.readable: tuple[str, ...] = ()


class MissingDictionaryError(UnreadableMemoryError):
    """A memory was compressed with a dictionary that is not among those given."""

    def __init__(self, key: RecordKey, dictionary_id: str) -> None:
        super().__init__(
            key, f"compressed with dictionary {dictionary_id}; give it to Compressed(older_dictionaries=...)"
        )
        self.dictionary_id = dictionary_id


class MissingKeyError(UnreadableMemoryError):
    """A memory was encrypted with a key that is not in the key ring."""

    def __init__(self, key: RecordKey, key_id: str) -> None:
        super().__init__(key, f"encrypted with key {key_id!r}; add it to the key ring")
        self.key_id = key_id


class AlteredMemoryError(UnreadableMemoryError):
    """A memory was altered or moved outside of these managers, or its key is another one of the same name."""


class NotRenewedError(MemoryServiceError):
    """Some records could not be encrypted anew, and are as they were; the others, ``renewed`` of them, are done.

    ``problems``: why, one for each, with the key of the record.
    """

    def __init__(self, renewed: int, problems: Sequence[MemoryServiceError]) -> None:
        first = "; ".join(str(problem) for problem in problems[:3])
        more = f"; and {len(problems) - 3:,} more" if len(problems) > 3 else ""
        super().__init__(f"{renewed:,} records are encrypted anew, {len(problems):,} could not be read: {first}{more}")
        self.renewed = renewed
        self.problems = tuple(problems)


class InflationError(UnreadableMemoryError):
    """A compressed memory would become larger than any text that is allowed."""
