"""What performs the effects: deadlines, lost connections, background work, forks; both colours alike."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
import redis
import sqlalchemy as sa
from memory_contract import DURABLE, SYNC, Backend, run_threads
from server_faults import waited_for

from contract_engine.memory import (
    AsyncMemoryManager,
    CircuitBreaker,
    DatabaseUnavailableError,
    MemoryConfig,
    MemoryManager,
    MessageConflictError,
    StoreMisconfiguredError,
    redis_circuit_breaker,
)
from contract_engine.memory._effects import Flow, Statement, Summarize, query, transaction
from contract_engine.memory.message_log import LogFlows

pytest_plugins = ["memory_fixtures"]

LONG = 20
"""Seconds that the server would take; whoever returns in less than half of that has not waited for it."""
SLEEP = Statement("sleep", lambda: sa.text(f"SELECT pg_sleep({LONG})"))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture
def pair(redis_url: str, database_url: str, tenant: str) -> Iterator[tuple[MemoryManager, MemoryManager]]:
    backend = Backend(SYNC, DURABLE, redis_url, database_url, tenant)
    yield backend.open(), backend.open()
    backend.close()


def perform(backend: Backend, memory: MemoryManager, flow: Flow[object]) -> object:
    """Run a flow of the test's own on the runtime of a manager."""
    answer: Any = memory._runtime.run(flow)
    if backend.colour == SYNC:
        return answer
    assert backend.loop is not None
    return backend.loop.run_until_complete(answer)


# -- deadlines


def test_a_statement_that_takes_too_long_ends_at_its_deadline(durable: Backend) -> None:
    slow = durable.open(database_timeout_seconds=0.5)
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match="no answer within"):
        perform(durable, slow, query(SLEEP, {}))
    assert time.monotonic() - started < LONG / 2
    assert slow.append("s", user("still working")).seq == 1


def test_a_transaction_that_takes_too_long_does_not_wait_twice(durable: Backend) -> None:
    deadline = 2.0
    slow = durable.open(database_timeout_seconds=deadline)
    started = time.monotonic()
    flow = transaction(lambda connection: connection.execute(sa.text(f"SELECT pg_sleep({LONG})")).all())
    with pytest.raises(DatabaseUnavailableError, match="no answer within"):
        perform(durable, slow, flow)
    assert time.monotonic() - started < 2 * deadline
    assert slow.get_session_config("s")


def test_a_cancelled_statement_does_not_hold_its_caller(redis_url: str, database_url: str, tenant: str) -> None:
    async def scenario() -> float:
        async with AsyncMemoryManager(redis_url=redis_url, database_url=database_url, tenant=tenant) as memory:
            await memory.append("s", user("hello"))
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await memory._runtime.run(query(SLEEP, {}))
            taken = time.monotonic() - started
            assert (await memory.append("s", user("again"))).seq == 2
            return taken

    assert asyncio.run(scenario()) < LONG / 2


