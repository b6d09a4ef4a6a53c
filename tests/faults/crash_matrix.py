"""Faults between a flow and the runtime that performs its effects.

Everything on either side of that line is what runs in production, and the servers are real. An effect is named by its
number, so that a fault can be put at the first effect of an operation, at its second, and so on until the operation
passes without meeting it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from contract_engine.memory import (
    AsyncMemoryManager,
    DatabaseUnavailableError,
    MemoryManager,
    RedisUnavailableError,
    StoreUnavailableError,
)
from contract_engine.memory._effects import Effect, LegacyCall, Pause, Query, RedisCall, Scan, Spawn, Transaction
from contract_engine.memory._log import APPEND_MANY, APPEND_ONE
from contract_engine.memory._log_outbox import APPEND_MANY_RELAYED, APPEND_ONE_RELAYED
from contract_engine.memory._scripts import APPEND_UNLOGGED, ASSIGN
from contract_engine.memory.errors import LegacyUnavailableError, MemoryServiceError

REDIS, DATABASE, LEGACY = "redis", "postgres", "legacy"

ERROR_BEFORE = "error before"
"""The effect fails without having been performed."""
ERROR_AFTER = "error after"
"""The effect is performed, and its acknowledgement lost."""
OUTAGE = "outage"
"""The effect fails without having been performed, and so does all that follows on the same server."""
HANG = "hang"
"""The server is stopped before it gets the effect, and goes on when the caller has given up."""
KILL_BEFORE, KILL_AFTER = "kill before", "kill after"
"""The process dies with the effect not yet begun, or just answered."""
CANCEL_BEFORE, CANCEL_IN_FLIGHT, CANCEL_AFTER = "cancel before", "cancel in flight", "cancel after"
"""The task is cancelled with the effect not yet begun, sent and not answered, or just answered."""

CANCELLATIONS = (CANCEL_BEFORE, CANCEL_IN_FLIGHT, CANCEL_AFTER)
NOT_PERFORMED = (ERROR_BEFORE, OUTAGE, KILL_BEFORE, CANCEL_BEFORE)
"""The faults after which the effect they were put at has not been seen by any server."""

Hang = Callable[[str], AbstractContextManager[None]]
"""Stops a server and lets it go on."""


@dataclass(frozen=True)
class Fault:
    """What happens, and at which effect, counted from 1."""

    kind: str
    number: int


def server_of(effect: Effect) -> str | None:
    """Return the server an effect needs, None where it needs none and cannot fail."""
    if isinstance(effect, RedisCall | Scan):
        return REDIS
    if isinstance(effect, LegacyCall):
        return LEGACY
    return DATABASE if isinstance(effect, Query | Transaction) else None


def name_of(effect: Effect) -> str:
    """Return what an effect does, for people."""
    if isinstance(effect, RedisCall):
        return "+".join(item.script.name if item.script else str(item.words[0]) for item in effect.commands)
    return effect.statement.name if isinstance(effect, Query) else type(effect).__name__


def stores_messages(effect: Effect) -> bool:
    """Whether this effect is one that acknowledges messages."""
    if isinstance(effect, Query):
        return effect.statement in (APPEND_ONE, APPEND_MANY, APPEND_ONE_RELAYED, APPEND_MANY_RELAYED)
    return isinstance(effect, RedisCall) and any(item.script in (ASSIGN, APPEND_UNLOGGED) for item in effect.commands)


def outage_of(server: str) -> StoreUnavailableError:
    """Return the error of a server that cannot be reached."""
    if server == LEGACY:
        return LegacyUnavailableError("injected", is_tried=True)
    return RedisUnavailableError("injected") if server == REDIS else DatabaseUnavailableError("injected")


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


class _Interposed(ABC):
    """What both colours share. ``away``: a server that cannot be reached all along; its effects are not counted."""

    _caller: Callable[[], object]
    """Tells the thread or the task at hand: what a flow that is spawned runs in is another one."""

    def __init__(
        self,
        manager: MemoryManager | AsyncMemoryManager,
        fault: Fault | None = None,
        *,
        away: str | None = None,
        hang: Hang | None = None,
    ) -> None:
        self.fault = fault
        self.away = away
        self.effects: list[Effect] = []
        self.fired: Effect | None = None
        self._hang = hang
        self._lock = threading.Lock()
        self._home = self._caller()
        self._runtime: Any = manager._runtime
        self._original = self._runtime._perform
        self._runtime._perform = self._perform  # type: ignore[method-assign]  # the point of it

    def remove(self) -> None:
        """Let everything pass from here on."""
        self._runtime._perform = self._original

    @abstractmethod
    def _perform(self, effect: Any) -> Any:
        """Perform an effect, with the fault that is due."""

    def begun(self) -> list[Effect]:
        """Return the effects that a server has seen, or may have."""
        is_seen = self.fault is None or self.fault.kind not in NOT_PERFORMED
        return [effect for effect in self.effects if is_seen or effect is not self.fired]

    def lost(self) -> frozenset[str]:
        """Return the servers that failed, once or all along."""
        fired = None if self.fired is None else server_of(self.fired)
        return frozenset(server for server in (self.away, fired) if server is not None)

    def admit(self, effect: Effect, server: str) -> str | None:
        """Count an effect; answers the kind of fault that is due with it. Raises where its server is away."""
        with self._lock:
            if server == self.away:
                raise outage_of(server)
            self.effects.append(effect)
            if self.fault is None or self.fired is not None or len(self.effects) != self.fault.number:
                return None
            self.fired = effect
            if self.fault.kind == KILL_BEFORE:
                _die()
            if self.fault.kind == OUTAGE:
                self.away = server
            if self.fault.kind in (ERROR_BEFORE, OUTAGE):
                raise outage_of(server)
            return self.fault.kind

    def hung(self, server: str) -> AbstractContextManager[None]:
        assert self._hang is not None, "nobody told how to stop the server"
        return self._hang(server)


class Interposition(_Interposed):
    """Stands between the flows of a manager and its runtime.

    A flow that is spawned is run to its end before the one that spawned it goes on, so that a number always means the
    same effect. Pauses are left out: nobody else is at work who could be waited for.
    """

    _caller = staticmethod(threading.get_ident)

    def _perform(self, effect: Any) -> Any:
        server = server_of(effect)
        if isinstance(effect, Pause):
            return None
        if server is None or (server == DATABASE and self._runtime._database is None):
            answer = self._original(effect)
            if isinstance(effect, Spawn) and self._caller() == self._home:
                self._runtime.background.join()
            return answer
        kind = self.admit(effect, server)
        if kind == HANG:
            with self.hung(server):
                return self._original(effect)
        if kind == ERROR_AFTER:
            with suppress(MemoryServiceError):  # that answer is lost too
                self._original(effect)
            raise outage_of(server)
        answer = self._original(effect)
        if kind == KILL_AFTER:
            _die()
        return answer


class AsyncInterposition(_Interposed):
    """:class:`Interposition` for asyncio, made in the task that calls; here a task may be cancelled."""

    _caller = staticmethod(asyncio.current_task)

    async def _perform(self, effect: Any) -> Any:
        server = server_of(effect)
        if isinstance(effect, Pause):
            return None
        if server is None or (server == DATABASE and self._runtime._database is None):
            answer = await self._original(effect)
            if isinstance(effect, Spawn) and self._caller() is self._home:
                await self._runtime.background.join()
            return answer
        kind = self.admit(effect, server)
        if kind == HANG:
            with self.hung(server):
                return await self._original(effect)
        if kind == ERROR_AFTER:
            with suppress(MemoryServiceError):  # that answer is lost too
                await self._original(effect)
            raise outage_of(server)
        if kind == CANCEL_BEFORE:
            await _be_cancelled()
        if kind == CANCEL_IN_FLIGHT:
            task = asyncio.current_task()
            assert task is not None
            # Comes at the first wait of the driver: the request is on its way then.
            asyncio.get_running_loop().call_soon(task.cancel)
        answer = await self._original(effect)
        if kind in (CANCEL_IN_FLIGHT, CANCEL_AFTER):
            await _be_cancelled()
        return answer


async def _be_cancelled() -> NoReturn:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    raise AssertionError("not cancelled")
