"""One contract for all working-memory managers: where they keep the records, in which colour, and in which wrappers.

A test gets a ``MemoryBackend`` and opens managers from it; those of asyncio are shown through the blocking interface,
on a loop of their own. What the backends are is said in one place, ``KINDS``, and what may be around a manager in
another, ``STACKS``: the whole suite runs over each of ``COMBINATIONS``.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from wrapper_fixtures import NAMES, stacked

from contract_engine.working_memory import (
    AsyncInMemoryManager,
    AsyncRedisWorkingMemoryManager,
    AsyncSQLMemoryManager,
    AsyncWorkingMemoryManager,
    ConversationMemoryType,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
    RedisWorkingMemoryManager,
    SQLMemoryManager,
    WorkingMemoryManager,
)
from contract_engine.working_memory.stores import AwaitedStore

SYNC, ASYNC = "sync", "async"
MEMORY, REDIS, SQLITE, POSTGRES = "memory", "redis", "sqlite", "postgres"
KINDS = (MEMORY, REDIS, SQLITE, POSTGRES)
PATIENCE_SECONDS = 30.0

Manager = WorkingMemoryManager | AsyncWorkingMemoryManager
Stack = Callable[[Any], Any]
"""Puts wrappers of the manager's own colour around it."""

STACKS: dict[str, Stack] = {
    "bare": lambda manager: manager,
    "stack": lambda manager: stacked(manager, NAMES),
    "inwards": lambda manager: stacked(manager, NAMES[::-1]),
    "sealed": lambda manager: stacked(manager, ("Encrypted",), Encrypted={"metadata": True}),
    **{name: partial(stacked, names=(name,)) for name in NAMES},
}
COMBINATIONS = [
    *((kind, colour, stack) for kind in KINDS for colour in (SYNC, ASYNC) for stack in ("bare", "stack")),
    # What wrappers do to a record is the same wherever it is kept, so the other stacks are tried where that is fast.
    *((MEMORY, SYNC, stack) for stack in STACKS if stack not in ("bare", "stack")),
    *((MEMORY, ASYNC, stack) for stack in (*NAMES, "sealed")),
    (REDIS, SYNC, "inwards"),
    (POSTGRES, SYNC, "sealed"),
]

WORKING = ConversationMemoryType.WORKING_MEMORY


class ManualClock:
    """Seconds that pass when a test says so; far enough from 0 that a time to live cannot be taken for a time."""

    def __init__(self, seconds: float = 1_800_000_000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


async def after_others(method: Callable[..., Any], *arguments: Any) -> Any:
    """Do what a store in memory is asked, and let others have their turn before and after, as any server would."""
    await asyncio.sleep(0)
    answer = method(*arguments)
    await asyncio.sleep(0)
    return answer


class WaitingInMemoryManager(AsyncInMemoryManager):
    """A manager in memory whose operations take turns: without a wait in them no two would ever meet."""

    @cached_property
    def store_of_records(self) -> AwaitedStore:
        return AwaitedStore(self._entries, after_others)


class BlockingView:
    """A manager of asyncio called without ``await``."""

    def __init__(self, target: AsyncWorkingMemoryManager, loop: asyncio.AbstractEventLoop) -> None:
        self.target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, "aclose" if name == "close" else name)
        if not inspect.iscoroutinefunction(value):
            return value
        return lambda *args, **kwargs: self._loop.run_until_complete(value(*args, **kwargs))

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("target", "_loop"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.target, name, value)


