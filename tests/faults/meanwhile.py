"""Something that others do between two effects of an operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from crash_matrix import Interposition
from dual_stores import plain_url

from contract_engine.memory.migration import EnhancedSessionStore


class Meanwhile(Interposition):
    """Has something happen once, before an effect; ``is_met`` tells whether it came to that."""

    def __init__(self, store: EnhancedSessionStore, number: int, happens: Callable[[], object]) -> None:
        self._number, self._happens = number, happens
        super().__init__(store.memory_manager)

    def admit(self, effect: Any, server: str) -> str | None:
        self.effects.append(effect)
        if len(self.effects) == self._number:
            self._happens()
        return None

    @property
    def is_met(self) -> bool:
        return len(self.effects) >= self._number


def end_leases(store: EnhancedSessionStore) -> None:
    """Have every lease of a tenant be over, and what waits be due."""
    config = store.memory_manager.config
    with psycopg.connect(plain_url(config)) as connection:
        connection.execute(
            "UPDATE memory_relays SET leased_until = now(), due_at = now() WHERE tenant = %s AND due_at IS NOT NULL",
            (config.tenant,),
        )
