# Document: Memory Reference Implementations
# Section: Testing Memory Implementations / Performance Testing

import time
import asyncio
from concurrent.futures import ThreadPoolExecutor

def test_memory_performance():
    memory_manager = InMemoryManager()

    # Test storage performance
    start_time = time.time()

    for i in range(1000):
        memory_input = IMemoryInput(
            conversation_id=f"perf_test_{i}",
            memory_type=ConversationMemoryType.WORKING,
            data=[IWorkingMemory(working_memory=f"Performance test content {i}")]
        )
        memory_manager.store(memory_input)

    storage_time = time.time() - start_time
    print(f"Stored 1000 memories in {storage_time:.2f} seconds")

    # Test retrieval performance
    start_time = time.time()

    for i in range(1000):
        query = IMemoryInput(
            conversation_id=f"perf_test_{i}",
            memory_type=ConversationMemoryType.WORKING
        )
        memories = memory_manager.retrieve(query)
        assert len(memories) == 1

    retrieval_time = time.time() - start_time
    print(f"Retrieved 1000 memories in {retrieval_time:.2f} seconds")
