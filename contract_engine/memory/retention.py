"""Retention: old sessions erased, sessions erased with proof, and archives of what is to be kept elsewhere.

A session is as old as its last touch, ``updated_at`` of its row: a message, a text for its summary, its context object,
its limits, a pin or its wishes. A read is none, nor is a fold, nor what an operator does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Self

from contract_engine.memory._effects import Flow, query
from contract_engine.memory._log_retention import ERASED_AT, SERVER_TIME, SESSIONS_AFTER
from contract_engine.memory._runtime import AsyncRuntime, Runtime
from contract_engine.memory.archiving import REFUSE, Archiving, Progress
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.erasing import Erasing
from contract_engine.memory.errors import ConfigurationError, InvalidInputError
from contract_engine.memory.keys import check_limit
from contract_engine.memory.sessions import Sessions


class RetentionFlows:
    """What :class:`Retention` offers, as flows."""

    def __init__(self, config: MemoryConfig, sessions: Sessions) -> None:
        self._tenant = config.tenant
        self._is_durable = config.is_durable
        self._archiving = Archiving(config, sessions)
        self._erasing = Erasing(config, sessions, self._archiving)
        self.erase = self._erasing.erase
        self.export_session = self._archiving.export_session
        self.import_sessions = self._archiving.import_sessions

    def _needs_log(self) -> None:
        if not self._is_durable:
            problem = "without a database sessions expire by themselves, and nobody can list them; set DATABASE_URL"
            raise ConfigurationError("database_url", problem)

    def purge(
        self, older_than: object, limit: object, dry_run: bool, rate: object, progress: Callable[[int], object] | None
    ) -> Flow[dict[str, Any]]:
        self._needs_log()
        given: dict[str, Any] = {"limit": limit, "dry_run": dry_run, "sessions_per_second": rate, "progress": progress}
        return (yield from self._erasing.purge(older_than, **given))

    def session_ids(self, after: object, limit: object) -> Flow[list[str]]:
        self._needs_log()
        if not isinstance(after, str):
            raise InvalidInputError("after", f"expected a text, got {type(after).__name__}")
        ((now,),) = yield from query(SERVER_TIME, {})
        given = {"of_tenant": self._tenant, "after": after, "before": now, "limit": check_limit(limit, least=1)}
        # An empty answer is the end: so it is looked further where a purge that died left nothing but its marks.
        while rows := (yield from query(SESSIONS_AFTER, given)):
            if names := [row[0] for row in rows if row[3] != ERASED_AT]:
                return names
            given["after"] = rows[-1][0]
        return []


class Retention:
    """The sessions of one tenant as an operator sees them; :attr:`MemoryManager.retention` hands it out."""

    _runtime: Runtime
    _flows: RetentionFlows

    @classmethod
    def within(cls, runtime: Runtime, flows: RetentionFlows) -> Self:
        """Return the retention of a manager, which keeps and closes the runtime."""
        made = cls.__new__(cls)
        made._runtime, made._flows = runtime, flows
        return made

    def purge(
        self,
        older_than: timedelta | datetime,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        sessions_per_second: float | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> dict[str, Any]:
        """Erase the sessions that were last touched before a moment, or longer ago than a time; at most ``limit``.

        In transactions of 50 sessions or some 5,000 messages, never waiting for anybody: a session that was touched
        since it was selected, or that a writer or relay is at, is ``kept``. Answers ``before``, ``sessions``,
        ``messages``, ``kept`` and ``oldest`` (times as ISO 8601). Nothing goes on in Redis either. May be interrupted
        anywhere and called again. Raises where a server is away. ``progress`` is told how many sessions are done. A dry
        run reads the log alone and waits for nobody, so it counts at most too many: sessions that are in use, and those
        of which something waits in Redis to be logged, which is a touch.
        """
        flow = self._flows.purge(older_than, limit, dry_run, sessions_per_second, progress)
        return self._runtime.run(flow)

    def erase(
        self, session_ids: Sequence[str], *, dry_run: bool = False, progress: Callable[[int], object] | None = None
    ) -> list[dict[str, Any]]:
        """Erase sessions from both servers, search for what is left, and report it, session by session.

        ``tables`` and ``redis_keys`` count what was there. ``left_rows`` by table, looked for under the lock under
        which they were deleted; ``left_keys``: names of keys of the session on any primary, whatever they are called.
        Both are empty where the erasure is proven. ``begun_anew``: somebody has written to the session since; what they
        wrote is not meant. Raises where a server is away, or a relay is still giving a session to a legacy store after
        three seconds (:class:`ContentionError`); then call again.
        """
        return self._runtime.run(self._flows.erase(session_ids, dry_run=dry_run, progress=progress))

    def export_session(
        self,
        session_id: str,
        write: Callable[[bytes], object],
        *,
        progress: Progress | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any] | None:
        """Pass a session on to ``write`` as JSON Lines, as it is at one moment, in pieces of some megabytes.

        What waits in Redis is logged first; where Redis cannot tell, raises :class:`RedisUnavailableError`. Answers
        ``session_id``, ``messages`` and ``summaries``; None where there is no such session. Whatever was passed on is
        whole only when this answers. ``progress`` is told the session, its messages done, and all of them. A dry run
        passes nothing on and logs nothing: it counts what the log has.
        """
        return self._runtime.run(self._flows.export_session(session_id, write, progress, dry_run=dry_run))

    def import_sessions(
        self,
        lines: Iterable[bytes],
        *,
        session_id: str | None = None,
        existing: str = REFUSE,
        relay: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Put exported sessions in place, each in one transaction: whole, or not at all.

        ``lines`` with their line feeds, as a file opened for bytes gives them. ``session_id``: another name, where the
        archive holds one session. ``existing``: ``refuse`` (raises :class:`SessionExistsError`; those before it stay
        imported), ``replace`` or ``skip``. ``relay``: have the legacy store of a dual write given all of it, which is
        for sessions that it has nothing of; else it is history that goes to none. A dry run checks all lines and asks
        the log alone. Answers ``sessions``, ``messages``, ``summaries``, ``replaced`` and ``skipped`` (ids). What was
        cut off, edited or written by a newer format raises :class:`InvalidInputError`, which names the line and not
        what it says. Times are those of the archive, the last touch too. A writer to the same session waits meanwhile;
        a relay of one that is to be replaced is waited for as in :meth:`erase`.
        """
        flow = self._flows.import_sessions(lines, session_id, existing, dry_run, progress, relay=relay)
        return self._runtime.run(flow)

    def session_ids(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Return the ids of the sessions behind ``after``, in the order of the database; an empty list ends it."""
        return self._runtime.run(self._flows.session_ids(after, limit))


class AsyncRetention:
    """:class:`Retention` for asyncio."""

    _runtime: AsyncRuntime
    _flows: RetentionFlows

    @classmethod
    def within(cls, runtime: AsyncRuntime, flows: RetentionFlows) -> Self:
        """Return the retention of a manager, which keeps and closes the runtime."""
        made = cls.__new__(cls)
        made._runtime, made._flows = runtime, flows
        return made

    async def purge(
        self,
        older_than: timedelta | datetime,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        sessions_per_second: float | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> dict[str, Any]:
        """See :meth:`Retention.purge`."""
        flow = self._flows.purge(older_than, limit, dry_run, sessions_per_second, progress)
        return await self._runtime.run(flow)

    async def erase(
        self, session_ids: Sequence[str], *, dry_run: bool = False, progress: Callable[[int], object] | None = None
    ) -> list[dict[str, Any]]:
        """See :meth:`Retention.erase`."""
        return await self._runtime.run(self._flows.erase(session_ids, dry_run=dry_run, progress=progress))

    async def export_session(
        self,
        session_id: str,
        write: Callable[[bytes], object],
        *,
        progress: Progress | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any] | None:
        """See :meth:`Retention.export_session`; ``write`` runs on the event loop and holds it up."""
        return await self._runtime.run(self._flows.export_session(session_id, write, progress, dry_run=dry_run))

    async def import_sessions(
        self,
        lines: Iterable[bytes],
        *,
        session_id: str | None = None,
        existing: str = REFUSE,
        relay: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """See :meth:`Retention.import_sessions`; ``lines`` are read on the event loop, which waits for them."""
        flow = self._flows.import_sessions(lines, session_id, existing, dry_run, progress, relay=relay)
        return await self._runtime.run(flow)

    async def session_ids(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """See :meth:`Retention.session_ids`."""
        return await self._runtime.run(self._flows.session_ids(after, limit))
