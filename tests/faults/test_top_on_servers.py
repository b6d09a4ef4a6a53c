"""``contract-memory top`` on real servers and a real application: what it counts, and while they are away."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import psycopg
import pytest
import redis
from memory_contract import talk
from server_faults import ServerFaults, waited_for
from servers import PrivateServers
from test_top import config_of, environment  # noqa: F401

from contract_engine.cli.readings import (
    OUTBOX_ROWS,
    DatabaseReader,
    RedisReader,
)
from contract_engine.cli.servers import HOME_VARIABLE
from contract_engine.cli.top import Lookout
from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import (
    MemoryManager,
    StoreUnavailableError,
)

PATIENCE = 30.0


def options(servers: EmbeddedServers) -> list[str]:
    return ["--redis-url", servers.redis_url, "--database-url", servers.database_url]


# -- what is counted


def test_writes_between_two_looks_are_counted_exactly(private_servers: PrivateServers, tenant: str) -> None:
    servers = private_servers()
    config = config_of(servers, tenant)
    with (
        closing(RedisReader(config, timeout_seconds=PATIENCE)) as on_redis,
        closing(DatabaseReader(servers.database_url, timeout_seconds=PATIENCE)) as on_database,
        MemoryManager(config=config) as manager,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        manager.add_message("warm", talk(1)[0])
        assert waited_for(lambda: on_database.read().inserted_messages == 1, PATIENCE)
        before, before_log = on_redis.read(), on_database.read()
        called = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        for message in talk(25):
            manager.add_message("one", message)
        manager.wait_for_folds(PATIENCE)
        after = on_redis.read()
        assert (
            after.total("scripts") - before.total("scripts")
            == client.info("commandstats")["cmdstat_evalsha"]["calls"] - called
            >= 25
        )
        assert after.total("script_microseconds") > before.total("script_microseconds")
        assert set(after.runs) == set(before.runs)
        assert (after.unlogged_messages, after.unlogged_sessions) == (0, 0)
        assert after.keys == client.dbsize() > 0
        # PostgreSQL tells a moment later, and never more than there were.
        assert waited_for(lambda: on_database.read().inserted_messages == before_log.inserted_messages + 25, PATIENCE)
        told = on_database.read()
        assert told.messages == 26
        assert told.sessions == 2
        assert told.own_connections >= 1
        assert told.connections >= told.own_connections
        assert told.max_connections > told.connections


def test_folds_are_counted_exactly(private_servers: PrivateServers, tenant: str) -> None:
    servers = private_servers()
    with (
        closing(DatabaseReader(servers.database_url, timeout_seconds=PATIENCE)) as reader,
        MemoryManager(config=config_of(servers, tenant)) as manager,
    ):
        manager.set_session_config("one", {"max_buffer_messages": 6})
        for message in talk(30):
            manager.add_message("one", message)
        manager.wait_for_folds(PATIENCE)
        folds = manager.get_context("one")["summary_version"]
        assert folds > 1
        assert waited_for(lambda: reader.read().inserted_summaries == folds, PATIENCE)


def test_what_waits_for_the_database_is_counted(private_servers: PrivateServers, tenant: str) -> None:
    servers = private_servers()
    faults = ServerFaults(redis_server=servers, database=servers)
    config = config_of(servers, tenant)
    with closing(RedisReader(config, timeout_seconds=PATIENCE)) as reader, MemoryManager(config=config) as manager:
        for session in ("one", "two"):
            manager.add_message(session, talk(1)[0])
        faults.kill_database()
        for session, count in (("one", 3), ("two", 4)):
            for message in talk(count):
                manager.add_message(session, message)
        found = reader.read()
        assert (found.unlogged_messages, found.unlogged_sessions) == (7, 2)
        with redis.Redis.from_url(servers.redis_url) as client:
            client.set(f"contract:{{{tenant}/bad}}:unlogged", "no list")  # passed over
        found = reader.read()
        assert (found.unlogged_messages, found.unlogged_sessions) == (7, 2)
        faults.restart_database()
        # The breaker in front of the database has its own time.
        assert waited_for(lambda: not is_refused(lambda: manager.drain("one") + manager.drain("two")), PATIENCE)
        found = reader.read()
        assert (found.unlogged_messages, found.unlogged_sessions) == (0, 0)


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except StoreUnavailableError:
        return True
    return False


def test_an_outbox_is_counted_up_to_a_limit(private_servers: PrivateServers) -> None:
    servers = private_servers(redis=False, migrate=False)
    with (
        closing(DatabaseReader(servers.database_url, timeout_seconds=PATIENCE)) as reader,
        psycopg.connect(servers.database_url, autocommit=True) as connection,
    ):
        found = reader.read()
        assert (found.outbox_messages, found.messages, found.sessions) == (None, 0, 0)
        connection.execute("CREATE TABLE memory_outbox (id int)")
        assert reader.read().outbox_messages == 0
        connection.execute("INSERT INTO memory_outbox SELECT generate_series(1, 12)")
        assert reader.read().outbox_messages == 12
        connection.execute("INSERT INTO memory_outbox SELECT generate_series(1, %s)", (OUTBOX_ROWS,))
        assert reader.read().outbox_messages == OUTBOX_ROWS


def test_nothing_is_written(private_servers: PrivateServers, tenant: str) -> None:
    servers = private_servers()
    config = config_of(servers, tenant)
    with redis.Redis.from_url(servers.redis_url) as client, closing(Lookout(config, ())) as lookout:
        client.set("other", "x")
        saved = client.info("persistence")["rdb_changes_since_last_save"]
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            connection.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
        for _ in range(3):
            found = lookout.look().as_json()
            assert (found["redis"]["state"], found["postgres"]["state"]) == ("up", "up")
        assert client.info("persistence")["rdb_changes_since_last_save"] == saved
        used = {name for name in client.info("commandstats") if name not in ("cmdstat_set", "cmdstat_client")}
        assert used <= {
            f"cmdstat_{name}" for name in ("info", "dbsize", "scan", "llen", "hello", "auth", "select", "ping")
        } | {
            "cmdstat_client|setinfo",
            "cmdstat_client|setname",
        }


# -- servers that go away


def test_a_redis_that_hangs_holds_up_nobody_else(private_servers: PrivateServers, tenant: str) -> None:
    servers = private_servers()
    faults = ServerFaults(redis_server=servers, database=servers)
    with closing(Lookout(config_of(servers, tenant), ())) as lookout:
        assert lookout.look().as_json()["redis"]["state"] == "up"
        faults.stop_redis()
        try:
            found = lookout.look().as_json()
        finally:
            faults.go_on()
        assert found["redis"]["state"] == "away"
        assert found["redis"]["since"] == found["at"]
        assert found["postgres"]["state"] == "up"
        assert found["postgres"]["messages_per_second"] == 0
        assert waited_for(lambda: lookout.look().as_json()["redis"]["state"] == "up", PATIENCE)


def test_a_database_that_dies_and_comes_back(private_servers: PrivateServers, tenant: str) -> None:
    servers = private_servers()
    faults = ServerFaults(redis_server=servers, database=servers)
    with closing(Lookout(config_of(servers, tenant), ())) as lookout:
        assert lookout.look().as_json()["postgres"]["state"] == "up"
        faults.kill_database()
        found = [lookout.look().as_json() for _ in range(3)]
        assert {one["postgres"]["state"] for one in found} == {"away"}
        assert {one["redis"]["state"] for one in found} == {"up"}
        faults.restart_database()
        assert waited_for(lambda: lookout.look().as_json()["postgres"]["state"] == "up", PATIENCE)


class Program:
    """``contract-memory top --json`` as a process, and the lines it has printed so far."""

    def __init__(self, servers: EmbeddedServers, *more: str) -> None:
        command = [sys.executable, "-m", "contract_engine.cli", "top", *options(servers), *more]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)  # others look at them meanwhile

    def states(self) -> list[str]:
        return [json.loads(line)["redis"]["state"] for line in list(self.lines)]

    def until(self, condition: Callable[[], bool]) -> None:
        assert waited_for(lambda: condition() or self.process.poll() is not None, PATIENCE), self.lines[-1:]
        assert self.process.poll() is None, self.process.communicate()

    def end(self, number: signal.Signals) -> str:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join()
        assert self.process.stderr is not None
        told = self.process.stderr.read()
        assert code == 0, told
        return told

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_redis_is_killed_and_started_again_while_top_runs(
    private_servers: PrivateServers, number: signal.Signals
) -> None:
    servers = private_servers()
    faults = ServerFaults(redis_server=servers, database=servers)
    with closing(Program(servers, "--json", "--interval", "0.2")) as program:
        program.until(lambda: program.states().count("up") >= 2)
        faults.kill_redis()
        program.until(lambda: program.states().count("away") >= 3)
        faults.restart_redis()
        program.until(lambda: program.states()[-2:] == ["up", "up"])
        told = program.end(number)
    assert "Traceback" not in told
    frames = [json.loads(line) for line in program.lines]
    states = [one["redis"]["state"] for one in frames]
    first_away = states.index("away")
    assert set(states[:first_away]) == {"up"}
    for one in frames:
        assert one["postgres"]["state"] == "up"
        if one["redis"]["state"] == "away":
            assert set(one["redis"]) == {"state", "reason", "since"}
            assert one["redis"]["since"] == frames[first_away]["at"]
        elif one is not frames[0]:
            rates = [value for name, value in one["redis"].items() if name.endswith("_per_second")]
            assert all(value >= 0 for value in rates)


def test_without_a_terminal_frames_are_printed_one_after_the_other(private_servers: PrivateServers) -> None:
    with closing(Program(private_servers(), "--interval", "0.2")) as program:
        program.until(lambda: sum(line.startswith("contract-memory top") for line in program.lines) >= 3)
        program.end(signal.SIGTERM)
    assert not any("\x1b" in line for line in program.lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_told_to_end_twice_is_no_reason_to_leave_servers_behind(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers that top has started for itself take a while to stop, and the second signal comes meanwhile."""
    with own_home(monkeypatch) as home:
        command = [sys.executable, "-m", "contract_engine.cli", "top", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["postgres"]["state"] == "up"
            assert servers_in(home)
            process.send_signal(number)
            time.sleep(0.05)
            was_ending = process.poll() is None
            process.send_signal(number)
            process.stdout.read()
            assert process.wait(PATIENCE) == 0
        assert was_ending, "the second signal came too late to prove anything"
        assert servers_in(home) == []


@contextmanager
def own_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Lend a directory to the servers that a command starts for itself."""
    with TemporaryDirectory(prefix="contract-own-") as home:
        Path(home).chmod(0o711)  # PostgreSQL's user must pass when we are root
        monkeypatch.setenv(HOME_VARIABLE, home)
        yield home


def servers_in(home: str) -> list[int]:
    """Return the processes that work in a directory."""
    found = []
    for process in psutil.process_iter():
        try:
            directory = process.cwd()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if directory.startswith(home):
            found.append(process.pid)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_terminal_is_given_back(private_servers: PrivateServers, number: signal.Signals) -> None:
    servers = private_servers()
    ours, theirs = pty.openpty()
    variables = {**os.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "40"}
    command = [sys.executable, "-m", "contract_engine.cli", "top", *options(servers), "--interval", "0.2"]
    with ExitStack() as stack:
        stack.callback(os.close, ours)
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
        os.close(theirs)
        stack.callback(process.wait)
        stack.callback(process.kill)
        seen = bytearray()

        def read() -> bool:
            try:
                seen.extend(os.read(ours, 65536))
            except OSError:  # the other side has gone
                return False
            return True

        deadline = time.monotonic() + PATIENCE
        while seen.count(b"contract-memory top") < 3:
            assert time.monotonic() < deadline
            assert read(), bytes(seen)
        assert b"\x1b[?1049h" in seen
        assert b"\x1b[?1049l" not in seen
        process.send_signal(number)
        while read():
            pass
        assert process.wait(PATIENCE) == 0
    assert b"\x1b[?1049l" in seen
    assert b"\x1b[?25h" in seen
    assert b"Traceback" not in seen
