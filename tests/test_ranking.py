"""Ranking and choosing, without a server."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract_engine.memory.ranking import (
    Match,
    best_first,
    questions_of,
    scores,
    with_neighbours,
    within_budget,
)
from contract_engine.memory.terms import ASKS


def test_a_rare_term_weighs_more_than_a_common_one() -> None:
    found = {seq: Match(10, {"common": 1}) for seq in range(1, 10)} | {10: Match(10, {"rare": 1})}
    assert best_first(scores(["common", "rare"], found, count=20, total_length=200), 1) == [10]


def test_a_score_is_that_of_the_formula() -> None:
    """By hand: 8 of 20 messages of 5 terms on average have the one term, 2 the other; k1 = 0.9, b = 0.4."""
    found = {seq: Match(5, {"a": 1}) for seq in range(1, 7)} | {
        7: Match(5, {"a": 1, "b": 2}),
        8: Match(10, {"a": 3, "b": 1}),
    }
    scored = scores(["a", "b"], found, count=20, total_length=100)
    a, b = math.log(1 + 12.5 / 8.5), math.log(1 + 18.5 / 2.5)
    assert scored[1] == pytest.approx(a * 1 * 1.9 / (1 + 0.9))
    assert scored[7] == pytest.approx(a * 1 * 1.9 / (1 + 0.9) + b * 2 * 1.9 / (2 + 0.9))
    longer = 0.9 * (1 - 0.4 + 0.4 * 10 / 5)
    assert scored[8] == pytest.approx(a * 3 * 1.9 / (3 + longer) + b * 1 * 1.9 / (1 + longer))


def test_more_of_a_term_and_a_shorter_message_score_higher() -> None:
    found = {1: Match(10, {"a": 1}), 2: Match(10, {"a": 2}), 3: Match(5, {"a": 1})}
    scored = scores(["a"], found, count=50, total_length=500)
    assert scored[2] > scored[1]
    assert scored[3] > scored[1]


def test_a_term_that_is_common_weighs_little_even_where_few_candidates_have_it() -> None:
    found = {1: Match(10, {"name": 1, "x": 1}), 2: Match(10, {"x": 1})}
    unknown = scores(["name", "x"], found, count=100, total_length=1000)
    known = scores(["name", "x"], found, count=100, total_length=1000, common={"name": 0.5})
    assert known[1] < unknown[1]
    assert known[1] > known[2]


def test_the_mark_of_a_question_alone_is_no_match() -> None:
    assert scores(["a"], {1: Match(5, {ASKS: 1})}, count=5, total_length=25) == {}


def test_messages_that_share_a_match_are_scored_as_if_each_had_its_own() -> None:
    shared = Match(8, {"a": 2, "b": 1})
    alike = {1: shared, 2: shared, 3: Match(9, {"a": 1})}
    apart = {seq: Match(match.length, dict(match.frequencies)) for seq, match in alike.items()}
    assert scores(["a", "b"], alike, count=20, total_length=160) == scores(
        ["a", "b"], apart, count=20, total_length=160
    )


def test_an_answer_gets_a_share_of_its_question() -> None:
    found = {3: Match(5, {"a": 1, ASKS: 1}), 7: Match(5, {"a": 1})}
    scored = scores(["a"], found, count=10, total_length=50)
    shared = with_neighbours(scored, questions_of(found), last_seq=10)
    assert shared[4] > shared[8] > shared[6] > 0
    assert best_first(shared, 2) == [3, 7]


def test_neighbours_stay_between_the_first_message_and_the_last() -> None:
    assert set(with_neighbours({1: 1.0, 5: 1.0}, frozenset({5}), last_seq=5)) == {1, 2, 4, 5}


@given(st.dictionaries(st.integers(1, 99), st.integers(0, 60)), st.integers(0, 300), st.permutations(range(1, 100)))
def test_the_budget_is_never_exceeded_and_nothing_that_fits_is_left(
    tokens: dict[int, int], budget: int, order: list[int]
) -> None:
    chosen = within_budget(order, tokens, budget)
    used = sum(tokens[seq] for seq in chosen)
    assert used <= budget
    assert chosen == sorted(set(chosen))
    assert all(tokens[seq] > budget - used for seq in tokens if seq not in chosen)
