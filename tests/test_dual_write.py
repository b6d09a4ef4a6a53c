"""Two stores side by side: what is acknowledged is in both, in order and once, whichever of them is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from legacy_stores import ListStore
from memory_contract import Backend

from contract_engine.memory.migration import EnhancedSessionStore

pytest_plugins = ("memory_fixtures",)


def say(number: int) -> dict[str, Any]:
    return {"role": "user", "content": f"message {number}"}


def contents(messages: list[dict[str, Any]]) -> list[str]:
    return [one["content"] for one in messages]


def talk(*numbers: int) -> list[str]:
    return [f"message {number}" for number in numbers]


@pytest.fixture
def legacy() -> ListStore:
    return ListStore()


@pytest.fixture
def store(blocking: Backend, legacy: ListStore) -> Iterator[EnhancedSessionStore]:
    with EnhancedSessionStore(blocking.open(), legacy) as found:
        yield found


def test_both_stores_get_every_message_in_order(store: EnhancedSessionStore, legacy: ListStore) -> None:
    for number in range(20):
        assert store.add_chat_message("s", say(number)) is True
    assert contents(store.get_chat_history("s")) == talk(*range(20))
    assert store.settle()
    assert legacy.contents("s") == talk(*range(20))
    assert contents(store.memory_manager.session_store.get_chat_history("s")) == talk(*range(20))
    assert store.backlog() == (0, 0, 0, 0, None)
