# Document: Redis Memory Manager
# Section: Testing / Unit Testing with Redis Mock

import pytest
from unittest.mock import Mock, patch

@pytest.fixture
def mock_redis():
    """Mock Redis client for testing."""
    mock = Mock()
    mock.get.return_value = None
    mock.setex.return_value = True
    mock.delete.return_value = 1
    return mock

def test_store_memory(mock_redis):
    """Test memory storage."""
    with patch('redis.from_url', return_value=mock_redis):
        manager = RedisWorkingMemoryManager()

        memory_input = IMemoryInput(
            conversation_id="test_conv",
            memory_type=ConversationMemoryType.WORKING_MEMORY,
            data=[IWorkingMemory(working_memory="test")]
        )

        key = manager.store(memory_input)

        # Verify Redis was called
        assert mock_redis.setex.called
