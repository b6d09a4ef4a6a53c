"""The commands that feed conversations through the memory: the shipped ones, and one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from contract_engine import demo as shipped
from contract_engine.cli import display
from contract_engine.cli.conversations import Conversation, conversation_of, read_conversations
from contract_engine.cli.options import AsJson, DatabaseUrl, DryRun, Ephemeral, Full, Limit, RedisUrl, Tenant
from contract_engine.cli.outcome import NO, say
from contract_engine.cli.replay import replay_all, sessions_to_clear
from contract_engine.cli.report import SessionReport, reports_as_json
from contract_engine.cli.servers import Choice, chosen_manager
from contract_engine.cli.wording import counted
from contract_engine.memory import SessionLimits

# Small enough that conversations of forty messages are folded several times.
DEMO_LIMITS = {"summary_trigger_tokens": 1200, "max_buffer_tokens": 2000, "max_buffer_messages": 16}
DEMO_SUMMARY_TOKENS = 250

DEMO_INTRODUCTION = (
    "Real conversations between a customer, an agent (a language model) and its tools are fed to the memory, message "
    "by message. After each one the context is checked: a summary of messages 1..W, and the messages after W word for "
    "word. When the word-for-word part grows too large, its oldest exchanges are [b]folded[/b] into the summary, and "
    f"W moves on. So that there is much to see, the limits are small: {DEMO_LIMITS['max_buffer_messages']} messages or "
    f"{DEMO_LIMITS['max_buffer_tokens']:,} tokens word for word, {DEMO_SUMMARY_TOKENS} tokens of summary.\n"
)


def demo(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Use the servers of the other commands, and leave the sessions there.")
    ] = False,
    full: Full = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    ephemeral: Ephemeral = False,
    as_json: AsJson = False,
) -> None:
    """Replay the shipped conversations, and show what is kept.

    Runs on servers of its own that are gone afterwards, unless --keep or an address is given. The sessions are called
    demo-1, demo-2, ... and replace those of an earlier run.
    """
    conversations = [
        Conversation(f"demo-{number}", conversation_of(record, place=f"demo {number}").messages)
        for number, record in enumerate(shipped.conversations(), start=1)
    ]
    if not as_json:
        display.output().print(DEMO_INTRODUCTION)
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant, ephemeral=ephemeral)
    with chosen_manager(
        choice,
        display.notices(),
        temporary=not keep,
        max_summary_tokens=DEMO_SUMMARY_TOKENS,
        readable_summaries=True,
    ) as manager:
        reports = replay_all(manager, conversations, limits=DEMO_LIMITS, replace=True, keep=keep)
    _print_reports(reports, full=full, as_json=as_json)
    if not as_json:
        console = display.output()
        console.print("The conversations are Sierra's, from tau-bench and tau2-bench (MIT licence).", style="dim")
        if keep:
            console.print("Look at one of them: contract-memory show demo-1", style="dim")


def replay(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help='A conversation per line: {"id", "messages"}.')],
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Replay the first conversations only.")] = None,
    session_prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Put before each id to make the session id.")
    ] = "",
    keep: Annotated[bool, typer.Option("--keep/--clear", help="Leave the sessions, or delete them at the end.")] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Clear sessions of the same name first.")] = False,
    summary_trigger_tokens: Limit = None,
    max_buffer_tokens: Limit = None,
    max_buffer_messages: Limit = None,
    full: Full = False,
    dry_run: DryRun = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    ephemeral: Ephemeral = False,
    as_json: AsJson = False,
) -> None:
    """Feed your own conversations through the memory, and verify it.

    Verified after every message: the context is the summary of 1..W and the messages W+1..N, word for word as sent.
    Exit code 0 where all of it holds, 1 where something does not; 2 on wrong input, for sessions that hold messages
    already (without --replace), or where a server is away.
    """
    limits = {
        "summary_trigger_tokens": summary_trigger_tokens,
        "max_buffer_tokens": max_buffer_tokens,
        "max_buffer_messages": max_buffer_messages,
    }
    given = {name: value for name, value in limits.items() if value is not None}
    SessionLimits().with_changes(given)
    conversations = read_conversations(file, prefix=session_prefix, limit=limit)
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant, ephemeral=ephemeral)
    with chosen_manager(choice, display.notices()) as manager:
        if dry_run:
            _print_plan(conversations, sessions_to_clear(manager, conversations, replace=replace), as_json=as_json)
            return
        reports = replay_all(manager, conversations, limits=given, replace=replace, keep=keep)
    _print_reports(reports, full=full or len(reports) == 1, as_json=as_json)


def _print_plan(conversations: Sequence[Conversation], cleared: Sequence[str], *, as_json: bool) -> None:
    messages = sum(len(item.messages) for item in conversations)
    if as_json:
        found = {"conversations": len(conversations), "messages": messages, "cleared": cleared}
        display.print_json(found | {"dry_run": True})
        return
    first = f", and clear {counted(len(cleared), 'session')} first" if cleared else ""
    say(f"Would replay {counted(messages, 'message')} of {counted(len(conversations), 'conversation')}{first}.")


def _print_reports(reports: Sequence[SessionReport], *, full: bool, as_json: bool) -> None:
    """Print what became of each conversation; the answer of the command is no where one was not verified."""
    if as_json:
        display.print_json(reports_as_json(reports))
    else:
        console = display.output()
        for report in reports:
            console.print(display.session_panel(report, full=full))
        console.print(display.totals(reports))
    if any(report.violations for report in reports):
        raise typer.Exit(NO)
