# Document: Memory Reference Implementations
# Section: Memory Optimization Patterns / Memory Compression

import gzip
import base64
from typing import List

class CompressedMemoryWrapper:
    """Wrapper that compresses memory content."""

    def __init__(self, base_manager):
        self.base_manager = base_manager

    def _compress(self, text: str) -> str:
        """Compress text using gzip."""
        compressed = gzip.compress(text.encode('utf-8'))
        return base64.b64encode(compressed).decode('utf-8')

    def _decompress(self, compressed_text: str) -> str:
        """Decompress text."""
        compressed = base64.b64decode(compressed_text.encode('utf-8'))
        return gzip.decompress(compressed).decode('utf-8')

    def store(self, input: IMemoryInput) -> str:
        # Compress memory content
        compressed_data = []
        for data in input.data:
            compressed_memory = self._compress(data.working_memory)
            compressed_data.append(IWorkingMemory(working_memory=compressed_memory))

        compressed_input = IMemoryInput(
            conversation_id=input.conversation_id,
            memory_type=input.memory_type,
            data=compressed_data,
            metadata={**input.metadata, "compressed": True}
        )

        return self.base_manager.store(compressed_input)

    def retrieve(self, input: IMemoryInput) -> List[IWorkingMemory]:
        memories = self.base_manager.retrieve(input)

        # Decompress if needed
        decompressed_memories = []
        for memory in memories:
            if input.metadata and input.metadata.get("compressed"):
                decompressed_content = self._decompress(memory.working_memory)
                decompressed_memories.append(IWorkingMemory(working_memory=decompressed_content))
            else:
                decompressed_memories.append(memory)

        return decompressed_memories
