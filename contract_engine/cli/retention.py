"""The commands that erase: what is old, and what is named, with the proof."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from contract_engine.cli import display
from contract_engine.cli.options import AsJson, DatabaseUrl, Ephemeral, RedisUrl, Tenant, Yes
from contract_engine.cli.outcome import NO, confirm, say
from contract_engine.cli.servers import Choice, chosen_manager
from contract_engine.cli.wording import counted

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

DryRun = Annotated[bool, typer.Option("--dry-run", help="Erase nothing, and count.")]


def purge(
    *,
    older_than: Annotated[
        str, typer.Option(metavar="TIME", help="30m, 12h, 90d, 8w; or a date, 2026-01-31 or 2026-01-31T12:00+01:00.")
    ],
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many sessions.")] = None,
    rate: Annotated[
        float, typer.Option(min=0.0, metavar="N", help="Sessions per second at most; 0: as fast as it goes.")
    ] = 200.0,
    dry_run: DryRun = False,
    yes: Yes = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Erase the sessions that nobody has touched for some time.

    From Redis and from every table. Touched by what a caller writes: a message, a text for the summary, the context
    object, limits, a pin, instructions; not by reads. What is touched meanwhile, or just in use, is kept, and so is
    what has messages in Redis that wait to be logged: --dry-run counts these too, so its figure is the most it can be.
    May be stopped and started at any time. Exit code 0 when done, also with nothing to do; 1 not confirmed; 2 a server
    is away.
    """
    age = age_of(older_than)
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with chosen_manager(choice, display.notices()) as manager:
        with display.notices().status("counting …"):
            found = manager.retention.purge(age, limit=limit, dry_run=True)
        if not dry_run and found["sessions"]:
            since = f"not touched since {moment_of(found['before'])}"
            question = f"Erase {_extent(found)}, {since}, for good?"
            confirm(question, yes=yes)
            with display.progress(display.notices(), "sessions") as bar:
                task = bar.add_task("purge", total=found["sessions"])
                found = manager.retention.purge(
                    datetime.fromisoformat(found["before"]),
                    limit=limit,
                    sessions_per_second=rate or None,
                    progress=lambda done: bar.update(task, completed=done),
                )
    if as_json:
        display.print_json(found | {"dry_run": dry_run})
        return
    if not found["sessions"] + found["kept"]:
        say(f"Nothing to erase: every session was touched since {moment_of(found['before'])}.")
        return
    verb = "Would erase" if dry_run else "Erased"
    oldest = f", the oldest of {moment_of(found['oldest'])}" if found["oldest"] else ""
    say(f"{verb} {_extent(found)}{oldest}.")
    if found["kept"]:
        say(f"Kept {counted(found['kept'], 'session')}, touched meanwhile or in use.")


def _extent(found: Mapping[str, Any]) -> str:
    return f"{counted(found['sessions'], 'session')} with {counted(found['messages'], 'message')}"


def erase(
    *,
    sessions: Annotated[list[str], typer.Argument(metavar="SESSION...", help="The session ids.")],
    dry_run: DryRun = False,
    yes: Yes = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    ephemeral: Ephemeral = False,
    as_json: AsJson = False,
) -> None:
    """Erase sessions, then search both servers for what is left.

    In every table, and in every key on every primary. Not looked at, and not to be proven from here: backups, WAL and
    dead rows, replicas, AOF and RDB files of Redis. Exit code 0 if nothing is left, also where nothing was there; 1 if
    anything is left, or it was not confirmed; 2 if a server is away: then call again.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant, ephemeral=ephemeral)
    with chosen_manager(choice, display.notices()) as manager:
        if not dry_run:
            confirm(f"Erase {counted(len(sessions), 'session')} for good: {', '.join(map(repr, sessions))}?", yes=yes)
        with display.progress(display.notices(), "sessions") as bar:
            task = bar.add_task("erase", total=len(sessions))
            reports = manager.retention.erase(
                sessions, dry_run=dry_run, progress=lambda done: bar.update(task, completed=done)
            )
    left = [report for report in reports if not dry_run and (report["left_rows"] or report["left_keys"])]
    if as_json:
        display.print_json({"sessions": reports, "dry_run": dry_run, "proven": None if dry_run else not left})
    else:
        display.output().print(erasures(reports))
        tables = ", ".join(reports[0]["tables"]) or "no table, there is no database"
        say(f"Looked at: {tables}; every key of the session on every primary of Redis.", display.notices())
        if not dry_run and not left:
            say("Nothing of them is left.")
    for report in left:
        what = [f"{counted(count, 'row')} of {name}" for name, count in report["left_rows"].items()]
        what += [f"the key {key!r}" for key in report["left_keys"]]
        say(f"Left of session {report['session_id']!r}: {', '.join(what)}.", display.notices())
    if left:
        raise typer.Exit(NO)


def age_of(text: str) -> timedelta | datetime:
    """Return the time or the moment a text names; a moment without a time zone is one in UTC."""
    if found := re.fullmatch(r"(\d{1,9})([smhdw])", text.strip()):
        return timedelta(**{UNITS[found[2]]: int(found[1])})
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a time such as 90d nor a date such as 2026-01-31") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def moment_of(text: str) -> str:
    """Return a moment in UTC, as it may be given to --older-than; the server's own zone is nobody's here."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def erasures(reports: Sequence[Mapping[str, Any]]) -> Table:
    """Show what was there of each session, and whether anything is left."""
    table = Table("session", "messages", "rows", "Redis keys", "", box=None, header_style="dim", padding=(0, 1))
    for column in (1, 2, 3):
        table.columns[column].justify = "right"
    for report in reports:
        rows = report["tables"]
        note = Text("counted only", style="dim")
        if not report["dry_run"]:
            if report["left_rows"] or report["left_keys"]:
                note = Text("✗ something is left", style="red")
            elif sum(rows.values()) + report["redis_keys"]:
                note = Text("✓ erased", style="green")
            else:  # erased before, or a slip of the pen
                note = Text("✓ nothing was there", style="yellow")
            if report["begun_anew"]:
                note.append("; somebody has begun it anew since", style="yellow")
        table.add_row(
            Text(display.printable(report["session_id"])),
            f"{rows.get('memory_messages', 0):,}" if rows else "?",
            f"{sum(rows.values()):,}",
            str(report["redis_keys"]),
            note,
        )
    return table
