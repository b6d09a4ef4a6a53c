"""How a frame of ``top`` looks: a row per fact, cut at the width of the terminal and never wrapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from contract_engine.cli.display import bar, mebibytes, shortened
from contract_engine.cli.frames import ApplicationFigures, DatabaseFigures, Frame, OperationFigures, RedisFigures
from contract_engine.cli.readings import OUTBOX_ROWS
from contract_engine.cli.samples import Away

UNKNOWN = "–"
NAME_CELLS = 13
MOST_OPERATIONS = 15
OLDEST_UNLOGGED_SECONDS = 60
SLOW_SECONDS = 0.1
"""From here on figures are shown in red: the limits of the alerts."""

HEALTHY_STATES = {"closed": "green", "disabled": "dim"}


def frame_view(frame: Frame, *, redis_address: str, database_address: str) -> RenderableType:
    """Show a frame; the addresses are without credentials."""
    rows = [Text("contract-memory top", style="bold").append(f"   {frame.at}", style="dim")]
    rows.append(_server("redis", frame.redis, redis_address))
    if isinstance(frame.redis, RedisFigures):
        _redis_rows(rows, frame.redis)
    if frame.postgres is None:
        rows.append(_row("postgres", Text("none: ephemeral mode", style="dim")))
    else:
        rows.append(_server("postgres", frame.postgres, database_address))
    if isinstance(frame.postgres, DatabaseFigures):
        _database_rows(rows, frame.postgres)
    for address, found in frame.applications.items():
        rows.append(_server("app", found, address))
        if isinstance(found, ApplicationFigures):
            _application_rows(rows, found)
    if not frame.applications:
        rows.append(_row("app", Text("no metrics are served; give --metrics URL", style="dim")))
    if frame.operations:
        rows += [Text(), *_operations(frame.operations)]
    for row in rows:
        row.no_wrap, row.overflow = True, "ellipsis"
    return Group(*rows)


def _redis_rows(rows: list[Text], found: RedisFigures) -> None:
    memory = Text()
    if found.max_memory_bytes:
        memory = bar(found.used_memory_bytes, found.max_memory_bytes).append(" ")
    memory.append(mebibytes(found.used_memory_bytes), style="default")
    memory.append(
        f" of {mebibytes(found.max_memory_bytes)}" if found.max_memory_bytes else ", no limit", style="default"
    )
    _add(rows, "memory", memory)
    evicted = Text(f"{found.evicted_keys:,} evicted, {_rate(found.evicted_per_second)}/s")
    if found.evicted_per_second:
        evicted.stylize("red")
    _add(rows, "keys", evicted.append(f" · {_rate(found.expired_per_second)} expired/s · {found.keys:,} there"))
    scripts = f"{_rate(found.scripts_per_second)} scripts/s, {_duration(found.script_seconds)} each"
    hits = UNKNOWN if found.hit_share is None else f"{found.hit_share:.0%}"
    _add(rows, "traffic", Text(f"{scripts} · {_rate(found.commands_per_second)} commands/s · {hits} hits"))
    if found.unlogged_messages is None:
        _add(rows, "unlogged", Text("still counting", style="dim"))
    else:
        text = Text(f"{found.unlogged_messages:,} messages of {found.unlogged_sessions:,} sessions")
        _add(rows, "unlogged", text, style="yellow" if found.unlogged_messages else "")


def _database_rows(rows: list[Text], found: DatabaseFigures) -> None:
    _add(rows, "log", Text(f"{_rate(found.messages_per_second)} messages/s · about {found.messages:,} there"))
    _add(rows, "sessions", Text(f"about {found.sessions:,}"))
    _add(rows, "summaries", Text(f"{_rate(found.summaries_per_minute)} a minute"))
    share = f"{found.connections} of {found.max_connections}, {found.own_connections} ours"
    waiting = Text(f"{share}, {found.waiting_connections} wait for locks")
    _add(rows, "connections", waiting, style="yellow" if found.waiting_connections else "")
    if found.outbox_messages is not None:
        more = "at least " if found.outbox_messages >= OUTBOX_ROWS else ""
        style = "yellow" if found.outbox_messages else ""
        _add(rows, "outbox", Text(f"{more}{found.outbox_messages:,} messages"), style=style)


def _application_rows(rows: list[Text], found: ApplicationFigures) -> None:
    _add(rows, "calls", Text(f"{_rate(found.operations_per_second)}/s"))
    _add(rows, "breakers", _breakers(found.breakers))
    fallbacks = Text(f"{_rate(found.fallbacks_per_second)}/s")
    _add(rows, "fallbacks", fallbacks, style="yellow" if found.fallbacks_per_second else "")
    saved = f"{_rate(found.tokens_saved_per_second)} tokens/s saved"
    _add(rows, "folds", Text(f"{_rate(found.folds_per_minute)} a minute · {saved}"))
    age = found.unlogged_oldest_age_seconds
    if age is not None:
        style = "red" if age > OLDEST_UNLOGGED_SECONDS else "yellow" if age else ""
        count = UNKNOWN if found.unlogged_sessions is None else f"{found.unlogged_sessions:,.0f}"
        _add(rows, "unlogged", Text(f"{count} sessions, oldest {_duration(age)}"), style=style)
    if found.outbox_messages is not None:
        text = Text(f"{found.outbox_messages:,.0f} messages, oldest {_duration(found.outbox_oldest_age_seconds)}")
        if found.outbox_parked_messages:
            text.append(f", {found.outbox_parked_messages:,.0f} parked", style="red")
        _add(rows, "outbox", text, style="yellow" if found.outbox_messages else "")


def _operations(operations: Sequence[OperationFigures]) -> Iterator[Text]:
    """Show figures first and the name last, which may be cut."""
    yield Text("a second  failed      p50      p95  operation", style="dim")
    for one in operations[:MOST_OPERATIONS]:
        row = Text(f"{_rate(one.per_second):>8}")
        row.append(f"{_rate(one.errors_per_second):>8}", style="red" if one.errors_per_second else "dim")
        row.append(f"{_duration(one.p50_seconds):>9}")
        row.append(f"{_duration(one.p95_seconds):>9}", style="red" if (one.p95_seconds or 0) > SLOW_SECONDS else "")
        yield row.append(f"  {shortened(one.operation, 40)}")
    if len(operations) > MOST_OPERATIONS:
        yield Text(f"and {len(operations) - MOST_OPERATIONS} more", style="dim")


def _breakers(states: Mapping[str, str]) -> Text:
    if not states:
        return Text("none told of", style="dim")
    text = Text()
    for name, state in sorted(states.items()):
        text.append(f"{', ' if text else ''}{shortened(name, 40)} ")
        text.append(shortened(state, 20), style=HEALTHY_STATES.get(state, "bold red"))
    return text


def _server(name: str, found: object, address: str) -> Text:
    if not isinstance(found, Away):
        return _row(name, Text(address, style="green"))
    since = f" since {found.since}" if found.since else ""
    return _row(name, Text(shortened(f"away{since}: {address}: {found.reason}", 400), style="bold red"))


def _add(rows: list[Text], name: str, text: Text, *, style: str = "") -> None:
    if style:
        text.stylize(style)
    rows.append(_row(f"  {name}", text, style="dim"))


def _row(name: str, text: Text, *, style: str = "bold") -> Text:
    return Text.assemble((f"{name:<{NAME_CELLS}} ", style), text)


def _rate(number: float | None) -> str:
    """Show a rate in at most seven characters, and what is not known as such."""
    if number is None:
        return UNKNOWN
    if number >= 1e5:
        return f"{number / 1e6:,.3g} M" if number < 9.995e8 else f"{number / 1e9:.3g} G"
    return f"{number:,.0f}" if number >= 10 or number == 0 else f"{number:.1f}" if number >= 0.1 else f"{number:.2g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    if seconds >= 120:
        return f"{seconds / 60:,.0f} min"
    if seconds >= 0.9995:  # which three digits of a millisecond would round up to
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"
