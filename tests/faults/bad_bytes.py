"""Bytes under our own keys that are not ours: what damage there is, and how it is done."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from contract_engine.memory.keys import SessionKeys

Damage = Callable[[Any, str, random.Random], None]
"""Does something to one key, whether or not it is there."""


def _put(make: Callable[[random.Random], Any], *kinds: str) -> Iterator[tuple[str, Damage]]:
    """Yield damages that put bytes in the place of a key, as each of these types."""
    for kind in kinds:

        def damage(client: Any, key: str, dice: random.Random, kind: str = kind) -> None:
            client.delete(key)
            data = make(dice)
            {
                "string": lambda: client.set(key, data),
                "list": lambda: client.rpush(key, data),
                "long list": lambda: client.rpush(key, *[data] * 5),
                "hash": lambda: client.hset(key, data or b"field", data),
                "set": lambda: client.sadd(key, data),
                "zset": lambda: client.zadd(key, {data: 1}),
                "stream": lambda: client.xadd(key, {b"field": data}),
            }[kind]()

        yield kind, damage


def _shorter(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))] if data else b"["


def _cut(client: Any, key: str, dice: random.Random) -> None:
    """Cut what is there: each text loses its end, and a list one of its elements too."""
    kind = client.type(key)
    if kind == b"list":
        for place, data in enumerate(client.lrange(key, 0, -1)):
            client.lset(key, place, _shorter(data, dice))
        if client.llen(key) > 1:
            client.rpop(key)
    elif kind == b"string":
        data = client.get(key)
        client.set(key, _shorter(data, dice))
    else:
        client.delete(key)
        client.rpush(key, b"[1,2")


def _cut_one(client: Any, key: str, dice: random.Random) -> None:
    """Cut one element of a list, whichever."""
    if client.type(key) != b"list":
        return _cut(client, key, dice)
    place = dice.randrange(client.llen(key))
    data = client.lindex(key, place)
    client.lset(key, place, _shorter(data, dice))
    return None


def _older_summary(client: Any, key: str, _dice: random.Random) -> None:
    """Write a summary of the version before."""
    data = client.get(key) if client.type(key) == b"string" else b""
    version, _, rest = data.removeprefix(b"[").partition(b",")
    client.set(key, b"[%d,%b" % (int(version) - 1, rest))


def _other_version(client: Any, key: str, dice: random.Random) -> None:
    """Write what another version of this package might have: a format number nobody knows.

    The first number of a summary is its version, which may have come to be the number that is written here.
    """
    kind = client.type(key)
    data = {b"list": lambda: client.lindex(key, 0), b"string": lambda: client.get(key)}.get(kind, lambda: None)()
    try:
        header = json.loads(data or b"")
    except ValueError:
        header = None
    if not isinstance(header, list) or not header:
        client.delete(key)
        client.rpush(key, b"[7,1,2,3,4,5,6,7,8,9,10]", b'[1,20,1,"id"]')
        return
    other = json.dumps([8 if header[0] == 7 else 7, *header[1:]], separators=(",", ":"))
    if kind == b"list":
        client.lset(key, 0, other)
    else:
        client.set(key, other)


def _the_same(value: bytes, _dice: random.Random) -> bytes:
    return value


TYPES = ("string", "list", "hash", "set", "zset", "stream")
VALUES = (b"null", b"true", b"7", b"-1", b"1e400", b'"text"', b"[]", b"{}", b'{"a":[1]}', b"[[[]]]", b"[0,0]", b"")
LISTS = ("buffer", "history", "unlogged")
"""The keys that hold a list; the others hold a text."""


def _damages_of(field: str) -> dict[str, Damage]:
    own, other = ("list", "string") if field in LISTS else ("string", "list")
    given = [(b"7", other), *((value, own) for value in VALUES)]
    values = {
        f"{value!r} as a {name}": damage
        for value, kind in given
        for name, damage in _put(partial(_the_same, value), kind)
    }
    noise = _put(lambda dice: dice.randbytes(50), *TYPES, "long list")
    return {
        **{f"noise as a {name}": damage for name, damage in noise},
        **values,
        "cut": _cut,
        "cut in one place": _cut_one,
        "another version": _other_version,
    }


DAMAGES = {field: _damages_of(field) for field in SessionKeys._fields}
DAMAGES["summary"]["the version before"] = _older_summary
"""By key and name."""


def do_damage(client: Any, key: str, name: str, dice: random.Random) -> None:
    """Damage a key of ours, with the proof that it was done."""
    before = client.dump(key)
    DAMAGES[key.rpartition(":")[2]][name](client, key, dice)
    assert client.dump(key) != before, "no damage was done"
