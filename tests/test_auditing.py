"""Audited: who did what, and never what it said."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Any

import pytest

from contract_engine.memory.errors import ConfigurationError, StoreUnavailableError
from contract_engine.working_memory import (
    AsyncInMemoryManager,
    ConversationMemoryType,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
)
from contract_engine.working_memory.auditing import AsyncAudited, Audited, AuditEvent, acting_as
from contract_engine.working_memory.redis_memory_manager import RedisWorkingMemoryManager
from contract_engine.working_memory.retrying import Retrying

WORKING = ConversationMemoryType.WORKING_MEMORY
SECRET = "the canary sings"


def of(*texts: str, conversation_id: str = "c", **fields: Any) -> IMemoryInput:
    return IMemoryInput(conversation_id, WORKING, [IWorkingMemory(text) for text in texts] or None, **fields)


def said(event: AuditEvent) -> tuple[str, str, int | None]:
    return event.operation, event.outcome, event.items


def test_each_operation_is_told_with_its_outcome_and_count() -> None:
    events: list[AuditEvent] = []
    manager = Audited(InMemoryManager(), sink=events.append, actor="service", clock=lambda: 17.0)
    manager.retrieve(of())
    manager.store(of(SECRET, SECRET))
    manager.retrieve(of(query="canary"))
    manager.update(of(SECRET, memory_id="1"))
    manager.delete(of(memory_id="2"))
    manager.delete(of(memory_id="1"))
    manager.update(of(SECRET))
    manager.delete(of())
    manager.store_many([of(SECRET, conversation_id="a"), of(SECRET, conversation_id="b")])
    manager.cleanup("memory:*:a")
    assert [said(event) for event in events] == [
        ("read", "absent", None),
        ("write", "done", 2),
        ("read", "done", 2),
        ("change", "done", 2),
        ("change", "done", 1),
        ("change", "absent", None),
        ("change", "absent", None),
        ("remove", "done", 0),
        ("write", "done", 1),
        ("write", "done", 1),
        ("remove", "done", 0),
    ]
    assert events[0] == AuditEvent(17.0, "service", "read", "WORKING_MEMORY", "c", "absent", None)
    assert [event.conversation_id for event in events[-3:]] == ["a", "b", "a"]
    assert "canary" not in repr(events)
    with pytest.raises(dataclasses.FrozenInstanceError):
        events[0].actor = "somebody else"  # type: ignore[misc]
    assert not hasattr(events[0], "__dict__")


async def test_who_acts_is_said_for_a_thread_or_task() -> None:
    events: list[AuditEvent] = []
    manager = AsyncAudited(AsyncInMemoryManager(), sink=events.append)

    async def work(actor: str) -> None:
        with acting_as(actor):
            for _ in range(10):
                await manager.store(of("text", conversation_id=actor))
                await asyncio.sleep(0)

    await asyncio.gather(*(work(f"actor-{number}") for number in range(20)))
    await manager.retrieve(of())
    assert len(events) == 201
    assert all(event.actor == event.conversation_id for event in events[:-1])
    assert events[-1].actor is None


def test_an_outage_is_told_by_its_name_and_each_attempt_within_a_retry() -> None:
    inner_events: list[AuditEvent] = []
    outer_events: list[AuditEvent] = []
    with RedisWorkingMemoryManager("redis://127.0.0.1:1") as redis_manager:
        retrying = Retrying(Audited(redis_manager, sink=inner_events.append), base_seconds=0, attempts=3)
        manager = Audited(retrying, sink=outer_events.append)
        with pytest.raises(StoreUnavailableError):
            manager.store(of(SECRET))
    assert [said(event) for event in outer_events] == [("write", "RedisAwayError", None)]
    assert len(inner_events) >= 3
    assert {event.outcome for event in inner_events} == {"RedisAwayError"}


async def test_a_cancelled_call_is_told_as_unfinished() -> None:
    events: list[AuditEvent] = []

    class Slow(AsyncInMemoryManager):
        @property
        def store_of_records(self) -> Any:
            return self

        async def put(self, _: Any) -> None:
            await asyncio.sleep(3600)

    manager = AsyncAudited(Slow(), sink=events.append)
    task = asyncio.create_task(manager.store(of("text")))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [said(event) for event in events] == [("write", "unfinished", None)]


def test_a_sink_that_fails_harms_nobody_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def sink(event: AuditEvent) -> None:
        calls.append(event)
        raise RuntimeError("the disk is full")

    manager = Audited(InMemoryManager(), sink=sink)
    for _ in range(5):
        manager.store(of("text"))
    assert [memory.working_memory for memory in manager.retrieve(of())] == ["text"]
    assert len(calls) == 6
    failures = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(failures) == 1
    assert failures[0].exc_info


def test_events_go_to_the_log_where_no_sink_is_given(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "contract_engine.working_memory.auditing")
    with acting_as("alice"):
        Audited(InMemoryManager()).store(of(SECRET, metadata={"canary": "canary"}))
    (record,) = caplog.records
    assert "write WORKING_MEMORY:c by alice: done, 1 memories" in record.getMessage()
    assert "canary" not in caplog.text


def test_a_sink_must_be_callable() -> None:
    with pytest.raises(ConfigurationError, match="sink"):
        Audited(InMemoryManager(), sink="a file")  # type: ignore[arg-type]
