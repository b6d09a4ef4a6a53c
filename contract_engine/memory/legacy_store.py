"""The older session store: a table with one row per session, read and appended to without losing anything.

For programs that still keep their sessions there, and for moving out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contract_engine.memory._legacy_flows import LegacyFlows
from contract_engine.memory._legacy_table import Outline
from contract_engine.memory._runtime import AsyncRuntime, Runtime, breaker_for, database_breaker_for
from contract_engine.memory.closing import AsyncClosing, Closing
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.models import Message
from contract_engine.memory.swisper_context import SwisperContext

DEFAULT_TABLE = "swisper_sessions"
BREAKER = "legacy postgres"
"""Its name in a log file, where that of the new store may speak too."""


def _config(database_url: str, timeout_seconds: float) -> MemoryConfig:
    return MemoryConfig(database_url=database_url, database_timeout_seconds=timeout_seconds)


class LegacySwisperStore(Closing):
    """Sessions in a table of one row each, in the shape of the original: the whole conversation is one JSONB list.

    Every write is one statement that appends where the row is, so any number of writers lose nothing; a session begins
    with its first message. Appending costs what the whole history weighs, for PostgreSQL writes the list anew: this is
    for moving out of such a table. A message comes back equal, also one with NUL or lone surrogates, which ``jsonb``
    refuses (:mod:`contract_engine.memory.legacy_messages` says how). ``table``: a name, or schema and name with a dot.

    Opened by the first call. An unreachable database raises :class:`DatabaseUnavailableError`; nothing is ever answered
    in its stead.
    """

    def __init__(self, database_url: str, *, table: str = DEFAULT_TABLE, timeout_seconds: float = 5.0) -> None:
        config = _config(database_url, timeout_seconds)
        self._flows = LegacyFlows(table)
        breaker = database_breaker_for(config, BREAKER)
        self._runtime = Runtime(config, breaker=breaker_for(config, is_shared=False), database_breaker=breaker)

    def create_table(self) -> None:
        """Create the table as the original declares it, unless it is there."""
        self._runtime.run(self._flows.create_table())

    def add_chat_message(self, session_id: str, message: Message, *, message_id: str | None = None) -> bool:
        """Append one message in one statement; True where it was appended by this call.

        With a ``message_id`` the call may be repeated: the id is kept inside the message, and a message whose id is
        there already is not appended again (False). Without one an error leaves it open whether it was.
        """
        return self._runtime.run(self._flows.add_chat_message(session_id, message, message_id))

    def add_chat_messages(
        self, session_id: str, messages: Sequence[Message], *, message_ids: Sequence[str] | None = None
    ) -> bool:
        """Append messages in their order in one statement, all or none; False where there was nothing to append.

        With ``message_ids``, one for each, the call may be repeated: those that are there already are passed over.
        """
        return self._runtime.run(self._flows.add_chat_messages(session_id, messages, message_ids))

    def add_to_sessions(self, sessions: Mapping[str, Mapping[str, Message]]) -> list[str]:
        """Append to several sessions in one statement; answers those that have all their messages now.

        ``sessions``: for each its messages in order, by their ids; those that are there already are passed over. All is
        appended or nothing, but to a session whose history is no list: that is not in the answer.
        """
        return self._runtime.run(self._flows.add_to_sessions(sessions))

    def get_chat_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """Return the newest ``limit`` messages (all by default), oldest first; what is no object, as it stands."""
        return self._runtime.run(self._flows.get_chat_history(session_id, limit))

    def save_session(self, session_id: str, session: Mapping[str, Any]) -> bool:
        """Set any of title, short_summary, session_metadata (merged by its keys) and has_contract; always True."""
        return self._runtime.run(self._flows.save_session(session_id, session))

    def search_chat_history(
        self, query: str, *, session_id: str | None = None, limit: int = 20
    ) -> list[dict[str, Any]]:
        """Return messages whose content has this text, in any case: ``{"session_id", "place", "message"}``.

        Those of the session used last come first. Reads the whole table, or one session.
        """
        return self._runtime.run(self._flows.search_chat_history(query, session_id, limit))

    def get_all_sessions(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the columns of sessions but history and metadata, most recently used first."""
        return self._runtime.run(self._flows.get_all_sessions(limit))

    def save_session_context_atomic(self, session_id: str, context: Mapping[str, Any] | SwisperContext) -> bool:
        """Replace the session's context object in one statement, beginning the session if need be; always True.

        It is kept in session_metadata, under ``context``; other metadata stays.
        """
        return self._runtime.run(self._flows.save_session_context_atomic(session_id, context))

    def get_session_context_atomic(self, session_id: str) -> dict[str, Any] | None:
        """Return the session's context object, or None where none was saved."""
        return self._runtime.run(self._flows.get_session_context_atomic(session_id))

    def message_ids(self, session_id: str) -> list[str]:
        """Return the ids of the messages that were appended with one, in order."""
        return self._runtime.run(self._flows.message_ids(session_id))

    def has_message(self, session_id: str, message_id: str) -> bool:
        """Whether a message was appended under this id."""
        return self._runtime.run(self._flows.has_message(session_id, message_id))

    def outline(self, session_id: str) -> Outline | None:
        """Return what is known of a session before its messages are read; None where it has no row."""
        return self._runtime.run(self._flows.outline(session_id))

    def read_page(self, session_id: str, *, after: int, count: int) -> list[str]:
        """Return the elements behind the first ``after`` as JSON texts, at most ``count`` of them."""
        return self._runtime.run(self._flows.read_page(session_id, after, count))

    def put_messages(self, session_id: str, messages: Mapping[str, Message], *, in_log: Sequence[str]) -> bool:
        """Put messages, by their ids, among those of a session that have ids: in the order of ``in_log``, all the ids.

        One statement, which may be repeated. False where the session has a message without an id, and is as it was.
        """
        return self._runtime.run(self._flows.put_messages(session_id, messages, in_log))

    def session_names(self, *, after: str | None = None, most: int = 1000) -> list[str]:
        """Return session ids in the order of the database, behind ``after``; whatever they look like, also empty."""
        return self._runtime.run(self._flows.session_names(after, most))

    def totals(self) -> tuple[int, int]:
        """Return how many sessions there are, and how many messages their rows claim to have."""
        return self._runtime.run(self._flows.totals())

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        self._runtime.close()


