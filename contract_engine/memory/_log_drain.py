"""The SQL that logs what waited in Redis while PostgreSQL was away."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import accumulate, dropwhile
from typing import Any, NamedTuple

import sqlalchemy as sa

from contract_engine.memory._effects import Statement
from contract_engine.memory._log import NEW_EPOCH, insert, milliseconds, session_id, tenant, this_session
from contract_engine.memory._log_phases import is_relayed
from contract_engine.memory._log_relays import last_fixed, relay_logged
from contract_engine.memory._log_transactions import stored_messages
from contract_engine.memory._tables import messages, sessions
from contract_engine.memory.config import SessionLimits
from contract_engine.memory.serializer import decode_value

SKEW_MS = 500
"""How far the clocks of Redis and PostgreSQL may be apart, in milliseconds, without an order being wrong by it."""


class Waiting(NamedTuple):
    """A message that waited, with the time at which Redis took it.

    ``is_relayed``: whether it is to reach the legacy store; None where nobody noted it, as in lists of older versions.
    """

    message_id: str
    tokens: int
    at_ms: int
    body: bytes
    is_relayed: bool | None = None


def _begin_session() -> Any:
    return (
        insert(sessions)
        .values(tenant=tenant, session_id=session_id, epoch=NEW_EPOCH)
        .on_conflict_do_update(index_elements=["tenant", "session_id"], set_={"updated_at": sessions.c.updated_at})
        .returning(sessions.c.epoch)
    )


def _end_empty_session() -> Any:
    """Delete the session's row if nothing has been kept under it, in this life of it."""
    kept = (*SessionLimits.__dataclass_fields__, "context", "pinned", "summary_instructions")
    return (
        sa.delete(sessions)
        .where(
            this_session(sessions),
            sessions.c.epoch == sa.cast(sa.bindparam("epoch"), sa.BigInteger),
            sessions.c.last_seq == sa.literal_column("0"),
            sessions.c.summary_version == sa.literal_column("0"),
            *(sessions.c[name].is_(None) for name in kept),
        )
        .returning(sessions.c.epoch)
    )


BEGIN_SESSION = Statement("begin_session", _begin_session)
END_EMPTY_SESSION = Statement("end_empty_session", _end_empty_session)


def log_waiting(
    connection: sa.Connection,
    key: Mapping[str, str],
    epoch: int,
    waiting: Sequence[Waiting],
    after: int,
    *,
    is_continued: bool,
) -> int | None:
    """Append what the log does not hold yet, in order; answers the number of the last of these, 0 where it holds all.

    ``after``: the last message of the log when the first of these was acknowledged, 0 where nobody knows. What has been
    logged behind it since then comes after what waited by then: whoever logged it has told nobody yet, but found these
    waiting, or could not see them. With ``is_continued`` that message is one of those that waited: what is behind it is
    put in order too. None where the session of this epoch is gone.
    """
    session = connection.execute(
        sa.select(sessions.c.epoch, sessions.c.last_seq, sessions.c.watermark)
        .where(this_session(sessions))
        .with_for_update(),
        key,
    ).first()
    if session is None or session.epoch != epoch:
        return None
    new = _missing(connection, key, waiting)
    if not new:
        return 0
    relayed = _to_relay(connection, key, new)
    # What has been folded has its place for good, and so has what a relay gave on that could not see these.
    fixed = max(session.watermark, last_fixed(connection, key) if relayed else 0)
    # Before the first that is missing: those in front of it another drain has logged, and a relay may have read them.
    since_ms = None if is_continued and after >= fixed else new[0].at_ms
    behind = _take_back(connection, key, max(after, fixed), since_ms=since_ms)
    # What another drain has logged of these may be among what was taken back: it is missing again now.
    rows = _missing(connection, key, _merged(waiting, behind))
    last_seq = session.last_seq - len(behind)
    waited = {name for item in waiting for name in (item.message_id, _other_id(item))}
    count = max(place for place, row in enumerate(rows, 1) if row.message_id in waited)
    connection.execute(
        sa.insert(messages).values(
            tenant=tenant,
            session_id=session_id,
            seq=sa.bindparam("of_seq"),
            message_id=sa.bindparam("of_id"),
            tokens=sa.bindparam("of_tokens"),
            body=sa.bindparam("of_body"),
            created_at=sa.func.to_timestamp(sa.bindparam("of_ms", type_=sa.BigInteger) / 1000.0),
        ),
        [
            {**key, "of_seq": seq, "of_id": name, "of_tokens": tokens, "of_ms": at_ms, "of_body": body}
            for seq, (name, tokens, at_ms, body, _) in enumerate(rows, last_seq + 1)
        ],
    )
    connection.execute(
        sa.update(sessions)
        .where(this_session(sessions))
        .values(last_seq=last_seq + len(rows), revision=sessions.c.revision + 1, updated_at=sa.func.now()),
        key,
    )
    relay_logged(connection, key, relayed)
    return int(last_seq) + count


