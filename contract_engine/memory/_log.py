"""The SQL of the log where an operation is one statement, as all of the hot path is.

These are composed with SQLAlchemy Core, compiled once and then run as plain text. The row of the session is the lock:
whatever changes a session updates or deletes that row first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from contract_engine.memory._effects import Statement
from contract_engine.memory._tables import messages, sessions, summaries
from contract_engine.memory.config import SessionLimits
from contract_engine.memory.models import NO_SUMMARY, SUPPLIED, SessionState, Summary
from contract_engine.memory.serializer import decode_text, decode_value

if TYPE_CHECKING:
    from sqlalchemy.dialects.postgresql import Insert

# Epochs only have to differ between two lives of one session id; microseconds of the server's clock do.
NEW_EPOCH: sa.ColumnElement[int] = sa.literal_column("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
_ONE: sa.ColumnElement[int] = sa.literal_column("1")
_SUPPLIED_LITERAL: sa.ColumnElement[str] = sa.literal_column(f"'{SUPPLIED}'")

# SQLAlchemy keeps the names of columns for itself in inserts and updates.
tenant = sa.bindparam("of_tenant", type_=sa.Text)
session_id = sa.bindparam("of_session", type_=sa.Text)


def insert(table: sa.Table) -> Insert:
    """Return PostgreSQL's own INSERT, which knows ON CONFLICT."""
    from sqlalchemy.dialects import postgresql  # costs a tenth of a second, which ephemeral mode need not pay

    return postgresql.insert(table)


