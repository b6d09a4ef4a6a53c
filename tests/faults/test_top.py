"""``contract-memory top`` on real servers and a real application: what it counts, and while they are away."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import prometheus_client
import psutil
import psycopg
import pytest
import redis
from memory_contract import talk
from server_faults import ServerFaults, waited_for
from servers import PrivateServers
from typer.testing import CliRunner

from contract_engine.cli import readings
from contract_engine.cli.app import app
from contract_engine.cli.readings import (
    OUTBOX_ROWS,
    ApplicationReader,
    DatabaseReader,
    RedisReader,
    application_reading,
)
from contract_engine.cli.servers import ADDRESS_VARIABLES, HOME_VARIABLE
from contract_engine.cli.top import Lookout
from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import (
    ConfigurationError,
    MemoryConfig,
    MemoryManager,
    RedisUnavailableError,
    StoreUnavailableError,
)

PATIENCE = 30.0
LOOPBACK = "127.0.0.1"
METRICS = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "metrics.txt"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ADDRESS_VARIABLES, "CONTRACT_MEMORY_TENANT", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    # Where nobody serves, whatever runs on this machine.
    monkeypatch.setattr("contract_engine.cli.top.DEFAULT_METRICS", f"http://127.0.0.1:{free_port()}/metrics")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def config_of(servers: EmbeddedServers, tenant: str) -> MemoryConfig:
    return MemoryConfig(redis_url=servers.redis_url, database_url=servers.database_url, tenant=tenant)


def options(servers: EmbeddedServers) -> list[str]:
    return ["--redis-url", servers.redis_url, "--database-url", servers.database_url]


class Application:
    """A process' metrics under the names of the library, served as the library's own exporter does."""

    def __init__(self, port: int = 0) -> None:
        registry = prometheus_client.CollectorRegistry()
        self.durations = prometheus_client.Histogram(
            "memory_operation_duration_seconds",
            "",
            ("operation", "backend", "outcome"),
            registry=registry,
            buckets=(0.001, 0.01, 0.1, 1),
        )
        self.breakers = prometheus_client.Gauge(
            "memory_circuit_breaker_state", "", ("name", "state"), registry=registry
        )
        self.folds = prometheus_client.Counter("memory_folds", "", registry=registry)
        self.outbox = prometheus_client.Gauge("memory_outbox_messages", "", registry=registry)
        self._server, self._thread = prometheus_client.start_http_server(port, "127.0.0.1", registry)
        self.port = int(self._server.server_port)
        self.url = f"http://127.0.0.1:{self.port}/metrics"

    def ran(self, operation: str, *seconds: float, outcome: str = "ok", backend: str = "manager") -> None:
        for duration in seconds:
            self.durations.labels(operation, backend, outcome).observe(duration)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def application() -> Iterator[Application]:
    with closing(Application()) as found:
        yield found


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Serve one answer to everybody who asks."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


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


def test_evictions_and_the_limit_are_told(private_servers: PrivateServers, tenant: str) -> None:
    servers = private_servers(postgres=False)
    config = MemoryConfig(redis_url=servers.redis_url, tenant=tenant)
    with (
        closing(RedisReader(config, timeout_seconds=PATIENCE)) as reader,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        assert reader.read().max_memory_bytes == 0
        limit = client.info("memory")["used_memory"] + 2 * 2**20
        client.config_set("maxmemory", limit)
        client.config_set("maxmemory-policy", "allkeys-lru")
        for number in range(400):
            client.set(f"other:{number}", b"x" * 20_000)
        found = reader.read()
        assert found.max_memory_bytes == limit
        assert found.total("evicted_keys") == client.info("stats")["evicted_keys"] > 0


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


def test_a_large_redis_is_looked_through_bit_by_bit(
    private_servers: PrivateServers, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No look asks for more than its share, and nothing is told before all of it has been seen."""
    monkeypatch.setattr(readings, "SCAN_CALLS", 2)
    monkeypatch.setattr(readings, "SCAN_KEYS", 100)
    servers = private_servers(postgres=False)
    config = MemoryConfig(redis_url=servers.redis_url, tenant=tenant)
    with (
        closing(RedisReader(config, timeout_seconds=PATIENCE)) as reader,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        client.mset({f"other:{number}": "x" for number in range(1000)})
        client.rpush(f"contract:{{{tenant}/s}}:unlogged", "[1,0]", "a", "b")
        for _ in range(3):
            scans = client.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"]
            assert reader.read().unlogged_messages is None
            assert client.info("commandstats")["cmdstat_scan"]["calls"] == scans + 2
        assert waited_for(lambda: reader.read().unlogged_messages == 2, PATIENCE)
        client.delete(f"contract:{{{tenant}/s}}:unlogged")
        assert reader.read().unlogged_messages == 2  # until it has been gone through again
        assert waited_for(lambda: reader.read().unlogged_messages == 0, PATIENCE)


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


# -- applications


def test_operations_of_an_application_between_two_looks(application: Application, redis_url: str, tenant: str) -> None:
    config = MemoryConfig(redis_url=redis_url, tenant=tenant)
    application.ran("append", *[0.5] * 100)
    application.breakers.labels("redis", "open").set(1)
    application.breakers.labels("redis", "closed").set(0)
    application.outbox.set(4)
    with closing(Lookout(config, [application.url])) as lookout:
        lookout.look()
        application.ran("append", *[0.005] * 18, *[0.05] * 2)
        application.ran("append", 0.05, outcome="unavailable")
        application.ran("append", 0.05, outcome="invalid")  # that is the caller's
        application.ran("append", *[0.9] * 50, backend="redis")  # steps of the same calls
        application.ran("get_context", 0.0005)
        application.folds.inc(3)
        found = lookout.look().as_json()
        told = found["applications"][application.url]
        append, read = found["operations"]
        assert append["operation"] == "append"
        assert append["per_second"] * told["seconds"] == pytest.approx(22)
        assert append["errors_per_second"] * told["seconds"] == pytest.approx(1)
        assert 0.001 < append["p50_seconds"] <= 0.01 < append["p95_seconds"] <= 0.1
        assert read["per_second"] * told["seconds"] == pytest.approx(1)
        assert told["operations_per_second"] * told["seconds"] == pytest.approx(23)
        assert told["folds_per_minute"] == pytest.approx(3 * 60 / told["seconds"])
        assert told["breakers"] == {"redis": "open"}
        assert told["outbox_messages"] == 4
        assert told["outbox_parked_messages"] is None


def test_an_application_that_restarts_is_counted_anew(redis_url: str, tenant: str) -> None:
    config = MemoryConfig(redis_url=redis_url, tenant=tenant)
    first = Application()
    first.ran("append", *[0.005] * 50)
    with closing(Lookout(config, [first.url])) as lookout:
        assert lookout.look().as_json()["applications"][first.url]["state"] == "up"
        first.close()
        away = lookout.look().as_json()["applications"][first.url]
        assert away["state"] == "away"
        assert "operations_per_second" not in away
        with closing(Application(first.port)) as second:
            second.ran("append", *[0.005] * 7)
            found = lookout.look().as_json()
            seconds = found["applications"][first.url]["seconds"]
            assert found["operations"][0]["per_second"] * seconds == pytest.approx(7)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (404, b"", "status 404"),
        (200, b"<html><body>not here</body></html>", "no Prometheus text"),
        (200, b'memory_operation_duration_seconds_bucket{operation="x"} 1\n', "no Prometheus text of ours"),
        (200, b'memory_circuit_breaker_state{name="redis",state="ajar"} 1\n', "no Prometheus text of ours"),
        (200, b"memory_folds_total many\n", "no Prometheus text"),
    ],
)
def test_an_answer_of_somebody_else_is_no_metrics(status: int, body: bytes, reason: str) -> None:
    with answering(status, body) as url, pytest.raises(StoreUnavailableError, match=reason):
        ApplicationReader(url).read()


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "MAX_METRICS_BYTES", 1000)
    with answering(200, b"#" * 2000) as url, pytest.raises(StoreUnavailableError, match="more than 1,000 bytes"):
        ApplicationReader(url).read()


