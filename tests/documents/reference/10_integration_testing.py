# Document: Memory Reference Implementations
# Section: Testing Memory Implementations / Integration Testing

import pytest
import time
from arshai.memory.working_memory.redis_memory_manager import RedisMemoryManager

@pytest.mark.integration
def test_redis_memory_integration():
    # Test with real Redis (requires Redis server)
    memory_manager = RedisMemoryManager(
        storage_url="redis://localhost:6379/15"  # Use test database
    )

    # Test basic operations
    memory_input = IMemoryInput(
        conversation_id="integration_test",
        memory_type=ConversationMemoryType.WORKING,
        data=[IWorkingMemory(working_memory="Integration test content")],
        metadata={"integration": True}
    )

    # Store and retrieve
    key = memory_manager.store(memory_input)
    assert key is not None

    memories = memory_manager.retrieve(memory_input)
    assert len(memories) == 1
    assert memories[0].working_memory == "Integration test content"

    # Cleanup
    memory_manager.delete(memory_input)

@pytest.mark.integration
def test_memory_ttl():
    memory_manager = InMemoryManager(ttl=1)  # 1 second TTL

    memory_input = IMemoryInput(
        conversation_id="ttl_test",
        memory_type=ConversationMemoryType.WORKING,
        data=[IWorkingMemory(working_memory="TTL test content")]
    )

    # Store memory
    memory_manager.store(memory_input)

    # Should be available immediately
    memories = memory_manager.retrieve(memory_input)
    assert len(memories) == 1

    # Wait for TTL expiration
    time.sleep(2)

    # Should be expired
    memories = memory_manager.retrieve(memory_input)
    assert len(memories) == 0
