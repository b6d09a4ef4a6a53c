# Document: In-Memory Manager
# Section: Advanced Patterns / Memory Cleanup

class ManagedInMemory:
    """In-memory manager with explicit cleanup controls."""

    def __init__(self, ttl: int = 3600):
        self.memory_manager = InMemoryManager(ttl=ttl)

    def cleanup_expired(self):
        """Manually trigger cleanup of expired memories."""
        # The InMemoryManager does this automatically on store,
        # but you can trigger it explicitly
        self.memory_manager._clear_expired_memory()

    def cleanup_conversation(self, conversation_id: str):
        """Remove all memories for a specific conversation."""
        delete_input = IMemoryInput(
            conversation_id=conversation_id,
            memory_type=ConversationMemoryType.WORKING_MEMORY
        )
        self.memory_manager.delete(delete_input)

    def get_storage_stats(self) -> Dict[str, Any]:
        """Get statistics about current memory usage."""
        return {
            "total_entries": len(self.memory_manager.storage),
            "memory_keys": list(self.memory_manager.storage.keys())
        }
