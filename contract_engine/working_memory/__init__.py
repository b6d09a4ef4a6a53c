"""Working-memory managers: what an agent keeps of a conversation, in memory, in Redis or in a database."""

from contract_engine.working_memory.environment import create_async_memory_manager, create_memory_manager
from contract_engine.working_memory.errors import WrapperMissingError
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
from contract_engine.working_memory.sql_memory_manager import (
    AsyncSQLiteMemoryManager,
    AsyncSQLMemoryManager,
    SQLiteMemoryManager,
    SQLMemoryManager,
)

__all__ = [
    "AsyncInMemoryManager",
    "AsyncRedisMemoryManager",
    "AsyncRedisWorkingMemoryManager",
    "AsyncSQLMemoryManager",
    "AsyncSQLiteMemoryManager",
    "AsyncWorkingMemoryManager",
    "ConversationMemoryType",
    "IAsyncMemoryManager",
    "IMemoryConfig",
    "IMemoryInput",
    "IMemoryItem",
    "IMemoryManager",
    "IWorkingMemory",
    "InMemoryManager",
    "RedisMemoryManager",
    "RedisWorkingMemoryManager",
    "RichMemory",
    "SQLMemoryManager",
    "SQLiteMemoryManager",
    "WorkingMemoryManager",
    "WrapperMissingError",
    "create_async_memory_manager",
    "create_memory_manager",
]
