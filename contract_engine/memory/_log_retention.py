"""The SQL of retention: which sessions are old, the transactions that erase them, and the search for what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from contract_engine.memory._effects import Statement
from contract_engine.memory._log import NEW_EPOCH, insert, session_id, tenant, this_session
from contract_engine.memory._log_relays import held_by_relays
from contract_engine.memory._log_transactions import ROWS_AT_ONCE, delete_rows
from contract_engine.memory._tables import sessions, tables_of_sessions

ERASED_AT = datetime(1970, 1, 1, tzinfo=UTC)
"""When a row was touched that stands for an erased session, until Redis is known to hold nothing of it either: a purge
that dies before finds it again by that, and whoever begins the session anew moves it.
"""


def _sessions_after() -> sa.Select[Any]:
    """The next sessions of a tenant by id, and whether each is old: the primary key serves this, however many."""
    return (
        sa.select(
            sessions.c.session_id,
            sessions.c.last_seq,
            sessions.c.updated_at < sa.bindparam("before", type_=sa.DateTime(timezone=True)),
            sessions.c.updated_at,
        )
        .where(sessions.c.tenant == tenant, sessions.c.session_id > sa.bindparam("after", type_=sa.Text))
        .order_by(sessions.c.session_id)
        .limit(sa.bindparam("limit", type_=sa.BigInteger))
    )


SESSIONS_AFTER = Statement("sessions_after", _sessions_after)
SERVER_TIME = Statement("server_time", lambda: sa.select(sa.func.now()))


def erase_untouched(
    connection: sa.Connection, of_tenant: str, session_ids: Sequence[str], before: datetime
) -> dict[str, int]:
    """Erase those of some sessions that have still not been touched; answers their numbers of messages.

    Their rows are locked and looked at again under the lock. A session that somebody is at now, or a relay, is passed
    over, so this waits for nobody. In the place of each stands an empty row until :func:`end_erased`.
    """
    found = connection.execute(
        sa.select(sessions.c.session_id, sessions.c.last_seq)
        .where(sessions.c.tenant == of_tenant, sessions.c.session_id.in_(session_ids), sessions.c.updated_at < before)
        .order_by(sessions.c.session_id)
        .with_for_update(skip_locked=True)
    ).all()
    held = held_by_relays(connection, of_tenant, [row.session_id for row in found])
    found = [row for row in found if row.session_id not in held]
    for row in found:
        if row.last_seq > ROWS_AT_ONCE:
            delete_rows(connection, {"of_tenant": of_tenant, "of_session": row.session_id}, row.last_seq)
    names = [row.session_id for row in found]
    if names:
        for table in tables_of_sessions():
            connection.execute(sa.delete(table).where(table.c.tenant == of_tenant, table.c.session_id.in_(names)))
        connection.execute(
            sa.insert(sessions).values(epoch=NEW_EPOCH, created_at=ERASED_AT, updated_at=ERASED_AT),
            [{"tenant": of_tenant, "session_id": name} for name in names],
        )
    return {row.session_id: row.last_seq for row in found}


def end_erased(connection: sa.Connection, of_tenant: str, session_ids: Sequence[str]) -> None:
    """Delete the empty rows of erased sessions, but for those that were begun anew."""
    connection.execute(
        sa.delete(sessions).where(
            sessions.c.tenant == of_tenant,
            sessions.c.session_id.in_(session_ids),
            sessions.c.updated_at == ERASED_AT,
        )
    )


class Erased(NamedTuple):
    """What an erasure deleted of each table, and what it found there afterwards under the same lock.

    ``epoch`` is that of the life it ended, 0 where there was no session.
    """

    epoch: int
    deleted: dict[str, int]
    left: dict[str, int]


def erase_and_look(connection: sa.Connection, key: Mapping[str, str]) -> Erased | None:
    """Erase a session and look for rows of it before anybody can begin it anew; None where it is being relayed.

    The row is put in place where there is none, so that what may lie in other tables without it is under the lock too.
    """
    held = connection.execute(
        sa.select(sessions.c.epoch, sessions.c.last_seq).where(this_session(sessions)).with_for_update(), key
    ).first()
    if held is None:
        begun = insert(sessions).values(tenant=tenant, session_id=session_id, epoch=NEW_EPOCH)
        connection.execute(
            begun.on_conflict_do_update(
                index_elements=["tenant", "session_id"], set_={"updated_at": sessions.c.updated_at}
            ),
            key,
        )
    elif held_by_relays(connection, key["of_tenant"], [key["of_session"]]):
        return None
    deleted = delete_rows(connection, key, held.last_seq if held else 0)
    if held is None:
        deleted[sessions.name] = 0
    return Erased(held.epoch if held else 0, deleted, rows_of(connection, key))


def rows_of(connection: sa.Connection, key: Mapping[str, str]) -> dict[str, int]:
    """Answer how many rows each table has of a session, all at one moment."""
    counts: list[Any] = [
        sa.select(sa.literal_column(f"'{table.name}'"), sa.func.count()).where(this_session(table))
        for table in tables_of_sessions()
    ]
    return {row[0]: row[1] for row in connection.execute(sa.union_all(*counts), key)}
