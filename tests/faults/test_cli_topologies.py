"""The commands on a Cluster and on a primary behind Sentinels, by the URLs the library takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest
from memory_contract import DURABLE, SYNC, Backend, say, talk
from redis_topologies import PASSWORD, SLOTS, Cluster, Watched, cluster, lone_node, watched_primary
from server_faults import waited_for
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.cli.nodes import find_nodes
from contract_engine.cli.readings import RedisReader
from contract_engine.cli.servers import redis_address
from contract_engine.memory import ConfigurationError, MemoryConfig, RedisUnavailableError, StoreMisconfiguredError

SESSIONS = [f"s{number}" for number in range(12)]
"""Enough that every primary holds some of them."""


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        yield {"cluster": stack.enter_context(cluster()), "sentinel": stack.enter_context(watched_primary())}


@pytest.fixture(params=["cluster", "sentinel"])
def several(made: dict[str, Any], request: pytest.FixtureRequest) -> Any:
    return made[request.param]


@pytest.fixture
def backend(several: Cluster | Watched, database_url: str, tenant: str) -> Iterator[Backend]:
    with closing(Backend(SYNC, DURABLE, several.url, database_url, tenant)) as found:
        yield found


class Answer:
    def __init__(self, backend: Backend, *arguments: str) -> None:
        servers = ["--redis-url", backend.redis_url, "--database-url", str(backend.database_url)]
        result = CliRunner().invoke(app, [*arguments, *servers, "--tenant", backend.tenant])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        assert PASSWORD not in self.out + self.err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def fill(backend: Backend) -> None:
    manager = backend.open(max_buffer_messages=6)
    for name in SESSIONS:
        manager.add_messages(name, talk(9))
        manager.get_context(name)
    manager.wait_for_folds()


def primaries(several: Cluster | Watched) -> list[Any]:
    return several.primaries if isinstance(several, Cluster) else [several.primary]


def keys_of(several: Cluster | Watched, tenant: str) -> list[bytes]:
    return [key for server in primaries(several) for key in server.client.keys(f"*{{{tenant}/*")]


def test_show_and_stats(backend: Backend) -> None:
    fill(backend)
    shown = Answer(backend, "show", "s3", "--json")
    assert (shown.code, shown.json["last_seq"], shown.json["degraded"]) == (0, 9, False)
    assert "of sentinels" in shown.err or "cluster 127.0.0.1:" in shown.err
    assert Answer(backend, "stats", "s3", "--json").json["redis_memory"]["used_memory"] > 0


def test_doctor_looks_at_every_primary(backend: Backend, several: Cluster | Watched) -> None:
    answer = Answer(backend, "doctor", "--json")
    checks: dict[str, list[dict[str, str]]] = {}
    for check in answer.json["checks"]:
        checks.setdefault(check["check"], []).append(check)
    assert len(checks["redis"]) == len(primaries(several))
    assert {check["state"] for check in checks["redis"]} == {"ok"}
    assert len(checks["redis version"]) == len(checks["redis memory"]) == 1
    assert checks["unlogged"][0]["state"] == "ok"
    one = primaries(several)[0]
    one.client.config_set("maxmemory", "100mb")
    try:
        memory = [check for check in Answer(backend, "doctor", "--json").json["checks"] if "memory" in check["check"]]
    finally:
        one.client.config_set("maxmemory", "0")
    weighed = next(check for check in memory if check["state"] == "warn")
    if isinstance(several, Cluster):
        assert checks["redis cluster"][0]["detail"] == "3 primaries serve all slots"
        assert weighed["detail"].startswith(f"127.0.0.1:{one.port}: limit 100.0 MiB")
        assert len(memory) == 2
    else:
        assert "redis cluster" not in checks
        assert len(memory) == 1


def test_top_counts_what_all_primaries_hold(backend: Backend, several: Cluster | Watched) -> None:
    fill(backend)
    frame = Answer(backend, "top", "--once", "--interval", "0.1", "--json").json["redis"]
    assert frame["state"] == "up"
    assert frame["keys"] == sum(server.client.dbsize() for server in primaries(several))
    assert frame["commands_per_second"] > 0
    config = MemoryConfig(redis_url=backend.redis_url, tenant=backend.tenant)
    with closing(RedisReader(config, timeout_seconds=30)) as reader:
        before = reader.read()
        backend.open().add_messages("s0", talk(3))
        assert reader.read().total("scripts") > before.total("scripts")
    assert "contract-memory top" in Answer(backend, "top", "--once", "--interval", "0.1").out


def test_what_waits_on_any_primary_is_seen_and_drained(backend: Backend, tenant: str) -> None:
    away = Backend(SYNC, DURABLE, backend.redis_url, "postgresql://127.0.0.1:1/x", tenant)
    with closing(away):
        for name in SESSIONS:
            assert away.open().append(name, say(1)).durable is False
    with closing(RedisReader(MemoryConfig(redis_url=backend.redis_url, tenant=tenant))) as reader:
        assert waited_for(lambda: reader.read().unlogged_sessions == len(SESSIONS), 30)
    checks = Answer(backend, "doctor", "--json").json["checks"]
    (waiting,) = [check for check in checks if check["check"] == "unlogged"]
    assert (waiting["state"], f"{len(SESSIONS)} sessions" in waiting["detail"]) == ("warn", True)
    assert Answer(backend, "drain", "--dry-run", "--json").json["waiting"] == sorted(SESSIONS)
    drained = Answer(backend, "drain", "--json")
    assert (drained.code, drained.json["messages"]) == (0, len(SESSIONS))
    assert Answer(backend, "drain", "--dry-run", "--json").json["waiting"] == []


def test_purge_and_erase_leave_no_key_on_any_primary(backend: Backend, several: Cluster | Watched, tenant: str) -> None:
    fill(backend)
    holders = {server.port for server in primaries(several) if server.client.keys(f"*{{{tenant}/*")}
    assert len(holders) == len(primaries(several))
    erased = Answer(backend, "erase", *SESSIONS[:6], "--yes", "--json")
    assert (erased.code, erased.json["proven"]) == (0, True)
    assert not [key for key in keys_of(several, tenant) if key.split(b"}")[0].split(b"/")[1].decode() in SESSIONS[:6]]
    assert backend.database_url is not None
    with psycopg.connect(backend.database_url) as connection:
        connection.execute(
            "UPDATE memory_sessions SET updated_at = now() - interval '9 days' WHERE tenant = %s", (tenant,)
        )
    purged = Answer(backend, "purge", "--older-than", "7d", "--yes", "--json")
    assert (purged.code, purged.json["sessions"]) == (0, 6)
    assert keys_of(several, tenant) == []


def test_a_key_that_is_left_on_any_primary_is_found(backend: Backend, several: Cluster | Watched, tenant: str) -> None:
    fill(backend)
    for name in SESSIONS:
        key = f"contract:{{{tenant}/{name}}}:forgotten"
        place = several.owner(_slot(key)) if isinstance(several, Cluster) else several.primary
        place.client.set(key, "left")
    erased = Answer(backend, "erase", *SESSIONS, "--yes", "--json")
    assert erased.code == 1
    assert all(len(report["left_keys"]) == 1 for report in erased.json["sessions"])


def _slot(key: str) -> int:
    from redis.crc import key_slot

    return int(key_slot(key.encode()))


def test_metrics_and_export(backend: Backend, several: Cluster | Watched) -> None:
    fill(backend)
    metrics = Answer(backend, "metrics", "--once")
    assert 'memory_up{service="redis"} 1.0' in metrics.out
    for server in primaries(several):
        assert f'memory_redis_keyspace_hits_total{{node="127.0.0.1:{server.port}"}}' in metrics.out
    assert metrics.out.count("memory_redis_used_memory_bytes{") == len(primaries(several))
    assert Answer(backend, "export", "s1").out.count("\n") > 9


def test_a_dead_primary_is_named(made: dict[str, Any], database_url: str, tenant: str) -> None:
    several = made["cluster"]
    victim = several.primaries[1]
    with closing(Backend(SYNC, DURABLE, several.url, database_url, tenant)) as backend:
        victim.kill()
        try:
            answer = Answer(backend, "doctor", "--json")
            frame = Answer(backend, "top", "--once", "--interval", "0.1", "--json").json
        finally:
            victim.start()
            assert waited_for(several.is_ok, 60)
    failed = [check for check in answer.json["checks"] if check["state"] == "fail"]
    assert answer.code == 2
    assert any(f"127.0.0.1:{victim.port}" in check["detail"] for check in failed)
    assert frame["redis"]["state"] == "away"
    assert str(victim.port) in frame["redis"]["reason"]


def test_seeds_that_are_away_are_passed_over(made: dict[str, Any]) -> None:
    port = made["cluster"].primaries[2].port
    url = f"redis+cluster://:{PASSWORD}@127.0.0.1:1,127.0.0.1:{port}/"
    assert len(find_nodes(url, timeout_seconds=5).nodes) == 3
    with pytest.raises(RedisUnavailableError):
        find_nodes(f"redis+cluster://:{PASSWORD}@127.0.0.1:1,127.0.0.1:2/", timeout_seconds=5)
    with pytest.raises(StoreMisconfiguredError, match="no Sentinel watches"):
        find_nodes(made["sentinel"].url + "-other", timeout_seconds=5)


def test_slots_that_nobody_serves_are_told_of_a_single_node_too(database_url: str, tenant: str) -> None:
    with lone_node() as node, closing(Backend(SYNC, DURABLE, node.url, database_url, tenant)) as backend:
        checks = [check for check in Answer(backend, "doctor", "--json").json["checks"] if "redis" in check["check"]]
        assert [(check["check"], check["state"]) for check in checks] == [("redis", "fail")]
        assert f"127.0.0.1:{node.primaries[0].port} knows of no node that serves a slot" in checks[0]["detail"]
        frame = Answer(backend, "top", "--once", "--interval", "0.1", "--json").json
        assert frame["redis"]["state"] == "away"
        node.primaries[0].say("CLUSTER", "ADDSLOTS", *range(SLOTS // 4))
        assert waited_for(lambda: find_nodes(node.url, timeout_seconds=5).unserved_slots == SLOTS * 3 // 4, 30)
        checks = [check for check in Answer(backend, "doctor", "--json").json["checks"] if "slots" in check["detail"]]
        assert [(check["check"], check["state"]) for check in checks] == [("redis cluster", "fail")]
        assert "12,288 of 16,384 slots are served by nobody" in checks[0]["detail"]


def test_addresses_are_shown_without_credentials() -> None:
    assert redis_address("redis+cluster://u:hunter2@h:1,[::1]:2/0") == "cluster h:1,[::1]:2"
    assert redis_address("rediss+sentinel://:hunter2@h/name/3") == "name/3 of sentinels h:26379"
    for url in ("redis+other://h", "redis+cluster://h:1/3", "redis+sentinel://h:1"):
        with pytest.raises(ConfigurationError, match="redis_url: "):
            redis_address(url)
