"""The facade: every public method, in both colours and both modes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import redis
from memory_contract import (
    Backend,
    assert_caps,
    assert_context,
    logged,
    redis_values,
    row_counts,
    rows_with,
    same,
    say,
    talk,
)
from test_keys import HOSTILE
from test_memory_serializer import EXACT

from contract_engine.memory import (
    AsyncMemoryManager,
    CircuitBreaker,
    ConfigurationError,
    InvalidInputError,
    MemoryManager,
    MessageConflictError,
    Receipt,
    SerializationError,
    SwisperContext,
    redis_circuit_breaker,
)

pytest_plugins = ("memory_fixtures",)

CONTEXT_KEYS = {
    "session_id",
    "buffer_messages",
    "current_summary",
    "pinned_messages",
    "pinned_tokens",
    "buffer_info",
    "total_tokens",
    "message_count",
    "summary_tokens",
    "summary_version",
    "watermark",
    "last_seq",
    "complete",
    "source",
    "degraded",
}
INFO_KEYS = {"message_count", "total_tokens", "last_updated", "ttl_remaining", "max_messages", "max_tokens"}


def nothing_of(backend: Backend, raw: redis.Redis) -> bool:
    """Whether this tenant has left nothing anywhere."""
    rows = row_counts(backend.database_url, backend.tenant) if backend.database_url else {}
    return not any(rows.values()) and not redis_values(raw, f"*{backend.tenant}/*")


# -- reading


def test_a_session_that_was_never_written_is_empty(manager: MemoryManager, backend: Backend, raw: redis.Redis) -> None:
    context = manager.get_context("s")
    assert set(context) == CONTEXT_KEYS
    assert set(context["buffer_info"]) == INFO_KEYS
    assert context["session_id"] == "s"
    assert (context["buffer_messages"], context["current_summary"]) == ([], None)
    assert (context["total_tokens"], context["message_count"], context["last_seq"]) == (0, 0, 0)
    assert context["degraded"] is False
    assert context["buffer_info"]["last_updated"] is None
    assert manager.load_context("s") is None
    assert nothing_of(backend, raw), "reading must not begin a session"


def test_the_context_holds_what_was_added(manager: MemoryManager) -> None:
    said = talk(3)
    for message in said:
        assert manager.add_message("s", message) is True
    context = manager.get_context("s")
    assert set(context) == CONTEXT_KEYS
    assert_context(context, said)
    assert (context["source"], context["degraded"], context["watermark"]) == ("redis", False, 0)
    assert context["total_tokens"] == sum(map(manager.token_counter.count_message_tokens, said))
    info = context["buffer_info"]
    assert set(info) == INFO_KEYS
    assert (info["max_messages"], info["max_tokens"], info["message_count"]) == (30, 4000, 3)
    assert 0 < info["ttl_remaining"] <= 6 * 3600
    assert info["last_updated"] > 1.7e9


def test_what_was_read_belongs_to_the_reader(manager: MemoryManager) -> None:
    manager.add_message("s", {"role": "user", "content": ["a"]})
    context = manager.get_context("s")
    context["buffer_messages"][0]["content"].append("b")
    context["buffer_messages"].clear()
    assert manager.get_context("s")["buffer_messages"] == [{"role": "user", "content": ["a"]}]


@pytest.mark.parametrize("message", EXACT.values(), ids=EXACT)
def test_messages_come_back_equal_from_either_store(
    durable: Backend, raw: redis.Redis, message: dict[str, Any]
) -> None:
    manager = durable.open()
    receipt = manager.append("s", message)
    assert (receipt.seq, receipt.durable, receipt.degraded) == (1, True, False)
    manager.add_message("s", message)
    cached = manager.get_context("s")
    assert cached["source"] == "redis" or cached["buffer_info"]["total_tokens"] > 4000
    raw.delete(*durable.keys("s"))
    from_log = manager.get_context("s")
    assert from_log["source"] == "postgres"
    for context in (cached, from_log, manager.get_context("s")):
        assert context["last_seq"] == 2
        assert all(same(found, message) for found in context["buffer_messages"])
        assert len(context["buffer_messages"]) == 2 - context["watermark"]
    assert same(manager.session_store.get_chat_history("s"), [message, message])


# -- writing


def test_receipts_count_from_one(manager: MemoryManager, backend: Backend) -> None:
    for number in (1, 2, 3):
        receipt = manager.append("s", say(number))
        assert isinstance(receipt, Receipt)
        assert (receipt.seq, receipt.durable, receipt.degraded) == (number, backend.is_durable, False)
        assert len(receipt.message_id) == 36
        assert receipt.message_id[14] == "7", "a UUID of version 7"
    assert manager.append("other", say(1)).seq == 1
    assert manager.append("s", say(4), message_id="mine") == Receipt(4, "mine", backend.is_durable, False)


def test_a_repeated_append_has_one_effect(manager: MemoryManager, backend: Backend) -> None:
    first = manager.append("s", say(1), message_id="a")
    second = manager.append("s", say(2), message_id="b")
    other = backend.open()
    for _ in range(3):
        assert manager.append("s", say(1), message_id="a") == first
        assert other.append("s", say(2), message_id="b") == second
    assert_context(manager.get_context("s"), talk(2))
    assert manager.append("s", say(3), message_id="c").seq == 3
    # The id belongs to its session.
    assert manager.append("t", say(9), message_id="a").seq == 1


def test_the_same_id_with_another_message_is_refused(manager: MemoryManager) -> None:
    manager.append("s", say(1), message_id="a")
    manager.append("s", say(2), message_id="b")
    for _ in range(2):
        with pytest.raises(MessageConflictError) as caught:
            manager.append("s", say(7), message_id="a")
        assert caught.value.field == "message_id"
        assert caught.value.message_id == "a"
        assert "0007" not in str(caught.value)
    with pytest.raises(MessageConflictError):
        manager.add_and_get_context("s", say(7), message_id="b")
    assert_context(manager.get_context("s"), talk(2))
    assert manager.append("s", say(3)).seq == 3


@pytest.mark.parametrize("message_id", ["{", "*", '","', "\\", "a,b", "😀", "x" * 256, "[1", "%s", "é"], ids=repr)
def test_any_printable_text_is_a_message_id(manager: MemoryManager, message_id: str) -> None:
    manager.append("s", say(1), message_id=message_id + "x" if len(message_id) < 256 else "other")
    receipt = manager.append("s", say(2), message_id=message_id)
    assert receipt.message_id == message_id
    assert manager.append("s", say(2), message_id=message_id) == receipt
    with pytest.raises(MessageConflictError):
        manager.append("s", say(3), message_id=message_id)
    assert_context(manager.get_context("s"), talk(2))


def test_a_retry_finds_what_was_folded_away_meanwhile(durable: Backend, raw: redis.Redis) -> None:
    manager = durable.open(max_buffer_messages=4)
    receipts = [manager.append("s", say(number), message_id=f"id{number}") for number in range(1, 11)]
    manager.wait_for_folds()
    assert manager.get_context("s")["watermark"] >= 1
    assert manager.append("s", say(1), message_id="id1") == receipts[0]
    with pytest.raises(MessageConflictError):
        manager.append("s", say(2), message_id="id1")
    assert manager.add_and_get_context("s", say(1), message_id="id1")["last_seq"] == 10
    raw.delete(*durable.keys("s"))
    assert manager.append("s", say(1), message_id="id1") == receipts[0]
    assert_context(manager.get_context("s"), talk(10))
    assert [seq for seq, _ in logged(durable.database_url or "", durable.tenant, "s")] == list(range(1, 11))


def test_a_batch_keeps_its_order(manager: MemoryManager, backend: Backend) -> None:
    manager.add_message("s", say(1))
    receipts = manager.add_messages("s", talk(5, start=2))
    assert [receipt.seq for receipt in receipts] == [2, 3, 4, 5, 6]
    assert len({receipt.message_id for receipt in receipts}) == 5
    assert {receipt.durable for receipt in receipts} == {backend.is_durable}
    assert manager.add_messages("s", []) == []
    assert [receipt.seq for receipt in manager.add_messages("s", (say(7),))] == [7]
    assert_context(manager.get_context("s"), talk(7))


@pytest.mark.parametrize("count", [31, 100, 700])
def test_batches_may_be_larger_than_a_buffer(manager: MemoryManager, count: int) -> None:
    manager.add_messages("s", talk(3))
    receipts = manager.add_messages("s", talk(count, start=4, words=20))
    assert [receipt.seq for receipt in receipts] == list(range(4, count + 4))
    said = talk(3) + talk(count, start=4, words=20)
    assert_context(manager.get_context("s"), said)
    assert manager.append("s", say(count + 4)).seq == count + 4
    assert_context(manager.get_context("s"), [*said, say(count + 4)])


def test_a_turn_returns_the_context_with_its_message(manager: MemoryManager) -> None:
    for number in range(1, 50):
        context = manager.add_and_get_context("s", say(number), message_id=f"id{number}")
        assert set(context) == CONTEXT_KEYS
        assert_context(context, talk(number))
        assert context["buffer_messages"][-1] == say(number)
    again = manager.add_and_get_context("s", say(49), message_id="id49")
    assert_context(again, talk(49))


# -- caps and folds


def test_no_context_ever_holds_more_messages_than_the_cap(manager: MemoryManager) -> None:
    for number in range(1, 101):
        assert manager.add_message("s", say(number))
        context = manager.get_context("s")
        assert_context(context, talk(number))
        assert context["message_count"] <= 30
    assert context["watermark"] >= 70
    assert context["summary_tokens"] <= manager.config.summary_budget(context["watermark"])


@pytest.mark.parametrize("readable", [True, False])
def test_summaries_for_people_keep_whole_phrases(backend: Backend, readable: bool) -> None:
    manager = backend.open(max_buffer_messages=4, readable_summaries=readable)
    sentence = "I think that we are going to need the keys for the 14th of May."
    for _ in range(6):
        manager.add_message("s", {"role": "user", "content": sentence})
    text = manager.get_context("s")["current_summary"]
    assert (sentence in text) is readable
    assert "14th" in text


def test_a_summary_may_grow_with_what_is_folded(backend: Backend) -> None:
    manager = backend.open(summary_tokens=60, max_summary_tokens=90)
    facts = [{"role": "user", "content": f"Door {n} opens with {n * 31}."} for n in range(1, 401)]
    tokens = {}
    for start in range(0, 400, 50):
        manager.add_messages("s", facts[start : start + 50])
        context = manager.get_context("s")
        tokens[context["watermark"]] = context["summary_tokens"]
        assert context["summary_tokens"] <= manager.config.summary_budget(context["watermark"])
    assert max(count for folded, count in tokens.items() if folded <= 100) <= 60
    assert 60 < max(tokens.values()) <= 90
    assert manager.summary_store.add_summary("s", "Door 900 stays open. " * 40)
    assert 60 < manager.get_context("s")["summary_tokens"] <= 90


def test_no_context_ever_holds_more_tokens_than_the_cap(manager: MemoryManager) -> None:
    said = []
    for number in range(1, 41):
        said.append(say(number, words=500))
        manager.add_message("s", said[-1])
        context = manager.get_context("s")
        assert_context(context, said)
        assert context["buffer_info"]["total_tokens"] <= 4000
    assert context["watermark"] >= 30


def test_a_message_larger_than_the_cap_stands_alone(manager: MemoryManager) -> None:
    said = talk(3)
    manager.add_messages("s", said)
    for number, words in ((4, 9000), (5, 9000), (6, 5)):
        said.append(say(number, words=words))
        context = manager.add_and_get_context("s", said[-1])
        assert_context(context, said)
        assert_context(manager.get_context("s"), said)
        if words > 4000:
            assert context["buffer_messages"] == [said[-1]]
            assert context["buffer_info"]["total_tokens"] > 4000
    assert context["buffer_messages"] == [say(6, words=5)]


def test_a_message_of_sixteen_megabytes_comes_back_word_for_word(backend: Backend, raw: redis.Redis) -> None:
    """Where it is allowed; by default a message has a megabyte, and a larger one is refused by name."""
    unit = "héllo wörld 😀 \x00\n"
    large = {"role": "user", "content": unit * (2**24 // len(unit.encode()))}
    with pytest.raises(InvalidInputError, match="message") as caught:
        backend.open().append("s", large)
    assert caught.value.field == "message"
    manager = backend.open(max_message_bytes=2**25, summary_trigger_tokens=10**7, max_buffer_tokens=10**8)
    assert manager.append("s", large).seq == 1
    other = backend.open(summary_trigger_tokens=10**7, max_buffer_tokens=10**8)
    reads = [(manager, "redis"), (other, "redis")]
    if backend.is_durable:
        reads += [(other, "postgres"), (manager, "redis")]
    for reader, source in reads:
        if source == "postgres":
            assert raw.delete(backend.keys("s").buffer) == 1
        context = reader.get_context("s")
        assert context["buffer_messages"] == [large]
        assert (context["source"], context["degraded"]) == (source, False)
    manager.append("s", say(2))
    assert manager.get_context("s")["buffer_messages"] == [large, say(2)]


def test_a_batch_of_messages_each_larger_than_the_cap(manager: MemoryManager) -> None:
    said = talk(4, words=5000)
    manager.add_messages("s", said)
    assert_context(manager.get_context("s"), said)


def test_a_fold_due_runs_in_the_background(manager: MemoryManager) -> None:
    manager.set_session_config("s", {"summary_trigger_tokens": 100})
    said = talk(10, words=5)
    for message in said:
        manager.add_message("s", message)
        manager.wait_for_folds()
    context = manager.get_context("s")
    assert_context(context, said)
    assert context["watermark"] > 0
    assert context["buffer_info"]["total_tokens"] < 100
    assert context["summary_version"] >= 1


def test_a_soft_fold_never_splits_a_call_from_its_results(manager: MemoryManager) -> None:
    manager.set_session_config("s", {"summary_trigger_tokens": 120})
    said: list[dict[str, Any]] = []
    for turn in range(8):
        call = {"id": f"c{turn}", "type": "function", "function": {"name": "look_up", "arguments": '{"a": "b"}'}}
        said += [
            say(turn, words=8),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{turn}", "content": "the result of it"},
            {"role": "assistant", "content": "It is done now."},
        ]
    for done, message in enumerate(said, start=1):
        manager.add_message("s", message)
        manager.wait_for_folds()
        context = manager.get_context("s")
        assert_context(context, said[:done])
        kept = context["buffer_messages"]
        asked = {call["id"] for item in kept for call in item.get("tool_calls", ())}
        assert all(item["tool_call_id"] in asked for item in kept if item["role"] == "tool")
    assert context["watermark"] > 0


# -- configuration of a session


def test_limits_of_a_session(manager: MemoryManager, backend: Backend) -> None:
    default = {"summary_trigger_tokens": 3000, "max_buffer_tokens": 4000, "max_buffer_messages": 30}
    assert manager.get_session_config("s") == default
    manager.set_session_config("s", {"summary_trigger_tokens": 2500, "max_buffer_tokens": 3500})
    expected = default | {"summary_trigger_tokens": 2500, "max_buffer_tokens": 3500}
    other = backend.open()
    for one in (manager, other):
        assert one.get_session_config("s") == expected
        assert one.get_session_config("t") == default
        assert one.get_memory_stats("s")["session_config"] == expected
        info = one.get_context("s")["buffer_info"]
        assert (info["max_tokens"], info["max_messages"]) == (3500, 30)
    other.set_session_config("s", MappingProxyType({"max_buffer_messages": 5}))
    assert manager.get_session_config("s") == expected | {"max_buffer_messages": 5}
    manager.set_session_config("s", {})
    assert other.get_session_config("s") == expected | {"max_buffer_messages": 5}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"max_messages": 3}, "max_messages"),
        ({"max_buffer_messages": 5, "unknown": 1}, "unknown"),
        ({"max_buffer_messages": 0}, "max_buffer_messages"),
        ({"max_buffer_messages": -3}, "max_buffer_messages"),
        ({"max_buffer_tokens": 1.5}, "max_buffer_tokens"),
        ({"max_buffer_tokens": True}, "max_buffer_tokens"),
        ({"max_buffer_tokens": "100"}, "max_buffer_tokens"),
        ({"max_buffer_tokens": 2**31}, "max_buffer_tokens"),
        ({"summary_trigger_tokens": None}, "summary_trigger_tokens"),
        ({"summary_trigger_tokens": 4001}, "summary_trigger_tokens"),
        ({"summary_trigger_tokens": 200, "max_buffer_tokens": 100}, "summary_trigger_tokens"),
        (None, "config"),
        ([("max_buffer_messages", 3)], "config"),
    ],
    ids=repr,
)
def test_wrong_limits_are_refused_and_nothing_is_written(
    manager: MemoryManager, backend: Backend, raw: redis.Redis, config: Any, field: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        manager.set_session_config("s", config)
    assert caught.value.field == field
    assert nothing_of(backend, raw)


def test_a_trigger_is_held_against_the_cap_of_its_session(manager: MemoryManager) -> None:
    manager.set_session_config("s", {"max_buffer_tokens": 10_000})
    manager.set_session_config("s", {"summary_trigger_tokens": 6000})
    assert manager.get_session_config("s")["summary_trigger_tokens"] == 6000
    manager.set_session_config("t", {"max_buffer_tokens": 1000})
    with pytest.raises(ConfigurationError) as caught:
        manager.set_session_config("t", {"summary_trigger_tokens": 2000})
    assert caught.value.field == "summary_trigger_tokens"
    assert manager.get_session_config("t")["summary_trigger_tokens"] == 1000


def test_lowered_caps_hold_for_the_next_context_of_every_process(manager: MemoryManager, backend: Backend) -> None:
    other = backend.open()
    said = talk(20)
    manager.add_messages("s", said)
    assert_context(other.get_context("s"), said)
    manager.set_session_config("s", {"max_buffer_messages": 4})
    for one in (other, manager):
        context = one.get_context("s")
        assert_context(context, said)
        assert context["message_count"] <= 4
    said.append(say(21))
    assert_context(other.add_and_get_context("s", say(21)), said)
    manager.set_session_config("s", {"max_buffer_tokens": 30})
    context = other.get_context("s")
    assert_context(context, said)
    assert context["buffer_info"]["total_tokens"] <= 30


def test_each_limit_is_obeyed_by_another_process(manager: MemoryManager, backend: Backend) -> None:
    other = backend.open()
    manager.set_session_config("messages", {"max_buffer_messages": 3})
    manager.set_session_config("tokens", {"max_buffer_tokens": 60})
    manager.set_session_config("trigger", {"summary_trigger_tokens": 60})
    for number in range(1, 13):
        for session_id in ("messages", "tokens", "trigger"):
            other.add_message(session_id, say(number))
            other.wait_for_folds()
            assert_context(other.get_context(session_id), talk(number))
    assert other.get_context("messages")["buffer_info"]["max_messages"] == 3
    assert other.get_context("messages")["watermark"] >= 9
    assert other.get_context("tokens")["buffer_info"]["total_tokens"] <= 60
    assert other.get_context("trigger")["watermark"] > 0
    assert other.get_context("trigger")["buffer_info"]["total_tokens"] < 60


def test_a_manager_has_defaults_of_its_own(backend: Backend) -> None:
    manager = backend.open(summary_trigger_tokens=50, max_buffer_tokens=100, max_buffer_messages=3)
    assert manager.get_session_config("s") == {
        "summary_trigger_tokens": 50,
        "max_buffer_tokens": 100,
        "max_buffer_messages": 3,
    }
    for number in range(1, 10):
        assert_context(manager.add_and_get_context("s", say(number)), talk(number))
    assert manager.get_context("s")["watermark"] >= 6


# -- the orchestrator's own object


def test_the_context_object_of_either_generation(manager: MemoryManager, backend: Backend) -> None:
    older = SwisperContext(session_id="s", current_state="search", preferences={"a": 1}, constraints=["b"])
    assert manager.save_context("s", older) is True
    assert backend.open().load_context("s") == older
    newer = {"session_id": "s", "preferences": ["a"], "constraints": {"b": 1}, "colour": "red\x00", "n": 2**64}
    assert manager.save_context("s", newer) is True
    found = backend.open().load_context("s")
    assert found is not None
    assert found.to_dict().items() >= newer.items()
    assert manager.load_context("t") is None


def test_the_context_object_is_no_message(manager: MemoryManager) -> None:
    manager.save_context("s", {"session_id": "s"})
    assert_context(manager.get_context("s"), [])
    manager.add_message("s", say(1))
    manager.save_context("s", {"session_id": "s", "current_state": "failed"})
    assert_context(manager.get_context("s"), talk(1))
    found = manager.load_context("s")
    assert found is not None
    assert found.current_state == "failed"


@pytest.mark.parametrize(
    ("context", "field"),
    [
        (None, "context"),
        ("text", "context"),
        ({}, "session_id"),
        ({"session_id": "s", "current_state": "unknown"}, "current_state"),
        ({"session_id": "s", "preferences": {"a": {1}}}, "context.preferences.a"),
        ({"session_id": "s", "score": math.nan}, "context.score"),
        ({"session_id": "s", "colour": "x" * 2**20}, "context"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_wrong_context_objects_are_refused_and_nothing_is_written(
    manager: MemoryManager, backend: Backend, raw: redis.Redis, context: Any, field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        manager.save_context("s", context)
    assert caught.value.field == field
    assert nothing_of(backend, raw)


# -- what is refused


@pytest.mark.parametrize("session_id", ["", "x" * 257, "a\nb", "\x00", "\ud800", None, 7, b"s"], ids=repr)
def test_bad_session_ids_are_refused_everywhere(
    manager: MemoryManager, backend: Backend, raw: redis.Redis, session_id: Any
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: manager.add_message(session_id, say(1)),
        lambda: manager.append(session_id, say(1)),
        lambda: manager.add_messages(session_id, talk(2)),
        lambda: manager.add_messages(session_id, []),
        lambda: manager.add_and_get_context(session_id, say(1)),
        lambda: manager.get_context(session_id),
        lambda: manager.save_context(session_id, {"session_id": "s"}),
        lambda: manager.load_context(session_id),
        lambda: manager.set_session_config(session_id, {"max_buffer_messages": 5}),
        lambda: manager.get_session_config(session_id),
        lambda: manager.get_memory_stats(session_id),
        lambda: manager.clear_session_memory(session_id),
        lambda: manager.buffer_store.add_message(session_id, say(1)),
        lambda: manager.buffer_store.get_messages(session_id),
        lambda: manager.buffer_store.get_buffer_info(session_id),
        lambda: manager.buffer_store.should_trigger_summary(session_id),
        lambda: manager.buffer_store.clear_buffer(session_id),
        lambda: manager.summary_store.add_summary(session_id, "text"),
        lambda: manager.summary_store.get_current_summary(session_id),
        lambda: manager.summary_store.get_summary_history(session_id),
        lambda: manager.summary_store.get_summary_stats(session_id),
        lambda: manager.summary_store.clear_summaries(session_id),
        lambda: manager.session_store.append(session_id, say(1)),
        lambda: manager.session_store.add_chat_message(session_id, say(1)),
        lambda: manager.session_store.get_chat_history(session_id),
        lambda: manager.session_store.save_session_context_atomic(session_id, {}),
        lambda: manager.session_store.get_session_context_atomic(session_id),
        lambda: manager.session_store.clear_session(session_id),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert caught.value.field == "session_id"
    assert nothing_of(backend, raw)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (None, "message"),
        ("text", "message"),
        ([], "message"),
        ({"content": {"a": [b"x"]}}, "message.content.a[0]"),
        ({"content": math.nan}, "message.content"),
        ({7: "x"}, "message.7"),
        ({"content": "x" * 2**20}, "message"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_messages_are_refused_and_nothing_is_written(
    manager: MemoryManager, backend: Backend, raw: redis.Redis, message: Any, field: str
) -> None:
    for call in (manager.add_message, manager.append, manager.add_and_get_context, manager.buffer_store.add_message):
        with pytest.raises(InvalidInputError) as caught:
            call("s", message)
        assert caught.value.field == field
    with pytest.raises(InvalidInputError) as caught:
        manager.add_messages("s", [say(1), message, say(2)])
    assert caught.value.field == field.replace("message", "messages[1]", 1)
    assert nothing_of(backend, raw)


def test_a_batch_refuses_with_the_same_class_as_one_message(manager: MemoryManager) -> None:
    with pytest.raises(SerializationError):
        manager.append("s", {"content": math.nan})
    with pytest.raises(SerializationError):
        manager.add_messages("s", [{"content": math.nan}])


@pytest.mark.parametrize(
    "messages", [None, "text", b"x", {"role": "user"}, 7, iter([])], ids=lambda value: type(value).__name__
)
def test_a_batch_is_a_list(manager: MemoryManager, messages: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        manager.add_messages("s", messages)
    assert caught.value.field == "messages"


def test_a_batch_has_an_end(manager: MemoryManager, backend: Backend, raw: redis.Redis) -> None:
    with pytest.raises(InvalidInputError) as caught:
        manager.add_messages("s", [{}] * 10_001)
    assert caught.value.field == "messages"
    assert nothing_of(backend, raw)


@pytest.mark.parametrize("message_id", ["", "x" * 257, "a\nb", "\ud800", 7, b"x"], ids=repr)
def test_bad_message_ids_are_refused(
    manager: MemoryManager, backend: Backend, raw: redis.Redis, message_id: Any
) -> None:
    for call in (manager.append, manager.add_and_get_context):
        with pytest.raises(InvalidInputError) as caught:
            call("s", say(1), message_id=message_id)
        assert caught.value.field == "message_id"
    assert nothing_of(backend, raw)


# -- isolation and erasure


def test_hostile_ids_are_sessions_of_their_own(manager: MemoryManager) -> None:
    for number, session_id in enumerate(HOSTILE):
        manager.add_messages(session_id, [say(number), say(number, role="assistant")])
        manager.save_context(session_id, {"session_id": session_id, "number": number})
        manager.summary_store.add_summary(session_id, f"summary {number}")
    for number, session_id in enumerate(HOSTILE):
        context = manager.get_context(session_id)
        assert context["buffer_messages"] == [say(number), say(number, role="assistant")]
        assert context["current_summary"] == f"summary {number}"
        assert context["session_id"] == session_id
        found = manager.load_context(session_id)
        assert found is not None
        assert found.number == number
    assert manager.clear_session_memory("*")
    assert manager.clear_session_memory("%7B")
    for number, session_id in enumerate(HOSTILE):
        expected = [] if session_id in ("*", "%7B") else [say(number), say(number, role="assistant")]
        assert manager.get_context(session_id)["buffer_messages"] == expected


def test_tenants_do_not_see_each_other(backend: Backend) -> None:
    one, other = backend.open(), backend.open(tenant=f"{backend.tenant}x")
    third = backend.open(key_prefix="elsewhere") if not backend.is_durable else one
    for manager, text in ((one, "one"), (other, "other")):
        manager.append("s", {"role": "user", "content": text}, message_id="same")
        manager.save_context("s", {"session_id": "s", "whose": text})
        manager.set_session_config("s", {"max_buffer_messages": len(text)})
        manager.summary_store.add_summary("s", f"summary of {text}")
    for manager, text in ((one, "one"), (other, "other")):
        context = manager.get_context("s")
        assert context["buffer_messages"] == [{"role": "user", "content": text}]
        assert context["current_summary"] == f"summary of {text}"
        assert manager.get_session_config("s")["max_buffer_messages"] == len(text)
        assert manager.load_context("s").whose == text  # type: ignore[union-attr]  # it was saved
    assert one.clear_session_memory("s")
    assert other.get_context("s")["last_seq"] == 1
    assert third.get_context("s")["last_seq"] == 0


def test_clearing_leaves_no_byte(manager: MemoryManager, backend: Backend, raw: redis.Redis) -> None:
    canary = f"canary{backend.tenant}"
    manager.set_session_config("s", {"max_buffer_messages": 4})
    for number in range(12):
        manager.append("s", {"role": "user", "content": f"I said {canary} {number}."}, message_id=f"{canary}-{number}")
        manager.wait_for_folds()  # one that meets an append may give up the copy in Redis
    manager.summary_store.add_summary("s", f"About {canary}.", {"note": canary})
    manager.save_context("s", {"session_id": "s", "note": canary})
    before = redis_values(raw)
    assert sum(canary.encode() in value for value in before.values()) >= (2 if backend.is_durable else 4)
    if backend.database_url:
        assert set(rows_with(backend.database_url, canary)) >= {
            "memory_messages.body",
            "memory_messages.message_id",
            "memory_summaries.text",
            "memory_summaries.segment",
            "memory_summaries.metadata",
            "memory_sessions.context",
        }
    other = backend.open()
    assert other.clear_session_memory("s") is True
    assert not [key for key, value in redis_values(raw).items() if canary.encode() in value]
    assert not redis_values(raw, f"*{backend.tenant}/*")
    if backend.database_url:
        assert rows_with(backend.database_url, canary) == []
        assert not any(row_counts(backend.database_url, backend.tenant).values())
    for one in (manager, other):
        assert_context(one.get_context("s"), [])
        assert one.load_context("s") is None
        assert one.get_session_config("s")["max_buffer_messages"] == 30
        assert one.summary_store.get_summary_history("s") == []
    assert manager.clear_session_memory("s") is True, "there was nothing left, which is what was asked for"


def test_a_cleared_session_begins_anew(manager: MemoryManager, backend: Backend) -> None:
    manager.append("s", say(1), message_id="a")
    manager.append("s", say(2), message_id="b")
    assert manager.clear_session_memory("s")
    assert backend.open().append("s", say(9), message_id="b").seq == 1
    assert_context(manager.get_context("s"), [say(9)])
    assert manager.append("s", say(10)).seq == 2
    assert_context(manager.get_context("s"), [say(9), say(10)])


# -- deadlines of the keys


def ttls(raw: redis.Redis, backend: Backend) -> dict[str, int]:
    found: Mapping[str, Any] = {name: raw.ttl(key) for name, key in backend.keys("s")._asdict().items()}
    return {name: ttl for name, ttl in found.items() if ttl != -2}


def filled(backend: Backend, **settings: Any) -> MemoryManager:
    """Open a manager and give session ``s`` something under every key."""
    manager = backend.open(**settings)
    manager.add_messages("s", talk(3))
    manager.summary_store.add_summary("s", "a summary")
    manager.save_context("s", {"session_id": "s"})
    manager.add_message("s", say(4))
    return manager


def test_deadlines_with_a_log(durable: Backend, raw: redis.Redis) -> None:
    filled(durable)
    found = ttls(raw, durable)
    assert set(found) == {"buffer", "summary"}
    assert 6 * 3600 - 60 < found["buffer"] <= 6 * 3600
    assert 24 * 3600 - 60 < found["summary"] <= 24 * 3600


def test_one_deadline_without_a_log(ephemeral: Backend, raw: redis.Redis) -> None:
    filled(ephemeral, buffer_ttl_seconds=1000)
    found = ttls(raw, ephemeral)
    assert set(found) == {"buffer", "summary", "history", "context"}
    assert all(940 < ttl <= 1000 for ttl in found.values())


WRITES: dict[str, Any] = {
    "add_message": lambda manager: manager.add_message("s", say(5)),
    "append": lambda manager: manager.append("s", say(5), message_id="x"),
    "add_messages": lambda manager: manager.add_messages("s", talk(2, start=5)),
    "add_summary": lambda manager: manager.summary_store.add_summary("s", "more"),
    "save_context": lambda manager: manager.save_context("s", {"session_id": "s"}),
    "set_session_config": lambda manager: manager.set_session_config("s", {"max_buffer_messages": 20}),
    "clear_summaries": lambda manager: manager.summary_store.clear_summaries("s"),
    "fold": lambda manager: (
        manager.set_session_config("s", {"summary_trigger_tokens": 20}),
        manager.add_message("s", say(5)),
        manager.wait_for_folds(),
    ),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_write_moves_the_deadline_of_the_whole_session(ephemeral: Backend, raw: redis.Redis, write: Any) -> None:
    manager = filled(ephemeral, buffer_ttl_seconds=1000)
    for key in ephemeral.keys("s"):
        raw.expire(key, 100)
    write(manager)
    found = ttls(raw, ephemeral)
    found.pop("fold", None)
    assert set(found) >= {"buffer", "summary", "context"}
    assert {name: ttl for name, ttl in found.items() if not 940 < ttl <= 1000} == {}


def test_no_key_is_without_a_deadline(backend: Backend, raw: redis.Redis) -> None:
    manager = filled(backend, max_buffer_messages=5)
    manager.set_session_config("t", {"max_buffer_messages": 3})
    manager.summary_store.add_summary("u", "a summary")
    manager.save_context("v", {"session_id": "v"})
    manager.add_messages("w", talk(40))
    for number in range(5, 40):
        manager.add_message("s", say(number))

    def without_a_deadline(at_least: int) -> list[bytes]:
        keys = list(raw.scan_iter(match=f"*{backend.tenant}/*", count=1000))
        assert len(keys) >= at_least
        return [key for key in keys if raw.ttl(key) == -1]

    assert without_a_deadline(1) == [], "while it is folded"
    manager.wait_for_folds()
    for name in "sw":
        manager.get_context(name)  # puts the copy in place, where a fold had it given up
    assert without_a_deadline(4) == []


def test_a_batch_that_does_not_fit_leaves_no_key_without_a_deadline(ephemeral: Backend, raw: Any) -> None:
    """Between the two halves of such a batch the process may die, and then what is there must expire too."""
    manager = ephemeral.open()
    seen = []
    with raw.monitor() as monitor:
        manager.add_messages("s", talk(31))
        raw.ping()
        key = ephemeral.keys("s").buffer
        for command in monitor.listen():
            seen.append(command["command"])
            if command["command"] == "PING":
                break
    calls = [index for index, command in enumerate(seen) if command.startswith(("EVAL ", "EVALSHA "))]
    assert len(calls) >= 2
    first = seen[calls[0] : calls[1]]
    assert any(command.startswith("RPUSH") and key in command for command in first) == any(
        command.startswith("EXPIRE") and key in command for command in first
    )


# -- operations


def test_stats(manager: MemoryManager, backend: Backend) -> None:
    manager.add_messages("s", talk(2))
    manager.summary_store.add_summary("s", "a summary")
    stats = manager.get_memory_stats("s")
    assert set(stats) >= {"buffer", "summary", "redis_memory", "session_config", "is_redis_available"}
    assert set(stats["buffer"]) == INFO_KEYS
    assert stats["buffer"]["message_count"] == 2
    assert {"summary_count", "current_summary_length", "redis_ttl", "last_updated"} < set(stats["summary"])
    assert stats["summary"]["summary_count"] == 1
    assert stats["redis_memory"]["used_memory"] > 0
    assert {"maxmemory", "maxmemory_policy", "evicted_keys", "expired_keys"} <= set(stats["redis_memory"])
    assert stats["session_config"] == manager.get_session_config("s")
    assert stats["is_redis_available"] is True
    empty = manager.get_memory_stats("never")
    assert empty["buffer"]["message_count"] == 0
    assert empty["summary"]["summary_count"] == 0


def test_health(manager: MemoryManager, backend: Backend) -> None:
    health = manager.health()
    assert (health.status, health.mode) == ("healthy", "full")
    assert health.storage == backend.mode
    assert health.is_well("redis")
    assert (health.check("postgres") is not None) is backend.is_durable
    assert set(health.breakers.values()) == {"closed"}
    assert "lost" in health.detail or backend.is_durable
    assert manager.is_available() is True


def test_closing_is_no_end(manager: MemoryManager) -> None:
    manager.add_message("s", say(1))
    manager.close()
    manager.close()
    manager.add_message("s", say(2))
    assert_context(manager.get_context("s"), talk(2))


def test_closing_finishes_the_folds(backend: Backend) -> None:
    manager = backend.open(summary_trigger_tokens=30)
    manager.add_messages("s", talk(5))
    manager.close()
    assert backend.open().get_context("s")["watermark"] > 0


def test_a_with_block_closes(redis_url: str, tenant: str) -> None:
    with MemoryManager(redis_url=redis_url, tenant=tenant, database_url=None) as manager:
        assert manager.add_message("s", say(1))


async def test_an_async_with_block_closes(redis_url: str, tenant: str) -> None:
    async with AsyncMemoryManager(redis_url=redis_url, tenant=tenant, database_url=None) as manager:
        assert await manager.add_message("s", say(1))
        assert (await manager.get_context("s"))["last_seq"] == 1


def test_a_breaker_may_be_brought_along(redis_url: str, tenant: str) -> None:
    breaker = CircuitBreaker(1, 5.0, name="mine")
    with MemoryManager(redis_url=redis_url, tenant=tenant, database_url=None, breaker=breaker) as manager:
        assert manager.circuit_breaker is breaker
        manager.add_message("s", say(1))
    assert breaker.snapshot().successful >= 1
    assert MemoryManager().circuit_breaker is redis_circuit_breaker


def test_the_caps_of_this_module_are_those_of_the_helper(manager: MemoryManager) -> None:
    """The helper must find what it is there to find."""
    manager.add_messages("s", talk(5))
    context = manager.get_context("s")
    assert_caps(context)
    for damage in (
        {"buffer_messages": context["buffer_messages"][1:]},
        {"total_tokens": 1},
        {"message_count": 4},
        {"buffer_info": context["buffer_info"] | {"max_messages": 4}},
        {"buffer_info": context["buffer_info"] | {"max_tokens": 4}},
    ):
        with pytest.raises(AssertionError):
            assert_caps(context | damage)
    for said in (talk(4), talk(6), talk(5, start=2)):
        with pytest.raises(AssertionError):
            assert_context(context, said)
