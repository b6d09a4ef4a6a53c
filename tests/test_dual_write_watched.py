"""What operations see of a dual write: metrics of the process and from outside, health, top, the list of metrics."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from dual_stores import open_store, say
from legacy_stores import ListStore
from memory_contract import DURABLE, SYNC, Backend, talk
from prometheus_client import CollectorRegistry
from server_faults import waited_for
from servers import PrivateServers
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.cli.metrics_server import LOOPBACK, serving
from contract_engine.cli.outside import OutsideMetrics
from contract_engine.memory import AsyncMemoryManager, MemoryManager
from contract_engine.memory.hooks import Detail, DualWriteMismatch, Fallback, observers
from contract_engine.memory.metrics import MemoryMetrics
from contract_engine.memory.migration import AsyncEnhancedSessionStore, EnhancedSessionStore, RelaySettings

pytest_plugins = ("memory_fixtures", "dual_write_fixtures")

LIST = Path(__file__).resolve().parents[1] / "deploy" / "prometheus" / "metrics.txt"
PATIENCE = 30.0
PARKING = RelaySettings(lease_seconds=2.0, first_delay_seconds=0.01, max_delay_seconds=0.01, park_after=2)


@pytest.fixture
def metrics() -> Iterator[MemoryMetrics]:
    with closing(MemoryMetrics()) as collected:
        yield collected


@pytest.fixture
def store(blocking: Backend, legacy: ListStore) -> Iterator[EnhancedSessionStore]:
    with open_store(blocking, legacy, phase="coexistence", relay=PARKING) as found:
        yield found


def served(registry: CollectorRegistry) -> dict[str, float]:
    """Return the samples without labels."""
    return {
        sample.name: sample.value for family in registry.collect() for sample in family.samples if not sample.labels
    }


def shapes(registry: CollectorRegistry) -> dict[str, tuple[str, frozenset[str]]]:
    """Return name, kind and labels of everything served, as the list of metrics has them."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        for sample in family.samples:
            found[name] = (family.type, frozenset(sample.labels) - {"le"})
    return found


def park(store: EnhancedSessionStore, legacy: ListStore) -> None:
    """Leave a session with three messages parked, and one whose message waits."""
    legacy.poison = "message 1"
    for number in (1, 2, 3):
        store.add_chat_message("parked", say(number))
    assert waited_for(lambda: store.relay_once() == 0 and store.backlog().parked == 1, PATIENCE)
    legacy.poison = None
    store.add_chat_message("waiting", say(4))


def test_the_outbox_is_in_the_metrics_of_the_process_and_from_outside(
    blocking: Backend, store: EnhancedSessionStore, legacy: ListStore, metrics: MemoryMetrics
) -> None:
    metrics.watch_dual_write(store)
    assert "memory_outbox_messages" not in served(metrics.registry), "nobody has counted yet, which is not 0"
    park(store, legacy)
    store.backlog()
    own = served(metrics.registry)
    assert own["memory_outbox_messages"] == 4
    assert own["memory_outbox_parked_messages"] == 3
    assert own["memory_outbox_oldest_age_seconds"] > 0
    assert 'name="legacy"' in metrics.text().decode(), "the breaker of the legacy store"
    with MemoryManager(config=blocking.config()) as manager:
        outside = served(OutsideMetrics(manager).registry)
        # Of all tenants; those of other tests may be among them.
        assert outside["memory_outbox_messages"] >= 4
        assert outside["memory_outbox_parked_messages"] >= 3
        assert outside["memory_outbox_oldest_age_seconds"] >= own["memory_outbox_oldest_age_seconds"]


def test_an_adapter_that_relays_counts_while_somebody_listens(
    blocking: Backend, legacy: ListStore, metrics: MemoryMetrics
) -> None:
    with open_store(blocking, legacy, is_relaying=True) as store:
        metrics.watch_dual_write(store)
        store.add_chat_message("s", say(1))
        assert waited_for(lambda: "memory_outbox_messages" in served(metrics.registry), PATIENCE)


async def test_so_does_one_for_asyncio(blocking: Backend, legacy: ListStore, metrics: MemoryMetrics) -> None:
    async with (
        AsyncMemoryManager(config=blocking.config()) as manager,
        AsyncEnhancedSessionStore(manager, legacy, relay=PARKING) as store,
    ):
        metrics.watch_dual_write(store)
        await store.add_chat_message("s", say(1))
        async with asyncio.timeout(PATIENCE):
            while "memory_outbox_messages" not in served(metrics.registry):
                await asyncio.sleep(0.02)
        assert served(metrics.registry)["memory_outbox_parked_messages"] == 0


