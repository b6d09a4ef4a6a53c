"""The facade: what an orchestrator calls on every turn."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from contract_engine.memory._manager_flows import ManagerFlows
from contract_engine.memory._runtime import AsyncRuntime, Runtime, breaker_for, database_breaker_for
from contract_engine.memory.buffer_store import AsyncBufferStore, BufferStore
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.config import MemoryConfig, SessionLimits, check_settings
from contract_engine.memory.models import Message, Receipt
from contract_engine.memory.session_store import AsyncPostgresSessionStore, PostgresSessionStore
from contract_engine.memory.summarizers import ExtractiveSummarizer
from contract_engine.memory.summary_store import AsyncSummaryStore, SummaryStore
from contract_engine.memory.swisper_context import SwisperContext
from contract_engine.memory.token_counter import TokenCounter

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801  # used as a decorator, like cached_property
    """A property that is made at its first use, by one thread: ``functools.cached_property`` may make it twice."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: _Manager, owner: type) -> T: ...
    def __get__(self, instance: _Manager | None, owner: type) -> Self | T:
        if instance is None:
            return self
        with instance._making:
            if self._name not in instance.__dict__:
                instance.__dict__[self._name] = self._make(instance)
        made: T = instance.__dict__[self._name]
        return made


class _Manager:
    """What both managers are built from; nothing is read or opened before the first call."""

    def __init__(
        self,
        summary_trigger_tokens: int | None = None,
        max_buffer_tokens: int | None = None,
        *,
        max_buffer_messages: int | None = None,
        config: MemoryConfig | None = None,
        breaker: CircuitBreaker | None = None,
        **settings: Any,
    ) -> None:
        given = {
            "summary_trigger_tokens": summary_trigger_tokens,
            "max_buffer_tokens": max_buffer_tokens,
            "max_buffer_messages": max_buffer_messages,
        }
        self._making = threading.RLock()
        _managers.add(self)
        self._limit_changes = {name: value for name, value in given.items() if value is not None}
        self._given_config = config
        self._settings = settings
        self._breaker = breaker
        if config is not None or settings:
            _ = self.config  # what is wrong with it is said here and not at the first call
        else:
            SessionLimits().with_changes(self._limit_changes)

    @once
    def config(self) -> MemoryConfig:
        """The settings in force: those given, else those of the environment at the first call."""
        if self._given_config is not None:
            check_settings(self._settings)
            config = replace(self._given_config, **self._settings)
        else:
            config = MemoryConfig.from_env(**self._settings)
        return (
            replace(config, limits=config.limits.with_changes(self._limit_changes)) if self._limit_changes else config
        )

    @once
    def circuit_breaker(self) -> CircuitBreaker:
        """What guards Redis; a manager that takes everything from the environment uses ``redis_circuit_breaker``."""
        if self._breaker is not None:
            return self._breaker
        return breaker_for(self.config, is_shared=self._given_config is None and not self._settings)

    @once
    def database_breaker(self) -> CircuitBreaker:
        """What guards PostgreSQL; every manager has its own."""
        return database_breaker_for(self.config)

    @once
    def _flows(self) -> ManagerFlows:
        return ManagerFlows(self.config, self.circuit_breaker, self.database_breaker)

    @property
    def token_counter(self) -> TokenCounter:
        """What counts this manager's tokens."""
        return self._flows.counter

    @property
    def summary_trigger_tokens(self) -> int:
        """From how many tokens a fold is due, where a session has no setting of its own."""
        return self.config.limits.summary_trigger_tokens


