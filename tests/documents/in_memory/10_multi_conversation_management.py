# Document: In-Memory Manager
# Section: Advanced Patterns / Multi-Conversation Management

class ConversationManager:
    """Manage multiple conversations with in-memory storage."""

    def __init__(self):
        self.memory_manager = InMemoryManager(ttl=3600)
        self.active_conversations = {}

    async def process_message(
        self,
        user_id: str,
        conversation_id: str,
        message: str
    ) -> str:
        """Process message with conversation-specific memory."""

        # Create agent for this conversation if not exists
        if conversation_id not in self.active_conversations:
            llm_client = OpenAIClient(ILLMConfig(model="gpt-3.5-turbo"))
            agent = WorkingMemoryAgent(
                llm_client=llm_client,
                memory_manager=self.memory_manager
            )
            self.active_conversations[conversation_id] = agent

        # Get agent and process
        agent = self.active_conversations[conversation_id]
        response = await agent.process(IAgentInput(
            message=message,
            metadata={"conversation_id": conversation_id, "user_id": user_id}
        ))

        return response

# Usage
async def multi_conversation_example():
    manager = ConversationManager()

    # Conversation 1
    await manager.process_message("user_1", "conv_1", "I'm Alice")
    await manager.process_message("user_1", "conv_1", "What's my name?")

    # Conversation 2 (separate context)
    await manager.process_message("user_2", "conv_2", "I'm Bob")
    await manager.process_message("user_2", "conv_2", "What's my name?")
