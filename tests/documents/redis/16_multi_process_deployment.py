# Document: Redis Memory Manager
# Section: Production Patterns / Multi-Process Deployment

"""
All processes share the same Redis instance.
Memory is synchronized automatically.
"""

# Process 1 (Web Server 1)
async def process_1():
    memory_manager = RedisWorkingMemoryManager()
    agent = WorkingMemoryAgent(llm_client, memory_manager)

    await agent.process(IAgentInput(
        message="I'm Alice",
        metadata={"conversation_id": "conv_123"}
    ))

# Process 2 (Web Server 2) - can access same memory
async def process_2():
    memory_manager = RedisWorkingMemoryManager()
    agent = WorkingMemoryAgent(llm_client, memory_manager)

    response = await agent.process(IAgentInput(
        message="What's my name?",
        metadata={"conversation_id": "conv_123"}
    ))
    # Agent retrieves memory from Redis: "Alice"