class MemoryManager(_Manager):
    """Session memory in one object: context = summary of messages 1..W + messages W+1..N, word for word.

    Without arguments everything comes from the environment (see :meth:`MemoryConfig.from_env`), which is read at the
    first call. Settings of :class:`MemoryConfig` may be given by name, or a whole ``config``. One manager serves any
    number of threads and sessions; ``close()`` it, or use it in a ``with`` block.

    With a database every acknowledged message is committed there, and with Redis away everything goes on from it,
    marked ``degraded``. Without one (ephemeral mode) Redis alone holds the session. Bad input raises a ``ValueError``
    that names the field, before anything is written. Where nobody can answer, reads raise
    :class:`StoreUnavailableError`.
    """

    @once
    def _runtime(self) -> Runtime:
        return Runtime(
            self.config,
            breaker=self.circuit_breaker,
            database_breaker=self.database_breaker,
            summarizer=ExtractiveSummarizer(readable=False),
        )

    @once
    def buffer_store(self) -> BufferStore:
        """The buffer layer of this manager."""
        return BufferStore.within(self._runtime, self._flows.buffer)

    @once
    def summary_store(self) -> SummaryStore:
        """The summary layer of this manager."""
        return SummaryStore.within(self._runtime, self._flows.summary)

    @once
    def session_store(self) -> PostgresSessionStore:
        """The log of this manager; its calls raise :class:`ConfigurationError` where no database is configured."""
        return PostgresSessionStore.within(self._runtime, self._flows.store)

    def add_message(self, session_id: str, message: Message) -> bool:
        """Append one message; False only if nothing was acknowledged.

        One statement where a database is configured, one round trip to Redis. A fold that becomes due runs in the
        background; one that a hard cap asks for runs first, in milliseconds.
        """
        return self._runtime.run(self._flows.add_message(session_id, message))

    def append(self, session_id: str, message: Message, *, message_id: str | None = None) -> Receipt:
        """Append one message and return its receipt; raises :class:`StoreUnavailableError` where it cannot be kept.

        With a ``message_id`` the call may be repeated: the message is stored once, and the same id with another message
        raises :class:`MessageConflictError`. In ephemeral mode ids are remembered while the message is in the buffer.
        """
        return self._runtime.run(self._flows.append(session_id, message, message_id))

    def add_messages(self, session_id: str, messages: Sequence[Message]) -> list[Receipt]:
        """Append several messages in one statement and one script, and return their receipts in order.

        With a database all or none of them; in ephemeral mode too, unless they are more than a whole buffer.
        """
        return self._runtime.run(self._flows.add_messages(session_id, messages))

    def add_and_get_context(
        self, session_id: str, message: Message, *, message_id: str | None = None
    ) -> dict[str, Any]:
        """Append one message and return the context that follows: a whole turn in one round trip to Redis."""
        return self._runtime.run(self._flows.add_and_get_context(session_id, message, message_id))

    def get_context(self, session_id: str) -> dict[str, Any]:
        """Return the session's context, in one round trip.

        ``buffer_messages``: the messages W+1..N as they were added; ``current_summary``: the text for 1..W or None;
        ``buffer_info``: see :meth:`BufferStore.get_buffer_info`; ``total_tokens`` of both; ``message_count`` of the
        buffer; ``summary_tokens``, ``summary_version``, ``watermark`` (W), ``last_seq`` (N); ``source``: ``redis`` or
        ``postgres``; ``degraded``: Redis is away; ``complete``: summary and messages meet (in ephemeral mode Redis can
        lose a summary). A session that was never written is empty. The caps of the session hold for every context.
        """
        return self._runtime.run(self._flows.get_context(session_id))

    def save_context(self, session_id: str, context: SwisperContext | Mapping[str, Any]) -> bool:
        """Keep the orchestrator's own object beside the conversation; False only if it was not acknowledged."""
        return self._runtime.run(self._flows.save_context(session_id, context))

    def load_context(self, session_id: str) -> SwisperContext | None:
        """Return the object of :meth:`save_context`, or None where none was saved."""
        return self._runtime.run(self._flows.load_context(session_id))

    def set_session_config(self, session_id: str, config: Mapping[str, Any]) -> None:
        """Set any of the three limits of one session, for every process and for good.

        Keys: ``summary_trigger_tokens``, ``max_buffer_tokens``, ``max_buffer_messages``; others are refused. What
        exceeds the new caps is folded before the next context is given.
        """
        self._runtime.run(self._flows.set_session_config(session_id, config))

    def get_session_config(self, session_id: str) -> dict[str, int]:
        """Return the three limits in force for one session."""
        return self._runtime.run(self._flows.get_session_config(session_id))

    def get_memory_stats(self, session_id: str) -> dict[str, Any]:
        """Return buffer, summary, redis_memory (None while Redis is away), session_config, is_redis_available."""
        return self._runtime.run(self._flows.get_memory_stats(session_id))

    def clear_session_memory(self, session_id: str) -> bool:
        """Delete the session from every table and from Redis; False if a server was away: then call again."""
        return self._runtime.run(self._flows.clear_session_memory(session_id))

    def unlogged_sessions(self) -> list[str]:
        """Name the sessions with messages that wait in Redis to be logged, by looking through all of its keys."""
        return self._runtime.run(self._flows.unlogged_sessions())

    def drain(self, session_id: str) -> int:
        """Log what waits in Redis since PostgreSQL was away, in order and once; answers how many messages.

        Nobody has to call this: every append and read of the session does it. For sessions nobody touches any more.
        """
        return self._runtime.run(self._flows.drain(session_id))

    def is_available(self) -> bool:
        """Whether at least one server answers, so that calls can be served."""
        return self._runtime.run(self._flows.is_available())

    def health(self) -> dict[str, Any]:
        """Return status (ok, degraded, down), mode (durable, ephemeral) with what it means, and each server's state."""
        return self._runtime.run(self._flows.health())

    def wait_for_folds(self, timeout_seconds: float | None = None) -> bool:
        """Wait until no background fold is running; False if the time was up before."""
        return self._runtime.background.join(timeout_seconds)

    def close(self) -> None:
        """Finish background folds and close every connection; a later call opens them again."""
        if "_runtime" in self.__dict__:
            self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()


class AsyncMemoryManager(_Manager):
    """:class:`MemoryManager` for asyncio; it belongs to the event loop that first uses it."""

    @once
    def _runtime(self) -> AsyncRuntime:
        return AsyncRuntime(
            self.config,
            breaker=self.circuit_breaker,
            database_breaker=self.database_breaker,
            summarizer=ExtractiveSummarizer(readable=False),
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
        self, session_id: str, message: Message, *, message_id: str | None = None
    ) -> dict[str, Any]:
        """See :meth:`MemoryManager.add_and_get_context`."""
        return await self._runtime.run(self._flows.add_and_get_context(session_id, message, message_id))

    async def get_context(self, session_id: str) -> dict[str, Any]:
        """See :meth:`MemoryManager.get_context`."""
        return await self._runtime.run(self._flows.get_context(session_id))

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

    async def health(self) -> dict[str, Any]:
        """See :meth:`MemoryManager.health`."""
        return await self._runtime.run(self._flows.health())

    async def wait_for_folds(self, timeout_seconds: float | None = None) -> bool:
        """See :meth:`MemoryManager.wait_for_folds`."""
        return await self._runtime.background.join(timeout_seconds)

    async def aclose(self) -> None:
        """See :meth:`MemoryManager.close`."""
        if "_runtime" in self.__dict__:
            await self._runtime.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        await self.aclose()


_managers: weakref.WeakSet[_Manager] = weakref.WeakSet()


def _after_fork() -> None:
    # Another thread of the parent may have held the lock; it does not exist in the child.
    for manager in _managers:
        manager._making = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
