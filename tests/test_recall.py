"""Searching a session's log, and contexts that recall what was folded; on real servers, blocking and asyncio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from memory_contract import Backend, assert_caps, assert_context, row_counts, rows_with, talk
from server_faults import ServerFaults

from contract_engine.memory import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidInputError,
    MemoryManager,
    SessionLimits,
)
from contract_engine.memory.hooks import OperationEnded, observers
from contract_engine.memory.ranking import Match, scores
from contract_engine.memory.recall import BATCH, MOST_BATCHES_OF_A_CONTEXT
from contract_engine.memory.terms import MAX_QUERY_TERMS, message_terms, query_terms

pytest_plugins = ("memory_fixtures",)

LIMITS = SessionLimits(summary_trigger_tokens=200, max_buffer_tokens=400, max_buffer_messages=10)

FACTS = (
    "My sister Ingrid works as a beekeeper in Norway.",
    "Meine Schwester wohnt in der Münchner Straße.",
    "我的猫叫小白，它喜欢吃鱼。",
    "東京でカメラを買いました。",
    "أعيش في القاهرة مع أخي",
    "The order number is ZX-81442, paid with card 7731.",
    "What is the name of your dog?",
    "He is called Bartholomew.",
)
QUESTIONS = (
    ("What does Ingrid work as?", 1),
    ("münchner strasse", 2),
    ("小白喜欢吃什么", 3),
    ("カメラ", 4),
    ("القاهرة", 5),
    ("ZX-81442", 6),
    ("7731", 6),
    ("dogs", 7),
)


def message(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content, "extra": [1, {"kept": True}]}


def told(manager: MemoryManager, session_id: str, *, more: int = 20) -> list[dict[str, Any]]:
    """Say the facts and then so much else that all of them are folded; answers everything that was said."""
    said = [message(fact) for fact in FACTS] + talk(more)
    for one in said:
        assert manager.add_message(session_id, one)
        manager.wait_for_folds()
    return said


def seqs(found: Sequence[dict[str, Any]]) -> list[int]:
    return [one["seq"] for one in found]


def test_a_search_finds_what_was_said_in_any_language_word_for_word(durable: Backend) -> None:
    manager = durable.open(limits=LIMITS)
    before = datetime.now(UTC) - timedelta(minutes=1)
    said = told(manager, "s")
    assert manager.get_context("s")["watermark"] >= len(FACTS)
    for question, seq in QUESTIONS:
        found = manager.search_messages("s", question)
        assert found[0]["seq"] == seq, question
        assert found[0]["message"] == said[seq - 1]
        assert before < datetime.fromisoformat(found[0]["at"]) < datetime.now(UTC) + timedelta(minutes=1)
        assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)


def test_what_is_not_folded_yet_is_found_too(durable: Backend) -> None:
    manager = durable.open()
    for fact in FACTS:
        manager.add_message("s", message(fact))
    for question, seq in QUESTIONS:
        assert manager.search_messages("s", question)[0]["seq"] == seq, question
    manager.set_session_config("s", {"max_buffer_messages": 4})
    assert 0 < manager.get_context("s")["watermark"] < len(FACTS)
    for question, seq in QUESTIONS:
        assert manager.search_messages("s", question)[0]["seq"] == seq, "some are folded, some are not"


def test_a_search_keeps_to_its_limit_and_answers_nothing_where_there_is_nothing(durable: Backend) -> None:
    manager = durable.open(limits=LIMITS)
    told(manager, "s")
    assert len(manager.search_messages("s", "message")) == 10
    assert len(manager.search_messages("s", "message", 3)) == 3
    assert manager.search_messages("s", "message", limit=3) == manager.search_messages("s", "message")[:3]
    assert manager.search_messages("s", "zeppelin") == []
    assert manager.search_messages("s", "what did you do?") == []
    assert manager.search_messages("never written", "message") == []


def test_a_context_recalls_what_answers_the_question(durable: Backend) -> None:
    manager = durable.open(limits=LIMITS)
    said = told(manager, "s")
    for question, seq in QUESTIONS:
        context = manager.get_context("s", question)
        assert seq in seqs(context["recalled"]), question
        assert seqs(context["recalled"]) == sorted(seqs(context["recalled"]))
        for one in context["recalled"]:
            assert set(one) == {"seq", "at", "message"}
            assert one["message"] == said[one["seq"] - 1]
    assert 8 in seqs(manager.get_context("s", "dog")["recalled"]), "the answer, which has none of the words"


def test_without_a_query_a_context_is_what_it_was_and_with_one_it_has_three_keys_more(durable: Backend) -> None:
    manager = durable.open(limits=LIMITS)
    said = told(manager, "s")
    plain, asked = manager.get_context("s"), manager.get_context("s", "Ingrid", recall_tokens=50)
    assert_context(plain, said)
    assert set(asked) - set(plain) == {"recalled", "recalled_tokens", "recall_available"}
    assert asked["recall_available"] is True
    assert asked["total_tokens"] == plain["total_tokens"] + asked["recalled_tokens"]
    assert 0 < asked["recalled_tokens"] <= 50
    counted = manager.token_counter.count_batch_tokens([one["message"] for one in asked["recalled"]])
    assert counted == asked["recalled_tokens"]
    assert {key: asked[key] for key in plain if key not in ("total_tokens", "buffer_info")} == {
        key: plain[key] for key in plain if key not in ("total_tokens", "buffer_info")
    }


def test_a_turn_can_recall_too(durable: Backend) -> None:
    manager = durable.open(limits=LIMITS)
    said = told(manager, "s")
    turn = manager.add_and_get_context("s", message("What does Ingrid do?"), query="Ingrid", recall_tokens=100)
    assert turn["last_seq"] == len(said) + 1
    assert 1 in seqs(turn["recalled"])


@pytest.mark.parametrize("count", [4, 12, 25])
def test_nothing_is_both_recalled_and_in_the_buffer(durable: Backend, count: int) -> None:
    manager = durable.open(limits=LIMITS)
    for number in range(count):
        manager.add_message("s", {"role": "user", "content": f"Note {number}: the ferry to Split."})
        context = manager.get_context("s", "ferry to Split", recall_tokens=10_000)
        assert all(seq <= context["watermark"] for seq in seqs(context["recalled"]))
        assert len(context["recalled"]) == context["watermark"], "all of them answer, and there is room"


def test_a_copy_in_redis_that_lags_behind_the_log_recalls_nothing_it_still_holds(blocking: Backend) -> None:
    manager, other = blocking.open(limits=LIMITS), blocking.open(limits=LIMITS)
    said = told(manager, "s")
    loaded = manager._runtime.run(manager._flows._sessions.load("s"))
    for one in talk(20, start=100):
        other.add_message("s", one)
    other.wait_for_folds()
    assert other.get_context("s")["watermark"] > loaded.state.watermark
    old = manager._runtime.run(manager._flows._context("s", loaded, manager._flows._check_recall("message", 100_000)))
    assert seqs(old["recalled"])[-1] <= old["watermark"] < len(said)


def test_what_was_folded_and_not_indexed_is_indexed_by_whoever_searches(durable: Backend) -> None:
    """So it is after a crash between the two, and with sessions that were folded before there was an index."""
    manager = durable.open(limits=LIMITS)
    told(manager, "s", more=BATCH * 2)
    assert durable.database_url is not None
    for search in (
        lambda: manager.search_messages("s", "Ingrid"),
        lambda: manager.get_context("s", "Ingrid")["recalled"],
    ):
        with psycopg.connect(durable.database_url) as connection:
            connection.execute("DELETE FROM memory_recall WHERE tenant = %s AND seq <> 3", (durable.tenant,))
            connection.execute("UPDATE memory_sessions SET indexed_seq = 0 WHERE tenant = %s", (durable.tenant,))
        assert seqs(search())[0] == 1
        watermark = manager.get_context("s")["watermark"]
        assert row_counts(durable.database_url, durable.tenant)["memory_recall"] == watermark > BATCH


def test_a_context_does_not_wait_for_the_index_of_thousands_of_messages(blocking: Backend) -> None:
    manager = blocking.open(limits=LIMITS)
    count = BATCH * (MOST_BATCHES_OF_A_CONTEXT + 1) + LIMITS.max_buffer_messages
    manager.session_store.append("s", message(FACTS[0]))
    with psycopg.connect(blocking.database_url or "") as connection:
        connection.execute(
            "INSERT INTO memory_messages (tenant, session_id, seq, message_id, tokens, body)"
            " SELECT tenant, session_id, n, 'm' || n, tokens, body FROM memory_messages, generate_series(2, %s) n"
            " WHERE tenant = %s",
            (count, blocking.tenant),
        )
        connection.execute(
            "UPDATE memory_sessions SET last_seq = %s, watermark = %s - 1 WHERE tenant = %s",
            (count, count, blocking.tenant),
        )
    context = manager.get_context("s", "Ingrid")
    assert (context["recall_available"], context["recalled"], context["last_seq"]) == (False, [], count)
    manager.wait_for_folds()
    context = manager.get_context("s", "Ingrid")
    assert context["recall_available"] is True
    assert context["recalled"]
    assert len(manager.search_messages("s", "Ingrid", limit=count)) == count


def test_an_index_that_cannot_be_written_changes_nothing_but_the_recall(durable: Backend) -> None:
    """Whatever PostgreSQL says against it: here it is a constraint of somebody's own."""
    manager = durable.open(limits=LIMITS)
    said = told(manager, "s")
    assert durable.database_url is not None
    with psycopg.connect(durable.database_url, autocommit=True) as connection:
        connection.execute("UPDATE memory_sessions SET indexed_seq = 0 WHERE tenant = %s", (durable.tenant,))
        connection.execute(
            f"ALTER TABLE memory_recall ADD CONSTRAINT mine CHECK (tenant <> '{durable.tenant}') NOT VALID"
        )
        try:
            for _ in range(6):  # more than the breaker of PostgreSQL would bear
                context = manager.get_context("s", "Ingrid")
                assert (context["recall_available"], context["recalled"]) == (False, [])
                assert (context["last_seq"], context["degraded"]) == (len(said), False)
            with pytest.raises(DatabaseUnavailableError, match="23514"):
                manager.search_messages("s", "Ingrid")
            assert manager.append("s", message("after")).durable is True
        finally:
            connection.execute("ALTER TABLE memory_recall DROP CONSTRAINT mine")
    assert seqs(manager.search_messages("s", "Ingrid"))[0] == 1


