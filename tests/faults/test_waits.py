"""A server that hangs costs a call its deadline once: every public operation, blocking and in a task, by counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import pytest
from crash_matrix import DATABASE, REDIS
from crash_operations import BY_NAME, LIMITS, OPERATIONS, Operation
from crash_sessions import Session, Stage
from crash_trials import expects_effects, named, one_state_of, stage_of
from memory_contract import ASYNC, DURABLE, EPHEMERAL, SYNC, Backend
from proxy import FaultProxy
from server_faults import ServerFaults, waited_for
from vain_waits import VainWaits

from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import CircuitState, MemoryManager, StoreUnavailableError

HUNG: dict[str, dict[str, Any]] = {
    REDIS: {"redis_timeout_seconds": 0.2, "database_timeout_seconds": 20.0},
    DATABASE: {"redis_timeout_seconds": 10.0, "database_timeout_seconds": 0.3},
}
"""Short for the server that hangs, and patient with the other one, on a machine that is busy with other things."""
OPENS_AFTER = 2
UNTIL_THE_END: dict[str, Any] = {"breaker_recovery_seconds": 600.0, "database_breaker_recovery_seconds": 600.0}

DOES_WITHOUT = {
    REDIS: (
        "search_messages",
        "save_context",
        "load_context",
        "get_summary_instructions",
        "summary_store.get_summary_history",
        "summary_store.readable_texts",
        *(operation.method for operation in OPERATIONS if operation.store == "session_store"),
        "retention.session_ids",
    ),
    DATABASE: ("is_available", "unlogged_sessions", "buffer_store.clear_buffer"),
}
"""With a log, the methods that ask nothing of this server; one that is not named here waits for it."""


class Pair(NamedTuple):
    """Servers to stop, proxies in front of them that count what is asked, and a stage of either mode."""

    faults: ServerFaults
    proxies: dict[str, FaultProxy]
    stages: dict[str, Stage]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        servers = stack.enter_context(EmbeddedServers(durable=False))
        urls = {REDIS: servers.redis_url, DATABASE: servers.database_url}
        proxies = {server: stack.enter_context(FaultProxy(url)) for server, url in urls.items()}
        stages = {
            mode: stack.enter_context(stage_of(mode, servers.redis_url, servers.database_url, mode))
            for mode in (DURABLE, EPHEMERAL)
        }
        yield Pair(ServerFaults(redis_server=servers, database=servers), proxies, stages)


class Hung:
    """A server that hangs, and a manager for each operation that had its connections before."""

    def __init__(self, pair: Pair, mode: str, server: str, colour: str) -> None:
        self.server = server
        self.stage = pair.stages[mode]
        self.proxy = pair.proxies[server]
        url = pair.proxies[DATABASE].url if mode == DURABLE else None
        self.backend = Backend(colour, mode, pair.proxies[REDIS].url, url, self.stage.backend.tenant)
        self._sessions = {name: self._session(operation) for name, operation in BY_NAME.items()}
        self._managers = {name: self._connected() for name in BY_NAME}
        self.impatient = self._connected(breaker_failure_threshold=OPENS_AFTER)

    def _session(self, operation: Operation) -> Session:
        state = one_state_of(self.stage, operation)
        usual = "evicted" if self.stage.is_durable else "folded"  # where the log has to be asked, if there is one
        return self.stage.session_for(operation, state if state == "unlogged" else usual)

    def _connected(self, **settings: Any) -> MemoryManager:
        manager = self.backend.open(limits=LIMITS, **HUNG[self.server], **UNTIL_THE_END, **settings)

        def is_connected() -> bool:
            # A busy machine may be slower than these deadlines, and a breaker that opens now stays open to the end.
            manager.circuit_breaker.reset()
            manager.database_breaker.reset()
            with suppress(StoreUnavailableError):
                manager.load_context("nobody's")
                return not manager.get_context("nobody's")["degraded"]
            return False

        assert waited_for(is_connected)
        return manager

    def call(self, waits: VainWaits, operation: Operation) -> tuple[int, int]:
        """Call an operation; answers how often it has waited in vain, and how often others did so for it."""
        session = self._sessions[operation.name]
        return waits.call(lambda manager: operation.call(manager, session.id, len(session.said)))

    def waits(self, operation: Operation) -> tuple[int, int]:
        """Call an operation on a manager that nobody has called since the server hangs."""
        return self.call(VainWaits(self._managers[operation.name]), operation)

    def expected(self, operation: Operation) -> int:
        if not expects_effects(self.stage, operation) or operation.method == "health":
            return 0  # health has others wait, who may be late
        if not self.stage.is_durable:
            return 1
        return 0 if operation.method in DOES_WITHOUT[self.server] else 1


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((mode, server, colour), id=f"{mode}, {server} hangs, {colour}")
        for mode, server in ((DURABLE, REDIS), (DURABLE, DATABASE), (EPHEMERAL, REDIS))
        for colour in (SYNC, ASYNC)
    ],
)
def hung(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Hung]:
    mode, server, colour = request.param
    made = Hung(pair, mode, server, colour)
    try:
        if server == REDIS:
            pair.faults.stop_redis()
        else:
            pair.faults.stop_database()
        yield made
    finally:
        pair.faults.go_on()
        made.backend.close()


@pytest.mark.parametrize("operation", named(OPERATIONS))
def test_an_operation_waits_once_for_a_server_that_hangs(hung: Hung, operation: Operation) -> None:
    asked = hung.proxy.requests
    own, others = hung.waits(operation)
    print(f"{operation.name}: waits {own} times, in the background {others} times")
    assert own == hung.expected(operation)
    assert others <= 1
    # Its clients know how to try again by themselves; a pool of PostgreSQL replaces a lost connection when it likes.
    if hung.server == REDIS and operation.method != "close":  # which takes its leave
        waited_for(lambda: hung.proxy.requests - asked >= own + others)
        assert hung.proxy.requests - asked <= own + others, "it was asked behind our back"


def test_with_the_breaker_open_no_operation_waits(hung: Hung) -> None:
    """After calls that have found out; a search has a breaker of its own to be opened."""
    manager = hung.impatient
    waits = VainWaits(manager)
    breaker = manager.circuit_breaker if hung.server == REDIS else manager.database_breaker
    for name in ("append", "search_messages") if hung.server == DATABASE else ("append",):
        for _ in range(OPENS_AFTER):
            hung.call(waits, BY_NAME[name])
    assert waits.total >= OPENS_AFTER, "it did not hang"
    assert breaker.get_state() == CircuitState.OPEN
    rejected, asked = breaker.snapshot().rejected, hung.proxy.requests
    waited = {}
    for operation in OPERATIONS:
        if operation.method != "close":
            waited[operation.name] = hung.call(waits, operation)
    assert set(waited.values()) == {(0, 0)}, waited
    assert hung.proxy.requests == asked
    assert breaker.snapshot().rejected > rejected
