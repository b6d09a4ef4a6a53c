"""The log: every message as a row in PostgreSQL, and the orchestrator's context object beside it.

This is the truth. Redis only ever holds a copy of its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from contract_engine.memory._effects import Flow
from contract_engine.memory._runtime import AsyncRuntime, Runtime, breaker_for
from contract_engine.memory.closing import AsyncClosing, Closing
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import InvalidInputError, StoreUnavailableError
from contract_engine.memory.intake import Intake
from contract_engine.memory.keys import check_limit, check_session_id
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.models import Message, Receipt
from contract_engine.memory.serializer import decode_value, encode_value
from contract_engine.memory.swisper_context import SwisperContext
from contract_engine.memory.token_counter import TokenCounter


class StoreFlows:
    """What :class:`PostgresSessionStore` offers, as flows: arguments are checked here."""

    def __init__(self, config: MemoryConfig, intake: Intake) -> None:
        self.config = config
        self._log = LogFlows(config)
        self._intake = intake
        self._max_bytes = config.max_message_bytes

    def append(self, session_id: str, message: object, message_id: str | None) -> Flow[Receipt]:
        check_session_id(session_id)
        outgoing = self._intake.message(message, message_id)
        placed = yield from self._log.append(session_id, (outgoing,))
        return Receipt(placed.seqs[0], outgoing.message_id, True, False)

    def add_chat_message(self, session_id: str, message: object) -> Flow[bool]:
        try:
            yield from self.append(session_id, message, None)
        except StoreUnavailableError:
            return False
        return True

    def get_chat_history(self, session_id: str, limit: object) -> Flow[list[Message]]:
        check_session_id(session_id)
        return (yield from self._log.history(session_id, None if limit is None else check_limit(limit)))

    def save_session_context_atomic(self, session_id: str, context: object) -> Flow[bool]:
        check_session_id(session_id)
        fields = context.to_dict() if isinstance(context, SwisperContext) else context
        if not isinstance(fields, Mapping):
            raise InvalidInputError("context", f"expected a dict, got {type(context).__name__}")
        body = encode_value(dict(fields), field="context", max_bytes=self._max_bytes)
        try:
            yield from self._log.save_context(session_id, body)
        except StoreUnavailableError:
            return False
        return True

    def get_session_context_atomic(self, session_id: str) -> Flow[dict[str, Any] | None]:
        check_session_id(session_id)
        body = yield from self._log.load_context(session_id)
        return None if body is None else dict(decode_value(body))

    def clear_session(self, session_id: str) -> Flow[bool]:
        check_session_id(session_id)
        return (yield from self._log.erase(session_id))

    def get_all_sessions(self, limit: object) -> Flow[list[dict[str, Any]]]:
        return (yield from self._log.list_sessions(check_limit(limit)))


def _standalone(config: MemoryConfig | None) -> tuple[MemoryConfig, StoreFlows]:
    config = MemoryConfig.from_env() if config is None else config
    intake = Intake(TokenCounter(config.model), max_message_bytes=config.max_message_bytes)
    return config, StoreFlows(config, intake)


class PostgresSessionStore(Closing):
    """Every message of every session, in order, for as long as it is not cleared.

    Opened by the first call; constructed without arguments it reads the environment. An unreachable database raises
    :class:`DatabaseUnavailableError`, but for ``add_chat_message`` and ``save_session_context_atomic``, which answer
    False then: nothing was acknowledged.

    A message added here directly is in the log but not in the buffer of a :class:`MemoryManager`, which notices at its
    next append; to add to a managed session, use the manager.
    """

    def __init__(self, *, config: MemoryConfig | None = None) -> None:
        is_shared = config is None
        config, self._flows = _standalone(config)
        self._runtime = Runtime(config, breaker=breaker_for(config, is_shared=is_shared))
        self._owns_runtime = True

    @classmethod
    def within(cls, runtime: Runtime, flows: StoreFlows) -> Self:
        """Return the log of a manager, which keeps and closes the runtime."""
        store = cls.__new__(cls)
        store._flows, store._runtime, store._owns_runtime = flows, runtime, False
        return store

    @property
    def config(self) -> MemoryConfig:
        """The settings in force."""
        return self._flows.config

    def append(self, session_id: str, message: Message, *, message_id: str | None = None) -> Receipt:
        """Store one message and return its receipt; repeating a message id stores nothing twice."""
        return self._runtime.run(self._flows.append(session_id, message, message_id))

    def add_chat_message(self, session_id: str, message: Message) -> bool:
        """Store one message; False only if the database could not be reached."""
        return self._runtime.run(self._flows.add_chat_message(session_id, message))

    def get_chat_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """Return the newest ``limit`` messages (all by default), oldest first."""
        return self._runtime.run(self._flows.get_chat_history(session_id, limit))

    def save_session_context_atomic(self, session_id: str, context: Mapping[str, Any] | SwisperContext) -> bool:
        """Replace the session's context object in one statement; False only if the database could not be reached."""
        return self._runtime.run(self._flows.save_session_context_atomic(session_id, context))

    def get_session_context_atomic(self, session_id: str) -> dict[str, Any] | None:
        """Return the session's context object, or None where none was saved."""
        return self._runtime.run(self._flows.get_session_context_atomic(session_id))

    def clear_session(self, session_id: str) -> bool:
        """Delete every row of the session from every table, in one transaction; whether there was one."""
        return self._runtime.run(self._flows.clear_session(session_id))

    def get_all_sessions(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the sessions of this tenant with their counts and times, most recently used first."""
        return self._runtime.run(self._flows.get_all_sessions(limit))

    def close(self) -> None:
        """Close what this store opened itself."""
        if self._owns_runtime:
            self._runtime.close()


class AsyncPostgresSessionStore(AsyncClosing):
    """:class:`PostgresSessionStore` for asyncio."""

    def __init__(self, *, config: MemoryConfig | None = None) -> None:
        is_shared = config is None
        config, self._flows = _standalone(config)
        self._runtime = AsyncRuntime(config, breaker=breaker_for(config, is_shared=is_shared))
        self._owns_runtime = True

    @classmethod
    def within(cls, runtime: AsyncRuntime, flows: StoreFlows) -> Self:
        """Return the log of a manager, which keeps and closes the runtime."""
        store = cls.__new__(cls)
        store._flows, store._runtime, store._owns_runtime = flows, runtime, False
        return store

    @property
    def config(self) -> MemoryConfig:
        """The settings in force."""
        return self._flows.config

    async def append(self, session_id: str, message: Message, *, message_id: str | None = None) -> Receipt:
        """See :meth:`PostgresSessionStore.append`."""
        return await self._runtime.run(self._flows.append(session_id, message, message_id))

    async def add_chat_message(self, session_id: str, message: Message) -> bool:
        """See :meth:`PostgresSessionStore.add_chat_message`."""
        return await self._runtime.run(self._flows.add_chat_message(session_id, message))

    async def get_chat_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """See :meth:`PostgresSessionStore.get_chat_history`."""
        return await self._runtime.run(self._flows.get_chat_history(session_id, limit))

    async def save_session_context_atomic(self, session_id: str, context: Mapping[str, Any] | SwisperContext) -> bool:
        """See :meth:`PostgresSessionStore.save_session_context_atomic`."""
        return await self._runtime.run(self._flows.save_session_context_atomic(session_id, context))

    async def get_session_context_atomic(self, session_id: str) -> dict[str, Any] | None:
        """See :meth:`PostgresSessionStore.get_session_context_atomic`."""
        return await self._runtime.run(self._flows.get_session_context_atomic(session_id))

    async def clear_session(self, session_id: str) -> bool:
        """See :meth:`PostgresSessionStore.clear_session`."""
        return await self._runtime.run(self._flows.clear_session(session_id))

    async def get_all_sessions(self, limit: int = 100) -> list[dict[str, Any]]:
        """See :meth:`PostgresSessionStore.get_all_sessions`."""
        return await self._runtime.run(self._flows.get_all_sessions(limit))

    async def aclose(self) -> None:
        """Close what this store opened itself."""
        if self._owns_runtime:
            await self._runtime.close()
