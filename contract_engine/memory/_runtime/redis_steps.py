"""What routing asks of connections, and what they tell it: the words between the two, as values."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

import msgspec
from redis import exceptions as redis_exc

from contract_engine.memory._effects import Command

T = TypeVar("T")


class Address(NamedTuple):
    """Where a server listens, and whether it is a Sentinel: those have a password of their own."""

    host: str
    port: int
    is_sentinel: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Attempt(msgspec.Struct):
    """Send commands to one server, once, until ``deadline`` (monotonic); answered by an :class:`Outcome`.

    ``is_asking``: the server is the future owner of their slot. ``is_fresh``: not on a kept connection.
    """

    address: Address
    commands: tuple[Command, ...]
    deadline: float
    is_asking: bool = False
    is_fresh: bool = False


class Wait(msgspec.Struct):
    """Wait a moment; answered by nothing."""

    seconds: float


class Retire(msgspec.Struct):
    """Close the connections to a server nobody will talk to any more; answered by nothing."""

    address: Address


class Outcome(msgspec.Struct):
    """How an attempt ended: replies, errors among them, or the error that kept them from coming.

    ``was_idle``: on a kept connection, which may have died long before. ``was_sent``: False where no connection came
    about, so that no command can have arrived. ``run``: see ``RedisCall``.
    """

    replies: list[Any]
    error: redis_exc.RedisError | None
    was_idle: bool
    was_sent: bool
    run: int = 0


Step = Attempt | Wait | Retire
Steps = Generator[Step, Any, T]