def test_common_terms_are_sampled_once_for_a_thousand_messages(blocking: Backend) -> None:
    manager = blocking.open(limits=LIMITS)
    asked: list[str] = []
    stop = observers.add(lambda detail: asked.append(detail.operation) if isinstance(detail, OperationEnded) else None)

    def grow(count: int) -> None:
        for start in range(0, count, 50):
            manager.add_messages("s", [message(f"Walk number {number}.") for number in range(start, start + 50)])
        manager.wait_for_folds()
        manager.search_messages("s", "beekeeper")  # has everything indexed

    def samples(question: str) -> int:
        asked.clear()
        manager.get_context("s", question)
        return asked.count("common")

    try:
        grow(1100)
        assert samples("Did a beekeeper walk?") == 1
        assert samples("What number is the walk?") == 0
        grow(300)
        assert samples("Did a beekeeper walk?") == 0
        grow(800)
        assert samples("Did a beekeeper walk?") == 1
        assert manager.clear_session_memory("s")
        grow(1100)
        assert samples("Did a beekeeper walk?") == 1, "of another life of the session nothing is known"
    finally:
        stop()


def test_clearing_a_session_leaves_no_byte_to_search(durable: Backend) -> None:
    manager = durable.open(limits=LIMITS)
    told(manager, "s")
    assert durable.database_url is not None
    assert "memory_recall.terms" in rows_with(durable.database_url, "bartholomew")
    assert manager.clear_session_memory("s")
    assert row_counts(durable.database_url, durable.tenant)["memory_recall"] == 0
    assert manager.search_messages("s", "Bartholomew") == []
    assert manager.get_context("s", "Bartholomew")["recalled"] == []


