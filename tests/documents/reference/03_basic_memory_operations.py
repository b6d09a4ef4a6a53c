# Document: Memory Reference Implementations
# Section: Usage Patterns / Basic Memory Operations

from arshai.memory.working_memory.in_memory_manager import InMemoryManager
from arshai.core.interfaces.imemorymanager import IMemoryInput, IWorkingMemory
from arshai.memory.memory_types import ConversationMemoryType

# Create memory manager
memory_manager = InMemoryManager(ttl=3600)  # 1 hour TTL

# Store memory
memory_data = IMemoryInput(
    conversation_id="conversation_123",
    memory_type=ConversationMemoryType.WORKING,
    data=[IWorkingMemory(working_memory="User is interested in machine learning")],
    metadata={"user_id": "user_456"}
)

key = memory_manager.store(memory_data)
print(f"Stored memory with key: {key}")

# Retrieve memory
query = IMemoryInput(
    conversation_id="conversation_123",
    memory_type=ConversationMemoryType.WORKING
)

memories = memory_manager.retrieve(query)
if memories:
    print(f"Retrieved memory: {memories[0].working_memory}")
