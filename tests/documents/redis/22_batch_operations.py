# Document: Redis Memory Manager
# Section: Performance Optimization / Batch Operations

def batch_store_memories(
    memory_manager: RedisWorkingMemoryManager,
    conversation_memories: dict
):
    """Store multiple conversation memories efficiently."""

    for conversation_id, memory_text in conversation_memories.items():
        memory_input = IMemoryInput(
            conversation_id=conversation_id,
            memory_type=ConversationMemoryType.WORKING_MEMORY,
            data=[IWorkingMemory(working_memory=memory_text)]
        )
        memory_manager.store(memory_input)

# Usage
batch_store_memories(memory_manager, {
    "conv_1": "Alice prefers email",
    "conv_2": "Bob likes Python",
    "conv_3": "Carol uses dark mode"
})
