"""The SQL of summaries beside the hot path: what a version is written from, and which versions derive from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from contract_engine.memory._effects import Statement
from contract_engine.memory._log import array, milliseconds, session_id, tenant, this_session
from contract_engine.memory._tables import messages, sessions, summaries
from contract_engine.memory.models import CLEARED, EXTRACTIVE, MODEL, REBUILT, SUPPLIED


def _text(value: str) -> sa.ColumnElement[str]:
    return sa.literal_column(f"'{value}'")


def _read_source() -> sa.Select[Any]:
    """One row: where the session stands, the version to go on from, and what callers have added to the text since.

    ``base_version`` names that version, 0 for none. NULL: the newest that is no fold's and no caller's, and that is not
    quarantined; what folds wrote since is written anew from the messages. What was rebuilt is not given to a model
    again: messages that have poisoned a summary once would do so once more.
    """
    newest = (
        sa.select(sa.func.max(summaries.c.version))
        .where(
            this_session(summaries),
            summaries.c.method.in_([_text(MODEL), _text(CLEARED), _text(REBUILT)]),
            summaries.c.quarantined_at.is_(None),
        )
        .scalar_subquery()
    )
    wanted = sa.func.coalesce(sa.cast(sa.bindparam("base_version"), sa.Integer), newest)
    base = summaries.alias("base")
    added = (
        sa.select(
            array(summaries.c.version, summaries.c.version).label("versions"),
            array(summaries.c.segment, summaries.c.version).label("segments"),
        )
        .where(
            this_session(summaries),
            summaries.c.method == _text(SUPPLIED),
            summaries.c.quarantined_at.is_(None),
            summaries.c.version > sa.func.coalesce(base.c.version, sa.literal_column("0")),
        )
        .lateral("added")
    )
    is_base = sa.and_(base.c.tenant == tenant, base.c.session_id == session_id, base.c.version == wanted)
    return (
        sa.select(
            sessions.c.epoch,
            sessions.c.revision,
            sessions.c.last_seq,
            sessions.c.watermark,
            sessions.c.summary_version,
            sessions.c.pinned,
            sessions.c.summary_instructions,
            base.c.version,
            base.c.last_seq,
            base.c.text,
            added.c.versions,
            added.c.segments,
        )
        .select_from(sessions.outerjoin(base, is_base).join(added, sa.true()))
        .where(this_session(sessions))
    )


def _read_span() -> sa.Select[Any]:
    """The oldest messages above ``after`` up to ``last_seq``."""
    return (
        sa.select(messages.c.seq, messages.c.tokens, milliseconds(messages.c.created_at), messages.c.body)
        .where(
            this_session(messages),
            messages.c.seq > sa.cast(sa.bindparam("after"), sa.BigInteger),
            messages.c.seq <= sa.cast(sa.bindparam("last_seq"), sa.BigInteger),
        )
        .order_by(messages.c.seq)
        .limit(sa.bindparam("limit", type_=sa.BigInteger))
    )


def _summary_history() -> sa.Select[Any]:
    """The newest versions, newest first."""
    return (
        sa.select(
            summaries.c.version,
            summaries.c.first_seq,
            summaries.c.last_seq,
            sa.func.coalesce(summaries.c.segment, summaries.c.text),
            summaries.c.tokens,
            summaries.c.method,
            summaries.c.metadata,
            milliseconds(summaries.c.created_at),
            summaries.c.parent,
            summaries.c.model,
            summaries.c.prompt_hash,
            summaries.c.tokens_in,
            summaries.c.tokens_out,
            milliseconds(summaries.c.quarantined_at),
        )
        .where(this_session(summaries), summaries.c.method != _text(CLEARED))
        .order_by(summaries.c.version.desc())
        .limit(sa.bindparam("limit", type_=sa.BigInteger))
    )


def _summary_stats() -> sa.Select[Any]:
    """One row per method: its versions, how many of them are quarantined, and the newest of them."""

    def newest(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return array(column, summaries.c.version.desc())[sa.literal_column("1")]

    return (
        sa.select(
            summaries.c.method,
            sa.func.count(),
            sa.func.count(summaries.c.quarantined_at),
            sa.func.max(summaries.c.version),
            newest(summaries.c.model),
            newest(summaries.c.first_seq),
            newest(summaries.c.last_seq),
        )
        .where(this_session(summaries))
        .group_by(summaries.c.method)
    )


READ_SOURCE = Statement("read_source", _read_source)
READ_SPAN = Statement("read_span", _read_span)
SUMMARY_HISTORY = Statement("summary_history", _summary_history)
SUMMARY_STATS = Statement("summary_stats", _summary_stats)


class Derived(NamedTuple):
    """The versions that derive from quarantined ones, those included, and what is left to go on from.

    ``is_current``: the current version is among them. ``ancestor`` is the version it derives from and that is in order,
    0 for none.
    """

    versions: tuple[int, ...]
    is_current: bool
    ancestor: int
    summary_version: int
    revision: int


def quarantine(connection: sa.Connection, key: Mapping[str, str], version: int, *, dry_run: bool) -> Derived | None:
    """Mark a version and all that derives from it; None where there is no such version.

    The session's row is locked, so no version is written meanwhile. The revision is raised with the first mark: whoever
    is about to write a version that derives from a marked one has to read again.
    """
    state = connection.execute(
        sa.select(sessions.c.revision, sessions.c.summary_version).where(this_session(sessions)).with_for_update(), key
    ).first()
    rows = connection.execute(
        sa.select(
            summaries.c.version,
            summaries.c.parent,
            summaries.c.method,
            summaries.c.created_at,
            summaries.c.quarantined_at,
        )
        .where(this_session(summaries))
        .order_by(summaries.c.version),
        key,
    ).all()
    if state is None or not any(row.version == version and row.method != CLEARED for row in rows):
        return None
    parents = {row.version: _parent(row.version, row.parent, row.method) for row in rows}
    derived = _derived(rows, parents, version)
    ancestor = state.summary_version
    while ancestor in derived:
        ancestor = parents.get(ancestor, 0)
    unmarked = [row.version for row in rows if row.version in derived and row.quarantined_at is None]
    revision = state.revision
    if unmarked and not dry_run:
        connection.execute(
            sa.update(summaries)
            .where(this_session(summaries), summaries.c.version.in_(unmarked))
            .values(quarantined_at=sa.func.now()),
            key,
        )
        revision += 1
        connection.execute(sa.update(sessions).where(this_session(sessions)).values(revision=revision), key)
    is_current = state.summary_version in derived
    return Derived(tuple(sorted(derived)), is_current, ancestor, state.summary_version, revision)


def _parent(version: int, parent: int | None, method: str) -> int:
    """Return the version a text goes on from, 0 for none.

    Where none is recorded with a fold or a text of a caller, the version was written before parents were recorded: then
    each went on from the one before it.
    """
    return parent or (0 if method not in (EXTRACTIVE, SUPPLIED) else version - 1)


def _derived(rows: Sequence[Any], parents: Mapping[int, int], version: int) -> set[int]:
    """Return ``version``, those that are marked already, and all whose text holds something of theirs.

    A version holds what its parent holds, and what callers had added between the two, unless that was marked before.
    """
    derived: set[int] = set()
    bad_texts: list[Any] = []
    for row in rows:
        is_marked = row.version == version or row.quarantined_at is not None
        holds = any(
            parents[row.version] < bad.version and (bad.quarantined_at is None or row.created_at < bad.quarantined_at)
            for bad in bad_texts
        )
        if is_marked or holds or parents[row.version] in derived:
            derived.add(row.version)
            if row.method == SUPPLIED:
                bad_texts.append(row)
    return derived
