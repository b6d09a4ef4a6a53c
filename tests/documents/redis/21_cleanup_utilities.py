# Document: Redis Memory Manager
# Section: Monitoring and Debugging / Cleanup Utilities

def cleanup_old_conversations(redis_url: str, pattern: str = "memory:*"):
    """Clean up all memories matching pattern."""
    client = redis.from_url(redis_url)

    # Get all matching keys
    keys = client.keys(pattern)

    if keys:
        client.delete(*keys)
        print(f"Deleted {len(keys)} memory entries")
    else:
        print("No memories found to delete")

# Cleanup all memories
cleanup_old_conversations("redis://localhost:6379/1")

# Cleanup specific conversation
cleanup_old_conversations("redis://localhost:6379/1", "memory:*:conv_123")