def test_a_transaction_cancelled_at_any_turn_of_the_loop_keeps_its_place_in_the_pool(
    redis_url: str, database_url: str, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg lets the loop have a turn where it does not have to wait, but only now and then: here every time."""
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0.0)

    async def scenario() -> int:
        cancelled = 0
        settings: dict[str, Any] = {"database_pool_size": 1, "database_timeout_seconds": 2}
        async with AsyncMemoryManager(redis_url=redis_url, database_url=database_url, tenant=tenant, **settings) as one:
            await one.append("s", user("hello"))
            for turns in range(12):
                flow = transaction(lambda connection: connection.execute(sa.text("SELECT pg_sleep(0.2)")).all())
                task = asyncio.ensure_future(one._runtime.run(flow))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                cancelled += task.cancelled()
                assert (await one.append("s", user("again"))).durable, turns
        return cancelled

    assert asyncio.run(scenario()) == 12


# -- connections


def test_repeating_a_message_keeps_the_connection(durable: Backend) -> None:
    memory = durable.open()
    memory.append("s", user("hello"), message_id="one")

    def connections() -> set[int]:
        with psycopg.connect(durable.database_url or "") as other:
            rows = other.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'contract-memory'")
            return {row[0] for row in rows}

    memory.append("s", user("hello"), message_id="one")  # opens what a repetition needs
    before = connections()
    for _ in range(5):
        assert memory.append("s", user("hello"), message_id="one").seq == 1
    assert before
    assert connections() <= before, "a new connection was opened"


def test_a_retry_may_have_its_keys_in_another_order(backend: Backend) -> None:
    memory = backend.open()
    first = memory.append("s", {"role": "user", "content": "hello", "n": 1}, message_id="one")
    again = memory.append("s", {"n": 1, "content": "hello", "role": "user"}, message_id="one")
    assert (again.seq, again.message_id) == (first.seq, first.message_id)
    with pytest.raises(MessageConflictError):
        memory.append("s", {"n": 2, "content": "hello", "role": "user"}, message_id="one")
    assert memory.get_context("s")["last_seq"] == 1


def test_a_wrong_database_is_a_wrong_setting_and_no_outage(redis_url: str, database_url: str, tenant: str) -> None:
    wrong = f"{database_url.rpartition('/')[0]}/nobody_made_this"
    with (
        MemoryManager(redis_url=redis_url, database_url=wrong, tenant=tenant) as memory,
        pytest.raises(StoreMisconfiguredError, match="check user, password, database"),
    ):
        memory.add_message("s", user("hello"))


# -- what the log knows and Redis does not


def test_a_retry_of_the_first_message_after_an_eviction_hides_nothing(
    pair: tuple[MemoryManager, MemoryManager], redis_url: str, tenant: str
) -> None:
    one, _ = pair
    one.append("s", user("0"), message_id="first")
    for number in range(1, 5):
        one.append("s", user(str(number)))
    with redis.Redis.from_url(redis_url) as raw:
        assert raw.delete(f"contract:{{{tenant}/s}}:buffer") == 1
    assert one.append("s", user("0"), message_id="first").seq == 1
    assert [message["content"] for message in one.get_context("s")["buffer_messages"]] == ["0", "1", "2", "3", "4"]


def test_two_clearings_beside_a_writer_leave_no_gap(pair: tuple[MemoryManager, MemoryManager]) -> None:
    for _ in range(25):

        def work(number: int) -> None:
            if number == 0:
                for text in range(3):
                    pair[0].append("s", user(str(text)))
            else:
                assert pair[number % 2].clear_session_memory("s")

        run_threads(3, work)
        context = pair[1].get_context("s")
        history = pair[0].session_store.get_chat_history("s")
        assert context["last_seq"] == len(history), "numbers without messages"
        assert context["buffer_messages"] == history[context["watermark"] :]


def test_a_fold_does_not_hide_limits_that_were_set_meanwhile(pair: tuple[MemoryManager, MemoryManager]) -> None:
    one, other = pair
    one.add_messages("s", [user(str(number)) for number in range(20)])
    one.get_context("s")
    state = one._runtime.run(LogFlows(one.config).read_state("s"))
    assert state is not None
    other.set_session_config("s", {"max_buffer_messages": 4})
    one.get_context("s")
    flow = one._flows._sessions.folding.commit("s", state, last_seq=18, text="All of it.", method="extractive")
    assert one._runtime.run(flow) is None, "the session has changed by more than an append since it was read"
    for manager_of_two in pair:
        assert manager_of_two.get_session_config("s")["max_buffer_messages"] == 4
        assert manager_of_two.get_context("s")["message_count"] <= 4


def test_a_reader_of_the_log_is_not_chased_by_writers_that_are_faster_than_a_fold(
    pair: tuple[MemoryManager, MemoryManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is away for the reader, who folds what exceeds the caps; meanwhile as much again is appended."""
    reader, writer = pair
    writer.set_session_config("s", {"max_buffer_messages": 4})
    writer.circuit_breaker.force_open()
    reader.circuit_breaker.force_open()
    writer.add_messages("s", [user(str(number)) for number in range(9)])
    folds = 0
    original = reader._runtime._perform

    def perform(effect: Any) -> Any:
        nonlocal folds
        if isinstance(effect, Summarize):
            folds += 1
            writer.add_messages("s", [user(f"{folds}.{number}") for number in range(9)])
        return original(effect)

    monkeypatch.setattr(reader._runtime, "_perform", perform)
    context = reader.get_context("s")
    assert folds == 1
    assert (context["last_seq"], context["complete"], context["source"]) == (9, True, "postgres")
    assert context["watermark"] + context["message_count"] == 9
    assert context["message_count"] <= 4
    assert [message["content"] for message in context["buffer_messages"]] == [
        str(number) for number in range(context["watermark"], 9)
    ]


def test_a_fold_of_what_a_drain_has_moved_meanwhile_changes_nothing(
    pair: tuple[MemoryManager, MemoryManager],
) -> None:
    """What waited goes before what was logged later: a summary of the old order must not be committed."""
    one, other = pair
    one.add_messages("s", [user("0"), user("1")])
    other.database_breaker.force_open()
    assert other.append("s", user("waits")).durable is False
    time.sleep(0.002)  # within one millisecond nobody can tell which of the two came first
    one.circuit_breaker.force_open()
    one.add_messages("s", [user("later"), user("latest")])
    state = one._runtime.run(LogFlows(one.config).read_state("s"))
    assert state is not None
    assert [row[4]["content"] for row in state.rows] == ["0", "1", "later", "latest"]
    other.database_breaker.reset()
    assert other.drain("s") == 1
    flow = one._flows._sessions.folding.commit("s", state, last_seq=3, text="0, 1, later.", method="extractive")
    assert one._runtime.run(flow) is None
    one.circuit_breaker.reset()
    context = one.get_context("s")
    assert [message["content"] for message in context["buffer_messages"]] == ["0", "1", "waits", "later", "latest"]


def test_what_one_process_could_not_tell_redis_is_told_by_its_next_call(
    pair: tuple[MemoryManager, MemoryManager], redis_url: str
) -> None:
    one, other = pair
    one.append("s", user("first"))
    assert other.get_context("s")["last_seq"] == 1
    one.circuit_breaker.force_open()
    receipt = one.append("s", user("second"))
    assert receipt.degraded
    assert one.get_context("s")["last_seq"] == 2
    one.circuit_breaker.reset()
    one.get_context("another session")  # any call at all
    one.wait_for_folds(10)
    one.get_context("another session")
    one.wait_for_folds(10)
    assert [message["content"] for message in other.get_context("s")["buffer_messages"]] == ["first", "second"]


def test_a_summary_that_redis_was_not_told_of_is_seen(pair: tuple[MemoryManager, MemoryManager]) -> None:
    one, other = pair
    assert one.summary_store.add_summary("s", "First.")
    assert other.summary_store.get_current_summary("s") == "First."
    one.circuit_breaker.force_open()
    assert one.summary_store.add_summary("s", "Second.")
    assert one.summary_store.get_current_summary("s") == "First.\nSecond."
    one.circuit_breaker.reset()
    one.append("another", user("any call"))
    one.get_context("another")
    one.wait_for_folds(10)
    assert other.summary_store.get_current_summary("s") == "First.\nSecond."


def test_a_session_cleared_while_it_is_configured_is_no_error(pair: tuple[MemoryManager, MemoryManager]) -> None:
    def work(number: int) -> None:
        for _ in range(20):
            if number:
                pair[1].clear_session_memory("s")
            else:
                pair[0].set_session_config("s", {"max_buffer_messages": 9})

    run_threads(2, work)
    assert pair[0].get_session_config("s")["max_buffer_messages"] in (9, 30)


def test_rows_without_their_session_do_not_hold_an_append_for_ever(
    pair: tuple[MemoryManager, MemoryManager], database_url: str, tenant: str
) -> None:
    pair[0].append("s", user("hello"), message_id="one")
    with psycopg.connect(database_url) as raw:
        assert raw.execute("DELETE FROM memory_sessions WHERE tenant = %s", (tenant,)).rowcount == 1
    with ThreadPoolExecutor(1) as pool, pytest.raises(Exception, match="memory_messages"):
        pool.submit(pair[0].append, "s", user("hello"), message_id="two").result(20)


# -- processes and threads


def test_a_forked_child_folds_and_talks_on_its_own(redis_url: str, database_url: str, tenant: str) -> None:
    code = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking beside threads; that is the point
from contract_engine.memory import MemoryManager
memory = MemoryManager(summary_trigger_tokens=50)
for number in range(30):
    memory.add_message("parent", {"role": "user", "content": f"message {number} of the parent, order A{number}"})
assert memory.wait_for_folds(10)
pid = os.fork()
name = "parent" if pid else "child"
for number in range(30):
    memory.add_message(name, {"role": "user", "content": f"message {number} of {name}, order B{number}"})
assert memory.wait_for_folds(10)
context = memory.get_context(name)
assert context["watermark"] > 0 and context["last_seq"] == (60 if pid else 30), context
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert memory.get_context("child")["last_seq"] == 30
memory.close()
print("both are well")
"""
    environment = {
        **os.environ,
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "CONTRACT_MEMORY_TENANT": tenant,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "both are well\n", done.stderr


def test_the_first_call_from_many_threads_builds_one_of_everything(redis_url: str, tenant: str) -> None:
    for _ in range(5):
        memory = MemoryManager(redis_url=redis_url, tenant=tenant)
        found: list[tuple[int, ...]] = []
        barrier = threading.Barrier(16)

        def work(_: int, memory: MemoryManager = memory, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            found.append((id(memory._runtime), id(memory._flows), id(memory.circuit_breaker)))  # noqa: B023

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
        assert len(set(found)) == 1
        memory.close()


def test_the_environment_sets_the_breaker_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRACT_MEMORY_BREAKER_RECOVERY_SECONDS", "3")
    monkeypatch.setenv("CONTRACT_MEMORY_BREAKER_FAILURE_THRESHOLD", "7")
    try:
        memory = MemoryManager()
        assert memory.circuit_breaker is redis_circuit_breaker
        assert (redis_circuit_breaker.failure_threshold, redis_circuit_breaker.recovery_timeout) == (7, 3.0)
        own = MemoryManager(config=MemoryConfig(breaker_recovery_seconds=2.0))
        assert own.circuit_breaker is not redis_circuit_breaker
        assert own.circuit_breaker.recovery_timeout == 2.0
        given = CircuitBreaker(name="mine")
        assert MemoryManager(breaker=given).circuit_breaker is given
    finally:
        redis_circuit_breaker.configure(5, 60.0)


def test_work_that_fails_in_the_background_is_logged_and_reaches_nobody(
    ephemeral: Backend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = ephemeral.open()

    def fails() -> None:
        raise ZeroDivisionError("a fault in the background")

    async def fails_async() -> None:
        fails()

    if ephemeral.colour == SYNC:
        memory._runtime.background.start(fails, "a fold")
        assert memory.wait_for_folds(10)
    else:
        assert ephemeral.loop is not None

        async def scenario() -> None:
            memory._runtime.background.start(fails_async, "a fold")  # type: ignore[arg-type]  # of the async twin
            async with asyncio.timeout(30):
                while "a fold failed" not in caplog.text:
                    await asyncio.sleep(0.01)

        ephemeral.loop.run_until_complete(scenario())
    assert waited_for(lambda: "a fold failed" in caplog.text, 30)
    assert memory.add_message("s", user("goes on")) is True
