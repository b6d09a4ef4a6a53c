"""The outbox within transactions on a session: what they move, write and delete there.

Each holds the row of the session's relay when it changes the outbox, as whoever relays does: so two of them never wait
for each other in a ring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from contract_engine.memory._log import this_session
from contract_engine.memory._log_outbox import NAMES, made_due
from contract_engine.memory._tables import messages, outbox, relays

# Put off, so that no relay takes one up before whoever waits has deleted it. One whose row is locked is being claimed
# or noted right now, and not waited for: with others held, that could be in a ring.
_KEEP_OFF = sa.text("""
    WITH here AS (
        SELECT session_id, coalesce(leased_until > clock_timestamp(), false) AS is_held FROM memory_relays
        WHERE tenant = :of_tenant AND session_id = ANY(CAST(:sessions AS text[])) FOR UPDATE SKIP LOCKED),
    put_off AS (
        UPDATE memory_relays AS relay
        SET due_at = CASE WHEN due_at IS NOT NULL THEN greatest(due_at, clock_timestamp() + interval '2 seconds') END
        FROM here WHERE relay.tenant = :of_tenant AND relay.session_id = here.session_id)
    SELECT relay.session_id FROM memory_relays AS relay LEFT JOIN here ON here.session_id = relay.session_id
    WHERE relay.tenant = :of_tenant AND relay.session_id = ANY(CAST(:sessions AS text[]))
      AND coalesce(here.is_held, true)""")


def held_by_relays(connection: sa.Connection, of_tenant: str, session_ids: Sequence[str]) -> set[str]:
    """Answer which of some sessions are being relayed; of the others none is until this transaction is over.

    For those who delete a session: what a relay has read before it may go on giving the legacy store.
    """
    rows = connection.execute(_KEEP_OFF, {"of_tenant": of_tenant, "sessions": list(session_ids)})
    return {row[0] for row in rows}


def fix(connection: sa.Connection, of_tenant: str, lease: str, session_ids: Sequence[str]) -> None:
    """Give all messages that claimed sessions have now their place for good.

    Their rows are locked by a statement of its own: it may have to wait for one who is changing places right now, and
    only the next statement sees what came of it.
    """
    mine = (relays.c.tenant == of_tenant, relays.c.lease == lease, relays.c.session_id.in_(session_ids))
    connection.execute(sa.select(relays.c.session_id).where(*mine).order_by(relays.c.session_id).with_for_update())
    newest = sa.select(messages.c.message_id).where(
        messages.c.tenant == relays.c.tenant, messages.c.session_id == relays.c.session_id
    )
    last = newest.order_by(messages.c.seq.desc()).limit(1).scalar_subquery()
    connection.execute(sa.update(relays).where(*mine).values(fixed_id=last))


def last_fixed(connection: sa.Connection, key: Mapping[str, str]) -> int:
    """Return the last message that has its place for good, see :func:`fix`; it stays so until the transaction is over.

    The caller holds the session's row.
    """
    fixed = connection.execute(sa.select(relays.c.fixed_id).where(this_session(relays)).with_for_update(), key).scalar()
    if fixed is None:
        return 0
    found = sa.select(messages.c.seq).where(this_session(messages), messages.c.message_id == fixed)
    return int(connection.execute(found, key).scalar() or 0)


def renumber(connection: sa.Connection, key: Mapping[str, str]) -> None:
    """Give the rows of the outbox the numbers that their messages have now; the caller holds the session's row.

    Whoever changes what is in the outbox holds the row of its relay: two of them never wait for each other in a ring.
    """
    connection.execute(sa.select(relays.c.pending).where(this_session(relays)).with_for_update(), key)
    connection.execute(
        sa.update(outbox)
        .values(seq=messages.c.seq)
        .where(
            this_session(outbox),
            messages.c.tenant == outbox.c.tenant,
            messages.c.session_id == outbox.c.session_id,
            messages.c.message_id == outbox.c.message_id,
            messages.c.seq != outbox.c.seq,
        ),
        key,
    )


def relay_logged(connection: sa.Connection, key: Mapping[str, str], message_ids: Sequence[str] | None) -> None:
    """Write rows of the outbox for messages that have just been logged; None: for all of the session.

    The caller holds the session's row. What was logged behind these messages before has moved up, and keeps its rows.
    """
    renumber(connection, key)
    if message_ids is None or message_ids:
        these = sa.select(*(messages.c[name] for name in NAMES)).where(this_session(messages))
        if message_ids is not None:
            these = these.where(messages.c.message_id.in_(message_ids))
        connection.execute(sa.insert(outbox).from_select(NAMES, these), key)
        connection.execute(made_due(these.subquery()), key)


def recount(connection: sa.Connection, key: Mapping[str, str], lease: str) -> int:
    """Count the pending messages of a session anew and give its lease back; answers how many there are."""
    found = connection.execute(
        sa.select(relays.c.lease).where(this_session(relays)).with_for_update(), key
    ).scalar_one_or_none()
    if found != lease:
        return 0
    count = connection.execute(sa.select(sa.func.count()).select_from(outbox).where(this_session(outbox)), key)
    pending = int(count.scalar_one())
    connection.execute(
        sa.update(relays)
        .where(this_session(relays))
        .values(
            pending=pending,
            due_at=sa.func.greatest(relays.c.due_at, sa.func.clock_timestamp()) if pending else None,
            lease=None,
            leased_until=None,
            in_doubt=False,
        ),
        key,
    )
    return pending
