"""Bring the sessions of a legacy store into the log, as an operator asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from contract_engine.cli import display
from contract_engine.cli.legacy import (
    PATIENCE_SECONDS,
    Legacy,
    LegacyRedisUrl,
    LegacyTable,
    LegacyUrl,
    OlderStore,
    OnlySessions,
    older_store,
)
from contract_engine.cli.options import AsJson, DatabaseUrl, DryRun, RedisUrl, Tenant
from contract_engine.cli.outcome import NO, say
from contract_engine.cli.servers import Choice, chosen_servers
from contract_engine.cli.wording import counted
from contract_engine.memory.backfill import Backfill, Outcome
from contract_engine.memory.legacy_store import DEFAULT_TABLE
from contract_engine.memory.log_writer import LogWriter

SHOWN = 50


@dataclass(slots=True)
class Tally:
    """What became of all sessions; only those are kept of which something is to be told."""

    dry_run: bool
    sessions: int = 0
    messages: int = 0
    imported: int = 0
    unchanged: int = 0
    elsewhere: int = 0
    summaries: int = 0
    contexts: int = 0
    other_contexts: int = 0
    more: int = 0
    brought: int = 0
    told: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one session."""
        self.sessions += 1
        self.messages += outcome.older
        self.imported += outcome.imported
        self.elsewhere += outcome.elsewhere
        self.summaries += outcome.summaries
        self.contexts += outcome.context
        self.other_contexts += outcome.other_context
        self.more += outcome.has_more
        self.brought += outcome.brought
        self.unchanged += outcome.is_whole and not outcome.is_changed
        if not outcome.is_whole:
            self.told.append(outcome)

    def troubles(self) -> Iterator[tuple[str, str, str]]:
        """Give session, place and reason of everything that did not come into the log."""
        for outcome in self.told:
            if outcome.left is not None:
                yield outcome.session_id, "session", outcome.left
            for place, problem in outcome.refused:
                yield outcome.session_id, f"message {place}", problem
            for place, problem in outcome.refused_summaries:
                yield outcome.session_id, f"summary {place}", problem
            if outcome.refused_context is not None:
                yield outcome.session_id, "context object", outcome.refused_context

    def as_json(self) -> dict[str, Any]:
        """Return the same for machines."""
        counts = ("sessions", "messages", "imported", "unchanged", "elsewhere", "summaries", "contexts")
        names = ("dry_run", *counts, "other_contexts", "more", "brought")
        troubles = [{"session_id": name, "place": place, "problem": text} for name, place, text in self.troubles()]
        return {name: getattr(self, name) for name in names} | {"not_imported": troubles}


def backfill(
    *,
    legacy: Legacy = None,
    legacy_url: LegacyUrl = None,
    table: LegacyTable = DEFAULT_TABLE,
    legacy_redis_url: LegacyRedisUrl = None,
    session: OnlySessions = None,
    rate: Annotated[
        float | None, typer.Option(min=0.1, metavar="N", help="At most so many messages per second.")
    ] = None,
    summaries: Annotated[
        bool,
        typer.Option(
            "--summaries/--no-summaries",
            help="Write summaries and search index of long histories too, or leave them to a later run.",
        ),
    ] = True,
    dry_run: DryRun = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Import the sessions of the legacy store.

    That is a table with one row per session, keys in Redis, or both; else any object of the program that has the method
    session_ids(), which lists its sessions. May be stopped at any time and started again, and
    run again after that: what is in the log is not imported twice. Older messages go before those that were written to
    both stores since; so write to both first, the log before the legacy store, wait until the legacy store has what it
    is behind with, and then import. Only the log is written to; but where the tenant writes to both stores, the table
    gets the sessions that Redis alone has, too.

    Exit code 0 if all of it is in the log; 1 if a session was left or a message cannot be taken: each is named with the
    reason, and the others are imported; 2 if a server is away: run it again.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    console = display.notices()
    with (
        chosen_servers(choice, console, database_timeout_seconds=PATIENCE_SECONDS) as config,
        older_store(legacy_url, table, legacy_redis_url, legacy) as store,
        LogWriter(config) as log,
        display.progress(console) as bar,
    ):
        task = bar.add_task("", total=None if session else store.totals()[1])
        run = Backfill(
            log, rate=rate, dry_run=dry_run, summarize=summaries, advance=lambda count: bar.advance(task, count)
        )
        tally, is_dual = Tally(dry_run), log.has_phase()
        for name in session or store.session_names():
            bar.update(task, description=escape(display.shortened(name, 30)))
            tally.add(import_one(run, store, name, is_dual=is_dual))
    if as_json:
        display.print_json(tally.as_json())
    else:
        _print(tally)
    if tally.told:
        raise typer.Exit(NO)


def import_one(run: Backfill, store: OlderStore, name: str, *, is_dual: bool) -> Outcome:
    """Import one session; where programs write to both stores, the table gets what only Redis had of it."""
    history = store.history(name)
    if history is None:
        return Outcome(name, left="there is no such session in the legacy store")
    if is_dual:
        history = store.before_both(history, run.log)
    outcome = run.import_session(history)
    if outcome.left is None and is_dual:
        brought = store.bring(history, run.log, dry_run=run.dry_run)
        if brought is None:
            outcome.left = "the table has messages of it by now that are not in the log; run it again"
        elif history.is_trimmed:
            outcome.brought = brought + (outcome.imported if run.dry_run else 0)
    missing = store.only_in_redis(history)
    if missing and outcome.left is None:
        outcome.left = f"{missing} messages of its buffer in Redis are not in the table; they were left there"
    return outcome


def _print(tally: Tally) -> None:
    verb = "Would import" if tally.dry_run else "Imported"
    of_all = f"{counted(tally.sessions, 'session')} with {counted(tally.messages, 'message')}"
    along = [
        f"{number:,} {one if number == 1 else several}"
        for number, one, several in (
            (tally.summaries, "summary", "summaries"),
            (tally.contexts, "context object", "context objects"),
        )
        if number
    ]
    say(
        f"{verb} {counted(tally.imported, 'message')} of {of_all}"
        + (f", and {' and '.join(along)}" if along else "")
        + f"; {counted(tally.unchanged, 'session')} needed nothing."
    )
    if tally.brought:
        went = "would go" if tally.dry_run else "went"
        say(f"{counted(tally.brought, 'message')} that Redis alone has {went} into the legacy table too.")
    if tally.other_contexts:
        say(f"{counted(tally.other_contexts, 'context object')} of the log differ from the older ones, and were left.")
    if tally.more:
        say(
            f"{counted(tally.more, 'session')} with has_contract or other session_metadata than the context object: "
            "the log has no place for these, and they stay in the legacy table alone."
        )
    if tally.elsewhere:
        say(f"{counted(tally.elsewhere, 'message', 'stand')} elsewhere in the log; contract-memory parity shows where.")
    if tally.told:
        troubles = list(tally.troubles())
        display.output().print(troubles_view(troubles[:SHOWN]))
        if len(troubles) > SHOWN:
            say(f"{len(troubles) - SHOWN:,} more; --json shows all of them.")


def troubles_view(troubles: Iterable[tuple[str, str, str]]) -> Table:
    """Show what was not imported, and why."""
    view = Table("session", "not imported", "why", box=None, header_style="dim", padding=(0, 1), pad_edge=False)
    for name, place, text in troubles:
        view.add_row(Text(display.session_label(name)), Text(place, style="yellow"), Text(display.shortened(text, 200)))
    return view
