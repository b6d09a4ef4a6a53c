"""The log, and the context object beside it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from memory_contract import Backend, logged, row_counts, rows_with, same, say, talk
from test_memory_serializer import EXACT

from contract_engine.memory import (
    AsyncPostgresSessionStore,
    ConfigurationError,
    InvalidInputError,
    MessageConflictError,
    PostgresSessionStore,
    Receipt,
    SwisperContext,
)

pytest_plugins = ("memory_fixtures",)


@pytest.fixture
def log(durable: Backend) -> PostgresSessionStore:
    """A log that stands alone."""
    return durable.open_log()


def test_messages_are_rows_in_order(log: PostgresSessionStore, durable: Backend) -> None:
    assert log.get_chat_history("s") == []
    for message in talk(4):
        assert log.add_chat_message("s", message) is True
    assert log.get_chat_history("s") == talk(4)
    assert logged(durable.database_url or "", durable.tenant, "s") == list(enumerate(talk(4), start=1))
    assert log.get_chat_history("t") == []


@pytest.mark.parametrize(("limit", "expected"), [(None, 4), (0, 0), (1, 1), (4, 4), (9, 4), (2**63, 4), (10**30, 4)])
def test_a_limit_gives_the_newest(log: PostgresSessionStore, limit: int | None, expected: int) -> None:
    for message in talk(4):
        log.add_chat_message("s", message)
    assert log.get_chat_history("s", limit) == talk(4)[4 - expected :]


@pytest.mark.parametrize("limit", [-1, 1.0, "1", True], ids=repr)
def test_other_limits_are_refused(log: PostgresSessionStore, limit: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        log.get_chat_history("s", limit)
    assert caught.value.field == "limit"


def test_receipts(log: PostgresSessionStore) -> None:
    assert log.append("s", say(1), message_id="a") == Receipt(1, "a", True, False)
    assert log.append("s", say(2)).seq == 2
    assert log.append("s", say(1), message_id="a") == Receipt(1, "a", True, False)
    with pytest.raises(MessageConflictError):
        log.append("s", say(7), message_id="a")
    assert log.get_chat_history("s") == talk(2)
    assert log.append("s", say(3)).seq == 3, "a refused message leaves no hole"


@pytest.mark.parametrize("context", EXACT.values(), ids=EXACT)
def test_context_objects_come_back_equal(log: PostgresSessionStore, context: dict[str, Any]) -> None:
    assert log.get_session_context_atomic("s") is None
    assert log.save_session_context_atomic("s", context) is True
    assert same(log.get_session_context_atomic("s"), context)
    assert log.save_session_context_atomic("s", {"other": 1}) is True
    assert log.get_session_context_atomic("s") == {"other": 1}, "replaced, not merged"
    assert log.get_session_context_atomic("t") is None


def test_a_swisper_context_is_taken_too(log: PostgresSessionStore, durable: Backend) -> None:
    context = SwisperContext(session_id="s", current_state="search")
    log.save_session_context_atomic("s", context)
    assert log.get_session_context_atomic("s") == context.to_dict()
    assert durable.open().load_context("s") == context


def test_messages_and_context_object_do_not_touch_each_other(log: PostgresSessionStore) -> None:
    log.add_chat_message("s", say(1))
    log.save_session_context_atomic("s", {"a": 1})
    log.add_chat_message("s", say(2))
    assert log.get_chat_history("s") == talk(2)
    assert log.get_session_context_atomic("s") == {"a": 1}


@pytest.mark.parametrize("context", [None, 7, "text", [], {"a": {1}}, {1: 2}], ids=repr)
def test_other_context_objects_are_refused(log: PostgresSessionStore, durable: Backend, context: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        log.save_session_context_atomic("s", context)
    assert caught.value.field.startswith("context")
    assert not any(row_counts(durable.database_url or "", durable.tenant).values())


def test_an_object_of_the_log_that_is_no_swisper_context_is_readable_by_the_manager(durable: Backend) -> None:
    """The log takes any dict; the manager must then say what is wrong and not fail on its own data."""
    manager = durable.open()
    manager.session_store.save_session_context_atomic("s", {"session_id": "s", "anything": 1})
    found = manager.load_context("s")
    assert found is not None
    assert found.anything == 1


def test_clearing(log: PostgresSessionStore, durable: Backend) -> None:
    canary = f"canary{durable.tenant}"
    log.append("s", {"content": canary}, message_id=canary)
    log.save_session_context_atomic("s", {"note": canary})
    log.add_chat_message("t", say(1))
    assert rows_with(durable.database_url or "", canary)
    assert log.clear_session("s") is True
    assert log.clear_session("s") is False
    assert rows_with(durable.database_url or "", canary) == []
    assert log.get_chat_history("s") == []
    assert log.get_session_context_atomic("s") is None
    assert log.get_chat_history("t") == [say(1)]
    assert log.append("s", say(1)).seq == 1


def test_sessions_of_a_tenant_most_recently_used_first(log: PostgresSessionStore, durable: Backend) -> None:
    assert log.get_all_sessions() == []
    for session_id in ("a", "b", "c"):
        log.add_chat_message(session_id, say(1))
    log.add_chat_message("a", say(2))
    found = log.get_all_sessions()
    assert [entry["session_id"] for entry in found] == ["a", "c", "b"]
    assert [entry["message_count"] for entry in found] == [2, 1, 1]
    for entry in found:
        assert entry["created_at"] <= entry["updated_at"]
        assert datetime.now(UTC) - entry["updated_at"] < timedelta(minutes=1)
    assert [entry["session_id"] for entry in log.get_all_sessions(limit=2)] == ["a", "c"]
    assert durable.open_log(tenant=f"{durable.tenant}x").get_all_sessions() == []


@pytest.mark.parametrize("limit", [-1, 1.5, "3", None, True], ids=repr)
def test_limits_of_a_list_of_sessions_are_checked(log: PostgresSessionStore, limit: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        log.get_all_sessions(limit)
    assert caught.value.field == "limit"


def test_a_manager_notices_what_was_logged_past_it(durable: Backend) -> None:
    manager = durable.open()
    manager.add_message("s", say(1))
    manager.session_store.append("s", say(2))
    assert manager.append("s", say(3)).seq == 3
    assert manager.get_context("s")["buffer_messages"] == talk(3)
    assert manager.session_store.get_chat_history("s") == talk(3)


def test_the_log_keeps_what_was_folded(durable: Backend) -> None:
    manager = durable.open(max_buffer_messages=3)
    for message in talk(20):
        manager.add_message("s", message)
    manager.wait_for_folds()
    assert manager.get_context("s")["watermark"] >= 17
    assert manager.session_store.get_chat_history("s") == talk(20)


def test_without_a_database_it_says_so(ephemeral: Backend) -> None:
    store = ephemeral.open().session_store
    for call in (
        lambda: store.append("s", say(1)),
        lambda: store.add_chat_message("s", say(1)),
        lambda: store.get_chat_history("s"),
        lambda: store.save_session_context_atomic("s", {}),
        lambda: store.get_session_context_atomic("s"),
        lambda: store.clear_session("s"),
        store.get_all_sessions,
    ):
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert caught.value.field == "database_url"


def test_a_with_block_closes(durable: Backend) -> None:
    with PostgresSessionStore(config=durable.config()) as store:
        assert store.add_chat_message("s", say(1))


async def test_an_async_with_block_closes(redis_url: str, database_url: str, tenant: str) -> None:
    config = Backend("async", "durable", redis_url, database_url, tenant).config()
    async with AsyncPostgresSessionStore(config=config) as store:
        assert await store.add_chat_message("s", say(1))
        assert await store.get_chat_history("s") == [say(1)]
