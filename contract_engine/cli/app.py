"""The commands of ``contract-memory``, their options and exit codes."""

from __future__ import annotations

import io
import sys
from dataclasses import asdict
from importlib import metadata
from typing import Annotated

import typer

from contract_engine.cli import (
    archive,
    backfill,
    display,
    doctor,
    metrics_server,
    migration,
    parity,
    retention,
    summaries,
    tables,
    top,
    trying,
)
from contract_engine.cli.drain import drain_sessions, show_waiting
from contract_engine.cli.options import (
    AsJson,
    AsStored,
    DatabaseUrl,
    DryRun,
    Ephemeral,
    Full,
    RedisUrl,
    Session,
    Tenant,
    Yes,
)
from contract_engine.cli.outcome import (
    EXIT_CODES,
    IMPORT_CODES,
    INTERRUPTED_CODES,
    REPLAY_CODES,
    UNDONE_CODES,
    UNREAD,
    CommandGroup,
    confirm,
    known_context,
    say,
)
from contract_engine.cli.replay import clear_session
from contract_engine.cli.servers import Choice, chosen_manager, chosen_servers
from contract_engine.cli.signals import end_in_order, end_once, mute
from contract_engine.cli.summary_texts import shown_texts
from contract_engine.cli.wording import counted

# The panels of --help, in the order of the first command of each.
TRY, LOOK, MEND = "Try it", "Look at sessions", "Mend a summary"
KEEP, OPERATE, MOVE = "Keep and delete", "Set up and operate", "Move in from a legacy store"

app = typer.Typer(
    name="contract-memory",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Session memory for LLM orchestrators: look at sessions, replay conversations, migrate, find what is wrong.",
    epilog="Servers: the options, else the environment (REDIS_URL or REDIS_HOST, DATABASE_URL or POSTGRES_HOST) as the "
    "library reads it: a Redis alone means ephemeral mode, a database alone means Redis at localhost:6379. Where "
    "nothing is named, Redis and PostgreSQL are started for the command; their data stays in CONTRACT_MEMORY_HOME, "
    f"by default ~/.local/share/contract-memory (root: /var/lib/contract-memory).\n\n{EXIT_CODES}",
)


def main() -> None:
    """Run the command line."""
    command = typer.main.get_command(app)
    end_in_order()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a bar in a terminal of another encoding is no reason to fail
    try:
        command(prog_name="contract-memory")
    finally:
        end_once()  # what comes now would meet an interpreter that is being taken down
        try:
            if sys.stdout is not None:  # what closed standard output, as some schedulers do, wants no flush
                sys.stdout.flush()
        except BrokenPipeError:
            mute()
            sys.exit(UNREAD)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(metadata.version("contract-engine"))
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Stand for the options that come before any command."""


app.command(rich_help_panel=TRY)(trying.demo)
app.command(rich_help_panel=TRY, epilog=REPLAY_CODES)(trying.replay)


@app.command(rich_help_panel=LOOK)
def show(
    *,
    session: Session,
    full: Full = False,
    as_stored: AsStored = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    ephemeral: Ephemeral = False,
    as_json: AsJson = False,
) -> None:
    """Show the context of a session: its summary, its last messages.

    That is what get_context gives to a program, but for the summary, which is shown in whole phrases, found again in
    the log. --json has both, as current_summary (as stored) and readable_summary (null where the log cannot be read).
    Exit code 1 if there is no such session.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant, ephemeral=ephemeral)
    with chosen_manager(choice, display.notices()) as manager:
        context = known_context(manager, session)
        text = context["current_summary"] or ""
        (summary,) = shown_texts(manager, session, [text], as_stored=as_stored and not as_json)
    if as_json:
        display.print_json(context | {"readable_summary": summary.readable or None})
    else:
        display.output().print(display.session_view(context, summary, full=full))


