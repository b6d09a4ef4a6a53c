"""Managers whose way to a server leads through the fault proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from memory_contract import ASYNC, DURABLE, SYNC, Backend, logged
from proxy import FaultProxy

from contract_engine.memory import MemoryManager

REDIS, POSTGRES = "redis", "postgres"
WIDE_SECONDS = 5.0
"""What a busy machine may add to a deadline."""

BOTH_COLOURS = pytest.mark.parametrize("colour", [SYNC, ASYNC])
EITHER_SERVER = pytest.mark.parametrize("server", [REDIS, POSTGRES])


STEADY: dict[str, Any] = {"redis_timeout_seconds": 5.0, "database_timeout_seconds": 10.0}
"""Settings under which nothing ends but what is ended."""

ROOM: dict[str, Any] = {
    "max_buffer_messages": 100,
    "max_buffer_tokens": 900_000,
    "summary_trigger_tokens": 900_000,
}
"""Caps under which nothing is folded."""


class Path:
    """Managers whose way to one server leads through a proxy, and one manager that goes past it."""

    def __init__(self, stack: ExitStack, server: str, backend: Backend) -> None:
        url = backend.redis_url if server == REDIS else backend.database_url
        assert url is not None
        self.proxy = stack.enter_context(FaultProxy(url))
        self.backend = backend
        harmed = Backend(backend.colour, backend.mode, backend.redis_url, backend.database_url, backend.tenant)
        if server == REDIS:
            harmed.redis_url = self.proxy.url
        else:
            harmed.database_url = self.proxy.url
        self.harmed = harmed
        stack.callback(backend.close)
        stack.callback(harmed.close)
        self.beside = backend.open(**STEADY)

    def open(self, **settings: Any) -> MemoryManager:
        return self.harmed.open(**(STEADY | settings))

    def rows(self, session_id: str = "s") -> list[dict[str, Any]]:
        """Return what the log has of a session, whose numbers must be 1 to N."""
        assert self.backend.database_url is not None
        rows = logged(self.backend.database_url, self.backend.tenant, session_id)
        assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
        return [message for _, message in rows]


Paths = Callable[..., Path]


@contextmanager
def paths_of(redis_url: str, database_url: str, tenant: str) -> Iterator[Paths]:
    """Yield what makes a path to the server whose network is to be harmed, for managers of one colour."""
    with ExitStack() as stack:

        def make(server: str, colour: str, *, mode: str = DURABLE) -> Path:
            url = database_url if mode == DURABLE else None
            return Path(stack, server, Backend(colour, mode, redis_url, url, tenant))

        yield make
