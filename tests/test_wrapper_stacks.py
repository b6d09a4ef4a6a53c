"""Wrappers stack in any order: what goes in comes out, whatever it is, whoever reads it."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from working_memory_contract import ASYNC, KINDS, MEMORY, SYNC, WORKING, MemoryBackend
from wrapper_fixtures import NAMES, stacked

from contract_engine import working_memory
from contract_engine.memory.errors import ConfigurationError, InvalidInputError
from contract_engine.working_memory import (
    AsyncInMemoryManager,
    AsyncWorkingMemoryManager,
    IMemoryInput,
    IMemoryManager,
    InMemoryManager,
    IWorkingMemory,
    Versioned,
    WorkingMemoryManager,
    WrapperMissingError,
)
from contract_engine.working_memory.encryption import SEALED_METADATA
from contract_engine.working_memory.stores import Batch

MARKING = ("Compressed", "Encrypted")

texts = st.text(st.characters(exclude_categories=()), max_size=400) | st.just("halves \ud83d\ude00")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
# The one name that is taken is refused, which test_encryption shows; examples are made of the package's own words too.
names = texts.filter(lambda name: name != SEALED_METADATA)
metadata = st.dictionaries(names, values, max_size=4)
memories = st.lists(st.builds(IWorkingMemory, texts, metadata), min_size=1, max_size=4)
orders = st.permutations(NAMES).map(tuple)


def of(data: list[IWorkingMemory] | None = None, **fields: Any) -> IMemoryInput:
    return IMemoryInput("c", WORKING, data, **{"limit": None, **fields})


@pytest.fixture(
    params=[pytest.param((kind, colour), id=f"{kind}-{colour}") for kind in KINDS for colour in (SYNC, ASYNC)]
)
def backend(
    request: pytest.FixtureRequest, redis_url: str, database_url: str, tenant: str, tmp_path: Path
) -> Iterator[MemoryBackend]:
    kind, colour = request.param
    with closing(MemoryBackend(kind, colour, lambda bare: bare, tenant, redis_url, database_url, tmp_path)) as found:
        yield found


def opened(backend: MemoryBackend, names: tuple[str, ...]) -> WorkingMemoryManager:
    """Return one more manager of the backend, in these wrappers."""
    backend.stack = lambda bare: stacked(bare, names)
    return backend.open()


@given(orders, memories, metadata, st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_everything_comes_back_through_any_stack(
    backend: MemoryBackend,
    order: tuple[str, ...],
    data: list[IWorkingMemory],
    of_record: dict[str, Any],
    draw: st.DataObject,
) -> None:
    """Through all wrappers in any order; what some of them have written is read when the others have joined them."""
    before = tuple(name for name in order if draw.draw(st.booleans(), name))
    with closing(opened(backend, before)) as writer, closing(opened(backend, order)) as manager:
        for one in (writer, manager):
            one.delete(of())
            one.store(of(data, metadata=of_record))
            found = manager.retrieve(of())
            assert [memory.working_memory for memory in found] == [memory.working_memory for memory in data]
            expected = [{**of_record, **memory.metadata} for memory in data]
            assert [memory.metadata for memory in found] == expected
            field = next(iter(data[0].metadata), None)
            if field is not None:
                chosen = manager.retrieve(of(filters={field: data[0].metadata[field]}))
                assert chosen[0].working_memory == data[0].working_memory
        manager.update(of([IWorkingMemory("changed")], memory_id="1"))
        assert manager.retrieve(of(memory_id="1"))[0].working_memory == "changed"
        (earlier,) = manager.get_memory_history("c")
        assert earlier["memories"] == [memory.working_memory for memory in data]
        assert earlier["metadata"] == of_record
        manager.restore_version("c", timestamp=earlier["timestamp"])
        assert [memory.working_memory for memory in manager.retrieve(of())] == earlier["memories"]
    backend.opened.clear()


@given(orders, texts)
@settings(max_examples=60, deadline=None)
def test_a_reader_without_a_wrapper_is_told_so(order: tuple[str, ...], text: str) -> None:
    """What a wrapper has made of a text is never taken for a text."""
    inner = InMemoryManager()
    stacked(inner, order).store(of([IWorkingMemory(text)]))
    for absent in MARKING:
        reader = stacked(inner, tuple(name for name in order if name != absent))
        marks = inner.storage["memory:WORKING_MEMORY:c"]["data"].get("marks", [])
        was_used = any(mark.startswith("aes") == (absent == "Encrypted") for mark in marks)
        if was_used:
            with pytest.raises(WrapperMissingError):
                reader.retrieve(of())
        else:
            assert reader.retrieve(of())[0].working_memory == text


def test_records_of_the_original_managers_are_read_through_every_stack() -> None:
    body = {
        "data": {"working_memory": "### USER CONTEXT:\nlikes tea " * 10},
        "metadata": {"user_type": "guest"},
        "created_at": "2025-03-01T12:00:00.000001",
        "last_update": "2025-03-02T12:00:00",
    }
    for order in permutations(NAMES):
        inner = InMemoryManager()
        inner.store_of_records.put([("memory:WORKING_MEMORY:c", json.dumps(body).encode(), None)])
        manager = stacked(inner, order)
        (memory,) = manager.retrieve(of())
        assert memory.working_memory == body["data"]["working_memory"]  # type: ignore[index]
        assert (memory.metadata, memory.created_at) == (body["metadata"], body["created_at"])
        manager.update(of([IWorkingMemory("changed")]))
        (memory,) = manager.retrieve(of())
        assert (memory.working_memory, memory.created_at) == ("changed", body["created_at"])
        assert manager.get_memory_history("c")[0]["content"] == body["data"]["working_memory"]  # type: ignore[index]


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]], ids=["outwards", "inwards"])
@pytest.mark.parametrize("is_regular", [True, False])
def test_a_megabyte_comes_back(backend: MemoryBackend, order: tuple[str, ...], is_regular: bool) -> None:
    noise = random.Random(3).choices(range(32, 127), k=2**20)
    text = "to walk " * 2**17 if is_regular else "".join(map(chr, noise))
    with closing(opened(backend, order)) as manager:
        for _ in range(2):
            manager.store(of([IWorkingMemory(text)]))
            assert manager.retrieve(of())[0].working_memory == text
        assert manager.get_memory_history("c")[0]["content"] == text
        manager.delete(of())
    backend.opened.clear()


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]], ids=["outwards", "inwards"])
def test_a_batch_goes_through_a_stack(backend: MemoryBackend, order: tuple[str, ...]) -> None:
    with closing(opened(backend, order)) as manager:
        requests = [IMemoryInput(f"c{n}", WORKING, [IWorkingMemory(f"text {n} " * 20)]) for n in range(50)]
        for _ in range(2):
            manager.store_many(requests)
            found = manager.retrieve_many([IMemoryInput(f"c{n}", WORKING) for n in range(50)])
            assert [one[0].working_memory for one in found] == [f"text {n} " * 20 for n in range(50)]
        assert [version["content"] for version in manager.get_memory_history("c7")] == ["text 7 " * 20]
        assert manager.storage_stats()["total_entries"] == 50
        assert manager.cleanup(f"{backend.prefix}:*", everything=True) == 50
    backend.opened.clear()


def test_a_stack_is_closed_with_what_is_in_it(backend: MemoryBackend) -> None:
    """And opens again, as every manager does."""
    if backend.kind == MEMORY:
        assert isinstance(backend.open_bare(), WorkingMemoryManager | AsyncWorkingMemoryManager)
    manager = opened(backend, NAMES)
    manager.store(of([IWorkingMemory("text")]))
    manager.close()
    assert manager.retrieve(of())[0].working_memory == "text"
    manager.delete(of())


class Shouting(InMemoryManager):
    def store(self, input: IMemoryInput) -> str:  # noqa: A002 - its name
        return super().store(replace(input, metadata={"loud": True}))


class AsyncShouting(AsyncInMemoryManager):
    async def retrieve(self, input: IMemoryInput) -> list[IWorkingMemory]:  # noqa: A002 - its name
        return await super().retrieve(input)


class ShoutingVersions(Versioned):
    def store(self, input: IMemoryInput) -> str:  # noqa: A002 - its name
        return super().store(replace(input, metadata={"loud": True}))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_that_no_wrapper_would_call_is_refused(name: str) -> None:
    for manager in (Shouting(), AsyncShouting(), ShoutingVersions(InMemoryManager())):
        with pytest.raises(ConfigurationError, match=r"manager: \w+ overrides (store|retrieve)\(\)"):
            stacked(manager, (name,))


class OwnStore:
    """What a user needs to keep records where no manager of ours does."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def get(self, names: Sequence[str]) -> list[bytes | None]:
        return [self._kept.get(name) for name in names]

    def put(self, entries: Sequence[tuple[str, bytes, object]]) -> None:
        self._kept |= {name: body for name, body, _ in entries}

    def exchange(self, name: str, old: bytes | None, new: bytes | None, _: object) -> bool:
        if self._kept.get(name) != old:
            return False
        self.remove([name])
        if new is not None:
            self._kept[name] = new
        return True

    def remove(self, names: Sequence[str]) -> int:
        return sum(self._kept.pop(name, None) is not None for name in names)

    def scan(self, _: str, __: Any) -> Batch:
        return Batch(list(self._kept), None)

    def facts(self) -> dict[str, Any]:
        return {}


