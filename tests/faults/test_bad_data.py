"""Bytes under our own keys that are not ours: a miss that is healed, never an error for the caller."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import redis
from bad_bytes import DAMAGES, do_damage
from crash_operations import LIMITS, PATIENT
from memory_contract import Backend, assert_context, logged, say, talk

from contract_engine.memory import MemoryManager
from contract_engine.memory.keys import SessionKeys

pytest_plugins = ("memory_fixtures",)


def begun(backend: Backend) -> tuple[MemoryManager, list[dict[str, Any]]]:
    """Give session ``s`` a summary, several messages and a context object."""
    manager = backend.open(limits=LIMITS, **PATIENT)
    said = talk(12)
    for number, message in enumerate(said, 1):
        manager.append("s", message, message_id=f"id{number}")
        manager.wait_for_folds()
    assert manager.save_context("s", {"session_id": "s", "note": "kept"})
    context = manager.get_context("s")
    assert context["source"] == "redis"
    assert 0 < context["watermark"] < len(said) - 1
    return manager, said


CALLS: dict[str, Callable[[MemoryManager], object]] = {
    "get_context": lambda manager: manager.get_context("s"),
    "get_memory_stats": lambda manager: manager.get_memory_stats("s"),
    "get_session_config": lambda manager: manager.get_session_config("s"),
    "load_context": lambda manager: manager.load_context("s"),
    "get_messages": lambda manager: manager.buffer_store.get_messages("s"),
    "get_buffer_info": lambda manager: manager.buffer_store.get_buffer_info("s"),
    "get_current_summary": lambda manager: manager.summary_store.get_current_summary("s"),
    "get_summary_history": lambda manager: manager.summary_store.get_summary_history("s"),
    "get_summary_stats": lambda manager: manager.summary_store.get_summary_stats("s"),
    "fold": lambda manager: manager.wait_for_folds(),
}
"""What must not fail, whatever lies there."""


NEEDED = ("buffer", "summary")
"""The keys that a context is read from."""
WARNING = "under our keys; it is replaced"
SILENT: dict[str, tuple[str, ...]] = {"buffer": (), "summary": ("another version",)}
"""Damages that nobody can tell from a miss, so that none is counted: a newer summary than the buffer names is seen by
whoever reads the two while a fold replaces them.

