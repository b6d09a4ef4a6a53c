"""Working-memory managers: what an agent keeps of a conversation, in memory, in Redis or in a database."""
