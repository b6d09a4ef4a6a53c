"""Summaries for people: whole phrases in the place of notes, found again in the messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
import pytest
from memory_contract import Backend
from model_server import EIGHTH_OF_MAY
from test_fidelity import CONVERSATIONS, MAY_8, folded

from contract_engine.memory import InvalidInputError
from contract_engine.memory.summarizers.form import read
from contract_engine.memory.summarizers.phrases import Phrases, ReadableText
from contract_engine.memory.summarizers.units import message_units

pytest_plugins = ("memory_fixtures",)

SAID = [
    "Well, I have moved to the old town of Porto, Mel, and the rent is really 900 euros.",
    "I think that the key of the garage is in the drawer.",
    "My code is XK-7731.",
]


def readable(text: str, messages: Sequence[Mapping[str, object]], times: Sequence[float]) -> ReadableText:
    phrases = Phrases([text])
    phrases.look_through(messages, times)
    return phrases.readable(text)


@pytest.mark.parametrize("max_tokens", [60, 400])
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation["id"])
def test_every_note_of_a_real_conversation_is_found_again(conversation: Mapping[str, Any], max_tokens: int) -> None:
    messages = conversation["messages"]
    times = [MAY_8 + 86400 * (number // 12 * 12) for number in range(len(messages))]
    said = set(message_units(messages, times))
    (*_, text) = folded(messages, readable=False, max_tokens=max_tokens)
    found = readable(text, messages, times)
    assert (found.notes, found.as_stored) == (len(read(text)), 0)
    assert set(read(found.text)) <= said
    assert not set(read(text)) <= said or found.text == text


def test_whole_phrases_stay_as_they_are() -> None:
    messages: list[dict[str, Any]] = CONVERSATIONS[0]["messages"]
    (*_, text) = folded(messages, readable=True, max_tokens=400)
    times = [MAY_8 + 86400 * (number // 12 * 12) for number in range(len(messages))]
    assert readable(text, messages, times) == (text, len(read(text)), 0)


def ana(*contents: str) -> list[dict[str, Any]]:
    return [{"role": "user", "name": "Ana", "content": content} for content in contents]


def test_names_are_found_whoever_was_known_when_they_were_left_out() -> None:
    messages = [*ana(*SAID), {"role": "user", "name": "Mel", "content": "Nice!"}]
    (text,) = folded(messages, readable=False, max_tokens=200)
    assert "Mel," not in text
    assert "Porto, Mel, and" in readable(text, messages, [MAY_8] * 4).text
    (alone,) = folded(messages[:3], readable=False, max_tokens=200)
    assert "Mel," in alone
    assert readable(alone, messages, [MAY_8] * 4).as_stored == 0


def test_what_no_message_says_stays_as_it_is_stored() -> None:
    by_model = "- **Ana** lives in Porto (a model's words)"
    text = f"8 May 2023\n{by_model}\nAna: key of garage in drawer. I like cats\n- and *more*"
    found = readable(text, ana(*SAID), [MAY_8] * 3)
    assert found.text.splitlines() == [
        "8 May 2023",
        by_model,
        "Ana: I think that the key of the garage is in the drawer. I like cats",
        "- and *more*",
    ]
    assert (found.notes, found.as_stored) == (4, 3)


@pytest.mark.parametrize(
    ("text", "name", "at"),
    [
        ("9 May 2023\nAna: key of garage in drawer", "Ana", MAY_8),
        ("8 May 2023\nBob: key of garage in drawer", "Ana", MAY_8),
        ("8 May 2023\nAna: key of house in drawer", "Ana", MAY_8),
    ],
)
def test_a_phrase_of_another_day_speaker_or_matter_is_not_taken(text: str, name: str, at: float) -> None:
    assert readable(text, ana(*SAID), [at] * 3) == (text, 1, 1)


def test_keys_of_tools_come_back() -> None:
    messages: list[dict[str, Any]] = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "function": {"name": "get_order", "arguments": '{"order_id": "W12-7"}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": '{"order_id": "W12-7", "sent_date": "2024-05-08", "n": 2}'},
        {"role": "tool", "tool_call_id": "1", "content": '{"order_id": "W12-8", "sent_date": "2024-05-09", "n": 3}'},
    ]
    (text,) = folded(messages, readable=False, max_tokens=200)
    assert "order_id" not in text
    assert readable(text, messages, [MAY_8] * 3).text.splitlines()[1:] == [
        "tool call: get_order(order_id=W12-7)",
        "tool get_order: order_id W12-7, sent_date 2024-05-08, n 2; = W12-8, 2024-05-09, 3",
    ]


def fill(backend: Backend) -> Any:
    """Return a manager with a session of which the first messages are folded into notes."""
    manager = backend.open(max_buffer_messages=4)
    stamped = [message | {"timestamp": EIGHTH_OF_MAY} for message in ana(*SAID, *(f"Message {n}." for n in range(3)))]
    for message in stamped:
        manager.add_message("s", message)
        manager.wait_for_folds()
    assert manager.get_context("s")["watermark"] >= 3
    return manager


def test_the_store_answers_both_and_keeps_the_stored_one(durable: Backend) -> None:
    manager = fill(durable)
    store = manager.summary_store
    before = store.get_summary_history("s")
    stored = manager.get_context("s")["current_summary"]
    found = store.get_current_summary("s", readable=True)
    assert stored.splitlines()[:2] != found.splitlines()[:2]
    assert all(phrase.removeprefix("Well, ") in found for phrase in SAID)
    assert store.readable_texts("s", [stored, "Nobody said so."]) == [
        (found, len(read(stored)), 0),
        ("Nobody said so.", 1, 1),
    ]
    versions = store.get_summary_history("s", readable=True)
    assert versions[-1]["readable_text"] == found
    assert [{key: version[key] for key in version if key != "readable_text"} for version in versions] == before
    assert store.get_current_summary("s") == stored == manager.get_context("s")["current_summary"]


def test_where_the_messages_are_gone_the_stored_text_is_the_answer(durable: Backend, database_url: str) -> None:
    manager = fill(durable)
    stored = manager.summary_store.get_current_summary("s")
    with psycopg.connect(database_url, autocommit=True) as connection:
        gone = connection.execute(
            "DELETE FROM memory_messages WHERE tenant = %s AND session_id = 's' AND seq = 1", [durable.tenant]
        )
        assert gone.rowcount == 1
    (found,) = manager.summary_store.readable_texts("s", [stored])
    assert found.as_stored == 1
    assert SAID[1] in found.text
    assert found.text.splitlines()[1].startswith("Ana: moved to old town of Porto")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM memory_messages WHERE tenant = %s", [durable.tenant])
    assert manager.summary_store.readable_texts("s", [stored]) == [(stored, found.notes, found.notes)]


def test_without_a_log_there_are_no_phrases(ephemeral: Backend) -> None:
    manager = fill(ephemeral)
    stored = manager.summary_store.get_current_summary("s")
    notes = len(read(stored))
    assert manager.summary_store.readable_texts("s", [stored]) == [(stored, notes, notes)]
    assert manager.summary_store.get_current_summary("s", readable=True) == stored


def test_there_may_be_no_summary_to_read(backend: Backend) -> None:
    manager = backend.open()
    assert manager.summary_store.get_current_summary("nobody", readable=True) is None
    assert manager.summary_store.get_summary_history("nobody", readable=True) == []
    assert manager.summary_store.readable_texts("nobody", ["", "Ana: hi"]) == [("", 0, 0), ("Ana: hi", 1, 1)]


@pytest.mark.parametrize("texts", ["a text", [None], [1]], ids=repr)
def test_what_is_no_list_of_texts_is_refused(blocking: Backend, texts: Any) -> None:
    with pytest.raises(InvalidInputError, match="texts"):
        blocking.open().summary_store.readable_texts("s", texts)
