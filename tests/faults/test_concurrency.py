"""Many writers and readers on one session: exact counts, and the promises on every single read."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import redis
from many_writers import (
    Acknowledged,
    Readers,
    assert_all_kept,
    assert_read,
    run_beside_readers,
    run_programs,
    sync_backend,
    told,
)
from memory_contract import (
    ASYNC,
    DURABLE,
    EPHEMERAL,
    Backend,
    assert_caps,
    assert_context,
    logged,
    redis_values,
    row_counts,
    rows_with,
    run_between,
    run_threads,
    say,
    talk,
)

from contract_engine.memory import AsyncMemoryManager, MemoryManager, MessageConflictError

pytest_plugins = ("memory_fixtures",)


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
def test_sixteen_threads_on_one_session(redis_url: str, database_url: str, tenant: str, mode: str) -> None:
    writers, each = 16, 25
    seqs: list[list[int]] = [[] for _ in range(writers)]
    acknowledged = Acknowledged()
    with sync_backend(redis_url, database_url, tenant, mode) as backend:
        managers = [backend.open(max_buffer_messages=20, redis_timeout_seconds=5.0) for _ in range(2)]

        def write(writer: int) -> None:
            manager = managers[writer % 2]
            for number in range(each):
                message = told(writer, number)
                if number % 5 == 4:
                    context = manager.add_and_get_context("s", message, message_id=f"{writer}-{number}")
                    assert_read(context)
                    assert context["last_seq"] > seqs[writer][-1]
                else:
                    receipt = manager.append("s", message, message_id=f"{writer}-{number}")
                    assert receipt.degraded is False
                    seqs[writer].append(receipt.seq)
                    acknowledged.note(receipt.seq)

        run_beside_readers(managers, write, seqs, acknowledged)
        assert len({seq for found in seqs for seq in found}) == writers * each * 4 // 5
        context = managers[0].get_context("s")
        assert_read(context)
        assert context["last_seq"] == writers * each
        assert context["watermark"] >= writers * each - 20
        history = managers[0].summary_store.get_summary_history("s", 10_000)
        assert all(later["first_seq"] == earlier["last_seq"] + 1 for earlier, later in pairwise(history))
        assert history[-1]["last_seq"] == context["watermark"]
        if mode == DURABLE:
            rows = logged(database_url, tenant, "s")
            assert_all_kept(rows, writers=writers, each=each)
            assert history[0]["first_seq"] == 1
            assert context["buffer_messages"] == [message for _, message in rows][context["watermark"] :]
            assert len(history) == history[-1]["version"] == context["summary_version"]


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
async def test_sixty_four_tasks_on_one_session(redis_url: str, database_url: str, tenant: str, mode: str) -> None:
    backend = Backend(ASYNC, mode, redis_url, database_url if mode == DURABLE else None, tenant)
    writers, each = 64, 4
    done = asyncio.Event()
    reads = 0
    config = backend.config(redis_timeout_seconds=5.0)
    async with AsyncMemoryManager(max_buffer_messages=20, config=config) as manager:

        async def write(writer: int) -> list[int]:
            found = []
            for number in range(each):
                receipt = await manager.append("s", told(writer, number), message_id=f"{writer}-{number}")
                assert receipt.degraded is False
                found.append(receipt.seq)
            return found

        async def read() -> None:
            nonlocal reads
            while not done.is_set():
                assert_read(await manager.get_context("s"))
                reads += 1

        readers = [asyncio.create_task(read()) for _ in range(2)]
        found = await asyncio.gather(*(write(writer) for writer in range(writers)))
        done.set()
        await asyncio.gather(*readers)
        await manager.wait_for_folds()
        assert reads >= 2
        assert all(seqs == sorted(seqs) for seqs in found)
        assert sorted(seq for seqs in found for seq in seqs) == list(range(1, writers * each + 1))
        context = await manager.get_context("s")
        assert_read(context)
        assert context["last_seq"] == writers * each
    if mode == DURABLE:
        rows = logged(database_url, tenant, "s")
        assert_all_kept(rows, writers=writers, each=each)
        assert context["buffer_messages"] == [message for _, message in rows][context["watermark"] :]


WRITER = """
import json, sys
from contract_engine.memory import MemoryConfig, MemoryManager
from memory_contract import run_threads
from many_writers import assert_read, told

