"""The SQL that puts older history into the log, in front of what was logged since or between it.

Each batch is one transaction on the locked row of its session. What stands behind the batch is renumbered, and the
ranges of the summaries with it, so that the log has no gap at any moment; the revision is raised, so that whoever has
read the session before has to read it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from contract_engine.memory._effects import Statement
from contract_engine.memory._log import NEW_EPOCH, insert, session_id, tenant, this_session
from contract_engine.memory._log_relays import renumber
from contract_engine.memory._log_retention import ERASED_AT
from contract_engine.memory._tables import messages, recall, sessions, summaries
from contract_engine.memory.models import IMPORTED, REBUILT

# Place and digest, see legacy_messages.imported_id().
_PLACE: sa.ColumnElement[str] = sa.literal_column("'^legacy-([0-9]{1,18})-[0-9a-f]{32}$'")


class HistoryRow(NamedTuple):
    """A message of the older history on its way in."""

    message_id: str
    tokens: int
    at_ms: int
    body: bytes


class Position(NamedTuple):
    """How far an import has come: ``place`` of the older history under ``message_id``, which has ``seq``; 0 for none.

    ``last_seq`` is the newest message of the log. ``is_unsummarized``: messages were imported below the watermark, and
    the summary has not been written from them yet. ``revision`` is that of the session.
    """

    place: int
    message_id: str | None
    seq: int
    last_seq: int
    is_unsummarized: bool
    revision: int


def _position() -> sa.Select[Any]:
    place = sa.cast(sa.func.substring(messages.c.message_id, _PLACE), sa.BigInteger)
    newest = (
        sa.select(place.label("place"), messages.c.message_id, messages.c.seq)
        .where(
            messages.c.tenant == sessions.c.tenant,
            messages.c.session_id == sessions.c.session_id,
            messages.c.message_id.like(sa.literal_column("'legacy-%'")),
            messages.c.message_id.op("~")(_PLACE),
        )
        # Places rise with the numbers, so that only what was logged since has to be looked through.
        .order_by(messages.c.seq.desc())
        .limit(sa.literal_column("1"))
        .lateral("newest")
    )

    def latest(method: str) -> sa.ScalarSelect[Any]:
        return (
            sa.select(sa.func.coalesce(sa.func.max(summaries.c.version), sa.literal_column("0")))
            .where(this_session(summaries), summaries.c.method == sa.literal_column(f"'{method}'"))
            .scalar_subquery()
        )

    return (
        sa.select(
            newest.c.place,
            newest.c.message_id,
            newest.c.seq,
            sessions.c.last_seq,
            latest(IMPORTED) > latest(REBUILT),
            sessions.c.revision,
        )
        .select_from(sessions.outerjoin(newest, sa.true()))
        .where(this_session(sessions))
    )


def _page() -> sa.Select[Any]:
    return (
        sa.select(messages.c.seq, messages.c.message_id, messages.c.body)
        .where(this_session(messages), messages.c.seq > sa.cast(sa.bindparam("after"), sa.BigInteger))
        .order_by(messages.c.seq)
        .limit(sa.bindparam("limit", type_=sa.BigInteger))
    )


def _places() -> sa.Select[Any]:
    return sa.select(messages.c.message_id, messages.c.seq).where(
        this_session(messages), messages.c.message_id == sa.any_(sa.bindparam("message_ids", type_=sa.ARRAY(sa.Text)))
    )


def _names() -> sa.Select[Any]:
    return (
        sa.select(sessions.c.session_id)
        .where(sessions.c.tenant == tenant, sessions.c.session_id > sa.bindparam("after", type_=sa.Text))
        .order_by(sessions.c.session_id)
        .limit(sa.bindparam("limit", type_=sa.BigInteger))
    )


POSITION = Statement("backfill_position", _position)
PAGE = Statement("log_page", _page)
PLACES = Statement("message_places", _places)
NAMES = Statement("session_names", _names)


def insert_history(
    connection: sa.Connection,
    key: Mapping[str, str],
    rows: Sequence[HistoryRow],
    *,
    after_id: str | None,
    is_covered: bool,
    created_ms: int,
    updated_ms: int,
) -> bool:
    """Insert messages right behind the one of ``after_id``, at the front where that is None.

    ``is_covered``: the watermark goes up to the last of them, so that no context has to hold them; the text of the
    summary stays as it is. What goes in below the watermark is covered in any case. At the front the session begins
    here if there is none, with the times of the older store. False where no message was written: the one of
    ``after_id`` is gone, or some of these are there already.
    """
    times = {"created_at": sa.func.least(sessions.c.created_at, _time(created_ms)), "updated_at": _touched(updated_ms)}
    begun = insert(sessions).values(
        tenant=tenant, session_id=session_id, epoch=NEW_EPOCH, created_at=_time(created_ms),
        updated_at=_time(updated_ms),
    )  # fmt: skip
    found_or_begun = begun.on_conflict_do_update(index_elements=["tenant", "session_id"], set_=times)
    found = sa.update(sessions).where(this_session(sessions)).values(times)
    session = connection.execute(
        (found_or_begun if after_id is None else found).returning(
            sessions.c.last_seq, sessions.c.watermark, sessions.c.summary_version, sessions.c.indexed_seq
        ),
        key,
    ).one_or_none()
    if session is None:
        return False
    wanted = [row.message_id for row in rows]
    is_known = sa.select(messages.c.seq).where(this_session(messages), messages.c.message_id == sa.any_(_texts(wanted)))
    if connection.execute(is_known.limit(1), key).first() is not None:
        return False
    place = 0
    if after_id is not None:
        before = connection.execute(
            sa.select(messages.c.seq).where(this_session(messages), messages.c.message_id == after_id), key
        ).scalar()
        if before is None:
            return False
        place = int(before)
    if place < session.last_seq:
        _move(connection, key, place, len(rows))
        renumber(connection, key)
    _insert(connection, key, rows, place)
    watermark = session.watermark
    if place < watermark:
        watermark += len(rows)
    elif is_covered:
        watermark = place + len(rows)
    version = session.summary_version
    if watermark != session.watermark:
        version = _cover(connection, key, version, old=session.watermark, watermark=watermark, place=place)
    if place < session.indexed_seq:
        connection.execute(sa.delete(recall).where(this_session(recall), recall.c.seq > place), key)
    connection.execute(
        sa.update(sessions)
        .where(this_session(sessions))
        .values(
            last_seq=session.last_seq + len(rows),
            revision=sessions.c.revision + 1,
            watermark=watermark,
            summary_version=version,
            indexed_seq=min(session.indexed_seq, place),
        ),
        key,
    )
    return True


def insert_context(
    connection: sa.Connection, key: Mapping[str, str], body: bytes, *, created_ms: int, updated_ms: int
) -> bool:
    """Give a session its context object unless it has one; False where it has. It begins here if there is none."""
    begun = insert(sessions).values(
        tenant=tenant, session_id=session_id, epoch=NEW_EPOCH, context=body, created_at=_time(created_ms),
        updated_at=_time(updated_ms),
    )  # fmt: skip
    done = begun.on_conflict_do_update(
        index_elements=["tenant", "session_id"],
        set_={"context": body, "updated_at": _touched(updated_ms)},
        where=sessions.c.context.is_(None),
    )
    return connection.execute(done.returning(sessions.c.epoch), key).first() is not None


def _touched(updated_ms: int) -> sa.ColumnElement[Any]:
    """An import is no touch; but a row that a purge has yet to delete would be deleted with what comes in now."""
    return sa.case((sessions.c.updated_at == ERASED_AT, _time(updated_ms)), else_=sessions.c.updated_at)


def _move(connection: sa.Connection, key: Mapping[str, str], place: int, by: int) -> None:
    """Renumber what stands behind ``place``, by way of numbers nobody has: a key is checked row by row."""
    for new, moved in ((-(messages.c.seq + by), messages.c.seq > place), (-messages.c.seq, messages.c.seq < 0)):
        connection.execute(sa.update(messages).where(this_session(messages), moved).values(seq=new), key)


def _insert(connection: sa.Connection, key: Mapping[str, str], rows: Sequence[HistoryRow], place: int) -> None:
    item = (
        sa.func.unnest(
            _texts([row.message_id for row in rows]),
            sa.literal([row.tokens for row in rows], sa.ARRAY(sa.Integer)),
            sa.literal([row.at_ms for row in rows], sa.ARRAY(sa.BigInteger)),
            sa.literal([row.body for row in rows], sa.ARRAY(sa.LargeBinary)),
        )
        .table_valued("message_id", "tokens", "at_ms", "body", with_ordinality="place", name="item")
        .render_derived()
    )
    found = sa.select(
        tenant, session_id, item.c.place + place, item.c.message_id, item.c.tokens, item.c.body,
        sa.func.to_timestamp(sa.cast(item.c.at_ms, sa.Numeric) / 1000),
    )  # fmt: skip
    names = ["tenant", "session_id", "seq", "message_id", "tokens", "body", "created_at"]
    connection.execute(sa.insert(messages).from_select(names, found), key)


def _cover(
    connection: sa.Connection, key: Mapping[str, str], version: int, *, old: int, watermark: int, place: int
) -> int:
    """Have the summary cover messages 1 to ``watermark`` with the text it has; answers its new version.

    Of versions, a range that the new messages went into takes them in.
    """
    by = watermark - old
    if place < old:
        for column, behind in ((summaries.c.last_seq, place), (summaries.c.first_seq, place + 1)):
            connection.execute(
                sa.update(summaries).where(this_session(summaries), column > behind).values({column: column + by}), key
            )
    current = connection.execute(
        sa.select(summaries).where(this_session(summaries), summaries.c.version == version), key
    ).first()
    if current is not None and current.method == IMPORTED:
        connection.execute(
            sa.update(summaries)
            .where(this_session(summaries), summaries.c.version == version)
            .values(version=version + 1, last_seq=watermark),
            key,
        )
        return version + 1
    connection.execute(
        sa.insert(summaries).values(
            tenant=tenant,
            session_id=session_id,
            version=version + 1,
            first_seq=(watermark if place < old else old) + 1,
            last_seq=watermark,
            text=b"" if current is None else current.text,
            tokens=0 if current is None else current.tokens,
            method=IMPORTED,
            parent=version or None,
        ),
        key,
    )
    return version + 1


def _texts(values: Sequence[str]) -> sa.ColumnElement[Any]:
    return sa.literal(list(values), sa.ARRAY(sa.Text))


def _time(at_ms: int) -> sa.ColumnElement[Any]:
    return sa.func.to_timestamp(sa.literal(at_ms, sa.BigInteger) / sa.literal_column("1000.0"))
