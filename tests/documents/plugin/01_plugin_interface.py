# Document: Memory Manager Plugin Specification
# Section: 2. `plugin_interface.py`

from typing import Optional, Dict, Any
import redis
import json
from datetime import datetime, timedelta

class MemoryManager:
    """Manages conversation memory using Redis"""

    def __init__(self, redis_url: str = "redis://localhost:6379"):
        """Initialize connection to Redis"""
        # Connect to Redis
        # Handle connection errors gracefully
        pass

    def store_memory(self, conversation_id: str, memory_data: Dict[str, Any]) -> bool:
        """
        Store conversation memory with 24-hour expiration

        Args:
            conversation_id: Unique identifier for the conversation
            memory_data: Dictionary containing conversation context

        Returns:
            bool: True if stored successfully
        """
        # Store as JSON in Redis
        # Set expiration to 24 hours
        # Return success/failure
        pass

    def retrieve_memory(self, conversation_id: str) -> Optional[Dict[str, Any]]:
        """
        Retrieve conversation memory

        Args:
            conversation_id: Unique identifier for the conversation

        Returns:
            Dictionary with memory data or None if not found
        """
        # Get from Redis
        # Parse JSON
        # Handle not found case
        pass

    def extend_memory_ttl(self, conversation_id: str, hours: int = 24) -> bool:
        """
        Extend the expiration time of a conversation

        Args:
            conversation_id: Unique identifier for the conversation
            hours: Number of hours to extend

        Returns:
            bool: True if extended successfully
        """
        # Check if key exists
        # Extend TTL
        # Return success/failure
        pass

    def clear_memory(self, conversation_id: str) -> bool:
        """
        Clear a specific conversation from memory

        Args:
            conversation_id: Unique identifier for the conversation

        Returns:
            bool: True if cleared successfully
        """
        # Delete from Redis
        # Return success/failure
        pass
