"""Damage in Redis: with a log it is as if nothing had been there, without one the session goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import redis
from memory_contract import Backend, assert_caps, assert_context, say, talk

from contract_engine.memory import MemoryManager
from contract_engine.memory._scripts import ALL_SCRIPTS
from contract_engine.memory.keys import SessionKeys

pytest_plugins = ("memory_fixtures",)

Damage = Callable[[Any, SessionKeys], object]

NOISE = random.Random(7)


def with_header(client: Any, key: str, change: Callable[[list[Any]], object]) -> bool:
    """Replace the header by what ``change`` makes of it; bytes are put in place as they are."""
    header = json.loads(client.lindex(key, 0))
    changed = change(header)
    return bool(
        client.lset(key, 0, changed if isinstance(changed, bytes) else json.dumps(changed, separators=(",", ":")))
    )


def replaced_by(kind: str, name: str) -> Damage:
    def damage(client: Any, keys: SessionKeys) -> None:
        key = keys._asdict()[name]
        client.delete(key)
        {
            "string": lambda: client.set(key, b"text"),
            "empty string": lambda: client.set(key, b""),
            "list": lambda: client.rpush(key, b"text"),
            "hash": lambda: client.hset(key, "field", "value"),
            "set": lambda: client.sadd(key, "member"),
            "zset": lambda: client.zadd(key, {"member": 1}),
            "stream": lambda: client.xadd(key, {"field": "value"}),
        }[kind]()

    return damage


def element(index: int, data: bytes) -> Damage:
    return lambda client, keys: client.lset(keys.buffer, index, data)


def header(change: Callable[[list[Any]], object]) -> Damage:
    return lambda client, keys: with_header(client, keys.buffer, change)


def field(place: int, value: object) -> Damage:
    def change(found: list[Any]) -> list[Any]:
        return [*found[:place], value, *found[place + 1 :]]

    return header(change)


def summary(data: bytes) -> Damage:
    return lambda client, keys: client.set(keys.summary, data, keepttl=True)


def renumbered(client: Any, keys: SessionKeys) -> None:
    for index in range(1, client.llen(keys.buffer)):
        row = json.loads(client.lindex(keys.buffer, index))
        client.lset(keys.buffer, index, json.dumps([row[0] + 1, *row[1:]]))


KILLED = "connections killed"
JSON_OF_OTHER_TYPES = [b"null", b"7", b'"text"', b"[]", b'{"a":1}', b'["a","b"]', b"NaN"]

DAMAGES: dict[str, Damage] = {
    "no buffer": lambda client, keys: client.delete(keys.buffer),
    "no summary": lambda client, keys: client.delete(keys.summary),
    "neither": lambda client, keys: client.delete(keys.buffer, keys.summary),
    "no key at all": lambda client, keys: client.delete(*keys),
    "scripts flushed": lambda client, keys: client.script_flush(),
    "scripts and keys gone": lambda client, keys: (client.script_flush(), client.delete(*keys)),
    KILLED: lambda client, keys: client.client_kill_filter(_type="normal", skipme=True),
    "header of noise": element(0, NOISE.randbytes(40)),
    "header of nothing": element(0, b""),
    "header cut": header(lambda found: json.dumps(found).encode()[:11]),
    "header without its end": header(lambda found: found[:-1]),
    "header with a number too many": header(lambda found: [*found, 1]),
    "header of another version": field(0, 3),
    "header of version 0": field(0, 0),
    "header with spaces": header(lambda found: json.dumps(found).encode()),
    "header of floats": header(lambda found: [float(number) for number in found]),
    "header of texts": header(lambda found: [str(number) for number in found]),
    "header twice": lambda client, keys: client.lpush(keys.buffer, client.lindex(keys.buffer, 0) or b""),
    "no header": lambda client, keys: client.lpop(keys.buffer),
    "only a header": lambda client, keys: client.ltrim(keys.buffer, 0, 0),
    "noise in the middle": element(2, NOISE.randbytes(60)),
    "noise at the end": element(-1, NOISE.randbytes(60)),
    "nothing in the middle": element(2, b""),
    "one element into another": element(2, b"1],[2"),
    "a foreign element at the end": lambda client, keys: client.rpush(keys.buffer, b"foreign"),
    "a foreign list at the end": lambda client, keys: client.rpush(keys.buffer, b'[1,2,3,"id",{}]'),
    "the last element twice": lambda client, keys: client.rpush(keys.buffer, client.lindex(keys.buffer, -1)),
    "the first element moved": lambda client, keys: client.rpush(keys.buffer, client.lindex(keys.buffer, 1)),
    "the last element gone": lambda client, keys: client.rpop(keys.buffer),
    "an element in the middle gone": lambda client, keys: client.lrem(keys.buffer, 1, client.lindex(keys.buffer, 2)),
    "half of the elements gone": lambda client, keys: client.ltrim(keys.buffer, 0, 1),
    "other numbers": renumbered,
    "summary of noise": summary(NOISE.randbytes(50)),
    "summary of nothing": summary(b""),
    "summary of a version long gone": summary(b'[0,1,1,1,"old"]'),
    "summary of another version": summary(b'[999,1,1,1,"other"]'),
    "summary of another range": lambda client, keys: client.set(
        keys.summary, json.dumps([json.loads(client.get(keys.summary))[0], 1, 1, 1, "x"]), keepttl=True
    ),
    "a placeholder left behind": lambda client, keys: (
        with_header(client, keys.buffer, lambda found: [0, found[1], 12345, 0, 0]),
        client.ltrim(keys.buffer, 0, 0),
        client.expire(keys.buffer, 30),
    ),
    "a placeholder of a writer left behind": lambda client, keys: (
        with_header(client, keys.buffer, lambda found: [0, found[1], 12345, found[2], 3]),
        client.ltrim(keys.buffer, 0, 0),
    ),
    "a placeholder of another format": element(0, b"[0,12345,0,0]"),
    "a placeholder before elements": lambda client, keys: with_header(
        client, keys.buffer, lambda found: [0, found[1], 12345, 0, 0]
    ),
    "an overtaken placeholder left behind": lambda client, keys: with_header(
        client, keys.buffer, lambda found: [0, found[1], 12345, found[2], found[9], found[3]]
    ),
    "a fold that died": lambda client, keys: client.set(keys.fold, b"99", px=30_000),
    "a fold that died without a deadline": lambda client, keys: client.set(keys.fold, b"99"),
    **{f"header {data!r}": element(0, data) for data in JSON_OF_OTHER_TYPES},
    **{f"middle {data!r}": element(2, data) for data in JSON_OF_OTHER_TYPES},
    **{f"summary {data!r}": summary(data) for data in JSON_OF_OTHER_TYPES},
    **{
        f"{name} is a {kind}": replaced_by(kind, name)
        for name in ("buffer", "summary", "fold", "history", "context")
        for kind in ("string", "list", "hash", "stream")
    },
    **{f"header field {place} is {value!r}": field(place, value) for place in range(1, 11) for value in (-1, "x")},
}


def number(place: int, value: int) -> Damage:
    """Put a number in a header; the next one where it stood there already."""

    def change(found: list[Any]) -> list[Any]:
        return [*found[:place], value + (found[place] == value), *found[place + 1 :]]

    return header(change)


PLAUSIBLE: dict[str, Damage] = {
    f"header field {place} is {value}": number(place, value) for place in range(1, 11) for value in (0, 1, 10**15)
}
"""Numbers that could stand there: not all can be told from true ones, but none may be believed against the messages."""


def begun(backend: Backend) -> tuple[MemoryManager, list[dict[str, Any]]]:
    """Give session ``s`` a summary and several messages, all of it in Redis."""
    manager = backend.open(max_buffer_messages=8)
    said = talk(13)
    for message in said:
        manager.add_message("s", message)
        manager.wait_for_folds()
    manager.save_context("s", {"session_id": "s"})
    context = manager.get_context("s")
    assert context["source"] == "redis"
    assert context["watermark"] > 0
    assert len(context["buffer_messages"]) >= 3
    return manager, said


def snapshot(client: Any, keys: SessionKeys) -> list[Any]:
    return [client.dump(key) for key in keys]


def known_scripts(client: Any) -> int:
    """Return how many of our scripts the server knows."""
    return sum(client.script_exists(*(script.sha for script in ALL_SCRIPTS)))


def did_damage(damage: Damage, name: str, client: Any, keys: SessionKeys) -> None:
    """Do it, and make sure that it was done."""
    if name.startswith("scripts"):
        assert known_scripts(client) > 0, "nothing to flush"
        damage(client, keys)
        assert known_scripts(client) == 0, "no script was flushed"
    elif name == KILLED:
        killed: Any = damage(client, keys)
        assert killed >= 1, "no connection was killed"
    else:
        before = snapshot(client, keys)
        damage(client, keys)
        assert snapshot(client, keys) != before, "no damage was done"


@pytest.mark.parametrize("name", DAMAGES)
def test_a_reader_finds_everything(durable: Backend, raw: redis.Redis, name: str) -> None:
    manager, said = begun(durable)
    before = manager.get_context("s")
    did_damage(DAMAGES[name], name, raw, durable.keys("s"))
    for _ in range(2):
        after = manager.get_context("s")
        assert_context(after, said)
        assert after["degraded"] is False
        for key in ("buffer_messages", "current_summary", "watermark", "summary_version", "total_tokens"):
            assert after[key] == before[key]
    assert after["source"] == "redis", "healed by the first read"
    assert_context(durable.open(max_buffer_messages=8).get_context("s"), said)
    assert manager.append("s", say(14)).degraded is False
    assert_context(manager.get_context("s"), [*said, say(14)])


@pytest.mark.parametrize("name", DAMAGES)
def test_a_writer_goes_on(durable: Backend, raw: redis.Redis, name: str) -> None:
    manager, said = begun(durable)
    did_damage(DAMAGES[name], name, raw, durable.keys("s"))
    for number in range(14, 26):
        said.append(say(number))
        if number % 2:
            assert manager.append("s", say(number)).seq == number
        else:
            assert_context(manager.add_and_get_context("s", say(number)), said)
    manager.wait_for_folds()
    assert_context(manager.get_context("s"), said)
    healed = manager.get_context("s")
    assert_context(healed, said)
    assert healed["source"] == "redis"


@pytest.mark.parametrize("name", PLAUSIBLE)
def test_wrong_numbers_in_the_header_are_not_believed(durable: Backend, raw: redis.Redis, name: str) -> None:
    manager, said = begun(durable)
    keys = durable.keys("s")
    did_damage(PLAUSIBLE[name], name, raw, keys)
    context = manager.get_context("s")
    assert context["buffer_messages"] == said[context["watermark"] :]
    assert context["last_seq"] == len(said)
    did_damage(PLAUSIBLE[name], name, raw, keys)
    for number in range(14, 24):
        said.append(say(number))
        assert manager.append("s", say(number)).seq == number
        context = manager.get_context("s")
        assert context["buffer_messages"] == said[context["watermark"] :]
        assert context["last_seq"] == number
    manager.wait_for_folds()
    raw.delete(*keys)
    assert_context(manager.get_context("s"), said)


def test_a_copy_of_an_earlier_moment_is_replaced_by_the_next_append(durable: Backend, raw: redis.Redis) -> None:
    """A failover to a replica that lagged."""
    manager, said = begun(durable)
    keys = durable.keys("s")
    old = {key: raw.dump(key) for key in (keys.buffer, keys.summary)}
    for number in range(14, 17):
        said.append(say(number))
        manager.add_message("s", say(number))
    manager.wait_for_folds()  # one under way would change what is put back
    for key, data in old.items():
        raw.restore(key, 100_000, data, replace=True)  # type: ignore[arg-type]  # bytes, as DUMP gave them
    assert raw.dump(keys.buffer) == old[keys.buffer]
    stale = manager.get_context("s")
    assert stale["buffer_messages"] == said[stale["watermark"] : stale["last_seq"]], "old, but whole"
    said.append(say(17))
    assert_context(manager.add_and_get_context("s", say(17)), said)
    assert_context(manager.get_context("s"), said)


def test_a_copy_from_before_a_fold_is_replaced_by_the_next_append(durable: Backend, raw: redis.Redis) -> None:
    manager = durable.open(max_buffer_messages=8)
    keys = durable.keys("s")
    manager.add_messages("s", talk(7))
    old = raw.dump(keys.buffer)
    manager.set_session_config("s", {"max_buffer_messages": 4})
    assert manager.get_context("s")["watermark"] > 0
    raw.restore(keys.buffer, 100_000, old, replace=True)  # type: ignore[arg-type]  # bytes, as DUMP gave them
    context = manager.add_and_get_context("s", say(8))
    assert_context(context, talk(8))
    assert context["buffer_info"]["max_messages"] == 4
    assert_context(manager.get_context("s"), talk(8))


def test_a_copy_from_before_a_clearing_is_replaced_by_the_next_append(durable: Backend, raw: redis.Redis) -> None:
    manager, _ = begun(durable)
    keys = durable.keys("s")
    old = {key: raw.dump(key) for key in (keys.buffer, keys.summary)}
    assert manager.clear_session_memory("s")
    for key, data in old.items():
        raw.restore(key, 100_000, data, replace=True)  # type: ignore[arg-type]  # bytes, as DUMP gave them
    assert_context(manager.add_and_get_context("s", say(1)), [say(1)])
    assert_context(manager.get_context("s"), [say(1)])
    assert_context(durable.open().get_context("s"), [say(1)])


def test_messages_logged_while_redis_knew_nothing_of_them(durable: Backend, raw: redis.Redis) -> None:
    manager = durable.open()
    log = durable.open_log()
    for number in range(1, 30, 3):
        log.append("s", say(number))
        manager.append("s", say(number + 1))
        raw.delete(durable.keys("s").buffer)
        log.append("s", say(number + 2))
        assert_context(manager.get_context("s"), talk(number + 2))


def test_random_damage_over_and_over(durable: Backend, raw: redis.Redis, dice: random.Random) -> None:
    manager, said = begun(durable)
    keys = durable.keys("s")
    names = [name for name in DAMAGES if name != KILLED]
    done = 0
    for _ in range(60):
        manager.wait_for_folds()  # one under way changes keys too, and would be taken for damage
        before = known_scripts(raw), snapshot(raw, keys)
        # There may be nothing left of the kind that it damages.
        with suppress(redis.ResponseError, redis.DataError, ValueError, TypeError, IndexError):
            DAMAGES[dice.choice(names)](raw, keys)
        done += (known_scripts(raw), snapshot(raw, keys)) != before
        if dice.random() < 0.7:
            said.append(say(len(said) + 1))
            assert manager.append("s", said[-1]).seq == len(said)
        if dice.random() < 0.7:
            assert_context(manager.get_context("s"), said)
    assert done >= 30
    assert manager.health().damaged > 0, "nobody met any of it"
    raw.delete(*keys)
    assert_context(manager.get_context("s"), said)


# -- without a log


EVERY: dict[str, Damage] = DAMAGES | PLAUSIBLE


@pytest.mark.parametrize("name", EVERY)
def test_a_session_without_a_log_goes_on(ephemeral: Backend, raw: redis.Redis, name: str) -> None:
    manager, _ = begun(ephemeral)
    did_damage(EVERY[name], name, raw, ephemeral.keys("s"))
    manager.get_context("s")
    manager.get_session_config("s")
    manager.load_context("s")
    assert isinstance(manager.summary_store.get_summary_stats("s")["summary_count"], int)
    assert isinstance(manager.summary_store.get_summary_history("s"), list)
    manager.get_memory_stats("s")
    for number in range(100, 120):
        assert manager.add_message("s", say(number)) is True
    manager.wait_for_folds()
    context = manager.get_context("s")
    assert context["buffer_messages"], "the newest messages are there"
    assert context["buffer_messages"] == talk(
        len(context["buffer_messages"]), start=120 - len(context["buffer_messages"])
    )
    assert context["last_seq"] == context["watermark"] + len(context["buffer_messages"])
    if name in DAMAGES:
        assert_caps(context)
    assert manager.summary_store.add_summary("s", "It goes on.") is True
    assert "It goes on." in (manager.summary_store.get_current_summary("s") or "")
    assert manager.save_context("s", {"session_id": "s"}) is True
    assert manager.load_context("s") is not None


GARBAGE = [b"", b"\xff\x00", b"null", b"7", b'"x"', b"[]", b"{}", b'{"current_state":"nowhere","session_id":"s"}']


@pytest.mark.parametrize("data", GARBAGE, ids=repr)
def test_garbage_for_a_context_object_is_none(ephemeral: Backend, raw: redis.Redis, data: bytes) -> None:
    manager = ephemeral.open()
    raw.set(ephemeral.keys("s").context, data)
    assert manager.load_context("s") is None
    assert manager.save_context("s", {"session_id": "s"})
    assert manager.load_context("s") is not None


@pytest.mark.parametrize("data", GARBAGE, ids=repr)
def test_garbage_in_the_history_is_left_out(ephemeral: Backend, raw: redis.Redis, data: bytes) -> None:
    manager = ephemeral.open()
    manager.summary_store.add_summary("s", "One.")
    raw.rpush(ephemeral.keys("s").history, data)
    manager.summary_store.add_summary("s", "Two.")
    assert [entry["text"] for entry in manager.summary_store.get_summary_history("s")] == ["One.", "Two."]


def test_an_evicted_summary_is_said_to_be_lost(ephemeral: Backend, raw: redis.Redis) -> None:
    manager, said = begun(ephemeral)
    assert raw.delete(ephemeral.keys("s").summary) == 1
    context = manager.get_context("s")
    assert context["complete"] is False
    assert context["current_summary"] is None
    assert context["buffer_messages"] == said[context["watermark"] :]


def test_a_batch_after_a_killed_connection_is_stored_once(ephemeral: Backend, raw: redis.Redis) -> None:
    manager = ephemeral.open()
    manager.add_message("s", say(1))
    assert raw.client_kill_filter(_type="normal", skipme=True) >= 1
    receipts = manager.add_messages("s", talk(3, start=2))
    assert [receipt.seq for receipt in receipts] == [2, 3, 4]
    assert_context(manager.get_context("s"), talk(4))
