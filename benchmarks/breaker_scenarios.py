"""What a circuit breaker adds to the call it protects, closed and open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from scenario import WIDE, Bench, Timer, repeated, usual_work

from contract_engine.memory import CircuitBreaker, CircuitOpenError
from contract_engine.memory._effects import Flow
from contract_engine.memory.keys import check_session_id
from contract_engine.memory.models import Loaded, empty_session


def breaker_closed(**settings: Any) -> Callable[[Bench], AbstractContextManager[tuple[Timer, Timer]]]:
    """Make a scenario of a call through a closed breaker, against the call alone."""

    @contextmanager
    def prepare(_: Bench) -> Iterator[tuple[Timer, Timer]]:
        breaker = CircuitBreaker(**settings)
        yield lambda: repeated(lambda: breaker.call(_nothing)), lambda: repeated(_nothing)

    return prepare


@contextmanager
def breaker_open(_: Bench) -> Iterator[tuple[Timer, Timer]]:
    breaker = CircuitBreaker()
    breaker.force_open()

    def rejected() -> None:
        try:
            breaker.call(_nothing)
        except CircuitOpenError:
            return

    def failing() -> None:
        try:
            _refused()
        except ConnectionRefusedError:
            return

    yield lambda: repeated(rejected), lambda: repeated(failing)


@contextmanager
def redis_away(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    """A read with the breaker open, against the same read by a manager that never thinks of Redis."""
    manager = bench.durable
    name = bench.session(manager, 1)
    sessions = manager._flows._sessions
    breaker, run = manager.circuit_breaker, manager._runtime.run

    def plain() -> Flow[dict[str, Any]]:
        checked = check_session_id(name)
        state = yield from sessions.folding.read_within_caps(checked)
        loaded = Loaded(state or empty_session(WIDE), "postgres", True)
        return (yield from manager._flows._context(checked, loaded, None))

    breaker.force_open()
    try:
        yield lambda: usual_work([lambda: manager.get_context(name)]), lambda: usual_work([lambda: run(plain())])
    finally:
        breaker.reset()


@contextmanager
def append_with_redis_away(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    """An append with the breaker open, against the same statement with nothing around it."""
    manager = bench.durable
    name, plain = bench.session(manager, 1), bench.session(manager, 1)
    breaker, log = manager.circuit_breaker, manager.session_store

    def work_of(add: Callable[[str, dict[str, Any]], object], session: str) -> float:
        return usual_work([partial(add, session, *bench.fresh(1))])

    breaker.force_open()
    try:
        yield lambda: work_of(manager.add_message, name), lambda: work_of(log.append, plain)
    finally:
        breaker.reset()


def _nothing() -> None:
    """Stand for the call that a breaker protects."""


def _refused() -> None:
    """Stand for a call that fails at once."""
    raise ConnectionRefusedError
