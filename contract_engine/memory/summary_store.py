"""Summaries: what left the buffer, version after version."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Self

from contract_engine.memory._effects import Command, Flow, redis_call, summarize
from contract_engine.memory._runtime import AsyncRuntime, Runtime, breaker_for
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import (
    ContentionError,
    CorruptDataError,
    InvalidInputError,
    StoreUnavailableError,
)
from contract_engine.memory.folding import ATTEMPTS
from contract_engine.memory.keys import check_limit, check_session_id
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.serializer import decode_value, encode_value
from contract_engine.memory.session_cache import REDIS_TROUBLE
from contract_engine.memory.sessions import Sessions
from contract_engine.memory.summarizers import ExtractiveSummarizer, SummaryRequest
from contract_engine.memory.token_counter import TokenCounter

logger = logging.getLogger(__name__)


def _readable_entries(found: object, session_id: str) -> list[dict[str, Any]]:
    entries = []
    for item in found if isinstance(found, list) else ():
        try:
            entry = decode_value(item)
        except CorruptDataError:
            entry = None
        if isinstance(entry, dict) and "text" in entry:
            entries.append(entry)
        else:
            logger.warning("session %s: a summary in the history cannot be read; it is left out", session_id)
    return entries


class SummaryFlows:
    """What a summary store offers, as flows. ``log`` is None where Redis alone keeps the summaries."""

    def __init__(
        self, config: MemoryConfig, counter: TokenCounter, sessions: Sessions, *, log: LogFlows | None
    ) -> None:
        self._max_bytes = config.max_message_bytes
        self._counter = counter
        self._sessions = sessions
        self._log = log

    def add_summary(self, session_id: str, text: object, metadata: object) -> Flow[bool]:
        check_session_id(session_id)
        if not isinstance(text, str) or not text.strip():
            raise InvalidInputError("summary_text", "expected a text that is not empty")
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InvalidInputError("metadata", f"expected a dict, got {type(metadata).__name__}")
        if metadata is not None:
            metadata = dict(metadata)
            encode_value(metadata, field="metadata", max_bytes=self._max_bytes)
        try:
            yield from self._add(session_id, text, metadata)
        except (StoreUnavailableError, ContentionError):
            return False
        return True

    def _add(self, session_id: str, segment: str, metadata: Mapping[str, object] | None) -> Flow[None]:
        for _ in range(ATTEMPTS):
            state = yield from self._sessions.folding.read_truth(session_id)
            if state is None or not state.is_begun:  # nothing yet to hang the summary on
                yield from self._sessions.change_limits(session_id, {})
                continue
            text = f"{state.summary.text}\n{segment}" if state.summary.text else segment
            most = max(1, self._sessions.folding.summary_budget(state.watermark) - state.summary.pinned_tokens)
            if self._counter.count_tokens(text) > most:
                text = yield from summarize(
                    SummaryRequest(
                        previous=text,
                        messages=(),
                        max_tokens=most,
                        count_tokens=self._counter.count_tokens,
                        instructions=state.summary_instructions,
                    )
                )
            done = yield from self._sessions.folding.commit(
                session_id,
                state,
                last_seq=state.watermark,
                text=text,
                method="supplied",
                segment=segment,
                metadata=metadata,
            )
            if done is not None:
                return
        raise ContentionError(session_id, ATTEMPTS)

    def get_current_summary(self, session_id: str) -> Flow[str | None]:
        check_session_id(session_id)
        return (yield from self._sessions.load(session_id)).state.summary.text or None

    def get_summary_history(self, session_id: str, limit: object) -> Flow[list[dict[str, Any]]]:
        check_session_id(session_id)
        limit = check_limit(limit, least=1)
        if self._log is not None:
            return (yield from self._log.summary_history(session_id, limit))
        key = self._sessions.cache.keys(session_id).history
        (found,) = yield from redis_call(Command(("LRANGE", key, -limit, -1)))
        return _readable_entries(found, session_id)

    def get_summary_stats(self, session_id: str) -> Flow[dict[str, Any]]:
        check_session_id(session_id)
        keys = self._sessions.cache.keys(session_id)
        summary = (yield from self._sessions.load(session_id)).state.summary
        ttl: int | None = None
        try:
            ttl, length = yield from redis_call(Command(("TTL", keys.summary)), Command(("LLEN", keys.history)))
            count = length if isinstance(length, int) else 0
        except REDIS_TROUBLE:
            if self._log is None:
                raise
        if self._log is not None:
            count = yield from self._log.summary_count(session_id)
        return {
            "summary_count": count,
            "current_summary_length": len(summary.text),
            "redis_ttl": ttl if ttl is not None and ttl >= 0 else None,
            "last_updated": summary.at_ms / 1000 if summary.at_ms else None,
        }

    def clear_summaries(self, session_id: str) -> Flow[bool]:
        check_session_id(session_id)
        try:
            if self._log is not None:
                yield from self._log.clear_summaries(session_id)
                yield from self._sessions.distrust(session_id)
            else:
                yield from self._clear_alone(session_id)
            keys = self._sessions.cache.keys(session_id)
            yield from redis_call(Command(("DEL", keys.history)))
        except (StoreUnavailableError, ContentionError):
            return False
        return True

    def _clear_alone(self, session_id: str) -> Flow[None]:
        for _ in range(ATTEMPTS):
            state = yield from self._sessions.cache.read_alone(session_id)
            if state is None or state.summary_version == 0:
                return
            if not state.is_begun:
                yield from self._sessions.cache.configure(session_id, {})
                continue
            done = yield from self._sessions.folding.commit(
                session_id, state, last_seq=state.watermark, text="", method="cleared"
            )
            if done is not None:
                return
        raise ContentionError(session_id, ATTEMPTS)


def _standalone(config: MemoryConfig | None) -> tuple[MemoryConfig, SummaryFlows]:
    config = MemoryConfig.from_env() if config is None else config
    counter = TokenCounter(config.model)
    log = LogFlows(config) if config.is_durable else None
    return config, SummaryFlows(config, counter, Sessions(config, counter, log=log), log=log)


class SummaryStore:
    """The summary of each session, as versions that are added and never changed.

    The current summary is the whole of what is known of messages 1 to the watermark, within ``max_summary_tokens``
    (800): a text that is added joins it, and when the whole grows too long the built-in summarizer shortens it. Kept in
    PostgreSQL and cached in Redis; without a database in Redis alone, the last hundred versions. Reads raise
    :class:`StoreUnavailableError` where nobody can answer.
    """

    def __init__(self, *, config: MemoryConfig | None = None) -> None:
        is_shared = config is None
        config, self._flows = _standalone(config)
        self._runtime = Runtime(
            config, breaker=breaker_for(config, is_shared=is_shared), summarizer=ExtractiveSummarizer(readable=False)
        )
        self._owns_runtime = True

    @classmethod
    def within(cls, runtime: Runtime, flows: SummaryFlows) -> Self:
        """Return the summary store of a manager, which keeps and closes the runtime."""
        store = cls.__new__(cls)
        store._flows, store._runtime, store._owns_runtime = flows, runtime, False
        return store

    def add_summary(self, session_id: str, summary_text: str, metadata: Mapping[str, Any] | None = None) -> bool:
        """Add a text to the summary as its next version; False only if it was not acknowledged."""
        return self._runtime.run(self._flows.add_summary(session_id, summary_text, metadata))

    def get_current_summary(self, session_id: str) -> str | None:
        """Return the whole current summary, or None where there is none."""
        return self._runtime.run(self._flows.get_current_summary(session_id))

    def get_summary_history(self, session_id: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return the newest versions, oldest first, as dicts.

        ``text`` is what a caller added, or the whole summary where a fold wrote it; ``timestamp`` in unix seconds;
        ``metadata`` of the caller; besides ``version``, ``first_seq``, ``last_seq``, ``tokens``, ``method``.
        """
        return self._runtime.run(self._flows.get_summary_history(session_id, limit))

    def get_summary_stats(self, session_id: str) -> dict[str, Any]:
        """Return summary_count, current_summary_length (characters), redis_ttl (s), last_updated (unix s)."""
        return self._runtime.run(self._flows.get_summary_stats(session_id))

    def clear_summaries(self, session_id: str) -> bool:
        """Delete every version; what they covered stays covered, by an empty summary."""
        return self._runtime.run(self._flows.clear_summaries(session_id))

    def close(self) -> None:
        """Close what this store opened itself."""
        if self._owns_runtime:
            self._runtime.close()


