"""What programs hand in and get back, and the two interfaces by which they know a manager."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from working_memory_contract import ask, say, texts_of
from wrapper_fixtures import NAMES, stacked

import contract_engine.working_memory as package
from contract_engine.memory import InvalidInputError
from contract_engine.working_memory import (
    AsyncInMemoryManager,
    AsyncRedisWorkingMemoryManager,
    AsyncSQLiteMemoryManager,
    AsyncSQLMemoryManager,
    AsyncWorkingMemoryManager,
    IAsyncMemoryManager,
    IMemoryManager,
    InMemoryManager,
    IWorkingMemory,
    RedisWorkingMemoryManager,
    SQLiteMemoryManager,
    SQLMemoryManager,
    WorkingMemoryManager,
)

METHODS = ("store", "retrieve", "update", "delete")
NO_REDIS = "redis://127.0.0.1:1/0"  # nothing is asked of it


class OwnMemory(IWorkingMemory):
    """A memory of a program that derives its own."""


# -- memories as dicts


@given(st.text(st.characters(exclude_categories=())))
def test_a_memory_comes_back_from_its_dict(text: str) -> None:
    """By way of JSON too, as programs keep them."""
    memory = IWorkingMemory(text)
    written = memory.to_dict()
    assert written == {"working_memory": text}
    assert IWorkingMemory.from_dict(written) == IWorkingMemory.from_dict(json.loads(json.dumps(written))) == memory


def test_a_dict_has_the_text_alone() -> None:
    """It is the form in which a record has it; what else is known stands beside it there."""
    memory = IWorkingMemory("likes tea", {"a": 1}, "m", "2027-01-15T08:00:00+00:00", "2027-01-15T08:00:00+00:00")
    assert memory.to_dict() == {"working_memory": "likes tea"}
    assert IWorkingMemory.from_dict(memory.to_dict() | {"metadata": {"a": 1}}) == IWorkingMemory("likes tea")
    manager = InMemoryManager()
    key = manager.store(say("c1", "likes tea"))
    assert manager.storage[key]["data"] == memory.to_dict()
    assert IWorkingMemory.from_dict(manager.storage[key]["data"]).working_memory == "likes tea"


def test_a_dict_is_neither_kept_nor_changed() -> None:
    memory, data = IWorkingMemory("one"), {"working_memory": "two"}
    memory.to_dict()["working_memory"] = "changed"
    read = IWorkingMemory.from_dict(data)
    read.working_memory = "changed"
    read.metadata["a"] = 1
    assert memory.working_memory == "one"
    assert data == {"working_memory": "two"}
    assert IWorkingMemory.from_dict(data).metadata == {}


def test_a_class_of_its_own_stays_one() -> None:
    assert type(OwnMemory.from_dict({"working_memory": "x"})) is OwnMemory
    assert type(OwnMemory.initialize_memory()) is OwnMemory


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "likes tea",
        b"likes tea",
        5,
        [],
        ["working_memory"],
        {},
        {"text": "likes tea"},
        *({"working_memory": value} for value in (None, 5, True, b"likes tea", ["likes tea"], {"text": "likes tea"})),
    ],
    ids=repr,
)
def test_what_has_no_text_is_no_memory(bad: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        IWorkingMemory.from_dict(bad)
    assert caught.value.field == "working_memory"
    assert isinstance(caught.value, ValueError)
    assert "tea" not in str(caught.value)


def test_a_memory_begins_with_four_sections_that_say_that_nothing_is_known() -> None:
    memory = IWorkingMemory.initialize_memory()
    sections = re.findall(r"^### ([A-Z ]+):\n([A-Z].+\.)$", memory.working_memory, re.MULTILINE)
    assert [head for head, _ in sections] == [
        "USER CONTEXT",
        "CONVERSATION FLOW",
        "CURRENT FOCUS",
        "INTERACTION TONE",
    ]
    assert "\n\n".join(f"### {head}:\n{text}" for head, text in sections) == memory.working_memory
    assert (memory.metadata, memory.memory_id, memory.created_at, memory.last_update) == ({}, None, None, None)
    assert IWorkingMemory.from_dict(memory.to_dict()) == memory


def test_each_first_memory_is_a_new_one_and_can_be_stored() -> None:
    one, other = IWorkingMemory.initialize_memory(), IWorkingMemory.initialize_memory()
    one.metadata["a"] = 1
    one.working_memory += "\n- likes tea"
    assert other.metadata == {}
    assert other == IWorkingMemory.initialize_memory() != one
    manager = InMemoryManager()
    manager.store(package.IMemoryInput("c1", data=[other]))
    found = manager.retrieve(ask("c1", package.ConversationMemoryType.SHORT_TERM_MEMORY))
    assert texts_of(found) == [other.working_memory]


# -- the interfaces


def managers(directory: Path) -> list[IMemoryManager]:
    """Return one of each; they open nothing."""
    bare: list[IMemoryManager] = [
        InMemoryManager(),
        RedisWorkingMemoryManager(NO_REDIS),
        SQLMemoryManager(f"sqlite:///{directory}/a.db"),
        SQLiteMemoryManager(directory / "b.db"),
    ]
    return [*bare, *(stacked(InMemoryManager(), (name,)) for name in NAMES)]


def twins(directory: Path) -> list[IAsyncMemoryManager]:
    """Return one of each for an event loop; they open nothing."""
    bare: list[IAsyncMemoryManager] = [
        AsyncInMemoryManager(),
        AsyncRedisWorkingMemoryManager(NO_REDIS),
        AsyncSQLMemoryManager(f"sqlite:///{directory}/a.db"),
        AsyncSQLiteMemoryManager(directory / "b.db"),
    ]
    return [*bare, *(stacked(AsyncInMemoryManager(), (name,)) for name in NAMES)]


def offered(kind: type) -> set[type]:
    """Return the managers of a colour that the package offers, aliases being the same."""
    found = {getattr(package, name) for name in package.__all__}
    return {one for one in found if inspect.isclass(one) and issubclass(one, kind) and not inspect.isabstract(one)}


@pytest.mark.parametrize("is_sync", [True, False])
def test_every_manager_has_the_interface_of_its_colour(tmp_path: Path, is_sync: bool) -> None:
    """By name, which is all that ``isinstance`` looks at, and also by parameters, answers, and what is awaited."""
    interface: type = IMemoryManager if is_sync else IAsyncMemoryManager
    made: list[Any] = list(managers(tmp_path) if is_sync else twins(tmp_path))
    assert {type(one) for one in made} == offered(WorkingMemoryManager if is_sync else AsyncWorkingMemoryManager)
    assert len(made) == 10
    for one in made:
        assert isinstance(one, interface), type(one)
        for name in METHODS:
            assert inspect.iscoroutinefunction(getattr(one, name)) is not is_sync, (type(one), name)
            expected = inspect.signature(getattr(interface, name))
            assert inspect.signature(getattr(type(one), name)) == expected, (type(one), name)


@pytest.mark.parametrize("interface", [IMemoryManager, IAsyncMemoryManager])
def test_what_lacks_a_method_is_no_manager(interface: type) -> None:
    whole = dict.fromkeys(METHODS, print)
    assert isinstance(SimpleNamespace(**whole), interface)
    for name in METHODS:
        assert not isinstance(SimpleNamespace(**{other: whole[other] for other in METHODS if other != name}), interface)
    assert not isinstance(object(), interface)


@pytest.mark.parametrize("name", METHODS)
def test_both_interfaces_ask_for_the_same(name: str) -> None:
    blocking, awaited = getattr(IMemoryManager, name), getattr(IAsyncMemoryManager, name)
    assert inspect.signature(blocking) == inspect.signature(awaited)
    assert not inspect.iscoroutinefunction(blocking)
    assert inspect.iscoroutinefunction(awaited)
