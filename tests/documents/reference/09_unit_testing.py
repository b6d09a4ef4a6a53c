# Document: Memory Reference Implementations
# Section: Testing Memory Implementations / Unit Testing

import pytest
from arshai.memory.working_memory.in_memory_manager import InMemoryManager
from arshai.core.interfaces.imemorymanager import IMemoryInput, IWorkingMemory
from arshai.memory.memory_types import ConversationMemoryType

@pytest.fixture
def memory_manager():
    return InMemoryManager(ttl=60)  # 1 minute TTL for testing

@pytest.fixture
def sample_memory_input():
    return IMemoryInput(
        conversation_id="test_conversation",
        memory_type=ConversationMemoryType.WORKING,
        data=[IWorkingMemory(working_memory="Test memory content")],
        metadata={"test": True}
    )

def test_store_and_retrieve(memory_manager, sample_memory_input):
    # Store memory
    key = memory_manager.store(sample_memory_input)
    assert key is not None

    # Retrieve memory
    query = IMemoryInput(
        conversation_id="test_conversation",
        memory_type=ConversationMemoryType.WORKING
    )

    memories = memory_manager.retrieve(query)
    assert len(memories) == 1
    assert memories[0].working_memory == "Test memory content"

def test_update_memory(memory_manager, sample_memory_input):
    # Store initial memory
    memory_manager.store(sample_memory_input)

    # Update memory
    update_input = IMemoryInput(
        conversation_id="test_conversation",
        memory_type=ConversationMemoryType.WORKING,
        data=[IWorkingMemory(working_memory="Updated memory content")]
    )

    memory_manager.update(update_input)

    # Verify update
    query = IMemoryInput(
        conversation_id="test_conversation",
        memory_type=ConversationMemoryType.WORKING
    )

    memories = memory_manager.retrieve(query)
    assert memories[0].working_memory == "Updated memory content"

def test_delete_memory(memory_manager, sample_memory_input):
    # Store memory
    memory_manager.store(sample_memory_input)

    # Delete memory
    memory_manager.delete(sample_memory_input)

    # Verify deletion
    query = IMemoryInput(
        conversation_id="test_conversation",
        memory_type=ConversationMemoryType.WORKING
    )

    memories = memory_manager.retrieve(query)
    assert len(memories) == 0
