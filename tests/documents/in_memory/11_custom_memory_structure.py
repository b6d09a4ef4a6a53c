# Document: In-Memory Manager
# Section: Advanced Patterns / Custom Memory Structure

from dataclasses import dataclass
from typing import Dict, Any

@dataclass
class RichMemory:
    """Custom memory structure with additional fields."""
    content: str
    importance: int  # 1-10 scale
    tags: list
    metadata: Dict[str, Any]

class EnhancedMemoryManager:
    """Extended in-memory manager with custom structure."""

    def __init__(self):
        self.base_manager = InMemoryManager()
        self.rich_storage = {}

    def store_rich_memory(
        self,
        conversation_id: str,
        memory: RichMemory
    ):
        """Store rich memory with additional metadata."""

        # Store base memory
        base_input = IMemoryInput(
            conversation_id=conversation_id,
            memory_type=ConversationMemoryType.WORKING_MEMORY,
            data=[IWorkingMemory(working_memory=memory.content)]
        )
        self.base_manager.store(base_input)

        # Store rich metadata separately
        if conversation_id not in self.rich_storage:
            self.rich_storage[conversation_id] = []
        self.rich_storage[conversation_id].append(memory)

    def get_important_memories(
        self,
        conversation_id: str,
        min_importance: int = 7
    ) -> list:
        """Retrieve memories above importance threshold."""
        if conversation_id not in self.rich_storage:
            return []

        return [
            m for m in self.rich_storage[conversation_id]
            if m.importance >= min_importance
        ]
