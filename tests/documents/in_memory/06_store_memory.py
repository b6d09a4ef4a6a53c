# Document: In-Memory Manager
# Section: CRUD Operations / Store Memory

from arshai.core.interfaces.imemorymanager import IWorkingMemory

# Create memory data
memory_data = [IWorkingMemory(
    working_memory="User prefers email communication"
)]

# Store with metadata
memory_input = IMemoryInput(
    conversation_id="conv_123",
    memory_type=ConversationMemoryType.WORKING_MEMORY,
    data=memory_data,
    metadata={"source": "user_preference"}
)

key = memory_manager.store(memory_input)
