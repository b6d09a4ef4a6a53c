"""A backfill that is broken off at every point it has, and started again: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from crash_matrix import DATABASE, ERROR_AFTER, ERROR_BEFORE, KILL_AFTER, KILL_BEFORE, Fault, Interposition, server_of
from legacy_tables import Older, said
from server_faults import ServerFaults
from servers import PrivateServers

from contract_engine.memory import MemoryManager
from contract_engine.memory.errors import DatabaseUnavailableError, MemoryServiceError
from contract_engine.memory.legacy_messages import legacy_json
from contract_engine.memory.legacy_source import table_history
from contract_engine.memory.log_writer import LogWriter
from contract_engine.memory.parity import compare, mark

pytest_plugins = ("legacy_fixtures",)

OLD, BOTH, BATCH = 205, 35, 80
MOST_EFFECTS = 200
EXPECTED = [said(number) for number in range(OLD + BOTH)]

# Runs one backfill in a process of its own, with a fault at one of its effects.
CHILD = """
import sys
sys.path[:0] = [{tests!r}, {faults!r}]
from crash_matrix import Fault, Interposition
from contract_engine.memory import MemoryConfig, LegacySwisperStore
from contract_engine.memory.backfill import Backfill
from contract_engine.memory.legacy_source import table_history
from contract_engine.memory.log_writer import LogWriter
url, redis_url, tenant, table, kind, number = sys.argv[1:]
config = MemoryConfig(redis_url=redis_url, database_url=url, tenant=tenant, redis_timeout_seconds=5.0,
                      database_timeout_seconds=30.0)
store = LegacySwisperStore(url, table=table, timeout_seconds=30.0)
log = LogWriter(config)
between = Interposition(log, Fault(kind, int(number)))
Backfill(log, batch={batch}).import_session(table_history(store, "s"))
log.close()
store.close()
print("untouched" if between.fired is None else "touched")
"""


def begin(older: Older) -> None:
    """Old history in the table alone, then messages in both; some of them are folded by now."""
    with MemoryManager(config=older.config) as manager:
        receipts = manager.add_messages("s", EXPECTED[OLD:])
        manager.get_context("s")
    texts = [legacy_json(message) for message in EXPECTED[:OLD]]
    texts += [
        legacy_json(message, message_id=receipt.message_id)
        for receipt, message in zip(receipts, EXPECTED[OLD:], strict=True)
    ]
    older.fill("s", [json.loads(text) for text in texts])


def differences(older: Older) -> int:
    """Count what parity finds."""
    legacy = [mark(message) for message in older.store.get_chat_history("s")]
    return len(compare("s", legacy, [mark(message) for message in older.logged("s")]))


def is_in_order(older: Older) -> None:
    """What is there at any moment is part of the truth, in its order, and a context can be read."""
    found = older.logged("s")
    places = [EXPECTED.index(message) for message in found]
    assert places == sorted(set(places))
    assert found[-BOTH:] == EXPECTED[OLD:]
    with MemoryManager(config=older.config) as manager:
        context = manager.get_context("s")
        # Redis may not have been told of the last batch: then its copy is older, but whole.
        known = EXPECTED[: context["last_seq"] - BOTH] + EXPECTED[OLD:]
        assert context["last_seq"] <= len(found)
        assert context["buffer_messages"] == known[context["watermark"] :]


def is_whole(older: Older) -> None:
    assert differences(older) == 0
    assert older.logged("s") == EXPECTED
    with MemoryManager(config=older.config) as manager:
        context = manager.get_context("s")
        assert context["last_seq"] == len(EXPECTED)
        assert context["buffer_messages"] == EXPECTED[context["watermark"] :]
        history = manager.summary_store.get_summary_history("s", 1000)
        methods = [version["method"] for version in history]
        assert "rebuilt" in methods[methods.index("imported") :], "the summary was never written from the messages"
        assert manager.search_messages("s", EXPECTED[3]["content"])[0]["seq"] == 4
    assert older.backfill("s").imported == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [ERROR_BEFORE, ERROR_AFTER])
def test_an_error_at_every_effect(another_older: Callable[[], Older], kind: str) -> None:
    fired = failures = 0
    for number in range(1, MOST_EFFECTS):
        older = another_older()
        begin(older)
        between = Interposition(older.log, Fault(kind, number))  # type: ignore[arg-type]  # has a runtime as managers do
        try:
            older.backfill("s", batch=BATCH)
        except MemoryServiceError:
            failures += 1
        between.remove()
        if between.fired is None:
            break
        fired += 1
        is_in_order(older)
        assert older.backfill("s", batch=BATCH).left is None
        is_whole(older)
        older.rest()
    else:
        raise AssertionError("it never passes untouched")
    assert fired > OLD // BATCH + 5
    assert failures >= OLD // BATCH, "an error of the database was swallowed"


def run_child(older: Older, kind: str, number: int) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).resolve().parent
    code = CHILD.format(tests=str(here.parent), faults=str(here), batch=BATCH)
    config = older.config
    arguments = [older.url, config.redis_url, config.tenant, older.table, kind, str(number)]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.timeout(600)
def test_the_process_is_killed_at_every_effect_and_started_again(another_older: Callable[[], Older]) -> None:
    """Before each effect: the moment after one is the moment before the next."""
    deaths = 0
    for number in range(1, MOST_EFFECTS):
        older = another_older()
        begin(older)
        done = run_child(older, KILL_BEFORE, number)
        if done.returncode == 0:
            assert done.stdout == "untouched\n"
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        deaths += 1
        is_in_order(older)
        assert older.backfill("s", batch=BATCH).left is None
        is_whole(older)
        older.rest()
    else:
        raise AssertionError("it never passes untouched")
    assert deaths > OLD // BATCH + 5


@pytest.mark.timeout(300)
def test_killed_again_and_again_it_still_comes_to_an_end(older: Older) -> None:
    """Each run dies two effects after the last batch it has written, so that every batch is of another run."""
    begin(older)
    with_fault = [older.backfill("s", dry_run=True).imported]
    deaths = 0
    while with_fault[-1]:
        done = run_child(older, KILL_AFTER, 8)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        deaths += 1
        is_in_order(older)
        with_fault.append(older.backfill("s", dry_run=True).imported)
        assert with_fault[-1] < with_fault[-2], "a run made no progress"
    older.backfill("s")
    is_whole(older)
    assert deaths >= 2


@pytest.fixture
def command(older: Older) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command as people do; what still runs at the end is killed."""
    config = older.config
    with ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[str]:
            given = ["--legacy-url", older.url, "--table", older.table, "--database-url", older.url]
            given += ["--redis-url", config.redis_url, "--tenant", config.tenant, "--json", *arguments]
            process = subprocess.Popen(
                [sys.executable, "-m", "contract_engine.cli", "backfill", *given],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start


def count(older: Older) -> int:
    (row,) = older.execute("SELECT count(*) FROM memory_messages WHERE tenant = %s", (older.config.tenant,))
    return int(row[0])


def wait_for(older: Older, least: int) -> None:
    deadline = time.monotonic() + 60
    while count(older) < least:
        assert time.monotonic() < deadline, "nothing comes in"
        time.sleep(0.02)


def wait_until_at_rest(older: Older) -> None:
    """Wait until the server has ended what a process asked of it that is no more."""
    deadline = time.monotonic() + 60
    while older.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'contract-memory' AND state <> 'idle'"
    ):
        assert time.monotonic() < deadline, "the server is still at work"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_command_is_stopped_and_run_again(
    older: Older, command: Callable[..., subprocess.Popen[str]], number: int, code: int
) -> None:
    begin(older)
    process = command("--rate", "100")
    wait_for(older, BOTH + 50)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == code
    wait_until_at_rest(older)
    before = count(older)
    assert BOTH < before < len(EXPECTED), "it was not stopped on its way"
    is_in_order(older)
    again = command()
    out, err = again.communicate(timeout=100)
    assert again.returncode == 0, err
    answer = json.loads(out)
    assert answer["not_imported"] == []
    assert (answer["sessions"], answer["messages"], answer["unchanged"]) == (1, len(EXPECTED), 0)
    assert answer["imported"] == len(EXPECTED) - before, (
        "what the first run had imported was counted, or not gone on from"
    )
    is_whole(older)


