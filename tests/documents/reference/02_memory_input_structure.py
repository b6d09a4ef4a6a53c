# Document: Memory Reference Implementations
# Section: Interface Compliance / Memory Input Structure

from arshai.core.interfaces.imemorymanager import IMemoryInput, IWorkingMemory
from arshai.memory.memory_types import ConversationMemoryType

# Creating memory input for storage
memory_input = IMemoryInput(
    conversation_id="user_123",
    memory_type=ConversationMemoryType.WORKING,
    data=[IWorkingMemory(working_memory="User prefers technical details")],
    metadata={"user_type": "developer", "session_id": "abc123"}
)
