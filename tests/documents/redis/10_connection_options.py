# Document: Redis Memory Manager
# Section: Configuration / Connection Options

# Explicit URL
memory_manager = RedisWorkingMemoryManager(
    storage_url="redis://localhost:6379/1"
)

# From environment variable (recommended)
memory_manager = RedisWorkingMemoryManager()  # Uses REDIS_URL env var

# With custom TTL (default: 12 hours)
memory_manager = RedisWorkingMemoryManager(
    storage_url="redis://localhost:6379/1",
    ttl=86400  # 24 hours
)
