# Document: In-Memory Manager
# Section: Configuration / Memory Types

from arshai.memory.memory_types import ConversationMemoryType

# Working memory (default)
working_input = IMemoryInput(
    conversation_id="conv_123",
    memory_type=ConversationMemoryType.WORKING_MEMORY,
    data=[IWorkingMemory(working_memory="Important context")]
)

# Different memory types are stored separately
memory_manager.store(working_input)
