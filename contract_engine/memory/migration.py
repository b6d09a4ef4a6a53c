"""Moving in beside a session store that a program already has: every message goes to both, and one of them is read.

A message is committed in the log together with a row of the outbox; that is what acknowledges it. A relay then gives it
to the legacy store, in order, and removes the row. So a legacy store that is away costs a backlog and nothing else, and
a process that dies leaves nothing half done that the next one does not finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from contract_engine.memory._migration_base import MigrationBase
from contract_engine.memory._runtime import AsyncRelayWorker, RelayWorker, await_legacy
from contract_engine.memory.async_manager import AsyncMemoryManager
from contract_engine.memory.closing import AsyncClosing, Closing
from contract_engine.memory.dual_writing import DualWriteStats
from contract_engine.memory.manager import MemoryManager
from contract_engine.memory.models import Message, Receipt
from contract_engine.memory.outbox import Backlog, WaitingSession
from contract_engine.memory.phases import Phase, PhaseSetting
from contract_engine.memory.relaying import RelaySettings
from contract_engine.memory.session_store import AsyncPostgresSessionStore, PostgresSessionStore

__all__ = [
    "AsyncEnhancedSessionStore",
    "Backlog",
    "DualWriteStats",
    "EnhancedSessionStore",
    "Phase",
    "PhaseSetting",
    "RelaySettings",
    "WaitingSession",
]


T = TypeVar("T")


class EnhancedSessionStore(MigrationBase[MemoryManager], Closing):
    """A session store that writes to a :class:`MemoryManager` and to a legacy store, and reads one of them.

    ``legacy_store`` is any object with ``add_chat_message(session_id, message)`` and ``get_chat_history(session_id)``;
    :class:`contract_engine.memory.legacy.Legacy` says what it may offer besides. It is called by several threads, and
    its deadlines are its own. Methods may be coroutines: they run on one event loop, in a thread of the library's.
    Without arguments a manager from the environment is used and its own log is the
    legacy store: then one write is both, there is nothing to relay, and phases have no effect.

    ``phase`` (with ``percentage`` where it is gradual) is what a tenant begins with; what is stored in the database
    counts from then on, for every process, within a second. ``shadow_rate`` is the share of legacy reads that are
    compared with the new store while gradual. An adapter relays from its first write on; one that only reads does not.
    ``is_relaying=False``: leave it to other processes to relay, or to ``contract-memory relay``.

    **Acknowledged** means committed in the log with its row of the outbox (or, while PostgreSQL is away, kept in Redis
    to be logged, and given its row then): such a message reaches both stores. One that is not acknowledged is in
    neither, though the legacy store could have taken it: what only one side has nobody could put in its place later.
    The legacy store gets it a moment later, from a thread beside; whatever reads through an adapter sees it at once.

    In ephemeral mode every call raises :class:`ConfigurationError`: nothing would hold what is still to be relayed.
    """

    _manager_type = MemoryManager
    _log_type = PostgresSessionStore
    _other = "AsyncEnhancedSessionStore"

    def _make_worker(self) -> None:
        self._worker = RelayWorker(self._relay_round, poll_seconds=self._relay_settings.poll_seconds)

    def _relay_round(self) -> bool:
        return self.memory_manager._runtime.run(self._flows.relay_once()).is_more

    def _wake(self) -> None:
        if self._is_relaying and self._flows.is_dual:
            self._worker.wake()

    def add_chat_message(self, session_id: str, message: Message, *, message_id: str | None = None) -> bool:
        """Write one message to both stores; False only if it was not acknowledged, and then it is in neither.

        One statement in PostgreSQL and one round trip to Redis; never waits for the legacy store. With a ``message_id``
        the call may be repeated.
        """
        flow = self._flows.add_chat_message(session_id, message, message_id)
        is_acknowledged = self.memory_manager._runtime.run(flow)
        self._wake()
        return is_acknowledged

    def append(self, session_id: str, message: Message, *, message_id: str | None = None) -> Receipt:
        """Write one message to both stores and return its receipt; raises where :meth:`add_chat_message` is False."""
        receipt = self.memory_manager._runtime.run(self._flows.append(session_id, message, message_id))
        self._wake()
        return receipt

    def get_chat_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """Return the newest ``limit`` messages (all by default), oldest first, from the store that the phase says.

        From the legacy store: what it holds and, behind that, what it is still to be given; each message once, as far
        as its end can be told from what is pending (see :class:`contract_engine.memory.relaying.Relay`). So whatever
        phase comes next, no read shows less than an earlier one, provided that what the legacy store had before the
        migration was imported. Raises :class:`StoreUnavailableError` where the store to be read or the database is
        away: an answer would lack what the outbox holds.
        """
        return self.memory_manager._runtime.run(self._flows.get_chat_history(session_id, limit))

    def get_phase(self) -> PhaseSetting:
        """Read the phase from the database; a tenant that has none begins with the one given to this adapter.

        Where the log is both stores nothing is stored, and without a stored one the answer is the one given.
        """
        return self.memory_manager._runtime.run(self._flows.read_phase())

    def set_phase(self, phase: Phase | str, percentage: float | None = None) -> PhaseSetting:
        """Change the phase for every process; the others follow within a second.

        ``percentage`` of the sessions (0 to 100, with phase gradual alone) are served by the new store: always the same
        ones, and a larger percentage keeps them. Forward and back are both safe at any time. Where the log is both
        stores nothing is changed, and the answer is that of :meth:`get_phase`.
        """
        return self.memory_manager._runtime.run(self._flows.set_phase(phase, percentage))

    def relay_once(self) -> int:
        """Relay what is due of some sessions, in this thread; answers how many messages. Nobody has to call this."""
        return self.memory_manager._runtime.run(self._flows.relay_once()).relayed

    def settle(self, timeout_seconds: float = 30.0) -> bool:
        """Relay until the legacy store has everything; False if the time was up before, or something is parked."""
        return self.memory_manager._runtime.run(self._flows.settle(timeout_seconds))

    def backlog(self) -> Backlog:
        """Return what the legacy store does not have yet: how many messages, and how long the oldest waits."""
        return self.memory_manager._runtime.run(self._flows.backlog())

    def await_legacy(self, make: Callable[[], Awaitable[T]]) -> T:
        """Await what ``make`` returns where a legacy store's coroutines run: ``store.await_legacy(legacy.aclose)``."""
        return await_legacy(make)

    def waiting_sessions(self, limit: int = 100) -> list[WaitingSession]:
        """Return the sessions of the backlog: parked ones first, then those that have failed most."""
        return self.memory_manager._runtime.run(self._flows.waiting_sessions(limit))

    def retry(self, session_id: str | None = None) -> list[str]:
        """Have sessions that are parked or put off (or one of them) tried again at once; answers which."""
        found = self.memory_manager._runtime.run(self._flows.retry(session_id))
        self._wake()
        return found

    def close(self) -> None:
        """Finish the relay under way and close what this adapter opened itself; what is left is relayed later."""
        self._worker.close()
        for one in self._owned:
            one.close()