def _to_relay(connection: sa.Connection, key: Mapping[str, str], new: Sequence[Waiting]) -> list[str]:
    """Return the ids of those that are to reach the legacy store."""
    relayed = [item.message_id for item in new if item.is_relayed]
    not_noted = [item.message_id for item in new if item.is_relayed is None]
    # That goes by the tenant, as everything did when nothing was noted: to relay too much does no harm that parity
    # would not show, and what was sent to both stores is to reach both.
    return relayed + not_noted if not_noted and is_relayed(connection, key) else relayed


def _merged(waiting: Sequence[Waiting], behind: Sequence[Waiting]) -> list[Waiting]:
    """Put what was logged behind what waited by then, and before what Redis took clearly later; both keep their order.

    Later by ``SKEW_MS``: the clocks are those of two machines.
    """
    merged: list[Waiting] = []
    # The first of those from each place on: a clock may have been put back among them.
    first_ms = [*accumulate((item.at_ms for item in reversed(waiting)), min)][::-1]
    place = 0
    for row in behind:
        while place < len(waiting) and first_ms[place] <= row.at_ms + SKEW_MS:
            merged.append(waiting[place])
            place += 1
        merged.append(row)
    return [*merged, *waiting[place:]]


def _missing(connection: sa.Connection, key: Mapping[str, str], waiting: Sequence[Waiting]) -> list[Waiting]:
    """Return what has to be appended. An id that is taken by another message does not cost a message its place.

    It was acknowledged while nobody could see the other one; so it is logged under an id made of its own and its
    content, which is the same whenever it is tried again.
    """
    renamed = {item: _other_id(item) for item in waiting}
    ids = [item.message_id for item in waiting]
    held = stored_messages(connection, key, [*ids, *renamed.values()])[0]
    bodies = {message_id: message.body for message_id, message in held.items()}
    missing: list[Waiting] = []
    for item in waiting:
        taken = bodies.get(item.message_id)
        is_other = taken is not None and decode_value(taken) != decode_value(item.body)
        message_id = renamed[item] if is_other else item.message_id
        if message_id not in bodies:
            bodies[message_id] = item.body
            missing.append(item._replace(message_id=message_id))
    return missing


def _other_id(item: Waiting) -> str:
    return f"{item.message_id[:180]}~{hashlib.sha256(item.body).hexdigest()}"


def _take_back(connection: sa.Connection, key: Mapping[str, str], after: int, *, since_ms: int | None) -> list[Waiting]:
    """Delete what was logged behind ``after`` since then (None: all of it), and return it in order; a batch as a whole
    or not at all.

    Clocks decide only between two things that lie the length of the outage apart: what Redis was never told of before
    it, and what was logged after it.
    """
    found = connection.execute(
        sa.select(
            messages.c.seq,
            messages.c.message_id,
            messages.c.tokens,
            milliseconds(messages.c.created_at),
            messages.c.body,
        )
        .where(this_session(messages), messages.c.seq >= after)
        .order_by(messages.c.seq),
        key,
    ).all()
    if since_ms is None:
        rows = [row for row in found if row[0] > after]
    else:
        # The messages of a batch have one time, so none is moved that has the time of one that stays.
        stays = max([since_ms, *(row[3] for row in found if row[0] == after)])
        rows = list(dropwhile(lambda row: row[0] == after or row[3] <= stays, found))
    if rows:
        connection.execute(sa.delete(messages).where(this_session(messages), messages.c.seq >= rows[0][0]), key)
    return [Waiting(name, tokens, at_ms, bytes(body)) for _, name, tokens, at_ms, body in rows]
