"""How whoever deletes a session goes together with a relay that is giving it to the legacy store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from contract_engine.memory._effects import Flow, pause, transaction
from contract_engine.memory._log_relays import held_by_relays
from contract_engine.memory.errors import ContentionError

T = TypeVar("T")

LOOKS, LOOK_SECONDS = 60, 0.05
"""How often whoever deletes a session looks whether its relay is done, and how long it waits between: three seconds.
A relay holds a session for one and a call to the legacy store; one that has died, until its lease is over."""


def unless_relayed(session_id: str, delete: Callable[[Any], T | None]) -> Flow[T]:
    """Run what deletes a session in a transaction, again where it answers None: a relay is at it.

    Raises :class:`ContentionError` where it stays at it. So nothing is given to the legacy store of a session that is
    gone.
    """
    for _ in range(LOOKS):
        answer = yield from transaction(delete)
        if answer is not None:
            return answer
        yield from pause(LOOK_SECONDS)
    raise ContentionError(session_id, LOOKS, "was being given to the legacy store")


def until_unrelayed(tenant: str, session_id: str) -> Flow[None]:
    """Wait until no relay is at a session, and put off those that would begin: for who deletes in several steps."""

    def look(connection: Any) -> bool | None:
        return None if held_by_relays(connection, tenant, [session_id]) else True

    yield from unless_relayed(session_id, look)