class AsyncLegacySwisperStore(AsyncClosing):
    """:class:`LegacySwisperStore` for asyncio."""

    def __init__(self, database_url: str, *, table: str = DEFAULT_TABLE, timeout_seconds: float = 5.0) -> None:
        config = _config(database_url, timeout_seconds)
        self._flows = LegacyFlows(table)
        breaker = database_breaker_for(config, BREAKER)
        self._runtime = AsyncRuntime(config, breaker=breaker_for(config, is_shared=False), database_breaker=breaker)

    async def create_table(self) -> None:
        """See :meth:`LegacySwisperStore.create_table`."""
        await self._runtime.run(self._flows.create_table())

    async def add_chat_message(self, session_id: str, message: Message, *, message_id: str | None = None) -> bool:
        """See :meth:`LegacySwisperStore.add_chat_message`."""
        return await self._runtime.run(self._flows.add_chat_message(session_id, message, message_id))

    async def add_chat_messages(
        self, session_id: str, messages: Sequence[Message], *, message_ids: Sequence[str] | None = None
    ) -> bool:
        """See :meth:`LegacySwisperStore.add_chat_messages`."""
        return await self._runtime.run(self._flows.add_chat_messages(session_id, messages, message_ids))

    async def add_to_sessions(self, sessions: Mapping[str, Mapping[str, Message]]) -> list[str]:
        """See :meth:`LegacySwisperStore.add_to_sessions`."""
        return await self._runtime.run(self._flows.add_to_sessions(sessions))

    async def get_chat_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """See :meth:`LegacySwisperStore.get_chat_history`."""
        return await self._runtime.run(self._flows.get_chat_history(session_id, limit))

    async def save_session(self, session_id: str, session: Mapping[str, Any]) -> bool:
        """See :meth:`LegacySwisperStore.save_session`."""
        return await self._runtime.run(self._flows.save_session(session_id, session))

    async def search_chat_history(
        self, query: str, *, session_id: str | None = None, limit: int = 20
    ) -> list[dict[str, Any]]:
        """See :meth:`LegacySwisperStore.search_chat_history`."""
        return await self._runtime.run(self._flows.search_chat_history(query, session_id, limit))

    async def get_all_sessions(self, limit: int = 100) -> list[dict[str, Any]]:
        """See :meth:`LegacySwisperStore.get_all_sessions`."""
        return await self._runtime.run(self._flows.get_all_sessions(limit))

    async def save_session_context_atomic(self, session_id: str, context: Mapping[str, Any] | SwisperContext) -> bool:
        """See :meth:`LegacySwisperStore.save_session_context_atomic`."""
        return await self._runtime.run(self._flows.save_session_context_atomic(session_id, context))

    async def get_session_context_atomic(self, session_id: str) -> dict[str, Any] | None:
        """See :meth:`LegacySwisperStore.get_session_context_atomic`."""
        return await self._runtime.run(self._flows.get_session_context_atomic(session_id))

    async def message_ids(self, session_id: str) -> list[str]:
        """See :meth:`LegacySwisperStore.message_ids`."""
        return await self._runtime.run(self._flows.message_ids(session_id))

    async def has_message(self, session_id: str, message_id: str) -> bool:
        """See :meth:`LegacySwisperStore.has_message`."""
        return await self._runtime.run(self._flows.has_message(session_id, message_id))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._runtime.close()
