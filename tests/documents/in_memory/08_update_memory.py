# Document: In-Memory Manager
# Section: CRUD Operations / Update Memory

# Update existing memory
updated_data = [IWorkingMemory(
    working_memory="User prefers SMS communication (updated)"
)]

update_input = IMemoryInput(
    conversation_id="conv_123",
    memory_type=ConversationMemoryType.WORKING_MEMORY,
    data=updated_data
)

memory_manager.update(update_input)
