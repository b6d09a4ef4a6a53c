"""The log as a backfill and a comparison see it: read page by page, written to in batches that go where they belong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from contract_engine.memory._effects import Flow, query, transaction
from contract_engine.memory._log_backfill import (
    NAMES,
    PAGE,
    PLACES,
    POSITION,
    HistoryRow,
    Position,
    insert_context,
    insert_history,
)
from contract_engine.memory._log_outbox import IN_FLIGHT
from contract_engine.memory._log_phases import READ_PHASE
from contract_engine.memory._runtime import Runtime, breaker_for
from contract_engine.memory.closing import Closing
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import ConfigurationError
from contract_engine.memory.intake import Intake
from contract_engine.memory.legacy_messages import content_digest
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.models import Message
from contract_engine.memory.serializer import decode_value, encode_value
from contract_engine.memory.session_cache import REDIS_TROUBLE
from contract_engine.memory.sessions import Sessions
from contract_engine.memory.summary_store import EVERY, SummaryFlows
from contract_engine.memory.token_counter import TokenCounter

PAGE_MESSAGES = 2000


class LogWriter(Closing):
    """One tenant's log, blocking. Raises :class:`StoreUnavailableError` where the database is away; Redis may be."""

    def __init__(self, config: MemoryConfig) -> None:
        if not config.is_durable:
            raise ConfigurationError("database_url", "older history goes into a database; set DATABASE_URL")
        counter = TokenCounter(config.model)
        log = LogFlows(config)
        self._tenant = config.tenant
        self._max_bytes = config.max_message_bytes
        self._log = log
        self._sessions = Sessions(config, counter, log=log)
        self._summaries = SummaryFlows(config, counter, self._sessions, log=log)
        self._runtime = Runtime(config, breaker=breaker_for(config, is_shared=False))
        self.intake = Intake(counter, max_message_bytes=config.max_message_bytes)
        self.max_buffer_messages = config.limits.max_buffer_messages

    def _key(self, session_id: str) -> dict[str, str]:
        return {"of_tenant": self._tenant, "of_session": session_id}

    def position(self, session_id: str) -> Position | None:
        """Return how far the import of a session has come; None where the log has no such session."""
        rows = self._runtime.run(query(POSITION, self._key(session_id)))
        if not rows:
            return None
        place, message_id, seq, last_seq, is_unsummarized, revision = rows[0]
        return Position(place or 0, message_id, seq or 0, last_seq, is_unsummarized, revision)

    def messages(self, session_id: str, *, after: int = 0) -> Iterator[tuple[int, str, Message]]:
        """Give number, id and message of each message behind ``after``."""
        while rows := self._runtime.run(query(PAGE, {**self._key(session_id), "after": after, "limit": PAGE_MESSAGES})):
            for seq, message_id, body in rows:
                yield seq, message_id, decode_value(bytes(body))
            after = rows[-1][0]

    def in_flight(self, session_id: str) -> tuple[str | None, set[str]]:
        """Return the id of the newest message, and those that the older store is still to be given."""
        ((newest, pending),) = self._runtime.run(query(IN_FLIGHT, self._key(session_id)))
        return newest, set(pending)

    def has_phase(self) -> bool:
        """Whether programs write to a legacy store too."""
        return bool(self._runtime.run(query(READ_PHASE, {"of_tenant": self._tenant})))

    def digests(self, session_id: str, *, after: int = 0) -> Iterator[tuple[int, str, bytes]]:
        """Give number, id and digest of each message behind ``after``."""
        for seq, message_id, message in self.messages(session_id, after=after):
            yield seq, message_id, content_digest(message)

    def places(self, session_id: str, message_ids: Sequence[str]) -> dict[str, int]:
        """Return the numbers of those of these messages that the log has."""
        rows = self._runtime.run(query(PLACES, {**self._key(session_id), "message_ids": list(message_ids)}))
        return {str(message_id): int(seq) for message_id, seq in rows}

    def session_names(self, *, after: str = "", most: int = 1000) -> list[str]:
        """Return session ids in the order of the database, behind ``after``."""
        rows = self._runtime.run(query(NAMES, {"of_tenant": self._tenant, "after": after, "limit": most}))
        return [name for (name,) in rows]

    def store(
        self,
        session_id: str,
        rows: Sequence[HistoryRow],
        *,
        after_id: str | None,
        is_covered: bool,
        created_ms: int,
        updated_ms: int,
    ) -> bool:
        """Insert messages in one transaction, see :func:`insert_history`, and have Redis follow."""
        key = self._key(session_id)

        def store() -> Flow[bool]:
            done = yield from transaction(
                lambda connection: insert_history(
                    connection,
                    key,
                    rows,
                    after_id=after_id,
                    is_covered=is_covered,
                    created_ms=created_ms,
                    updated_ms=updated_ms,
                )
            )
            if done:
                yield from self._sessions.telling.distrust(session_id)
            return done

        return self._runtime.run(store())

    def resummarize(self, session_id: str) -> None:
        """Write the summary of everything up to the watermark from the messages."""
        self._runtime.run(self._summaries.resummarize(session_id, use_model=False, dry_run=False, progress=None))

    def fold(self, session_id: str, *, index: bool) -> None:
        """Fold what exceeds the caps of a context; with ``index`` have all that is folded be found by a search."""
        self._runtime.run(self._fold(session_id, index=index))

    def _fold(self, session_id: str, *, index: bool) -> Flow[None]:
        yield from self._sessions.folding.read_within_caps(session_id)
        if index and self._sessions.recall is not None:
            yield from self._sessions.recall.index_folded(session_id)

    def refresh(self, session_id: str, revision: int) -> None:
        """Have the copy in Redis read again where it is of another revision, as when a run died before it could."""
        self._runtime.run(self._refresh(session_id, revision))

    def _refresh(self, session_id: str, revision: int) -> Flow[None]:
        try:
            state = (yield from self._sessions.cache.read(session_id)).state
        except REDIS_TROUBLE:
            return  # then nobody reads it there, and the next append finds it out of date
        if state is not None and state.revision != revision:
            yield from self._sessions.telling.distrust(session_id)

    def drain(self, session_id: str) -> None:
        """Log what waits in Redis, where Redis can be asked."""
        if self._sessions.unlogged is not None:
            self._runtime.run(self._sessions.unlogged.drain_own(session_id))

    def supplied_summaries(self, session_id: str) -> list[Mapping[str, Any]]:
        """Return the metadata of the versions that have any."""
        found = self._runtime.run(self._summaries.get_summary_history(session_id, EVERY))
        return [entry["metadata"] for entry in found if isinstance(entry["metadata"], dict)]

    def add_summary_once(
        self, session_id: str, text: str, metadata: Mapping[str, Any], *, key: Mapping[str, Any]
    ) -> bool:
        """Add a text to the summary of a session, which begins here if there is none.

        False where a version has all of ``key`` in its metadata: somebody else has added it, maybe right now.
        """
        return self._runtime.run(self._summaries.add_summary_once(session_id, text, metadata, key=key))

    def context(self, session_id: str) -> dict[str, Any] | None:
        """Return the context object of a session; None where it has none."""
        body = self._runtime.run(self._log.load_context(session_id))
        return None if body is None else decode_value(body)

    def add_context(self, session_id: str, context: Mapping[str, Any], *, created_ms: int, updated_ms: int) -> bool:
        """Give a session its context object; False where it has one. :class:`InvalidInputError` for one too large."""
        body = encode_value(dict(context), field="context", max_bytes=self._max_bytes)
        key = self._key(session_id)
        return self._runtime.run(
            transaction(
                lambda connection: insert_context(connection, key, body, created_ms=created_ms, updated_ms=updated_ms)
            )
        )

    def close(self) -> None:
        """Close the connections."""
        self._runtime.close()
