# Document: In-Memory Manager
# Section: Migration to Production

# Development (in-memory)
if os.getenv("ENVIRONMENT") == "development":
    memory_manager = InMemoryManager(ttl=3600)
else:
    # Production (Redis)
    from arshai.memory.working_memory.redis_memory_manager import RedisWorkingMemoryManager
    memory_manager = RedisWorkingMemoryManager(
        storage_url=os.getenv("REDIS_URL")
    )

# Same interface, different implementation
agent = WorkingMemoryAgent(
    llm_client=llm_client,
    memory_manager=memory_manager
)
