# Document: Redis Memory Manager
# Section: Testing / Integration Testing

import pytest

@pytest.mark.integration
@pytest.mark.asyncio
async def test_redis_persistence():
    """Test actual Redis persistence."""
    # Requires real Redis instance
    manager = RedisWorkingMemoryManager("redis://localhost:6379/15")  # Use test DB

    try:
        # Store
        memory_input = IMemoryInput(
            conversation_id="test_conv",
            memory_type=ConversationMemoryType.WORKING_MEMORY,
            data=[IWorkingMemory(working_memory="test data")]
        )
        key = manager.store(memory_input)

        # Retrieve
        retrieve_input = IMemoryInput(
            conversation_id="test_conv",
            memory_type=ConversationMemoryType.WORKING_MEMORY
        )
        memories = manager.retrieve(retrieve_input)

        assert len(memories) == 1
        assert memories[0].working_memory == "test data"

    finally:
        # Cleanup
        manager.delete(retrieve_input)
