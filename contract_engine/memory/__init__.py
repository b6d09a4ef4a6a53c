"""Session memory for LLM orchestrators."""
