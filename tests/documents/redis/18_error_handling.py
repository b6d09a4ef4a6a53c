# Document: Redis Memory Manager
# Section: Production Patterns / Error Handling

import redis

class RobustMemoryManager:
    """Wrapper with fallback and retry logic."""

    def __init__(self, primary_url: str, max_retries: int = 3):
        self.memory_manager = RedisWorkingMemoryManager(storage_url=primary_url)
        self.max_retries = max_retries

    def store_with_retry(self, memory_input: IMemoryInput) -> str:
        """Store with automatic retry on failure."""
        for attempt in range(self.max_retries):
            try:
                return self.memory_manager.store(memory_input)
            except redis.ConnectionError as e:
                if attempt == self.max_retries - 1:
                    raise
                # Wait before retry
                import time
                time.sleep(2 ** attempt)  # Exponential backoff

        raise Exception("Max retries exceeded")

    def retrieve_safe(self, memory_input: IMemoryInput) -> list:
        """Retrieve with fallback to empty list on error."""
        try:
            return self.memory_manager.retrieve(memory_input)
        except redis.ConnectionError:
            # Log error and return empty
            print("Redis connection error, returning empty memories")
            return []
