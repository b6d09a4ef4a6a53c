"""Metrics: every call is counted, under the promised names, and nothing of anybody's session is in them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from memory_contract import DURABLE, SYNC, Backend, cancel_a_read, say, talk
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from server_faults import SETTINGS, Outage, waited_for
from servers import PrivateServers

from contract_engine.memory import ConfigurationError, MemoryManager, StoreUnavailableError
from contract_engine.memory._effects import Flow
from contract_engine.memory.durations import MOST_PENDING, Distribution, Totals, durations_of
from contract_engine.memory.hooks import DualWriteMismatch, observers
from contract_engine.memory.metrics import (
    CONTENT_TYPE,
    Backlog,
    MemoryMetrics,
    metrics_of_process,
    metrics_text,
)
from contract_engine.memory.summarizers import ModelSummarizer

pytest_plugins = ["memory_fixtures"]

CANARY = "canary-7f3e"
LABELS = {"operation", "backend", "outcome", "name", "state", "kind", "reason", "method", "le"}


@pytest.fixture
def metrics() -> Iterator[MemoryMetrics]:
    collected = MemoryMetrics()
    yield collected
    collected.close()


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample of an exposition by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: MemoryMetrics, metric: str, **labels: str) -> float:
    return samples(metrics.text()).get((metric, tuple(sorted(labels.items()))), 0.0)


def counted(metrics: MemoryMetrics, operation: str, backend: str = "manager", outcome: str = "ok") -> float:
    name = "memory_operation_duration_seconds_count"
    return value(metrics, name, operation=operation, backend=backend, outcome=outcome)


def test_every_operation_layer_and_outcome_is_counted(
    manager: MemoryManager, backend: Backend, metrics: MemoryMetrics
) -> None:
    for number in range(1, 6):
        manager.add_message("s", say(number))
    for _ in range(3):
        manager.get_context("s")
    with pytest.raises(ValueError, match="session_id"):
        manager.append("", say(1))
    assert counted(metrics, "add_message") == 5
    assert counted(metrics, "get_context") == 3
    assert counted(metrics, "append", outcome="invalid") == 1
    if backend.is_durable:
        assert counted(metrics, "append_one", "postgres") == 5
        assert counted(metrics, "append", "redis") == 5
    assert value(metrics, "memory_buffer_messages_count") == 3
    assert value(metrics, "memory_buffer_messages_sum") == 15
    assert value(metrics, "memory_buffer_tokens_sum") == 3 * manager.get_context("s")["buffer_info"]["total_tokens"]
    assert value(metrics, "memory_buffer_ttl_seconds_count") >= 3


def test_what_was_refused_and_what_failed_are_counted(backend: Backend, metrics: MemoryMetrics) -> None:
    manager = backend.open(
        redis_url="redis://127.0.0.1:1/0",
        database_url="postgresql://127.0.0.1:1/x" if backend.is_durable else None,
    )
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            manager.append("s", say(1))
    assert manager.add_message("s", say(1)) is False
    assert counted(metrics, "append", outcome="unavailable") == 2
    assert counted(metrics, "add_message", outcome="refused") == 1
    assert counted(metrics, "append") == counted(metrics, "add_message") == 0
    shown = samples(metrics.text())
    layers = {dict(labels)["backend"] for _, labels in shown if ("outcome", "unavailable") in labels}
    assert layers == {"manager", "redis"} | ({"postgres"} if backend.is_durable else set())


async def test_what_was_cancelled_is_counted(redis_url: str, tenant: str, metrics: MemoryMetrics) -> None:
    await cancel_a_read(redis_url, tenant)
    assert counted(metrics, "get_context", outcome="cancelled") == 1
    assert counted(metrics, "get_context") == 0


def test_counts_are_exact_under_threads(metrics: MemoryMetrics) -> None:
    durations = durations_of("work", "manager", "ok")
    rounds = 2 * MOST_PENDING // 8 + 17
    begin = threading.Barrier(9)

    def work() -> None:
        begin.wait()
        for _ in range(rounds):
            durations.add(0.001)

    with ThreadPoolExecutor(9) as pool:
        looking = pool.submit(lambda: (begin.wait(), [metrics.text() for _ in range(20)]))
        for future in [pool.submit(work) for _ in range(8)]:
            future.result()
        looking.result()
    assert counted(metrics, "work") == 8 * rounds


def test_buckets_hold_what_lies_at_or_below_their_bound(metrics: MemoryMetrics) -> None:
    distribution = Distribution((1.0, 2.0, 5.0))
    for one in (0.5, 1.0, 1.5, 5.0, 7.0):
        distribution.add(one)
    assert distribution.totals() == Totals((2, 1, 1, 1), 15.0)
    assert distribution.totals() == Totals((2, 1, 1, 1), 15.0), "what was sorted in stays"
    durations_of("bounds", "manager", "ok").add(0.25)
    name, labels = "memory_operation_duration_seconds_bucket", {"operation": "bounds", "backend": "manager"}
    assert [value(metrics, name, **labels, outcome="ok", le=le) for le in ("0.1", "0.25", "+Inf")] == [0, 1, 1]


def test_metrics_show_what_has_happened_since_they_were_made(manager: MemoryManager) -> None:
    """Times are noted once for all who want them, in what may be older than any of these."""
    with closing(MemoryMetrics()) as older:
        manager.add_message("s", say(1))
        with closing(MemoryMetrics()) as newer:
            assert b'operation="add_message"' not in newer.text(), "no figure is not the figure 0"
            manager.add_message("s", say(2))
            assert (counted(older, "add_message"), counted(newer, "add_message")) == (2, 1)
            name = "memory_operation_duration_seconds_sum"
            labels = {"operation": "add_message", "backend": "manager", "outcome": "ok"}
            assert 0 < value(newer, name, **labels) < value(older, name, **labels)


def test_operations_of_one_name_are_one_series(
    manager: MemoryManager, backend: Backend, metrics: MemoryMetrics
) -> None:
    """Two of one name and the same labels are an exposition that Prometheus refuses as a whole."""

    def named_alike() -> Flow[bool]:
        yield from ()
        return True

    first = named_alike()

    def _named_alike() -> Flow[bool]:
        yield from ()
        return True

    for flow in (first, _named_alike()):
        assert backend.run(manager, flow)
    lines = metrics.text().decode().splitlines()
    found = [line for line in lines if line.startswith("memory_operation_duration_seconds_count") and "named" in line]
    assert [line.rsplit(" ", 1)[1] for line in found] == ["2.0"]


def test_where_times_are_noted_nobody_is_told(
    manager: MemoryManager, metrics: MemoryMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To tell somebody costs several times as much, and every message has to bear it."""

    def refuse(*_: object) -> None:
        raise AssertionError("something was prepared for nobody")

    manager.add_message("s", say(1))
    for name in ("OperationEnded", "tell_all"):
        monkeypatch.setattr(f"contract_engine.memory._observed.{name}", refuse)
    monkeypatch.setattr(observers, "begin", refuse)
    manager.add_message("s", say(2))
    assert counted(metrics, "add_message") == 2


