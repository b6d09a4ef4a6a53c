# Document: Redis Memory Manager
# Section: Basic Usage / With Agent

import asyncio
import os
from arshai.agents.working_memory import WorkingMemoryAgent
from arshai.llms.openai import OpenAIClient
from arshai.core.interfaces.illm import ILLMConfig
from arshai.core.interfaces.iagent import IAgentInput
from arshai.memory.working_memory.redis_memory_manager import RedisWorkingMemoryManager

async def main():
    # Create components
    llm_client = OpenAIClient(ILLMConfig(model="gpt-3.5-turbo"))
    memory_manager = RedisWorkingMemoryManager()

    # Create memory-enabled agent
    agent = WorkingMemoryAgent(
        llm_client=llm_client,
        memory_manager=memory_manager
    )

    # First interaction
    response1 = await agent.process(IAgentInput(
        message="My name is Bob and I like Python",
        metadata={"conversation_id": "conv_123"}
    ))
    print(f"Agent: {response1}")

    # Even if you restart the application, memory persists!
    # Second interaction (agent remembers from Redis)
    response2 = await agent.process(IAgentInput(
        message="What's my name and what do I like?",
        metadata={"conversation_id": "conv_123"}
    ))
    print(f"Agent: {response2}")

asyncio.run(main())
