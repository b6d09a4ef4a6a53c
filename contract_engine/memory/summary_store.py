"""Summaries: what left the buffer, version after version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from contract_engine.memory._effects import Command, Flow, redis_call, summarize
from contract_engine.memory._runtime import AsyncRuntime, Runtime, breaker_for
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import (
    ContentionError,
    InvalidInputError,
    StoreUnavailableError,
)
from contract_engine.memory.folding import ATTEMPTS
from contract_engine.memory.keys import check_limit, check_session_id, check_version
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.models import CLEARED, SUPPLIED, Loaded, Origin
from contract_engine.memory.phrase_search import with_phrases
from contract_engine.memory.rebuilding import Rebuilding
from contract_engine.memory.refining import Progress
from contract_engine.memory.serializer import encode_value
from contract_engine.memory.session_cache import REDIS_TROUBLE
from contract_engine.memory.sessions import Sessions
from contract_engine.memory.summarizers import ReadableText, SummaryRequest
from contract_engine.memory.summary_entries import decoded_entries, stats_of
from contract_engine.memory.token_counter import TokenCounter

EVERY = 2**31 - 1
"""As many versions as there can be."""


class SummaryFlows:
    """What a summary store offers, as flows. ``log`` is None where Redis alone keeps the summaries."""

    def __init__(
        self, config: MemoryConfig, counter: TokenCounter, sessions: Sessions, *, log: LogFlows | None
    ) -> None:
        self._max_bytes = config.max_message_bytes
        self._counter = counter
        self._sessions = sessions
        self._log = log
        self._rebuilding = Rebuilding(counter, sessions, log=log)

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

    def add_summary_once(
        self, session_id: str, text: str, metadata: Mapping[str, Any], *, key: Mapping[str, Any]
    ) -> Flow[bool]:
        """Add a text unless a version has all of ``key`` in its metadata; raises where it was not acknowledged."""
        return self._add(session_id, text, metadata, key=key)

    def _has(self, session_id: str, key: Mapping[str, Any]) -> Flow[bool]:
        entries = yield from self.get_summary_history(session_id, EVERY)
        return any(isinstance(one["metadata"], dict) and key.items() <= one["metadata"].items() for one in entries)

    def _add(
        self,
        session_id: str,
        segment: str,
        metadata: Mapping[str, object] | None,
        *,
        key: Mapping[str, Any] | None = None,
    ) -> Flow[bool]:
        for _ in range(ATTEMPTS):
            state = yield from self._sessions.folding.read_truth(session_id)
            if state is None or not state.is_begun:  # nothing yet to hang the summary on
                yield from self._sessions.change_limits(session_id, {})
                continue
            # After the state was read: what is added behind our back from here on makes the commit fail.
            if key is not None and (yield from self._has(session_id, key)):
                return False
            text = f"{state.summary.text}\n{segment}" if state.summary.text else segment
            most = self._sessions.folding.text_budget(state)
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
                method=SUPPLIED,
                segment=segment,
                metadata=metadata,
            )
            if done is not None:
                return True
        raise ContentionError(session_id, ATTEMPTS)

    def get_current_summary(self, session_id: str, *, readable: bool = False) -> Flow[str | None]:
        check_session_id(session_id)
        text = (yield from self._sessions.load(session_id)).state.summary.text
        if text and readable:
            text = (yield from self.readable_texts(session_id, (text,)))[0].text
        return text or None

    def get_summary_history(
        self, session_id: str, limit: object, *, readable: bool = False
    ) -> Flow[list[dict[str, Any]]]:
        check_session_id(session_id)
        limit = check_limit(limit, least=1)
        if self._log is not None:
            entries = yield from self._log.summary_history(session_id, limit)
        else:
            key = self._sessions.cache.keys(session_id).history
            (found,) = yield from redis_call(Command(("LRANGE", key, -limit, -1)))
            entries = self._entries(found, session_id)
        if readable:
            texts = yield from self.readable_texts(session_id, [entry["text"] for entry in entries])
            return [entry | {"readable_text": one.text} for entry, one in zip(entries, texts, strict=True)]
        return entries

    def _entries(self, found: object, session_id: str) -> list[dict[str, Any]]:
        """Return the entries of a history that can be read; the others are counted, and what is no list at all."""
        entries, damaged = decoded_entries(found, session_id)
        self._sessions.cache.damaged += damaged
        return entries

    def readable_texts(self, session_id: str, texts: Sequence[str]) -> Flow[list[ReadableText]]:
        check_session_id(session_id)
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InvalidInputError("texts", "expected a list of texts")
        return (yield from with_phrases(session_id, texts, log=self._log))

    def get_summary_stats(self, session_id: str) -> Flow[dict[str, Any]]:
        check_session_id(session_id)
        return (yield from self.stats_with(session_id, (yield from self._sessions.load(session_id))))

    def stats_with(self, session_id: str, loaded: Loaded) -> Flow[dict[str, Any]]:
        """:meth:`get_summary_stats` of a session that has just been loaded; without Redis where that did without it."""
        keys = self._sessions.cache.keys(session_id)
        summary = loaded.state.summary
        ttl: int | None = None
        entries: list[dict[str, Any]] = []
        if not loaded.is_without_redis:
            try:
                history = (Command(("LRANGE", keys.history, 0, -1)),) if self._log is None else ()
                ttl, *found = yield from redis_call(Command(("TTL", keys.summary)), *history)
                entries = self._entries(found[0], session_id) if found else []
            except REDIS_TROUBLE:
                if self._log is None:
                    raise
        stats = stats_of(entries) if self._log is None else (yield from self._log.summary_stats(session_id))
        return {
            **stats,
            "current_summary_length": len(summary.text),
            "redis_ttl": ttl if ttl is not None and ttl >= 0 else None,
            "last_updated": summary.at_ms / 1000 if summary.at_ms else None,
        }

    def clear_summaries(self, session_id: str) -> Flow[bool]:
        check_session_id(session_id)
        try:
            if self._log is not None:
                yield from self._log.clear_summaries(session_id)
                yield from self._sessions.telling.distrust(session_id)
            else:
                yield from self._clear_alone(session_id)
                yield from redis_call(Command(("DEL", self._sessions.cache.keys(session_id).history)))
        except (StoreUnavailableError, ContentionError):
            return False
        return True

    def quarantine(self, session_id: str, version: object, *, dry_run: bool) -> Flow[dict[str, Any]]:
        check_session_id(session_id)
        return (yield from self._rebuilding.quarantine(session_id, check_version(version), dry_run=dry_run))

    def resummarize(
        self, session_id: str, *, use_model: bool, dry_run: bool, progress: Progress | None
    ) -> Flow[dict[str, Any]]:
        check_session_id(session_id)
        return (
            yield from self._rebuilding.resummarize(session_id, use_model=use_model, dry_run=dry_run, progress=progress)
        )

    def _clear_alone(self, session_id: str) -> Flow[None]:
        for _ in range(ATTEMPTS):
            state = yield from self._sessions.cache.read_alone(session_id)
            if state is None or state.summary_version == 0:
                return
            if not state.is_begun:
                yield from self._sessions.cache.configure(session_id, {})
                continue
            done = yield from self._sessions.folding.commit(
                session_id,
                state,
                last_seq=state.watermark,
                text="",
                method=CLEARED,
                origin=Origin(None, state.watermark + 1),
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

    The current summary is the whole of what is known of messages 1 to the watermark, within a budget that grows from
    ``summary_tokens`` (800) to ``max_summary_tokens`` (1,600): a text that is added joins it, and when the whole grows
    too long the built-in summarizer shortens it. Kept in PostgreSQL and cached in Redis; without a database in Redis
    alone, the last hundred versions. Reads raise :class:`StoreUnavailableError` where nobody can answer.
    """

    def __init__(self, *, config: MemoryConfig | None = None) -> None:
        is_shared = config is None
        config, self._flows = _standalone(config)
        self._runtime = Runtime(config, breaker=breaker_for(config, is_shared=is_shared))
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

    def get_current_summary(self, session_id: str, *, readable: bool = False) -> str | None:
        """Return the whole current summary as a model is given it, or for people; None where there is none."""
        return self._runtime.run(self._flows.get_current_summary(session_id, readable=readable))

    def get_summary_history(self, session_id: str, limit: int = 10, *, readable: bool = False) -> list[dict[str, Any]]:
        """Return the newest versions, oldest first, as dicts.

        ``text`` is what a caller or a model added, or the whole summary where a fold wrote it; ``timestamp`` in unix
        seconds; ``metadata`` of the caller; ``version``; ``parent``, the version whose text it goes on from, and
        ``first_seq`` to ``last_seq``, the messages it adds to that; ``tokens`` of the whole; ``method`` (``extractive``
        by a fold, ``model``, ``supplied`` by a caller, ``rebuilt``); ``model``, ``prompt_hash``, ``tokens_in`` read to
        write it, ``tokens_out`` written by the model; ``quarantined_at`` in unix seconds, None if it is in order. With
        ``readable`` also ``readable_text``: ``text`` for people, as :meth:`readable_texts` makes it.
        """
        return self._runtime.run(self._flows.get_summary_history(session_id, limit, readable=readable))

    def readable_texts(self, session_id: str, texts: Sequence[str]) -> list[ReadableText]:
        """Return texts of the session's summaries for people: with the phrases that their notes were shortened from.

        The notes are the same; the phrases are looked for in the log, and what is stored stays as it is. A note that no
        message says stands as it does in the text: all of them where there is no database, and what a language model or
        a caller wrote. Reads the log up to where the last phrase is found, so not for every message of a chat.
        """
        return self._runtime.run(self._flows.readable_texts(session_id, texts))

    def get_summary_stats(self, session_id: str) -> dict[str, Any]:
        """Return the figures of the versions, and where the current one comes from.

        ``summary_count``, ``by_method`` (versions of each), ``quarantined`` (versions); ``current_version`` with its
        ``method``, ``model``, ``first_seq``, ``last_seq`` as in :meth:`get_summary_history`;
        ``current_summary_length`` (characters), ``redis_ttl`` (seconds), ``last_updated`` (unix seconds).
        """
        return self._runtime.run(self._flows.get_summary_stats(session_id))

    def clear_summaries(self, session_id: str) -> bool:
        """Delete every version; what they covered stays covered, by an empty summary."""
        return self._runtime.run(self._flows.clear_summaries(session_id))

    def quarantine(self, session_id: str, version: int, *, dry_run: bool = False) -> dict[str, Any]:
        """Take a poisoned version, and all that derives from it, out of use; needs a database.

        Where the current version is among them, the built-in summarizer writes the summary again, from the newest
        version before them that is in order and the messages since; the watermark stays. The history goes on showing
        them, marked. Returns ``versions`` (all that are out of use now), ``is_current``, ``parent`` (what the new one
        goes on from), ``rebuilt`` (its version, None where none was needed) and ``dry_run``: then nothing was changed.
        May be repeated, and has to be after an error: until it returns, the current text may still be the poisoned one.
        """
        return self._runtime.run(self._flows.quarantine(session_id, version, dry_run=dry_run))

    def resummarize(
        self, session_id: str, *, use_model: bool = False, dry_run: bool = False, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Write the summary again from the messages in the log, and what callers added; needs a database.

        By the built-in summarizer, or with ``use_model`` by the ``facts_writer`` of the manager, which may take
        minutes; what was cleared is read again too. Returns ``version`` (None where nothing was written, and
        ``reason`` says why), ``method``, ``model``, ``last_seq``, ``tokens``, ``tokens_in``, ``tokens_out``, ``text``
        and ``dry_run``: then nothing was changed. ``progress`` is told the messages done, and of how many. Where the
        model fails nothing is changed.
        """
        flow = self._flows.resummarize(session_id, use_model=use_model, dry_run=dry_run, progress=progress)
        return self._runtime.run(flow)

    def close(self) -> None:
        """Close what this store opened itself."""
        if self._owns_runtime:
            self._runtime.close()


class AsyncSummaryStore:
    """:class:`SummaryStore` for asyncio."""

    def __init__(self, *, config: MemoryConfig | None = None) -> None:
        is_shared = config is None
        config, self._flows = _standalone(config)
        self._runtime = AsyncRuntime(config, breaker=breaker_for(config, is_shared=is_shared))
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

    async def get_current_summary(self, session_id: str, *, readable: bool = False) -> str | None:
        """See :meth:`SummaryStore.get_current_summary`."""
        return await self._runtime.run(self._flows.get_current_summary(session_id, readable=readable))

    async def get_summary_history(
        self, session_id: str, limit: int = 10, *, readable: bool = False
    ) -> list[dict[str, Any]]:
        """See :meth:`SummaryStore.get_summary_history`."""
        return await self._runtime.run(self._flows.get_summary_history(session_id, limit, readable=readable))

    async def readable_texts(self, session_id: str, texts: Sequence[str]) -> list[ReadableText]:
        """See :meth:`SummaryStore.readable_texts`."""
        return await self._runtime.run(self._flows.readable_texts(session_id, texts))

    async def get_summary_stats(self, session_id: str) -> dict[str, Any]:
        """See :meth:`SummaryStore.get_summary_stats`."""
        return await self._runtime.run(self._flows.get_summary_stats(session_id))

    async def clear_summaries(self, session_id: str) -> bool:
        """See :meth:`SummaryStore.clear_summaries`."""
        return await self._runtime.run(self._flows.clear_summaries(session_id))

    async def quarantine(self, session_id: str, version: int, *, dry_run: bool = False) -> dict[str, Any]:
        """See :meth:`SummaryStore.quarantine`."""
        return await self._runtime.run(self._flows.quarantine(session_id, version, dry_run=dry_run))

    async def resummarize(
        self, session_id: str, *, use_model: bool = False, dry_run: bool = False, progress: Progress | None = None
    ) -> dict[str, Any]:
        """See :meth:`SummaryStore.resummarize`."""
        flow = self._flows.resummarize(session_id, use_model=use_model, dry_run=dry_run, progress=progress)
        return await self._runtime.run(flow)

    async def aclose(self) -> None:
        """Close what this store opened itself."""
        if self._owns_runtime:
            await self._runtime.close()