def test_a_manager_of_a_user_s_own_is_wrapped_once_it_has_a_store_of_records() -> None:
    class FourMethods:
        def store(self, _: IMemoryInput) -> str:
            raise AssertionError

        retrieve = update = delete = store

    class Own(WorkingMemoryManager):
        store_of_records = OwnStore()

    assert isinstance(FourMethods(), IMemoryManager)
    with pytest.raises(InvalidInputError, match="derive it from WorkingMemoryManager and give it a store_of_records"):
        Versioned(FourMethods())  # type: ignore[arg-type]
    manager = stacked(Own(), NAMES)
    for text in ("before", "now"):
        manager.store(IMemoryInput("c", WORKING, [IWorkingMemory(text)]))
    assert [memory.working_memory for memory in manager.retrieve(IMemoryInput("c", WORKING))] == ["now"]
    assert [version["content"] for version in manager.get_memory_history("c")] == ["before"]
    assert manager.cleanup("memory:*", everything=True) == 1


def test_what_is_called_or_outermost_may_be_overridden() -> None:
    closed = []

    class Closing(InMemoryManager):
        def close(self) -> None:
            closed.append(self)

    manager = ShoutingVersions(Closing())
    manager.store(of([IWorkingMemory("text")]))
    assert manager.retrieve(of())[0].metadata == {"loud": True}
    manager.close()
    assert len(closed) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_wrapper_and_its_twin_offer_the_same(name: str) -> None:
    makers = [getattr(working_memory, prefix + name) for prefix in ("", "Async")]
    assert len({str(inspect.signature(maker)) for maker in makers}) == 1
    blocking, asynchronous = (
        {method: str(inspect.signature(made)) for method, made in inspect.getmembers(maker, inspect.isfunction)}
        for maker in makers
    )
    own = {method for method in asynchronous if not method.startswith("_")} - {"aclose"}
    assert own | {"close"} | {f"{method}_async" for method in ("store", "retrieve", "update", "delete")} == {
        method for method in blocking if not method.startswith("_")
    }
    assert {blocking[method] for method in own} == {asynchronous[method] for method in own}


