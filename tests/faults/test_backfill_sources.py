"""A backfill out of both sources, beside an outbox that is not empty, broken off at every point and started again."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from crash_matrix import ERROR_AFTER, ERROR_BEFORE, KILL_BEFORE, Fault, Interposition
from legacy_tables import Older, said

from contract_engine.cli.backfill import import_one
from contract_engine.cli.legacy import OlderStore
from contract_engine.memory import LegacySwisperStore, MemoryConfig, MemoryManager, MessageSerializer
from contract_engine.memory.backfill import Backfill, Outcome
from contract_engine.memory.errors import MemoryServiceError
from contract_engine.memory.legacy_redis import LegacyRedis
from contract_engine.memory.log_writer import LogWriter
from contract_engine.memory.migration import EnhancedSessionStore

pytest_plugins = ("legacy_fixtures",)

OLD = [said(number) for number in range(30)]
RELAYED, OWED = [said(100), said(101)], [said(200), said(201), said(202)]
BUFFER = [said(number) for number in range(300, 305)]
SINCE = [said(400), said(401)]
SUMMARIES = ["They met.", "They bought a bicycle."]
CONTEXT = {"current_state": "search"}
BATCH = 12
MOST_EFFECTS = 150
WRITES = len(OLD) // BATCH + len(SUMMARIES)
SIDES = {"log": (WRITES + 10, WRITES, 3), "store": (6, 6, 2)}
"""Where the fault is, between the import and the log or the legacy table; and numbers that its effects and the errors
are more than, and that its deaths are at least."""

CHILD = """
import sys
sys.path[:0] = [{tests!r}, {faults!r}]
from test_backfill_sources import import_both
from crash_matrix import Fault, Interposition
from contract_engine.memory import LegacySwisperStore, MemoryConfig
from contract_engine.memory.log_writer import LogWriter
url, redis_url, tenant, table, side, kind, number = sys.argv[1:]
config = MemoryConfig(redis_url=redis_url, database_url=url, tenant=tenant, redis_timeout_seconds=5.0,
                      database_timeout_seconds=30.0)
with LegacySwisperStore(url, table=table, timeout_seconds=30.0) as store, LogWriter(config) as log:
    between = Interposition(log if side == "log" else store, Fault(kind, int(number)))
    import_both(config, store, log)
    print("untouched" if between.fired is None else "touched")
"""


def in_redis(older: Older) -> str:
    """Return the session that the original's keys in Redis alone have."""
    return f"{older.config.tenant}-redis"


def import_both(config: MemoryConfig, store: LegacySwisperStore, log: LogWriter) -> list[Outcome]:
    """Import the session of the table, then that of the keys in Redis, as the command does."""
    run = Backfill(log, batch=BATCH)
    with LegacyRedis(config.redis_url) as source:
        both = OlderStore(store, source)
        return [import_one(run, both, name, is_dual=True) for name in ("s", f"{config.tenant}-redis")]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with closing(redis.Redis.from_url(redis_url)) as found:
        yield found


def begin(older: Older, client: redis.Redis) -> None:
    """Old history, messages that both stores have, and some that the outbox still owes; keys of the original."""
    older.fill("s", OLD)
    older.store.save_session_context_atomic("s", CONTEXT)
    with (
        MemoryManager(config=older.config) as manager,
        EnhancedSessionStore(manager, older.store, is_relaying=False) as store,
    ):
        for message in RELAYED:
            store.add_chat_message("s", message)
        store.add_chat_message(in_redis(older), SINCE[0])
        assert store.relay_once() == len(RELAYED) + 1
        for message in OWED:
            store.add_chat_message("s", message)
        store.add_chat_message(in_redis(older), SINCE[1])
        assert store.backlog().messages == len(OWED) + 1
    seal = MessageSerializer().serialize_message
    client.rpush(f"buffer:{in_redis(older)}", *(seal(message) for message in BUFFER))
    client.rpush(f"summary_list:{in_redis(older)}", *(seal({"text": text, "timestamp": 1}) for text in SUMMARIES))


def is_whole(older: Older, client: redis.Redis) -> None:
    """Look at everything, then relay what is owed: it goes to the right place, and both stores are the same."""
    again = import_both(older.config, older.store, older.log)
    assert [(one.is_changed, one.is_whole) for one in again] == [(False, True)] * 2
    assert older.logged("s") == [*OLD, *RELAYED, *OWED]
    assert older.logged(in_redis(older)) == [*BUFFER, *SINCE]
    assert older.store.get_chat_history(in_redis(older)) == [*BUFFER, SINCE[0]]
    with (
        MemoryManager(config=older.config) as manager,
        EnhancedSessionStore(manager, older.store, is_relaying=False) as store,
    ):
        history = manager.summary_store.get_summary_history(in_redis(older), 100)
        assert [one["text"] for one in history if one["metadata"]] == SUMMARIES
        assert manager.get_context(in_redis(older))["current_summary"] == "\n".join(SUMMARIES)
        assert manager.session_store.get_session_context_atomic("s") == CONTEXT
        for session_id in ("s", in_redis(older)):
            context = manager.get_context(session_id)
            assert context["buffer_messages"] == older.logged(session_id)[context["watermark"] :]
        assert store.relay_once() == len(OWED) + 1
        assert store.backlog().messages == 0
    for session_id in ("s", in_redis(older)):
        assert older.store.get_chat_history(session_id) == older.logged(session_id)
    client.delete(f"buffer:{in_redis(older)}", f"summary_list:{in_redis(older)}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", [ERROR_BEFORE, ERROR_AFTER])
def test_an_error_at_every_effect(
    another_older: Callable[[], Older], client: redis.Redis, kind: str, side: str
) -> None:
    fired = failures = 0
    for number in range(1, MOST_EFFECTS):
        older = another_older()
        begin(older, client)
        end: Any = older.log if side == "log" else older.store  # has a runtime as managers do
        between = Interposition(end, Fault(kind, number))
        try:
            import_both(older.config, older.store, older.log)
        except MemoryServiceError:
            failures += 1
        between.remove()
        if between.fired is None:
            is_whole(older, client)
            break
        fired += 1
        assert [one.left for one in import_both(older.config, older.store, older.log)] == [None, None]
        is_whole(older, client)
        older.rest()
    else:
        raise AssertionError("it never passes untouched")
    effects, errors, _ = SIDES[side]
    assert fired > effects
    assert failures > errors, "an error of the database was swallowed"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("side", SIDES)
def test_the_process_is_killed_on_its_way_and_started_again(
    another_older: Callable[[], Older], client: redis.Redis, side: str
) -> None:
    """At every fifth effect: a process each takes its time, and errors are met at each of them above."""
    here = Path(__file__).resolve().parent
    code = CHILD.format(tests=str(here.parent), faults=str(here))
    deaths = 0
    for number in range(1, MOST_EFFECTS, 5):
        older = another_older()
        begin(older, client)
        given = [older.url, older.config.redis_url, older.config.tenant, older.table, side, KILL_BEFORE, str(number)]
        done = subprocess.run(
            [sys.executable, "-c", code, *given], capture_output=True, text=True, timeout=100, check=False
        )
        if done.returncode == 0:
            assert done.stdout == "untouched\n"
            is_whole(older, client)
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        deaths += 1
        assert [one.left for one in import_both(older.config, older.store, older.log)] == [None, None]
        is_whole(older, client)
        older.rest()
    else:
        raise AssertionError("it never passes untouched")
    assert deaths >= SIDES[side][2]