def milliseconds(column: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """Return a time as whole milliseconds since 1970."""
    return sa.cast(sa.extract("epoch", column) * sa.literal_column("1000"), sa.BigInteger)


def this_session(table: sa.Table) -> sa.ColumnElement[bool]:
    """Return the condition that a row belongs to the session at hand."""
    return sa.and_(table.c.tenant == tenant, table.c.session_id == session_id)


def array(column: sa.ColumnElement[Any], order: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return what the rows have in a column as one array, in this order."""
    from sqlalchemy.dialects.postgresql import aggregate_order_by  # expensive, see insert()

    return sa.func.array_agg(aggregate_order_by(column, order))


ENTRY: dict[str, sa.ColumnElement[Any]] = {
    "seq": messages.c.seq,
    "tokens": messages.c.tokens,
    "at_ms": milliseconds(messages.c.created_at),
    "message_id": messages.c.message_id,
    "body": messages.c.body,
}
"""What is read of a message to put it into a context, in the order of :class:`~contract_engine.memory.models.Entry`."""


def _advance(by: sa.ColumnElement[int]) -> sa.CTE:
    """Lock the session's row, creating it if need be, and give out the next numbers."""
    return (
        insert(sessions)
        .values(tenant=tenant, session_id=session_id, epoch=NEW_EPOCH, last_seq=by)
        .on_conflict_do_update(
            index_elements=["tenant", "session_id"],
            set_={"last_seq": sessions.c.last_seq + by, "updated_at": sa.func.now()},
        )
        .returning(sessions.c.last_seq, sessions.c.epoch, sessions.c.revision)
        .cte("session")
    )


Beside = Callable[[sa.CTE], Sequence[sa.CTE]]
"""Makes what is written in the same statement as messages, of those that are: tenant, session_id, message_id, seq."""


def _appended(rows: sa.Select[Any], session: sa.CTE, beside: Beside | None) -> sa.Select[Any]:
    """Insert rows that got their numbers from ``session``."""
    names = ["tenant", "session_id", "seq", "message_id", "tokens", "body"]
    answered = [messages.c.seq, milliseconds(messages.c.created_at).label("at_ms")]
    for_others = [] if beside is None else [messages.c.tenant, messages.c.session_id, messages.c.message_id]
    message = insert(messages).from_select(names, rows).returning(*answered, *for_others).cte("message")
    found = sa.select(message.c.seq, message.c.at_ms, session.c.epoch, session.c.revision)
    return found if beside is None else found.add_cte(*beside(message))


def append_one(beside: Beside | None = None) -> sa.Select[Any]:
    """Number one message and insert it."""
    session = _advance(_ONE)
    row = sa.select(
        tenant,
        session_id,
        session.c.last_seq,
        sa.bindparam("message_id", type_=sa.Text),
        sa.bindparam("tokens", type_=sa.Integer),
        sa.bindparam("body", type_=sa.LargeBinary),
    )
    return _appended(row, session, beside)


def append_many(beside: Beside | None = None) -> sa.Select[Any]:
    """Number a batch of messages and insert it, as a whole."""
    count = sa.cast(sa.bindparam("count"), sa.BigInteger)
    session = _advance(count)
    item = (
        sa.func.unnest(
            sa.bindparam("message_ids", type_=sa.ARRAY(sa.Text)),
            sa.bindparam("tokens", type_=sa.ARRAY(sa.Integer)),
            sa.bindparam("bodies", type_=sa.ARRAY(sa.LargeBinary)),
        )
        .table_valued("message_id", "tokens", "body", with_ordinality="place", name="item")
        .render_derived()
    )
    place = session.c.last_seq - count + item.c.place
    rows = sa.select(tenant, session_id, place, item.c.message_id, item.c.tokens, item.c.body)
    found = _appended(rows.select_from(session.join(item, sa.true())), session, beside)
    return found.order_by(found.selected_columns.seq)


def _read_state() -> sa.Select[Any]:
    """One row: the session, its summary, and the messages above the watermark as parallel arrays."""
    tail = (
        sa.select(*(array(column, messages.c.seq).label(name) for name, column in ENTRY.items()))
        .where(
            messages.c.tenant == sessions.c.tenant,
            messages.c.session_id == sessions.c.session_id,
            messages.c.seq > sessions.c.watermark,
        )
        .lateral("tail")
    )
    current = sa.and_(
        summaries.c.tenant == sessions.c.tenant,
        summaries.c.session_id == sessions.c.session_id,
        summaries.c.version == sessions.c.summary_version,
    )
    return (
        sa.select(
            sessions.c.epoch,
            sessions.c.revision,
            sessions.c.last_seq,
            sessions.c.watermark,
            sessions.c.summary_trigger_tokens,
            sessions.c.max_buffer_tokens,
            sessions.c.max_buffer_messages,
            milliseconds(sessions.c.updated_at),
            summaries.c.version,
            summaries.c.tokens,
            milliseconds(summaries.c.created_at),
            summaries.c.text,
            *(tail.c[name] for name in ENTRY),
            sessions.c.pinned,
            sessions.c.summary_instructions,
        )
        .select_from(sessions.outerjoin(summaries, current).join(tail, sa.true()))
        .where(this_session(sessions))
    )


def _pinned_rows() -> sa.Select[Any]:
    """The messages of some ids up to a watermark.

    A statement of its own, for the few sessions that need it: as part of the one above it would make that dearer for
    all of them by a third. Messages at or below a watermark never change, so the two show one state.
    """
    return (
        sa.select(*ENTRY.values())
        .where(
            this_session(messages),
            messages.c.message_id == sa.any_(sa.bindparam("message_ids", type_=sa.ARRAY(sa.Text))),
            messages.c.seq <= sa.cast(sa.bindparam("watermark"), sa.BigInteger),
        )
        .order_by(messages.c.seq)
    )


def _commit_summary() -> sa.Select[Any]:
    """Move the watermark and add the version that covers it, or do neither: the revision is the compare-and-set.

    It counts every fold, and a drain that has put what waited before what was logged later. A text of a caller touches
    the session, as a message does; a fold does not, for it may follow from a read.
    """
    watermark = sa.cast(sa.bindparam("last_seq"), sa.BigInteger)
    expected = sa.cast(sa.bindparam("version"), sa.Integer)
    moved = (
        sa.update(sessions)
        .where(
            this_session(sessions),
            sessions.c.epoch == sa.cast(sa.bindparam("epoch"), sa.BigInteger),
            sessions.c.summary_version == expected,
            sessions.c.revision == sa.cast(sa.bindparam("revision"), sa.BigInteger),
            sessions.c.watermark <= watermark,
            sessions.c.last_seq >= watermark,
        )
        .values(
            watermark=watermark,
            summary_version=expected + _ONE,
            revision=sessions.c.revision + _ONE,
            updated_at=sa.case(
                (sa.cast(sa.bindparam("method"), sa.Text) == _SUPPLIED_LITERAL, sa.func.now()),
                else_=sessions.c.updated_at,
            ),
        )
        .returning(sessions.c.summary_version, sessions.c.revision)
        .cte("moved")
    )
    row = sa.select(
        tenant,
        session_id,
        moved.c.summary_version,
        sa.cast(sa.bindparam("first_seq"), sa.BigInteger),
        watermark,
        sa.bindparam("segment", type_=sa.LargeBinary),
        sa.bindparam("text", type_=sa.LargeBinary),
        sa.bindparam("tokens", type_=sa.Integer),
        sa.bindparam("method", type_=sa.Text),
        sa.bindparam("metadata", type_=sa.LargeBinary),
        sa.bindparam("parent", type_=sa.Integer),
        sa.bindparam("model", type_=sa.Text),
        sa.bindparam("prompt_hash", type_=sa.Text),
        sa.bindparam("tokens_in", type_=sa.Integer),
        sa.bindparam("tokens_out", type_=sa.Integer),
    )
    names = ["version", "first_seq", "last_seq", "segment", "text", "tokens", "method", "metadata"]
    names += ["parent", "model", "prompt_hash", "tokens_in", "tokens_out"]
    added = (
        insert(summaries)
        .from_select(["tenant", "session_id", *names], row)
        .returning(milliseconds(summaries.c.created_at).label("at_ms"))
        .cte("added")
    )
    return sa.select(moved.c.revision, added.c.at_ms)


def _save_context() -> Any:
    body = sa.bindparam("context", type_=sa.LargeBinary)
    return (
        insert(sessions)
        .values(tenant=tenant, session_id=session_id, epoch=NEW_EPOCH, context=body)
        .on_conflict_do_update(
            index_elements=["tenant", "session_id"], set_={"context": body, "updated_at": sa.func.now()}
        )
        .returning(sessions.c.epoch)
    )


def _history() -> sa.Select[Any]:
    """The newest messages, newest first."""
    return (
        sa.select(*ENTRY.values())
        .where(this_session(messages))
        .order_by(messages.c.seq.desc())
        .limit(sa.bindparam("limit", type_=sa.BigInteger))
    )


APPEND_ONE = Statement("append_one", append_one, is_hot=True)
APPEND_MANY = Statement("append_many", append_many, is_hot=True)
READ_STATE = Statement("read_state", _read_state)
PINNED_ROWS = Statement("pinned_rows", _pinned_rows)
COMMIT_SUMMARY = Statement("commit_summary", _commit_summary)
SAVE_CONTEXT = Statement("save_context", _save_context)
LOAD_CONTEXT = Statement("load_context", lambda: sa.select(sessions.c.context).where(this_session(sessions)))
LOAD_INSTRUCTIONS = Statement(
    "load_instructions", lambda: sa.select(sessions.c.summary_instructions).where(this_session(sessions))
)
HISTORY = Statement("history", _history)
PING = Statement("ping", lambda: sa.select(sa.literal_column("1")))


def state_of_row(row: Sequence[Any], defaults: SessionLimits) -> SessionState:
    """Build the state from a row of ``READ_STATE``; the rows of what is pinned are not in it."""
    epoch, revision, last_seq, watermark, trigger, max_tokens, max_messages, updated_ms = row[:8]
    version, summary_tokens, summary_ms, text = row[8:12]
    own = {
        "summary_trigger_tokens": trigger,
        "max_buffer_tokens": max_tokens,
        "max_buffer_messages": max_messages,
    }
    rows = [
        (seq, tokens, at_ms, message_id, decode_value(bytes(body)))
        for seq, tokens, at_ms, message_id, body in zip(*(column or () for column in row[12:17]), strict=True)
    ]
    summary = NO_SUMMARY
    if version is not None:
        summary = Summary(version, watermark, summary_tokens, summary_ms, decode_text(bytes(text)))
    pinned, instructions = row[17:19]
    if pinned or instructions:
        wishes = decode_text(bytes(instructions)) if instructions else ""
        summary = summary._replace(pinned_ids=tuple(pinned or ()), instructions=wishes)
    return SessionState(
        epoch=epoch,
        revision=revision,
        last_seq=last_seq,
        watermark=watermark,
        summary_version=version or 0,
        summary=summary,
        limits=effective_limits(defaults, own),
        rows=rows,
        buffer_tokens=sum(tokens for _, tokens, _, _, _ in rows),
        updated_at_ms=updated_ms,
    )


def effective_limits(defaults: SessionLimits, own: Mapping[Any, int | None]) -> SessionLimits:
    """Join what a session set for itself with the defaults of this process, which another process may not share."""
    values = {name: own[name] or value for name, value in defaults.as_dict().items()}
    values["summary_trigger_tokens"] = min(values["summary_trigger_tokens"], values["max_buffer_tokens"])
    return SessionLimits(**values)
