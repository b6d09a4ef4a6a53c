# Document: Memory Reference Implementations
# Section: Memory Optimization Patterns / Memory Versioning

from datetime import datetime
from typing import List, Dict, Any

class VersionedMemoryManager:
    """Memory manager with version tracking."""

    def __init__(self, base_manager):
        self.base_manager = base_manager
        self.versions: Dict[str, List[Dict[str, Any]]] = {}

    def store(self, input: IMemoryInput) -> str:
        # Create version entry
        version_key = f"{input.conversation_id}:{input.memory_type}"

        if version_key not in self.versions:
            self.versions[version_key] = []

        # Store version metadata
        version_info = {
            "timestamp": datetime.now().isoformat(),
            "content": input.data[0].working_memory if input.data else "",
            "metadata": input.metadata or {}
        }

        self.versions[version_key].append(version_info)

        # Limit version history (keep last 10)
        if len(self.versions[version_key]) > 10:
            self.versions[version_key] = self.versions[version_key][-10:]

        return self.base_manager.store(input)

    def get_memory_history(self, conversation_id: str, memory_type) -> List[Dict[str, Any]]:
        """Get version history for a memory."""
        version_key = f"{conversation_id}:{memory_type}"
        return self.versions.get(version_key, [])
