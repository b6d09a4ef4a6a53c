"""What performs effects: the only place that touches Redis clients and database engines."""

from contract_engine.memory._runtime.background import AsyncBackground, Background
from contract_engine.memory._runtime.runner import AsyncRuntime, Runtime

__all__ = ["AsyncBackground", "AsyncRuntime", "Background", "Runtime"]
