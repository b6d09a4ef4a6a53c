"""Hooks: what they are told, by whom, and that nothing they do breaks a call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any, get_args

import msgspec
import pytest
from memory_contract import DURABLE, SYNC, Backend, cancel_a_read, say, talk
from server_faults import SETTINGS, Outage, waited_for
from servers import PrivateServers

from contract_engine.memory import AsyncMemoryManager, InvalidInputError, MemoryManager
from contract_engine.memory.hooks import (
    BufferRead,
    Detail,
    Ending,
    Fallback,
    FoldEnded,
    MessagesDrained,
    MessagesUnlogged,
    OperationEnded,
    SummaryWritten,
    observers,
)
from contract_engine.memory.summarizers import ModelSummarizer

pytest_plugins = ["memory_fixtures"]


@pytest.fixture
def told() -> Iterator[list[Detail]]:
    """Everything hooks are told during a test."""
    details: list[Detail] = []
    stop = observers.add(details.append)
    yield details
    stop()


@pytest.fixture
def outage(private_servers: PrivateServers, tenant: str) -> Iterator[Outage]:
    servers = private_servers()
    backend = Backend(SYNC, DURABLE, servers.redis_url, servers.database_url, tenant)
    with closing(Outage(servers, backend, SETTINGS)) as one:
        yield one


def endings(told: list[Detail], backend: str = "manager") -> list[tuple[str, str]]:
    ended = [one for one in told if isinstance(one, OperationEnded)]
    return [(one.operation, one.outcome) for one in ended if one.backend == backend]


def of_kind(told: list[Detail], kind: Any) -> list[Any]:
    return [one for one in told if type(one) is kind]


def test_every_operation_is_told_with_its_layers(manager: MemoryManager, backend: Backend, told: list[Detail]) -> None:
    manager.add_message("s", say(1))  # a first one has to make its buffer
    told.clear()
    manager.add_message("s", say(2))
    assert endings(told) == [("add_message", "ok")]
    assert [name for name, _ in endings(told, "redis")] == ["append" if backend.is_durable else "assign"]
    assert endings(told, "postgres") == ([("append_one", "ok")] if backend.is_durable else [])
    assert all(one.seconds >= 0 for one in of_kind(told, OperationEnded))
    told.clear()
    manager.get_context("s")
    assert endings(told, "redis") == [("lrange", "ok")], "one round trip, named after its first command"
    assert endings(told, "postgres") == [], "the log is not asked for what was not asked for"
    manager.set_session_config("s", {"max_buffer_messages": 20})
    manager.clear_session_memory("s")
    named = [name for name, _ in endings(told)]
    assert named == ["get_context", "set_session_config", "clear_session_memory"]
    if backend.is_durable:
        transactions = {name for name, _ in endings(told, "postgres")}
        assert {"change_limits", "erase"} <= transactions, "a transaction is called what the function around it is"


def test_what_was_refused_and_what_was_wrong_are_told(backend: Backend, told: list[Detail]) -> None:
    manager = backend.open(
        redis_url="redis://127.0.0.1:1/0",
        database_url="postgresql://127.0.0.1:1/x" if backend.is_durable else None,
        breaker_failure_threshold=2,
    )
    with pytest.raises(InvalidInputError):
        manager.append("", say(1))
    assert manager.add_message("s", say(1)) is False
    assert endings(told) == [("append", "invalid"), ("add_message", "refused")]
    assert ("unavailable" in {outcome for _, outcome in endings(told, "redis")}) is True
    for _ in range(2):
        manager.add_message("s", say(1))
    assert "rejected" in {outcome for _, outcome in endings(told, "redis")}, "the breaker is open"


def test_folds_are_told_with_what_they_save(manager: MemoryManager, backend: Backend, told: list[Detail]) -> None:
    manager.set_session_config("s", {"max_buffer_messages": 8})
    for _ in range(3):
        manager.add_messages("s", talk(6, words=40))
        manager.get_context("s")
        manager.wait_for_folds()
    folds = of_kind(told, FoldEnded)
    watermark = manager.get_context("s")["watermark"]
    assert watermark > 0
    assert sum(fold.messages for fold in folds) == watermark, "every fold is told once"
    assert [fold.is_merge for fold in folds] == [False] + [True] * (len(folds) - 1)
    assert all(fold.tokens_saved == max(0, fold.tokens_before - fold.tokens_after) for fold in folds)
    assert folds[0].tokens_saved > 0
    assert [one.method for one in of_kind(told, SummaryWritten)] == ["extractive"] * len(folds)
    assert ("summarize", "ok") in endings(told, "summarizer")


def test_what_a_reader_gets_is_told(manager: MemoryManager, told: list[Detail]) -> None:
    manager.add_messages("s", talk(3))
    manager.get_context("s")
    (read,) = of_kind(told, BufferRead)
    assert (read.messages, read.tokens) == (3, manager.get_context("s")["buffer_info"]["total_tokens"])


def test_the_model_is_a_layer(durable: Backend, told: list[Detail]) -> None:
    manager = durable.open(
        max_buffer_messages=4, facts_writer=ModelSummarizer(lambda messages, max_tokens: "NONE", name="none")
    )
    manager.add_messages("s", talk(8))
    manager.get_context("s")
    manager.wait_for_folds()
    assert ("write_facts", "nothing") in endings(told, "model")
    assert ("refine", "ok") in endings(told)


def test_fallbacks_and_the_backlog_are_told(outage: Outage, told: list[Detail]) -> None:
    manager = outage.open()
    manager.append("s", say(1))
    outage.kill_database()
    assert manager.append("s", say(2)).durable is False, "the fault has fired"
    assert manager.get_context("s")["degraded"]
    reasons = [one.reason for one in of_kind(told, Fallback)]
    assert reasons[0] == "postgres_unavailable"
    assert "unlogged" in reasons
    assert [one.count for one in of_kind(told, MessagesUnlogged)] == [1]
    outage.servers.start()
    assert waited_for(lambda: manager.append("s", say(3)).durable, 30)
    unlogged = sum(one.count for one in of_kind(told, MessagesUnlogged))
    assert waited_for(lambda: sum(one.count for one in of_kind(told, MessagesDrained)) == unlogged, 30)
    told.clear()
    outage.kill_redis()
    assert manager.append("s", say(4)).degraded
    assert waited_for(lambda: manager.get_context("s")["degraded"])
    for _ in range(3):
        manager.get_context("s")
    assert {"redis_unavailable", "breaker_open"} == {one.reason for one in of_kind(told, Fallback)}


def test_a_lost_buffer_is_a_fallback(blocking: Backend, raw: Any, told: list[Detail]) -> None:
    manager = blocking.open()
    manager.append("s", say(1))
    assert raw.delete(blocking.keys("s").buffer) == 1
    assert manager.get_context("s")["source"] == "postgres"
    assert [one.reason for one in of_kind(told, Fallback)] == ["buffer_missing"]


def test_a_hook_that_raises_breaks_nothing_and_is_said_once(
    manager: MemoryManager, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Detail] = []

    def careless(detail: Detail) -> None:
        calls.append(detail)
        raise RuntimeError("a careless hook")

    after: list[Detail] = []
    stops = [observers.add(careless), observers.add(after.append)]
    with caplog.at_level(logging.ERROR, "contract_engine.memory.hooks"):
        for number in range(1, 4):
            assert manager.add_message("s", say(number)) is True
    for stop in stops:
        stop()
    assert len(calls) >= 6
    assert after == calls, "those behind it are told all the same"
    assert [record.getMessage().split(" failed")[1] for record in caplog.records] == ["; this is said once"]


def test_spans_that_raise_break_nothing(manager: MemoryManager) -> None:
    class Careless:
        def __init__(self) -> None:
            self.ended = 0

        def begin(self, operation: str, backend: str) -> Any:
            if backend == "redis":
                raise RuntimeError("at the beginning")

            def end(outcome: str, error: BaseException | None) -> None:
                self.ended += 1
                raise RuntimeError("at the end")

            return end

    careless = Careless()
    stop = observers.add_spans(careless)
    assert manager.add_message("s", say(1)) is True
    stop()
    assert careless.ended >= 1


def test_where_nobody_listens_nothing_is_prepared(manager: MemoryManager, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not observers.is_active

    def refuse(*_: object) -> None:
        raise AssertionError("something was prepared for nobody")

    for name in ("tell", "begin", "end"):
        monkeypatch.setattr(observers, name, refuse)
    monkeypatch.setattr("contract_engine.memory._runtime.runner.observed_flow", refuse)
    assert manager.add_message("s", say(1)) is True
    assert manager.get_context("s")["last_seq"] == 1


def test_hooks_come_and_go_from_many_threads() -> None:
    def come_and_go() -> None:
        for _ in range(200):
            observers.add(lambda _: None)()

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert observers.hooks == ()
    assert not observers.is_active


def test_what_is_no_hook_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        observers.add(3)  # type: ignore[arg-type]  # on purpose
    assert caught.value.field == "hook"


def test_details_are_frozen(told: list[Detail], manager: MemoryManager) -> None:
    manager.add_messages("s", talk(12))
    manager.set_session_config("s", {"max_buffer_messages": 8})
    manager.get_context("s")
    manager.wait_for_folds()
    assert {type(one) for one in told} >= {OperationEnded, BufferRead, FoldEnded, SummaryWritten}
    parts: list[Any] = [*told, *(one.ending for one in of_kind(told, OperationEnded))]
    for part in parts:
        for name in part.__struct_fields__:
            with pytest.raises(AttributeError):
                setattr(part, name, None)


@pytest.mark.parametrize("kind", [Ending, *get_args(Detail)])
def test_every_kind_of_detail_is_frozen(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_fields__
    assert kind.__struct_config__.frozen


async def test_a_cancelled_call_is_told_as_one(redis_url: str, tenant: str, told: list[Detail]) -> None:
    await cancel_a_read(redis_url, tenant)
    assert ("get_context", "cancelled") in endings(told)


async def test_an_error_somebody_is_handling_is_not_ours(redis_url: str, tenant: str, told: list[Detail]) -> None:
    async with AsyncMemoryManager(redis_url=redis_url, tenant=tenant) as manager:
        try:
            int("of the caller")
        except ValueError:
            assert await manager.add_message("s", say(1)) is True
    assert {outcome for _, outcome in endings(told)} == {"ok"}
