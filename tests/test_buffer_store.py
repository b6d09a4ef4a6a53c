"""The buffer: alone a bounded list, inside a manager the end of a session."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from memory_contract import Backend, redis_values, say, talk
from tool_traffic import said, tool_calls, tool_result

from contract_engine.memory import BufferStore, ConfigurationError, InvalidInputError, MemoryManager, TokenCounter

pytest_plugins = ("memory_fixtures",)

INFO_KEYS = {"message_count", "total_tokens", "last_updated", "ttl_remaining", "max_messages", "max_tokens"}


@pytest.fixture
def buffer(ephemeral: Backend) -> BufferStore:
    """A buffer that stands alone."""
    return ephemeral.open_buffer()


def test_messages_come_back_oldest_first(buffer: BufferStore) -> None:
    assert buffer.get_messages("s") == []
    for message in talk(5):
        assert buffer.add_message("s", message) is True
    assert buffer.get_messages("s") == talk(5)
    assert buffer.get_messages("t") == []


@pytest.mark.parametrize(("limit", "expected"), [(None, 5), (0, 0), (1, 1), (4, 4), (5, 5), (6, 5), (10**30, 5)])
def test_a_limit_gives_the_newest(buffer: BufferStore, limit: int | None, expected: int) -> None:
    for message in talk(5):
        buffer.add_message("s", message)
    assert buffer.get_messages("s", limit) == talk(5)[5 - expected :]
    assert buffer.get_messages("s", limit=limit) == talk(5)[5 - expected :]


def test_a_limit_cuts_no_exchange(buffer: BufferStore) -> None:
    exchange = [tool_calls("a", "b"), tool_result("a"), tool_result("b")]
    for message in [said(), *exchange, said("assistant")]:
        buffer.add_message("s", message)
    assert buffer.get_messages("s", 4) == [*exchange, said("assistant")]
    assert buffer.get_messages("s", 3) == buffer.get_messages("s", 1) == [said("assistant")]


@pytest.mark.parametrize("limit", [-1, 1.0, "1", True, [1]], ids=repr)
def test_other_limits_are_refused(buffer: BufferStore, limit: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        buffer.get_messages("s", limit)
    assert caught.value.field == "limit"


def test_at_the_message_cap_the_oldest_go(buffer: BufferStore) -> None:
    for number in range(1, 101):
        assert buffer.add_message("s", say(number))
        assert len(buffer.get_messages("s")) == min(number, 30)
    assert buffer.get_messages("s") == talk(30, start=71)


def test_at_the_token_cap_the_oldest_go(ephemeral: Backend) -> None:
    buffer = ephemeral.open_buffer(max_messages=10, max_tokens=100)
    counter = TokenCounter()
    said = talk(12, words=20)
    for number, message in enumerate(said, start=1):
        buffer.add_message("s", message)
        kept = buffer.get_messages("s")
        assert kept == said[number - len(kept) : number]
        tokens = sum(map(counter.count_message_tokens, kept))
        assert buffer.get_buffer_info("s")["total_tokens"] == tokens <= 100
        # No message went that could have stayed.
        assert len(kept) == number or tokens + counter.count_message_tokens(said[number - len(kept) - 1]) > 100


def test_a_message_larger_than_the_cap_stands_alone(ephemeral: Backend) -> None:
    buffer = ephemeral.open_buffer(max_tokens=100)
    for message in (say(1), say(2, words=300), say(3, words=300), say(4)):
        assert buffer.add_message("s", message)
    assert buffer.get_messages("s") == [say(4)]
    buffer.add_message("s", say(5, words=300))
    assert buffer.get_messages("s") == [say(5, words=300)]


def test_facts_about_the_buffer(buffer: BufferStore) -> None:
    empty = buffer.get_buffer_info("s")
    assert set(empty) == INFO_KEYS
    assert (empty["message_count"], empty["total_tokens"], empty["last_updated"]) == (0, 0, None)
    assert empty["ttl_remaining"] is None
    assert (empty["max_messages"], empty["max_tokens"]) == (30, 4000)
    for message in talk(2):
        buffer.add_message("s", message)
    info = buffer.get_buffer_info("s")
    assert set(info) == INFO_KEYS
    assert (info["message_count"], info["max_messages"], info["max_tokens"]) == (2, 30, 4000)
    assert info["total_tokens"] == sum(map(TokenCounter().count_message_tokens, talk(2)))
    assert 6 * 3600 - 60 < info["ttl_remaining"] <= 6 * 3600
    assert info["last_updated"] > 1.7e9


def test_when_a_summary_is_due(buffer: BufferStore) -> None:
    assert buffer.should_trigger_summary("s") is False
    buffer.add_message("s", say(1))
    tokens = buffer.get_buffer_info("s")["total_tokens"]
    assert buffer.should_trigger_summary("s", tokens) is True
    assert buffer.should_trigger_summary("s", threshold=tokens + 1) is False
    buffer.add_message("s", say(2, words=3000))
    assert buffer.should_trigger_summary("s") is True


def test_clearing(buffer: BufferStore, ephemeral: Backend, raw: redis.Redis) -> None:
    buffer.add_message("s", say(1))
    buffer.add_message("t", say(2))
    assert buffer.clear_buffer("s") is True
    assert buffer.get_messages("s") == []
    assert buffer.get_messages("t") == [say(2)]
    assert list(redis_values(raw, f"*{ephemeral.tenant}/*")) == [ephemeral.keys("t").buffer.encode()]
    assert buffer.clear_buffer("s") is True
    buffer.add_message("s", say(3))
    assert buffer.get_messages("s") == [say(3)]


def test_the_caps_are_checked() -> None:
    for wrong in ({"max_messages": 0}, {"max_tokens": -1}, {"max_messages": True}, {"max_tokens": 1.5}):
        with pytest.raises(ConfigurationError):
            BufferStore(**wrong)


def test_two_buffers_are_two_views_of_one(ephemeral: Backend) -> None:
    one, other = ephemeral.open_buffer(), ephemeral.open_buffer()
    one.add_message("s", say(1))
    other.add_message("s", say(2))
    assert one.get_messages("s") == other.get_messages("s") == talk(2)


# -- inside a manager


def test_the_buffer_of_a_manager_is_the_end_of_its_session(manager: MemoryManager, backend: Backend) -> None:
    buffer = manager.buffer_store
    assert buffer is manager.buffer_store or backend.colour == "async"
    for number in range(1, 41):
        assert buffer.add_message("s", say(number))
    manager.wait_for_folds()
    context = manager.get_context("s")
    assert context["last_seq"] == 40
    assert buffer.get_messages("s") == context["buffer_messages"] == talk(40)[context["watermark"] :]
    assert context["watermark"] > 0, "nothing is dropped: it was folded"
    assert context["current_summary"]
    assert buffer.get_messages("s", 2) == talk(2, start=39)
    info = buffer.get_buffer_info("s")
    assert set(info) == INFO_KEYS
    assert info["message_count"] == context["message_count"]
    assert buffer.should_trigger_summary("s", info["total_tokens"]) is True
    assert buffer.should_trigger_summary("s", info["total_tokens"] + 1) is False


def test_clearing_the_buffer_of_a_durable_manager_loses_nothing(durable: Backend) -> None:
    manager = durable.open()
    manager.add_messages("s", talk(5))
    assert manager.buffer_store.clear_buffer("s") is True
    assert manager.buffer_store.get_messages("s") == talk(5)
    manager.buffer_store.clear_buffer("s")
    assert manager.append("s", say(6)).seq == 6
    assert manager.get_context("s")["buffer_messages"] == talk(6)


def test_clearing_the_buffer_of_an_ephemeral_manager_leaves_the_summary(ephemeral: Backend) -> None:
    manager = ephemeral.open()
    manager.set_session_config("s", {"max_buffer_messages": 4})
    for message in talk(10):
        manager.add_message("s", message)
    manager.wait_for_folds()
    summary = manager.get_context("s")["current_summary"]
    assert summary
    assert manager.buffer_store.clear_buffer("s") is True
    context = manager.get_context("s")
    assert context["buffer_messages"] == []
    assert context["current_summary"] == summary
    manager.add_message("s", say(11))
    context = manager.get_context("s")
    assert context["buffer_messages"] == [say(11)]
    assert context["current_summary"] == summary
