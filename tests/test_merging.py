"""Merging: early facts stay as they are while there is room, and the oldest give way where there is none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract_engine.memory import TokenCounter
from contract_engine.memory.summarizers.form import appended, read, written
from contract_engine.memory.summarizers.merging import merged
from contract_engine.memory.summarizers.units import Unit

COUNT = TokenCounter().count_tokens


def facts(number: int, *, count: int = 6, day: str = "8 May 2023") -> str:
    """Return a segment of facts nobody else tells."""
    lines = (f"Ana: Item {number}-{at} costs {1000 * number + at} euros." for at in range(count))
    return "\n".join([f"[{day}]", *lines])


def test_with_room_the_old_text_stays_byte_for_byte() -> None:
    text = ""
    for number in range(1, 8):
        longer = merged(text, facts(number), max_tokens=4000, count_tokens=COUNT)
        assert longer.startswith(text)
        assert longer.endswith(facts(number))
        text = longer
    assert all(facts(number) in text for number in range(1, 8))


def test_without_room_the_oldest_notes_give_way_and_the_segment_does_not() -> None:
    text, budget = "", 600
    for number in range(1, 30):
        text = merged(text, facts(number), max_tokens=budget, count_tokens=COUNT)
        assert COUNT(text) <= budget
        assert text.endswith(facts(number))
    kept = [number for number in range(1, 30) if f"costs {1000 * number}" in text]
    assert kept[-1] == 29
    newest = written(read(facts(28)))
    assert newest.partition("Ana: ")[2] in text, "the newest notes before the segment are not shortened either"
    assert COUNT(text) > budget * 0.8, "the budget is used"


@pytest.mark.parametrize("budget", [20, 40, 100])
def test_a_segment_above_the_budget_is_shortened(budget: int) -> None:
    text = merged(facts(1), facts(2, count=60), max_tokens=budget, count_tokens=COUNT)
    assert text
    assert COUNT(text) <= budget


def test_what_has_no_date_does_not_take_the_last_one() -> None:
    text = appended(facts(1), "The user likes tea.")
    assert [unit.day for unit in read(text)] == ["8 May 2023"] * 6 + [""]
    assert text.startswith(facts(1))
    assert appended("", facts(1)) == appended(facts(1), "") == facts(1)


WORDS = st.sampled_from(["Porto", "rent", "900", "W12", "Ana", "moved", "in", "May", "三月", "no", "pets", "order"])
UNITS = st.builds(
    Unit,
    st.sampled_from(["", "8 May 2023", "9 May 2023", "1 Jan 2024"]),
    st.sampled_from(["", "Ana", "user", "tool get_order"]),
    st.lists(WORDS, min_size=2, max_size=9).map(lambda words: " ".join(words) + "."),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(UNITS, max_size=30), st.lists(UNITS, max_size=12), st.integers(1, 250))
def test_it_is_never_over_budget_and_always_the_same(old: list[Unit], new: list[Unit], budget: int) -> None:
    text, segment = written(old), written(new)
    found = merged(text, segment, max_tokens=budget, count_tokens=COUNT)
    assert COUNT(found) <= budget
    assert found == merged(text, segment, max_tokens=budget, count_tokens=COUNT)
    if COUNT(segment) <= budget:
        assert segment in found
