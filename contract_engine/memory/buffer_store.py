"""The buffer: a session's last messages, word for word, in one Redis list."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from contract_engine.memory._effects import Flow
from contract_engine.memory._runtime import AsyncRuntime, Runtime, breaker_for
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import ContentionError, StoreUnavailableError
from contract_engine.memory.exchange import whole_from
from contract_engine.memory.intake import Intake
from contract_engine.memory.keys import check_limit, check_session_id
from contract_engine.memory.models import Message, SessionState
from contract_engine.memory.sessions import Sessions
from contract_engine.memory.token_counter import TokenCounter


class BufferFlows:
    """What a buffer store offers, as flows."""

    def __init__(self, sessions: Sessions, intake: Intake) -> None:
        self._sessions = sessions
        self._intake = intake

    def _load(self, session_id: object) -> Flow[SessionState]:
        return (yield from self._sessions.load(check_session_id(session_id))).state

    def add_message(self, session_id: str, message: object) -> Flow[bool]:
        check_session_id(session_id)
        outgoing = self._intake.message(message)
        try:
            yield from self._sessions.append(session_id, (outgoing,))
        except (StoreUnavailableError, ContentionError):
            return False
        return True

    def get_messages(self, session_id: str, limit: object) -> Flow[list[Message]]:
        wanted = None if limit is None else check_limit(limit)
        messages = (yield from self._load(session_id)).messages
        return messages if wanted is None else messages[whole_from(messages, len(messages) - wanted) :]

    def get_buffer_info(self, session_id: str) -> Flow[dict[str, Any]]:
        return (yield from self._load(session_id)).buffer_info()

    def should_trigger_summary(self, session_id: str, threshold: int) -> Flow[bool]:
        return (yield from self._load(session_id)).buffer_tokens >= threshold

    def clear_buffer(self, session_id: str) -> Flow[bool]:
        check_session_id(session_id)
        try:
            yield from self._sessions.cache.forget_buffer(session_id)
        except StoreUnavailableError:
            return False
        return True


def _standalone(
    config: MemoryConfig | None, max_messages: int | None, max_tokens: int | None
) -> tuple[MemoryConfig, BufferFlows]:
    """Return the settings and flows of a buffer that has no log behind it."""
    config = MemoryConfig.from_env() if config is None else config
    given = {"max_buffer_messages": max_messages, "max_buffer_tokens": max_tokens}
    changes = {name: value for name, value in given.items() if value is not None}
    config = replace(config, database_url=None, limits=config.limits.with_changes(changes))
    counter = TokenCounter(config.model)
    intake = Intake(counter, max_message_bytes=config.max_message_bytes)
    return config, BufferFlows(Sessions(config, counter, log=None, at_cap="drop"), intake)


class BufferStore:
    """A bounded list of messages per session, at most ``max_messages`` (30) and ``max_tokens`` (4,000).

    Standing alone it is what its name says, a buffer: at a cap the oldest messages go one by one, a call before its
    results, and Redis is all there is behind it. That is no context for a model; ``to_messages`` completes what is cut
    so. The one inside a :class:`MemoryManager` shares the manager's log and folding, so there nothing is dropped
    and reads are answered while Redis is away. Every read raises :class:`RedisUnavailableError` where nobody can
    answer; an outage is never shown as an empty session.
    """

    def __init__(
        self,
        max_messages: int | None = None,
        max_tokens: int | None = None,
        *,
        config: MemoryConfig | None = None,
    ) -> None:
        is_shared = config is None
        config, self._flows = _standalone(config, max_messages, max_tokens)
        self._runtime = Runtime(config, breaker=breaker_for(config, is_shared=is_shared))
        self._owns_runtime = True

    @classmethod
    def within(cls, runtime: Runtime, flows: BufferFlows) -> Self:
        """Return the buffer of a manager, which keeps and closes the runtime."""
        store = cls.__new__(cls)
        store._flows, store._runtime, store._owns_runtime = flows, runtime, False
        return store

    def add_message(self, session_id: str, message: Message) -> bool:
        """Append one message in one round trip; False only if it was not acknowledged."""
        return self._runtime.run(self._flows.add_message(session_id, message))

    def get_messages(self, session_id: str, limit: int | None = None) -> list[Message]:
        """Return the newest messages, at most ``limit`` (all by default), oldest first.

        A call and its results come together or not at all. Only of a newest exchange that has more than ``limit``
        messages the end comes alone, and then not from a result on, unless nothing else is in it.
        """
        return self._runtime.run(self._flows.get_messages(session_id, limit))

    def get_buffer_info(self, session_id: str) -> dict[str, Any]:
        """Return message_count, total_tokens, last_updated (unix s), ttl_remaining (s), max_messages, max_tokens."""
        return self._runtime.run(self._flows.get_buffer_info(session_id))

    def should_trigger_summary(self, session_id: str, threshold: int = 3000) -> bool:
        """Whether the buffer holds ``threshold`` tokens or more."""
        return self._runtime.run(self._flows.should_trigger_summary(session_id, threshold))

    def clear_buffer(self, session_id: str) -> bool:
        """Delete the list from Redis; inside a manager it is a copy and comes back from the log at the next read."""
        return self._runtime.run(self._flows.clear_buffer(session_id))

    def close(self) -> None:
        """Close what this store opened itself."""
        if self._owns_runtime:
            self._runtime.close()


class AsyncBufferStore:
    """:class:`BufferStore` for asyncio."""

    def __init__(
        self,
        max_messages: int | None = None,
        max_tokens: int | None = None,
        *,
        config: MemoryConfig | None = None,
    ) -> None:
        is_shared = config is None
        config, self._flows = _standalone(config, max_messages, max_tokens)
        self._runtime = AsyncRuntime(config, breaker=breaker_for(config, is_shared=is_shared))
        self._owns_runtime = True

    @classmethod
    def within(cls, runtime: AsyncRuntime, flows: BufferFlows) -> Self:
        """Return the buffer of a manager, which keeps and closes the runtime."""
        store = cls.__new__(cls)
        store._flows, store._runtime, store._owns_runtime = flows, runtime, False
        return store

    async def add_message(self, session_id: str, message: Message) -> bool:
        """See :meth:`BufferStore.add_message`."""
        return await self._runtime.run(self._flows.add_message(session_id, message))

    async def get_messages(self, session_id: str, limit: int | None = None) -> list[Message]:
        """See :meth:`BufferStore.get_messages`."""
        return await self._runtime.run(self._flows.get_messages(session_id, limit))

    async def get_buffer_info(self, session_id: str) -> dict[str, Any]:
        """See :meth:`BufferStore.get_buffer_info`."""
        return await self._runtime.run(self._flows.get_buffer_info(session_id))

    async def should_trigger_summary(self, session_id: str, threshold: int = 3000) -> bool:
        """See :meth:`BufferStore.should_trigger_summary`."""
        return await self._runtime.run(self._flows.should_trigger_summary(session_id, threshold))

    async def clear_buffer(self, session_id: str) -> bool:
        """See :meth:`BufferStore.clear_buffer`."""
        return await self._runtime.run(self._flows.clear_buffer(session_id))

    async def aclose(self) -> None:
        """Close what this store opened itself."""
        if self._owns_runtime:
            await self._runtime.close()
