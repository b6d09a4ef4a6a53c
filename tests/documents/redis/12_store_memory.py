# Document: Redis Memory Manager
# Section: CRUD Operations / Store Memory

# Store with metadata
memory_input = IMemoryInput(
    conversation_id="conv_123",
    memory_type=ConversationMemoryType.WORKING_MEMORY,
    data=[IWorkingMemory(working_memory="User prefers email")],
    metadata={"source": "user_settings", "timestamp": "2024-01-01"}
)

key = memory_manager.store(memory_input)
# Memory is immediately available across all processes
