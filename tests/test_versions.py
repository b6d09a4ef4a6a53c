"""Versioned: what a record was before, for every process, exactly once."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from contract_engine.memory.errors import ConfigurationError, InvalidInputError
from contract_engine.working_memory import (
    AsyncInMemoryManager,
    ConversationMemoryType,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
    WorkingMemoryManager,
)
from contract_engine.working_memory.compression import Compressed
from contract_engine.working_memory.layers import run
from contract_engine.working_memory.records import Item, Record, RecordKey
from contract_engine.working_memory.redis_memory_manager import RedisWorkingMemoryManager
from contract_engine.working_memory.versions import AsyncVersioned, Versioned

WORKING = ConversationMemoryType.WORKING_MEMORY


def of(*texts: str, **fields: Any) -> IMemoryInput:
    return IMemoryInput("c", WORKING, [IWorkingMemory(text) for text in texts] or None, **fields)


@pytest.fixture(params=["memory", "redis"])
def inner(request: pytest.FixtureRequest, redis_url: str, tenant: str) -> Iterator[WorkingMemoryManager]:
    if request.param == "memory":
        yield InMemoryManager()
        return
    with RedisWorkingMemoryManager(redis_url, prefix=tenant, timeout_seconds=30) as manager:
        yield manager
        manager.delete(of())


def contents(manager: WorkingMemoryManager) -> list[str]:
    return [version["content"] for version in manager.get_memory_history("c")]


def test_earlier_contents_are_kept_oldest_first(inner: WorkingMemoryManager) -> None:
    manager = Versioned(inner, keep=3)
    assert contents(manager) == []
    manager.store(of("0", metadata={"n": 0}))
    assert contents(manager) == []
    for number in range(1, 6):
        manager.store(of(str(number), "beside", metadata={"n": number}))
    assert contents(manager) == ["2", "3", "4"]
    assert manager.get_memory_history("c")[-1]["metadata"] == {"n": 4}
    assert manager.get_memory_history("c")[-1]["memories"] == ["4", "beside"]
    assert [memory.working_memory for memory in manager.retrieve(of())] == ["5", "beside"]


def test_an_update_and_the_deletion_of_one_memory_keep_what_was(inner: WorkingMemoryManager) -> None:
    manager = Versioned(inner)
    manager.store(of("one", "two"))
    manager.update(of("ONE", memory_id="1"))
    manager.delete(of(memory_id="2"))
    assert [version["memories"] for version in manager.get_memory_history("c")] == [["one", "two"], ["ONE", "two"]]
    manager.update(of("x", memory_id="not there"))
    assert len(contents(manager)) == 2


def test_a_batch_keeps_what_was(inner: WorkingMemoryManager) -> None:
    manager = Versioned(inner)
    manager.store_many([of("one"), of("two"), of("three")])
    assert contents(manager) == ["one", "two"]


@pytest.mark.parametrize(("inside", "outside"), [(3, 10), (10, 3)])
def test_two_around_one_manager_keep_each_version_once(inner: WorkingMemoryManager, inside: int, outside: int) -> None:
    manager = Versioned(Compressed(Versioned(inner, keep=inside), min_chars=0), keep=outside)
    for text in "abcde":
        manager.store(of(text, "beside"))
    assert contents(manager) == ["b", "c", "d"]
    manager.restore_version("c", timestamp=manager.get_memory_history("c")[0]["timestamp"])
    manager.update(of("f", memory_id="1"))
    assert contents(manager) == ["d", "e", "b"]
    assert [memory.working_memory for memory in manager.retrieve(of())] == ["f", "beside"]


@pytest.mark.parametrize("index", range(3))
def test_each_version_of_a_batch_can_be_restored(inner: WorkingMemoryManager, index: int) -> None:
    manager = Versioned(inner)
    manager.store_many([of(text) for text in "abcd"])  # all at one time
    history = manager.get_memory_history("c")
    stamps = [version["timestamp"] for version in history]
    assert stamps == sorted(set(stamps))
    manager.restore_version("c", timestamp=stamps[index])
    assert manager.retrieve(of())[0].working_memory == "abc"[index]
    assert contents(manager) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("step", [0, -1, -3600])
def test_a_clock_that_stands_or_goes_back_names_no_version_twice(step: int) -> None:
    seconds = itertools.count(1_700_000_000, step)
    manager = Versioned(InMemoryManager(wall_clock=lambda: next(seconds)), keep=3)
    named: dict[str, str] = {}
    for number in range(20):
        manager.store(of(str(number)))
        for version in manager.get_memory_history("c"):
            assert named.setdefault(version["timestamp"], version["content"]) == version["content"]
    assert len(named) == 19  # none had the name of one that is gone
    wanted = manager.get_memory_history("c")[1]
    manager.restore_version("c", timestamp=wanted["timestamp"])
    assert manager.retrieve(of())[0].working_memory == wanted["content"]


def test_times_that_others_wrote_name_versions_too() -> None:
    inner = InMemoryManager()
    manager = Versioned(inner)
    last, noon = "9999-12-31T23:59:59.999999", "2025-03-02T12:00:00"
    times = (last, last, noon, f"{noon}+00:00", "", "yesterday", last, "")
    for number, last_update in enumerate(times):
        record = Record((Item(str(number), "1"),), {}, "2025-03-01T12:00:00", last_update)
        run(manager.layer.write([(RecordKey.under("memory", WORKING, "c"), record)]))
    for version in manager.get_memory_history("c"):
        manager.restore_version("c", timestamp=version["timestamp"])
        assert manager.retrieve(of())[0].working_memory == version["content"]


def test_deleting_the_record_deletes_its_history(inner: WorkingMemoryManager) -> None:
    manager = Versioned(inner)
    manager.store(of("one"))
    manager.store(of("two"))
    manager.delete(of())
    assert contents(manager) == []
    manager.store(of("three"))
    manager.store(of("four"))
    manager.delete(of(memory_id="1"))  # the last memory
    assert contents(manager) == []
    assert manager.retrieve(of()) == []


def test_a_version_is_restored_and_what_was_there_becomes_one(inner: WorkingMemoryManager) -> None:
    manager = Versioned(inner)
    for text in ("one", "two", "three"):
        manager.store(of(text, metadata={"is": text}))
    timestamp = manager.get_memory_history("c")[0]["timestamp"]
    manager.restore_version("c", timestamp=timestamp)
    (memory,) = manager.retrieve(of())
    assert (memory.working_memory, memory.metadata) == ("one", {"is": "one"})
    assert contents(manager) == ["one", "two", "three"]
    with pytest.raises(InvalidInputError, match="timestamp"):
        manager.restore_version("c", timestamp="2020-01-01")
    assert contents(manager) == ["one", "two", "three"]


def test_what_was_written_without_the_wrapper_becomes_a_version(inner: WorkingMemoryManager) -> None:
    inner.store(of("plain"))
    manager = Versioned(inner)
    manager.store(of("with"))
    assert contents(manager) == ["plain"]
    assert [memory.working_memory for memory in inner.retrieve(of())] == ["with"]


def test_eight_threads_leave_every_version(inner: WorkingMemoryManager) -> None:
    manager = Versioned(inner, keep=1000)

    def work(thread: int) -> None:
        for number in range(15):
            if number % 2:
                manager.store(of(f"{thread}-{number}"))
            else:
                manager.update(of(f"{thread}-{number}"))

    manager.store(of("first"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    (last,) = manager.retrieve(of())
    found = [*contents(manager), last.working_memory]
    assert len(found) == 8 * 15 + 1
    assert sorted(found) == sorted(["first", *(f"{thread}-{number}" for thread in range(8) for number in range(15))])
    for thread in range(8):  # and each in the order in which its thread wrote
        mine = [text for text in found if text.startswith(f"{thread}-")]
        assert mine == [f"{thread}-{number}" for number in range(15)]


async def test_sixty_four_tasks_leave_every_version() -> None:
    manager = AsyncVersioned(AsyncInMemoryManager(), keep=100)
    await asyncio.gather(*(manager.store(of(str(number))) for number in range(64)))
    (last,) = await manager.retrieve(of())
    found = [version["content"] for version in await manager.get_memory_history("c")]
    assert sorted([*found, last.working_memory], key=int) == [str(number) for number in range(64)]


READER = """
import sys
from contract_engine.working_memory.redis_memory_manager import RedisWorkingMemoryManager
from contract_engine.working_memory.versions import Versioned
url, prefix = sys.argv[1:]
with Versioned(RedisWorkingMemoryManager(url, prefix=prefix, timeout_seconds=30)) as manager:
    history = manager.get_memory_history("c")
    print([version["content"] for version in history])
    manager.restore_version("c", timestamp=history[0]["timestamp"])
"""


def test_another_process_sees_and_restores_them(redis_url: str, tenant: str) -> None:
    with RedisWorkingMemoryManager(redis_url, prefix=tenant, timeout_seconds=30) as inner:
        manager = Versioned(inner)
        for text in ("one", "two", "three"):
            manager.store(of(text))
        command = [sys.executable, "-W", "error", "-c", READER, redis_url, tenant]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, timeout=60)
        assert done.stdout == "['one', 'two']\n", done.stderr
        assert manager.retrieve(of())[0].working_memory == "one"
        manager.delete(of())


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, 1001])
def test_how_many_is_checked(keep: Any) -> None:
    with pytest.raises(ConfigurationError, match="keep"):
        Versioned(InMemoryManager(), keep=keep)
