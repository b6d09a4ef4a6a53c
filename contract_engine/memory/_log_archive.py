"""The SQL of archives: a session read in one snapshot, and put in place in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from contract_engine.memory._log import NEW_EPOCH, insert, session_id, tenant, this_session
from contract_engine.memory._log_relays import held_by_relays
from contract_engine.memory._log_retention import ERASED_AT
from contract_engine.memory._log_transactions import delete_rows
from contract_engine.memory._tables import messages, sessions, summaries
from contract_engine.memory.archive import (
    FORMAT,
    VERSION,
    ArchivedMessage,
    ArchivedSummary,
    ArchiveReader,
    ArchiveWriter,
    Counts,
    Header,
    context_bytes,
)
from contract_engine.memory.serializer import decode_text, decode_value, encode_text

Progress = Callable[[int, int], object]

PAGE_ROWS, PAGE_BYTES = 1000, 4 * 1024 * 1024
"""How much is read, or written, by one statement and held at once; one message more, where that is larger."""

_TEXTS = ("segment", "text", "summary_instructions")
_OBJECTS = {"body": "message", "metadata": "metadata", "context": "context"}


def _told(row: Mapping[Any, Any], columns: Iterable[sa.Column[Any]]) -> dict[str, Any]:
    """Return a row by the names of the archive, its bytes decoded."""
    told: dict[str, Any] = {}
    for column in columns:
        value = row[column.name]
        if value is not None and column.name in _TEXTS:
            value = decode_text(bytes(value))
        elif value is not None and column.name in _OBJECTS:
            value = decode_value(bytes(value))
        told[_OBJECTS.get(column.name, column.name)] = value
    return told


def _columns(table: sa.Table, without: Iterable[str] = ()) -> list[sa.Column[Any]]:
    left_out = {"tenant", "session_id", *without}
    return [column for column in table.c if column.name not in left_out]


SESSION_COLUMNS = _columns(sessions, ("epoch", "revision", "indexed_seq"))
MESSAGE_COLUMNS = _columns(messages)
SUMMARY_COLUMNS = _columns(summaries)


def _page(table: sa.Table, columns: list[sa.Column[Any]], number: str, size: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Return the rows above ``after``: so many that neither their count nor their bytes are too many to hold."""
    running = sa.func.sum(size).over(order_by=table.c[number])
    page = (
        sa.select(*columns, (running - size).label("bytes_before"))
        .where(this_session(table), table.c[number] > sa.bindparam("after", type_=sa.BigInteger))
        .order_by(table.c[number])
        .limit(PAGE_ROWS)
        .subquery()
    )
    wanted = [page.c[column.name] for column in columns]
    return sa.select(*wanted).where(page.c.bytes_before < PAGE_BYTES).order_by(page.c[number])


def export_session(
    connection: sa.Connection, key: Mapping[str, str], writer: ArchiveWriter, progress: Progress | None
) -> Counts | None:
    """Write a session as it is at one moment; None where there is none, or one that a purge has erased just now.

    Nothing that writes has to wait for it.
    """
    connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    row = connection.execute(sa.select(*SESSION_COLUMNS).where(this_session(sessions)), key).mappings().first()
    if row is None or row["updated_at"] == ERASED_AT:
        return None
    head = {"kind": "session", "format": FORMAT, "version": VERSION, "session_id": key["of_session"]}
    writer.add([head | _told(row, SESSION_COLUMNS)])
    counts = Counts(0, 0)
    for rows in _pages(connection, key, _page(messages, MESSAGE_COLUMNS, "seq", sa.func.octet_length(messages.c.body))):
        writer.add({"kind": "message", **_told(found, MESSAGE_COLUMNS)} for found in rows)
        counts = Counts(counts.messages + len(rows), 0)
        if progress is not None:
            progress(counts.messages, row["last_seq"])
    sizes = sa.func.octet_length(summaries.c.text) + sa.func.coalesce(sa.func.octet_length(summaries.c.segment), 0)
    for rows in _pages(connection, key, _page(summaries, SUMMARY_COLUMNS, "version", sizes)):
        writer.add({"kind": "summary", **_told(found, SUMMARY_COLUMNS)} for found in rows)
        counts = Counts(counts.messages, counts.summaries + len(rows))
    writer.end(counts)
    return counts


def _pages(connection: sa.Connection, key: Mapping[str, str], page: sa.Select[Any]) -> Iterator[list[Any]]:
    after = 0
    while rows := list(connection.execute(page, {**key, "after": after}).mappings()):
        yield rows
        after = rows[-1].get("seq") or rows[-1]["version"]


