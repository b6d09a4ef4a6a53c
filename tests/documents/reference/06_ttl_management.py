# Document: Memory Reference Implementations
# Section: Memory Optimization Patterns / TTL Management

class TTLOptimizedMemoryManager:
    """Memory manager with intelligent TTL management."""

    def __init__(self, base_manager):
        self.base_manager = base_manager
        self.ttl_strategies = {
            "active_user": 60 * 60 * 24,      # 24 hours for active users
            "inactive_user": 60 * 60 * 2,     # 2 hours for inactive users
            "premium_user": 60 * 60 * 24 * 7,  # 7 days for premium users
        }

    def _get_ttl(self, metadata: dict) -> int:
        """Determine TTL based on user characteristics."""
        user_type = metadata.get("user_type", "active_user")
        return self.ttl_strategies.get(user_type, 60 * 60 * 12)

    def store(self, input: IMemoryInput) -> str:
        # Set appropriate TTL
        ttl = self._get_ttl(input.metadata or {})
        self.base_manager.ttl = ttl
        return self.base_manager.store(input)
