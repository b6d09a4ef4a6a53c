"""Exchange groups and the fold plan, on examples and on arbitrary conversations."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_traffic import TRAFFIC, keys_of

from contract_engine.memory.exchange import Group, exchange_groups, plan_fold, whole_from

Message = Mapping[str, object]


def said(role: str = "user") -> Message:
    return {"role": role, "content": "words"}


def calls(*ids: str) -> Message:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": id_, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id_ in ids],
    }


def result(id_: str) -> Message:
    return {"role": "tool", "tool_call_id": id_, "content": "answer"}


def spans(messages: list[Message]) -> list[tuple[int, int, bool]]:
    return [(group.start, group.stop, group.is_open) for group in exchange_groups(messages)]


def plan(messages: list[Message], **changes: object) -> int:
    """Plan with ten tokens a message and limits that ask for two remaining messages."""
    settings: dict[str, object] = {"target_tokens": 10**6, "target_messages": 2, "hard": False}
    return plan_fold(messages, [10] * len(messages), **(settings | changes))  # type: ignore[arg-type]


class TestGroups:
    def test_plain_messages_stand_alone(self) -> None:
        assert spans([said(), said("assistant")]) == [(0, 1, False), (1, 2, False)]

    def test_call_and_results_are_one(self) -> None:
        assert spans([said(), calls("a", "b"), result("a"), result("b"), said()]) == [
            (0, 1, False),
            (1, 4, False),
            (4, 5, False),
        ]

    def test_what_stands_between_call_and_result_belongs_to_them(self) -> None:
        assert spans([calls("a"), said(), result("a"), said()]) == [(0, 3, False), (3, 4, False)]

    def test_overlapping_exchanges_are_one(self) -> None:
        assert spans([calls("a"), calls("b"), result("a"), result("b")]) == [(0, 4, False)]

    def test_missing_result_leaves_the_group_open(self) -> None:
        assert spans([calls("a", "b"), result("a"), said()]) == [(0, 2, True), (2, 3, False)]

    def test_result_of_unknown_call_stands_alone(self) -> None:
        assert spans([said(), result("x"), said()]) == [(0, 1, False), (1, 2, False), (2, 3, False)]

    def test_repeated_result_belongs_to_the_call_while_adjacent(self) -> None:
        assert spans([calls("a"), result("a"), result("a"), said(), result("a")]) == [
            (0, 3, False),
            (3, 4, False),
            (4, 5, False),
        ]

    def test_reused_id_means_the_later_call(self) -> None:
        assert spans([calls("a"), said(), calls("a"), result("a")]) == [(0, 1, True), (1, 2, False), (2, 4, False)]

    def test_anthropic_blocks(self) -> None:
        use = {"role": "assistant", "content": [{"type": "text", "text": "t"}, {"type": "tool_use", "id": "a"}]}
        answer = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "ok"}]}
        assert spans([use, answer, said()]) == [(0, 2, False), (2, 3, False)]
        assert spans([use, said()]) == [(0, 1, True), (1, 2, False)]

    def test_call_told_as_block_and_as_tool_call_is_one_call(self) -> None:
        both = {**calls("a"), "content": [{"type": "tool_use", "id": "a"}]}
        assert spans([both, result("a")]) == [(0, 2, False)]

    def test_legacy_function_call(self) -> None:
        call = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
        assert spans([call, {"role": "function", "name": "f", "content": "1"}]) == [(0, 2, False)]
        assert spans([call, {"role": "function", "name": "g", "content": "1"}]) == [(0, 1, True), (1, 2, False)]

    def test_calls_without_ids_are_answered_in_turn(self) -> None:
        call: Message = {"role": "assistant", "tool_calls": [{}, {"id": None}]}
        answer: Message = {"role": "tool", "content": "1"}
        assert spans([call, answer, answer, said()]) == [(0, 3, False), (3, 4, False)]
        assert spans([call, answer, said()]) == [(0, 2, True), (2, 3, False)]

    @pytest.mark.parametrize(
        "odd",
        [
            None,
            "text",
            {},
            {"tool_calls": "x"},
            {"tool_calls": [None, 3]},
            {"tool_calls": {"id": "a"}},
            {"role": ["tool"], "tool_call_id": {}},
            {"content": [{"type": "tool_result", "tool_use_id": []}, 7]},
            {"function_call": "f"},
        ],
    )
    def test_odd_messages_stand_alone(self, odd: object) -> None:
        assert exchange_groups([odd, said()]) == [Group(0, 1), Group(1, 2)]


class TestTrim:
    EXCHANGE = (said(), calls("a", "b"), result("a"), result("b"), said("assistant"))

    @pytest.mark.parametrize(("start", "expected"), [(-1, 0), (0, 0), (1, 1), (2, 4), (3, 4), (4, 4), (5, 5), (6, 6)])
    def test_a_cut_inside_an_exchange_moves_behind_it(self, start: int, expected: int) -> None:
        assert whole_from(self.EXCHANGE, start) == expected

    def test_the_newest_exchange_is_cut_where_it_alone_is_too_large(self) -> None:
        nested = [calls("a"), result("x"), said(), result("a")]
        assert whole_from(nested, 1) == 2
        assert whole_from(nested, 3) == 3
        assert whole_from([calls("a", "b"), result("a"), result("b")], 1) == 1

    def test_what_is_left_does_not_begin_with_a_result_whose_call_was_gone_before(self) -> None:
        assert whole_from([said(), result("gone"), said()], 1) == 2


class TestPlan:
    def test_nothing_to_do(self) -> None:
        assert plan([]) == 0
        assert plan([said()], target_messages=0, hard=True, cap_messages=1, cap_tokens=1) == 0
        assert plan([said(), said()]) == 0

    def test_oldest_go_until_the_rest_is_small_enough(self) -> None:
        assert plan([said()] * 5) == 3
        assert plan([said()] * 5, target_messages=99, target_tokens=15) == 4

    def test_whole_exchange_goes(self) -> None:
        assert plan([calls("a"), result("a"), said(), said()], target_messages=3) == 2

    def test_young_open_call_holds_back_and_a_dead_one_does_not(self) -> None:
        assert plan([said(), calls("a"), said(), said(), said()]) == 1
        assert plan([said(), calls("a"), *[said()] * 8], target_messages=1) == 9
        assert plan([said(), calls("a"), *[said()] * 7], target_messages=1) == 1

    def test_exchange_with_the_newest_message_stays_whole(self) -> None:
        assert plan([said(), calls("a"), said(), result("a")], target_messages=1) == 1

    def test_rest_does_not_begin_with_a_lost_result(self) -> None:
        assert plan([said(), said(), result("gone"), said(), said()], target_messages=3) == 3

    def test_hard_overrules_a_young_call(self) -> None:
        messages = [said(), calls("a"), said(), said(), said()]
        assert plan(messages, hard=True, cap_messages=4) == 1
        assert plan(messages, hard=True, cap_messages=3) == 2

    def test_hard_splits_a_group_as_a_last_resort(self) -> None:
        messages = [calls(*"abc"), result("a"), result("b"), result("c")]
        assert plan(messages, target_messages=1) == 0
        # Every rest begins with a result here, so as much as possible remains.
        assert plan(messages, hard=True, cap_messages=2) == 2
        followed = [calls("a", "b"), result("a"), said(), result("b")]
        assert plan(followed, hard=True, cap_messages=3) == 2

    def test_newest_alone_may_exceed_the_cap(self) -> None:
        assert plan_fold([said()] * 2, [5, 900], target_tokens=9, target_messages=9, hard=True, cap_tokens=9) == 1


IDS = st.sampled_from(["a", "b", "c"])
MESSAGES: st.SearchStrategy[list[Message]] = st.lists(
    st.one_of(
        st.builds(said),
        st.lists(IDS, min_size=1, max_size=3).map(lambda ids: calls(*ids)),
        IDS.map(result),
        st.just({"role": "assistant", "function_call": {"name": "a"}}),
        st.just({"role": "function", "name": "a"}),
        st.builds(lambda id_: {"content": [{"type": "tool_result", "tool_use_id": id_}]}, IDS),
    ),
    max_size=40,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["role", "content", "tool_calls", "tool_call_id", "name", "function_call", "id", "type"])
LIMITS = st.integers(0, 45)


@settings(deadline=None)
@given(MESSAGES)
def test_groups_follow_each_other_and_answers_stay_with_their_calls(messages: list[Message]) -> None:
    groups = exchange_groups(messages)
    assert [group.start for group in groups] + [len(messages)] == [0] + [group.stop for group in groups]
    assert all(group.start < group.stop for group in groups)
    group_of = [next(g for g in groups if g.start <= index < g.stop) for index in range(len(messages))]
    for index, message in enumerate(messages):
        for key in "abc":
            if message == calls(key) and (rest := messages[index + 1 :]) and rest[0] == result(key):
                assert group_of[index] == group_of[index + 1]


@settings(deadline=None)
@given(st.lists(JSON | st.dictionaries(FIELDS, JSON), max_size=8), st.booleans())
def test_no_message_is_too_odd(messages: list[object], hard: bool) -> None:
    sizes = [1] * len(messages)
    count = plan_fold(messages, sizes, target_tokens=1, target_messages=1, hard=hard, cap_messages=2)
    assert 0 <= count <= max(0, len(messages) - 1)


@settings(deadline=None)
@given(MESSAGES, LIMITS, LIMITS, st.integers(0, 12))
def test_soft_plan_takes_whole_closed_groups_and_never_the_newest(
    messages: list[Message], target: int, smaller: int, young: int
) -> None:
    count = plan(messages, target_messages=target, young_messages=young)
    assert count == 0 or count < len(messages)
    groups = exchange_groups(messages)
    assert count in {0} | {group.stop for group in groups}
    newest = len(messages) - 1
    assert not any(group.is_open and newest - group.start < young for group in groups if group.stop <= count)
    # A smaller target takes at least as much.
    assert plan(messages, target_messages=min(target, smaller), young_messages=young) >= count
    if not any(group.is_open for group in groups) and groups:
        # Without open calls only the group of the newest message can keep the target from being met.
        assert len(messages) - count <= target or count == groups[-1].start or groups[-1].start == 0


@settings(deadline=None)
@given(MESSAGES, st.data(), LIMITS, st.integers(0, 450), st.integers(0, 450))
def test_hard_plan_meets_the_caps_or_leaves_the_newest_alone(
    messages: list[Message], data: st.DataObject, cap_messages: int, cap_tokens: int, target_tokens: int
) -> None:
    tokens = data.draw(st.lists(st.integers(0, 30), min_size=len(messages), max_size=len(messages)))
    soft = plan_fold(messages, tokens, target_tokens=target_tokens, target_messages=20, hard=False)
    count = plan_fold(
        messages,
        tokens,
        target_tokens=target_tokens,
        target_messages=20,
        hard=True,
        cap_tokens=cap_tokens,
        cap_messages=cap_messages,
    )
    assert soft <= count <= max(0, len(messages) - 1)
    fits = sum(tokens[count:]) <= cap_tokens and len(messages) - count <= cap_messages
    assert fits or len(messages) - count <= 1


@settings(deadline=None)
@given(TRAFFIC, st.integers(0, 30))
def test_a_trim_leaves_no_exchange_cut_but_the_newest(messages: list[Message], most: int) -> None:
    start = whole_from(messages, len(messages) - most)
    rest = messages[start:]
    assert len(rest) <= most
    groups = exchange_groups(messages)
    newest = groups[-1].start if groups else 0
    assert start in {group.start for group in groups} | {len(messages)} or start > newest
    if len(messages) - newest <= most:
        assert start <= newest, "the newest exchange is left whole where it fits"
    if start and any(not keys_of(dict(one))[0] for one in rest):
        assert not keys_of(dict(rest[0]))[0] or keys_of(dict(rest[0]))[1], "it begins with no bare result"
    # No more is cut away than has to be: at every group before, there was too much, or a bare result.
    for group in groups:
        if len(messages) - most <= group.start < start:
            answered, called = keys_of(dict(messages[group.start]))
            assert answered
            assert not called
