"""What people see: consoles, and sessions as panels, tables and bars.

Texts of messages are never read as markup, and control characters in them never reach the terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from contract_engine.cli.doctor import Finding, State, worst
from contract_engine.cli.report import SessionReport
from contract_engine.cli.summary_texts import ShownText
from contract_engine.cli.wording import counted
from contract_engine.memory.health import CheckState, HealthReport, HealthStatus
from contract_engine.memory.mending import SYNTHETIC

BAR_CELLS = 16
SUMMARY_LINES = 4
SUMMARY_LINE_CHARS = 160
MESSAGE_CHARS = 240
OPENING_CHARS = 160

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class _PipedConsole(Console):
    """Ends a command whose reader has gone as any other output does; rich would end it as a failure."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def output() -> Console:
    """Return the console of results; colours only on a terminal, and not with NO_COLOR."""
    return _PipedConsole(highlight=False)


def notices() -> Console:
    """Return the console of everything that is not a result."""
    return _PipedConsole(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """Print for machines; ASCII alone, so that no locale and no lone surrogate is in the way."""
    print(json.dumps(value, indent=2))


def progress(console: Console, counted: str = "messages") -> Progress:
    """Return a bar that counts something, and disappears when it is done; nothing where nobody watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(counted),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def printable(text: str) -> str:
    """Return the text with what could steer a terminal made visible as a replacement character."""
    return _UNPRINTABLE.sub("\ufffd", text)


def shortened(text: str, limit: int) -> str:
    """Return the text as one line of at most ``limit`` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def session_label(session_id: str) -> str:
    """Return any session id as something to be seen on one line: an older store may have an empty one."""
    return shortened(session_id, 40) or "''"


def shortened_summary(text: str) -> str:
    """Return some lines of a summary, each shortened, saying how many are left out.

    The newest of what people and model said, since that is what a reader recognises; notes of tool calls only where
    there is nothing else.
    """
    lines = [shortened(line, SUMMARY_LINE_CHARS) for line in text.splitlines() if line.strip()]
    if len(lines) <= SUMMARY_LINES + 1:
        return "\n".join(lines)
    shown = ([line for line in lines if not line.startswith("tool")] or lines)[-SUMMARY_LINES:]
    return "\n".join([*shown, f"… {len(lines) - len(shown)} lines more; --full shows them"])


def session_panel(report: SessionReport, *, full: bool) -> Panel:
    """Show what became of one replayed conversation."""
    context = report.context
    facts = _facts()
    if report.opening:
        facts.add_row("begins", Text(shortened(report.opening, OPENING_CHARS), style="italic"))
    facts.add_row("messages", coverage(context))
    folds = ", ".join(f"{first}..{last}" for first, last in report.folds)
    facts.add_row("folds", f"{len(report.folds)}: {folds}" if folds else "none: it never grew long enough")
    facts.add_row("buffer", buffer_bars(context["buffer_info"]))
    whole, given = report.conversation_tokens, context["total_tokens"]
    facts.add_row("tokens", f"{whole:,} in the whole conversation, {given:,} in the context: {saving(whole, given)}")
    if report.turns:
        cost = f"{report.whole_sent:,} with the whole conversation each time, {report.context_sent:,} with the context"
        facts.add_row(counted(report.turns, "model call"), f"{cost}: {saving(report.whole_sent, report.context_sent)}")
    if report.degraded_reads:
        facts.add_row("degraded", f"{report.degraded_reads} contexts came from PostgreSQL, Redis being away")
    parts: list[RenderableType] = [facts]
    if report.summary is not None:
        parts += ["", summary_heading(context), summary_text(report.summary, full=full)]
    parts += ["", verdict(report)]
    return Panel(Group(*parts), title=Text(printable(report.session_id)), title_align="left", border_style="dim")


def totals(reports: Sequence[SessionReport]) -> RenderableType:
    """Show the sums over all conversations, and whether the law held in each."""
    broken = [report for report in reports if report.violations]
    whole, given = sum(report.whole_sent for report in reports), sum(report.context_sent for report in reports)
    facts = _facts()
    facts.add_row("sessions", f"{len(reports)}, with {counted(sum(report.messages for report in reports), 'message')}")
    facts.add_row("folds", f"{sum(len(report.folds) for report in reports)}")
    turns = sum(report.turns for report in reports)
    facts.add_row(
        counted(turns, "model call"), f"{whole:,} tokens without the memory, {given:,} with it: {saving(whole, given)}"
    )
    if broken:
        names = ", ".join(printable(report.session_id) for report in broken)
        result = Text(
            f"✗ verification FAILED in {len(broken)} of {counted(len(reports), 'session')}: {names}", style="bold red"
        )
    else:
        result = Text("✓ verified: every context was summary 1..W + messages W+1..N word for word", style="green")
    return Group(facts, result)


def verdict(report: SessionReport) -> Text:
    """Say whether every context obeyed the law, and where it did not."""
    if not report.violations:
        return Text(f"✓ verified after each of the {report.messages} messages", style="green")
    lines = report.violations[:5]
    if len(report.violations) > len(lines):
        lines = [*lines, f"and {len(report.violations) - len(lines)} more"]
    return Text("\n".join(["✗ verification FAILED", *lines]), style="bold red")


def session_view(context: Mapping[str, Any], summary: ShownText, *, full: bool) -> RenderableType:
    """Show one session: its summary, then the pinned messages that this covers and the messages of its buffer."""
    heading = _facts()
    heading.add_row("session", Text(printable(context["session_id"])))
    heading.add_row("messages", coverage(context))
    heading.add_row("buffer", buffer_bars(context["buffer_info"]))
    heading.add_row("tokens", f"{context['total_tokens']:,} in the context, summary included")
    pinned = [(one["seq"], one["message"]) for one in context["pinned_messages"]]
    if pinned:
        heading.add_row("pinned", f"{len(pinned)} of the folded messages, {context['pinned_tokens']:,} tokens")
    if context["degraded"]:
        heading.add_row("degraded", Text("Redis is away; this was read from PostgreSQL", style="yellow"))
    if not context["complete"]:
        heading.add_row("incomplete", Text("Redis lost the summary of what left the buffer", style="red"))
    parts: list[RenderableType] = [heading, ""]
    if context["current_summary"]:
        parts += [summary_heading(context), summary_text(summary), ""]
    messages = Table("seq", "role", "content", box=None, header_style="dim", padding=(0, 1), pad_edge=False)
    messages.columns[0].justify = "right"
    messages.columns[2].overflow = "fold"  # arguments of calls are long words
    rows = [(str(seq), message) for seq, message in pinned]
    synthetic, seq = set(context.get(SYNTHETIC, ())), context["watermark"]
    for at, message in enumerate(context["buffer_messages"]):
        seq += at not in synthetic
        rows.append(("" if at in synthetic else str(seq), message))
    for number, message in rows:
        role = shortened(str(message.get("role", "")), 16)
        messages.add_row(number, Text(role, style=_ROLE_STYLES.get(role, "")), message_text(message, full=full))
    return Group(*parts, messages)


def stats_view(stats: Mapping[str, Any], context: Mapping[str, Any]) -> RenderableType:
    """Show the figures of one session and of the Redis it lies in."""
    buffer, summary, memory = stats["buffer"], stats["summary"], stats["redis_memory"]
    limits = stats["session_config"]
    facts = _facts()
    facts.add_row("session", Text(printable(context["session_id"])))
    facts.add_row("messages", coverage(context))
    facts.add_row("buffer", buffer_bars(buffer))
    facts.add_row("", f"expires in {_duration(buffer['ttl_remaining'])}")
    facts.add_row(
        "summary",
        f"{summary['summary_count']} versions; the current one has {context['summary_tokens']:,} tokens, "
        f"{summary['current_summary_length']:,} characters",
    )
    facts.add_row("limits", ", ".join(f"{name} {value:,}" for name, value in limits.items()))
    if memory is None:
        facts.add_row("redis", Text("away; the session is read from PostgreSQL", style="yellow"))
    else:
        limit = f"of {mebibytes(memory['maxmemory'])}" if memory.get("maxmemory") else "without a limit"
        facts.add_row(
            "redis",
            f"{mebibytes(memory.get('used_memory', 0))} used {limit}, {memory.get('evicted_keys', 0):,} keys evicted, "
            f"policy {memory['maxmemory_policy']}",
        )
    return facts


def health_view(report: HealthReport) -> RenderableType:
    """Show what can be served now and what can be lost, and how long each service took to answer."""
    facts = _facts()
    styles = {HealthStatus.HEALTHY: "green", HealthStatus.DEGRADED: "yellow", HealthStatus.UNHEALTHY: "bold red"}
    facts.add_row("health", Text(f"{report.status}, mode {report.mode}, {report.storage}", style=styles[report.status]))
    facts.add_row("", Text(printable(report.detail)))
    for check in report.checks:
        if check.state is not CheckState.OK:
            facts.add_row("", Text(f"{check.name}: {printable(check.detail)}", style=styles[HealthStatus.DEGRADED]))
    took = ", ".join(f"{check.name} {check.took_ms:.1f} ms" for check in report.checks if check.took_ms)
    facts.add_row("answers", took or "none")
    return Group(facts, "")


def findings_view(findings: Sequence[Finding]) -> RenderableType:
    """Show what the doctor found, each problem with what to do next, and the sum of it."""
    table = Table.grid(padding=(0, 1))
    for finding in findings:
        mark, style = _MARKS[finding.state]
        detail = Text(printable(finding.detail))
        if finding.hint:
            detail.append(f"\n→ {printable(finding.hint)}", style=style)
        table.add_row(Text(mark, style=style), Text(finding.check, style="bold"), detail)
    counts = {state: sum(finding.state is state for finding in findings) for state in State}
    problems = [
        f"{counts[state]} {name}"
        for state, name in ((State.FAIL, "failed"), (State.WARN, "to look at"))
        if counts[state]
    ]
    if worst(findings) is State.OK:
        return Group(table, Text(f"All {len(findings)} checks are well.", style="green"))
    return Group(table, Text(f"{len(findings)} checks: {', '.join(problems)}.", style=_MARKS[worst(findings)][1]))


def coverage(context: Mapping[str, Any]) -> Text:
    """Say which messages are summarized and which stand word for word."""
    watermark, last_seq = context["watermark"], context["last_seq"]
    text = Text(f"{last_seq:,}: ")
    if watermark:
        text.append(f"1..{watermark} summarized", style="cyan").append(", ")
    return text.append(f"{watermark + 1}..{last_seq} word for word", style="green")


def buffer_bars(info: Mapping[str, Any]) -> Table:
    """Show how full a buffer is, in messages and in tokens."""
    table = Table.grid(padding=(0, 1))
    for unit in ("messages", "tokens"):
        name = "message_count" if unit == "messages" else "total_tokens"
        held, cap = info[name], info[f"max_{unit}"]
        table.add_row(bar(held, cap), Text(f"{held:,} of {cap:,} {unit}"))
    return table


def bar(held: int, cap: int) -> Text:
    """Show a share as a bar; green, and red only where the cap is exceeded."""
    filled = min(BAR_CELLS, round(BAR_CELLS * held / cap))
    style = "red" if held > cap else "green"
    return Text("█" * filled, style=style).append("░" * (BAR_CELLS - filled), style="dim")


def summary_heading(context: Mapping[str, Any]) -> Text:
    """Name a summary: its version, its range, its size."""
    name = f"summary of 1..{context['watermark']} (version {context['summary_version']}"
    return Text(f"{name}, {context['summary_tokens']:,} tokens)", style="bold")


def summary_text(shown: ShownText, *, full: bool = True) -> Text:
    """Show a summary under the remark on it; unless ``full``, some lines of it."""
    text = Text()
    if shown.remark:
        text.append(f"({shown.remark})\n", style="dim")
    return text.append(printable(shown.text) if full else shortened_summary(shown.text))


def message_text(message: Mapping[str, Any], *, full: bool) -> Text:
    """Show content and tool calls of one message; blocks that are not text by their type."""
    text = Text()
    limit = 2**31 if full else MESSAGE_CHARS
    content = message.get("content")
    if message.get("role") == "tool" and message.get("name"):
        text.append(f"{shortened(str(message['name']), 60)} → ", style="magenta")
    if isinstance(content, str):
        text.append(printable(content) if full else shortened(content, limit))
    elif content is not None:
        text.append(shortened(_blocks(content), limit))
    for call in message.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, dict) else {}
        name, arguments = function.get("name"), function.get("arguments", function.get("args", ""))
        shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        if text.plain:
            text.append("\n")
        text.append(f"⚙ {shortened(f'{name}({shown})', limit)}", style="magenta")
    return text


def mebibytes(size: int) -> str:
    """Show a number of bytes."""
    return f"{size / 2**20:,.1f} MiB"


def saving(whole: int, given: int) -> str:
    """Say how much smaller the second number is."""
    return f"{1 - given / whole:.0%} saved" if given < whole else "nothing saved"


_MARKS = {State.OK: ("✓", "green"), State.WARN: ("!", "yellow"), State.FAIL: ("✗", "red")}
_ROLE_STYLES = {"user": "bold cyan", "assistant": "bold green", "tool": "magenta", "system": "yellow"}


def _facts() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    return table


def _blocks(content: object) -> str:
    if not isinstance(content, list):
        return json.dumps(content, ensure_ascii=False)
    parts = []
    for block in content:
        text = block.get("text") if isinstance(block, dict) else block
        parts.append(text if isinstance(text, str) else f"[{block.get('type')}]" if isinstance(block, dict) else "[?]")
    return " ".join(parts)


def _duration(seconds: int | None) -> str:
    if seconds is None:
        return "never, or unknown"
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"
