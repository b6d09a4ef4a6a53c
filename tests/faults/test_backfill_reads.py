"""A backfill whose legacy store fails, hangs or is read no further, at its first read, its second, ...

The table and the keys of the original are on servers of their own here, so that only what is read there is harmed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from crash_matrix import DATABASE, ERROR_BEFORE, HANG, KILL_BEFORE, REDIS, Fault, Interposition, server_of
from legacy_tables import said
from server_faults import ServerFaults
from servers import PrivateServers

from contract_engine.cli.legacy import OlderStore
from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import (
    LegacySwisperStore,
    MemoryConfig,
    MessageSerializer,
    StoreUnavailableError,
    legacy_source,
)
from contract_engine.memory.backfill import Backfill
from contract_engine.memory.legacy_redis import LegacyRedis
from contract_engine.memory.log_writer import LogWriter

HERE = Path(__file__).resolve().parent
PAGE, BATCH, MOST_READS = 10, 7, 60
HELD = {
    "long": [said(number) for number in range(25)],
    "both": [said(number) for number in range(100, 104)],
    "keys": [said(number) for number in range(200, 205)],
}
"""What the sessions hold; the last is in Redis alone, and the end of the second too."""
LEAST_READS = {DATABASE: 9, REDIS: 6}

CHILD = """
import sys
sys.path[:0] = [{tests!r}, {faults!r}]
from crash_matrix import Fault
from test_backfill_reads import MemoryConfig, attempt
legacy_url, legacy_redis_url, redis_url, url, tenant, server, kind, number = sys.argv[1:]
config = MemoryConfig(redis_url=redis_url, database_url=url, tenant=tenant, database_timeout_seconds=30.0)
between = attempt(config, (legacy_url, legacy_redis_url), server, Fault(kind, int(number)))
print("untouched" if between.fired is None else "touched")
"""


def import_all(config: MemoryConfig, table: LegacySwisperStore, keys: LegacyRedis) -> int:
    """Do what the command does; answers how many messages were imported."""
    imported = 0
    with LogWriter(config) as log:
        run = Backfill(log, batch=BATCH)
        store = OlderStore(table, keys)
        assert store.totals()[0] == len(HELD) + 1  # one of them is counted on both sides
        for name in store.session_names():
            history = store.history(name)
            assert history is not None
            outcome = run.import_session(history)
            assert outcome.is_whole
            assert not store.only_in_redis(history)
            imported += outcome.imported
    return imported


def attempt(
    config: MemoryConfig,
    legacy: tuple[str, str],
    server: str,
    fault: Fault,
    *,
    timeout_seconds: float = 10.0,
    hang: Any = None,
) -> Interposition:
    """Import with a fault at one read of the table or of the keys."""
    legacy_source.PAGE_MESSAGES = PAGE
    with (
        LegacySwisperStore(legacy[0], timeout_seconds=timeout_seconds) as table,
        LegacyRedis(legacy[1], timeout_seconds=timeout_seconds) as keys,
    ):
        assert table.totals()[0] == 2  # it is to hang while it answers, and not while it connects
        assert keys.messages("nobody") == []
        source: Any = table if server == DATABASE else keys
        between = Interposition(source, fault, hang=hang)
        try:
            import_all(config, table, keys)
        except StoreUnavailableError:
            assert between.fired is not None
        else:
            assert between.fired is None, "a read that failed was passed over"
        assert all(server_of(effect) == server for effect in between.effects)
        return between


@pytest.fixture(autouse=True)
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_source, "PAGE_MESSAGES", PAGE)


@pytest.fixture
def legacy(private_servers: PrivateServers) -> EmbeddedServers:
    """Servers with a table and keys of the original, and nothing of ours."""
    servers = private_servers(migrate=False)
    with LegacySwisperStore(servers.database_url) as table, closing(redis.Redis.from_url(servers.redis_url)) as client:
        table.create_table()
        seal = MessageSerializer().serialize_message
        for name in ("long", "both"):
            table.add_chat_messages(name, HELD[name])
        client.rpush("buffer:both", *(seal(message) for message in HELD["both"][2:]))
        client.rpush("buffer:keys", *(seal(message) for message in HELD["keys"]))
        client.rpush("summary_list:keys", seal({"text": "They met.", "timestamp": 1}))
    return servers


class Logs:
    """Logs without anything in them, one for each trial."""

    def __init__(self, redis_url: str, database_url: str, tenant: str) -> None:
        self._given: dict[str, Any] = {
            "redis_url": redis_url,
            "database_url": database_url,
            "database_timeout_seconds": 30.0,
        }
        self._tenant = tenant

    def config(self, number: int) -> MemoryConfig:
        return MemoryConfig(tenant=f"{self._tenant}-{number}", **self._given)


@pytest.fixture
def logs(redis_url: str, database_url: str, tenant: str) -> Logs:
    return Logs(redis_url, database_url, tenant)


def logged(config: MemoryConfig) -> dict[str, list[dict[str, Any]]]:
    with LogWriter(config) as log:
        return {name: [message for _, _, message in log.messages(name)] for name in HELD}


def assert_gone_on_with(config: MemoryConfig, servers: EmbeddedServers) -> None:
    """What has been imported is the beginning of what there is, and another run brings the rest."""
    before = logged(config)
    assert all(messages == HELD[name][: len(messages)] for name, messages in before.items())
    with LegacySwisperStore(servers.database_url) as table, LegacyRedis(servers.redis_url) as keys:
        left = sum(len(HELD[name]) - len(messages) for name, messages in before.items())
        assert import_all(config, table, keys) == left
        assert logged(config) == HELD
        assert import_all(config, table, keys) == 0


@pytest.mark.parametrize("kind", [ERROR_BEFORE, HANG])
@pytest.mark.parametrize("server", [DATABASE, REDIS])
def test_a_read_fails(legacy: EmbeddedServers, logs: Logs, server: str, kind: str) -> None:
    """Whether it was performed or not: it changes nothing."""
    faults = ServerFaults(redis_server=legacy, database=legacy)
    hung = []

    @contextmanager
    def hang(which: str) -> Iterator[None]:
        faults.stop_redis() if which == REDIS else faults.stop_database()
        try:
            yield
        finally:
            faults.go_on()
            hung.append(which)

    broken_off = 0
    addresses = legacy.database_url, legacy.redis_url
    for number in range(1, MOST_READS):
        config = logs.config(number)
        patience = 0.5 if kind == HANG else 10.0
        between = attempt(config, addresses, server, Fault(kind, number), timeout_seconds=patience, hang=hang)
        if between.fired is None:
            break
        broken_off += 0 < sum(map(len, logged(config).values())) < sum(map(len, HELD.values()))
        assert_gone_on_with(config, legacy)
    else:
        raise AssertionError("it never passes untouched")
    assert number > LEAST_READS[server]
    assert len(hung) == (number - 1 if kind == HANG else 0)
    assert broken_off >= 2, "it never broke off in the middle"
    assert logged(config) == HELD


@pytest.mark.parametrize("server", [DATABASE, REDIS])
def test_the_process_dies_at_a_read(legacy: EmbeddedServers, logs: Logs, server: str) -> None:
    """At every third read: a process each takes its time, and errors are met at each of them above."""
    code = CHILD.format(tests=str(HERE.parent), faults=str(HERE))
    deaths = 0
    for number in range(2, MOST_READS, 3):
        config = logs.config(number)
        given = [legacy.database_url, legacy.redis_url, str(config.redis_url), str(config.database_url), config.tenant]
        done = subprocess.run(
            [sys.executable, "-c", code, *given, server, KILL_BEFORE, str(number)],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            assert done.stdout == "untouched\n"
            assert logged(config) == HELD
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        deaths += 1
        assert_gone_on_with(config, legacy)
    else:
        raise AssertionError("it never passes untouched")
    assert deaths >= LEAST_READS[server] // 3
