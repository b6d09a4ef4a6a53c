"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

SERVERS = "Servers"
RedisUrl = Annotated[
    str | None, typer.Option("--redis-url", metavar="URL", help="Instead of REDIS_URL.", rich_help_panel=SERVERS)
]
DatabaseUrl = Annotated[
    str | None, typer.Option("--database-url", metavar="URL", help="Instead of DATABASE_URL.", rich_help_panel=SERVERS)
]
Tenant = Annotated[
    str | None, typer.Option("--tenant", help="Instead of CONTRACT_MEMORY_TENANT.", rich_help_panel=SERVERS)
]
Ephemeral = Annotated[
    bool, typer.Option("--ephemeral", help="Redis alone, even if a database is configured.", rich_help_panel=SERVERS)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, and show what would be done.")]
Full = Annotated[bool, typer.Option("--full", help="Print texts whole instead of shortened.")]
AsStored = Annotated[
    bool, typer.Option("--as-stored", help="The summary as a model is given it, not in whole phrases.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Session = Annotated[str, typer.Argument(metavar="SESSION", help="The session id.")]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Of every replayed session; by default as configured.")
]
