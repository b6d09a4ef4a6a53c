# Document: Memory Reference Implementations
# Section: Usage Patterns / Agent Integration

from arshai.agents.hub.working_memory import WorkingMemoryAgent
from arshai.memory.working_memory.redis_memory_manager import RedisMemoryManager

# Create Redis-backed memory manager
memory_manager = RedisMemoryManager(
    storage_url="redis://localhost:6379/1",
    ttl=60*60*24  # 24 hours
)

# Create memory-enabled agent
memory_agent = WorkingMemoryAgent(
    llm_client=llm_client,
    memory_manager=memory_manager
)

# Agent automatically manages memory
result = await memory_agent.process(IAgentInput(
    message="User mentioned they're a Python developer",
    metadata={"conversation_id": "dev_chat_123"}
))
