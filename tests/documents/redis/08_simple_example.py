# Document: Redis Memory Manager
# Section: Basic Usage / Simple Example

import os
from arshai.memory.working_memory.redis_memory_manager import RedisWorkingMemoryManager
from arshai.core.interfaces.imemorymanager import IMemoryInput, IWorkingMemory
from arshai.memory.memory_types import ConversationMemoryType

# Create memory manager
memory_manager = RedisWorkingMemoryManager(
    storage_url=os.getenv("REDIS_URL", "redis://localhost:6379/1")
)

# Store memory
memory_data = [IWorkingMemory(working_memory="User's name is Alice")]

memory_input = IMemoryInput(
    conversation_id="conv_123",
    memory_type=ConversationMemoryType.WORKING_MEMORY,
    data=memory_data
)

key = memory_manager.store(memory_input)
print(f"Stored memory with key: {key}")

# Retrieve memory
retrieve_input = IMemoryInput(
    conversation_id="conv_123",
    memory_type=ConversationMemoryType.WORKING_MEMORY
)

memories = memory_manager.retrieve(retrieve_input)
print(f"Retrieved: {memories[0].working_memory}")