class AsyncSummaryStore:
    """:class:`SummaryStore` for asyncio."""

    def __init__(self, *, config: MemoryConfig | None = None) -> None:
        is_shared = config is None
        config, self._flows = _standalone(config)
        self._runtime = AsyncRuntime(
            config, breaker=breaker_for(config, is_shared=is_shared), summarizer=ExtractiveSummarizer(readable=False)
        )
        self._owns_runtime = True

    @classmethod
    def within(cls, runtime: AsyncRuntime, flows: SummaryFlows) -> Self:
        """See :meth:`SummaryStore.within`."""
        store = cls.__new__(cls)
        store._flows, store._runtime, store._owns_runtime = flows, runtime, False
        return store

    async def add_summary(self, session_id: str, summary_text: str, metadata: Mapping[str, Any] | None = None) -> bool:
        """See :meth:`SummaryStore.add_summary`."""
        return await self._runtime.run(self._flows.add_summary(session_id, summary_text, metadata))

    async def get_current_summary(self, session_id: str) -> str | None:
        """See :meth:`SummaryStore.get_current_summary`."""
        return await self._runtime.run(self._flows.get_current_summary(session_id))

    async def get_summary_history(self, session_id: str, limit: int = 10) -> list[dict[str, Any]]:
        """See :meth:`SummaryStore.get_summary_history`."""
        return await self._runtime.run(self._flows.get_summary_history(session_id, limit))

    async def get_summary_stats(self, session_id: str) -> dict[str, Any]:
        """See :meth:`SummaryStore.get_summary_stats`."""
        return await self._runtime.run(self._flows.get_summary_stats(session_id))

    async def clear_summaries(self, session_id: str) -> bool:
        """See :meth:`SummaryStore.clear_summaries`."""
        return await self._runtime.run(self._flows.clear_summaries(session_id))

    async def aclose(self) -> None:
        """Close what this store opened itself."""
        if self._owns_runtime:
            await self._runtime.close()
