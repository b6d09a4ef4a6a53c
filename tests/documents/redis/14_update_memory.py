# Document: Redis Memory Manager
# Section: CRUD Operations / Update Memory

# Update existing memory (replaces previous value)
updated_data = [IWorkingMemory(
    working_memory="User prefers SMS (updated)"
)]

update_input = IMemoryInput(
    conversation_id="conv_123",
    memory_type=ConversationMemoryType.WORKING_MEMORY,
    data=updated_data,
    metadata={"updated_at": "2024-01-02"}
)

memory_manager.update(update_input)
