"""Facts of tools in a summary: what is written as a sign or left out, and that each fact is read back exactly."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract_engine.memory.summarizers.facts import unsigned, with_signs, without_keys, without_signs
from contract_engine.memory.summarizers.sentences import one_line, sentences
from contract_engine.memory.summarizers.units import message_units

ROWS = [
    "order_id W12, status sent, city Porto",
    "order_id W12, items item_id 77, price 20",
    "order_id W13, status late, city Rome",
    "order_id W14, state late, city Rome",
]


def test_the_same_object_and_the_same_keys_are_signs() -> None:
    short = with_signs(ROWS, are_calls=False)
    assert short == [
        "order_id W12, status sent, city Porto",
        "& items item_id 77, price 20",
        "order_id W13, status late, city Rome",
        "order_id W14, state late, city Rome",
    ]
    assert with_signs([ROWS[0], ROWS[2], ROWS[3]], are_calls=False) == [ROWS[0], "= W13, late, Rome", ROWS[3]]
    assert without_signs(short, are_calls=False) == ROWS


def test_calls_of_the_same_function_are_signs() -> None:
    calls = ["get(order_id=W12)", "get(order_id=W13)", "pay(euros=20)", "get(order_id=W14)"]
    short = with_signs(calls, are_calls=True)
    assert short == ["get(order_id=W12)", "& (order_id=W13)", "pay(euros=20)", "get(order_id=W14)"]
    assert without_signs(short, are_calls=True) == calls


@pytest.mark.parametrize(
    ("fact", "note"),
    [
        ("reservation_id M05KNL, flight_number HAT227, date 2024-05-23", "M05KNL, HAT227, 2024-05-23"),
        ("get_user(user_id=mia_7, email=mia@example.com)", "get_user(mia_7, mia@example.com)"),
        ("item_id 77, price 20.5, dob 1990-12-07", "item_id 77, price 20.5, dob 1990-12-07"),
        ("payment_id of a friend, paid 2024-05-23", "payment_id of a friend, paid 2024-05-23"),
        ("address (zip 4000, date 2024-05-23)", "address (zip 4000, 2024-05-23)"),
    ],
)
def test_keys_go_where_the_value_tells_its_kind(fact: str, note: str) -> None:
    assert without_keys(fact) == note
    assert without_keys(note) == note


FACTS = st.lists(
    st.lists(
        st.sampled_from(["a", "b 1", "b 2", "c x y", "&", "= z", "id A1", "f(x)", "f(y=1)", "1. b", "…"]), min_size=1
    )
    .map(", ".join)
    .flatmap(lambda text: st.sampled_from(sentences(one_line(text)) or ["a"]))
    .map(unsigned)
    .filter(lambda text: sentences(text) == [text]),
    max_size=8,
)


@settings(deadline=None)
@given(FACTS, st.booleans())
@example(["a, & b", "a, & c", "a, b"], False)
@example(["f()", "f", "f(x)"], True)
def test_every_fact_is_read_back_exactly(facts: list[str], are_calls: bool) -> None:
    short = with_signs(facts, are_calls=are_calls)
    assert without_signs(short, are_calls=are_calls) == facts
    assert all(len(text) <= len(fact) for text, fact in zip(short, facts, strict=True))
    assert all(sentences(text) == [text] for text in short)


def test_a_long_call_names_its_function_in_every_fact() -> None:
    arguments = {f"field_{number}": "a value that is rather long" for number in range(20)}
    call = {"id": "c1", "type": "function", "function": {"name": "change", "arguments": json.dumps(arguments)}}
    units = message_units([{"role": "assistant", "content": None, "tool_calls": [call]}], ())
    assert len(units) > 2
    assert all(unit.text.startswith("change(field_") and unit.text.endswith(")") for unit in units)
