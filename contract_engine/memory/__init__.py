"""Session memory for LLM orchestrators: a word-for-word buffer, rolling summaries, and a log that loses nothing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from contract_engine.memory.async_manager import AsyncMemoryManager
from contract_engine.memory.buffer_store import AsyncBufferStore, BufferStore
from contract_engine.memory.circuit_breaker import (
    CircuitBreaker,
    CircuitState,
    RedisCircuitBreaker,
    redis_circuit_breaker,
)
from contract_engine.memory.config import MemoryConfig, SessionLimits
from contract_engine.memory.errors import (
    CircuitOpenError,
    ConfigurationError,
    ContentionError,
    DatabaseCircuitOpenError,
    DatabaseUnavailableError,
    InvalidInputError,
    LegacyCircuitOpenError,
    LegacyUnavailableError,
    MemoryServiceError,
    MessageConflictError,
    ModelUnavailableError,
    PackageTooLargeError,
    RedisUnavailableError,
    SerializationError,
    SessionExistsError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from contract_engine.memory.manager import MemoryManager
from contract_engine.memory.models import Receipt
from contract_engine.memory.retention import AsyncRetention, Retention
from contract_engine.memory.serializer import MessageSerializer
from contract_engine.memory.session_store import AsyncPostgresSessionStore, PostgresSessionStore
from contract_engine.memory.summarizers import ExtractiveSummarizer
from contract_engine.memory.summary_store import AsyncSummaryStore, SummaryStore
from contract_engine.memory.swisper_context import SwisperContext
from contract_engine.memory.token_counter import TokenCounter

if TYPE_CHECKING:
    from contract_engine.memory.legacy_store import AsyncLegacySwisperStore, LegacySwisperStore
    from contract_engine.memory.migration import AsyncEnhancedSessionStore, EnhancedSessionStore
    from contract_engine.memory.packaging import to_messages
    from contract_engine.memory.summarizers import ModelSummarizer, OpenAIChat

__all__ = [
    "AsyncBufferStore",
    "AsyncEnhancedSessionStore",
    "AsyncLegacySwisperStore",
    "AsyncMemoryManager",
    "AsyncPostgresSessionStore",
    "AsyncRetention",
    "AsyncSummaryStore",
    "BufferStore",
    "CircuitBreaker",
    "CircuitOpenError",
    "CircuitState",
    "ConfigurationError",
    "ContentionError",
    "DatabaseCircuitOpenError",
    "DatabaseUnavailableError",
    "EnhancedSessionStore",
    "ExtractiveSummarizer",
    "InvalidInputError",
    "LegacyCircuitOpenError",
    "LegacySwisperStore",
    "LegacyUnavailableError",
    "MemoryConfig",
    "MemoryManager",
    "MemoryServiceError",
    "MessageConflictError",
    "MessageSerializer",
    "ModelSummarizer",
    "ModelUnavailableError",
    "OpenAIChat",
    "PackageTooLargeError",
    "PostgresSessionStore",
    "Receipt",
    "RedisCircuitBreaker",
    "RedisUnavailableError",
    "Retention",
    "SerializationError",
    "SessionExistsError",
    "SessionLimits",
    "StoreMisconfiguredError",
    "StoreUnavailableError",
    "SummaryStore",
    "SwisperContext",
    "TokenCounter",
    "memory_manager",
    "redis_circuit_breaker",
    "to_messages",
]

memory_manager = MemoryManager()
"""The manager of this process, set up from the environment at its first call."""

# What not every program needs is imported when it is asked for.
_LATE = {
    "AsyncLegacySwisperStore": "legacy_store",
    "LegacySwisperStore": "legacy_store",
    "AsyncEnhancedSessionStore": "migration",
    "EnhancedSessionStore": "migration",
    "ModelSummarizer": "summarizers",
    "OpenAIChat": "summarizers",
    "to_messages": "packaging",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
