"""Fixtures of the dual write: a legacy store that is a list, and an adapter beside it that relays when told to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dual_stores import open_store
from legacy_stores import ListStore
from memory_contract import Backend

from contract_engine.memory.migration import EnhancedSessionStore


@pytest.fixture
def legacy() -> ListStore:
    return ListStore()


@pytest.fixture
def store(blocking: Backend, legacy: ListStore) -> Iterator[EnhancedSessionStore]:
    with open_store(blocking, legacy) as found:
        yield found
