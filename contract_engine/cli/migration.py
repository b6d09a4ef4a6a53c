"""The commands of a migration: which store is read, and what the legacy store is still to be given."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from contract_engine.cli import display
from contract_engine.cli.legacy import PATIENCE_SECONDS, Legacy, LegacyTable, LegacyUrl, named_object
from contract_engine.cli.legacy_stores import find_legacy_store
from contract_engine.cli.options import AsJson, DatabaseUrl, DryRun, RedisUrl, Tenant, Yes
from contract_engine.cli.outcome import INTERRUPTED_CODES, NO, confirm, say
from contract_engine.cli.servers import Choice, chosen_manager
from contract_engine.cli.wording import counted
from contract_engine.memory import (
    CircuitState,
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidInputError,
    MemoryManager,
    MemoryServiceError,
)
from contract_engine.memory.legacy_store import DEFAULT_TABLE, LegacySwisperStore
from contract_engine.memory.log_writer import LogWriter
from contract_engine.memory.migration import EnhancedSessionStore
from contract_engine.memory.migration_control import MigrationControl
from contract_engine.memory.outbox import Backlog, WaitingSession
from contract_engine.memory.phases import Phase, PhaseSetting, check_phase

phase_app = typer.Typer(no_args_is_help=True, help="Show or change which store answers reads while moving in.")

_MEANING = {
    Phase.COEXISTENCE: "both stores are written, the legacy store is read",
    Phase.GRADUAL: "both stores are written, the new one is read for {percentage:g} % of the sessions",
    Phase.FULL: "the new store is read, the legacy store is a backup that is still written",
}
POLL_SECONDS, LOOK_SECONDS = 0.1, 0.5
"""How often a thread looks for more to relay, and how often the progress is shown."""

JOIN_SECONDS = 5.0
"""How long a relay that ends waits for its threads: a legacy store may never come back from a call."""


@phase_app.command("show")
def show_phase(
    *, redis_url: RedisUrl = None, database_url: DatabaseUrl = None, tenant: Tenant = None, as_json: AsJson = False
) -> None:
    """Show the phase of the tenant, and what the legacy store does not have yet.

    Exit code 1 where the tenant has no legacy store.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with chosen_manager(choice, display.notices()) as manager:
        control = MigrationControl(manager)
        setting, backlog, name = control.get_phase(), control.backlog(), manager.config.tenant
    if as_json:
        display.print_json(_phase_json(setting) | {"backlog": backlog._asdict()})
    elif setting is None:
        say(f"No phase: tenant {name} writes to no legacy store.")
    else:
        say(f"{setting.phase}: {_meaning(setting)}.")
        say(_backlog_line(backlog))
    if setting is None:
        raise typer.Exit(NO)