def test_an_index_that_comes_after_the_clearing_writes_nothing(blocking: Backend) -> None:
    manager = blocking.open(limits=LIMITS)
    told(manager, "s")
    recall = manager._flows._sessions.recall
    assert recall is not None
    with psycopg.connect(blocking.database_url or "", autocommit=True) as connection:
        connection.execute("DELETE FROM memory_recall WHERE tenant = %s", (blocking.tenant,))
        connection.execute("UPDATE memory_sessions SET indexed_seq = 0 WHERE tenant = %s", (blocking.tenant,))
    flow = recall.index("s")
    read = manager._runtime._perform(next(flow))
    assert manager.clear_session_memory("s")
    assert manager.add_message("s", message("a new life"))
    written = manager._runtime._perform(flow.send(read))
    assert list(written) == []
    assert row_counts(blocking.database_url or "", blocking.tenant)["memory_recall"] == 0


def test_sessions_and_tenants_are_apart(durable: Backend, redis_url: str, database_url: str) -> None:
    manager = durable.open(limits=LIMITS)
    told(manager, "s")
    told(manager, "other")
    stranger = durable.open(limits=LIMITS, tenant=f"{durable.tenant}x")
    assert stranger.search_messages("s", "Ingrid") == []
    for one in talk(12):
        stranger.add_message("s", one)
    stranger.wait_for_folds()
    assert stranger.search_messages("s", "Ingrid Bartholomew") == []
    assert stranger.get_context("s", "Ingrid Bartholomew")["recalled"] == []
    assert manager.clear_session_memory("other")
    assert seqs(manager.search_messages("s", "Ingrid")) == [1]
    assert stranger.clear_session_memory("s")