def test_the_worst_of_several_breakers_of_one_name_is_told() -> None:
    states = {"closed": 2, "open": 1, "half_open": 1, "forced_open": 0, "disabled": 0}
    text = "".join(f'memory_circuit_breaker_state{{name="redis",state="{state}"}} {n}\n' for state, n in states.items())
    assert application_reading(text, at_seconds=1.0).breakers == {"redis": "open"}


def test_metrics_of_others_are_passed_over() -> None:
    text = 'other_total{operation="x"} 5\nmemory_folds_total{of="a"} 2\nmemory_folds_total{of="b"} 3\n'
    found = application_reading(text + "memory_outbox_messages NaN\n", at_seconds=1.0)
    assert (found.folds, found.operations, found.outbox_messages, found.started) == (5.0, {}, None, None)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://x/metrics", "x", "http://", "http://user:pw@x/metrics", "http://x:port/"),
        *(
            "http://a..b/metrics",
            f"http://{'a' * 64}.example/metrics",
            "http://x/m\N{LATIN SMALL LETTER E WITH ACUTE}trics",
        ),
    ],
)
def test_what_is_no_address_of_metrics_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="metrics: ") as raised:
        ApplicationReader(url)
    assert "pw" not in str(raised.value)


def test_an_answer_that_breaks_its_own_rules_is_away(redis_url: str, tenant: str) -> None:
    """The library of HTTP raises what it likes: a look ends with an answer all the same."""
    with socket.create_server((LOOPBACK, 0)) as broken:
        url = f"http://{LOOPBACK}:{broken.getsockname()[1]}/metrics"

        def answer() -> None:
            connection, _ = broken.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with closing(Lookout(MemoryConfig(redis_url=redis_url, tenant=tenant), [url])) as lookout:
            found = lookout.look().as_json()["applications"][url]
        thread.join()
    assert found["state"] == "away"


