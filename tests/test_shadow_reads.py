"""A sample of reads is compared: what a legacy store usually does wrong is found, and nothing else raises an alarm."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dual_stores import open_store, say
from legacy_stores import ListStore, Messages
from memory_contract import Backend

from contract_engine.memory.hooks import Detail, DualWriteMismatch, observers
from contract_engine.memory.migration import EnhancedSessionStore

pytest_plugins = ("memory_fixtures",)

PATIENCE = 30.0
Harm = Callable[[Messages], Messages]


class Adding(ListStore):
    """A store that adds a field of its own to every message."""

    def get_chat_history(self, session_id: str) -> Messages:
        return [{**one, "created_at": place} for place, one in enumerate(super().get_chat_history(session_id))]


class Busy(ListStore):
    """While it is read somebody writes: before it has answered, and again after it has looked."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] = lambda: None

    def get_chat_history(self, session_id: str) -> Messages:
        self.meanwhile()
        found = super().get_chat_history(session_id)
        self.meanwhile()
        return found


@pytest.fixture
def told() -> Iterator[list[str]]:
    """The kinds of mismatches that hooks are told of."""
    kinds: list[str] = []

    def listen(detail: Detail) -> None:
        if isinstance(detail, DualWriteMismatch):
            kinds.append(detail.kind)

    stop = observers.add(listen)
    yield kinds
    stop()


def sampling(backend: Backend, legacy: Any, rate: float = 1.0) -> EnhancedSessionStore:
    return open_store(backend, legacy, phase="gradual", percentage=0, shadow_rate=rate)


def written(store: EnhancedSessionStore, number: int) -> None:
    for each in range(number):
        store.append("s", say(each))
    assert store.settle(PATIENCE)


def figures(store: EnhancedSessionStore) -> tuple[int, int]:
    assert store.memory_manager.wait_for_folds(PATIENCE)
    return store.stats.compared, store.stats.mismatches


def changed(found: Messages) -> Messages:
    return [*found[:3], {**found[3], "content": "other"}, *found[4:]]


@pytest.mark.parametrize(
    ("harm", "kind", "of_limited"),
    [
        (lambda _: [], "missing_in_legacy", True),
        (lambda found: found[:-30], "missing_in_legacy", True),
        (lambda found: found[:-1], "missing_in_legacy", True),
        (lambda found: found[30:], "missing_in_legacy", False),
        (lambda found: found[:20] + found[40:], "missing_in_legacy", False),
        (lambda found: found[:57] + found[58:], "missing_in_legacy", True),
        (changed, "differs", False),
        (lambda found: [*found[:-2], found[-1], found[-2]], "differs", True),
        (lambda found: [*found, say(99)], "missing_in_new", True),
        (lambda found: [say(99), *found], "missing_in_new", False),
    ],
)
def test_what_a_legacy_store_has_lost_or_changed_is_found(
    blocking: Backend, told: list[str], harm: Harm, kind: str, *, of_limited: bool
) -> None:
    legacy = ListStore()
    with sampling(blocking, legacy) as store:
        written(store, 60)
        assert store.get_chat_history("s") == [say(number) for number in range(60)]
        assert figures(store) == (1, 0)
        legacy.sessions["s"] = harm(legacy.sessions["s"])
        store.get_chat_history("s")
        assert figures(store) == (2, 1)
        assert told == [kind]
        store.get_chat_history("s", 10)
        assert figures(store) == (3, 1 + of_limited)
        store.append("s", say(60))  # what is still to be relayed hides nothing
        assert figures(store) == (3, 1 + of_limited), "and no fold is under way"
        store.get_chat_history("s")
        assert figures(store) == (4, 2 + of_limited)


def test_an_empty_legacy_store_is_found_and_an_empty_session_is_none(blocking: Backend, told: list[str]) -> None:
    with sampling(blocking, ListStore()) as store:
        assert store.get_chat_history("s") == []
        assert store.get_chat_history("s", 3) == []
        assert figures(store) == (2, 0)
        store.memory_manager.append("s", say(1))  # to the log alone
        for limit in (None, 1, 100):
            assert store.get_chat_history("s", limit) == []
        assert figures(store) == (5, 3)
        assert told == ["missing_in_legacy"] * 3


def test_a_history_that_was_not_imported_is_found(blocking: Backend, told: list[str]) -> None:
    legacy = ListStore()
    legacy.sessions["s"] = [say(1)]
    with sampling(blocking, legacy) as store:
        store.get_chat_history("s")
        assert figures(store) == (1, 1)
        assert told == ["missing_in_new"]


def test_fields_that_the_store_adds_are_no_difference(blocking: Backend) -> None:
    with sampling(blocking, Adding()) as store:
        written(store, 5)
        for limit in (None, 1, 5, 9):
            assert store.get_chat_history("s", limit)[-1] == {**say(4), "created_at": 4}
        assert figures(store) == (4, 0)


@pytest.mark.parametrize("is_relayed", [False, True])
def test_what_arrives_in_between_is_no_difference(blocking: Backend, *, is_relayed: bool) -> None:
    legacy = Busy()
    with sampling(blocking, legacy) as store, open_store(blocking, legacy) as writer:
        written(store, 5)

        def meanwhile() -> None:
            for _ in range(2):  # few, so that nothing is folded meanwhile: that would not be compared
                writer.append("s", say(7))
            if is_relayed:
                writer.relay_once()

        for limit in (None, 3, 100):
            legacy.meanwhile = meanwhile
            store.get_chat_history("s", limit)
            legacy.meanwhile = lambda: None
            assert writer.settle(PATIENCE)
        compared, mismatches = figures(store)
        assert (compared, mismatches) == (3, 0)
        assert len(store.get_chat_history("s")) == 5 + 3 * 4


def test_a_session_erased_in_between_is_not_compared(blocking: Backend) -> None:
    legacy = Busy()
    with sampling(blocking, legacy) as store, open_store(blocking, legacy) as other:
        written(store, 5)
        legacy.meanwhile = lambda: other.memory_manager.clear_session_memory("s")
        assert len(store.get_chat_history("s")) == 5
        assert figures(store) == (0, 0)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.7])
def test_about_the_share_is_sampled(blocking: Backend, rate: float) -> None:
    reads = 150
    with sampling(blocking, ListStore(), rate) as store:
        store._flows._shadow._rng = random.Random(5)
        for _ in range(reads):
            store.get_chat_history("s")
        compared, mismatches = figures(store)
    assert abs(compared - rate * reads) <= 18 * (rate > 0)
    assert mismatches == 0