PAIRS = [(inner, outer) for inner in NAMES for outer in NAMES]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_any_two_wrappers_go_together_and_each_with_itself(
    redis_url: str, tenant: str, tmp_path: Path, pair: tuple[str, str]
) -> None:
    data = [
        IWorkingMemory("long " * 100, {"a": [1, None]}),
        IWorkingMemory("", {}),
        IWorkingMemory("\ud800 \x00 😀", {"user_type": "guest"}),
    ]
    request = of(data, metadata={"user_type": "premium", "deep": {"b": 2.5}})
    for kind in KINDS[:2]:
        made = MemoryBackend(kind, SYNC, lambda bare: stacked(bare, pair), tenant, redis_url, "", tmp_path)
        with closing(made) as backend:
            first, other = backend.open(), backend.open()
            first.store(request)
            before = other.retrieve(of())
            assert [memory.working_memory for memory in before] == [memory.working_memory for memory in data]
            whole = {"user_type": "premium", "deep": {"b": 2.5}}
            assert [memory.metadata for memory in before] == [whole | memory.metadata for memory in data]
            other.update(of([IWorkingMemory("changed " * 50)], memory_id="2"))
            found = first.retrieve(of())
            assert [memory.working_memory for memory in found][1] == "changed " * 50
            assert found[0].created_at == before[0].created_at
            assert len(first.get_memory_history("c", WORKING)) == ("Versioned" in pair)
            first.store_many([request, request])
            assert [memory.working_memory for memory in other.retrieve(of())] == [
                memory.working_memory for memory in data
            ]
            other.delete(of())
            assert first.retrieve(of()) == []