class AsyncEnhancedSessionStore(MigrationBase[AsyncMemoryManager], AsyncClosing):
    """:class:`EnhancedSessionStore` for asyncio; a legacy store that blocks is called outside the event loop."""

    _manager_type = AsyncMemoryManager
    _log_type = AsyncPostgresSessionStore
    _other = "EnhancedSessionStore"

    def _make_worker(self) -> None:
        self._worker = AsyncRelayWorker(self._relay_round, poll_seconds=self._relay_settings.poll_seconds)

    async def _relay_round(self) -> bool:
        return (await self.memory_manager._runtime.run(self._flows.relay_once())).is_more

    def _woken(self, answer: T) -> T:
        if self._is_relaying and self._flows.is_dual:
            self._worker.wake()
        return answer

    async def add_chat_message(self, session_id: str, message: Message, *, message_id: str | None = None) -> bool:
        """See :meth:`EnhancedSessionStore.add_chat_message`."""
        flow = self._flows.add_chat_message(session_id, message, message_id)
        return self._woken(await self.memory_manager._runtime.run(flow))

    async def append(self, session_id: str, message: Message, *, message_id: str | None = None) -> Receipt:
        """See :meth:`EnhancedSessionStore.append`."""
        flow = self._flows.append(session_id, message, message_id)
        return self._woken(await self.memory_manager._runtime.run(flow))

    async def get_chat_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """See :meth:`EnhancedSessionStore.get_chat_history`."""
        return await self.memory_manager._runtime.run(self._flows.get_chat_history(session_id, limit))

    async def get_phase(self) -> PhaseSetting:
        """See :meth:`EnhancedSessionStore.get_phase`."""
        return await self.memory_manager._runtime.run(self._flows.read_phase())

    async def set_phase(self, phase: Phase | str, percentage: float | None = None) -> PhaseSetting:
        """See :meth:`EnhancedSessionStore.set_phase`."""
        return await self.memory_manager._runtime.run(self._flows.set_phase(phase, percentage))

    async def relay_once(self) -> int:
        """See :meth:`EnhancedSessionStore.relay_once`."""
        return (await self.memory_manager._runtime.run(self._flows.relay_once())).relayed

    async def settle(self, timeout_seconds: float = 30.0) -> bool:
        """See :meth:`EnhancedSessionStore.settle`."""
        return await self.memory_manager._runtime.run(self._flows.settle(timeout_seconds))

    async def backlog(self) -> Backlog:
        """See :meth:`EnhancedSessionStore.backlog`."""
        return await self.memory_manager._runtime.run(self._flows.backlog())

    async def await_legacy(self, make: Callable[[], Awaitable[T]]) -> T:
        """See :meth:`EnhancedSessionStore.await_legacy`: here that is the caller's own loop."""
        return await make()

    async def waiting_sessions(self, limit: int = 100) -> list[WaitingSession]:
        """See :meth:`EnhancedSessionStore.waiting_sessions`."""
        return await self.memory_manager._runtime.run(self._flows.waiting_sessions(limit))

    async def retry(self, session_id: str | None = None) -> list[str]:
        """See :meth:`EnhancedSessionStore.retry`."""
        found = await self.memory_manager._runtime.run(self._flows.retry(session_id))
        return self._woken(found)

    async def aclose(self) -> None:
        """See :meth:`EnhancedSessionStore.close`."""
        await self._worker.close()
        await asyncio.gather(*(one.aclose() for one in self._owned))
