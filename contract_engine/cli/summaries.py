"""The commands that look at the summaries of a session, write them again, and take poisoned ones out of use."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from contract_engine.cli import display
from contract_engine.cli.options import AsJson, AsStored, DatabaseUrl, DryRun, Ephemeral, RedisUrl, Session, Tenant
from contract_engine.cli.outcome import NO, known_context, say
from contract_engine.cli.servers import Choice, chosen_manager
from contract_engine.cli.summary_texts import ShownText, shown_texts
from contract_engine.memory import ConfigurationError, MemoryManager
from contract_engine.memory.models import MODEL as MODEL_METHOD
from contract_engine.memory.models import SUPPLIED
from contract_engine.memory.summarizers import FactsWriter

MODEL = "Language model"
ALL_VERSIONS = 2**31 - 1


def summaries(
    *,
    session: Session,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The newest versions only.")] = 20,
    text: Annotated[bool, typer.Option("--text", help="Print what each version says.")] = False,
    as_stored: AsStored = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    ephemeral: Ephemeral = False,
    as_json: AsJson = False,
) -> None:
    """Show the versions of a session's summary, and what wrote each.

    Oldest first, each with the messages it added. A version goes on from the text of its parent and adds the messages
    named. --text shows what folds wrote in whole phrases, found again in the log; --json has both, as text (as stored)
    and readable_text (null where the log cannot be read). Exit code 1 if there is no such session.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant, ephemeral=ephemeral)
    with chosen_manager(choice, display.notices()) as manager:
        context = known_context(manager, session)
        history = manager.summary_store.get_summary_history(session, limit)
        stats = manager.summary_store.get_summary_stats(session)
        shown = _shown(manager, session, history, as_stored=as_stored and not as_json) if text or as_json else []
    if as_json:
        versions = [entry | {"readable_text": one.readable} for entry, one in zip(history, shown, strict=True)]
        display.print_json({"session_id": session, "watermark": context["watermark"], **stats, "versions": versions})
    elif not history and context["watermark"]:
        say(f"The summaries of messages 1..{context['watermark']} were cleared; `resummarize` writes one again.")
    elif not history:
        say(f"No summary yet: all {context['last_seq']} messages stand word for word.")
    else:
        display.output().print(_in_words(history, shown) if text else timeline(history))
        older = stats["summary_count"] - len(history)
        if older > 0:
            say(f"Older versions: {older}; --limit {stats['summary_count']} shows them.")