@phase_app.command("set")
def set_phase(
    *,
    phase: Annotated[str, typer.Argument(metavar="PHASE", help="coexistence, gradual or full.")],
    percentage: Annotated[
        float | None, typer.Option(min=0, max=100, metavar="P", help="Of the sessions; with gradual alone.")
    ] = None,
    new_tenant: Annotated[
        bool, typer.Option("--new-tenant", help="Also for a tenant without a phase and without any session.")
    ] = False,
    dry_run: DryRun = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Change the phase of the tenant for every process; the running ones follow within a second.

    Going back is safe at any time: what the legacy store does not have yet is read from the outbox. Before going
    forward, import what it had before the migration, and compare: the new store shows only what it was given. A tenant
    that has neither a phase nor a session in the log is taken for a mistyped one: exit code 2, and nothing is changed.
    """
    setting = check_phase(phase, percentage)
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with chosen_manager(choice, display.notices()) as manager:
        control = MigrationControl(manager)
        before = control.get_phase()
        if before is None and not new_tenant:
            _check_known(manager, "; if it is to begin with this phase, give --new-tenant")
        if not dry_run:
            control.set_phase(phase, percentage)
    if as_json:
        display.print_json(_phase_json(setting) | {"before": _phase_json(before), "dry_run": dry_run})
        return
    origin = "none" if before is None else _named(before)
    say(f"{'Would go' if dry_run else 'Went'} from {origin} to {_named(setting)}: {_meaning(setting)}.")


def _check_known(manager: MemoryManager, hint: str = "") -> None:
    """Refuse a tenant without any session: no program would hear of its phase, and the one that was meant stays."""
    if not manager.session_store.get_all_sessions(1):
        tenant = display.printable(manager.config.tenant)
        raise InvalidInputError(
            "tenant",
            f"{tenant!r} has no phase and no session in the log. Correct --tenant or CONTRACT_MEMORY_TENANT{hint}",
        )


@phase_app.command("end", epilog=INTERRUPTED_CODES)
def end_phase(
    *,
    dry_run: DryRun = False,
    yes: Yes = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """End the migration: the tenant has no legacy store from now on. For when no program uses an adapter any more.

    Exit code 0 also where there was no phase; 1 where messages were left that the legacy store does not have (``relay``
    still brings them over), or it was not confirmed.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with chosen_manager(choice, display.notices()) as manager:
        control = MigrationControl(manager)
        left = control.backlog().messages
        not_relayed = f"{counted(left, 'message')} not relayed"
        if dry_run:
            had_one = control.get_phase() is not None
        else:
            confirm(f"End the migration of tenant {manager.config.tenant}, with {not_relayed}?", yes=yes)
            had_one = control.end()
    if as_json:
        ended = had_one and not dry_run
        display.print_json({"had_phase": had_one, "ended": ended, "not_relayed": left, "dry_run": dry_run})
    else:
        done = "The migration would end." if dry_run else "The migration has ended."
        say(done if had_one else "There was no phase to end.")
        if left:
            say(f"{counted(left, 'message', 'were')} not relayed; `contract-memory relay` still relays what is left.")
    if left:
        raise typer.Exit(NO)


@dataclass
class _Progress:
    """What several threads have relayed, what stopped one of them, and whether any waits for a call to come back."""

    relayed: int = 0
    error: MemoryServiceError | None = None
    is_stuck: bool = False


def relay(
    *,
    legacy: Legacy = None,
    legacy_url: LegacyUrl = None,
    table: LegacyTable = DEFAULT_TABLE,
    list_waiting: Annotated[bool, typer.Option("--list", help="Relay nothing, and show what waits.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Have parked and put-off sessions tried again, then relay.")
    ] = False,
    session: Annotated[str | None, typer.Option(metavar="SESSION", help="With --retry: this one alone.")] = None,
    dry_run: DryRun = False,
    workers: Annotated[int, typer.Option(min=1, max=16, metavar="N", help="Threads that relay.")] = 4,
    patience_seconds: Annotated[
        float, typer.Option("--patience", min=0, metavar="SECONDS", help="Give up after so long without progress.")
    ] = 60.0,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Give the legacy store what it does not have yet, in order.

    May be stopped and started at any time, and run beside programs that relay themselves. A message that the legacy
    store goes on refusing parks its session: what comes after it waits, so that the order is kept. Exit code 0 if
    nothing is left, 1 if something still waits, also because the legacy store is away, or with --list and --dry-run;
    2 if PostgreSQL is away, and for a table, a tenant or a session that is not there.
    """
    if session is not None and not retry:
        raise InvalidInputError("session", "goes with --retry; a relay takes whatever is due")
    legacy = named_object(legacy, legacy_url)
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with chosen_manager(choice, display.notices()) as manager:
        control = MigrationControl(manager)
        if control.get_phase() is None and not control.counts().sessions:
            _check_known(manager)
        if list_waiting or dry_run:
            if _show_waiting(control, as_json=as_json):
                raise typer.Exit(NO)
            return
        if legacy is None and legacy_url is None:
            if retry:
                _print_retried(_retried(manager, control, session), as_json=as_json)
                return
            raise ConfigurationError(
                "legacy",
                "say which store it is: --legacy-url URL for the table of the original, else --legacy "
                "package.module:name, or LEGACY_STORE",
            )
        with (
            _legacy_store(legacy, legacy_url, table) as found,
            EnhancedSessionStore(manager, found, is_relaying=False) as store,
        ):
            retried = _retried(manager, control, session) if retry else []
            progress = _relay_all(store, control, workers=workers, patience_seconds=patience_seconds)
            is_away = progress.is_stuck or store.legacy_breaker.state is not CircuitState.CLOSED
        left = control.backlog()
    if as_json:
        display.print_json({"relayed": progress.relayed, "retried": retried, "left": left._asdict()})
    else:
        say(f"Relayed {counted(progress.relayed, 'message')}. {_backlog_line(left)}")
        if is_away and left.messages:
            say("The legacy store does not answer: bring it back, then call this again.")
    if progress.error is not None:
        raise progress.error
    if left.messages:
        raise typer.Exit(NO)


@contextmanager
def _legacy_store(place: str | None, url: str | None, table: str) -> Iterator[Any]:
    """Open the table at ``url``; where no address is given, find the object that a program has.

    A table that is not there is refused before any session is tried, or counted as refused.
    """
    if url is None:
        yield find_legacy_store(place or "")
        return
    with LegacySwisperStore(url, table=table, timeout_seconds=PATIENCE_SECONDS) as store:
        with suppress(DatabaseUnavailableError):  # that it is away is told with what waits for it
            store.get_all_sessions(0)
        yield store


def _retried(manager: MemoryManager, control: MigrationControl, session: str | None) -> list[str]:
    """Have what was put off tried again; refuses a session that is not there, which is one mistyped."""
    retried = control.retry(session)
    if session is not None and not retried:
        with LogWriter(manager.config) as log:
            if log.position(session) is None:
                name = display.printable(session)
                raise InvalidInputError("session", f"{name!r} is not in the log; correct the name")
    return retried


def _relay_all(
    store: EnhancedSessionStore, control: MigrationControl, *, workers: int, patience_seconds: float
) -> _Progress:
    """Relay with several threads under a bar of progress, until nothing is left that somebody could relay."""
    progress, lock, stop = _Progress(), threading.Lock(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                count = store.relay_once()
            except MemoryServiceError as exc:
                progress.error = exc
                return
            with lock:
                progress.relayed += count
            if not count:
                stop.wait(POLL_SECONDS)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    with display.progress(display.notices()) as bar:
        backlog = control.counts()
        task = bar.add_task("relaying", total=backlog.messages)
        for thread in threads:
            thread.start()
        try:
            seen, moved_at = -1, time.monotonic()
            while backlog.sessions > backlog.parked and progress.error is None:
                if progress.relayed != seen:
                    seen, moved_at = progress.relayed, time.monotonic()
                elif time.monotonic() - moved_at > patience_seconds:
                    break
                time.sleep(LOOK_SECONDS)
                backlog = control.counts()
                bar.update(task, completed=progress.relayed, total=progress.relayed + backlog.messages)
        finally:
            stop.set()
            until = time.monotonic() + JOIN_SECONDS
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
    progress.is_stuck = any(thread.is_alive() for thread in threads)
    return progress


def _show_waiting(control: MigrationControl, *, as_json: bool) -> int:
    """Show what waits, and answer how many messages that are."""
    backlog, waiting = control.backlog(), control.waiting_sessions(1000)
    if as_json:
        display.print_json({"backlog": backlog._asdict(), "sessions": [one._asdict() for one in waiting]})
        return backlog.messages
    if waiting:
        display.output().print(_waiting_table(waiting))
    say(_backlog_line(backlog))
    return backlog.messages


def _waiting_table(waiting: Sequence[WaitingSession]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("session", "messages", "state", "failures", "error"):
        table.add_column(name, justify="right" if name in ("messages", "failures") else "left")
    for one in waiting:
        state = "parked" if one.is_parked else "in doubt" if one.in_doubt else "waits"
        style = {"parked": "red", "in doubt": "yellow"}.get(state, "")
        table.add_row(
            Text(display.shortened(one.session_id, 40)),
            f"{one.messages:,}",
            Text(state, style=style),
            str(one.attempts),
            Text(display.printable(one.error or "")),
        )
    return table


def _print_retried(retried: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        display.print_json({"retried": list(retried)})
    else:
        again = f"{counted(len(retried), 'session', 'are')} tried again by whoever relays next."
        say(again if retried else "Nothing was put off.")


def _backlog_line(backlog: Backlog) -> str:
    if not backlog.messages:
        return "The legacy store has everything."
    oldest = "" if backlog.oldest_seconds is None else f", the oldest for {backlog.oldest_seconds:,.0f} s"
    parked = f" Parked sessions: {backlog.parked}; `contract-memory relay --list` names them." if backlog.parked else ""
    waits = "waits" if backlog.messages == 1 else "wait"
    return f"{counted(backlog.messages, 'message')} of {counted(backlog.sessions, 'session')} {waits}{oldest}.{parked}"


def _named(setting: PhaseSetting) -> str:
    return f"{setting.phase} ({setting.percentage:g} %)" if setting.phase is Phase.GRADUAL else str(setting.phase)


def _meaning(setting: PhaseSetting) -> str:
    return _MEANING[setting.phase].format(percentage=setting.percentage)


def _phase_json(setting: PhaseSetting | None) -> dict[str, Any]:
    if setting is None:
        return {"phase": None, "percentage": None}
    return {"phase": setting.phase.value, "percentage": setting.percentage}
