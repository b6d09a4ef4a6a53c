"""The SQL of the log beside the hot path: functions that are each run in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from contract_engine.memory._log import (
    NEW_EPOCH,
    effective_limits,
    insert,
    milliseconds,
    session_id,
    tenant,
    this_session,
)
from contract_engine.memory._log_relays import held_by_relays
from contract_engine.memory._tables import messages, sessions, summaries, tables_of_sessions
from contract_engine.memory.config import SessionLimits
from contract_engine.memory.models import CLEARED

ROWS_AT_ONCE = 50_000
"""Messages deleted by one statement: it has to be done within the deadline, also of a session of a million."""


class StoredMessage(NamedTuple):
    """What the log already holds under a message id."""

    seq: int
    at_ms: int
    body: bytes


def stored_messages(
    connection: sa.Connection, key: Mapping[str, str], message_ids: Sequence[str]
) -> tuple[dict[str, StoredMessage], int, int]:
    """Answer which of these ids the session holds already, and its epoch and revision."""
    row = connection.execute(
        sa.select(sessions.c.epoch, sessions.c.revision).where(this_session(sessions)), key
    ).first()
    found = connection.execute(
        sa.select(messages.c.message_id, messages.c.seq, milliseconds(messages.c.created_at), messages.c.body).where(
            this_session(messages), messages.c.message_id.in_(message_ids)
        ),
        key,
    )
    stored = {message_id: StoredMessage(seq, at_ms, bytes(body)) for message_id, seq, at_ms, body in found}
    return stored, (row.epoch if row else 0), (row.revision if row else 0)


def change_limits(
    connection: sa.Connection, key: Mapping[str, str], changes: Mapping[str, object], defaults: SessionLimits
) -> SessionLimits:
    """Apply changes to the session's limits; what was never set goes on following the defaults."""
    columns = [sessions.c[name] for name in SessionLimits.__dataclass_fields__]
    row = connection.execute(
        insert(sessions)
        .values(tenant=tenant, session_id=session_id, epoch=NEW_EPOCH)
        .on_conflict_do_update(index_elements=["tenant", "session_id"], set_={"updated_at": sa.func.now()})
        .returning(*columns),
        key,
    ).one()
    limits = effective_limits(defaults, dict(row._mapping)).with_changes(changes)
    connection.execute(
        sa.update(sessions).where(this_session(sessions)).values({**changes, "revision": sessions.c.revision + 1}), key
    )
    return limits


def erase(connection: sa.Connection, key: Mapping[str, str]) -> bool | None:
    """Delete every row of the session and answer whether there was one; None where it is being relayed, and stays.

    The session's row is locked first: an append that is under way holds it, so its message is deleted with the rest,
    and one that comes later waits for us and begins a new session. Where there is no such row there is nothing else
    either: what may appear meanwhile belongs to a new session, and stays.
    """
    last_seq = connection.scalar(sa.select(sessions.c.last_seq).where(this_session(sessions)).with_for_update(), key)
    if last_seq is None:
        return False
    if held_by_relays(connection, key["of_tenant"], [key["of_session"]]):
        return None
    delete_rows(connection, key, last_seq)
    return True


def delete_rows(connection: sa.Connection, key: Mapping[str, str], last_seq: int) -> dict[str, int]:
    """Delete every row of a session whose own row is locked or gone; answers how many there were of each table."""
    counts: dict[str, int] = {}
    for table in tables_of_sessions():
        rows = sa.delete(table).where(this_session(table))
        count = 0
        if "seq" in table.c:
            up_to = sa.bindparam("up_to", type_=sa.BigInteger)
            for reached in range(ROWS_AT_ONCE, last_seq, ROWS_AT_ONCE):
                count += connection.execute(rows.where(table.c.seq <= up_to), {**key, "up_to": reached}).rowcount
        counts[table.name] = count + connection.execute(rows, key).rowcount
    return counts


def clear_summaries(connection: sa.Connection, key: Mapping[str, str]) -> None:
    """Delete every summary version; an empty one goes on covering the messages that were folded away."""
    row = connection.execute(
        sa.select(sessions.c.watermark, sessions.c.summary_version).where(this_session(sessions)).with_for_update(), key
    ).first()
    if row is None or row.summary_version == 0:
        return
    connection.execute(sa.delete(summaries).where(this_session(summaries)), key)
    version = row.summary_version + 1
    connection.execute(
        sa.insert(summaries).values(
            tenant=tenant,
            session_id=session_id,
            version=version,
            first_seq=row.watermark + 1,
            last_seq=row.watermark,
            text=b"",
            tokens=0,
            method=CLEARED,
        ),
        key,
    )
    connection.execute(
        sa.update(sessions)
        .where(this_session(sessions))
        .values(summary_version=version, revision=sessions.c.revision + 1, updated_at=sa.func.now()),
        key,
    )


def list_sessions(connection: sa.Connection, of_tenant: str, limit: int) -> list[dict[str, Any]]:
    """Answer the sessions of a tenant, most recently used first."""
    rows = connection.execute(
        sa.select(
            sessions.c.session_id,
            sessions.c.last_seq.label("message_count"),
            sessions.c.watermark,
            sessions.c.summary_version,
            sessions.c.created_at,
            sessions.c.updated_at,
        )
        .where(sessions.c.tenant == of_tenant)
        .order_by(sessions.c.updated_at.desc(), sessions.c.session_id)
        .limit(limit)
    )
    return [dict(row._mapping) for row in rows]
