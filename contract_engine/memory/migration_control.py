"""How a migration stands and where it goes next, for operators: no legacy store is needed to ask or to say."""

from __future__ import annotations

from contract_engine.memory.errors import ConfigurationError
from contract_engine.memory.keys import check_limit, check_session_id
from contract_engine.memory.manager import MemoryManager
from contract_engine.memory.outbox import Backlog, Counts, Outbox, WaitingSession
from contract_engine.memory.phases import Phase, PhaseSetting, check_phase


class MigrationControl:
    """The migration of a manager's tenant. Every call is one statement, and raises where the database is away."""

    def __init__(self, manager: MemoryManager) -> None:
        if not manager.config.is_durable:
            raise ConfigurationError("database_url", "phases and the outbox are kept in a database; set DATABASE_URL")
        self._runtime = manager._runtime
        self._outbox = Outbox(manager.config)

    def get_phase(self) -> PhaseSetting | None:
        """Read the phase; None where the tenant has no legacy store."""
        return self._runtime.run(self._outbox.read_phase())

    def set_phase(self, phase: Phase | str, percentage: float | None = None) -> PhaseSetting:
        """Change the phase for every process; see :meth:`EnhancedSessionStore.set_phase`."""
        setting = check_phase(phase, percentage)
        self._runtime.run(self._outbox.set_phase(setting))
        return setting

    def end(self) -> bool:
        """Forget that the tenant has a legacy store, once no program uses an adapter any more; False: it had none."""
        return self._runtime.run(self._outbox.end_phase())

    def backlog(self) -> Backlog:
        """Count what the legacy store does not have yet."""
        return self._runtime.run(self._outbox.backlog())

    def counts(self) -> Counts:
        """Count it by the sessions alone: cheap enough to be asked again and again."""
        return self._runtime.run(self._outbox.counts())

    def waiting_sessions(self, limit: int = 100) -> list[WaitingSession]:
        """Return the sessions of the backlog: parked ones first, then those that have failed most."""
        return self._runtime.run(self._outbox.waiting(check_limit(limit, least=1)))

    def retry(self, session_id: str | None = None) -> list[str]:
        """Have sessions that are parked or put off (or one of them) tried again at once; answers which."""
        return self._runtime.run(self._outbox.retry(None if session_id is None else check_session_id(session_id)))