def test_folds_and_what_they_save(manager: MemoryManager, metrics: MemoryMetrics) -> None:
    manager.set_session_config("s", {"max_buffer_messages": 8})
    for _ in range(3):
        manager.add_messages("s", talk(6, words=40))
        manager.get_context("s")
        manager.wait_for_folds()
    folds = value(metrics, "memory_folds_total")
    assert folds >= 2
    assert value(metrics, "memory_summary_merges_total") == folds - 1
    assert value(metrics, "memory_summaries_total", method="extractive") == folds
    assert value(metrics, "memory_folded_messages_total") == manager.get_context("s")["watermark"]
    assert value(metrics, "memory_tokens_saved_total") > 0


def test_breakers_are_shown_with_state_and_calls(durable: Backend, metrics: MemoryMetrics) -> None:
    writer = ModelSummarizer(lambda messages, max_tokens: "NONE")
    manager = durable.open(facts_writer=writer)
    metrics.watch(manager)
    manager.add_message("s", say(1))
    name = "memory_circuit_breaker_state"
    for breaker in ("redis", "postgres", "summarizer"):
        assert value(metrics, name, name=breaker, state="closed") == 1, breaker
    assert value(metrics, "memory_circuit_breaker_calls_total", name="redis", kind="successful") >= 1
    manager.circuit_breaker.force_open()
    assert value(metrics, name, name="redis", state="forced_open") == 1
    assert value(metrics, name, name="redis", state="closed") == 0


