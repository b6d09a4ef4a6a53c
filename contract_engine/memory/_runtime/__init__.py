"""What performs effects: the only place that touches Redis clients and database engines."""

from contract_engine.memory._runtime.background import AsyncBackground, Background
from contract_engine.memory._runtime.legacy_calls import await_legacy
from contract_engine.memory._runtime.relay_worker import AsyncRelayWorker, RelayWorker
from contract_engine.memory._runtime.runner import AsyncRuntime, Runtime, breaker_for, database_breaker_for

__all__ = [
    "AsyncBackground",
    "AsyncRelayWorker",
    "AsyncRuntime",
    "Background",
    "RelayWorker",
    "Runtime",
    "await_legacy",
    "breaker_for",
    "database_breaker_for",
]