def test_every_metric_that_is_read_is_in_the_list() -> None:
    """The list is that of deploy/prometheus, which the rules are held against too."""
    listed = [line.split()[0] for line in METRICS.read_text("utf-8").splitlines() if not line.startswith("#")]
    source = Path(readings.__file__).read_text("utf-8").split("def application_reading")[1].split("\ndef ")[0]
    read = {word for word in source.split('"') if word.startswith("memory_")}
    read.add(readings.DURATIONS)
    assert len(read) >= 10
    assert read <= set(listed)


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
    with TemporaryDirectory(prefix="contract-top-") as home:
        Path(home).chmod(0o711)  # PostgreSQL's user must pass when we are root
        monkeypatch.setenv(HOME_VARIABLE, home)
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
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "40"}
    command = [sys.executable, "-m", "contract_engine.cli", "top", *options(servers), "--interval", "0.2"]
    with ExitStack() as stack:
        stack.callback(os.close, ours)
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
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


# -- one frame


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["top", "--once", "--interval", "0.1", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_one_frame_for_people(application: Application, redis_url: str, database_url: str) -> None:
    application.breakers.labels("postgres", "half_open").set(1)
    code, out, _ = run("--redis-url", redis_url, "--database-url", database_url, "--metrics", application.url)
    assert code == 0
    for words in ("redis ", "scripts/s", "unlogged", "postgres ", "connections", "postgres half_open", application.url):
        assert words in out
    assert "hunter2" not in out
    assert "no metrics are served" in run("--redis-url", redis_url, "--database-url", database_url)[1]


def test_one_frame_for_machines(application: Application, redis_url: str, database_url: str) -> None:
    servers = ("--redis-url", redis_url, "--database-url", database_url)
    code, out, _ = run(*servers, "--json", "--metrics", application.url, "--metrics", application.url)
    assert code == 0
    found = json.loads(out)
    assert set(found) == {"at", "redis", "postgres", "applications", "operations"}
    assert list(found["applications"]) == [application.url]
    assert found["redis"]["seconds"] > 0
    assert found["redis"]["commands_per_second"] > 0
    assert found["postgres"]["connections"] >= 0


def test_ephemeral_mode_has_no_database(redis_url: str) -> None:
    code, out, _ = run("--redis-url", redis_url, "--ephemeral", "--json")
    assert code == 0
    assert json.loads(out)["postgres"] is None
    assert "none: ephemeral mode" in run("--redis-url", redis_url, "--ephemeral")[1]


def test_nobody_answers() -> None:
    """Looking is what was asked for, and it was done: the frame says that all is away."""
    password = "hunter2"  # that must not be seen
    redis_url = f"redis://:{password}@127.0.0.1:{free_port()}/0"
    database_url = f"postgresql://postgres:{password}@127.0.0.1:{free_port()}/postgres"
    metrics = f"http://127.0.0.1:{free_port()}/metrics"
    code, out, err = run("--redis-url", redis_url, "--database-url", database_url, "--metrics", metrics)
    assert code == 0
    assert out.count("away since") == 3
    assert password not in out + err
    with closing(RedisReader(MemoryConfig(redis_url=redis_url))) as reader, pytest.raises(RedisUnavailableError):
        reader.read()


def test_wrong_usage_is_told(redis_url: str) -> None:
    code, _, err = run("--redis-url", redis_url, "--ephemeral", "--metrics", "nowhere")
    assert code == 2
    assert "metrics: expected http://host:port/metrics" in err
    assert run("--interval", "0")[0] == 2
