"""Log what waits in Redis, session by session, as an operator asks for it."""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.markup import escape

from contract_engine.cli import display
from contract_engine.cli.outcome import say
from contract_engine.cli.wording import counted
from contract_engine.memory import MemoryManager, MemoryServiceError


class Drained(NamedTuple):
    """How many messages of each session were logged, and why the other sessions still wait."""

    counts: dict[str, int]
    failed: dict[str, MemoryServiceError]

    @property
    def messages(self) -> int:
        """How many were logged of all sessions."""
        return sum(self.counts.values())

    def as_json(self) -> dict[str, Any]:
        """Return the same for machines."""
        failed = {session_id: str(exc) for session_id, exc in self.failed.items()}
        return {"sessions": self.counts, "messages": self.messages, "failed": failed}


def show_waiting(manager: MemoryManager, *, as_json: bool) -> None:
    """Name the sessions that a drain would log, and log nothing."""
    sessions = sorted(manager.unlogged_sessions())
    if as_json:
        display.print_json({"waiting": sessions, "dry_run": True})
        return
    for session_id in sessions:
        say(session_id)
    say(f"Would log the messages of {counted(len(sessions), 'session')}.")


def drain_sessions(manager: MemoryManager) -> Drained:
    """Drain every session of the tenant under a bar of progress; one that fails does not keep the others waiting."""
    drained = Drained({}, {})
    sessions = manager.unlogged_sessions()
    with display.progress(display.notices(), "sessions") as bar:
        task = bar.add_task("", total=len(sessions))
        for session_id in sessions:
            bar.update(task, description=escape(display.shortened(session_id, 30)))
            try:
                drained.counts[session_id] = manager.drain(session_id)
            except MemoryServiceError as exc:
                drained.failed[session_id] = exc
            bar.advance(task)
    return drained
