"""``contract-memory metrics``: what it serves, to whom, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from memory_contract import DURABLE, SYNC, Backend, say, talk
from prometheus_client.parser import text_string_to_metric_families
from server_faults import SETTINGS, Outage, waited_for
from servers import PrivateServers, redis_client

from contract_engine.cli.metrics_server import LOOPBACK, serving
from contract_engine.cli.outside import OutsideMetrics
from contract_engine.memory import ConfigurationError, MemoryManager
from contract_engine.memory.metrics import MemoryMetrics

CANARY = "canary-90aa"


@pytest.fixture
def outage(private_servers: PrivateServers) -> Iterator[Outage]:
    servers = private_servers()
    backend = Backend(SYNC, DURABLE, servers.redis_url, servers.database_url, f"{CANARY}-tenant")
    with closing(Outage(servers, backend, SETTINGS)) as one:
        yield one


def get(url: str, method: str = "GET") -> tuple[int, str, str]:
    """Return status code, content type and body of an answer, whatever the code."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.headers["Content-Type"], exc.read().decode()


def samples(text: str) -> dict[str, float]:
    """Return the samples of an exposition, those with labels as ``name{a=b}``."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@contextmanager
def command(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command as a program of its own; yields it and where it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "contract_engine.cli", "metrics", "--json", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        yield process, json.loads("".join(lines))["url"]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextmanager
def served(manager: MemoryManager) -> Iterator[str]:
    with serving(manager, OutsideMetrics(manager), host=LOOPBACK, port=0) as url:
        yield url


def test_what_the_servers_hold_is_served(outage: Outage) -> None:
    manager = outage.open(max_buffer_messages=6)
    for number in range(1, 4):
        manager.add_messages(f"{CANARY}-{number}", talk(9, words=40))
        manager.get_context(f"{CANARY}-{number}")
    manager.wait_for_folds()
    watermarks = sum(manager.get_context(f"{CANARY}-{number}")["watermark"] for number in range(1, 4))
    with served(manager) as url:
        code, kind, text = get(f"{url}/metrics")
        # PostgreSQL tells a moment later.
        assert waited_for(lambda: samples(get(f"{url}/metrics")[2])["memory_logged_messages"] == 27, 60)
        assert samples(get(f"{url}/metrics")[2])["memory_sessions"] == 3
    assert (code, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = samples(text)
    assert found["memory_up{service=redis}"] == found["memory_up{service=postgres}"] == found["memory_ready"] == 1
    assert found["memory_active_sessions"] == 3
    assert found["memory_unfolded_messages"] == 27 - watermarks
    assert found["memory_logged_summaries{method=extractive}"] >= 3
    assert found["memory_redis_used_memory_bytes"] > 100_000
    with redis_client(outage.servers.redis_url) as client:
        stats = client.info("stats")
    for name in ("evicted_keys", "expired_keys"):
        assert found[f"memory_redis_{name}_total"] == stats[name]
    assert 0 < found["memory_redis_keyspace_misses_total"] <= stats["keyspace_misses"]
    assert found["memory_redis_keyspace_hits_total"] > 0
    assert found["memory_circuit_breaker_state{name=redis,state=closed}"] == 1
    assert found["memory_unlogged_messages"] == found["memory_unlogged_oldest_age_seconds"] == 0
    assert CANARY not in text


def test_what_an_erasure_lowers_is_no_counter(outage: Outage) -> None:
    """And has not the name of what applications count."""
    manager = outage.open(max_buffer_messages=6)
    for _ in range(3):
        for name in ("one", "two"):
            manager.add_messages(name, talk(9, words=40))
        manager.wait_for_folds()
    before = OutsideMetrics(manager).text().decode()
    manager.retention.erase(["one"])
    after = OutsideMetrics(manager).text().decode()
    lowered = {name for name, count in samples(after).items() if count < samples(before).get(name, 0)}
    assert {"memory_logged_summaries{method=extractive}", "memory_logged_merges"} <= lowered
    kinds = {family.name: family.type for family in text_string_to_metric_families(after)}
    assert {kinds[name.partition("{")[0]] for name in lowered} == {"gauge"}
    with closing(MemoryMetrics()) as own:
        counted = {family.name for family in own.registry.collect()}
    assert not {name for name in kinds if "summar" in name or "merges" in name} & counted


def test_what_waits_is_seen_from_outside(outage: Outage) -> None:
    """Written by one process, seen by another, which knows of it from Redis alone."""
    writer, watcher = outage.open(), outage.open()
    writer.append("s", say(1))
    outage.kill_database()
    for number in (2, 3, 4):
        assert writer.append("s", say(number)).durable is False, "the fault has fired"
    with served(watcher) as url:
        assert waited_for(lambda: samples(get(f"{url}/metrics")[2])["memory_up{service=postgres}"] == 0, 30)
        found = samples(get(f"{url}/metrics")[2])
    assert found["memory_unlogged_sessions"] == 1
    assert found["memory_unlogged_messages"] == 3
    assert found["memory_unlogged_oldest_age_seconds"] > 0
    assert found["memory_ready"] == 1
    assert "memory_sessions" not in found, "what cannot be told is absent, and not 0"


def test_the_probes_follow_the_servers(outage: Outage) -> None:
    with served(outage.open()) as url:
        assert get(f"{url}/readyz")[:2] == (200, "application/json")
        outage.kill_redis()
        assert waited_for(lambda: json.loads(get(f"{url}/readyz")[2])["status"] == "degraded", 30)
        assert get(f"{url}/readyz")[0] == 200, "PostgreSQL serves"
        outage.kill_database()
        assert waited_for(lambda: get(f"{url}/readyz")[0] == 503, 30)
        code, _, text = get(f"{url}/healthz")
        report: dict[str, Any] = json.loads(text)
        assert (code, report["status"], report["mode"], report["ready"]) == (503, "unhealthy", "minimal", False)
        assert {check["name"]: check["state"] for check in report["checks"]}["redis"] == "fail"
        assert get(f"{url}/livez")[0] == 200, "it is alive all the same"
        assert samples(get(f"{url}/metrics")[2])["memory_ready"] == 0
        outage.servers.start()
        assert waited_for(lambda: get(f"{url}/healthz")[0] == 200, 30)


def test_stopped_servers_do_not_keep_the_probes_waiting(outage: Outage) -> None:
    manager = outage.open(redis_timeout_seconds=20.0, database_timeout_seconds=30.0)
    with served(manager) as url:
        assert get(f"{url}/readyz")[0] == 200
        outage.stop_redis()
        outage.stop_database()
        assert waited_for(lambda: get(f"{url}/readyz")[0] == 503, 15), "long before the timeouts of its calls"
        outage.go_on()
        assert waited_for(lambda: get(f"{url}/readyz")[0] == 200, 60)


def test_other_paths_and_methods(redis_url: str, tenant: str) -> None:
    with MemoryManager(redis_url=redis_url, tenant=tenant) as manager, served(manager) as url:
        assert get(f"{url}/nothing")[0] == 404
        assert get(f"{url}/livez?verbose")[0] == 200
        assert get(f"{url}/metrics", "HEAD") == (200, "text/plain; version=0.0.4; charset=utf-8", "")
        assert get(f"{url}/metrics", "POST")[0] == 501
        ephemeral = samples(get(f"{url}/metrics")[2])
    assert "memory_up{service=postgres}" not in ephemeral
    assert "memory_unlogged_messages" not in ephemeral


def test_the_command_serves_on_loopback_and_ends_well(redis_url: str, database_url: str, tenant: str) -> None:
    servers = ("--redis-url", redis_url, "--database-url", database_url, "--tenant", tenant)
    with command(*servers) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        assert get(f"{url}/livez")[0] == get(f"{url}/readyz")[0] == 200
        assert "memory_redis_used_memory_bytes" in get(f"{url}/metrics")[2]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "")
        assert "Traceback" not in err


def test_ctrl_c_ends_it_too(redis_url: str) -> None:
    with command("--redis-url", redis_url, "--ephemeral") as (process, _):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130


def test_a_port_that_is_taken_is_said(redis_url: str, tenant: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken, MemoryManager(redis_url=redis_url, tenant=tenant) as manager:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigurationError) as caught,
            serving(manager, OutsideMetrics(manager), host=LOOPBACK, port=port),
        ):
            pass
    assert caught.value.field == "port"
    assert str(port) in str(caught.value)


def test_once_prints_the_metrics(redis_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "contract_engine.cli", "metrics", "--once", "--redis-url", redis_url, "--ephemeral"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert samples(done.stdout)["memory_up{service=redis}"] == 1


def test_no_credentials_in_what_is_served() -> None:
    secret = "hunter2"
    url_of_nobody = f"redis://u:{secret}@127.0.0.1:1/0"
    with MemoryManager(redis_url=url_of_nobody) as manager, served(manager) as url:
        shown = "".join(get(f"{url}/{path}")[2] for path in ("metrics", "readyz", "healthz", "livez"))
    assert '"ready": false' in shown
    assert secret not in shown
