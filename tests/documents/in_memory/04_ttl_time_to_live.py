# Document: In-Memory Manager
# Section: Configuration / TTL (Time To Live)

# Default TTL: 12 hours (43200 seconds)
memory_manager = InMemoryManager()

# Custom TTL: 1 hour
memory_manager = InMemoryManager(ttl=3600)

# Custom TTL: 24 hours
memory_manager = InMemoryManager(ttl=86400)

# Disable TTL (memories never expire automatically)
memory_manager = InMemoryManager(ttl=None)