def test_a_mismatch_is_told_by_kind_and_without_ids(
    blocking: Backend, legacy: ListStore, metrics: MemoryMetrics
) -> None:
    told: list[Detail] = []
    stop = observers.add(told.append)
    with open_store(blocking, legacy, phase="gradual", percentage=0, shadow_rate=1.0) as store:
        for name in ("same", "other", "more"):
            for number in range(3):
                store.add_chat_message(name, say(number))
        assert store.settle()
        legacy.sessions["other"][1] = {"content": "canary"}
        legacy.sessions["more"].append(say(9))
        for name in ("same", "other", "more"):
            store.get_chat_history(name)
        assert store.memory_manager.wait_for_folds(PATIENCE)
    stop()
    assert sorted((one.kind, one.count) for one in told if isinstance(one, DualWriteMismatch)) == [
        ("differs", 1),
        ("missing_in_new", 1),
    ]
    text = metrics.text().decode()
    assert 'memory_dual_write_mismatch_total{kind="differs"} 1.0' in text
    assert "canary" not in text + repr(told)


def test_health_tells_of_the_outbox_where_there_is_one(
    blocking: Backend, store: EnhancedSessionStore, legacy: ListStore
) -> None:
    manager = blocking.open()
    assert manager.health().check("outbox") is None, "this tenant has no legacy store yet"
    store.add_chat_message("s", say(0))
    assert store.settle()
    assert waited_for(lambda: manager.health().check("outbox") is not None, PATIENCE)
    assert manager.health().is_well("outbox")
    park(store, legacy)
    assert waited_for(lambda: not manager.health().is_well("outbox"), PATIENCE)
    report = manager.health()
    check = report.check("outbox")
    assert check is not None
    assert (check.state, check.critical, report.status, report.is_ready) == ("warn", False, "degraded", True)
    assert "sessions put aside: 1" in check.detail
    assert waited_for(lambda: "legacy store: 4" in str(manager.health().check("outbox")), PATIENCE)
    store.retry()
    assert store.settle()
    assert waited_for(lambda: manager.health().is_well("outbox"), PATIENCE)


def test_the_doctor_prints_it(
    blocking: Backend, store: EnhancedSessionStore, legacy: ListStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    park(store, legacy)
    monkeypatch.setenv("COLUMNS", "200")
    assert blocking.database_url is not None
    servers = ["--redis-url", blocking.redis_url, "--database-url", blocking.database_url, "--tenant", blocking.tenant]
    shown = CliRunner().invoke(app, ["doctor", *servers])
    assert shown.exit_code == 1, "a warning"
    assert re.search(r"outbox: messages that wait for the legacy store: 4, the oldest for \d s;", shown.output), (
        "in the report"
    )
    assert re.search(r"! outbox +messages that wait .* put aside: 1\s+→ see what", shown.output), shown.output


def test_an_older_schema_is_no_outage(private_servers: PrivateServers, redis_url: str, tenant: str) -> None:
    url = private_servers(redis=False).database_url
    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE memory_relays")
    with closing(Backend(SYNC, DURABLE, redis_url, url, tenant)) as backend:
        report = backend.open().health()
    assert report.is_well("postgres")
    assert report.check("outbox") is None


def test_top_shows_what_the_endpoint_serves(blocking: Backend, store: EnhancedSessionStore, legacy: ListStore) -> None:
    park(store, legacy)
    assert blocking.database_url is not None
    with (
        MemoryManager(config=blocking.config()) as manager,
        serving(manager, OutsideMetrics(manager), host=LOOPBACK, port=0) as url,
    ):
        servers = ["--redis-url", blocking.redis_url, "--database-url", blocking.database_url]
        given = ["top", "--once", "--json", "--interval", "0.1", "--metrics", f"{url}/metrics", *servers]
        shown = CliRunner().invoke(app, given)
    assert shown.exit_code == 0, shown.output
    [application] = json.loads(shown.stdout)["applications"].values()
    assert application["outbox_messages"] >= 4
    assert application["outbox_parked_messages"] >= 3


def test_everything_in_the_list_of_metrics_is_served_as_it_says(
    blocking: Backend, store: EnhancedSessionStore, legacy: ListStore, metrics: MemoryMetrics
) -> None:
    """Rules and dashboard name nothing that is not in the list; so what they name is what is really served."""
    metrics.watch_dual_write(store)
    park(store, legacy)
    store.backlog()
    with MemoryManager(max_buffer_messages=6, config=blocking.config()) as manager:
        metrics.watch(manager)
        manager.add_messages("long", talk(9, words=40))
        manager.get_context("long")
        assert manager.wait_for_folds()
        observers.tell(Fallback("breaker_open"))
        observers.tell(DualWriteMismatch("differs"))
        found = shapes(OutsideMetrics(manager).registry) | shapes(metrics.registry)
    for line in LIST.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            name, kind, *labels = line.split()
            assert found.get(name) == (kind, frozenset(labels)), name
