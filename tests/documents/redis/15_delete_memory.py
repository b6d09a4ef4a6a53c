# Document: Redis Memory Manager
# Section: CRUD Operations / Delete Memory

# Delete conversation memory
delete_input = IMemoryInput(
    conversation_id="conv_123",
    memory_type=ConversationMemoryType.WORKING_MEMORY
)

memory_manager.delete(delete_input)
# Memory is deleted from Redis immediately