All of the other keys are either read from the log where there is one, or leases that are compared and never read.
"""


def counted(manager: MemoryManager) -> int:
    """Return what the next new report of its health will say; a report is a moment old."""
    return manager._flows.damaged


def call_all(manager: MemoryManager, dice: random.Random) -> None:
    for name in dice.sample(sorted(CALLS), len(CALLS)):
        CALLS[name](manager)


@pytest.mark.parametrize("field", SessionKeys._fields)
def test_with_a_log_it_is_as_if_nothing_had_been_there(
    durable: Backend, raw: redis.Redis, dice: random.Random, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    caplog.set_level(logging.WARNING)
    manager, said = begun(durable)
    other = durable.open(limits=LIMITS, **PATIENT)
    key = durable.keys("s")._asdict()[field]
    for name in DAMAGES[field]:
        do_damage(raw, key, name, dice)
        one, another = dice.sample([manager, other], 2)
        choice = dice.choice(("all", "read", "append"))
        if choice == "all":
            call_all(one, dice)
        elif choice == "read":
            caplog.clear()
            before = counted(one)
            source = one.get_context("s")["source"]
            assert (source == "postgres") == (field in NEEDED), f"{name}: not taken for a miss"
            is_silent = field not in NEEDED or name in SILENT[field]
            assert counted(one) - before == (not is_silent), f"{name}: nobody counted"
            assert field != "buffer" or (WARNING in caplog.text) == (not is_silent), f"{name}: nobody was warned"
        else:
            said.append(say(len(said) + 1))
            receipt = one.append("s", said[-1], message_id=f"id{len(said)}")
            assert (receipt.seq, receipt.durable) == (len(said), True), name
        one.wait_for_folds()
        for reader in (another, one):
            assert_context(reader.get_context("s"), said)
            context = reader.get_context("s")
            assert_context(context, said)
            assert (context["source"], context["degraded"]) == ("redis", False), f"{name}: not healed"
            loaded = reader.load_context("s")
            assert loaded is not None
            assert loaded.to_dict()["note"] == "kept"
        call_all(another, dice)
    assert durable.database_url is not None
    assert logged(durable.database_url, durable.tenant, "s") == list(enumerate(said, 1))
    assert manager.clear_session_memory("s")
    assert raw.exists(*durable.keys("s")) == 0


@pytest.mark.parametrize("field", SessionKeys._fields)
def test_without_a_log_the_session_goes_on(
    ephemeral: Backend, raw: redis.Redis, dice: random.Random, field: str
) -> None:
    manager, said = begun(ephemeral)
    other = ephemeral.open(limits=LIMITS, **PATIENT)
    key = ephemeral.keys("s")._asdict()[field]
    for name in DAMAGES[field]:
        before = manager.get_context("s")
        do_damage(raw, key, name, dice)
        one, another = dice.sample([manager, other], 2)
        if dice.random() < 0.5:
            call_all(one, dice)
        seq = 0
        for _ in range(7):  # folds on the way
            said.append(say(len(said) + 1))
            receipt = one.append("s", said[-1], message_id=f"id{len(said)}")
            if field not in NEEDED:
                assert receipt.seq == seq + 1 or not seq, name
            seq = receipt.seq
            one.wait_for_folds()
        if field not in NEEDED:
            assert seq == before["last_seq"] + 7, name
        for reader in (one, another):
            context = reader.get_context("s")
            assert context["last_seq"] == seq
            count = len(context["buffer_messages"])
            assert count == seq - context["watermark"] >= 1
            assert context["buffer_messages"] == said[len(said) - count :], name
            assert context["complete"], name
        assert one.save_context("s", {"session_id": "s", "note": name})
        loaded = another.load_context("s")
        assert loaded is not None
        assert loaded.to_dict()["note"] == name
        assert one.summary_store.add_summary("s", f"After {name}.")
        history = another.summary_store.get_summary_history("s", 100)
        assert history[-1]["text"] == f"After {name}."
        if field not in (*NEEDED, "history"):
            assert all(late["version"] == early["version"] + 1 for early, late in pairwise(history)), name
        call_all(another, dice)
    assert manager.clear_session_memory("s")
    assert raw.exists(*ephemeral.keys("s")) == 0


@pytest.mark.parametrize("field", NEEDED)
def test_each_damage_is_counted_by_the_read_that_meets_it(
    backend: Backend, raw: redis.Redis, dice: random.Random, field: str
) -> None:
    manager, said = begun(backend)
    for name in DAMAGES[field]:
        do_damage(raw, backend.keys("s")._asdict()[field], name, dice)
        before = counted(manager)
        context = manager.get_context("s")
        assert counted(manager) - before == (name not in SILENT[field]), name
        if backend.is_durable:
            assert_context(context, said)
            assert context["source"] == "postgres"
        else:  # what is lost is lost: another session, with a summary and a buffer
            assert manager.clear_session_memory("s")
            begun(backend)


@pytest.mark.parametrize(("field", "call"), [("context", "load_context"), ("history", "get_summary_history")])
def test_each_damage_beside_the_buffer_is_counted_too(
    ephemeral: Backend,
    raw: redis.Redis,
    dice: random.Random,
    caplog: pytest.LogCaptureFixture,
    *,
    field: str,
    call: str,
) -> None:
    """A call that shows what can be read counts each of the others."""
    manager, _ = begun(ephemeral)
    key = ephemeral.keys("s")._asdict()[field]
    for name in DAMAGES[field]:
        raw.delete(key)
        assert manager.save_context("s", {"session_id": "s", "note": name})
        assert manager.summary_store.add_summary("s", f"Before {name}.")
        assert CALLS[call](manager), "there is something to damage"
        do_damage(raw, key, name, dice)
        before = counted(manager)
        caplog.clear()
        assert not CALLS[call](manager), name
        assert counted(manager) > before, f"{name}: nobody counted"
        assert "session s:" in caplog.text, f"{name}: nobody was warned"
    assert manager.health().damaged == counted(manager)


@pytest.mark.parametrize("kind", ["fold", "drain"])
def test_a_lease_that_is_none_keeps_nobody_away(
    backend: Backend, raw: redis.Redis, dice: random.Random, kind: str
) -> None:
    """Nor does it stay: those that are ours have an end, and are neither counted nor taken from who holds them."""
    manager: Any = backend.open()
    cache, key = manager._flows._sessions.cache, backend.keys("s")._asdict()[kind]
    take = cache.lease if kind == "fold" else cache.lease_drain
    assert backend.run(manager, take("s", 1))
    assert not backend.run(manager, take("s", 2))
    assert counted(manager) == 0
    for number, name in enumerate(sorted(DAMAGES[kind]), 1):
        raw.delete(key)
        do_damage(raw, key, name, dice)
        assert backend.run(manager, take("s", 3)), name
        assert counted(manager) == number, f"{name}: nobody counted"
        assert raw.get(key) == b"3"
        assert raw.pttl(key) > 0
        assert not backend.run(manager, take("s", 4))


def test_noise_everywhere_over_and_over(durable: Backend, raw: redis.Redis, dice: random.Random) -> None:
    """Several keys at once, whichever, between whatever is done."""
    manager, said = begun(durable)
    keys = durable.keys("s")
    for _ in range(40):
        for key in dice.sample(keys, dice.randint(1, len(keys))):
            damages = DAMAGES[key.rpartition(":")[2]]
            damages[dice.choice(sorted(damages))](raw, key, dice)
        if dice.random() < 0.6:
            said.append(say(len(said) + 1))
            assert manager.append("s", said[-1]).seq == len(said)
        else:
            CALLS[dice.choice(sorted(CALLS))](manager)
        if dice.random() < 0.5:
            manager.wait_for_folds()
        assert_context(manager.get_context("s"), said)
    assert manager.health().damaged > 0, "nobody met any of it"
    raw.delete(*keys)
    assert_context(manager.get_context("s"), said)
