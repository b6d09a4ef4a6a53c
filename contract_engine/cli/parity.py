"""Compare the sessions of a legacy store with those of the log, as an operator asks for it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from contract_engine.cli import display
from contract_engine.cli.archive import new_file
from contract_engine.cli.legacy import (
    PATIENCE_SECONDS,
    Legacy,
    LegacyTable,
    LegacyUrl,
    OlderStore,
    OnlySessions,
    older_store,
)
from contract_engine.cli.options import AsJson, DatabaseUrl, RedisUrl, Tenant
from contract_engine.cli.outcome import NO, say
from contract_engine.cli.servers import Choice, chosen_servers
from contract_engine.cli.wording import counted
from contract_engine.memory.errors import InvalidInputError
from contract_engine.memory.keys import check_session_id
from contract_engine.memory.legacy_store import DEFAULT_TABLE
from contract_engine.memory.log_writer import LogWriter
from contract_engine.memory.parity import Difference, Kind, Mark, compare, count_arrived, mark, summed

SHOWN = 50
LOOKS, PAUSE_SECONDS = 3, 0.3
"""How often a session with differences is looked at: what was written to one store may be on its way to the other."""


def parity(
    *,
    legacy: Legacy = None,
    legacy_url: LegacyUrl = None,
    table: LegacyTable = DEFAULT_TABLE,
    session: OnlySessions = None,
    sample: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only so many sessions, taken at random.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every difference to this file, as JSON Lines.")
    ] = None,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Compare the legacy store with the log, session by session.

    The store is the table of the original, else any object of the program that has the method session_ids().
    Content is compared as JSON values. Messages that the older store is still to be given are no differences: they are
    counted as pending. A session with differences is looked at again before they are told. Nothing is written.

    Exit code 0 if there is no difference, 1 if there is any, 2 if the stores could not be compared.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    console = display.notices()
    with ExitStack() as stack:
        config = stack.enter_context(
            chosen_servers(choice, console, only_database=True, database_timeout_seconds=PATIENCE_SECONDS)
        )
        store = stack.enter_context(older_store(legacy_url, table, place=legacy))
        log = stack.enter_context(LogWriter(config))
        write = stack.enter_context(_exported(export))
        bar = stack.enter_context(display.progress(console, "sessions"))
        names = _chosen(session, sample, store, log)
        task = bar.add_task("", total=len(names))
        differences: list[Difference] = []
        messages = sessions = pending = 0
        for name in names:
            bar.update(task, description=escape(display.shortened(name, 30)))
            found, count, waiting = _compare(store, log, name)
            messages += count
            pending += waiting
            sessions += bool(found)
            for item in found:
                write(item)
            differences += found
            bar.advance(task)
    if as_json:
        told: dict[str, Any] = {"sessions": len(names), "messages": messages, "pending": pending}
        told["sessions_with_differences"] = sessions
        kinds = dict(summed(differences))
        display.print_json(told | {"kinds": kinds, "differences": [item.as_json() for item in differences]})
    else:
        _print(differences, len(names), messages)
        if pending:
            say(f"{counted(pending, 'message', 'are')} pending: contract-memory relay gives the older store the rest.")
    if differences:
        raise typer.Exit(NO)


def _chosen(session: Sequence[str] | None, sample: int | None, store: OlderStore, log: LogWriter) -> list[str]:
    if session:
        for name in session:
            if log.position(name) is None and store.history(name) is None:
                raise InvalidInputError("session", f"{display.printable(name)!r} is in neither store; correct the name")
        return list(dict.fromkeys(session))
    names = list(dict.fromkeys([*store.session_names(), *_names(log)]))
    return names if sample is None or sample >= len(names) else random.sample(names, sample)


def _names(log: LogWriter) -> Iterator[str]:
    after = ""
    while names := log.session_names(after=after):
        yield from names
        after = names[-1]


def _compare(store: OlderStore, log: LogWriter, name: str) -> tuple[list[Difference], int, int]:
    """Return the differences of a session that stay, how many messages were compared, and how many are pending."""
    for look in range(LOOKS):
        if look:
            time.sleep(PAUSE_SECONDS)
        found, count, pending = _look(store, log, name)
        if not found:
            break
    return found, count, pending


def _look(store: OlderStore, log: LogWriter, name: str) -> tuple[list[Difference], int, int]:
    # The older store before the log: what is written to both comes into the log first. And before both, what the older
    # store is owed, since what is relayed between two looks would be in neither of them the other way round.
    newest, owed = log.in_flight(name)
    history = store.history(name)
    places: list[int] = []
    legacy: list[Mark] = []
    arrived: set[str] = set()
    found: list[Difference] = []
    if history is not None and history.problem is not None:
        found.append(Difference(name, Kind.UNREADABLE_IN_LEGACY))
    for item in () if history is None else history.read(0):
        if item.message is None:
            found.append(Difference(name, Kind.UNREADABLE_IN_LEGACY, legacy_place=item.place))
        else:
            places.append(item.place)
            legacy.append(mark(item.message))
        if item.message_id is not None:
            arrived.add(item.message_id)
    logged, waiting = _in_log(log, name, newest, owed - arrived, arrived)
    is_known = bool(logged or waiting) or log.position(name) is not None
    if waiting and not arrived:  # a store without ids
        count = count_arrived(legacy, len(logged), [item for _, item in waiting])
        logged, waiting = sorted(logged + waiting[:count], key=itemgetter(0)), waiting[count:]
    new = [item for _, item in logged]
    for difference in compare(name, None if history is None else legacy, new if is_known else None):
        old_at, new_at = difference.legacy_place, difference.new_place
        found.append(
            replace(
                difference,
                legacy_place=None if old_at is None else places[old_at - 1],
                new_place=None if new_at is None else logged[new_at - 1][0],
            )
        )
    return found, max(len(legacy), len(new)), len(waiting)


def _in_log(
    log: LogWriter, name: str, newest: str | None, owed: set[str], arrived: set[str]
) -> tuple[list[tuple[int, Mark]], list[tuple[int, Mark]]]:
    """Return the messages of the log with their numbers, and those of them that are on their way to the older store.

    These are the ``owed`` ones, and what was written behind ``newest`` since, unless it has ``arrived``.
    """
    logged: list[tuple[int, Mark]] = []
    waiting: list[tuple[int, Mark]] = []
    is_since = newest is None
    for seq, message_id, message in log.messages(name):
        is_waiting = message_id in owed or (is_since and message_id not in arrived)
        (waiting if is_waiting else logged).append((seq, mark(message)))
        is_since = is_since or message_id == newest
    return logged, waiting


@contextmanager
def _exported(path: Path | None) -> Iterator[Callable[[Difference], object]]:
    """Give what writes a difference to the file, which gets its name when all are; what does nothing without a path."""
    if path is None:
        yield lambda _: None
        return
    with new_file(path, "export") as file:
        yield lambda item: file.write(json.dumps(item.as_json()).encode() + b"\n")


def _why_not_taken(session_id: str) -> str:
    """Return why the log can have no session of this id; nothing where it can."""
    try:
        check_session_id(session_id)
    except InvalidInputError as exc:
        return str(exc)
    return ""


def _print(differences: Sequence[Difference], sessions: int, messages: int) -> None:
    if not differences:
        say(f"No difference: {counted(messages, 'message')} of {counted(sessions, 'session')}.")
        return
    view = Table(
        "session", "difference", "legacy", "new", "", box=None, header_style="dim", padding=(0, 1), pad_edge=False
    )
    for item in differences[:SHOWN]:
        where = item.position or (f"{item.count:,} messages" if item.count > 1 else "")
        where = _why_not_taken(item.session_id) or where
        view.add_row(
            Text(display.session_label(item.session_id)),
            Text(item.kind.replace("_", " "), style="yellow"),
            str(item.legacy_place or ""),
            str(item.new_place or ""),
            where,
        )
    display.output().print(view)
    if len(differences) > SHOWN:
        say(f"{len(differences) - SHOWN:,} more; --export FILE writes all of them.")
    kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in summed(differences).items())
    of_all = f"{counted(sessions, 'session')} with {counted(messages, 'message')}"
    say(f"{counted(len(differences), 'difference')} in {of_all}: {kinds}.")
