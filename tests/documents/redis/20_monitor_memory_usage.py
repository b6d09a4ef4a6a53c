# Document: Redis Memory Manager
# Section: Monitoring and Debugging / Monitor Memory Usage

import redis

def get_memory_stats(redis_url: str) -> dict:
    """Get Redis memory statistics."""
    client = redis.from_url(redis_url)

    info = client.info('memory')
    stats = {
        "used_memory": info.get("used_memory_human"),
        "used_memory_peak": info.get("used_memory_peak_human"),
        "total_keys": client.dbsize()
    }

    return stats

# Usage
stats = get_memory_stats("redis://localhost:6379/1")
print(f"Memory usage: {stats['used_memory']}")
print(f"Total keys: {stats['total_keys']}")