def test_the_database_dies_on_the_way(private_servers: PrivateServers) -> None:
    servers = private_servers()
    faults = ServerFaults(database=servers)
    with ExitStack() as stack:
        older = Older(servers.database_url, servers.redis_url, "t", stack)
        begin(older)
        failed: list[Exception] = []

        def import_slowly() -> None:
            try:
                older.backfill("s", rate=100)
            except DatabaseUnavailableError as exc:
                failed.append(exc)

        worker = threading.Thread(target=import_slowly)
        worker.start()
        wait_for(older, BOTH + 50)
        faults.kill_database()
        worker.join()
        assert failed
        servers.start()
        # Another process would be here; the breaker of this one may still think it is away.
        older.log = stack.enter_context(LogWriter(older.config))
        deadline = time.monotonic() + 60
        while True:
            try:
                assert older.backfill("s").left is None
                break
            except MemoryServiceError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        is_whole(older)


def test_redis_is_away_all_the_time(private_servers: PrivateServers) -> None:
    servers = private_servers()
    with ExitStack() as stack:
        older = Older(servers.database_url, servers.redis_url, "t", stack)
        begin(older)
        with MemoryManager(config=older.config) as manager:
            assert manager.get_context("s")["source"] == "redis"
        faults = ServerFaults(redis_server=servers)
        faults.kill_redis()
        assert older.backfill("s").imported == OLD
        servers.start()
        is_whole(older)


def test_the_matrix_counts_effects_of_the_log(older: Older) -> None:
    """The table is read through another runtime, so that no number means a read of it."""
    begin(older)
    between = Interposition(older.log)  # type: ignore[arg-type]  # has a runtime as managers do
    history = table_history(older.store, "s")
    assert history is not None
    assert len(list(history.read(0))) == len(EXPECTED)
    assert not between.effects
    older.backfill("s", batch=BATCH)
    kinds: list[Any] = [server_of(effect) for effect in between.effects]
    assert kinds.count(DATABASE) > OLD // BATCH
