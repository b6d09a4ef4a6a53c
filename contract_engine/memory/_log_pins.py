"""The SQL of pinned messages and of what a session wants of its summaries: functions run in one transaction each.

Both live in the session's row, whose revision they raise: a fold that was planned without them is not committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa

from contract_engine.memory._log import NEW_EPOCH, insert, session_id, tenant, this_session
from contract_engine.memory._tables import messages, sessions, summaries


class Pinning(NamedTuple):
    """What became of a pin.

    ``is_known``: the session has the message. ``pinned_tokens``: of all pinned messages, this one included.
    ``summary_tokens``: the most that the summary may have beside them; None unless it has more, and then nothing was
    written.
    """

    is_known: bool
    pinned_tokens: int = 0
    summary_tokens: int | None = None


def pin(connection: sa.Connection, key: Mapping[str, str], message_id: str, budget: int) -> Pinning:
    """Pin a message of the session if it is there and there is room; pinning it again changes nothing.

    ``budget``: the tokens that the summary may have together with the pinned messages that it covers. Pinned messages,
    those it does not cover yet included, get at most half of it.
    """
    session = connection.execute(
        sa.select(sessions.c.pinned, sessions.c.watermark, sessions.c.summary_version)
        .where(this_session(sessions))
        .with_for_update(),
        key,
    ).first()
    if session is None:
        return Pinning(False)
    # Read behind the lock: a join would have been read before it, and be without the version of the fold waited for.
    summary_tokens = connection.scalar(
        sa.select(summaries.c.tokens).where(this_session(summaries), summaries.c.version == session.summary_version),
        key,
    )
    ids = list(session.pinned or ())
    if message_id in ids:
        return Pinning(True)
    found = connection.execute(
        sa.select(messages.c.message_id, messages.c.seq, messages.c.tokens).where(
            this_session(messages), messages.c.message_id.in_([*ids, message_id])
        ),
        key,
    ).all()
    if all(row.message_id != message_id for row in found):
        return Pinning(False)
    pinned_tokens = sum(row.tokens for row in found)
    room = budget - sum(row.tokens for row in found if row.seq <= session.watermark)
    is_new_covered = any(row.message_id == message_id and row.seq <= session.watermark for row in found)
    if pinned_tokens > budget // 2:
        return Pinning(True, pinned_tokens)
    if is_new_covered and summary_tokens is not None and summary_tokens > room:
        return Pinning(True, pinned_tokens, room)
    _write(connection, key, pinned=[*ids, message_id])
    return Pinning(True, pinned_tokens)


def unpin(connection: sa.Connection, key: Mapping[str, str], message_id: str) -> bool:
    """Unpin a message; False where it was not pinned."""
    ids = connection.scalar(sa.select(sessions.c.pinned).where(this_session(sessions)).with_for_update(), key) or ()
    if message_id not in ids:
        return False
    _write(connection, key, pinned=[other for other in ids if other != message_id] or None)
    return True


def set_instructions(connection: sa.Connection, key: Mapping[str, str], text: bytes) -> None:
    """Keep what the session wants of its summaries, creating the session if need be; an empty text clears it."""
    connection.execute(
        insert(sessions)
        .values(tenant=tenant, session_id=session_id, epoch=NEW_EPOCH)
        .on_conflict_do_update(index_elements=["tenant", "session_id"], set_={"updated_at": sa.func.now()}),
        key,
    )
    _write(connection, key, summary_instructions=text or None)


def _write(connection: sa.Connection, key: Mapping[str, str], **values: object) -> None:
    connection.execute(
        sa.update(sessions)
        .where(this_session(sessions))
        .values(**values, revision=sessions.c.revision + 1, updated_at=sa.func.now()),
        key,
    )
