"""The facade for asyncio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from contract_engine.memory._manager_base import ManagerBase, once
from contract_engine.memory._runtime import AsyncRuntime
from contract_engine.memory.buffer_store import AsyncBufferStore
from contract_engine.memory.closing import AsyncClosing
from contract_engine.memory.models import Message, Receipt
from contract_engine.memory.retention import AsyncRetention
from contract_engine.memory.session_store import AsyncPostgresSessionStore
from contract_engine.memory.summary_store import AsyncSummaryStore
from contract_engine.memory.swisper_context import SwisperContext

if TYPE_CHECKING:
    from contract_engine.memory.health import HealthReport


class AsyncMemoryManager(ManagerBase, AsyncClosing):
    """:class:`MemoryManager` for asyncio; it belongs to the event loop that first uses it."""

    @once
    def _runtime(self) -> AsyncRuntime:
        return AsyncRuntime(
            self.config,
            breaker=self.circuit_breaker,
            database_breaker=self.database_breaker,
            facts_writer=self._facts_writer,
        )

    @once
    def buffer_store(self) -> AsyncBufferStore:
        """The buffer layer of this manager."""
        return AsyncBufferStore.within(self._runtime, self._flows.buffer)

    @once
    def summary_store(self) -> AsyncSummaryStore:
        """The summary layer of this manager."""
        return AsyncSummaryStore.within(self._runtime, self._flows.summary)

    @once
    def session_store(self) -> AsyncPostgresSessionStore:
        """The log of this manager; its calls raise :class:`ConfigurationError` where no database is configured."""
        return AsyncPostgresSessionStore.within(self._runtime, self._flows.store)

    @once
    def retention(self) -> AsyncRetention:
        """What an operator does to sessions: purge old ones, erase some with proof, export and import them."""
        return AsyncRetention.within(self._runtime, self._flows.retention)

    async def add_message(self, session_id: str, message: Message) -> bool:
        """See :meth:`MemoryManager.add_message`."""
        return await self._runtime.run(self._flows.add_message(session_id, message))

    async def append(self, session_id: str, message: Message, *, message_id: str | None = None) -> Receipt:
        """See :meth:`MemoryManager.append`."""
        return await self._runtime.run(self._flows.append(session_id, message, message_id))

    async def add_messages(self, session_id: str, messages: Sequence[Message]) -> list[Receipt]:
        """See :meth:`MemoryManager.add_messages`."""
        return await self._runtime.run(self._flows.add_messages(session_id, messages))

    async def add_and_get_context(
        self,
        session_id: str,
        message: Message,
        *,
        message_id: str | None = None,
        query: str | None = None,
        recall_tokens: int = 400,
    ) -> dict[str, Any]:
        """See :meth:`MemoryManager.add_and_get_context`."""
        flow = self._flows.add_and_get_context(session_id, message, message_id, query, recall_tokens)
        return await self._runtime.run(flow)

    async def get_context(
        self, session_id: str, query: str | None = None, *, recall_tokens: int = 400
    ) -> dict[str, Any]:
        """See :meth:`MemoryManager.get_context`."""
        return await self._runtime.run(self._flows.get_context(session_id, query, recall_tokens))

    async def search_messages(self, session_id: str, query: str, limit: int = 10) -> list[dict[str, Any]]:
        """See :meth:`MemoryManager.search_messages`."""
        return await self._runtime.run(self._flows.search_messages(session_id, query, limit))

    async def save_context(self, session_id: str, context: SwisperContext | Mapping[str, Any]) -> bool:
        """See :meth:`MemoryManager.save_context`."""
        return await self._runtime.run(self._flows.save_context(session_id, context))

    async def load_context(self, session_id: str) -> SwisperContext | None:
        """See :meth:`MemoryManager.load_context`."""
        return await self._runtime.run(self._flows.load_context(session_id))

    async def set_session_config(self, session_id: str, config: Mapping[str, Any]) -> None:
        """See :meth:`MemoryManager.set_session_config`."""
        await self._runtime.run(self._flows.set_session_config(session_id, config))

    async def get_session_config(self, session_id: str) -> dict[str, int]:
        """See :meth:`MemoryManager.get_session_config`."""
        return await self._runtime.run(self._flows.get_session_config(session_id))

    async def pin(self, session_id: str, message_id: str) -> bool:
        """See :meth:`MemoryManager.pin`."""
        return await self._runtime.run(self._flows.pins.pin(session_id, message_id))

    async def unpin(self, session_id: str, message_id: str) -> bool:
        """See :meth:`MemoryManager.unpin`."""
        return await self._runtime.run(self._flows.pins.unpin(session_id, message_id))

    async def set_summary_instructions(self, session_id: str, text: str | None) -> None:
        """See :meth:`MemoryManager.set_summary_instructions`."""
        await self._runtime.run(self._flows.pins.set_summary_instructions(session_id, text))

    async def get_summary_instructions(self, session_id: str) -> str | None:
        """See :meth:`MemoryManager.get_summary_instructions`."""
        return await self._runtime.run(self._flows.pins.get_summary_instructions(session_id))

    async def get_memory_stats(self, session_id: str) -> dict[str, Any]:
        """See :meth:`MemoryManager.get_memory_stats`."""
        return await self._runtime.run(self._flows.get_memory_stats(session_id))

    async def clear_session_memory(self, session_id: str) -> bool:
        """See :meth:`MemoryManager.clear_session_memory`."""
        return await self._runtime.run(self._flows.clear_session_memory(session_id))

    async def unlogged_sessions(self) -> list[str]:
        """See :meth:`MemoryManager.unlogged_sessions`."""
        return await self._runtime.run(self._flows.unlogged_sessions())

    async def drain(self, session_id: str) -> int:
        """See :meth:`MemoryManager.drain`."""
        return await self._runtime.run(self._flows.drain(session_id))

    async def is_available(self) -> bool:
        """See :meth:`MemoryManager.is_available`."""
        return await self._runtime.run(self._flows.is_available())

    async def health(self) -> HealthReport:
        """See :meth:`MemoryManager.health`."""
        return await self._runtime.check(self._health)

    async def wait_for_folds(self, timeout_seconds: float | None = None) -> bool:
        """See :meth:`MemoryManager.wait_for_folds`."""
        return await self._runtime.background.join(timeout_seconds)

    async def aclose(self) -> None:
        """See :meth:`MemoryManager.close`."""
        if "_runtime" in self.__dict__:
            await self._runtime.close()
