"""The conversations that come with the package: whose they are, and that they are what the demo needs."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest

from contract_engine import demo
from contract_engine.memory import TokenCounter

FILES = resources.files(demo)


def test_licence_names_its_owner_and_both_repositories() -> None:
    licence = FILES.joinpath("LICENSE-tau-bench").read_text(encoding="utf-8")
    for words in (
        "MIT License",
        "(c) 2024, 2025 Sierra",
        "Copyright (c) 2024 Sierra",
        "Permission is hereby granted, free of charge",
        "The above copyright notice and this permission notice shall be included",
        'THE SOFTWARE IS PROVIDED "AS IS"',
        "github.com/sierra-research/tau-bench",
        "github.com/sierra-research/tau2-bench",
        "historical_trajectories/gpt-4o-airline.json",
    ):
        assert words in licence


def test_nothing_else_is_shipped() -> None:
    shipped = {path.name for path in FILES.iterdir() if not path.name.startswith("__")}
    assert shipped == {"LICENSE-tau-bench", "conversations.jsonl"}
    assert len(FILES.joinpath("conversations.jsonl").read_bytes()) < 400_000


def test_every_conversation_is_under_the_licence_that_is_shipped() -> None:
    for conversation in demo.conversations():
        assert set(conversation) == {"id", "source", "license", "messages"}
        assert conversation["license"] == "MIT"
        repository = {"tau": "tau-bench", "tau2": "tau2-bench"}[conversation["id"].split("-", 1)[0]]
        assert conversation["source"].startswith(f"sierra-research/{repository} ")


def test_conversations_are_long_enough_to_be_folded() -> None:
    conversations = demo.conversations()
    assert len({conversation["id"] for conversation in conversations}) == len(conversations) == 7
    lengths = [len(conversation["messages"]) for conversation in conversations]
    assert sum(length > 25 for length in lengths) >= 5
    assert min(lengths) < 16  # and one that is not folded at all


@pytest.mark.parametrize("conversation", demo.conversations(), ids=lambda item: item["id"][:24])
def test_messages_have_the_shape_of_the_chat_api(conversation: dict[str, Any]) -> None:
    open_calls: dict[str, str] = {}
    for message in conversation["messages"]:
        assert message["role"] in {"system", "user", "assistant", "tool"}
        assert set(message) <= {"role", "content", "name", "timestamp", "tool_calls", "tool_call_id"}
        assert isinstance(message["content"], str) or message.get("tool_calls")
        for call in message.get("tool_calls", ()):
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
            open_calls[call["id"]] = call["function"]["name"]
        if message["role"] == "tool":
            assert open_calls.pop(message["tool_call_id"]) == message["name"]
    assert not open_calls
    assert any(message.get("tool_calls") for message in conversation["messages"])


def test_one_conversation_keeps_its_policy() -> None:
    policies = [
        message
        for conversation in demo.conversations()
        for message in conversation["messages"]
        if message["role"] == "system"
    ]
    assert len(policies) == 1
    assert TokenCounter().count_message_tokens(policies[0]) > 1000
