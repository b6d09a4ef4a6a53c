"""Archiving: a session written out whole, and put in place again, here or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from contract_engine.memory import _log_archive
from contract_engine.memory._effects import Flow, transaction
from contract_engine.memory._log_phases import is_relayed
from contract_engine.memory._log_relays import relay_logged
from contract_engine.memory.archive import ArchiveReader, ArchiveWriter, Counts, Header
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.deletions import unless_relayed
from contract_engine.memory.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidInputError,
    RedisUnavailableError,
    SessionExistsError,
)
from contract_engine.memory.keys import check_session_id
from contract_engine.memory.session_cache import REDIS_TROUBLE
from contract_engine.memory.sessions import Sessions
from contract_engine.memory.unlogged import Unlogged

REFUSE, REPLACE, SKIP = "refuse", "replace", "skip"
"""What an import does where there is such a session already."""

Progress = Callable[[str, int, int], object]
"""Told the session, how many of its messages are done, and how many it has."""


class Archiving:
    """Exports and imports the sessions of one tenant. Both need the log, and Redis to tell what waits to be logged."""

    def __init__(self, config: MemoryConfig, sessions: Sessions) -> None:
        self._tenant = config.tenant
        self._sessions = sessions

    def _key(self, session_id: str) -> dict[str, str]:
        return {"of_tenant": self._tenant, "of_session": session_id}

    def _unlogged(self) -> Unlogged:
        if self._sessions.unlogged is None:
            raise ConfigurationError("database_url", "sessions are archived from and to a database; set DATABASE_URL")
        return self._sessions.unlogged

    def log_waiting(self, session_id: str) -> Flow[None]:
        """Log what waits in Redis; where Redis cannot be asked, say that this is why nothing is done."""
        try:
            yield from self._unlogged().drain(session_id)
        except REDIS_TROUBLE as exc:
            reason = getattr(exc, "reason", type(exc).__name__)
            hint = "messages may wait there to be logged, so nothing was done; call again when it answers"
            raise RedisUnavailableError(reason, hint=hint) from exc

    def export_session(
        self, session_id: object, write: Callable[[bytes], object], progress: Progress | None, *, dry_run: bool
    ) -> Flow[dict[str, Any] | None]:
        checked = check_session_id(session_id)
        if dry_run:
            self._unlogged()
        else:
            yield from self.log_waiting(checked)
        writer = ArchiveWriter((lambda _: None) if dry_run else write)

        def body(connection: Any) -> Counts | None:
            if writer.is_begun:
                raise DatabaseUnavailableError("connection lost", hint="what was written is no archive; export again")
            told = None if progress is None else lambda done, total: progress(checked, done, total)
            return _log_archive.export_session(connection, self._key(checked), writer, told)

        counts = yield from transaction(body)
        return None if counts is None else {"session_id": checked, **counts._asdict()}

    def import_sessions(
        self,
        lines: Iterable[bytes],
        session_id: object,
        existing: object,
        dry_run: bool,
        progress: Progress | None,
        *,
        relay: bool,
    ) -> Flow[dict[str, Any]]:
        self._unlogged()
        new_id = None if session_id is None else check_session_id(session_id)
        if existing not in (REFUSE, REPLACE, SKIP):
            raise InvalidInputError("existing", f"expected {REFUSE}, {REPLACE} or {SKIP}")
        if relay and not (yield from transaction(lambda found: is_relayed(found, {"of_tenant": self._tenant}))):
            raise InvalidInputError("relay", f"tenant {self._tenant!r} has no phase, and so no legacy store")
        reader = ArchiveReader(lines)
        done: dict[str, Any] = {"sessions": 0, "messages": 0, "summaries": 0, "replaced": [], "skipped": []}
        while not done["sessions"] + len(done["skipped"]) or not reader.is_at_end:
            header = reader.header()
            name = new_id or header.session_id
            if not dry_run:  # which writes nothing, and so does not see a session of which all waits in Redis
                yield from self.log_waiting(name)
            told = None if progress is None else _named(progress, name)
            if dry_run:
                is_there = yield from self._exists(name)
                if not is_there or existing == REPLACE:
                    for _ in reader.rows(header):
                        pass
                    _check_only(reader, is_only=new_id is not None)
            else:
                how = {"is_replaced": existing == REPLACE, "is_only": new_id is not None, "relay": relay}
                is_there = yield from self._import(name, reader, header, **how, progress=told)
            if is_there and existing == REFUSE:
                raise SessionExistsError(name)
            if is_there and existing == SKIP:
                for _ in reader.rows(header):
                    pass
                done["skipped"].append(name)
                continue
            if is_there:
                done["replaced"].append(name)
            done["sessions"] += 1
            done["messages"] += reader.counts.messages
            done["summaries"] += reader.counts.summaries
        return done | {"dry_run": dry_run}

    def _import(
        self,
        session_id: str,
        reader: ArchiveReader,
        header: Header,
        *,
        is_replaced: bool,
        is_only: bool,
        relay: bool,
        progress: _log_archive.Progress | None,
    ) -> Flow[bool]:
        """Import one session in one transaction, and answer whether there was one of that id.

        If so and it is not to be replaced, nothing was done, and the lines behind the header wait to be read.
        """
        is_begun = False

        def body(connection: Any) -> tuple[bool, bool] | None:
            nonlocal is_begun
            if is_begun:
                raise DatabaseUnavailableError(
                    "connection lost", hint=f"nothing of session {session_id!r} was imported; import again"
                )
            answer = _log_archive.begin_import(connection, self._key(session_id), header, replace=is_replaced)
            is_begun = answer is not None
            if answer is not None and answer[1]:
                _log_archive.import_rows(connection, self._key(session_id), reader, header, progress)
                _check_only(reader, is_only=is_only)
                if relay:
                    relay_logged(connection, self._key(session_id), None)
            return answer

        is_there, is_done = yield from unless_relayed(session_id, body)
        if is_done:
            yield from self._sessions.drop_copy(session_id)
        return is_there

    def _exists(self, session_id: str) -> Flow[bool]:
        return (yield from transaction(lambda connection: _log_archive.exists(connection, self._key(session_id))))


def _named(progress: Progress, session_id: str) -> _log_archive.Progress:
    return lambda done, total: progress(session_id, done, total)


def _check_only(reader: ArchiveReader, *, is_only: bool) -> None:
    if is_only and not reader.is_at_end:
        raise InvalidInputError("session_id", "the archive holds several sessions, which cannot all be given one id")
