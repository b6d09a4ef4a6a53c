"""The ways to call through a circuit breaker: decorator, call and guard, blocking and asyncio."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import pytest
from breaker_states import CLOSED, OPEN, Clock, boom, in_state, raise_

from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.errors import CircuitOpenError, ConfigurationError

pytest_plugins = ("breaker_fixtures",)


# Decorator, call, guard


def test_a_decorated_function_keeps_its_signature_and_answer(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 60, clock=clock)

    @breaker
    def divide(a: int, *, by: int = 2) -> float:
        """Divide."""
        return a / by

    assert_type(divide(8), float)
    assert divide(8) == 4
    assert divide(9, by=3) == 3
    assert (divide.__name__, divide.__doc__) == ("divide", "Divide.")
    assert str(inspect.signature(divide)) == "(a: 'int', *, by: 'int' = 2) -> 'float'"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            divide(1, by=0)
    with pytest.raises(CircuitOpenError):
        divide(1)
    assert breaker.snapshot().successful == 3


async def test_a_decorated_coroutine_function_is_judged_by_what_it_awaits(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 60, clock=clock)

    @breaker
    async def echo(value: str, *, fails: bool = False) -> str:
        await asyncio.sleep(0)
        if fails:
            raise TimeoutError(value)
        return value

    assert inspect.iscoroutinefunction(echo)
    answer = await echo("a")
    assert_type(answer, str)
    assert answer == "a"
    for _ in range(2):
        with pytest.raises(TimeoutError, match="b"):
            await echo("b", fails=True)
    with pytest.raises(CircuitOpenError):
        await echo("c")
    assert (breaker.snapshot().successful, breaker.snapshot().failed) == (1, 2)


async def test_methods_of_both_colours_are_decorated_alike(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 60, clock=clock)

    class Store:
        def __init__(self, value: int) -> None:
            self.value = value

        @breaker
        def read(self, extra: int) -> int:
            return self.value + extra

        @breaker
        async def read_later(self, extra: int) -> int:
            return self.value + extra

        @staticmethod
        @breaker
        def fail() -> None:
            raise ConnectionError

    store = Store(40)
    assert store.read(2) == 42
    assert await store.read_later(extra=3) == 43
    for _ in range(2):
        with pytest.raises(ConnectionError):
            store.fail()
    with pytest.raises(CircuitOpenError):
        store.read(1)
    with pytest.raises(CircuitOpenError):
        await store.read_later(1)


async def test_call_async_takes_any_function_that_returns_an_awaitable(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 60, clock=clock)

    def begin(value: int) -> asyncio.Future[int]:
        future = asyncio.get_running_loop().create_future()
        if value < 0:
            future.set_exception(ConnectionError("down"))
        else:
            future.set_result(value)
        return future

    assert await breaker.call_async(begin, 7) == 7
    with pytest.raises(ConnectionError):
        await breaker.call_async(begin, -1)
    assert breaker.get_state() is OPEN


def test_call_passes_arguments_even_those_named_like_its_own(clock: Clock) -> None:
    def take(fn: str, **rest: int) -> tuple[str, dict[str, int]]:
        return fn, rest

    assert CircuitBreaker(clock=clock).call(take, fn="x", self=1) == ("x", {"self": 1})


async def test_guard_protects_a_block_in_sync_and_async_code(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 60, clock=clock)
    with breaker.guard():
        pass
    with pytest.raises(ConnectionError), breaker.guard():
        raise ConnectionError
    with pytest.raises(TimeoutError), breaker.guard():
        await asyncio.wait_for(asyncio.Event().wait(), 0)
    with pytest.raises(CircuitOpenError), breaker.guard():
        raise AssertionError("must not run")
    assert (breaker.snapshot().successful, breaker.snapshot().failed) == (1, 2)


async def test_calls_made_while_an_exception_is_handled_are_judged_by_what_they_raise_themselves(clock: Clock) -> None:
    breaker = CircuitBreaker(100, 60, counts=(ConnectionError, TimeoutError), clock=clock)

    async def later() -> int:
        await asyncio.sleep(0)
        return 2

    async def refuse_later() -> None:
        await asyncio.sleep(0)
        raise ValueError("mine")

    try:
        raise_(TimeoutError("the caller's own"))
    except TimeoutError:
        assert breaker.call(lambda: 1) == 1
        assert await breaker.call_async(later) == 2
        with breaker.guard():
            pass
        assert (breaker.snapshot().successful, breaker.failure_count) == (3, 0)
        with pytest.raises(ValueError, match="mine"):
            breaker.call(raise_, ValueError("mine"))
        with pytest.raises(ValueError, match="mine"):
            await breaker.call_async(refuse_later)
        with pytest.raises(ValueError, match="mine"), breaker.guard():
            raise_(ValueError("mine"))
        assert (breaker.snapshot().cancelled, breaker.failure_count) == (3, 0)
        with pytest.raises(ConnectionError):
            breaker.call(boom)
    assert (breaker.snapshot().failed, breaker.failure_count) == (1, 1)


def test_generators_are_refused(clock: Clock) -> None:
    breaker = CircuitBreaker(clock=clock)

    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    for fn in (numbers, later):
        with pytest.raises(ConfigurationError, match="generator"):
            breaker(fn)


def test_a_nested_rejection_is_not_a_failure_of_the_server(clock: Clock) -> None:
    inner, outer = in_state(OPEN, clock), CircuitBreaker(1, 60, clock=clock)
    with pytest.raises(CircuitOpenError):
        outer.call(inner.call, boom)
    assert (outer.get_state(), outer.snapshot().cancelled) == (CLOSED, 1)
