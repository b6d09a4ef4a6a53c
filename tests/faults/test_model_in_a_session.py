"""A model's server behind a manager: whatever it does, contexts go on, and what becomes of its answers is counted."""

from __future__ import annotations

from typing import Any

import pytest
from memory_contract import Backend, assert_context
from model_server import EIGHTH_OF_MAY, MESSAGES, model_server

from contract_engine.memory import MemoryManager, ModelSummarizer, OpenAIChat

pytest_plugins = ("memory_fixtures",)

MORE: list[dict[str, Any]] = [
    {"role": "user", "content": f"And one more thing, number {number}."} for number in range(1, 5)
]
SAID = [message | {"timestamp": EIGHTH_OF_MAY} for message in (*MESSAGES, *MORE)]


def told(backend: Backend, url: str, *, patience: float = 30) -> MemoryManager:
    """Return a manager whose session has been folded once, and whose model has been asked to refine that.

    Nine messages at once, where eight may stand: the five that the model's answers are about make room.
    """
    chat = OpenAIChat("test-model", url, api_key="secret-key", max_answer_bytes=64 * 1024)
    writer = ModelSummarizer(chat, attempts=1, timeout_seconds=patience, deadline_seconds=2 * patience)
    manager = backend.open(max_buffer_messages=len(SAID) - 1, facts_writer=writer)
    manager.add_messages("s", SAID)
    assert manager.get_context("s")["watermark"] == len(MESSAGES)
    assert manager.wait_for_folds()
    return manager


def methods(manager: MemoryManager) -> list[str]:
    return [entry["method"] for entry in manager.summary_store.get_summary_history("s", 100)]


def texts(manager: MemoryManager, session_id: str) -> list[str]:
    return [entry["text"] for entry in manager.summary_store.get_summary_history(session_id, 100)]


def test_a_good_answer_becomes_the_summary(durable: Backend) -> None:
    with model_server("good") as server:
        manager = told(durable, server.url)
        context = manager.get_context("s")
    assert_context(context, SAID)
    assert "R-48120" in context["current_summary"]
    history = manager.summary_store.get_summary_history("s", 100)
    first = next(entry for entry in history if entry["method"] == "model")
    assert (first["model"], first["tokens_in"], first["tokens_out"]) == ("test-model", 321, 45)
    stats = manager.health().summarizer
    assert stats is not None
    assert stats.accepted >= 1


@pytest.mark.parametrize(
    ("behaviour", "kind", "reason"),
    [
        ("refuses", "rejected", "refusal"),
        ("echoes", "rejected", "echo"),
        ("obeys", "rejected", "malformed"),
        ("other language", "rejected", "wrong_language"),
        ("chats", "rejected", "malformed"),
        ("invents", "rejected", "invented"),
        ("loses", "rejected", "lost_facts"),
        ("too long", "rejected", "over_budget"),
        ("empty", "rejected", "empty"),
        ("hangs", "failed", None),
        ("drips", "failed", None),
        ("429", "failed", None),
        ("500", "failed", None),
        ("cuts the stream", "failed", None),
        ("sends 10 MB", "failed", None),
    ],
)
def test_the_worst_of_a_model_changes_nothing_but_a_counter(
    durable: Backend, behaviour: str, kind: str, reason: str | None
) -> None:
    with model_server(*[behaviour] * 9) as server:
        manager = told(durable, server.url, patience=3 if behaviour in ("hangs", "drips") else 30)
        context = manager.get_context("s")
    assert server.fired[behaviour] >= 1
    assert_context(context, SAID)
    assert set(methods(manager)) == {"extractive"}
    assert "#W2378156" in context["current_summary"]
    alone = durable.open(max_buffer_messages=len(SAID) - 1)
    alone.add_messages("without a model", SAID)
    assert alone.get_context("without a model")["current_summary"] == context["current_summary"]
    assert texts(alone, "without a model") == texts(manager, "s")
    counted = manager.health().summarizer
    assert counted is not None
    assert counted.accepted == 0
    assert sum(getattr(counted, kind).values()) >= 1
    assert reason is None or set(getattr(counted, kind)) == {reason}
