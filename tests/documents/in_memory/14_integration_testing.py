# Document: In-Memory Manager
# Section: Testing / Integration Testing

@pytest.mark.asyncio
async def test_with_agent():
    """Test in-memory manager with actual agent."""
    from unittest.mock import AsyncMock

    # Create mock LLM
    mock_llm = AsyncMock()
    mock_llm.chat.return_value = {"llm_response": "I remember you!"}

    # Create components
    memory_manager = InMemoryManager()
    agent = WorkingMemoryAgent(
        llm_client=mock_llm,
        memory_manager=memory_manager
    )

    # Process message
    await agent.process(IAgentInput(
        message="Remember this",
        metadata={"conversation_id": "test_conv"}
    ))

    # Verify memory was stored
    retrieve_input = IMemoryInput(
        conversation_id="test_conv",
        memory_type=ConversationMemoryType.WORKING_MEMORY
    )
    memories = memory_manager.retrieve(retrieve_input)
    assert len(memories) > 0
