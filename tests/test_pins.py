"""Pinned messages survive folds word for word, and what a session asks of its summaries is kept with it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg
import pytest
import redis
from many_writers import sync_backend
from memory_contract import (
    DURABLE,
    EPHEMERAL,
    SYNC,
    Backend,
    assert_context,
    logged,
    run_between,
    run_threads,
    say,
    talk,
)
from server_faults import blocked_by, waited_for

from contract_engine.memory import InvalidInputError, MemoryManager
from contract_engine.memory.config import SessionLimits
from contract_engine.memory.pins import MAX_INSTRUCTIONS_CHARS

pytest_plugins = ("memory_fixtures",)

LIMITS = SessionLimits(summary_trigger_tokens=120, max_buffer_tokens=400, max_buffer_messages=8)
"""With messages of 20 tokens: a fold is due at the sixth, and the ninth does not fit."""


@pytest.fixture
def narrow(backend: Backend) -> MemoryManager:
    """A manager that folds often."""
    return backend.open(limits=LIMITS)


@pytest.fixture(params=[DURABLE, EPHEMERAL])
def threaded(request: pytest.FixtureRequest, redis_url: str, tenant: str) -> Iterator[Backend]:
    """Blocking managers: those that threads may share, and whose effects a test can come between."""
    url = request.getfixturevalue("database_url") if request.param == DURABLE else None
    with closing(Backend(SYNC, request.param, redis_url, url, tenant)) as found:
        yield found


def tell(manager: MemoryManager, count: int, *, start: int = 1, session_id: str = "s") -> list[dict[str, Any]]:
    """Append messages one by one, under ids of their numbers, each after the folds before it."""
    said = talk(count, start=start)
    for number, message in enumerate(said, start):
        manager.append(session_id, message, message_id=f"id{number}")
        manager.wait_for_folds()
    return said


def seqs(context: dict[str, Any]) -> list[int]:
    return [pinned["seq"] for pinned in context["pinned_messages"]]


# -- folding


def test_a_pinned_message_survives_folds_word_for_word(narrow: MemoryManager, backend: Backend) -> None:
    said = tell(narrow, 4)
    for number in (3, 1):
        assert narrow.pin("s", f"id{number}") is True
    assert narrow.get_context("s")["pinned_messages"] == [], "they are in the buffer"
    said += tell(narrow, 20, start=5)
    assert narrow.pin("s", "id24") is True
    said += tell(narrow, 20, start=25)
    for reader in (narrow, backend.open(limits=LIMITS)):
        context = reader.get_context("s")
        assert_context(context, said)
        assert context["watermark"] >= 24
        assert [(pinned["seq"], pinned["message"]) for pinned in context["pinned_messages"]] == [
            (seq, said[seq - 1]) for seq in (1, 3, 24)
        ]
        assert all(set(pinned) == {"seq", "at", "message"} for pinned in context["pinned_messages"])
        assert all(pinned["at"] > "2026" for pinned in context["pinned_messages"])
        counted = sum(narrow.token_counter.count_message_tokens(said[seq - 1]) for seq in (1, 3, 24))
        assert context["pinned_tokens"] == counted > 0
        assert context["summary_tokens"] + counted <= 800


def test_pinning_twice_is_pinning_once(narrow: MemoryManager) -> None:
    said = tell(narrow, 2)
    for _ in range(2):
        assert narrow.pin("s", "id1") is True
    said += tell(narrow, 12, start=3)
    assert narrow.pin("s", "id1") is True
    context = narrow.get_context("s")
    assert seqs(context) == [1]
    assert_context(context, said)


def test_a_message_that_is_unpinned_leaves_the_context(narrow: MemoryManager) -> None:
    said = tell(narrow, 2)
    for name in ("id1", "id2"):
        narrow.pin("s", name)
    said += tell(narrow, 12, start=3)
    assert seqs(narrow.get_context("s")) == [1, 2]
    assert narrow.unpin("s", "id1") is True
    assert narrow.unpin("s", "id1") is False
    assert seqs(narrow.get_context("s")) == [2]
    said += tell(narrow, 12, start=15)
    context = narrow.get_context("s")
    assert seqs(context) == [2]
    assert_context(context, said)
    assert narrow.unpin("s", "id2") is True
    assert (narrow.get_context("s")["pinned_messages"], narrow.get_context("s")["pinned_tokens"]) == ([], 0)


def test_an_unpinned_message_of_the_buffer_is_folded_like_any_other(narrow: MemoryManager) -> None:
    tell(narrow, 2)
    narrow.pin("s", "id1")
    assert narrow.unpin("s", "id1") is True
    tell(narrow, 12, start=3)
    assert narrow.get_context("s")["pinned_messages"] == []


def test_unpinning_what_is_not_there_is_no_error(manager: MemoryManager) -> None:
    assert manager.unpin("s", "nothing") is False


def test_a_message_nobody_has_sent_cannot_be_pinned(narrow: MemoryManager, backend: Backend) -> None:
    for _ in range(2):
        with pytest.raises(InvalidInputError) as refused:
            narrow.pin("s", "nothing")
        assert refused.value.field == "message_id"
        tell(narrow, 2)
    assert narrow.get_context("s")["last_seq"] == 2


@pytest.mark.parametrize("message_id", [None, 3, "", "a\nb", "x" * 257])
def test_what_is_no_message_id_is_refused(manager: MemoryManager, message_id: Any) -> None:
    for call in (manager.pin, manager.unpin):
        with pytest.raises(InvalidInputError) as refused:
            call("s", message_id)
        assert refused.value.field == "message_id"


def test_sessions_and_tenants_keep_their_pins_apart(narrow: MemoryManager, backend: Backend) -> None:
    other = Backend(backend.colour, backend.mode, backend.redis_url, backend.database_url, f"{backend.tenant}x")
    try:
        elsewhere = other.open(limits=LIMITS)
        for manager, session_id in ((narrow, "s"), (narrow, "t"), (elsewhere, "s")):
            tell(manager, 2, session_id=session_id)
        narrow.pin("s", "id1")
        for manager, session_id in ((narrow, "s"), (narrow, "t"), (elsewhere, "s")):
            tell(manager, 12, start=3, session_id=session_id)
        assert seqs(narrow.get_context("s")) == [1]
        assert narrow.get_context("t")["pinned_messages"] == []
        assert elsewhere.get_context("s")["pinned_messages"] == []
        with pytest.raises(InvalidInputError):
            elsewhere.pin("nobody's", "id1")
        assert elsewhere.clear_session_memory("s")
    finally:
        other.close()


def test_a_call_may_be_pinned_without_its_result(narrow: MemoryManager) -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Rome"}'}}],
    }
    result = {"role": "tool", "tool_call_id": "c1", "content": '{"hotel": "Albergo 12"}'}
    said = [say(1), call, result]
    for number, message in enumerate(said, 1):
        narrow.append("s", message, message_id=f"id{number}")
    narrow.pin("s", "id2")
    said += tell(narrow, 14, start=4)
    context = narrow.get_context("s")
    assert [pinned["message"] for pinned in context["pinned_messages"]] == [call]
    assert_context(context, said)


def test_clearing_the_summaries_keeps_what_is_pinned(narrow: MemoryManager) -> None:
    tell(narrow, 2)
    narrow.pin("s", "id2")
    narrow.set_summary_instructions("s", "numbers")
    tell(narrow, 12, start=3)
    assert narrow.summary_store.clear_summaries("s")
    context = narrow.get_context("s")
    assert context["current_summary"] is None
    assert seqs(context) == [2]
    tell(narrow, 6, start=15)
    assert seqs(narrow.get_context("s")) == [2]
    assert narrow.get_summary_instructions("s") == "numbers"


def test_a_cleared_session_has_nothing_pinned(narrow: MemoryManager) -> None:
    tell(narrow, 2)
    narrow.pin("s", "id2")
    narrow.set_summary_instructions("s", "numbers")
    assert narrow.clear_session_memory("s")
    tell(narrow, 14)
    assert narrow.get_context("s")["pinned_messages"] == []
    assert narrow.get_summary_instructions("s") is None


# -- the budget


def long_message(number: int, words: int) -> dict[str, Any]:
    return say(number, words=words)


def test_at_most_half_of_the_summary_may_be_pinned(backend: Backend) -> None:
    manager = backend.open(max_summary_tokens=200)
    said = [long_message(number, 30) for number in range(1, 5)]
    for number, message in enumerate(said, 1):
        manager.append("s", message, message_id=f"id{number}")
    each = manager.token_counter.count_message_tokens(said[0])
    assert 34 <= each <= 50, "two of them fit, three do not"
    assert manager.pin("s", "id1")
    assert manager.pin("s", "id3")
    with pytest.raises(InvalidInputError) as refused:
        manager.pin("s", "id2")
    assert refused.value.field == "message_id"
    assert "100" in str(refused.value)
    assert manager.unpin("s", "id1")
    assert manager.pin("s", "id2"), "there is room again"


def test_the_summary_and_what_is_pinned_share_one_budget(backend: Backend) -> None:
    manager = backend.open(limits=LIMITS, max_summary_tokens=120)
    tell(manager, 3)
    for name in ("id1", "id2"):
        manager.pin("s", name)
    for start in range(4, 40, 4):
        tell(manager, 4, start=start)
        context = manager.get_context("s")
        assert context["summary_tokens"] + context["pinned_tokens"] <= 120
    assert seqs(context) == [1, 2]
    assert context["current_summary"]
    assert manager.summary_store.add_summary("s", " ".join(f"Fact {number}." for number in range(60)))
    context = manager.get_context("s")
    assert context["summary_tokens"] + context["pinned_tokens"] <= 120


def test_the_summary_keeps_its_half_of_a_budget_that_was_lowered(backend: Backend) -> None:
    wide = backend.open(limits=LIMITS, max_summary_tokens=400)
    said: list[dict[str, Any]] = []
    for number in range(1, 8):
        said += tell(wide, 1, start=number)
        wide.pin("s", f"id{number}")
    narrower = backend.open(limits=LIMITS, max_summary_tokens=120)
    said += tell(narrower, 12, start=8)
    context = narrower.get_context("s")
    assert context["pinned_tokens"] > 120
    assert 40 < context["summary_tokens"] <= 60
    assert_context(context, said)


def test_a_pin_behind_the_watermark_makes_the_summary_shorter(durable: Backend) -> None:
    manager = durable.open(limits=LIMITS, max_summary_tokens=120)
    said = tell(manager, 40)
    before = manager.get_context("s")
    assert before["summary_tokens"] > 90
    assert manager.pin("s", "id5")
    assert manager.pin("s", "id3")
    context = manager.get_context("s")
    assert seqs(context) == [3, 5]
    assert context["summary_tokens"] + context["pinned_tokens"] <= 120
    assert_context(context, said)
    assert manager.summary_store.get_summary_history("s", 1)[0]["version"] == context["summary_version"]


def test_a_pin_that_waits_for_a_fold_knows_the_summary_of_that_fold(
    redis_url: str, database_url: str, tenant: str
) -> None:
    """It waits for the row that the fold holds; what it decides by is read behind that."""
    new_version = (
        "INSERT INTO memory_summaries (tenant, session_id, version, first_seq, last_seq, text, tokens, method) SELECT"
        " tenant, session_id, version + 1, last_seq + 1, last_seq, text, tokens, method FROM memory_summaries"
        " WHERE tenant = %s AND session_id = 's' ORDER BY version DESC LIMIT 1"
    )
    moved = (
        "UPDATE memory_sessions SET summary_version = summary_version + 1, revision = revision + 1"
        " WHERE tenant = %s AND session_id = 's'"
    )
    with (
        sync_backend(redis_url, database_url, tenant) as backend,
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(database_url) as fold,
    ):
        manager = backend.open(limits=LIMITS, max_summary_tokens=120)
        tell(manager, 40)
        assert manager.get_context("s")["summary_tokens"] > 90
        fold.execute(moved, (tenant,))
        fold.execute(new_version, (tenant,))
        pinning = pool.submit(manager.pin, "s", "id5")
        assert waited_for(lambda: bool(blocked_by(fold)))
        fold.commit()
        assert pinning.result() is True
        context = manager.get_context("s")
        assert seqs(context) == [5]
        assert context["summary_tokens"] + context["pinned_tokens"] <= 120


@pytest.mark.parametrize("after", [1, 2])
def test_what_is_pinned_while_a_summary_is_written_again_shares_its_budget(
    redis_url: str, database_url: str, tenant: str, after: int
) -> None:
    with sync_backend(redis_url, database_url, tenant) as backend:
        manager, other = (backend.open(limits=LIMITS, max_summary_tokens=120) for _ in range(2))
        tell(manager, 40)
        flow = manager._flows.summary.resummarize("s", use_model=False, dry_run=False, progress=None)
        run_between(manager, flow, after=after, action=lambda: [other.pin("s", name) for name in ("id3", "id5")])
        context = manager.get_context("s")
        assert seqs(context) == [3, 5]
        assert context["summary_tokens"] + context["pinned_tokens"] <= 120


def test_without_a_log_what_was_folded_is_unknown(ephemeral: Backend) -> None:
    manager = ephemeral.open(limits=LIMITS)
    tell(manager, 20)
    with pytest.raises(InvalidInputError) as refused:
        manager.pin("s", "id1")
    assert refused.value.field == "message_id"


# -- both stores


def test_redis_and_the_log_give_the_same_pinned_messages(durable: Backend, raw: redis.Redis) -> None:
    manager = durable.open(limits=LIMITS)
    odd = {"role": "user", "content": "\ud800 lone", "data": {"deep": [1, 2.5, None, "é"]}}
    manager.append("s", odd, message_id="odd")
    said = [odd, *tell(manager, 2, start=2)]
    for name in ("id3", "odd"):
        manager.pin("s", name)
    manager.set_summary_instructions("s", "lone \ud800 and é")
    said += tell(manager, 12, start=4)
    folded = manager.get_context("s")
    raw.delete(*durable.keys("s"))
    from_log, from_redis = manager.get_context("s"), manager.get_context("s")
    assert (folded["source"], from_log["source"], from_redis["source"]) == ("redis", "postgres", "redis")
    for context in (folded, from_log, from_redis):
        assert seqs(context) == [1, 3]
        assert context["pinned_messages"] == folded["pinned_messages"]
        assert context["pinned_messages"][0]["message"] == odd
        assert context["pinned_tokens"] == folded["pinned_tokens"]
        assert_context(context, said)


def test_a_plain_session_is_cached_as_it_always_was(narrow: MemoryManager, backend: Backend, raw: redis.Redis) -> None:
    tell(narrow, 14)
    cached: Any = raw.get(backend.keys("s").summary)
    assert len(json.loads(cached)) == 5


def test_a_summary_without_the_longer_form_is_one_without_pins(
    narrow: MemoryManager, backend: Backend, raw: redis.Redis
) -> None:
    """As another version of this library writes it, which knows nothing of pins."""
    tell(narrow, 2)
    narrow.pin("s", "id1")
    said = [*talk(2), *tell(narrow, 12, start=3)]
    cached: Any = raw.get(backend.keys("s").summary)
    assert len(json.loads(cached)) == 8
    raw.set(backend.keys("s").summary, json.dumps(json.loads(cached)[:5]), ex=3600)
    context = narrow.get_context("s")
    assert context["pinned_messages"] == []
    assert_context(context, said)


@pytest.mark.parametrize(
    "tail",
    [[["id1"]], [["id1"], [], 3], [[1], [], ""], [["id1"], [[1, 2]], ""], [["id1"], ["x"], ""], ["id1", [], ""]],
    ids=str,
)
def test_a_damaged_longer_form_is_a_miss(durable: Backend, raw: redis.Redis, tail: list[Any]) -> None:
    manager = durable.open(limits=LIMITS)
    tell(manager, 2)
    manager.pin("s", "id1")
    said = [*talk(2), *tell(manager, 12, start=3)]
    cached: Any = raw.get(durable.keys("s").summary)
    raw.set(durable.keys("s").summary, json.dumps(json.loads(cached)[:5] + tail), ex=3600)
    context = manager.get_context("s")
    assert context["source"] == "postgres"
    assert seqs(context) == [1]
    assert_context(context, said)


def test_pinned_messages_live_as_long_as_their_session(ephemeral: Backend, raw: redis.Redis) -> None:
    """Each append renews the deadline of every key, that of the pins included, also before the first fold."""
    manager = ephemeral.open()
    tell(manager, 2)
    manager.pin("s", "id1")
    raw.expire(ephemeral.keys("s").summary, 100)
    tell(manager, 1, start=3)
    ttl: Any = raw.ttl(ephemeral.keys("s").summary)
    assert ttl > 100


# -- while others are at work, and with a server away


def test_a_fold_that_was_planned_before_a_pin_loses(threaded: Backend) -> None:
    manager, other = threaded.open(limits=LIMITS), threaded.open(limits=LIMITS)
    for number in range(1, 6):
        manager.append("s", say(number), message_id=f"id{number}")
    other.set_session_config("s", {"summary_trigger_tokens": 60})
    manager.wait_for_folds()
    folding = manager._flows._sessions.folding
    watermark = manager.get_context("s")["watermark"]
    name = f"id{watermark + 1}"
    # After the session was read (and with a log, after it was asked what waits).
    run_between(
        manager,
        folding.fold_when_due("s"),
        after=2 if threaded.is_durable else 1,
        action=lambda: other.pin("s", name),
    )
    assert manager.get_context("s")["watermark"] == watermark, "it lost"
    manager._runtime.run(folding.fold_when_due("s"))
    context = manager.get_context("s")
    assert context["watermark"] > watermark
    assert seqs(context) == [watermark + 1]


def test_pins_and_folds_at_once_lose_nothing(threaded: Backend) -> None:
    managers = [threaded.open(limits=LIMITS, summary_tokens=4000, max_summary_tokens=4000) for _ in range(3)]
    written, pinned = threading.Semaphore(0), []

    def work(number: int) -> None:
        manager = managers[number]
        if number == 0:
            for count in range(1, 81):
                manager.append("s", say(count), message_id=f"id{count}")
                written.release()
            return
        for count in range(1, 81):
            if number == 1:
                written.acquire()
            if count % 4 == number:
                try:
                    assert manager.pin("s", f"id{count}")
                    pinned.append(count)
                except InvalidInputError:  # not written yet, or without a log folded already
                    assert number == 2 or not threaded.is_durable
            manager.get_context("s")

    run_threads(3, work)
    for manager in managers:
        manager.wait_for_folds()
    said = talk(80)
    if threaded.is_durable:
        assert {count for count in pinned if count % 4 == 1} == set(range(1, 81, 4))
        assert [message for _, message in logged(threaded.database_url or "", threaded.tenant, "s")] == said
    assert len(pinned) >= 5
    said += tell(managers[0], 10, start=81)
    for manager in managers:
        context = manager.get_context("s")
        assert_context(context, said)
        assert context["watermark"] >= 80
        assert seqs(context) == sorted(pinned)
        assert [one["message"] for one in context["pinned_messages"]] == [said[seq - 1] for seq in sorted(pinned)]


# -- what the session wants of its summaries


def test_instructions_come_back_as_they_were_given(manager: MemoryManager, backend: Backend) -> None:
    assert manager.get_summary_instructions("s") is None
    for text in ("Keep everything about allergies.", "  é \x00 \ud800 ", "x" * MAX_INSTRUCTIONS_CHARS):
        manager.set_summary_instructions("s", text)
        assert manager.get_summary_instructions("s") == text
        assert backend.open().get_summary_instructions("s") == text
    manager.add_message("s", say(1))
    assert manager.get_summary_instructions("s") == "x" * MAX_INSTRUCTIONS_CHARS
    assert_context(manager.get_context("s"), [say(1)])
    for nothing in ("", " \n", None):
        manager.set_summary_instructions("s", "something")
        manager.set_summary_instructions("s", nothing)
        assert manager.get_summary_instructions("s") is None


@pytest.mark.parametrize("text", [3, b"bytes", ["a"], "x" * (MAX_INSTRUCTIONS_CHARS + 1)])
def test_what_are_no_instructions_is_refused(manager: MemoryManager, text: Any) -> None:
    with pytest.raises(InvalidInputError) as refused:
        manager.set_summary_instructions("s", text)
    assert refused.value.field == "text"
    assert manager.get_summary_instructions("s") is None


def test_instructions_survive_folds_and_pins(narrow: MemoryManager) -> None:
    tell(narrow, 2)
    narrow.set_summary_instructions("s", "numbers")
    narrow.pin("s", "id1")
    tell(narrow, 12, start=3)
    narrow.unpin("s", "id1")
    tell(narrow, 12, start=15)
    assert narrow.get_summary_instructions("s") == "numbers"


def test_a_fold_keeps_what_the_session_asked_for(backend: Backend) -> None:
    """The same conversation in two sessions, one of which said what matters to it."""
    manager = backend.open(limits=LIMITS, max_summary_tokens=60)
    said = [
        "Hm, shellfish sometimes gives me a rash.",
        "We moved from Lisbon to Copenhagen in March 2021 with our two cats, Miso and Tofu.",
        "My sister Clara married Henrik Madsen at Kronborg Castle on 14 June 2022.",
        "I booked flight SK1419 to Rome for 3 May, seat 14C, for 212 euros.",
        "Our neighbour Olaf Petersen bought a red Volvo 240 from 1989 last week.",
        "The dentist, Dr. Amalie Holm, moved to Vesterbrogade 112, phone 33215566.",
        "Ticket #88412 about the broken Bosch dishwasher was closed on Tuesday.",
        "I won 500 kroner at the Tivoli lottery with number 77120.",
        "Marcus graduated from Aarhus University with a degree in marine biology.",
        "We painted the hallway in Farrow green and bought 12 brass hooks.",
        "Reservation ZX-4471 at Restaurant Barr is for four people at 19:30.",
        "My boss Ingrid promoted me to lead engineer on 1 September 2023.",
    ]
    for session_id, wishes in (("plain", None), ("asked", "Keep everything about rashes and allergies.")):
        manager.set_summary_instructions(session_id, wishes)
        for text in said:
            manager.append(session_id, {"role": "user", "content": text})
            manager.wait_for_folds()
    plain, asked = manager.get_context("plain"), manager.get_context("asked")
    assert plain["watermark"] == asked["watermark"] >= 6
    assert "rash" not in plain["current_summary"]
    assert "rash" in asked["current_summary"]
    assert asked["summary_tokens"] <= 60
