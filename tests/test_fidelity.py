"""Fidelity: no number, id, name or date is in a summary that was not in its source.

``CONVERSATIONS_DIR`` names a folder of JSON Lines whose conversations (``{"id", "messages"}``) are looked through too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fidelity import Told, untold
from hypothesis import given, settings
from hypothesis import strategies as st

from contract_engine.demo import conversations
from contract_engine.memory import TokenCounter
from contract_engine.memory.summarizers import ExtractiveSummarizer, SummaryRequest

MAY_8 = 1683554160.0
counter = TokenCounter()


def given_conversations() -> Iterator[dict[str, Any]]:
    """Give the conversations of a folder that was named, if one was."""
    folder = os.environ.get("CONVERSATIONS_DIR")
    for path in sorted(Path(folder).glob("*.jsonl")) if folder else ():
        records = map(json.loads, path.read_text().splitlines())
        yield from (record for record in records if "messages" in record)


CONVERSATIONS = [*conversations(), *given_conversations()]


def folded(messages: list[dict[str, Any]], *, readable: bool, max_tokens: int, step: int = 12) -> Iterable[str]:
    """Give the summary after each fold of ``step`` messages, a day apart."""
    summarizer, text = ExtractiveSummarizer(readable=readable), ""
    for start in range(0, len(messages), step):
        part = messages[start : start + step]
        text = summarizer.summarize(
            SummaryRequest(
                previous=text,
                messages=part,
                times=[MAY_8 + 86400 * start] * len(part),
                max_tokens=max_tokens,
                count_tokens=counter.count_tokens,
            )
        )
        yield text


SOURCE = [
    {"role": "user", "name": "Ana", "content": "I moved to Porto on 3 May. My code is XK-7731."},
    {"role": "tool", "name": "get_order", "content": '{"order_id": "#W12", "total": 20.5}'},
    {"role": "user", "name": "Ana", "content": "我住在北京，房租900元。 My cat is called tom."},
]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("8 May 2023\nAna: moved to Porto on 3 May. code XK-7731\ntool get_order: order_id #W12, total 20.5", []),
        ("Ana: My code is XK-7732.", ["XK-7732"]),
        ("Ana: moved to Lisbon", ["Lisbon"]),
        ("Bob: moved to Porto", ["Bob"]),
        ("tool get_order: order_id #W13, total 20.5", ["W13"]),
        ("tool get_order: total 20", ["20"]),
        ("tool get_order: total 205", ["205"]),
        ("9 May 2023\nAna: moved to Porto", ["9 May 2023"]),
        ("Ana: moved on 4 May", ["4"]),
        ("Ana: code XK-77…", []),
        ("Ana: cat called tim", ["tim"]),
        ("Ana: moved to Portoby 3 May", ["Portoby"]),
        ("Ana: 我住在北京; 房租900元; cat called tom", []),
        ("Ana: 我住在上海; 房租800元", ["我住在上海", "800"]),
    ],
)
def test_the_checker_finds_what_was_planted_and_nothing_else(text: str, wrong: list[str]) -> None:
    assert untold(text, SOURCE, [MAY_8]) == wrong


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation["id"])
def test_summaries_of_real_conversations_tell_nothing_else(conversation: Mapping[str, Any], readable: bool) -> None:
    messages = conversation["messages"]
    times = [MAY_8 + 86400 * number for number in range(len(messages))]
    told = Told(messages, times)
    for max_tokens in (60, 400, 800):
        for text in folded(messages, readable=readable, max_tokens=max_tokens):
            assert text
            assert told.untold(text) == []


SPOKEN = """I've Ana's we met Bob in Porto on 3 May at 14:30 and it was really 900 euros, you know: order #W12-9 for
    ana@example.com; Well, I think that 2024-05-08 is XK_77 (the 12th) "Little Women" 北京 100元 1,250.50 so
not"""
WORDS = st.sampled_from(SPOKEN.split())
PROSE = st.lists(WORDS, max_size=30).map(" ".join)
VALUES = st.recursive(
    st.integers(-(10**9), 10**9) | st.booleans() | PROSE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=10,
)
SAID = st.builds(lambda name, text: {"role": "user", "name": name, "content": text}, st.sampled_from("AB"), PROSE)
CALLED = st.builds(
    lambda number, value: {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": {"name": f"get_{number}", "arguments": {"order_id": value}}}],
    },
    st.integers(0, 3),
    VALUES,
)
TOLD = st.builds(lambda value: {"role": "tool", "name": "get", "content": {"text": value}}, PROSE)


@settings(deadline=None)
@given(st.lists(SAID | CALLED | TOLD, max_size=12), st.booleans(), st.integers(5, 120))
def test_summaries_of_any_conversation_tell_nothing_else(
    messages: list[dict[str, Any]], readable: bool, max_tokens: int
) -> None:
    times = [MAY_8 + 86400 * number for number in range(len(messages))]
    for text in folded(messages, readable=readable, max_tokens=max_tokens, step=3):
        assert untold(text, messages, times) == []


def test_marks_inside_a_word_stay_and_long_names_end_with_a_word() -> None:
    messages = [
        {
            "role": "user",
            "name": "Mr Darrell Samson of Sackville and Preston-Chezzetcook",
            "content": "Ask Chris`OGER. Install linux-headers-`uname -r` and **reboot**.",
        }
    ]
    (text,) = folded(messages, readable=True, max_tokens=60)
    said = "Ask Chris`OGER. Install linux-headers-`uname -r and reboot."
    assert text == f"8 May 2023\nMr Darrell Samson of Sackville and: {said}"
    assert untold(text, messages, [MAY_8]) == []
