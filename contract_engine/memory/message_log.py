"""The log as flows: what the other layers ask of PostgreSQL. Session ids have been checked by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from contract_engine.memory import _log, _log_drain, _log_outbox, _log_pins, _log_summaries, _log_transactions
from contract_engine.memory._effects import Flow, query, query_once, transaction
from contract_engine.memory._runtime.failures import AlreadyStoredError
from contract_engine.memory.config import MemoryConfig, SessionLimits
from contract_engine.memory.deletions import unless_relayed, until_unrelayed
from contract_engine.memory.errors import (
    ContentionError,
    DatabaseUnavailableError,
    MessageConflictError,
    PoolExhaustedError,
)
from contract_engine.memory.models import (
    CLEARED,
    Entry,
    Message,
    Origin,
    Outgoing,
    Placed,
    SessionState,
    Source,
    Summary,
    empty_session,
)
from contract_engine.memory.serializer import decode_text, decode_value, encode_text, encode_value

LOG_TROUBLE = (DatabaseUnavailableError, PoolExhaustedError)
"""Why the log cannot be asked now: it is away, or every connection to it stayed busy for as long as a call may wait."""

NO_LIMIT = 2**62

ATTEMPTS = 10
"""How often an append looks for what an earlier attempt stored; each look finds more of it."""


class LogFlows:
    """One tenant's log."""

    def __init__(self, config: MemoryConfig) -> None:
        self._tenant = config.tenant
        self._limits = config.limits
        self._max_bytes = config.max_message_bytes

    def _key(self, session_id: str) -> dict[str, str]:
        return {"of_tenant": self._tenant, "of_session": session_id}

    def append(self, session_id: str, outgoing: Sequence[Outgoing]) -> Flow[Placed]:
        """Append messages in one statement. Once this answers they are committed.

        A message whose id is there already has its effect from then; the same id with other content raises
        :class:`MessageConflictError`, and nothing of the batch is stored.
        """
        try:
            return (yield from self._insert(session_id, outgoing))
        except AlreadyStoredError:
            pass
        # Some of these were stored by an earlier attempt. Read which, and insert the rest; should the same batch be
        # under way elsewhere, the second insert fails the same way and finds everything stored.
        ids = [message.message_id for message in outgoing]
        for _ in range(ATTEMPTS):
            stored, epoch, revision = yield from transaction(
                lambda connection: _log_transactions.stored_messages(connection, self._key(session_id), ids)
            )
            for message in outgoing:
                found = stored.get(message.message_id)
                if found is not None and found.body != message.body and decode_value(found.body) != message.message:
                    raise MessageConflictError(message.message_id)
            missing = [message for message in outgoing if message.message_id not in stored]
            if missing:
                try:
                    placed = yield from self._insert(session_id, missing)
                except AlreadyStoredError:
                    continue
                epoch, revision = placed.epoch, placed.revision
                new = zip(missing, placed.seqs, placed.at_ms, strict=True)
                stored |= {
                    message.message_id: _log_transactions.StoredMessage(seq, at, message.body)
                    for message, seq, at in new
                }
            rows = [stored[message_id] for message_id in ids]
            return Placed(tuple(row.seq for row in rows), tuple(row.at_ms for row in rows), epoch, revision)
        raise ContentionError(session_id, ATTEMPTS)

    def _insert(self, session_id: str, outgoing: Sequence[Outgoing]) -> Flow[Placed]:
        if len(outgoing) == 1:
            message = outgoing[0]
            ((seq, at_ms, epoch, revision),) = yield from query(
                _log_outbox.APPEND_ONE_RELAYED if message.is_relayed else _log.APPEND_ONE,
                {
                    **self._key(session_id),
                    "message_id": message.message_id,
                    "tokens": message.tokens,
                    "body": message.body,
                },
            )
            return Placed((seq,), (at_ms,), epoch, revision)
        rows = yield from query(
            _log_outbox.APPEND_MANY_RELAYED if outgoing[0].is_relayed else _log.APPEND_MANY,
            {
                **self._key(session_id),
                "count": len(outgoing),
                "message_ids": [message.message_id for message in outgoing],
                "tokens": [message.tokens for message in outgoing],
                "bodies": [message.body for message in outgoing],
            },
        )
        seqs, at_ms_of_each, epochs, revisions = zip(*rows, strict=True)
        return Placed(seqs, at_ms_of_each, epochs[0], revisions[0])

    def check(self) -> Flow[None]:
        """Raise where the log is away."""
        yield from query(_log.PING, {})

    def begin_session(self, session_id: str) -> Flow[int]:
        """Answer the epoch of the session, which begins here if there is none."""
        ((epoch,),) = yield from query(_log_drain.BEGIN_SESSION, self._key(session_id))
        return int(epoch)

    def end_empty_session(self, session_id: str, epoch: int) -> Flow[None]:
        """Delete the row that :meth:`begin_session` may have made, if nothing is kept under it."""
        yield from query(_log_drain.END_EMPTY_SESSION, {**self._key(session_id), "epoch": epoch})

    def log_unlogged(
        self, session_id: str, epoch: int, waiting: Sequence[Entry], after: int, *, is_continued: bool = False
    ) -> Flow[int | None]:
        """Append in one transaction what waited in Redis, each message id once, in order.

        ``after``: the last message of the log when the first of these was acknowledged, 0 if that is not known: what
        has been logged behind it since then goes behind these. Answers the number of the last of them, 0 if all of them
        were there: what waits behind them is logged with that and ``is_continued``. None where the session has another
        epoch, because it was erased: then nothing was written.
        """
        rows = [
            _log_drain.Waiting(
                entry.message_id,
                entry.tokens,
                entry.at_ms,
                encode_value(entry.message, field="message", max_bytes=NO_LIMIT),
                entry.is_relayed,
            )
            for entry in waiting
        ]
        return (
            yield from transaction(
                lambda connection: _log_drain.log_waiting(
                    connection, self._key(session_id), epoch, rows, after, is_continued=is_continued
                )
            )
        )

    def find(self, session_id: str, outgoing: Sequence[Outgoing]) -> Flow[Placed | None]:
        """Answer where messages stand now; None where one of them is not there any more."""
        ids = [message.message_id for message in outgoing]
        stored, epoch, revision = yield from transaction(
            lambda connection: _log_transactions.stored_messages(connection, self._key(session_id), ids)
        )
        if not all(message_id in stored for message_id in ids):
            return None
        rows = [stored[message_id] for message_id in ids]
        return Placed(tuple(row.seq for row in rows), tuple(row.at_ms for row in rows), epoch, revision)

    def read_state(self, session_id: str) -> Flow[SessionState | None]:
        """Read the session in one consistent view; None where there is none.

        That takes one statement, and one more where messages are pinned and some of them may have been folded.
        """
        rows = yield from query(_log.READ_STATE, self._key(session_id))
        if not rows:
            return None
        return (yield from self._with_pinned_rows(session_id, _log.state_of_row(rows[0], self._limits)))

    def _with_pinned_rows(self, session_id: str, state: SessionState) -> Flow[SessionState]:
        """Add the pinned messages at or below the watermark, where nothing changes any more."""
        ids = state.summary.pinned_ids
        if not ids or not state.watermark:
            return state
        found = yield from query(
            _log.PINNED_ROWS, {**self._key(session_id), "message_ids": list(ids), "watermark": state.watermark}
        )
        pinned = [(*row[:4], decode_value(bytes(row[4]))) for row in found]
        return msgspec.structs.replace(state, summary=state.summary._replace(pinned_rows=pinned))

    def pin(self, session_id: str, message_id: str, budget: int) -> Flow[_log_pins.Pinning]:
        """Pin a message in one transaction, if the session has it and there is room; see :mod:`._log_pins`."""
        return (
            yield from transaction(
                lambda connection: _log_pins.pin(connection, self._key(session_id), message_id, budget)
            )
        )

    def unpin(self, session_id: str, message_id: str) -> Flow[bool]:
        """Unpin a message; False where it was not pinned."""
        return (
            yield from transaction(lambda connection: _log_pins.unpin(connection, self._key(session_id), message_id))
        )

    def set_instructions(self, session_id: str, text: str) -> Flow[None]:
        """Keep what the session wants of its summaries, creating the session if need be; an empty text clears it."""
        yield from transaction(
            lambda connection: _log_pins.set_instructions(connection, self._key(session_id), encode_text(text))
        )

    def load_instructions(self, session_id: str) -> Flow[str]:
        """Read what the session wants of its summaries, empty where it has said nothing."""
        rows = yield from query(_log.LOAD_INSTRUCTIONS, self._key(session_id))
        return decode_text(bytes(rows[0][0])) if rows and rows[0][0] else ""

    def commit_summary(
        self,
        session_id: str,
        state: SessionState,
        *,
        last_seq: int,
        text: str,
        tokens: int,
        method: str,
        origin: Origin,
        segment: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Flow[tuple[Summary, int] | None]:
        """Make ``text`` the summary of messages 1 to ``last_seq`` if the session still stands where ``state`` read it.

        Answers the new summary and revision, or None where another fold was first: then nothing was written.
        """
        rows = yield from query_once(
            _log.COMMIT_SUMMARY,
            {
                **self._key(session_id),
                "epoch": state.epoch,
                "version": state.summary_version,
                "revision": state.revision,
                **origin._asdict(),
                "last_seq": last_seq,
                "segment": None if segment is None else encode_text(segment),
                "text": encode_text(text),
                "tokens": tokens,
                "method": method,
                "metadata": None
                if metadata is None
                else encode_value(metadata, field="metadata", max_bytes=self._max_bytes),
            },
        )
        if not rows:
            return None
        revision, at_ms = rows[0]
        return Summary(state.summary_version + 1, last_seq, tokens, at_ms, text), revision

    def history(self, session_id: str, limit: int | None) -> Flow[list[Message]]:
        """Read the newest messages, answered oldest first."""
        rows = yield from query(_log.HISTORY, {**self._key(session_id), "limit": NO_LIMIT if limit is None else limit})
        return [decode_value(bytes(row[4])) for row in reversed(rows)]

    def summary_history(self, session_id: str, limit: int) -> Flow[list[dict[str, Any]]]:
        """Read the newest summary versions, answered oldest first."""
        rows = yield from query(_log_summaries.SUMMARY_HISTORY, {**self._key(session_id), "limit": limit})
        return [
            {
                "text": decode_text(bytes(text)),
                "timestamp": at_ms / 1000,
                "metadata": None if metadata is None else decode_value(bytes(metadata)),
                "version": version,
                "first_seq": first_seq,
                "last_seq": last_seq,
                "tokens": tokens,
                "method": method,
                "parent": parent,
                "model": model,
                "prompt_hash": prompt_hash,
                "tokens_in": tokens_in,
                "tokens_out": tokens_out,
                "quarantined_at": None if quarantined_ms is None else quarantined_ms / 1000,
            }
            for (
                version, first_seq, last_seq, text, tokens, method, metadata, at_ms,
                parent, model, prompt_hash, tokens_in, tokens_out, quarantined_ms,
            ) in reversed(rows)
        ]  # fmt: skip

    def summary_stats(self, session_id: str) -> Flow[dict[str, Any]]:
        """Count the summary versions by method, and say where the current one comes from."""
        rows = yield from query(_log_summaries.SUMMARY_STATS, self._key(session_id))
        counts = {row[0]: row[1] for row in rows if row[0] != CLEARED}
        version, method, model, first_seq, last_seq = max(
            ((row[3], row[0], *row[4:7]) for row in rows), default=(0, None, None, None, None)
        )
        return {
            "summary_count": sum(counts.values()),
            "by_method": counts,
            "quarantined": sum(row[2] for row in rows),
            "current_version": version,
            "method": method,
            "model": model,
            "first_seq": first_seq,
            "last_seq": last_seq,
        }

    def read_source(self, session_id: str, base_version: int | None) -> Flow[Source | None]:
        """Read what the next version can be written from; see ``READ_SOURCE``. None where there is no such session."""
        rows = yield from query(_log_summaries.READ_SOURCE, {**self._key(session_id), "base_version": base_version})
        if not rows:
            return None
        epoch, revision, last_seq, watermark, version, pinned, instructions = rows[0][:7]
        base, base_last_seq, base_text = rows[0][7:10]
        added = zip(*(column or () for column in rows[0][10:12]), strict=True)
        wishes = decode_text(bytes(instructions)) if instructions else ""
        summary = Summary(version, watermark, 0, 0, "", tuple(pinned or ()), (), wishes)
        state = msgspec.structs.replace(
            empty_session(self._limits, summary), epoch=epoch, revision=revision, last_seq=last_seq
        )
        return Source(
            state=(yield from self._with_pinned_rows(session_id, state)),
            base=base or 0,
            base_last_seq=base_last_seq or 0,
            base_text="" if base_text is None else decode_text(bytes(base_text)),
            added=tuple((number, decode_text(bytes(text))) for number, text in added),
        )

    def read_span(self, session_id: str, after: int, last_seq: int, limit: int) -> Flow[list[Entry]]:
        """Read the oldest messages above ``after`` up to ``last_seq``; their ids are left out."""
        rows = yield from query(
            _log_summaries.READ_SPAN, {**self._key(session_id), "after": after, "last_seq": last_seq, "limit": limit}
        )
        return [Entry(seq, tokens, at_ms, "", decode_value(bytes(body))) for seq, tokens, at_ms, body in rows]

    def quarantine(self, session_id: str, version: int, *, dry_run: bool) -> Flow[_log_summaries.Derived | None]:
        """Mark a version and all that derives from it in one transaction; None where there is no such version."""
        return (
            yield from transaction(
                lambda connection: _log_summaries.quarantine(
                    connection, self._key(session_id), version, dry_run=dry_run
                )
            )
        )

    def clear_summaries(self, session_id: str) -> Flow[None]:
        """Delete every summary version in one transaction."""
        yield from transaction(lambda connection: _log_transactions.clear_summaries(connection, self._key(session_id)))

    def save_context(self, session_id: str, body: bytes) -> Flow[None]:
        """Store the context object's bytes, creating the session if need be."""
        yield from query(_log.SAVE_CONTEXT, {**self._key(session_id), "context": body})

    def load_context(self, session_id: str) -> Flow[bytes | None]:
        """Read the context object's bytes."""
        rows = yield from query(_log.LOAD_CONTEXT, self._key(session_id))
        return bytes(rows[0][0]) if rows and rows[0][0] is not None else None

    def change_limits(self, session_id: str, changes: Mapping[str, object]) -> Flow[SessionLimits]:
        """Apply checked changes to the session's limits, creating the session if need be."""
        return (
            yield from transaction(
                lambda connection: _log_transactions.change_limits(
                    connection, self._key(session_id), changes, self._limits
                )
            )
        )

    def quiet(self, session_id: str) -> Flow[None]:
        """Wait until no relay is at a session; none begins within a moment. Raises where the log is away."""
        yield from until_unrelayed(self._tenant, session_id)

    def erase(self, session_id: str) -> Flow[bool]:
        """Delete the session's rows from every table in one transaction, when no relay is at it."""
        key = self._key(session_id)
        return (yield from unless_relayed(session_id, lambda connection: _log_transactions.erase(connection, key)))

    def list_sessions(self, limit: int) -> Flow[list[dict[str, Any]]]:
        """Read the sessions of this tenant, most recently used first."""
        return (
            yield from transaction(lambda connection: _log_transactions.list_sessions(connection, self._tenant, limit))
        )
