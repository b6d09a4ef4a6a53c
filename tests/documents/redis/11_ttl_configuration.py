# Document: Redis Memory Manager
# Section: Configuration / TTL Configuration

# 1 hour TTL
memory_manager = RedisWorkingMemoryManager(ttl=3600)

# 24 hours TTL
memory_manager = RedisWorkingMemoryManager(ttl=86400)

# 7 days TTL
memory_manager = RedisWorkingMemoryManager(ttl=604800)

# Custom TTL based on use case
if os.getenv("ENVIRONMENT") == "production":
    ttl = 86400 * 7  # 7 days
else:
    ttl = 3600  # 1 hour for development

memory_manager = RedisWorkingMemoryManager(ttl=ttl)
