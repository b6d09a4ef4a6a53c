"""Servers that hang while an effect waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crash_attempts import named_url, wait_until_done
from crash_matrix import REDIS
from crash_sessions import Stage
from memory_contract import Backend
from server_faults import ServerFaults

from contract_engine.memory import StoreUnavailableError

IMPATIENT: dict[str, Any] = {
    "redis_timeout_seconds": 0.2,
    "database_timeout_seconds": 0.5,
    "breaker_failure_threshold": 50,  # a busy machine may be slower than these deadlines a few times in a row
}


class Hangs:
    """Stops a server while an effect waits for it, and lets it go on when the caller has given up.

    A legacy store that is asked to hang is a table in the same PostgreSQL.
    """

    def __init__(self, faults: ServerFaults, stage: Stage) -> None:
        self.faults = faults
        self.stage = stage
        self.given_up: list[str] = []
        self.application = "hung"

    @contextmanager
    def hang(self, server: str) -> Iterator[None]:
        if server == REDIS:
            self.faults.stop_redis()
        else:
            self.faults.stop_database()
        try:
            yield
        except StoreUnavailableError:
            self.given_up.append(server)
            raise
        finally:
            self.faults.go_on()
            wait_until_done(server, raw=self.stage.raw, table=self.stage.table, application=self.application)

    @contextmanager
    def backend(self, colour: str, number: int, tenant: str | None = None) -> Iterator[Backend]:
        """Lend a backend whose connections are told apart from those of every other number."""
        made, self.application = self.stage.backend, f"hung-{number}"
        url = None if made.database_url is None else named_url(made.database_url, self.application)
        lent = Backend(colour, made.mode, made.redis_url, url, tenant or made.tenant)
        try:
            yield lent
        finally:
            self.faults.go_on()
            lent.close()
