"""Summaries: versions that are added and never changed, within their budget."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
import redis
from memory_contract import Backend, assert_context, redis_values, rows_with, same, say, talk

from contract_engine.memory import InvalidInputError, MemoryManager, SummaryStore, TokenCounter

pytest_plugins = ("memory_fixtures",)


@pytest.fixture
def summaries(backend: Backend) -> SummaryStore:
    """A summary store that stands alone."""
    return backend.open_summaries()


def test_there_is_none_at_first(summaries: SummaryStore) -> None:
    assert summaries.get_current_summary("s") is None
    assert summaries.get_summary_history("s") == []
    assert summaries.get_summary_stats("s") == {
        "summary_count": 0,
        "by_method": {},
        "quarantined": 0,
        "current_version": 0,
        "method": None,
        "model": None,
        "first_seq": None,
        "last_seq": None,
        "current_summary_length": 0,
        "redis_ttl": None,
        "last_updated": None,
    }


def test_texts_are_joined_into_one_summary(summaries: SummaryStore, backend: Backend) -> None:
    assert summaries.add_summary("s", "The user lives in Porto.") is True
    assert summaries.get_current_summary("s") == "The user lives in Porto."
    assert summaries.add_summary("s", "The budget is 900 euros.") is True
    current = summaries.get_current_summary("s")
    assert current is not None
    assert "Porto" in current
    assert "900 euros" in current
    assert backend.open_summaries().get_current_summary("s") == current
    assert backend.open().get_context("s")["current_summary"] == current
    assert summaries.get_current_summary("t") is None


def test_history_is_oldest_first(summaries: SummaryStore) -> None:
    before = time.time()
    for number in range(1, 13):
        summaries.add_summary("s", f"Fact number {number}.", {"number": number})
    history = summaries.get_summary_history("s")
    assert [entry["text"] for entry in history] == [f"Fact number {number}." for number in range(3, 13)]
    assert [entry["metadata"] for entry in history] == [{"number": number} for number in range(3, 13)]
    assert [entry["version"] for entry in history] == list(range(3, 13))
    times = [entry["timestamp"] for entry in history]
    assert times == sorted(times)
    assert before - 60 < times[0] < time.time() + 60
    assert [entry["version"] for entry in summaries.get_summary_history("s", limit=2)] == [11, 12]
    assert len(summaries.get_summary_history("s", 100)) == 12


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3", None, True], ids=repr)
def test_other_limits_are_refused(summaries: SummaryStore, limit: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        summaries.get_summary_history("s", limit)
    assert caught.value.field == "limit"


def test_a_limit_may_be_larger_than_any_history(summaries: SummaryStore) -> None:
    summaries.add_summary("s", "A fact.")
    for limit in (2**31, 2**63 - 1, 2**63, 10**30):
        assert [entry["text"] for entry in summaries.get_summary_history("s", limit)] == ["A fact."]


METADATA: list[Any] = [None, {}, {"a": [1, 2.5, None, {"b": "\x00\ud800"}], "": 2**64}]


@pytest.mark.parametrize("metadata", METADATA, ids=repr)
def test_metadata_comes_back_equal(summaries: SummaryStore, metadata: Any) -> None:
    summaries.add_summary("s", "A fact.", metadata)
    ((entry,)) = summaries.get_summary_history("s")
    assert same(entry["metadata"], metadata)


@pytest.mark.parametrize(
    "text", ["nul \x00.", "lone \ud800.", "emoji 😀.", "שלום.", " spaces ", "[1,2]", "a\nb"], ids=repr
)
def test_texts_come_back_equal(summaries: SummaryStore, backend: Backend, raw: redis.Redis, text: str) -> None:
    assert summaries.add_summary("s", text)
    assert summaries.get_current_summary("s") == text
    if backend.is_durable:
        raw.delete(*backend.keys("s"))
        assert summaries.get_current_summary("s") == text
        assert summaries.get_current_summary("s") == text
    assert [entry["text"] for entry in summaries.get_summary_history("s")] == [text]


@pytest.mark.parametrize(
    ("text", "metadata", "field"),
    [
        ("", None, "summary_text"),
        ("  \n", None, "summary_text"),
        (None, None, "summary_text"),
        (7, None, "summary_text"),
        (b"x", None, "summary_text"),
        ("x", [], "metadata"),
        ("x", "text", "metadata"),
        ("x", {"a": {1}}, "metadata.a"),
        ("x", {"a": "x" * 2**20}, "metadata"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_bad_summaries_are_refused(summaries: SummaryStore, text: Any, metadata: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        summaries.add_summary("s", text, metadata)
    assert caught.value.field == field
    assert summaries.get_summary_history("s") == []


def test_the_whole_stays_within_its_budget(summaries: SummaryStore) -> None:
    counter = TokenCounter()
    current: str | None = None
    for number in range(60):
        assert summaries.add_summary(
            "s", f"In month {number} the user paid {number * 17} euros for item {number} there."
        )
        current = summaries.get_current_summary("s")
        assert current is not None
        assert counter.count_tokens(current) <= 800
    assert "euros" in (current or "")
    assert len(summaries.get_summary_history("s", 100)) == 60
    assert "month 0" in summaries.get_summary_history("s", 100)[0]["text"]


def test_one_text_above_the_budget_is_shortened(backend: Backend) -> None:
    summaries = backend.open_summaries(max_summary_tokens=50)
    text = " ".join(f"The code of door {number} is {number * 31}." for number in range(200))
    assert summaries.add_summary("s", text)
    current = summaries.get_current_summary("s")
    assert current
    assert TokenCounter().count_tokens(current) <= 50
    assert summaries.get_summary_history("s")[0]["text"] == text


def test_stats(summaries: SummaryStore) -> None:
    summaries.add_summary("s", "One fact.")
    summaries.add_summary("s", "Another fact.")
    stats = summaries.get_summary_stats("s")
    assert stats["summary_count"] == 2
    assert stats["by_method"] == {"supplied": 2}
    assert (stats["current_version"], stats["method"], stats["model"]) == (2, "supplied", None)
    assert (stats["first_seq"], stats["last_seq"]) == (1, 0), "no message"
    assert stats["current_summary_length"] == len(summaries.get_current_summary("s") or "")
    assert stats["last_updated"] > 1.7e9


def test_deadlines(summaries: SummaryStore, backend: Backend) -> None:
    summaries.add_summary("s", "One fact.")
    summaries.get_current_summary("s")  # with a log it is cached now if not before
    hours = 24 if backend.is_durable else 6
    assert hours * 3600 - 60 < summaries.get_summary_stats("s")["redis_ttl"] <= hours * 3600


def test_clearing(summaries: SummaryStore, backend: Backend, raw: redis.Redis) -> None:
    canary = f"canary{backend.tenant}"
    summaries.add_summary("s", f"About {canary}.", {"note": canary})
    summaries.add_summary("t", "Another session.")
    assert summaries.clear_summaries("s") is True
    assert summaries.get_current_summary("s") is None
    assert summaries.get_summary_history("s") == []
    assert summaries.get_summary_stats("s")["summary_count"] == 0
    assert summaries.get_summary_stats("s")["current_summary_length"] == 0
    assert summaries.get_current_summary("t") == "Another session."
    if backend.database_url:
        assert rows_with(backend.database_url, canary) == []
    assert not [key for key, value in redis_values(raw, f"*{backend.tenant}/*").items() if canary.encode() in value]
    assert summaries.clear_summaries("s") is True
    summaries.add_summary("s", "A new one.")
    assert summaries.get_current_summary("s") == "A new one."
    assert [entry["text"] for entry in summaries.get_summary_history("s")] == ["A new one."]


def test_clearing_what_never_was(summaries: SummaryStore) -> None:
    assert summaries.clear_summaries("never") is True
    assert summaries.get_summary_history("never") == []


def test_what_was_summarised_stays_covered_after_clearing(manager: MemoryManager, backend: Backend) -> None:
    manager.set_session_config("s", {"max_buffer_messages": 4})
    said = talk(10)
    for message in said:
        manager.add_message("s", message)
    manager.wait_for_folds()
    before = manager.get_context("s")
    assert before["watermark"] > 0
    assert manager.summary_store.clear_summaries("s")
    for one in (manager, backend.open()):
        after = one.get_context("s")
        assert after["buffer_messages"] == before["buffer_messages"] == said[after["watermark"] :]
        assert after["current_summary"] is None
        assert after["complete"] is True
    for number in range(11, 21):
        said.append(say(number))
        manager.add_message("s", say(number))
    manager.wait_for_folds()
    assert_context(manager.get_context("s"), said)


# -- inside a manager


def test_versions_say_where_they_come_from(manager: MemoryManager) -> None:
    manager.set_session_config("s", {"max_buffer_messages": 4})
    manager.add_messages("s", talk(4))
    manager.wait_for_folds()
    manager.summary_store.add_summary("s", "The user is called Ana.")
    manager.add_messages("s", talk(3, start=5))
    manager.wait_for_folds()
    first, *history = manager.summary_store.get_summary_history("s", 100)
    assert first["parent"] is None
    assert [entry["parent"] for entry in history] == list(range(1, len(history) + 1))
    told = manager.token_counter
    read = [told.count_message_tokens(message) for message in talk(7)]
    before = 0
    for entry in [first, *history]:
        assert (entry["model"], entry["prompt_hash"], entry["tokens_out"], entry["quarantined_at"]) == (None,) * 4
        if entry["method"] == "extractive":
            assert entry["tokens_in"] == before + sum(read[entry["first_seq"] - 1 : entry["last_seq"]])
        else:
            assert entry["tokens_in"] is None
        before = entry["tokens"]
    stats = manager.summary_store.get_summary_stats("s")
    assert stats["by_method"] == {"extractive": len(history), "supplied": 1}
    newest = history[-1]
    assert stats["current_version"] == newest["version"]
    assert [stats[name] for name in ("method", "first_seq", "last_seq")] == [
        newest[name] for name in ("method", "first_seq", "last_seq")
    ]


def test_folds_write_versions_that_meet(manager: MemoryManager) -> None:
    manager.set_session_config("s", {"max_buffer_messages": 4})
    for message in talk(30):
        manager.add_message("s", message)
    manager.wait_for_folds()
    context = manager.get_context("s")
    history = manager.summary_store.get_summary_history("s", 100)
    assert [entry["version"] for entry in history] == list(range(1, context["summary_version"] + 1))
    assert history[0]["first_seq"] == 1
    for earlier, later in pairwise(history):
        assert later["first_seq"] == earlier["last_seq"] + 1
    assert history[-1]["last_seq"] == context["watermark"]
    assert history[-1]["text"] == context["current_summary"] == manager.summary_store.get_current_summary("s")
    assert {entry["method"] for entry in history} == {"extractive"}
    assert all(entry["tokens"] <= 800 for entry in history)


def test_what_is_added_beside_a_conversation_joins_its_summary(manager: MemoryManager) -> None:
    manager.add_messages("s", talk(3))
    assert manager.summary_store.add_summary("s", "The user is called Ana.")
    context = manager.get_context("s")
    assert (context["watermark"], context["buffer_messages"]) == (0, talk(3))
    assert context["current_summary"] == "The user is called Ana."
    assert context["complete"] is True
    manager.set_session_config("s", {"max_buffer_messages": 3})
    for message in talk(6, start=4):
        manager.add_message("s", message)
    manager.wait_for_folds()
    context = manager.get_context("s")
    assert context["watermark"] > 0
    assert "Ana" in context["current_summary"], "within its budget nothing is forgotten"
    assert_context(context, talk(9))


def test_no_more_than_a_hundred_versions_without_a_log(ephemeral: Backend) -> None:
    summaries = ephemeral.open_summaries()
    for number in range(105):
        summaries.add_summary("s", f"Fact {number}.")
    history = summaries.get_summary_history("s", 1000)
    assert [entry["version"] for entry in history] == list(range(6, 106))
