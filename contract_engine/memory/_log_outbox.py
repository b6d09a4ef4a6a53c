"""The SQL of the outbox: which messages of the log the legacy store is still to be given, and who is giving them.

A session has one row of ``memory_relays`` from its first such message on; whoever relays it holds the lease there. That
row and the rows of the outbox change in one statement, so ``pending`` is always their number: it is counted, because a
statement that waited for the row would not see the rows that came while it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from contract_engine.memory._effects import Statement
from contract_engine.memory._log import append_many, append_one, insert, this_session
from contract_engine.memory._tables import outbox, relays, sessions

NAMES = ["tenant", "session_id", "message_id", "seq"]


def _to_outbox(message: sa.CTE) -> Sequence[sa.CTE]:
    """Write a row of the outbox for each message, and have its session relayed."""
    kept = insert(outbox).from_select(NAMES, sa.select(*(message.c[name] for name in NAMES))).cte("kept")
    return kept, made_due(message).cte("due")


def made_due(message: sa.FromClause) -> Any:
    """Have the sessions of messages relayed, beside what is pending there already."""
    counted = sa.select(message.c.tenant, message.c.session_id, sa.func.count(), sa.func.now()).group_by(
        message.c.tenant, message.c.session_id
    )
    due = insert(relays).from_select(["tenant", "session_id", "pending", "due_at"], counted)
    return due.on_conflict_do_update(
        index_elements=["tenant", "session_id"],
        set_={
            "pending": relays.c.pending + due.excluded.pending,
            "due_at": sa.func.coalesce(relays.c.due_at, due.excluded.due_at),
        },
    )


APPEND_ONE_RELAYED = Statement("append_one_relayed", lambda: append_one(_to_outbox), is_hot=True)
APPEND_MANY_RELAYED = Statement("append_many_relayed", lambda: append_many(_to_outbox), is_hot=True)

# A session that is being relayed by somebody who is alive is passed over, and so is one that another claims right now.
CLAIM = Statement(
    "claim_relays",
    lambda: sa.text("""
        WITH due AS (
            SELECT tenant, session_id, in_doubt FROM memory_relays
            WHERE tenant = :of_tenant AND due_at <= now() AND parked_at IS NULL
              AND (leased_until IS NULL OR leased_until < clock_timestamp())
            ORDER BY due_at LIMIT CAST(:sessions AS integer) FOR UPDATE SKIP LOCKED)
        UPDATE memory_relays AS relay
        SET lease = :lease, in_doubt = true,
            leased_until = clock_timestamp() + make_interval(secs => CAST(:lease_seconds AS double precision))
        FROM due WHERE relay.tenant = due.tenant AND relay.session_id = due.session_id
        RETURNING relay.session_id, due.in_doubt, relay.attempts, relay.pending"""),
)

# Not in the statement above, which sees the outbox as it was before it got the lease. OFFSET 0 has each message looked
# up by its key: where tables have no statistics yet, a plain join goes through the whole session for each of them.
READ_CLAIMED = Statement(
    "read_claimed",
    lambda: sa.text("""
        SELECT session_id, message_id, seq, body FROM (
            SELECT claimed.place, claimed.session_id, item.message_id, item.seq, message.body,
                   sum(octet_length(message.body)) OVER (
                       ORDER BY claimed.place, item.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM unnest(CAST(:sessions AS text[]), CAST(:most AS integer[]))
                WITH ORDINALITY AS claimed(session_id, most, place)
            CROSS JOIN LATERAL (
                SELECT message_id, seq FROM memory_outbox
                WHERE tenant = :of_tenant AND session_id = claimed.session_id
                ORDER BY seq LIMIT claimed.most) AS item
            LEFT JOIN LATERAL (
                SELECT body FROM memory_messages
                WHERE tenant = :of_tenant AND session_id = claimed.session_id
                  AND seq = item.seq AND message_id = item.message_id OFFSET 0) AS message ON true) AS read
        WHERE coalesce(before, 0) < CAST(:most_bytes AS bigint)
        ORDER BY place, seq"""),
)

GIVE_BACK = Statement(
    "give_back_relays",
    lambda: sa.text("""
        UPDATE memory_relays
        SET lease = NULL, leased_until = NULL, in_doubt = session_id = ANY(CAST(:doubtful AS text[])),
            due_at = CASE WHEN CAST(:is_last AS boolean) THEN greatest(due_at, clock_timestamp()) ELSE due_at END
        WHERE tenant = :of_tenant AND session_id = ANY(CAST(:sessions AS text[])) AND lease = :lease
        RETURNING session_id"""),
)


def _finish(gone: str) -> sa.TextClause:
    """Take rows out of the outbox and note it with their sessions, whose rows are locked first (see ``_log_relays``).

    Those of ``kept`` go on being leased and in doubt: the one behind what is finished has failed.
    """
    noted = """
        counted AS (SELECT tenant, session_id, count(*) AS number FROM gone GROUP BY tenant, session_id)
        UPDATE memory_relays AS relay
        SET pending = relay.pending - counted.number, attempts = 0, error = NULL, parked_at = NULL,
            due_at = CASE WHEN relay.pending > counted.number THEN greatest(relay.due_at, clock_timestamp()) END,
            lease = CASE WHEN relay.lease = :lease AND NOT ends.is_kept THEN NULL ELSE relay.lease END,
            leased_until = CASE WHEN relay.lease = :lease AND NOT ends.is_kept THEN NULL ELSE relay.leased_until END,
            in_doubt = relay.in_doubt AND (ends.is_kept OR relay.lease IS DISTINCT FROM :lease)
        FROM counted,
            LATERAL (SELECT counted.session_id = ANY(CAST(:kept AS text[]))) AS ends(is_kept)
        WHERE relay.tenant = counted.tenant AND relay.session_id = counted.session_id
        RETURNING relay.session_id, relay.pending"""
    return sa.text(",".join((gone, noted)))


# The tenant comes out of what the planner cannot look into, here and where relays are joined: where tables have no
# statistics yet it takes the rows of one tenant for few, and would go through all of them each time.
FINISH_MANY = Statement(
    "finish_relays",
    lambda: _finish("""
        WITH done AS MATERIALIZED (
            SELECT CAST(:of_tenant AS text) AS tenant, *
            FROM unnest(CAST(:sessions AS text[]), CAST(:ids AS text[])) AS done(session_id, message_id)),
        held AS MATERIALIZED (
            SELECT relay.tenant, relay.session_id
            FROM (SELECT DISTINCT tenant, session_id FROM done ORDER BY session_id) AS named
            CROSS JOIN LATERAL (
                SELECT tenant, session_id FROM memory_relays
                WHERE tenant = named.tenant AND session_id = named.session_id FOR UPDATE) AS relay),
        gone AS (
            DELETE FROM memory_outbox AS item USING done JOIN held USING (tenant, session_id)
            WHERE item.tenant = done.tenant AND item.session_id = done.session_id
              AND item.message_id = done.message_id
            RETURNING item.tenant, item.session_id)"""),
)

# Of one session: its rows are looked up by their key whatever the planner knows, be there ever so many of others.
FINISH_ONE = Statement(
    "finish_relay",
    lambda: _finish("""
        WITH held AS MATERIALIZED (
            SELECT FROM memory_relays WHERE tenant = :of_tenant AND session_id = :of_session FOR UPDATE),
        gone AS (
            DELETE FROM memory_outbox
            WHERE tenant = :of_tenant AND session_id = :of_session AND message_id = ANY(CAST(:ids AS text[]))
              AND EXISTS (SELECT FROM held)
            RETURNING tenant, session_id)"""),
)

# ``in_doubt``: whether the legacy store may have been given something of which no note was taken.
PUT_OFF = Statement(
    "put_off_relay",
    lambda: sa.text("""
        UPDATE memory_relays
        SET attempts = attempts + CAST(:counted AS integer), error = :error, in_doubt = CAST(:in_doubt AS boolean),
            due_at = greatest(
                due_at, clock_timestamp() + make_interval(secs => CAST(:delay_seconds AS double precision))),
            parked_at = CASE WHEN CAST(:parks AS boolean) THEN clock_timestamp() END, lease = NULL, leased_until = NULL
        WHERE tenant = :of_tenant AND session_id = :of_session AND lease = :lease
        RETURNING session_id"""),
)

PENDING = Statement(
    "pending_messages",
    lambda: sa.text("""
        SELECT relay.in_doubt, relay.leased_until > clock_timestamp(), item.message_id, item.seq, message.body
        FROM memory_relays AS relay
        JOIN memory_outbox AS item ON item.tenant = relay.tenant AND item.session_id = relay.session_id
        JOIN LATERAL (
            SELECT body FROM memory_messages
            WHERE tenant = item.tenant AND session_id = item.session_id
              AND seq = item.seq AND message_id = item.message_id OFFSET 0) AS message ON true
        WHERE relay.tenant = :of_tenant AND relay.session_id = :of_session
        ORDER BY item.seq"""),
)

PENDING_IDS = Statement(
    "pending_ids",
    lambda: sa.text("""
        SELECT relay.in_doubt, relay.leased_until > clock_timestamp(), item.message_id, item.seq
        FROM memory_relays AS relay
        JOIN memory_outbox AS item ON item.tenant = relay.tenant AND item.session_id = relay.session_id
        WHERE relay.tenant = :of_tenant AND relay.session_id = :of_session
        ORDER BY item.seq"""),
)

IN_FLIGHT = Statement(
    "messages_in_flight",
    lambda: sa.text("""
        SELECT (SELECT message_id FROM memory_messages
                WHERE tenant = :of_tenant AND session_id = :of_session ORDER BY seq DESC LIMIT 1),
            ARRAY(SELECT message_id FROM memory_outbox WHERE tenant = :of_tenant AND session_id = :of_session)"""),
)

PRECEDING = Statement(
    "preceding_messages",
    lambda: sa.text("""
        SELECT body FROM memory_messages
        WHERE tenant = :of_tenant AND session_id = :of_session AND seq < CAST(:seq AS bigint)
        ORDER BY seq DESC LIMIT CAST(:most AS integer)"""),
)

LOG_END = Statement(
    "log_end",
    lambda: sa.select(sessions.c.epoch, sessions.c.revision, sessions.c.last_seq).where(this_session(sessions)),
)

# What the log holds behind a number, and which life and revision of the session that is, in one view.
LOGGED_BEHIND = Statement(
    "logged_behind",
    lambda: sa.text("""
        SELECT session.epoch, session.revision, session.last_seq, message.message_id, message.seq, message.body
        FROM memory_sessions AS session
        LEFT JOIN memory_messages AS message ON message.tenant = session.tenant
            AND message.session_id = session.session_id AND message.seq > CAST(:seq AS bigint)
        WHERE session.tenant = :of_tenant AND session.session_id = :of_session
        ORDER BY message.seq"""),
)

HAS_PENDING = Statement(
    "outbox_has_pending",
    lambda: sa.text("SELECT EXISTS (SELECT 1 FROM memory_relays WHERE tenant = :of_tenant AND due_at IS NOT NULL)"),
)

COUNTS = Statement(
    "outbox_counts",
    lambda: sa.text("""
        SELECT coalesce(sum(pending), 0)::bigint, count(*), count(parked_at)
        FROM memory_relays WHERE tenant = :of_tenant AND due_at IS NOT NULL"""),
)

# The first entry of an index from a tenant on, of which the planner is not told: one that takes the rows of a tenant
# for few, because it knows of none or of no more, may as well read and sort them all.
_OLDEST = """
    SELECT oldest.created_at FROM (SELECT CAST(:of_tenant AS text) AS tenant OFFSET 0) AS mine
    CROSS JOIN LATERAL (
        SELECT item.tenant, item.created_at FROM memory_outbox AS item
        WHERE item.tenant >= mine.tenant ORDER BY item.tenant, item.created_at LIMIT 1) AS oldest
    WHERE oldest.tenant = mine.tenant"""

# Messages are counted by their sessions and not looked at.
BACKLOG = Statement(
    "outbox_backlog",
    lambda: sa.text(f"""
        SELECT coalesce(sum(relay.pending), 0)::bigint, count(*), count(relay.parked_at),
               count(*) FILTER (WHERE relay.in_doubt),
               extract(epoch FROM clock_timestamp() - ({_OLDEST}))::double precision,
               coalesce(sum(relay.pending) FILTER (WHERE relay.parked_at IS NOT NULL), 0)::bigint
        FROM memory_relays AS relay WHERE relay.tenant = :of_tenant AND relay.due_at IS NOT NULL"""),  # noqa: S608
)

# For health checks: by indexes, however much is due. Whoever has no phase may still have a backlog.
OUTBOX_HEALTH = Statement(
    "outbox_health",
    lambda: sa.text(f"""
        SELECT EXISTS (SELECT 1 FROM memory_phases WHERE tenant = :of_tenant), coalesce(sum(pending), 0)::bigint,
               count(*) FILTER (WHERE attempts > 0), count(parked_at),
               extract(epoch FROM clock_timestamp() - ({_OLDEST}))::double precision
        FROM memory_relays WHERE tenant = :of_tenant AND due_at IS NOT NULL"""),  # noqa: S608
)

# Of all tenants: the age is looked up for one after the other.
OUTBOX_FIGURES = Statement(
    "outbox_figures",
    lambda: sa.text("""
        WITH RECURSIVE oldest AS (
            (SELECT tenant, created_at FROM memory_outbox ORDER BY tenant, created_at LIMIT 1)
            UNION ALL
            SELECT later.tenant, later.created_at FROM oldest CROSS JOIN LATERAL (
                SELECT tenant, created_at FROM memory_outbox WHERE tenant > oldest.tenant
                ORDER BY tenant, created_at LIMIT 1) AS later)
        SELECT coalesce(sum(pending), 0)::bigint,
               coalesce(sum(pending) FILTER (WHERE parked_at IS NOT NULL), 0)::bigint,
               coalesce(extract(epoch FROM clock_timestamp() - (
                   SELECT min(created_at) FROM oldest)), 0)::double precision
        FROM memory_relays WHERE due_at IS NOT NULL"""),
)

WAITING = Statement(
    "waiting_relays",
    lambda: sa.text("""
        SELECT session_id, pending, attempts, error, parked_at IS NOT NULL, in_doubt,
               extract(epoch FROM due_at - clock_timestamp())::double precision
        FROM memory_relays WHERE tenant = :of_tenant AND due_at IS NOT NULL
        ORDER BY parked_at IS NULL, attempts DESC, session_id LIMIT CAST(:limit AS integer)"""),
)

RETRY = Statement(
    "retry_relays",
    lambda: sa.text("""
        UPDATE memory_relays SET parked_at = NULL, attempts = 0, due_at = clock_timestamp()
        WHERE tenant = :of_tenant AND due_at IS NOT NULL AND (parked_at IS NOT NULL OR attempts > 0)
          AND (CAST(:of_session AS text) IS NULL OR session_id = :of_session)
        RETURNING session_id"""),
)