def begin_import(
    connection: sa.Connection, key: Mapping[str, str], header: Header, *, replace: bool
) -> tuple[bool, bool] | None:
    """Put the session's row in place, which locks it; answers whether one was there, and whether it was done.

    Only with ``replace`` is a session that is there deleted; None where that one is being relayed, and stays. One that
    a purge has erased and not yet done with is none.
    """
    row = sa.insert(sessions).values(
        tenant=tenant,
        session_id=session_id,
        epoch=NEW_EPOCH,
        last_seq=header.last_seq,
        watermark=header.watermark,
        summary_version=header.summary_version,
        summary_trigger_tokens=header.summary_trigger_tokens,
        max_buffer_tokens=header.max_buffer_tokens,
        max_buffer_messages=header.max_buffer_messages,
        context=None if header.context is None else context_bytes(header.context),
        pinned=header.pinned,
        summary_instructions=None if header.summary_instructions is None else encode_text(header.summary_instructions),
        created_at=header.created_at,
        updated_at=header.updated_at,
    )
    begun = insert(sessions).values(tenant=tenant, session_id=session_id, epoch=NEW_EPOCH)
    # Where there is none this begins it, so that everybody else waits for us from here on.
    is_new = connection.execute(begun.on_conflict_do_nothing().returning(sessions.c.epoch), key).first() is not None
    held = connection.execute(
        sa.select(sessions.c.last_seq, sessions.c.updated_at).where(this_session(sessions)).with_for_update(), key
    ).first()
    is_there = held is not None and not is_new and held.updated_at != ERASED_AT
    if is_there and not replace:
        return True, False
    if is_there and held_by_relays(connection, key["of_tenant"], [key["of_session"]]):
        return None
    delete_rows(connection, key, held.last_seq if held is not None else 0)
    connection.execute(row, key)
    return is_there, True


def _import_messages() -> sa.Insert:
    item = (
        sa.func.unnest(
            sa.bindparam("seqs", type_=sa.ARRAY(sa.BigInteger)),
            sa.bindparam("message_ids", type_=sa.ARRAY(sa.Text)),
            sa.bindparam("tokens", type_=sa.ARRAY(sa.Integer)),
            sa.bindparam("bodies", type_=sa.ARRAY(sa.LargeBinary)),
            sa.bindparam("times", type_=sa.ARRAY(sa.DateTime(timezone=True))),
        )
        .table_valued("seq", "message_id", "tokens", "body", "created_at", name="item")
        .render_derived()
    )
    names = ["tenant", "session_id", "seq", "message_id", "tokens", "body", "created_at"]
    rows = sa.select(tenant, session_id, *(item.c[name] for name in names[2:])).select_from(item)
    return sa.insert(messages).from_select(names, rows)


def import_rows(
    connection: sa.Connection, key: Mapping[str, str], reader: ArchiveReader, header: Header, progress: Progress | None
) -> None:
    """Write the messages and summaries of a session whose row is in place, and read the trailer behind them."""
    rows = reader.rows(header)
    waiting: list[tuple[ArchivedMessage, bytes]] = []
    size = 0
    statement = _import_messages()

    def flush() -> None:
        if not waiting:
            return
        columns = {
            "seqs": [row.seq for row, _ in waiting],
            "message_ids": [row.message_id for row, _ in waiting],
            "tokens": [row.tokens for row, _ in waiting],
            "bodies": [body for _, body in waiting],
            "times": [row.created_at for row, _ in waiting],
        }
        connection.execute(statement, {**key, **columns})
        if progress is not None:
            progress(waiting[-1][0].seq, header.last_seq)
        waiting.clear()

    for row in rows:
        if isinstance(row, ArchivedSummary):
            _import_summary(connection, key, row)
            continue
        body = row.body()
        waiting.append((row, body))
        size += len(body)
        if len(waiting) >= PAGE_ROWS or size >= PAGE_BYTES:
            flush()
            size = 0
    flush()


def _import_summary(connection: sa.Connection, key: Mapping[str, str], row: ArchivedSummary) -> None:
    values: dict[str, Any] = {column.name: getattr(row, column.name) for column in SUMMARY_COLUMNS}
    for name in _TEXTS:
        if values.get(name) is not None:
            values[name] = encode_text(values[name])
    if row.metadata is not None:
        values["metadata"] = context_bytes(row.metadata)
    connection.execute(sa.insert(summaries).values(tenant=tenant, session_id=session_id, **values), key)


def exists(connection: sa.Connection, key: Mapping[str, str]) -> bool:
    """Whether there is such a session; one that a purge has erased and not yet done with is none."""
    found = connection.scalar(sa.select(sessions.c.updated_at).where(this_session(sessions)), key)
    return found is not None and found != ERASED_AT
