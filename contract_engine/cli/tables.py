"""The command that brings the tables of the database up to date, or takes them back."""

from __future__ import annotations

from typing import Annotated

import typer

from contract_engine.cli import display, probes
from contract_engine.cli.options import AsJson, DatabaseUrl, DryRun, Yes
from contract_engine.cli.outcome import confirm, say
from contract_engine.cli.servers import Choice, chosen_servers
from contract_engine.memory import ConfigurationError

Up = Annotated[
    str | None, typer.Option("--revision", metavar="REVISION", help="Go up to this one; by default to the newest.")
]
Down = Annotated[
    str | None, typer.Option("--down", metavar="REVISION", help="Go back to this one; base drops every table.")
]


def migrate(
    *,
    revision: Up = None,
    down: Down = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Bring the tables of the database up to date, or take them back.

    Other tables in it are left alone. All of it is one transaction. May be repeated, and run while programs use the
    tables. Exit code 0 when done, also with nothing to do; 1 not confirmed; 2 the database is away, or has no such
    revision.
    """
    if revision is not None and down is not None:
        raise typer.BadParameter("--revision goes up and --down goes back: give one of them")
    choice = Choice(database_url=database_url)
    with chosen_servers(choice, display.notices(), only_database=True, migrate=False) as config:
        url = config.database_url
        if url is None:
            raise ConfigurationError("database_url", "no database is configured; give --database-url or DATABASE_URL")
        before = after = probes.schema_revision(url)
        target = down or revision or "head"
        steps = probes.planned(before, target, down=down is not None)
        if not dry_run:
            if down is not None and steps:
                question = f"Take the schema back from {before or 'nothing'} to {down}, and drop what is younger?"
                confirm(question, yes=yes)
            with display.progress(display.notices(), "revisions") as bar:
                task = bar.add_task("migrate", total=len(steps))
                probes.migrate(url, target, down=down is not None, advance=lambda: bar.advance(task))
            after = probes.schema_revision(url)
    if as_json:
        found = {"from": before, "to": after, "dry_run": dry_run}
        display.print_json(found | {"steps": [step._asdict() for step in steps]})
    elif dry_run and steps:
        verb = "Would take back" if down is not None else "Would apply"
        say(f"{verb}, in one transaction, to a schema at {before or 'nothing'}:")
        for step in steps:
            say(f"  {step.revision}  {step.title}")
    elif before == after:
        say(f"The schema is at {after or 'nothing'} already.")
    else:
        say(f"Migrated the schema: {before or 'nothing'} → {after or 'nothing'}.")
