# Document: In-Memory Manager
# Section: Testing / Unit Testing

import pytest
from arshai.memory.working_memory.in_memory_manager import InMemoryManager
from arshai.core.interfaces.imemorymanager import IMemoryInput, IWorkingMemory
from arshai.memory.memory_types import ConversationMemoryType

def test_store_and_retrieve():
    """Test basic store and retrieve."""
    manager = InMemoryManager()

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

def test_ttl_expiration():
    """Test TTL expiration."""
    manager = InMemoryManager(ttl=1)  # 1 second TTL

    # Store memory
    memory_input = IMemoryInput(
        conversation_id="test_conv",
        memory_type=ConversationMemoryType.WORKING_MEMORY,
        data=[IWorkingMemory(working_memory="test data")]
    )
    manager.store(memory_input)

    # Wait for expiration
    import time
    time.sleep(2)

    # Trigger cleanup by storing new memory
    manager.store(IMemoryInput(
        conversation_id="other_conv",
        memory_type=ConversationMemoryType.WORKING_MEMORY,
        data=[IWorkingMemory(working_memory="other data")]
    ))

    # Original memory should be expired
    retrieve_input = IMemoryInput(
        conversation_id="test_conv",
        memory_type=ConversationMemoryType.WORKING_MEMORY
    )
    memories = manager.retrieve(retrieve_input)
    assert len(memories) == 0
