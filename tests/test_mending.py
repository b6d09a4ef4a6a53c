"""Calls and results in a context: each with the other, whatever was stored, and within the caps of the session."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_contract import DURABLE, SYNC, Backend, logged
from server_faults import Outage, waited_for
from servers import PrivateServers
from tool_traffic import (
    TRAFFIC,
    Message,
    faults,
    function_call,
    function_result,
    said,
    tool_calls,
    tool_result,
    tool_results,
    tool_uses,
    without_synthetic,
)

from contract_engine.memory import MemoryManager
from contract_engine.memory.exchange import plan_fold
from contract_engine.memory.mending import EARLIER_CALL, NO_RESULT, mend

pytest_plugins = ("memory_fixtures",)


def mended(messages: Sequence[Message]) -> list[Message]:
    found = mend(list(messages))
    return list(messages) if found is None else found.messages


class TestCallsWithoutResult:
    def test_a_call_that_the_conversation_left_behind_is_closed(self) -> None:
        call = tool_calls("a")
        assert mended([said(), call, said()]) == [
            said(),
            call,
            {"role": "tool", "tool_call_id": "a", "content": NO_RESULT, "synthetic": True},
            said(),
        ]

    def test_of_parallel_calls_those_without_result_are_closed_behind_the_last_result(self) -> None:
        messages = [tool_calls("a", "b", "c"), tool_result("b"), said()]
        found = mended(messages)
        assert found[:2] == messages[:2]
        assert [one["tool_call_id"] for one in found[2:4]] == ["a", "c"]
        assert found[4:] == messages[2:]

    def test_blocks_are_closed_by_blocks_of_one_message(self) -> None:
        found = mended([tool_uses("a", "b", "c"), tool_results("a"), said()])
        assert [block["tool_use_id"] for block in found[2]["content"]] == ["b", "c"]
        assert (found[2]["role"], found[2]["synthetic"]) == ("user", True)

    def test_a_legacy_call_is_closed_by_its_name(self) -> None:
        found = mended([function_call("f"), said()])
        assert found[1] == {"role": "function", "name": "f", "content": NO_RESULT, "synthetic": True}

    def test_an_id_that_is_used_again_closes_the_earlier_call_before_that(self) -> None:
        messages = [tool_calls("a", "b"), tool_calls("a"), tool_result("a"), tool_result("b")]
        found = mend(messages)
        assert found is not None
        assert found.added == [1]
        assert faults(found.messages) == []

    @pytest.mark.parametrize(
        "messages",
        [
            [said(), tool_calls("a")],
            [tool_calls("a", "b"), tool_result("b")],
            [tool_uses("a", "b"), tool_results("b")],
            [function_call("f")],
            [tool_calls(None)],
        ],
    )
    def test_results_that_are_still_gathered_are_waited_for(self, messages: list[Message]) -> None:
        assert mend(messages) is None
        closed = mend(messages, is_all=True)
        assert closed is not None
        assert faults([*closed.messages, said()], is_all=True) == []

    @pytest.mark.parametrize("later", [said(), said("assistant"), tool_calls("x"), tool_results("a", text="Hurry")])
    def test_any_other_message_ends_the_waiting(self, later: Message) -> None:
        assert mend([tool_uses("a", "b"), later]) is not None


class TestResultsWithoutCall:
    def test_a_result_whose_call_was_folded_gets_a_call_of_its_id(self) -> None:
        answer = tool_result("a") | {"name": "weather"}
        (call, same) = mended([answer])
        assert same is answer
        assert (call["role"], call["content"], call["synthetic"]) == ("assistant", EARLIER_CALL, True)
        assert call["tool_calls"] == [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        ]

    def test_a_second_answer_is_one_to_a_call_of_its_own_with_the_name_of_the_first(self) -> None:
        found = mended([tool_calls("a", name="weather"), tool_result("a"), tool_result("a"), said()])
        assert found[2]["tool_calls"][0]["function"]["name"] == "weather"
        assert faults(found) == []

    def test_the_results_of_one_message_get_one_message_of_calls(self) -> None:
        found = mended([tool_uses("a"), tool_results("a", "x", "y")])
        assert [block.get("id") for block in found[1]["content"]] == [None, "x", "y"]
        assert faults(found) == []

    def test_a_legacy_result_gets_a_legacy_call(self) -> None:
        assert mended([function_result("f")])[0]["function_call"] == {"name": "f", "arguments": "{}"}

    def test_a_late_answer_stays_where_it_is(self) -> None:
        assert mend([tool_calls("a"), said(), tool_result("a"), said()]) is None


def test_calls_and_results_without_id_go_together_by_their_order_and_are_completed_too() -> None:
    messages = [tool_result(None), tool_calls(None), said(), function_call(None), said()]
    found = mend(messages)
    assert found is not None
    assert found.added == [0, 3, 6]
    assert all("id" not in call for at in (0, 2) for call in found.messages[at]["tool_calls"])
    assert found.messages[3] == {"role": "tool", "content": NO_RESULT, "synthetic": True}
    assert mend([tool_calls(None, None), tool_result(None), tool_result(None), said()]) is None
    assert mend([said(), tool_calls(None, None), tool_result(None)]) is None, "the second result may still come"


def test_conversations_without_tools_are_left_alone() -> None:
    assert mend([]) is None
    assert mend([said(), said("assistant"), {"content": None}, {"role": "user", "content": [{"type": "text"}]}]) is None


@settings(deadline=None, max_examples=300)
@given(TRAFFIC)
def test_every_conversation_is_mended_and_keeps_its_messages(messages: list[Message]) -> None:
    for is_all in (False, True):
        found = mend(messages, is_all=is_all)
        shown = messages if found is None else found.messages
        assert faults([*shown, said()] if is_all else shown, is_all=True) == []
        if found is not None:
            assert [one for at, one in enumerate(found.messages) if at not in found.added] == messages
            assert all(found.messages[at]["synthetic"] is True for at in found.added)
            assert mend(found.messages, is_all=is_all) is None


@settings(deadline=None, max_examples=300)
@given(TRAFFIC, st.integers(1, 8), st.integers(10, 200))
def test_a_hard_fold_makes_room_for_what_is_put_between(messages: list[Message], most: int, most_tokens: int) -> None:
    def size(start: int) -> tuple[int, int]:
        found = mend(messages[start:])
        return (0, 0) if found is None else (len(found.added), 20 * len(found.added))

    count = plan_fold(
        messages,
        [10] * len(messages),
        target_tokens=most_tokens,
        target_messages=most,
        cap_tokens=most_tokens,
        cap_messages=most,
        hard=True,
        added=size,
    )
    left, (more, more_tokens) = len(messages) - count, size(count)
    assert left <= 1 or (left + more <= most and left * 10 + more_tokens <= most_tokens)


def traffic(seed: int, count: int) -> list[Message]:
    """Return made traffic in which calls are answered late, twice or never."""
    chance = random.Random(seed)
    found: list[Message] = []
    for number in range(count):
        one, other = f"{seed}-{number - chance.randrange(3)}", f"{seed}-{number}"
        text = f"Message {number:03d} of the session"
        found.append(
            chance.choice(
                [
                    said("user", text),
                    said("assistant", text),
                    tool_calls(one, other),
                    tool_result(one, text),
                    tool_result(other, text),
                    tool_uses(one, other),
                    tool_results(one, other),
                    function_call("f"),
                    function_result("f"),
                ]
            )
        )
    return found


def assert_mended(context: dict[str, Any], stored: Sequence[Message], manager: MemoryManager) -> None:
    """Hold a context against its promises: pairs, the stored messages word for word, the caps."""
    shown, info = context["buffer_messages"], context["buffer_info"]
    assert faults(shown) == []
    own = without_synthetic(context)
    assert own == list(stored[context["watermark"] :])
    assert context["last_seq"] == len(stored)
    assert context["message_count"] == info["message_count"] == len(shown)
    assert info["total_tokens"] == manager.token_counter.count_batch_tokens(shown)
    assert context["total_tokens"] == info["total_tokens"] + context["summary_tokens"]
    if len(own) > 1:
        assert len(shown) <= info["max_messages"]
        assert info["total_tokens"] <= info["max_tokens"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_context_is_valid_and_within_the_caps_and_the_log_is_word_for_word(backend: Backend, seed: int) -> None:
    manager = backend.open(summary_trigger_tokens=150, max_buffer_tokens=220, max_buffer_messages=6)
    stored: list[Message] = []
    added = 0
    for message in traffic(seed, 40):
        stored.append(message)
        context = manager.add_and_get_context("s", message)
        assert_mended(context, stored, manager)
        again = manager.get_context("s")
        assert_mended(again, stored, manager)
        added += len(again.get("synthetic", ()))
        if len(stored) % 10 == 0:
            assert manager.wait_for_folds(10)
            held = manager.buffer_store.get_messages("s")
            assert held == stored[len(stored) - len(held) :]
    assert added > 10, "the traffic was not broken enough to try anything"
    if backend.is_durable:
        assert backend.database_url is not None
        assert [message for _, message in logged(backend.database_url, backend.tenant, "s")] == stored


def test_a_context_over_its_caps_for_what_is_put_between_is_folded(backend: Backend) -> None:
    manager = backend.open(max_buffer_messages=4)
    stored = [tool_calls("a", "b"), said("user", "One."), said("user", "Two."), said("user", "Three.")]
    for message in stored[:3]:
        manager.append("s", message)
    # Three messages are below the cap; with the two results that nobody gave they are above it.
    assert_mended(manager.get_context("s"), stored[:3], manager)
    assert manager.get_context("s")["watermark"] > 0
    assert manager.buffer_store.get_messages("s") == stored[manager.get_context("s")["watermark"] : 3]


def test_the_newest_message_is_shown_with_its_call_whatever_that_costs(backend: Backend) -> None:
    manager = backend.open(summary_trigger_tokens=40, max_buffer_tokens=40, max_buffer_messages=2)
    large = tool_result("gone", "word " * 100)
    for message in (said(), large):
        manager.append("s", message)
    context = manager.get_context("s")
    assert [one.get("synthetic", False) for one in context["buffer_messages"]] == [True, False]
    assert without_synthetic(context) == [large]


def test_a_late_answer_comes_back_to_its_call(backend: Backend) -> None:
    manager = backend.open()
    stored = [tool_calls("a"), said("user", "Never mind.")]
    for message in stored:
        context = manager.add_and_get_context("s", message)
    assert context["synthetic"] == [1]
    context = manager.add_and_get_context("s", tool_result("a"))
    assert context["buffer_messages"] == [*stored, tool_result("a")]
    assert "synthetic" not in context


def test_with_the_log_away_the_fold_is_for_one_answer(
    private_servers: PrivateServers, redis_url: str, tenant: str
) -> None:
    servers = private_servers(redis=False)
    with closing(Outage(servers, Backend(SYNC, DURABLE, redis_url, servers.database_url, tenant))) as outage:
        manager = outage.open(max_buffer_messages=4)
        stored = [tool_calls("a", "b"), said("user", "One."), said("user", "Two.")]
        for message in stored:
            manager.append("s", message)
        outage.kill_database()
        context = manager.get_context("s")
        assert_mended(context, stored, manager)
        assert (context["watermark"] > 0, context["summary_version"]) == (True, 0)
        assert manager.buffer_store.get_messages("s") == stored, "nothing was folded in earnest"
        # What is acknowledged meanwhile waits in Redis, and is folded there.
        stored.append(said("user", "Three."))
        assert_mended(manager.add_and_get_context("s", stored[-1]), stored, manager)
        outage.restart_database()
        assert waited_for(lambda: not manager.get_context("s")["degraded"])
        assert_mended(manager.get_context("s"), stored, manager)
        assert [message for _, message in logged(servers.database_url, tenant, "s")] == stored
