"""Conversations as JSON in Redis for a day: ``plugin_interface.MemoryManager``."""
