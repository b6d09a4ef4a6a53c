"""Working-memory managers: what an agent keeps of a conversation, in memory, in Redis or in a database."""

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

__all__ = [
    "AsyncInMemoryManager",
    "AsyncWorkingMemoryManager",
    "ConversationMemoryType",
    "IAsyncMemoryManager",
    "IMemoryConfig",
    "IMemoryInput",
    "IMemoryItem",
    "IMemoryManager",
    "IWorkingMemory",
    "InMemoryManager",
    "RichMemory",
    "WorkingMemoryManager",
    "WrapperMissingError",
]