settings, first, each = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with MemoryManager(max_buffer_messages=12, config=MemoryConfig(**settings)) as manager:
    print("ready", flush=True)
    sys.stdin.readline()

    def write(thread):
        for number in range(each):
            manager.append("s", told(first + thread, number), message_id=f"{first + thread}-{number}")
            assert_read(manager.get_context("s"))

    run_threads(2, write)
    manager.wait_for_folds()
"""


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
def test_two_processes_on_one_session(redis_url: str, database_url: str, tenant: str, mode: str) -> None:
    settings = {
        "redis_url": redis_url,
        "database_url": database_url if mode == DURABLE else None,
        "tenant": tenant,
        "redis_timeout_seconds": 5.0,
    }
    each = 25
    run_programs(WRITER, *([json.dumps(settings), str(first), str(each)] for first in (0, 2)))
    with sync_backend(redis_url, database_url, tenant, mode) as backend:
        context = backend.open().get_context("s")
        assert_read(context)
        assert context["last_seq"] == 4 * each
        if mode == DURABLE:
            rows = logged(database_url, tenant, "s")
            assert_all_kept(rows, writers=4, each=each)
            assert context["buffer_messages"] == [message for _, message in rows][context["watermark"] :]


def test_the_same_appends_from_everywhere_have_one_effect(redis_url: str, database_url: str, tenant: str) -> None:
    with sync_backend(redis_url, database_url, tenant) as backend:
        managers = [backend.open(max_buffer_messages=8) for _ in range(2)]
        receipts: list[dict[int, int]] = [{} for _ in range(8)]

        def write(thread: int) -> None:
            for number in range(25):
                receipt = managers[thread % 2].append("s", told(0, number), message_id=f"id{number}")
                receipts[thread][number] = receipt.seq

        run_threads(8, write)
        assert all(found == receipts[0] for found in receipts)
        assert sorted(receipts[0].values()) == list(range(1, 26))
        rows = logged(database_url, tenant, "s")
        assert sorted(message["n"] for _, message in rows) == list(range(25))
        for manager in managers:
            manager.wait_for_folds()
            assert_context(manager.get_context("s"), [message for _, message in rows])
        with pytest.raises(MessageConflictError):
            managers[0].append("s", told(1, 1), message_id="id1")


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
def test_limits_change_while_others_write(redis_url: str, database_url: str, tenant: str, mode: str) -> None:
    with sync_backend(redis_url, database_url, tenant, mode) as backend:
        managers = [backend.open(redis_timeout_seconds=5.0) for _ in range(2)]
        acknowledged = Acknowledged()

        def work(thread: int) -> None:
            for number in range(40):
                if thread == 0:
                    changes = {"max_buffer_messages": 3 + number % 9, "max_buffer_tokens": 100 + 40 * (number % 5)}
                    managers[0].set_session_config("s", changes)
                else:
                    acknowledged.note(managers[thread % 2].append("s", told(thread, number)).seq)
                    assert_read(managers[1].get_context("s"))

        with Readers(lambda: managers[0].get_context("s"), acknowledged):
            run_threads(5, work)
        for manager in managers:
            manager.wait_for_folds()
            context = manager.get_context("s")
            assert_read(context)
            assert context["last_seq"] == 160
            # The last change stands, for everybody.
            assert manager.get_session_config("s")["max_buffer_messages"] == 3 + 39 % 9
            assert context["buffer_info"]["max_tokens"] == 100 + 40 * (39 % 5)


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
def test_summaries_added_while_others_fold(redis_url: str, database_url: str, tenant: str, mode: str) -> None:
    with sync_backend(redis_url, database_url, tenant, mode) as backend:
        manager = backend.open(max_buffer_messages=6, redis_timeout_seconds=5.0)

        def work(thread: int) -> None:
            for number in range(20):
                if thread < 2:
                    assert manager.summary_store.add_summary("s", f"Fact {thread}-{number} holds.", {"n": number})
                else:
                    manager.append("s", told(thread, number))

        run_threads(6, work)
        manager.wait_for_folds()
        history = manager.summary_store.get_summary_history("s", 10_000)
        assert [entry["version"] for entry in history] == list(range(history[0]["version"], history[-1]["version"] + 1))
        added = Counter(entry["text"] for entry in history if entry["method"] == "supplied")
        expected = Counter(f"Fact {thread}-{number} holds." for thread in range(2) for number in range(20))
        assert added == expected
        context = manager.get_context("s")
        assert context["last_seq"] == 80
        assert context["watermark"] + context["message_count"] == 80
        assert_caps(context)


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
def test_clearing_while_others_write_resurrects_nothing(
    redis_url: str, database_url: str, tenant: str, mode: str, raw: redis.Redis
) -> None:
    canary = f"canary{tenant}"
    with sync_backend(redis_url, database_url, tenant, mode) as backend:
        managers = [backend.open(max_buffer_messages=6, redis_timeout_seconds=5.0) for _ in range(2)]
        for _ in range(15):

            def work(thread: int) -> None:
                if thread == 0:
                    assert managers[0].clear_session_memory("s")
                    return
                for number in range(4):
                    managers[thread % 2].append("s", {"writer": thread, "n": number, "content": f"I say {canary}."})

            run_threads(5, work)
            for manager in managers:
                manager.wait_for_folds()
            context = managers[0].get_context("s")
            assert_read(context)
            elsewhere = managers[1].get_context("s")
            for key in ("buffer_messages", "current_summary", "watermark", "last_seq"):
                assert elsewhere[key] == context[key]
            if mode == DURABLE:
                rows = logged(database_url, tenant, "s")
                assert [seq for seq, _ in rows] == list(range(1, context["last_seq"] + 1))
                assert context["buffer_messages"] == [message for _, message in rows][context["watermark"] :]
            assert managers[1].clear_session_memory("s")
            assert not [key for key, value in redis_values(raw, f"*{tenant}/*").items() if canary.encode() in value]
        if mode == DURABLE:
            assert rows_with(database_url, canary) == []
            assert not any(row_counts(database_url, tenant).values())


# -- the same races, one step at a time: what another process does between two steps of an append


@pytest.fixture
def pair(redis_url: str, database_url: str, tenant: str) -> Any:
    with sync_backend(redis_url, database_url, tenant) as backend:
        yield backend.open(), backend.open(), backend


Pair = tuple[MemoryManager, MemoryManager, Backend]


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_session_cleared_between_log_and_redis_stays_cleared(pair: Pair, raw: redis.Redis, before: int) -> None:
    one, other, backend = pair
    for number in range(before):
        one.append("s", say(number))
    flow = one._flows.append("s", {"role": "user", "content": "erased"}, None)
    run_between(one, flow, after=1, action=lambda: other.clear_session_memory("s"))
    assert not any(row_counts(backend.database_url or "", backend.tenant).values())
    assert not [key for key, value in redis_values(raw, f"*{backend.tenant}/*").items() if b"erased" in value]
    assert_context(other.get_context("s"), [])
    assert_context(one.get_context("s"), [])
    assert other.append("s", say(7)).seq == 1
    assert_context(one.get_context("s"), [say(7)])


@pytest.mark.parametrize("before", [0, 1, 3])
def test_limits_set_between_log_and_redis_hold(pair: Pair, before: int) -> None:
    one, other, _ = pair
    said = talk(before + 1)
    for message in said[:-1]:
        one.append("s", message)
    flow = one._flows.append("s", said[-1], None)
    run_between(one, flow, after=1, action=lambda: other.set_session_config("s", {"max_buffer_messages": 2}))
    for manager in (other, one):
        assert manager.get_session_config("s")["max_buffer_messages"] == 2
        context = manager.get_context("s")
        assert_context(context, said)
        assert context["message_count"] <= 2


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
def test_a_reader_never_sees_caps_that_are_not_kept(redis_url: str, database_url: str, tenant: str, mode: str) -> None:
    """Lowering the caps takes several steps; what is read between any two of them keeps the caps it names."""
    with sync_backend(redis_url, database_url, tenant, mode) as backend:
        one, other = backend.open(), backend.open()
        for after in (1, 2):
            said = talk(10)
            one.add_messages(f"s{after}", said)
            flow = one._flows.set_session_config(f"s{after}", {"max_buffer_messages": 3})
            found: list[dict[str, Any]] = []
            run_between(one, flow, after=after, action=lambda: found.append(other.get_context(f"s{after}")))  # noqa: B023  # called at once
            assert_context(found[0], said)
            assert_context(other.get_context(f"s{after}"), said)


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("later", [1, 2])
def test_appends_may_reach_redis_in_another_order(pair: Pair, before: int, later: int) -> None:
    one, other, _ = pair
    said = talk(before + 1 + later)
    for message in said[:before]:
        one.append("s", message)
    flow = one._flows.append("s", said[before], None)
    run_between(one, flow, after=1, action=lambda: [other.append("s", message) for message in said[before + 1 :]])
    for manager in (other, one, other):
        assert_context(manager.get_context("s"), said)
    assert other.append("s", say(99)).seq == len(said) + 1
    assert_context(one.get_context("s"), [*said, say(99)])


Said = list[dict[str, Any]]


def append(other: MemoryManager, said: Said) -> None:
    said.append(say(50))
    other.append("s", say(50))


def batch(other: MemoryManager, said: Said) -> None:
    said.extend(talk(40, start=60))
    other.add_messages("s", talk(40, start=60))


def limits(other: MemoryManager, _: Said) -> None:
    other.set_session_config("s", {"max_buffer_messages": 2})


def read(other: MemoryManager, _: Said) -> None:
    other.get_context("s")


def clear(other: MemoryManager, said: Said) -> None:
    said.clear()
    other.clear_session_memory("s")


def clear_and_append(other: MemoryManager, said: Said) -> None:
    clear(other, said)
    append(other, said)


def summary(other: MemoryManager, _: Said) -> None:
    other.summary_store.add_summary("s", "Meanwhile.")


Action = Callable[[MemoryManager, Said], None]
ACTIONS: list[Action] = [append, batch, limits, read, clear, clear_and_append, summary]


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_rebuild_never_puts_an_old_state_in_place(pair: Pair, raw: redis.Redis, action: Action, after: int) -> None:
    """A reader that found nothing in Redis: read, claim, read the log, install; something happens in between."""
    one, other, backend = pair
    said = talk(5)
    one.add_messages("s", said)
    assert raw.delete(*backend.keys("s")) >= 1
    run_between(one, one._flows.get_context("s"), after=after, action=lambda: action(other, said))
    for manager in (other, one, other):
        manager.wait_for_folds()
        context = manager.get_context("s")
        assert context["buffer_messages"] == said[context["watermark"] :]
        assert context["last_seq"] == len(said)
        assert_caps(context)
    assert other.get_context("s")["source"] == "redis" or not said
    assert one.get_session_config("s") == other.get_session_config("s") == backend.open().get_session_config("s")


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_fold_that_was_overtaken_does_no_harm(pair: Pair, action: Action, after: int) -> None:
    """A background fold: read the log, commit there, commit in Redis; something happens in between."""
    one, other, _ = pair
    said = talk(12)
    one.add_messages("s", said)
    one.set_session_config("s", {"summary_trigger_tokens": 100})
    one.get_context("s")
    fold = one._flows._sessions.folding.fold_when_due("s", 1)
    run_between(one, fold, after=after, action=lambda: action(other, said))
    for manager in (one, other):
        manager.wait_for_folds()
        context = manager.get_context("s")
        assert context["buffer_messages"] == said[context["watermark"] :]
        assert context["last_seq"] == len(said)
        assert context["complete"] is True
        assert_caps(context)
