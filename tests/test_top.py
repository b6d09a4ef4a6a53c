"""``contract-memory top``: what it makes of a Redis, of applications, and of what says nothing it knows."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import prometheus_client
import pytest
import redis
from server_faults import waited_for
from servers import PrivateServers
from typer.testing import CliRunner

from contract_engine.cli import readings
from contract_engine.cli.app import app
from contract_engine.cli.readings import (
    ApplicationReader,
    RedisReader,
    application_reading,
)
from contract_engine.cli.servers import ADDRESS_VARIABLES
from contract_engine.cli.top import Lookout
from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import (
    ConfigurationError,
    MemoryConfig,
    RedisUnavailableError,
    StoreUnavailableError,
)

PATIENCE = 30.0
LOOPBACK = "127.0.0.1"
METRICS = Path(__file__).resolve().parents[1] / "deploy" / "prometheus" / "metrics.txt"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_keys_of_one_database_are_told_by_the_round_trip_that_tells_the_rest(
    private_servers: PrivateServers, tenant: str
) -> None:
    url = f"{private_servers(postgres=False).redis_url.rpartition('/')[0]}/3"
    with (
        closing(RedisReader(MemoryConfig(redis_url=url, tenant=tenant), timeout_seconds=PATIENCE)) as reader,
        redis.Redis.from_url(url) as client,
    ):
        assert reader.read().keys == 0
        client.mset({f"other:{number}": "x" for number in range(7)})
        client.select(0)
        client.set("elsewhere", "x")
        assert reader.read().keys == 7
        assert "cmdstat_dbsize" not in client.info("commandstats")


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
