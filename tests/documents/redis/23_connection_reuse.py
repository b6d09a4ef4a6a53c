# Document: Redis Memory Manager
# Section: Performance Optimization / Connection Reuse

# Reuse memory manager instance across requests
class MemoryService:
    """Singleton memory service for connection reuse."""

    _instance = None
    _memory_manager = None

    @classmethod
    def get_manager(cls):
        if cls._memory_manager is None:
            cls._memory_manager = RedisWorkingMemoryManager()
        return cls._memory_manager

# Usage across application
manager = MemoryService.get_manager()
