"""Sessions in every state, and the law they are held against after a fault.

The law: context = summary of messages 1..W + messages W+1..N, word for word; every acknowledged message once and in
order, one in doubt at most once; one summary version per range; caps hold; what comes next is numbered N+1.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import redis
from crash_matrix import DATABASE, REDIS, Interposition, stores_messages
from crash_operations import (
    ARCHIVED,
    ARCHIVED_CONTEXT,
    LIMITS,
    NEW_CONTEXT,
    NEW_INSTRUCTIONS,
    NEW_LIMITS,
    NEW_SUMMARY,
    OLD_AGE,
    PATIENT,
    PINNED,
    Does,
    Operation,
)
from crash_outcomes import Messages, Outcome, assert_reads, is_read, numbers
from lost_messages import nothing_lost
from memory_contract import Backend, say
from server_faults import waited_for

from contract_engine.memory import (
    ConfigurationError,
    InvalidInputError,
    MemoryManager,
    SessionExistsError,
    StoreUnavailableError,
)
from contract_engine.memory._tables import metadata
from contract_engine.memory.keys import SessionKeys

NEXT = 950
"""The number of the message that is added after the fault."""

OF_SESSIONS = [table for table in metadata.sorted_tables if "session_id" in table.columns]
"""The tables that hold rows of a session."""

OLD_CONTEXT = {"session_id": "s", "note": "old"}
OLD_INSTRUCTIONS = "Keep the details."


@dataclass(frozen=True)
class Session:
    """A session as a state left it.

    ``said`` was acknowledged; the first ``logged`` of it are in the log, if there is one, the others wait in Redis.
    What another process reads may end at ``visible`` until the next append. ``knows_last``: the id of the last message
    is remembered.
    """

    id: str
    state: str
    said: Messages
    logged: int
    visible: int
    watermark: int
    knows_last: bool


def _is_purged(session: Session) -> bool:
    """Whether a purge erases it once it is old: what waits in Redis to be logged is a touch."""
    return 0 < len(session.said) == session.logged


State = Callable[["Stage", str], tuple[int, int]]
"""Brings a session about; answers how many messages were said, and how many a reader can see."""


def _empty(stage: Stage, session_id: str) -> tuple[int, int]:
    return 0, 0


def _said(count: int) -> State:
    def say_them(stage: Stage, session_id: str) -> tuple[int, int]:
        stage.say(session_id, count)
        return count, count

    return say_them


def _at_cap(stage: Stage, session_id: str) -> tuple[int, int]:
    """A full buffer: whoever should have folded it has not come to it."""
    count = LIMITS.max_buffer_messages
    lease = stage.keys(session_id).fold
    stage.raw.set(lease, "1", px=3_600_000)
    stage.say(session_id, count)
    stage.raw.delete(lease)
    return count, count


def _evicted(stage: Stage, session_id: str) -> tuple[int, int]:
    stage.say(session_id, 20)
    assert stage.raw.delete(stage.keys(session_id).buffer) == 1
    return (20, 20) if stage.is_durable else (stage.watermark(session_id),) * 2


def _placeholder(stage: Stage, session_id: str) -> tuple[int, int]:
    """A rebuild has died."""
    stage.say(session_id, 20)
    buffer = stage.keys(session_id).buffer
    header: Any = stage.raw.lindex(buffer, 0)
    run = json.loads(header)[1]
    stage.raw.delete(buffer)
    stage.raw.rpush(buffer, json.dumps([0, run, 12345, 0, 0], separators=(",", ":")))
    stage.raw.expire(buffer, 3600)
    return 20, 20


def _overtaken(stage: Stage, session_id: str) -> tuple[int, int]:
    """A rebuild has died that writers had overtaken: what they appended since stands behind its placeholder."""
    stage.say(session_id, 20)
    buffer = stage.keys(session_id).buffer
    found: Any = stage.raw.lrange(buffer, 0, -1)
    _, run, epoch, revision, *_ = json.loads(found[0])
    assert json.loads(found[-1])[0] == 20
    placeholder = json.dumps([0, run, 12345, epoch, 20, revision], separators=(",", ":"))
    stage.raw.delete(buffer)
    stage.raw.rpush(buffer, placeholder, *found[-2:])
    stage.raw.expire(buffer, 3600)
    return 20, 20


def _behind(stage: Stage, session_id: str) -> tuple[int, int]:
    """A writer has died between the log and Redis."""
    stage.say(session_id, 19)
    stage.maker.session_store.append(session_id, say(20), message_id="id20")
    return 20, 19


def _leased(stage: Stage, session_id: str) -> tuple[int, int]:
    """A fold has died with its lease."""
    stage.raw.set(stage.keys(session_id).fold, "1", px=3_600_000)
    stage.say(session_id, 7)
    return 7, 7


def _pinned(stage: Stage, session_id: str) -> tuple[int, int]:
    """A message is pinned that has been folded, and the session has said what it wants of its summaries."""
    stage.say(session_id, 2)
    stage.maker.pin(session_id, PINNED)
    stage.maker.set_summary_instructions(session_id, OLD_INSTRUCTIONS)
    stage.maker.get_context(session_id)
    stage.say(session_id, 18, start=3)
    stage.maker.wait_for_folds()
    return 20, 20


def _unlogged(before: int, *, evicted: bool = False) -> State:
    def wait(stage: Stage, session_id: str) -> tuple[int, int]:
        stage.say(session_id, before)
        stage.say(session_id, 2, start=before + 1, away=DATABASE)
        if evicted:
            assert stage.raw.delete(stage.keys(session_id).buffer) == 1
        return before + 2, before + 2

    return wait


STATES: dict[str, State] = {
    "empty": _empty,
    "few": _said(2),
    "before a trigger": _said(5),
    "at a cap": _at_cap,
    "folded": _said(20),
    "evicted": _evicted,
    "pinned": _pinned,
    "dead fold": _leased,
}
DURABLE_STATES: dict[str, State] = STATES | {
    "dead rebuild": _placeholder,
    "dead overtaken rebuild": _overtaken,
    "dead writer": _behind,
    "unlogged": _unlogged(19),
    "unlogged, new": _unlogged(0),
    "unlogged, evicted": _unlogged(19, evicted=True),
}


def has_told(survivor: Any) -> bool:
    """Whether a manager has had its servers again: it may know more than it could tell while the fault lasted."""
    with suppress(StoreUnavailableError):
        survivor.get_context("nobody's")
        return True
    return False


@dataclass
class Stage:
    """Makes sessions, one template per state that is then copied, and holds them against the law.

    Its two managers meet no fault: to those that do they are other processes.
    """

    backend: Backend
    raw: redis.Redis
    table: psycopg.Connection[Any] | None
    maker: MemoryManager = field(init=False)
    checker: MemoryManager = field(init=False)
    may_copy: Callable[[str, str], bool] = lambda _source, _target: True
    """Whether a copy of one session may be called another: one of another server would be taken for an old one."""
    _templates: dict[str, Session] = field(init=False, default_factory=dict)
    _numbers: Any = field(init=False, default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.maker, self.checker = (self.backend.open(limits=LIMITS, **PATIENT) for _ in range(2))

    @property
    def is_durable(self) -> bool:
        return self.backend.is_durable

    @property
    def states(self) -> Mapping[str, State]:
        return DURABLE_STATES if self.is_durable else STATES

    def keys(self, session_id: str) -> SessionKeys:
        return self.backend.keys(session_id)

    def watermark(self, session_id: str) -> int:
        return int(self.checker.get_context(session_id)["watermark"])

    def say(self, session_id: str, count: int, *, start: int = 1, away: str | None = None) -> None:
        interposition = Interposition(self.maker, away=away)
        for number in range(start, start + count):
            self.maker.append(session_id, say(number), message_id=f"id{number}")
        interposition.remove()

    # -- sessions

    def session_for(self, operation: Operation, state: str) -> Session:
        """Return a new session in this state, untouched for long if the operation is about such sessions."""
        session = self.session(state)
        if operation.does is Does.PURGE and self.table is not None:
            self.table.execute(
                "UPDATE memory_sessions SET updated_at = now() - %s * 2 WHERE tenant = %s AND session_id = %s",
                (OLD_AGE, self.backend.tenant, session.id),
            )
        return session

    def session(self, state: str) -> Session:
        """Return a new session in this state."""
        if state not in self._templates:
            self._templates[state] = self._make(state)
        template = self._templates[state]
        ids = (f"{state} {number}" for number in self._numbers)
        copy = replace(template, id=next(one for one in ids if self.may_copy(template.id, one)))
        for source, target in zip(self.keys(template.id), self.keys(copy.id), strict=True):
            data: Any = self.raw.dump(source)
            if data is not None:
                ttl: Any = self.raw.pttl(source)
                self.raw.restore(target, max(0, ttl), data)
        if self.table is not None:
            for table in OF_SESSIONS:
                names = [column.name for column in table.columns]
                values = ["%s" if name == "session_id" else name for name in names]
                query = f"INSERT INTO {table.name} ({','.join(names)}) SELECT {','.join(values)} FROM {table.name}"
                where = " WHERE tenant = %s AND session_id = %s"
                self.table.execute((query + where).encode(), (copy.id, self.backend.tenant, template.id))
        return copy

    def _make(self, state: str) -> Session:
        session_id = f"template {state}"
        count, visible = self.states[state](self, session_id)
        if count and "unlogged" not in state:
            assert self.maker.save_context(session_id, OLD_CONTEXT)
        said = [say(number) for number in range(1, count + 1)]
        is_lost = not self.is_durable and state == "evicted"
        watermark = 0 if self.is_durable else self.watermark(session_id)
        return Session(
            session_id, state, said, len(self.rows(session_id)), visible, watermark, bool(said) and not is_lost
        )

    # -- what is there, past the package

    def _query(self, query: str, session_id: str) -> list[tuple[Any, ...]]:
        if self.table is None:
            return []
        return self.table.execute(query.encode(), (self.backend.tenant, session_id)).fetchall()

    def rows(self, session_id: str) -> Messages:
        """Return the messages of the log; there must be no gap in their numbers."""
        found = self._query(
            "SELECT seq, convert_from(body, 'UTF8')::json FROM memory_messages"
            " WHERE tenant = %s AND session_id = %s ORDER BY seq",
            session_id,
        )
        assert [seq for seq, _ in found] == list(range(1, len(found) + 1)), "a gap in the log"
        return [message for _, message in found]

    def assert_summaries(self, session_id: str) -> None:
        """Hold the versions against each other: each begins where its parent ended, and none covers less."""
        if self.is_durable:
            versions: list[Any] = self._query(
                "SELECT version, first_seq, last_seq, parent, method FROM memory_summaries"
                " WHERE tenant = %s AND session_id = %s ORDER BY version",
                session_id,
            )
            current = self._query(
                "SELECT summary_version, last_seq, watermark FROM memory_sessions"
                " WHERE tenant = %s AND session_id = %s",
                session_id,
            )
            if current:
                ((version, last_seq, watermark),) = current
                assert last_seq == len(self.rows(session_id))
                assert (version, watermark) == ((versions[-1][0], versions[-1][2]) if versions else (0, 0))
        else:
            history = self.checker.summary_store.get_summary_history(session_id, 100)
            names = ("version", "first_seq", "last_seq", "parent", "method")
            versions = [tuple(entry[name] for name in names) for entry in history]
        for before, after in itertools.pairwise(versions):
            assert after[0] == before[0] + 1, f"summaries that do not follow: {versions}"
            assert after[2] >= before[2], f"summaries that cover less: {versions}"
        ends = {version: last for version, _, last, _, _ in versions}
        for version, first, _, parent, method in versions:
            if parent in ends:
                assert first == ends[parent] + 1, f"version {version} does not follow its parent: {versions}"
            if method in ("extractive", "supplied") and version - 1 in ends:
                assert parent == version - 1
        if versions and versions[0][0] == 1:
            assert versions[0][1] == 1

    # -- the law

    def assert_law(self, session: Session, operation: Operation, outcome: Outcome, survivor: Any = None) -> None:
        """Hold a session against the law, repeat what may be repeated, go on, and erase it.

        ``survivor``: the manager that met the fault, where it lives on, shown as a blocking one.
        """
        self._assert_answer(session, operation, outcome)
        if survivor is not None:
            assert waited_for(lambda: has_told(survivor))
            survivor.wait_for_folds()
        truths = self._truths(session, operation, outcome)
        readings = truths if self._is_told(session, operation, outcome) else [*truths, *self._stale(session, operation)]
        summary_is_sure = operation.does not in (Does.CLEAR_SUMMARIES, Does.CLEAR_LOG)
        first = self.checker.get_context(session.id)
        assert_reads(first, readings, has_summary=summary_is_sure)
        self.checker.wait_for_folds()
        truth = self._settle(session, truths, operation)
        self.assert_summaries(session.id)
        self._assert_extras(session, operation, outcome)
        truth = self._retry(session, operation, truth)
        receipt = self.checker.append(session.id, say(NEXT), message_id="next")
        self.checker.wait_for_folds()
        truth = [*truth, say(NEXT)]
        assert receipt.seq == len(truth)
        if self.is_durable:
            with nothing_lost():
                assert self.rows(session.id) == truth
        for reader in (self.checker, survivor, self.maker):
            if reader is not None:
                context = reader.get_context(session.id)
                assert_reads(context, [truth], has_summary=summary_is_sure)
                assert context["degraded"] is False
        self.assert_summaries(session.id)
        self._assert_limits(session, operation, outcome)
        self._assert_pins(session, operation, outcome)
        assert self.checker.clear_session_memory(session.id)
        assert self.raw.exists(*self.keys(session.id)) == 0
        for table in OF_SESSIONS:
            assert not self._query(f"SELECT 1 FROM {table} WHERE tenant = %s AND session_id = %s", session.id)

    def _assert_answer(self, session: Session, operation: Operation, outcome: Outcome) -> None:
        error, value = outcome.error, outcome.value
        if isinstance(error, ConfigurationError):
            assert operation.needs_log
            assert not self.is_durable
        elif isinstance(error, InvalidInputError):
            if operation.does is Does.REBUILD:
                assert error.field == "version", repr(error)
                assert session.watermark == 0, "there is a version to name"
            elif operation.does is Does.IMPORT:
                assert isinstance(error, SessionExistsError)
                assert session.said, "there is no such session"
            else:
                assert operation.refers_to_last
                assert not session.knows_last
        elif error is not None:
            assert isinstance(error, StoreUnavailableError), repr(error)
        elif isinstance(value, Mapping) and "buffer_messages" in value:
            truths = [*self._truths(session, operation, outcome), *self._stale(session, operation)]
            if value["degraded"] and REDIS in outcome.lost:  # what waits there is not seen now
                logged = session.said[: session.logged]
                truths += [logged, [*logged, *self._adds(session, operation)]]
            if value["complete"]:
                assert_reads(value, truths, has_summary=True)
            else:
                count = len(value["buffer_messages"])
                is_hidden = REDIS in outcome.lost and session.logged < len(session.said)
                assert DATABASE in outcome.lost or is_hidden, "something is not known"
                assert any(value["buffer_messages"] == truth[len(truth) - count :] for truth in truths)
        elif outcome.is_acknowledged(operation):
            self._assert_report(session, operation, value)

    def _assert_report(self, session: Session, operation: Operation, value: Any) -> None:
        """Hold what retention says it has done against what there was to do."""
        if operation.does is Does.PURGE:
            count = len(session.said) if _is_purged(session) else 0
            assert (value["sessions"], value["messages"]) == (int(_is_purged(session)), count)
            assert value["kept"] == int(session.logged > 0 and not _is_purged(session))
        elif operation.does is Does.ERASE:
            (report,) = value
            assert (report["left_rows"], report["left_keys"], report["begun_anew"]) == ({}, [], False)
        elif operation.does is Does.EXPORT:
            archived = [json.loads(line) for line in operation.archive.getvalue().splitlines()]
            assert [line["message"] for line in archived if line["kind"] == "message"] == session.said
            assert (value is None) == (archived == []) == (session.said == [])
        elif operation.does in (Does.IMPORT, Does.REPLACE):
            assert (value["sessions"], value["messages"]) == (1, len(ARCHIVED))
            assert value["replaced"] == ([session.id] if session.said else [])

    def _truths(self, session: Session, operation: Operation, outcome: Outcome) -> list[Messages]:
        """Return what may be true now: one thing only, unless the operation is in doubt."""
        said, waiting = session.said, session.said[session.logged :]
        acknowledged = outcome.is_acknowledged(operation)
        if isinstance(outcome.error, ConfigurationError | InvalidInputError):
            return [said]
        if operation.does is Does.PURGE:
            return ([[]] if acknowledged else [said, []]) if _is_purged(session) else [said]
        if operation.does is Does.REPLACE or (operation.does is Does.IMPORT and not said):
            return [ARCHIVED] if acknowledged else [said, ARCHIVED]
        if operation.does in (Does.CLEAR, Does.ERASE):
            # Of what waited and what was logged, one may be gone and the other not: then it is called again.
            return [[]] if acknowledged else [said, [], said[: session.logged], waiting]
        if operation.does is Does.CLEAR_LOG:
            return [waiting] if acknowledged else [said, waiting]
        if operation.does is Does.CLEAR_BUFFER and not self.is_durable:
            lost = said[: session.watermark]
            return [lost] if acknowledged else [said, lost]
        adds = self._adds(session, operation)
        if not adds:
            return [said]
        behind = [*said, *adds]
        between = [*said[: session.logged], *adds, *waiting]
        if acknowledged:
            # The session store knows nothing of what waits, so its messages may come to stand before it.
            return [behind, between] if operation.store == "session_store" else [behind]
        if not outcome.is_silent and not any(map(stores_messages, outcome.begun)):
            return [said]
        return [said, behind, between, *self._halves(said, adds)]

    def _adds(self, session: Session, operation: Operation) -> Messages:
        if operation.is_repeat:
            return [] if session.knows_last else [say(len(session.said))]
        return list(operation.adds)

    def _halves(self, said: Messages, adds: Messages) -> list[Messages]:
        """Return what there may be of a batch that is larger than a buffer and went into Redis alone."""
        if len(adds) <= LIMITS.max_buffer_messages:
            return []
        return [[*said, *adds[:count]] for count in range(1, len(adds))]

    def _stale(self, session: Session, operation: Operation) -> list[Messages]:
        """Return what a reader may see for a while, in a copy that nobody could tell of what has happened."""
        seen, adds = session.said[: session.visible], self._adds(session, operation)
        return [seen, session.said, [*seen, *adds], *self._halves(seen, adds)]

    def _is_told(self, session: Session, operation: Operation, outcome: Outcome) -> bool:
        """Whether every reader must see the truth at once.

        An append of the manager was acknowledged, or what is true of both servers or of none.
        """
        if operation.does in (Does.PURGE, Does.ERASE, Does.IMPORT, Does.REPLACE):
            return outcome.is_acknowledged(operation) and session.visible == len(session.said)
        is_append = operation.does is Does.APPEND and operation.store != "session_store"
        return is_append and outcome.is_acknowledged(operation) and session.visible == len(session.said)

    def _settle(self, session: Session, truths: list[Messages], operation: Operation) -> Messages:
        """Return what is true; in durable mode that is what the log says once nothing waits any more."""
        if self.is_durable:
            self.checker.drain(session.id)
            assert self.raw.exists(self.keys(session.id).unlogged) == 0
            truth = self.rows(session.id)
            assert truth in truths, f"{numbers(truth)} in the log, not one of {[numbers(one) for one in truths]}"
            return truth
        context = self.checker.get_context(session.id)
        return next(truth for truth in truths if is_read(context, truth))

    def _retry(self, session: Session, operation: Operation, truth: Messages) -> Messages:
        """Call what may be called again from another process: an append with an id has one effect in all."""
        if operation.method.startswith("retention.") and (self.is_durable or not operation.needs_log):
            return self._retry_retention(session, operation, truth)
        if operation.is_repeat:
            message, message_id = say(len(session.said)), f"id{len(session.said)}"
        elif operation.message_id is not None:
            message, message_id = operation.adds[0], operation.message_id
        else:
            return truth
        first = 0 if session.knows_last else len(session.said)
        for _ in range(2):
            receipt = self.checker.append(session.id, message, message_id=message_id)
            self.checker.wait_for_folds()
            if message not in truth[first:]:
                truth = [*truth, message]
            assert receipt.seq == first + 1 + truth[first:].index(message)
            if self.is_durable:
                assert self.rows(session.id) == truth
        return truth

    def _retry_retention(self, session: Session, operation: Operation, truth: Messages) -> Messages:
        """Do again what was broken off: it is done then, once and wholly."""
        try:
            answer = operation.call(self.checker, session.id, len(session.said))
        except SessionExistsError:
            if operation.does is not Does.IMPORT or not truth:
                raise
            return truth
        if operation.does is Does.ERASE:
            assert (answer[0]["left_rows"], answer[0]["left_keys"]) == ({}, [])
        if operation.does in (Does.IMPORT, Does.REPLACE):
            return ARCHIVED
        return [] if operation.does is Does.ERASE or (operation.does is Does.PURGE and _is_purged(session)) else truth

    def _assert_extras(self, session: Session, operation: Operation, outcome: Outcome) -> None:
        """Hold the context object and the summaries of callers against what was asked for."""
        acknowledged = outcome.is_acknowledged(operation)
        found = self.checker.load_context(session.id)
        note = None if found is None else found.to_dict()["note"]
        old = OLD_CONTEXT["note"] if session.said and "unlogged" not in session.state else None
        if operation.does is Does.SAVE_CONTEXT:
            assert note == NEW_CONTEXT["note"] or (not acknowledged and note == old)
        elif operation.does in (Does.CLEAR, Does.CLEAR_LOG, Does.ERASE, Does.PURGE):
            assert note is None or (not acknowledged and note == old)
        elif operation.does is Does.REPLACE or (operation.does is Does.IMPORT and not session.said):
            assert note == ARCHIVED_CONTEXT["note"] or (not acknowledged and note == old)
        else:
            assert note == old
        current = self.checker.summary_store.get_current_summary(session.id) or ""
        history = self.checker.summary_store.get_summary_history(session.id, 100)
        added = [entry["text"] for entry in history].count(NEW_SUMMARY)
        if operation.does is Does.ADD_SUMMARY:
            assert added <= 1, "added twice"
            assert added == 1 or not acknowledged
            assert current.count(NEW_SUMMARY) == added or not acknowledged
        else:
            assert added == 0
        if operation.does is Does.CLEAR_SUMMARIES and acknowledged:
            assert current == ""
            assert history == []

    def _assert_pins(self, session: Session, operation: Operation, outcome: Outcome) -> None:
        """Hold what is pinned, and what the session wants of its summaries, against what was asked for."""
        acknowledged = outcome.is_acknowledged(operation)
        state = self.checker._runtime.run(self.checker._flows._sessions.folding.read_truth(session.id))
        pinned = [] if state is None else list(state.summary.pinned_ids)
        wishes = self.checker.get_summary_instructions(session.id)
        is_pinned = session.state == "pinned"
        old_pinned, old_wishes = [PINNED] if is_pinned else [], OLD_INSTRUCTIONS if is_pinned else None
        new_pinned, new_wishes = old_pinned, old_wishes
        if operation.does is Does.PIN:
            new_pinned = [*old_pinned, f"id{len(session.said)}"]
        elif operation.does is Does.UNPIN:
            new_pinned = []
        elif operation.does is Does.SET_INSTRUCTIONS:
            new_wishes = NEW_INSTRUCTIONS
        elif operation.does in (Does.CLEAR, Does.CLEAR_LOG, Does.ERASE, Does.PURGE, Does.REPLACE):
            new_pinned, new_wishes = [], None
        assert pinned == new_pinned or (not acknowledged and pinned == old_pinned)
        assert wishes == new_wishes or (not acknowledged and wishes == old_wishes)
        context = self.checker.get_context(session.id)
        covered = [one["seq"] for one in context["pinned_messages"]]
        assert covered == sorted(seq for name in pinned if (seq := int(name[2:])) <= context["watermark"])
        assert all(one["message"] == say(one["seq"]) for one in context["pinned_messages"])

    def _assert_limits(self, session: Session, operation: Operation, outcome: Outcome) -> None:
        limits = self.checker.get_session_config(session.id)
        if operation.does is Does.SET_LIMITS:
            changed = LIMITS.as_dict() | NEW_LIMITS
            assert limits == changed or (not outcome.is_acknowledged(operation) and limits == LIMITS.as_dict())
        else:
            assert limits == LIMITS.as_dict()
