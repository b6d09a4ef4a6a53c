# Document: Redis Memory Manager
# Section: Production Patterns / Connection Pooling

from redis import ConnectionPool, Redis
from arshai.memory.working_memory.redis_memory_manager import RedisWorkingMemoryManager

# Create connection pool for better performance
pool = ConnectionPool.from_url(
    "redis://localhost:6379/1",
    max_connections=50,
    decode_responses=False
)

# Custom Redis client with pool
redis_client = Redis(connection_pool=pool)

# Use with memory manager (note: you may need to extend the class)
class PooledRedisMemoryManager(RedisWorkingMemoryManager):
    def __init__(self, redis_client, **kwargs):
        self.redis_client = redis_client
        self.prefix = "memory"
        self.ttl = kwargs.get('ttl', 60 * 60 * 12)

memory_manager = PooledRedisMemoryManager(redis_client)