def test_fallbacks_and_the_backlog(private_servers: PrivateServers, tenant: str, metrics: MemoryMetrics) -> None:
    servers = private_servers()
    backend = Backend(SYNC, DURABLE, servers.redis_url, servers.database_url, tenant)
    with closing(Outage(servers, backend, SETTINGS)) as outage:
        manager = outage.open()
        metrics.watch(manager)
        manager.append("s", say(1))
        assert value(metrics, "memory_unlogged_sessions") == 0
        assert value(metrics, "memory_unlogged_oldest_age_seconds") == 0
        outage.kill_database()
        assert manager.append("s", say(2)).durable is False, "the fault has fired"
        assert value(metrics, "memory_fallback_total", reason="postgres_unavailable") == 1
        assert value(metrics, "memory_messages_unlogged_total") == 1
        assert value(metrics, "memory_unlogged_sessions") == 1
        assert waited_for(lambda: value(metrics, "memory_unlogged_oldest_age_seconds") > 0)
        servers.start()
        assert waited_for(lambda: manager.append("s", say(3)).durable, 30)
        unlogged = value(metrics, "memory_messages_unlogged_total")
        assert waited_for(lambda: value(metrics, "memory_messages_drained_total") == unlogged, 30)
        assert waited_for(lambda: value(metrics, "memory_unlogged_sessions") == 0, 30)


def test_backlogs_of_others_are_one_line(metrics: MemoryMetrics, caplog: pytest.LogCaptureFixture) -> None:
    metrics.add_backlog("outbox", lambda: Backlog(7, 12.5))
    assert value(metrics, "memory_outbox_messages") == 7
    assert value(metrics, "memory_outbox_oldest_age_seconds") == 12.5

    def broken() -> Backlog:
        raise RuntimeError("the outbox is not there")

    metrics.add_backlog("outbox", broken)
    assert "memory_outbox_messages" not in metrics.text().decode(), "no figure is not the figure 0"
    assert "memory_folds_total" in metrics.text().decode()
    assert caplog.records
    with pytest.raises(ConfigurationError):
        metrics.add_backlog("no name", broken)


def test_mismatches_of_a_dual_write(metrics: MemoryMetrics) -> None:
    observers.tell(DualWriteMismatch("missing"))
    observers.tell(DualWriteMismatch("missing", 2))
    assert value(metrics, "memory_dual_write_mismatch_total", kind="missing") == 3


def test_nothing_of_a_session_is_in_the_metrics(backend: Backend, metrics: MemoryMetrics) -> None:
    backend.tenant = f"{CANARY}-tenant"
    manager = backend.open(max_buffer_messages=4)
    metrics.watch(manager)
    session = f"{CANARY}-session"
    for number in range(12):
        manager.append(session, {"role": "user", "content": f"{CANARY} {number}"}, message_id=f"{CANARY}-{number}")
    manager.get_context(session)
    manager.save_context(session, {"session_id": session, "note": CANARY})
    with pytest.raises(ValueError, match="message_id"):
        manager.pin(session, f"{CANARY}-of-nobody")
    manager.wait_for_folds()
    text = metrics.text().decode()
    assert counted(metrics, "append") == 12, "there was something to be told"
    assert CANARY not in text
    labels = {label for _, pairs in samples(text.encode()) for label, _ in pairs}
    assert labels <= LABELS
    manager.clear_session_memory(session)


def test_metrics_live_in_the_registry_they_are_given() -> None:
    registry = CollectorRegistry()
    metrics = MemoryMetrics(registry)
    assert registry.get_sample_value("memory_folds_total") == 0
    metrics.close()
    assert registry.get_sample_value("memory_folds_total") is None
    assert not observers.is_active


def test_an_application_mounts_the_text_of_its_process(manager: MemoryManager) -> None:
    metrics_text()  # collects from here on
    try:
        manager.add_message("s", say(1))
        assert counted(metrics_of_process(), "add_message") >= 1
        assert b"memory_operation_duration_seconds_bucket" in metrics_text()
        assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
    finally:
        metrics_of_process().close()
    assert not observers.is_active


def test_without_the_extra_the_error_names_it() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from contract_engine.memory import ConfigurationError\n"
        "from contract_engine.memory.metrics import MemoryMetrics\n"
        "try:\n    MemoryMetrics()\nexcept ConfigurationError as exc:\n    print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "contract-engine[metrics]" in done.stdout


def test_a_child_goes_on_counting(metrics: MemoryMetrics) -> None:
    # As threads of the parent might hold them.
    with metrics._lock, Distribution.lock:
        pid = os.fork()
        if pid == 0:
            observers.tell(DualWriteMismatch("in the child"))
            durations_of("in the child", "manager", "ok").add(0.1)
            text = metrics.text()
            os._exit(0 if b'kind="in the child"' in text and b'operation="in the child"' in text else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
