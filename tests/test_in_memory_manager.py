"""Working memory in this process: expiry, eviction, threads, and models that it is held against."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from working_memory_contract import ManualClock, ask, say, texts_of

from contract_engine.memory import InvalidInputError
from contract_engine.working_memory import InMemoryManager
from contract_engine.working_memory.expiring_entries import ExpiringEntries
from contract_engine.working_memory.intake import timestamp


def test_storage_is_a_view_of_what_is_there() -> None:
    manager = InMemoryManager(prefix="p")
    manager.store(say("c1", "text", metadata={"a": 1}))
    assert len(manager.storage) == 1
    assert list(manager.storage.keys()) == ["p:WORKING_MEMORY:c1"]
    assert manager.storage["p:WORKING_MEMORY:c1"]["data"] == {"working_memory": "text"}
    manager.storage["p:WORKING_MEMORY:c1"]["data"]["working_memory"] = "changed"
    assert texts_of(manager.retrieve(ask("c1"))) == ["text"]
    assert "p:WORKING_MEMORY:c2" not in manager.storage
    with pytest.raises(KeyError):
        manager.storage["p:WORKING_MEMORY:c2"]


def test_twelve_hours_are_the_default_and_none_is_for_ever() -> None:
    clock = ManualClock()
    by_default, for_ever = InMemoryManager(clock=clock), InMemoryManager(ttl=None, clock=clock)
    for manager in (by_default, for_ever):
        manager.store(say("c1", "x"))
    clock.seconds += 43_199.9
    assert len(by_default.storage) == 1
    clock.seconds += 0.1
    assert len(by_default.storage) == 0
    clock.seconds += 10**9
    assert len(for_ever.storage) == 1


def test_expired_entries_are_cleared_by_writes_a_few_at_a_time() -> None:
    clock = ManualClock()
    manager = InMemoryManager(ttl=10, clock=clock)
    manager.store_many([say(f"old-{number}", "x") for number in range(1000)])
    clock.seconds += 20
    entries = manager.store_of_records._entries
    assert len(entries) == 1000
    for number in range(1000 // 16 + 1):
        before = len(entries)
        manager.store(say(f"new-{number}", "x"))
        assert before - len(entries) <= 15
    assert len(entries) == 1000 // 16 + 1 == len(manager.storage)


def test_clearing_by_hand_takes_all_that_is_due_and_nothing_else() -> None:
    clock = ManualClock()
    manager = InMemoryManager(ttl=0.5, clock=clock)
    manager.store(say("a", "x"))
    clock.seconds += 0.25
    manager.store(say("b", "x"))
    clock.seconds += 0.25
    manager._clear_expired_memory()
    assert len(manager.store_of_records._entries) == 1
    assert list(manager.storage) == ["memory:WORKING_MEMORY:b"]


def test_the_least_recently_used_makes_way() -> None:
    manager = InMemoryManager(max_entries=3)
    for name in "abc":
        manager.store(say(name, "x"))
    manager.retrieve(ask("a"))
    manager.storage["memory:WORKING_MEMORY:b"]  # looking is no use
    manager.store(say("d", "x"))
    assert sorted(name[-1] for name in manager.storage) == ["a", "c", "d"]
    manager.update(say("c", "y"))
    manager.store(say("e", "x"))
    assert sorted(name[-1] for name in manager.storage) == ["c", "d", "e"]
    assert manager.storage_stats() | {"entries_by_type": None} == {
        "total_entries": 3,
        "entries_by_type": None,
        "prefix": "memory",
        "max_entries": 3,
        "evicted_entries": 2,
    }


@pytest.mark.parametrize(
    "given_settings",
    [
        {"ttl": 0},
        {"ttl": -1},
        {"ttl": True},
        {"ttl": "60"},
        {"ttl": float("nan")},
        {"max_entries": 0},
        {"max_entries": True},
        {"max_bytes": 0},
        {"prefix": ""},
        {"prefix": "a*"},
        {"prefix": "a:"},
        {"prefix": "memory:WORKING_MEMORY"},
        {"prefix": 5},
    ],
)
def test_bad_settings_are_refused(given_settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        InMemoryManager(**given_settings)


def test_a_bad_time_to_live_set_later_is_refused_before_anything_is_written() -> None:
    manager = InMemoryManager()
    manager.ttl = -1
    with pytest.raises(InvalidInputError):
        manager.store(say("c1", "x"))
    assert len(manager.storage) == 0


def test_eight_threads_store_delete_and_look() -> None:
    manager = InMemoryManager(ttl=60)
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for number in range(300):
                manager.store(say(f"{worker}-{number}", "x"))
                if number % 3 == 0:
                    manager.delete(ask(f"{worker}-{number}"))
                if number % 50 == 0:
                    assert all(name.startswith("memory:") for name in manager.storage)
                    manager.storage_stats()
        except (RuntimeError, KeyError, AssertionError) as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(manager.storage) == 8 * 200


class EntriesAgainstAModel(RuleBasedStateMachine):
    """Entries with any time to live, against a dict that looks at everything every time."""

    CAPACITY = 5

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(0.0)
        self.entries = ExpiringEntries(max_entries=self.CAPACITY, clock=self.clock)
        self.model: OrderedDict[str, tuple[bytes, float | None]] = OrderedDict()
        self.bodies = (str(number).encode() for number in itertools.count())

    def live(self) -> dict[str, bytes]:
        now = self.clock()
        return {name: body for name, (body, end) in self.model.items() if end is None or now < end}

    @rule(name=st.sampled_from("abcdefgh"), ttl=st.none() | st.sampled_from([0.25, 1, 1.5, 7, 100]))
    def put(self, name: str, ttl: float | None) -> None:
        body = next(self.bodies)
        # What is due in a second that is over has been cleared; what expired within this one still takes up room.
        for gone in [one for one, (_, end) in self.model.items() if end is not None and int(end) < int(self.clock())]:
            del self.model[gone]
        if name not in self.model and len(self.model) >= self.CAPACITY:
            self.model.popitem(last=False)
        self.model[name] = (body, None if ttl is None else self.clock() + ttl)
        self.model.move_to_end(name)
        self.entries.put(name, body, ttl)

    @rule(name=st.sampled_from("abcdefgh"))
    def get(self, name: str) -> None:
        expected = self.live().get(name)
        assert self.entries.get(name) == expected
        if expected is None:
            self.model.pop(name, None)
        else:
            self.model.move_to_end(name)

    @rule(name=st.sampled_from("abcdefgh"))
    def remove(self, name: str) -> None:
        assert self.entries.remove(name) == (name in self.live())
        self.model.pop(name, None)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1, 3, 60]))
    def wait(self, seconds: float) -> None:
        self.clock.seconds += seconds

    @precondition(lambda self: bool(self.model))
    @rule()
    def clear(self) -> None:
        self.entries.clear_expired()
        self.model = OrderedDict((name, self.model[name]) for name in self.live())
        assert len(self.entries) == len(self.model)

    @invariant()
    def the_same_is_there(self) -> None:
        assert sorted(self.entries.names()) == sorted(self.live())
        assert len(self.entries) <= self.CAPACITY


EntriesAgainstAModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
test_entries_against_a_model = EntriesAgainstAModel.TestCase


class ManagerAgainstAModel(RuleBasedStateMachine):
    """A manager against a dict of lists."""

    conversations = st.sampled_from(["a", "b"])
    texts = st.lists(st.text(max_size=5), min_size=1, max_size=4)

    def __init__(self) -> None:
        super().__init__()
        self.manager = InMemoryManager()
        self.model: dict[str, dict[str, str]] = {}

    @rule(name=conversations, texts=texts)
    def store(self, name: str, texts: list[str]) -> None:
        self.manager.store(say(name, *texts))
        self.model[name] = {str(number): text for number, text in enumerate(texts, 1)}

    @rule(name=conversations, texts=texts)
    def update(self, name: str, texts: list[str]) -> None:
        self.manager.update(say(name, *texts))
        if name in self.model:
            before = list(self.model[name])
            ids = before if len(texts) == len(before) == 1 else [str(number + 1) for number in range(len(texts))]
            self.model[name] = dict(zip(ids, texts, strict=True))

    @rule(name=conversations, text=st.text(max_size=5), memory_id=st.sampled_from("123"))
    def update_one(self, name: str, text: str, memory_id: str) -> None:
        self.manager.update(say(name, text, memory_id=memory_id))
        if memory_id in self.model.get(name, {}):
            self.model[name][memory_id] = text

    @rule(name=conversations, memory_id=st.none() | st.sampled_from("123"))
    def delete(self, name: str, memory_id: str | None) -> None:
        self.manager.delete(ask(name, memory_id=memory_id))
        if memory_id is None:
            self.model.pop(name, None)
        elif name in self.model:
            self.model[name].pop(memory_id, None)
            if not self.model[name]:
                del self.model[name]

    @invariant()
    def the_same_is_there(self) -> None:
        for name in "ab":
            found = self.manager.retrieve(ask(name, limit=None))
            assert [(one.memory_id, one.working_memory) for one in found] == list(self.model.get(name, {}).items())
        assert len(self.manager.storage) == len(self.model)


ManagerAgainstAModel.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
test_manager_against_a_model = ManagerAgainstAModel.TestCase


@given(st.floats(min_value=0, max_value=4e9))
def test_a_timestamp_is_the_time_in_utc(at_seconds: float) -> None:
    found = datetime.fromisoformat(timestamp(at_seconds))
    assert found.utcoffset() == timedelta(0)
    assert abs(found.timestamp() - at_seconds) <= 2e-6
