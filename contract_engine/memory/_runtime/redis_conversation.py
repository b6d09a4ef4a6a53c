"""What is said on one connection to Redis: first who is at the other end, then commands and scripts.

redis-py's connections are used directly: its command machinery costs about a third of a round trip. All commands of a
conversation travel together, in one system call; a script that the server does not know is said again by its source.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import hiredis
from redis import exceptions as redis_exc

from contract_engine.memory._effects import Command


class Opened(NamedTuple):
    """A connection, and the run of the server at its other end: that cannot change while the connection lasts."""

    connection: Any
    run: int


def introduce(connection: Any, *, must_be_primary: bool) -> Opened:
    """Ask a new connection who answers; refuses a replica where a primary is needed."""
    return Opened(connection, _introduced(_send(connection, _INTRODUCTION), must_be_primary=must_be_primary))


async def introduce_async(connection: Any, *, must_be_primary: bool) -> Opened:
    """:func:`introduce` on an event loop."""
    replies = await _send_async(connection, _INTRODUCTION)
    return Opened(connection, _introduced(replies, must_be_primary=must_be_primary))


def talk(opened: Opened, commands: tuple[Command, ...], *, is_asking: bool = False) -> list[Any]:
    """Send commands and return their replies, errors of the server among them; others are raised."""
    connection, run = opened
    send = _send_asking if is_asking else _send
    replies = send(connection, [_words(command, run) for command in commands])
    unknown = _first_unknown_script(replies)
    if unknown is not None:
        words = [_words(command, run, by_source=True) for command in commands[unknown:]]
        replies[unknown:] = send(connection, words)
    return replies


async def talk_async(opened: Opened, commands: tuple[Command, ...], *, is_asking: bool = False) -> list[Any]:
    """:func:`talk` on an event loop."""
    connection, run = opened
    send = _send_asking_async if is_asking else _send_async
    replies = await send(connection, [_words(command, run) for command in commands])
    unknown = _first_unknown_script(replies)
    if unknown is not None:
        words = [_words(command, run, by_source=True) for command in commands[unknown:]]
        replies[unknown:] = await send(connection, words)
    return replies


def _send(connection: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
    connection.send_packed_command(_packed(commands), check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(connection.read_response())
        except redis_exc.ResponseError as exc:
            replies.append(exc)
    return replies


async def _send_async(connection: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
    await connection.send_packed_command(_packed(commands), check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except redis_exc.ResponseError as exc:
            replies.append(exc)
    return replies


def _send_asking(connection: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
    return _send(connection, _asking(commands))[1::2]


async def _send_asking_async(connection: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
    return (await _send_async(connection, _asking(commands)))[1::2]


def _words(command: Command, run: int, *, by_source: bool = False) -> tuple[Any, ...]:
    script = command.script
    if script is None:
        return command.words
    name = ("EVAL", script.source) if by_source else ("EVALSHA", script.sha)
    return (*name, *command.words, run) if command.takes_run else (*name, *command.words)


def _packed(commands: list[tuple[Any, ...]]) -> list[bytes]:
    """Return the commands in the protocol's form, in one piece: one system call sends them."""
    return [b"".join([hiredis.pack_command(command) for command in commands])]


def _asking(commands: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the commands for the future owner of a slot: it forgets that it was asked after each of them."""
    return [word for command in commands for word in (("ASKING",), command)]


def _first_unknown_script(replies: list[Any]) -> int | None:
    for index, reply in enumerate(replies):
        if isinstance(reply, redis_exc.NoScriptError):
            return index
    return None


_INTRODUCTION: list[tuple[Any, ...]] = [("INFO", "server"), ("ROLE",)]


def _introduced(replies: list[Any], *, must_be_primary: bool) -> int:
    """Return the run of the server, 0 where it does not tell: a proxy may not know, an account may not ask.

    Refuses a server that is no primary where one is needed: one that was, and has just come back, would answer with
    what it remembers.
    """
    info, role = replies
    if must_be_primary and isinstance(role, list) and role[0] != b"master":
        raise redis_exc.ReadOnlyError("a replica, where the primary was expected")
    found = _RUN_ID.search(info) if isinstance(info, bytes) else None
    return int(found[1], 16) if found else 0


_RUN_ID = re.compile(rb"^run_id:([0-9a-f]{13})", re.MULTILINE)
"""52 bits of the 160 are random enough, and a number below 2^53 is exact in Lua too."""
