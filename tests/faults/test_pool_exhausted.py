"""Every connection of a pool is in use: who finds none waits as long as a call may, and that is nobody's outage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from crash_attempts import bare
from crash_matrix import DATABASE, REDIS
from memory_contract import DURABLE, EPHEMERAL, SYNC, Backend, assert_context, logged, say, talk
from network_path import BOTH_COLOURS
from server_faults import waited_for
from sqlalchemy.util import greenlet_spawn
from steady_writers import is_served

from contract_engine.memory import CircuitState, MemoryManager
from contract_engine.memory.errors import PoolExhaustedError

PLACES = 2
WAIT_SECONDS = 0.5
SETTINGS: dict[str, dict[str, Any]] = {
    REDIS: {"redis_pool_size": PLACES, "redis_timeout_seconds": WAIT_SECONDS},
    DATABASE: {"database_pool_size": PLACES, "database_timeout_seconds": WAIT_SECONDS},
}
"""The deadline of a call is that of its wait for a connection, too."""


class Pools:
    """Managers of one mode and colour whose pool of connections to one server can be taken as a whole."""

    def __init__(self, backend: Backend, server: str) -> None:
        self.backend = backend
        self.server = server

    def open(self) -> MemoryManager:
        return self.backend.open(**SETTINGS[self.server])

    @contextmanager
    def taken(self, manager: MemoryManager) -> Iterator[None]:
        """Have every connection be in use, as by calls that take their time; no breaker counts those who find none."""
        runtime = bare(manager)._runtime
        breaker = runtime.breaker if self.server == REDIS else runtime.database_breaker
        pool = runtime._redis.call.__self__ if self.server == REDIS else runtime._database._engine
        before = breaker.snapshot()
        held = [self._take(pool) for _ in range(PLACES)]
        try:
            yield
            now = breaker.snapshot()
        finally:
            for one in held:
                self._give_back(pool, one)
        assert (now.state, now.failed, now.successful) == (CircuitState.CLOSED, before.failed, before.successful)
        assert now.cancelled >= before.cancelled + 2, "nobody has waited for a connection"

    def _take(self, pool: Any) -> Any:
        if self.backend.colour == SYNC:
            return pool._take_place() if self.server == REDIS else pool.raw_connection()
        return self._await(pool._take_slot() if self.server == REDIS else pool.raw_connection())

    def _give_back(self, pool: Any, held: Any) -> None:
        if self.server == DATABASE:
            held.close() if self.backend.colour == SYNC else self._await(greenlet_spawn(held.close))
        elif self.backend.colour == SYNC:
            pool._places.put_nowait(held)
        else:
            pool._slots.release()

    def _await(self, steps: Any) -> Any:
        assert self.backend.loop is not None
        return self.backend.loop.run_until_complete(steps)


@pytest.fixture
def pools(request: pytest.FixtureRequest, redis_url: str, database_url: str, tenant: str, colour: str) -> Iterator[Any]:
    """Of either server where there are two, and of the one where there is one."""
    mode, server = request.param
    with closing(Backend(colour, mode, redis_url, database_url if mode == DURABLE else None, tenant)) as backend:
        yield Pools(backend, server)


def of(mode: str, server: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("pools", [pytest.param((mode, server), id=f"{mode}, {server}")], indirect=True)


@BOTH_COLOURS
@of(DURABLE, REDIS)
def test_without_a_connection_to_redis_the_log_goes_on(pools: Pools) -> None:
    manager = pools.open()
    manager.add_messages("s", talk(3))
    with pools.taken(manager):
        receipt = manager.append("s", say(4), message_id="id4")
        assert (receipt.seq, receipt.durable, receipt.degraded) == (4, True, True)
        assert manager.add_message("s", say(5)) is True
        context = manager.get_context("s")
        assert_context(context, talk(5))
        assert (context["source"], context["degraded"]) == ("postgres", True)
        health = manager.health()
        assert (health.status, health.is_well("redis"), health.is_well("postgres")) == ("degraded", False, True)
        assert "no free Redis connection" in str(health)
        manager.wait_for_folds()
    assert manager.append("s", say(4), message_id="id4").seq == 4
    assert_served(pools, manager, 5)


@BOTH_COLOURS
@of(DURABLE, DATABASE)
def test_without_a_connection_to_the_database_redis_goes_on(pools: Pools) -> None:
    manager = pools.open()
    manager.add_messages("s", talk(3))
    with pools.taken(manager):
        receipt = manager.append("s", say(4), message_id="id4")
        assert (receipt.seq, receipt.durable, receipt.degraded) == (4, False, True)
        context = manager.get_context("s")
        assert_context(context, talk(4))
        assert (context["source"], context["degraded"]) == ("redis", True)
        with pytest.raises(PoolExhaustedError):
            manager.load_context("s")
        health = manager.health()
        assert (health.status, health.is_well("redis"), health.is_well("postgres")) == ("degraded", True, False)
        assert "no free database connection" in str(health)
        manager.wait_for_folds()
    assert manager.append("s", say(5)).seq == 5
    again = manager.append("s", say(4), message_id="id4")
    assert (again.seq, again.durable) == (4, True)
    assert_served(pools, manager, 5)


@BOTH_COLOURS
@of(EPHEMERAL, REDIS)
def test_without_a_connection_and_without_a_log_nothing_is_acknowledged(pools: Pools) -> None:
    manager = pools.open()
    manager.add_messages("s", talk(3))
    with pools.taken(manager):
        with pytest.raises(PoolExhaustedError):
            manager.append("s", say(90))
        with pytest.raises(PoolExhaustedError):
            manager.get_context("s")
        assert manager.add_message("s", say(91)) is False
        health = manager.health()
        assert (health.status, health.is_well("redis")) == ("unhealthy", False)
    assert manager.append("s", say(4)).seq == 4
    assert manager.append("s", say(5)).seq == 5
    assert_served(pools, manager, 5)


def assert_served(pools: Pools, manager: MemoryManager, count: int) -> None:
    """What was acknowledged is there once and in order, for this manager and for others, from where it should be."""
    for one in (manager, pools.open()):
        assert waited_for(lambda one=one: is_served(one, "s"))  # type: ignore[misc]  # bound as a default
        assert_context(one.get_context("s"), talk(count))
    if pools.backend.database_url:
        rows = logged(pools.backend.database_url, pools.backend.tenant, "s")
        assert rows == list(enumerate(talk(count), 1))
