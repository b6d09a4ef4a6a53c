"""Each class and its asyncio twin offer the same, under the same names, with the same arguments."""

from __future__ import annotations

import inspect

import pytest

from contract_engine.memory import (
    AsyncBufferStore,
    AsyncEnhancedSessionStore,
    AsyncMemoryManager,
    AsyncPostgresSessionStore,
    AsyncRetention,
    AsyncSummaryStore,
    BufferStore,
    EnhancedSessionStore,
    MemoryManager,
    PostgresSessionStore,
    Retention,
    SummaryStore,
)

TWINS = [
    (MemoryManager, AsyncMemoryManager),
    (BufferStore, AsyncBufferStore),
    (SummaryStore, AsyncSummaryStore),
    (PostgresSessionStore, AsyncPostgresSessionStore),
    (Retention, AsyncRetention),
    (EnhancedSessionStore, AsyncEnhancedSessionStore),
]
RENAMED = {"close": "aclose"}
SHELLS = {"within"}  # how a manager hands out its layers: the runtime is of the other colour


def public_methods(cls: type) -> dict[str, inspect.Signature]:
    found = inspect.getmembers(cls, inspect.isfunction)
    return {name: inspect.signature(method) for name, method in found if not name.startswith("_")}


@pytest.mark.parametrize(("blocking", "asynchronous"), TWINS)
def test_twins_have_the_same_methods_with_the_same_signatures(blocking: type, asynchronous: type) -> None:
    ours, theirs = public_methods(blocking), public_methods(asynchronous)
    assert {RENAMED.get(name, name) for name in ours} == set(theirs)
    for name, signature in ours.items():
        assert str(signature) == str(theirs[RENAMED.get(name, name)]), name


@pytest.mark.parametrize(("blocking", "asynchronous"), TWINS)
def test_every_method_of_an_async_twin_is_a_coroutine_function(blocking: type, asynchronous: type) -> None:
    for name in public_methods(blocking).keys() - SHELLS:
        assert inspect.iscoroutinefunction(getattr(asynchronous, RENAMED.get(name, name))), name
        assert not inspect.iscoroutinefunction(getattr(blocking, name)), name


@pytest.mark.parametrize(("blocking", "asynchronous"), TWINS)
def test_twins_are_constructed_alike(blocking: type, asynchronous: type) -> None:
    # An adapter takes a manager of its own colour.
    theirs = str(inspect.signature(asynchronous)).replace("AsyncMemoryManager", "MemoryManager")
    assert str(inspect.signature(blocking)) == theirs


@pytest.mark.parametrize(("blocking", "asynchronous"), TWINS)
def test_every_public_method_says_what_it_does(blocking: type, asynchronous: type) -> None:
    for cls in (blocking, asynchronous):
        for name in public_methods(cls):
            assert (getattr(cls, name).__doc__ or "").strip(), f"{cls.__name__}.{name}"
