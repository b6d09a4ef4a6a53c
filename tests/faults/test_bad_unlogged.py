"""Bytes that are not ours among what waits to be logged: Redis alone has these messages.

What can be read of them, in the list or at the end of the buffer, is logged once and in order. What cannot is lost, and
a warning names the session.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import redis
from bad_bytes import DAMAGES, do_damage
from crash_matrix import DATABASE, Interposition
from crash_operations import LIMITS, PATIENT
from memory_contract import Backend, assert_context, logged, say, talk

from contract_engine.memory import MemoryManager

pytest_plugins = ("memory_fixtures",)

Messages = list[dict[str, Any]]

WARNING = "session s:"
SILENT = ("another version", "cut in one place")
"""Damages of the list that may be of its head alone, which is compared and never shown: the messages can be read."""


def begun(blocking: Backend, *, before: int = 12, waiting: int = 3) -> tuple[MemoryManager, Messages, Messages]:
    """Give session ``s`` messages that are logged, and some that wait."""
    manager = blocking.open(limits=LIMITS, **PATIENT)
    said = talk(before)
    for message in said:
        manager.append("s", message)
        manager.wait_for_folds()
    interposition = Interposition(manager, away=DATABASE)
    more = talk(waiting, start=before + 1)
    for message in more:
        assert not manager.append("s", message).durable
    interposition.remove()
    return manager, said, more


def rows_of(blocking: Backend) -> Messages:
    assert blocking.database_url is not None
    rows = logged(blocking.database_url, blocking.tenant, "s")
    assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
    return [message for _, message in rows]


@pytest.mark.parametrize("noise", [b"", b"\xff\x00noise", b"null", b"[]", b'[1,2,3,"id",4]', b"{}", b"[9"])
@pytest.mark.parametrize("place", range(-1, 4))
def test_one_element_and_no_buffer(
    blocking: Backend, raw: redis.Redis, caplog: pytest.LogCaptureFixture, noise: bytes, place: int
) -> None:
    manager, said, waiting = begun(blocking)
    key = blocking.keys("s").unlogged
    raw.delete(blocking.keys("s").buffer)
    elements: Any = raw.lrange(key, 0, -1)
    assert len(elements) == 1 + len(waiting)
    raw.lset(key, place, noise)  # type: ignore[arg-type]  # bytes are as good as text
    if place != 0:  # there is what the list begins with, and no message
        del waiting[place - 1 if place > 0 else place]
    other = blocking.open(limits=LIMITS, **PATIENT)
    assert other.append("s", say(99)).durable
    assert rows_of(blocking) == [*said, *waiting, say(99)]
    assert (WARNING in caplog.text) == (place != 0), "a message was lost, and nobody was told"
    assert raw.exists(key) == 0
    for reader in (manager, other):
        assert_context(reader.get_context("s"), rows_of(blocking))


@pytest.mark.parametrize("name", DAMAGES["unlogged"])
def test_the_list_and_not_the_buffer(
    blocking: Backend, raw: redis.Redis, dice: random.Random, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Nothing is lost: the buffer holds what waits, too."""
    manager, said, waiting = begun(blocking)
    do_damage(raw, blocking.keys("s").unlogged, name, dice)
    other = _assert_logged(blocking, raw, manager, [*said, *waiting], dice)
    if name not in SILENT:
        assert manager._flows.damaged + other._flows.damaged > 0, "nobody counted"
        assert WARNING in caplog.text, "nobody was warned"


@pytest.mark.parametrize("name", DAMAGES["buffer"])
def test_the_buffer_and_not_the_list(blocking: Backend, raw: redis.Redis, dice: random.Random, name: str) -> None:
    manager, said, waiting = begun(blocking)
    do_damage(raw, blocking.keys("s").buffer, name, dice)
    _assert_logged(blocking, raw, manager, [*said, *waiting], dice)


@pytest.mark.parametrize("name", DAMAGES["drain"])
def test_the_lease_of_the_drain(blocking: Backend, raw: redis.Redis, dice: random.Random, name: str) -> None:
    """It keeps others away for a while; whoever needs the session does not ask for it."""
    manager, said, waiting = begun(blocking)
    do_damage(raw, blocking.keys("s").drain, name, dice)
    _assert_logged(blocking, raw, manager, [*said, *waiting], dice)
    assert manager.clear_session_memory("s")
    assert raw.exists(*blocking.keys("s")) == 0


def _assert_logged(
    blocking: Backend, raw: redis.Redis, manager: MemoryManager, truth: Messages, dice: random.Random
) -> MemoryManager:
    """Have whoever is chosen touch the session first, in whichever way."""
    other = blocking.open(limits=LIMITS, **PATIENT)
    one = dice.choice([manager, other])
    way = dice.choice(["append", "drain", "read"])
    print(way)
    if way == "append":
        assert one.append("s", say(99)).durable
        truth = [*truth, say(99)]
    elif way == "drain":
        one.drain("s")
    else:
        assert_context(one.get_context("s"), truth)
        one.wait_for_folds()
        one.drain("s")  # where a lease kept it from being done in the background
    assert rows_of(blocking) == truth
    assert raw.exists(blocking.keys("s").unlogged) == 0
    for reader in (manager, other):
        for _ in range(2):
            context = reader.get_context("s")
            assert_context(context, truth)
        assert (context["source"], context["degraded"]) == ("redis", False)
    return other


@pytest.mark.parametrize("name", DAMAGES["unlogged"])
def test_both(
    blocking: Backend, raw: redis.Redis, dice: random.Random, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """What Redis alone had is lost with the bytes, with a warning. What is logged is not, and nothing is made up."""
    caplog.set_level(logging.WARNING)
    manager, said, waiting = begun(blocking)
    keys = blocking.keys("s")
    do_damage(raw, keys.unlogged, name, dice)
    do_damage(raw, keys.buffer, name, dice)
    other = blocking.open(limits=LIMITS, **PATIENT)
    other.get_context("s")
    other.drain("s")
    rows = rows_of(blocking)
    assert rows[: len(said)] == said
    left = iter(waiting)
    assert all(message in left for message in rows[len(said) :]), "another order, or twice"
    assert WARNING in caplog.text
    assert raw.exists(keys.unlogged) == 0
    assert other.append("s", say(99)).seq == len(rows) + 1
    for reader in (manager, other):
        assert_context(reader.get_context("s"), [*rows, say(99)])
