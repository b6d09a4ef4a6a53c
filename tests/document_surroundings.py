"""What the blocks of the documents assume to be there: names that an earlier block, or the text, has introduced."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Dict, List  # noqa: UP035  # the names that the documents use

import pytest
import redis
from local_models import ILLMConfig, OpenAIClient

from contract_engine.plugins.memory_manager.plugin_interface import MemoryManager
from contract_engine.working_memory import (
    ConversationMemoryType,
    IAgentInput,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
    RedisWorkingMemoryManager,
    WorkingMemoryAgent,
)

__all__ = [
    "Any",
    "ConversationMemoryType",
    "Dict",
    "IAgentInput",
    "ILLMConfig",
    "IMemoryInput",
    "IWorkingMemory",
    "InMemoryManager",
    "List",
    "MemoryManager",
    "OpenAIClient",
    "RedisWorkingMemoryManager",
    "WorkingMemoryAgent",
    "asyncio",
    "os",
    "pytest",
    "redis",
    "time",
]