@dataclass
class MemoryBackend:
    """Opens managers of one kind and colour, in one stack, that share their records, and closes them in the end."""

    kind: str
    colour: str
    stack: Stack
    prefix: str
    redis_url: str
    database_url: str
    directory: Path
    clock: ManualClock = field(default_factory=ManualClock)
    opened: list[Any] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _shared: Any = None

    def open(self, **settings: Any) -> WorkingMemoryManager:
        """Open one more manager. Those in memory are one and the same, since they share nothing otherwise."""
        manager = self.stack(self.open_bare(**settings))
        if self.colour == ASYNC:
            manager = BlockingView(manager, self.loop)
        self.opened.append(manager)
        return cast("WorkingMemoryManager", manager)

    def open_bare(self, **settings: Any) -> Any:
        """Open a manager that is in no wrapper and not shown as a blocking one."""
        given = {"prefix": self.prefix} | settings
        is_sync = self.colour == SYNC
        if self.kind == MEMORY:
            if self._shared is None or settings:
                kind: type[Manager] = InMemoryManager if is_sync else WaitingInMemoryManager
                self._shared = cast("Any", kind)(clock=self.clock, wall_clock=self.clock, **given)
            return self._shared
        if self.kind == REDIS:
            kind = RedisWorkingMemoryManager if is_sync else AsyncRedisWorkingMemoryManager
            # A machine that others use may stand still for longer than the default.
            return cast("Any", kind)(self.redis_url, **({"timeout_seconds": 10.0, "wall_clock": self.clock} | given))
        kind = SQLMemoryManager if is_sync else AsyncSQLMemoryManager
        url = f"sqlite:///{self.directory / 'memory.db'}" if self.kind == SQLITE else self.database_url
        return cast("Any", kind)(url, **({"timeout_seconds": 20.0, "wall_clock": self.clock, "ttl": 43_200} | given))

    def run(self, answer: Any) -> Any:
        """Return what a method of a bare manager or store gave, awaited where it has to be."""
        return self.loop.run_until_complete(answer) if inspect.isawaitable(answer) else answer

    def gather(self, calls: list[Callable[[], Coroutine[Any, Any, Any]]]) -> None:
        """Run coroutines of asyncio managers at once."""

        async def all_of_them() -> None:
            await asyncio.gather(*[call() for call in calls])

        self.loop.run_until_complete(all_of_them())

    def plant(self, name: str, body: bytes) -> None:
        """Put bytes under a key, as another program would."""
        manager = self.open_bare()
        self.run(manager.store_of_records.put([(name, body, None)]))
        self.close_bare(manager)

    def bytes_of(self, name: str) -> bytes | None:
        """Return the bytes under a key."""
        manager = self.open_bare()
        (found,) = self.run(manager.store_of_records.get([name]))
        self.close_bare(manager)
        return cast("bytes | None", found)

    def expire(self, manager: WorkingMemoryManager, conversation_id: str, ttl_seconds: float) -> None:
        """Let a time to live pass; where the server has the clock, wait until it has."""
        self.clock.seconds += ttl_seconds
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.kind == REDIS and manager.retrieve(ask(conversation_id)):
            assert time.monotonic() < deadline, "Redis has not expired it"
            time.sleep(0.05)

    def close(self) -> None:
        """Close everything that was opened, and remove what was stored."""
        if self.kind != MEMORY:
            cleaner = self.open_bare()
            self.run(cleaner.cleanup(f"{self.prefix}:*", everything=True))
            self.close_bare(cleaner)
        for manager in self.opened:
            manager.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def close_bare(self, bare: Any) -> None:
        """Close what :meth:`open_bare` has opened."""
        self.run(bare.close() if self.colour == SYNC else bare.aclose())


def ask(conversation_id: str, memory_type: ConversationMemoryType = WORKING, **fields: Any) -> IMemoryInput:
    """Return a request about a conversation."""
    return IMemoryInput(conversation_id, memory_type, **fields)


def say(conversation_id: str, *texts: str, **fields: Any) -> IMemoryInput:
    """Return a request that brings texts."""
    return IMemoryInput(conversation_id, WORKING, [IWorkingMemory(text) for text in texts], **fields)


def texts_of(memories: list[IWorkingMemory]) -> list[str]:
    """Return the texts alone."""
    return [memory.working_memory for memory in memories]
