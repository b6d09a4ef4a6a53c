"""Working-memory managers: what an agent keeps of a conversation, in memory, in Redis or in a database."""

from contract_engine.working_memory.agent import IAgentInput, IChatModel, ILLMInput, WorkingMemoryAgent
from contract_engine.working_memory.auditing import AsyncAudited, Audited, AuditEvent, acting_as
from contract_engine.working_memory.compression import AsyncCompressed, Compressed, train_dictionary
from contract_engine.working_memory.encryption import AsyncEncrypted, Encrypted, KeyRing
from contract_engine.working_memory.environment import create_async_memory_manager, create_memory_manager
from contract_engine.working_memory.errors import (
    AlteredMemoryError,
    InflationError,
    MissingDictionaryError,
    MissingKeyError,
    NotRenewedError,
    UnreadableMemoryError,
    WrapperMissingError,
)
from contract_engine.working_memory.in_memory_manager import AsyncInMemoryManager, InMemoryManager
from contract_engine.working_memory.interfaces import IAsyncMemoryManager, IMemoryManager
from contract_engine.working_memory.manager import AsyncWorkingMemoryManager, WorkingMemoryManager
from contract_engine.working_memory.models import (
    ConversationMemoryType,
    IMemoryConfig,
    IMemoryInput,
    IMemoryItem,
    IWorkingMemory,
    RichMemory,
)
from contract_engine.working_memory.redis_memory_manager import (
    AsyncRedisMemoryManager,
    AsyncRedisWorkingMemoryManager,
    RedisMemoryManager,
    RedisWorkingMemoryManager,
)
from contract_engine.working_memory.retrying import AsyncRetrying, Retrying
from contract_engine.working_memory.sql_memory_manager import (
    AsyncSQLiteMemoryManager,
    AsyncSQLMemoryManager,
    SQLiteMemoryManager,
    SQLMemoryManager,
)
from contract_engine.working_memory.ttl_strategy import AsyncTTLStrategy, TTLStrategy
from contract_engine.working_memory.versions import AsyncVersioned, Versioned

__all__ = [
    "AlteredMemoryError",
    "AsyncAudited",
    "AsyncCompressed",
    "AsyncEncrypted",
    "AsyncInMemoryManager",
    "AsyncRedisMemoryManager",
    "AsyncRedisWorkingMemoryManager",
    "AsyncRetrying",
    "AsyncSQLMemoryManager",
    "AsyncSQLiteMemoryManager",
    "AsyncTTLStrategy",
    "AsyncVersioned",
    "AsyncWorkingMemoryManager",
    "AuditEvent",
    "Audited",
    "Compressed",
    "ConversationMemoryType",
    "Encrypted",
    "IAgentInput",
    "IAsyncMemoryManager",
    "IChatModel",
    "ILLMInput",
    "IMemoryConfig",
    "IMemoryInput",
    "IMemoryItem",
    "IMemoryManager",
    "IWorkingMemory",
    "InMemoryManager",
    "InflationError",
    "KeyRing",
    "MissingDictionaryError",
    "MissingKeyError",
    "NotRenewedError",
    "RedisMemoryManager",
    "RedisWorkingMemoryManager",
    "Retrying",
    "RichMemory",
    "SQLMemoryManager",
    "SQLiteMemoryManager",
    "TTLStrategy",
    "UnreadableMemoryError",
    "Versioned",
    "WorkingMemoryAgent",
    "WorkingMemoryManager",
    "WrapperMissingError",
    "acting_as",
    "create_async_memory_manager",
    "create_memory_manager",
    "train_dictionary",
]
