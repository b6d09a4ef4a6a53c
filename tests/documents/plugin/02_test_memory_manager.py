# Document: Memory Manager Plugin Specification
# Section: 3. `test_memory_manager.py`

import pytest
from .plugin_interface import MemoryManager

def test_store_and_retrieve():
    """Test basic store and retrieve functionality"""
    # Create manager instance
    # Store test data
    # Retrieve and verify
    # Clean up
    pass

def test_memory_expiration():
    """Test that TTL extension works"""
    # Store data
    # Extend TTL
    # Verify extension worked
    pass

def test_clear_memory():
    """Test memory clearing"""
    # Store data
    # Clear it
    # Verify it's gone
    pass
