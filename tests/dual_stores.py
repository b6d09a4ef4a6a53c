"""Adapters of both colours through one interface, for the tests of the dual write."""

from __future__ import annotations

from typing import Any, cast

import psycopg
from memory_contract import SYNC, Backend, BlockingView

from contract_engine.memory import MemoryConfig, MemoryManager
from contract_engine.memory.intake import Intake
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.migration import AsyncEnhancedSessionStore, EnhancedSessionStore, RelaySettings

HASTY = RelaySettings(lease_seconds=2.0, first_delay_seconds=0.01, max_delay_seconds=0.1, poll_seconds=0.05)
"""For tests of what goes wrong: what failed is tried again soon."""


def say(number: int) -> dict[str, Any]:
    return {"role": "user", "content": f"message {number}"}


def talk(*numbers: int) -> list[str]:
    return [f"message {number}" for number in numbers]


def contents(messages: list[dict[str, Any]]) -> list[str]:
    return [one["content"] for one in messages]


def log_alone(store: EnhancedSessionStore, session_id: str, message: dict[str, Any]) -> None:
    """Log a message for both stores as a process does that dies before it tells Redis."""
    manager = store.memory_manager
    one = Intake(manager.token_counter, max_message_bytes=2**20).message(message, None)
    manager._runtime.run(LogFlows(manager.config).append(session_id, [one._replace(is_relayed=True)]))


def plain_url(config: MemoryConfig) -> str:
    """Return the address of the database as psycopg takes it."""
    assert config.database_url is not None
    return config.database_url.replace("+psycopg", "")


def end_leases(store: EnhancedSessionStore) -> None:
    """Have the leases of relays that met a fault run out, as they would by themselves after a while."""
    config = store.memory_manager.config
    with psycopg.connect(plain_url(config)) as connection:
        connection.execute("UPDATE memory_relays SET leased_until = now() WHERE tenant = %s", (config.tenant,))


def open_store(backend: Backend, legacy: Any, **settings: Any) -> EnhancedSessionStore:
    """Open one more adapter, with a manager of its own: to the servers it is another process."""
    return adapter(backend, backend.open(), legacy, **settings)


def adapter(backend: Backend, manager: MemoryManager, legacy: Any, **settings: Any) -> EnhancedSessionStore:
    """Make an adapter of a manager that ``backend`` has opened."""
    given: dict[str, Any] = {"relay": HASTY, "is_relaying": False} | settings
    if backend.colour == SYNC:
        return EnhancedSessionStore(manager, legacy, **given)
    target: Any = manager
    assert backend.loop is not None
    store = AsyncEnhancedSessionStore(target._target, legacy, **given)
    return cast("EnhancedSessionStore", BlockingView(store, backend.loop))