def test_a_broken_index_changes_nothing_but_the_recall(
    private_servers: Any, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = private_servers()
    with MemoryManager(
        redis_url=servers.redis_url, database_url=servers.database_url, tenant=tenant, limits=LIMITS
    ) as manager:
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE memory_recall RENAME TO memory_recall_away")
            said = told(manager, "s")
            context = manager.get_context("s", "Ingrid")
            assert_context({key: context[key] for key in context if key not in ("recalled", "recalled_tokens")}, said)
            assert context["watermark"] >= len(FACTS)
            assert (context["recall_available"], context["recalled"], context["recalled_tokens"]) == (False, [], 0)
            assert "Ingrid" not in caplog.text
            connection.execute("ALTER TABLE memory_recall_away RENAME TO memory_recall")
        assert seqs(manager.get_context("s", "Ingrid")["recalled"])[0] == 1


def test_with_the_database_away_a_search_says_so_and_a_context_goes_on(
    redis_url: str, private_servers: Any, tenant: str
) -> None:
    servers = private_servers()
    manager = MemoryManager(
        redis_url=servers.redis_url, database_url=servers.database_url, tenant=tenant, limits=LIMITS
    )
    with manager:
        told(manager, "s")
        plain = manager.get_context("s")
        ServerFaults(database=servers).kill_database()
        with pytest.raises(DatabaseUnavailableError):
            manager.search_messages("s", "Ingrid")
        context = manager.get_context("s", "Ingrid")
        assert (context["recall_available"], context["recalled"], context["recalled_tokens"]) == (False, [], 0)
        assert context["buffer_messages"] == plain["buffer_messages"]
        assert context["current_summary"] == plain["current_summary"]


def test_with_redis_away_a_context_recalls_all_the_same(durable: Backend, raw: redis.Redis) -> None:
    told(durable.open(limits=LIMITS), "s")
    manager = durable.open(limits=LIMITS, redis_url="redis://127.0.0.1:1/0")
    context = manager.get_context("s", "Ingrid")
    assert (context["degraded"], context["recall_available"], seqs(context["recalled"])[0]) == (True, True, 1)


def test_without_a_database_there_is_nothing_to_search(ephemeral: Backend) -> None:
    manager = ephemeral.open()
    manager.add_message("s", message("Ingrid"))
    with pytest.raises(ConfigurationError, match="database_url"):
        manager.search_messages("s", "Ingrid")
    with pytest.raises(ConfigurationError, match="query"):
        manager.get_context("s", "Ingrid")
    with pytest.raises(ConfigurationError, match="query"):
        manager.add_and_get_context("s", message("not stored"), query="Ingrid")
    assert manager.get_context("s")["last_seq"] == 1


@pytest.mark.parametrize("query", ["", " \n", None, 7, b"Ingrid"])
def test_a_query_is_a_text_with_something_in_it(durable: Backend, query: Any) -> None:
    manager = durable.open()
    with pytest.raises(InvalidInputError, match="query"):
        manager.search_messages("s", query)
    if query is not None:
        with pytest.raises(InvalidInputError, match="query"):
            manager.get_context("s", query)
        with pytest.raises(InvalidInputError, match="query"):
            manager.add_and_get_context("s", message("not stored"), query=query)
    assert manager.get_context("s")["last_seq"] == 0


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "10", None])
def test_limits_are_whole_numbers_from_one(durable: Backend, number: Any) -> None:
    manager = durable.open()
    with pytest.raises(InvalidInputError, match="limit"):
        manager.search_messages("s", "Ingrid", limit=number)
    with pytest.raises(InvalidInputError, match="recall_tokens"):
        manager.get_context("s", "Ingrid", recall_tokens=number)


ODD = (
    "it's \"quoted\" \\ ' | & ! ( ) <-> :* %s %(x)s",
    "nul\x00byte",
    "\ud800 lone",
    "🙂🙂",
    "a" * 100_000,
    "é́́ " * 50_000,
)


