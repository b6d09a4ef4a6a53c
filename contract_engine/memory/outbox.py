"""The outbox as flows: what the legacy store is still to be given, and the phase the tenant is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from contract_engine.memory import _log_outbox, _log_phases, _log_relays
from contract_engine.memory._effects import Flow, query, query_once, transaction
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.models import Message
from contract_engine.memory.phases import Phase, PhaseSetting
from contract_engine.memory.serializer import decode_value


class Pending(NamedTuple):
    """A message of the log that the legacy store is to be given, or was."""

    message_id: str
    seq: int
    message: Message


class PendingSession(NamedTuple):
    """What a session still owes the legacy store. ``in_doubt``: some of it may be there; ``is_leased``: right now."""

    pending: Sequence[Pending]
    in_doubt: bool
    is_leased: bool


class Claim(NamedTuple):
    """A session whose lease was taken, when ``pending`` messages were owed; ``attempts`` have failed in a row."""

    session_id: str
    in_doubt: bool
    attempts: int
    pending: int


class ClaimedSession(NamedTuple):
    """The first pending messages of a session; and the ids of those that are not in the log any more."""

    pending: list[Pending]
    gone: list[str]


class PendingIds(NamedTuple):
    """:class:`PendingSession` without the messages: their numbers by id, in order."""

    places: Mapping[str, int]
    in_doubt: bool
    is_leased: bool


class Backlog(NamedTuple):
    """What the legacy store of a tenant does not have yet.

    ``messages`` in ``sessions``; of these sessions ``parked`` wait for somebody to look at them and ``in_doubt`` are
    being relayed or were when something failed. ``oldest_seconds``: how long the oldest message waits, None: none does.
    ``parked_messages`` are those of the parked sessions.
    """

    messages: int
    sessions: int
    parked: int
    in_doubt: int
    oldest_seconds: float | None
    parked_messages: int


class Counts(NamedTuple):
    """Of a :class:`Backlog` what is counted at once."""

    messages: int
    sessions: int
    parked: int


class WaitingSession(NamedTuple):
    """A session in the backlog. ``error``: the class of its last failure; ``due_seconds``: until it is tried again."""

    session_id: str
    messages: int
    attempts: int
    error: str | None
    is_parked: bool
    in_doubt: bool
    due_seconds: float


class LogEnd(NamedTuple):
    """Where the log of a session ends, in this life of it; an append changes ``last_seq`` alone."""

    epoch: int
    revision: int
    last_seq: int


class Outbox:
    """One tenant's outbox."""

    def __init__(self, config: MemoryConfig) -> None:
        self._of_tenant = {"of_tenant": config.tenant}

    def _key(self, session_id: str) -> dict[str, str]:
        return {**self._of_tenant, "of_session": session_id}

    def claim(self, lease: str, *, sessions: int, lease_seconds: float) -> Flow[list[Claim]]:
        """Take the lease of sessions that are due, the longest due first."""
        parameters = {**self._of_tenant, "lease": lease, "sessions": sessions, "lease_seconds": lease_seconds}
        return [Claim._make(row) for row in (yield from query_once(_log_outbox.CLAIM, parameters))]

    def fix(self, lease: str, session_ids: Sequence[str]) -> Flow[None]:
        """Let nothing that turns up later go before what these claimed sessions have in the log now."""
        of_tenant = self._of_tenant["of_tenant"]
        yield from transaction(lambda connection: _log_relays.fix(connection, of_tenant, lease, session_ids))

    def read_claimed(
        self, claims: Sequence[Claim], *, messages: int, most_bytes: int
    ) -> Flow[dict[str, ClaimedSession]]:
        """Read the first pending messages of each, about so many bytes in all; what does not fit is not in the answer.

        That is the last sessions as a whole, and the end of the one before them. Of none are read more than were
        pending when it was claimed: before what has been logged since then, messages may wait to be logged.
        """
        sessions = [one.session_id for one in claims]
        parameters = {
            **self._of_tenant,
            "sessions": sessions,
            "most": [max(0, min(messages, one.pending)) for one in claims],
            "most_bytes": most_bytes,
        }
        rows = yield from query(_log_outbox.READ_CLAIMED, parameters)
        found = {session_id: ClaimedSession([], []) for session_id in sessions}
        size = 0
        for session_id, message_id, seq, body in rows:
            if body is None:
                found[session_id].gone.append(message_id)
            else:
                size += len(body)
                found[session_id].pending.append(Pending(message_id, seq, decode_value(bytes(body))))
        if size < most_bytes:
            return found
        read = sessions.index(rows[-1][0]) + 1
        return {session_id: found[session_id] for session_id in sessions[:read]}

    def finish(self, lease: str, done: Sequence[tuple[str, str]], *, kept: Sequence[str]) -> Flow[None]:
        """Take note that messages are in the legacy store, and give the leases back but those of ``kept``."""
        if not done:
            return
        sessions, ids = zip(*done, strict=True)
        parameters = {"lease": lease, "ids": list(ids), "kept": list(kept)}
        if len(set(sessions)) == 1:
            yield from query(_log_outbox.FINISH_ONE, self._key(sessions[0]) | parameters)
        else:
            parameters["sessions"] = list(sessions)
            yield from query(_log_outbox.FINISH_MANY, self._of_tenant | parameters)

    def put_off(self, lease: str, session_id: str, how: Mapping[str, Any]) -> Flow[None]:
        """Give a lease back and say when to try again; see ``PUT_OFF`` for what else is noted."""
        yield from query_once(_log_outbox.PUT_OFF, {**self._key(session_id), "lease": lease, **how})

    def give_back(self, lease: str, claims: Sequence[Claim], *, is_last: bool = False) -> Flow[None]:
        """Give leases back of sessions to which nothing was done: they are as they were claimed, and due.

        ``is_last``: after all others that are due.
        """
        parameters = {
            "lease": lease,
            "is_last": is_last,
            "sessions": [one.session_id for one in claims],
            "doubtful": [one.session_id for one in claims if one.in_doubt],
        }
        yield from query(_log_outbox.GIVE_BACK, self._of_tenant | parameters)

    def recount(self, lease: str, session_id: str) -> Flow[int]:
        """Count what is pending anew, for a session that turned out to have nothing, and give its lease back."""
        return (yield from transaction(lambda found: _log_relays.recount(found, self._key(session_id), lease)))

    def pending(self, session_id: str) -> Flow[PendingSession]:
        """Read what a session still owes the legacy store, in order."""
        rows = yield from query(_log_outbox.PENDING, self._key(session_id))
        pending = [Pending(row[2], row[3], decode_value(bytes(row[4]))) for row in rows]
        return PendingSession(pending, bool(rows) and bool(rows[0][0]), bool(rows) and bool(rows[0][1]))

    def pending_ids(self, session_id: str) -> Flow[PendingIds]:
        """Read which messages a session still owes the legacy store, and not what they say."""
        rows = yield from query(_log_outbox.PENDING_IDS, self._key(session_id))
        return PendingIds(
            {row[2]: row[3] for row in rows}, bool(rows) and bool(rows[0][0]), bool(rows) and bool(rows[0][1])
        )

    def preceding(self, session_id: str, seq: int, most: int) -> Flow[list[Message]]:
        """Read the messages of the log before a number, oldest first."""
        rows = yield from query(_log_outbox.PRECEDING, {**self._key(session_id), "seq": seq, "most": most})
        return [decode_value(bytes(row[0])) for row in reversed(rows)]

    def log_end(self, session_id: str) -> Flow[LogEnd | None]:
        """Read where the log of a session ends; None where there is no such session."""
        rows = yield from query(_log_outbox.LOG_END, self._key(session_id))
        return LogEnd._make(rows[0]) if rows else None

    def logged_behind(self, session_id: str, seq: int) -> Flow[tuple[LogEnd | None, list[Pending]]]:
        """Read the messages of the log behind a number, oldest first, and where it ends."""
        rows = yield from query(_log_outbox.LOGGED_BEHIND, {**self._key(session_id), "seq": seq})
        end = LogEnd._make(rows[0][:3]) if rows else None
        found = [Pending(row[3], row[4], decode_value(bytes(row[5]))) for row in rows if row[3] is not None]
        return end, found

    def counts(self) -> Flow[Counts]:
        """Count what is pending by the sessions alone, at once however much it is: for whoever asks again and again."""
        return Counts._make((yield from query(_log_outbox.COUNTS, self._of_tenant))[0])

    def has_pending(self) -> Flow[bool]:
        """Whether anything is pending, without counting it: for whoever asks between any two rounds."""
        return bool((yield from query(_log_outbox.HAS_PENDING, self._of_tenant))[0][0])

    def backlog(self) -> Flow[Backlog]:
        """Count what is pending, by the sessions, and look up how long the oldest message waits."""
        return Backlog._make((yield from query(_log_outbox.BACKLOG, self._of_tenant))[0])

    def waiting(self, limit: int) -> Flow[list[WaitingSession]]:
        """Name the sessions of the backlog: parked ones first, then by how often they have failed."""
        rows = yield from query(_log_outbox.WAITING, {**self._of_tenant, "limit": limit})
        return [WaitingSession._make(row) for row in rows]

    def retry(self, session_id: str | None) -> Flow[list[str]]:
        """Have parked and put-off sessions (or one of them) tried again at once; answers which."""
        rows = yield from query(_log_outbox.RETRY, {**self._of_tenant, "of_session": session_id})
        return sorted(row[0] for row in rows)

    def begin_phase(self, setting: PhaseSetting) -> Flow[PhaseSetting]:
        """Store the phase a tenant begins with, unless it has one; answers the one in force."""
        parameters = {**self._of_tenant, "phase": setting.phase.value, "percentage": setting.percentage}
        rows = yield from query(_log_phases.BEGIN_PHASE, parameters)
        return _setting(rows[0])

    def read_phase(self) -> Flow[PhaseSetting | None]:
        """Read the phase in force; None where the tenant has no legacy store."""
        rows = yield from query(_log_phases.READ_PHASE, self._of_tenant)
        return _setting(rows[0]) if rows else None

    def set_phase(self, setting: PhaseSetting) -> Flow[None]:
        """Change the phase for every process."""
        parameters = {**self._of_tenant, "phase": setting.phase.value, "percentage": setting.percentage}
        yield from query(_log_phases.SET_PHASE, parameters)

    def end_phase(self) -> Flow[bool]:
        """Forget that the tenant has a legacy store; False where it had none."""
        return bool((yield from query(_log_phases.END_PHASE, self._of_tenant)))


def _setting(row: Sequence[Any]) -> PhaseSetting:
    return PhaseSetting(Phase(row[0]), row[1])
