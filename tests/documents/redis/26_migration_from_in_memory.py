# Document: Redis Memory Manager
# Section: Migration from In-Memory

import os

def create_memory_manager():
    """Factory function for environment-specific memory manager."""

    environment = os.getenv("ENVIRONMENT", "development")

    if environment == "production":
        # Production: Use Redis
        from arshai.memory.working_memory.redis_memory_manager import RedisWorkingMemoryManager
        return RedisWorkingMemoryManager(
            storage_url=os.getenv("REDIS_URL"),
            ttl=86400  # 24 hours
        )
    else:
        # Development: Use in-memory
        from arshai.memory.working_memory.in_memory_manager import InMemoryManager
        return InMemoryManager(ttl=3600)

# Usage
memory_manager = create_memory_manager()
agent = WorkingMemoryAgent(llm_client, memory_manager)
# Same code works in both environments!