def test_odd_characters_are_said_and_asked(durable: Backend) -> None:
    manager = durable.open(limits=LIMITS)
    said = [message(f"{text} marker{place}") for place, text in enumerate(ODD)] + talk(12)
    for one in said:
        manager.add_message("s", one)
    manager.wait_for_folds()
    assert manager.get_context("s")["watermark"] >= len(ODD)
    for place, text in enumerate(ODD):
        manager.search_messages("s", text)
        assert manager.get_context("s", text)["recall_available"] is True
        assert manager.search_messages("s", f"marker{place}")[0]["message"] == said[place]


def test_a_long_session_ranks_as_a_short_one_does(blocking: Backend) -> None:
    """There a sample tells which terms are common, so that not every message with one of them is read."""
    manager = blocking.open(limits=LIMITS)
    said = [
        {
            "role": "user",
            "name": ("Ann", "Bob")[number % 2],
            "content": f"{('Walk', 'Swim', 'Read')[number % 3]} {number}.",
        }
        for number in range(1500)
    ]
    said[700]["content"] = "The beekeeper came."
    for start in range(0, len(said), 50):
        manager.add_messages("s", said[start : start + 50])
    manager.wait_for_folds()
    assert manager.get_context("s")["watermark"] > 1000
    assert manager.search_messages("s", "Ann and the beekeeper", 1)[0]["seq"] == 701
    assert 701 in seqs(manager.get_context("s", "Did Ann see a beekeeper?")["recalled"])
    assert len(manager.search_messages("s", "Ann walk", 300)) == 300, "both are common, and there are as many"
    assert {one["message"]["name"] for one in manager.search_messages("s", "Bob", 300)} == {"Bob"}


LAST_WORD = 7000 + MAX_QUERY_TERMS - 1
MANY_WORDS = " ".join(str(number) for number in range(7000, LAST_WORD + 1))
"""As many terms as a question may have."""


@pytest.mark.parametrize(
    "question",
    ["walk", "Ann walks and reads", "swim seven 13?", "What did Bob read?", MANY_WORDS, "Ann: " + MANY_WORDS],
)
def test_scores_are_those_of_counting_every_message(blocking: Backend, question: str) -> None:
    """What the database tells of terms is what counting them here gives: how often each stands in each message."""
    manager = blocking.open(limits=LIMITS)
    said = [
        {
            "role": "user",
            "name": ("Ann", "Bob")[number % 2],
            "content": " ".join(f"{word} {number % 17}" for word in ("Walk", "Swim", "Read")[: 1 + number % 3])
            + " walk" * (number % 4)
            + "?" * (number % 5 == 0),
            "timestamp": "2024-05-01T10:00:00Z",
        }
        for number in range(60)
    ]
    said[7]["content"] = f"{MANY_WORDS} {LAST_WORD} 7000?"
    said[8]["content"] = f"7001, {LAST_WORD}."
    assert len(query_terms(MANY_WORDS)) == MAX_QUERY_TERMS
    manager.add_messages("s", said)
    manager.wait_for_folds()
    assert manager.get_context("s")["watermark"] > 40, "most of them are searched by the database"
    made = [message_terms(one, 0.0) for one in said]
    counted = {seq: Match(len(terms), Counter(terms)) for seq, terms in enumerate(made, 1)}
    expected = scores(query_terms(question), counted, count=60, total_length=sum(map(len, made)))
    found = {one["seq"]: one["score"] for one in manager.search_messages("s", question, 60)}
    assert found == pytest.approx(expected)


@pytest.fixture(scope="module")
def long_talk(redis_url: str, database_url: str) -> Any:
    with MemoryManager(
        redis_url=redis_url, database_url=database_url, tenant="recall-budget", limits=LIMITS
    ) as manager:
        manager.clear_session_memory("s")
        for number in range(60):
            content = "ferry " * (number % 17 + 1) + "question?" * (number % 3)
            manager.add_message("s", {"role": "user", "content": content})
        manager.wait_for_folds()
        yield manager
        manager.clear_session_memory("s")


@given(budget=st.integers(1, 600))
def test_what_is_recalled_never_exceeds_its_budget(long_talk: MemoryManager, budget: int) -> None:
    context = long_talk.get_context("s", "ferry", recall_tokens=budget)
    counted = long_talk.token_counter.count_batch_tokens([one["message"] for one in context["recalled"]])
    assert counted == context["recalled_tokens"] <= budget
    assert_caps(context)
