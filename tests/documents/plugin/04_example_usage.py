# Document: Memory Manager Plugin Specification
# Section: Example Usage

# Initialize the manager
manager = MemoryManager("redis://localhost:6379")

# Store conversation context
context = {
    "user_request": "Build an auth system",
    "current_task": "Design database schema",
    "completed_steps": ["research_providers", "select_oauth2"],
    "timestamp": "2025-07-02T10:30:00"
}

success = manager.store_memory("conv-12345", context)

# Later, retrieve it
memory = manager.retrieve_memory("conv-12345")
if memory:
    print(f"Resuming from: {memory['current_task']}")