def resummarize(
    *,
    session: Session,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="By this model; else by the built-in summarizer.", rich_help_panel=MODEL),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of a server that speaks as OpenAI's does.", rich_help_panel=MODEL),
    ] = None,
    api_key_variable: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE", help="The environment variable that holds the server's key.", rich_help_panel=MODEL
        ),
    ] = None,
    dry_run: DryRun = False,
    as_stored: AsStored = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Write the summary of a session again, from its messages.

    It becomes the next version; the earlier ones stay in the history. Exit code 0 when done; 1 if there is no such
    session, nothing is folded yet, or the model gave nothing to use: then nothing was changed; 2 if a server is away.
    """
    if model is None and (base_url is not None or api_key_variable is not None):
        raise typer.BadParameter("--base-url and --api-key-variable belong to --model NAME: give that too")
    writer = None if model is None else model_writer(model, base_url, api_key_variable)
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with chosen_manager(choice, display.notices(), facts_writer=writer) as manager:
        context = known_context(manager, session)
        with display.progress(display.notices()) as bar:
            task = bar.add_task(session if len(session) < 30 else "", total=context["watermark"])
            done = manager.summary_store.resummarize(
                session,
                use_model=writer is not None,
                dry_run=dry_run,
                progress=lambda count, total: bar.update(task, completed=count, total=total),
            )
        (shown,) = shown_texts(manager, session, [done["text"] or ""], as_stored=as_stored and not as_json)
    if as_json:
        readable = None if done["text"] is None else shown.readable
        display.print_json({"session_id": session, **done, "readable_text": readable})
    elif done["reason"] is None:
        author = done["model"] or "the built-in summarizer"
        was = f"messages 1..{done['last_seq']} by {author}: {done['tokens']:,} tokens"
        was += f" instead of {context['summary_tokens']:,}"
        if dry_run:
            say(f"Would write version {context['summary_version'] + 1}, of {was}.")
            display.output().print(display.summary_text(shown))
        else:
            say(f"Wrote version {done['version']}, of {was}.")
    if done["reason"] is not None:
        say(f"Nothing was changed: {done['reason']}.", display.notices())
        raise typer.Exit(NO)


def quarantine(
    *,
    session: Session,
    version: Annotated[int, typer.Argument(min=1, metavar="VERSION", help="As contract-memory summaries shows it.")],
    dry_run: DryRun = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Take a poisoned summary, and all made from it, out of use.

    Where the current version is among them, the summary is written again by the built-in summarizer: from the newest
    version that is in order, and the messages since. May be repeated. Exit code 1 if there is no such session or
    version.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with chosen_manager(choice, display.notices()) as manager:
        known_context(manager, session)
        if manager.config.is_durable:
            known = [entry["version"] for entry in manager.summary_store.get_summary_history(session, ALL_VERSIONS)]
            if version not in known:
                has = f"it has {known[0]} to {known[-1]}" if known else "it has none"
                say(
                    f"Session {session!r} has no summary version {version}: {has}. "
                    f"Look at them: contract-memory summaries {session}",
                    display.notices(),
                )
                raise typer.Exit(NO)
        done = manager.summary_store.quarantine(session, version, dry_run=dry_run)
    if as_json:
        display.print_json({"session_id": session, **done})
        return
    versions = ", ".join(map(str, done["versions"]))
    if dry_run:
        say(f"Would be out of use: versions {versions}.")
        if done["is_current"]:
            say(f"The summary would be written again, {_going_on(done['parent'])}.")
    else:
        say(f"Out of use: versions {versions}.")
        if done["is_current"]:
            say(f"The summary was written again as version {done['rebuilt']}, {_going_on(done['parent'])}.")
    if not done["is_current"]:
        say("The current version does not derive from them and stays.")


def model_writer(model: str, base_url: str | None, api_key_variable: str | None) -> FactsWriter:
    """Return what asks the model; the key comes from a variable, since others can read the options of a command."""
    key: str | None = None
    if api_key_variable is not None:
        key = os.environ.get(api_key_variable)
        if not key:
            raise ConfigurationError("api_key_variable", f"the environment has no variable {api_key_variable!r}")
    # Only here, since it needs the extra llm.
    from contract_engine.memory.summarizers import ModelSummarizer, OpenAIChat

    try:
        writer: FactsWriter = ModelSummarizer(OpenAIChat(model, base_url=base_url, api_key=key))
    except ConfigurationError as exc:
        if exc.field != "api_key":
            raise
        problem = "no key; set OPENAI_API_KEY, or name the variable that holds it: --api-key-variable VARIABLE"
        raise ConfigurationError("model", problem) from exc
    return writer


def timeline(history: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Show versions, oldest first, as a table."""
    table = Table(*_NAMES, "", box=None, header_style="dim", padding=(0, 1), pad_edge=False)
    for column in (0, 4, 5):
        table.columns[column].justify = "right"
    for entry in history:
        style = "" if entry["quarantined_at"] is None else "red"
        table.add_row(*(Text(cell, style=style) for cell in _cells(entry)))
    return table


_NAMES = ("version", "when", "by", "messages", "tokens", "parent")


def _shown(
    manager: MemoryManager, session: str, history: Sequence[Mapping[str, Any]], *, as_stored: bool
) -> list[ShownText]:
    """Return how the texts of versions are shown; what a model or a caller wrote is whole as it is."""
    folded = [entry["method"] not in (MODEL_METHOD, SUPPLIED) for entry in history]
    texts = [entry["text"] for entry, is_folded in zip(history, folded, strict=True) if is_folded]
    found = iter(shown_texts(manager, session, texts, as_stored=as_stored))
    return [
        next(found) if is_folded else ShownText(entry["text"], entry["text"], "")
        for entry, is_folded in zip(history, folded, strict=True)
    ]


def _in_words(history: Sequence[Mapping[str, Any]], shown: Sequence[ShownText]) -> RenderableType:
    """Show versions, oldest first, each with its text under it."""
    parts: list[RenderableType] = []
    for entry, text in zip(history, shown, strict=True):
        cells = [f"{name} {cell}" for name, cell in zip((*_NAMES, ""), _cells(entry), strict=True) if cell]
        parts += [Text(", ".join(cells), style="bold"), display.summary_text(text), ""]
    return Group(*parts)


def _cells(entry: Mapping[str, Any]) -> list[str]:
    first, last = entry["first_seq"], entry["last_seq"]
    author = entry["method"] if entry["model"] is None else f"{entry['method']} {entry['model']}"
    bad = entry["quarantined_at"]
    return [
        str(entry["version"]),
        _moment(entry["timestamp"]),
        display.shortened(str(author), 40),
        f"{first}..{last}" if first <= last else "none",
        f"{entry['tokens']:,}",
        str(entry["parent"] or ""),
        "" if bad is None else f"quarantined {_moment(bad)}",
    ]


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _going_on(parent: int | None) -> str:
    return "from the messages alone" if parent is None else f"from version {parent} and the messages since"
