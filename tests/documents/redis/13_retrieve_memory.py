# Document: Redis Memory Manager
# Section: CRUD Operations / Retrieve Memory

# Retrieve from any process/server
retrieve_input = IMemoryInput(
    conversation_id="conv_123",
    memory_type=ConversationMemoryType.WORKING_MEMORY
)

memories = memory_manager.retrieve(retrieve_input)

if memories:
    print(f"Found {len(memories)} memories")
    for memory in memories:
        print(f"Memory: {memory.working_memory}")
else:
    print("No memories found")