@app.command(rich_help_panel=LOOK)
def stats(
    *,
    session: Session,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    ephemeral: Ephemeral = False,
    as_json: AsJson = False,
) -> None:
    """Show the figures of a session, and of the Redis it lies in.

    Exit code 1 if there is no such session.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant, ephemeral=ephemeral)
    with chosen_manager(choice, display.notices()) as manager:
        context = known_context(manager, session)
        found = manager.get_memory_stats(session)
    if as_json:
        names = ("session_id", "watermark", "last_seq", "summary_version", "summary_tokens")
        display.print_json({name: context[name] for name in names} | found)
    else:
        display.output().print(display.stats_view(found, context))


app.command(rich_help_panel=LOOK)(summaries.summaries)
app.command(rich_help_panel=LOOK)(top.top)
app.command(rich_help_panel=MEND, epilog=INTERRUPTED_CODES)(summaries.resummarize)
app.command(rich_help_panel=MEND)(summaries.quarantine)
app.command(rich_help_panel=KEEP, epilog=INTERRUPTED_CODES)(archive.export)
app.command(name="import", rich_help_panel=KEEP, epilog=IMPORT_CODES)(archive.import_)


@app.command(rich_help_panel=KEEP, epilog=INTERRUPTED_CODES)
def clear(
    *,
    session: Session,
    dry_run: DryRun = False,
    yes: Yes = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    ephemeral: Ephemeral = False,
    as_json: AsJson = False,
) -> None:
    """Delete one session for good: from Redis and from every table.

    To delete several, and to have what is left searched for: erase. Exit code 0 if it is gone, also where it was not
    there; 1 if it was not confirmed; 2 if a server is away: then call again.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant, ephemeral=ephemeral)
    with chosen_manager(choice, display.notices()) as manager:
        count = manager.get_context(session)["last_seq"]
        if not dry_run:
            if count:
                confirm(f"Delete session {session!r} and its {counted(count, 'message')} for good?", yes=yes)
            clear_session(manager, session)
    if as_json:
        display.print_json({"session_id": session, "cleared": not dry_run, "messages": count, "dry_run": dry_run})
    elif count:
        verb = "Would clear" if dry_run else "Cleared"
        say(f"{verb} session {session!r}: {counted(count, 'message')}, and every summary.")
    else:
        say(f"Nothing to clear: there is no session {session!r}.")


app.command(rich_help_panel=KEEP, epilog=INTERRUPTED_CODES)(retention.erase)
app.command(rich_help_panel=KEEP, epilog=INTERRUPTED_CODES)(retention.purge)


app.command(rich_help_panel=OPERATE, epilog=UNDONE_CODES)(tables.migrate)


@app.command(name="doctor", rich_help_panel=OPERATE)
def examine(
    *,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    ephemeral: Ephemeral = False,
    as_json: AsJson = False,
) -> None:
    """Check servers, schema and settings, and say what to do.

    First comes the health report as applications have it: what can be served now, and what can be lost.

    Exit code 0 if all is well, 1 if there are warnings, 2 if anything fails.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant, ephemeral=ephemeral)
    console = display.notices()
    with chosen_servers(choice, console) as config, console.status("checking …"):
        report = doctor.health(config)
        findings = [*doctor.examine(config), *doctor.outbox_findings(report)]
    state = doctor.worst(findings)
    if as_json:
        mode = "durable" if config.is_durable else "ephemeral"
        checks = [asdict(finding) for finding in findings]
        display.print_json({"status": state, "mode": mode, "checks": checks, "health": report.as_dict()})
    else:
        display.output().print(display.health_view(report))
        display.output().print(display.findings_view(findings))
    raise typer.Exit(doctor.EXIT_CODES[state])


@app.command(rich_help_panel=OPERATE, epilog=INTERRUPTED_CODES)
def drain(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Log nothing, and name the sessions.")] = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Log what waits in Redis since PostgreSQL was away.

    The messages of every session of the tenant; the next append or read of a session does the same for that session.
    May be stopped and started at any time. A session that fails does not keep the others waiting. Exit code 0 when all
    is logged, 2 if a session failed or a server is away.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with chosen_manager(choice, display.notices()) as manager:
        if dry_run:
            show_waiting(manager, as_json=as_json)
            return
        drained = drain_sessions(manager)
    if as_json:
        display.print_json(drained.as_json())
    elif drained.counts:
        say(f"Logged {counted(drained.messages, 'message')} of {counted(len(drained.counts), 'session')}.")
    elif not drained.failed:
        say("Nothing waits to be logged.")
    if drained.failed:
        waiting = counted(len(drained.failed), "session", "wait")
        say(f"{waiting} still; the first of them says why.", display.notices())
        raise next(iter(drained.failed.values()))


app.command(rich_help_panel=OPERATE)(metrics_server.metrics)
app.command(rich_help_panel=MOVE, epilog=INTERRUPTED_CODES)(backfill.backfill)
app.command(rich_help_panel=MOVE, epilog=INTERRUPTED_CODES)(parity.parity)
app.command(rich_help_panel=MOVE, epilog=INTERRUPTED_CODES)(migration.relay)
app.add_typer(migration.phase_app, name="phase", rich_help_panel=MOVE)
