"""Feed conversations through a manager as a chat would, and verify every context it gives.

What must hold after every message: context = summary of messages 1..W + messages W+1..N, word for word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.markup import escape

from contract_engine.cli import display
from contract_engine.cli.conversations import Conversation
from contract_engine.cli.report import SessionReport
from contract_engine.cli.summary_texts import shown_texts
from contract_engine.memory import InvalidInputError, MemoryManager, StoreUnavailableError
from contract_engine.memory.mending import SYNTHETIC, stored
from contract_engine.memory.models import Message

FOLD_SECONDS = 30.0
ALL_VERSIONS = 2**31 - 1


def replay_all(
    manager: MemoryManager,
    conversations: Sequence[Conversation],
    *,
    limits: Mapping[str, int],
    replace: bool,
    keep: bool,
) -> list[SessionReport]:
    """Replay one after the other under a bar of progress, on standard error.

    Refuses before anything is sent where a session holds messages already, unless ``replace``: then it is cleared.
    """
    for session_id in sessions_to_clear(manager, conversations, replace=replace):
        clear_session(manager, session_id)
    reports = []
    with display.progress(display.notices()) as bar:
        task = bar.add_task("", total=sum(len(item.messages) for item in conversations))
        for conversation in conversations:
            bar.update(task, description=escape(display.shortened(conversation.session_id, 30)))
            try:
                report = replay_conversation(manager, conversation, limits=limits, advance=lambda: bar.advance(task))
            except KeyboardInterrupt:
                name = escape(repr(conversation.session_id))
                bar.console.print(f"{name} was stopped half way and stays as it is; --replace starts it again.")
                raise
            reports.append(report)
            if not keep:
                clear_session(manager, conversation.session_id)
    return reports


def sessions_to_clear(manager: MemoryManager, conversations: Sequence[Conversation], *, replace: bool) -> list[str]:
    """Return the sessions that hold messages already; without ``replace`` they are refused."""
    existing = [item.session_id for item in conversations if manager.get_context(item.session_id)["last_seq"]]
    if existing and not replace:
        names = ", ".join(repr(name) for name in existing[:3]) + (", ..." if len(existing) > 3 else "")
        raise InvalidInputError(
            "session_id", f"{names} already hold messages: give --replace to clear them first, or a --session-prefix"
        )
    return existing


def replay_conversation(
    manager: MemoryManager,
    conversation: Conversation,
    *,
    limits: Mapping[str, int],
    advance: Callable[[], object],
) -> SessionReport:
    """Send the messages one by one, reading the context after each; ``advance`` is called once per message.

    The session must not exist yet. ``limits`` are set for it first.
    """
    session_id, messages = conversation.session_id, conversation.messages
    opening = next((item["content"] for item in messages if _is_said(item)), "")
    report = SessionReport(session_id=session_id, messages=len(messages), opening=opening)
    if limits:
        manager.set_session_config(session_id, limits)
    for count, message in enumerate(messages, start=1):
        try:
            context = manager.add_and_get_context(session_id, message)
        except InvalidInputError as exc:
            raise InvalidInputError(f"{session_id!r}, message {count}, {exc.field}", exc.problem) from exc
        # Nobody types faster than a fold takes; without the pause the folds of a replay would depend on its speed.
        manager.wait_for_folds(FOLD_SECONDS)
        report.violations += [f"after message {count}: {text}" for text in violations(context, messages[:count])]
        report.conversation_tokens += manager.token_counter.count_message_tokens(message)
        report.degraded_reads += bool(context["degraded"])
        if count < len(messages) and messages[count].get("role") == "assistant":
            report.turns += 1
            report.whole_sent += report.conversation_tokens
            report.context_sent += context["total_tokens"]
        advance()
    report.context = manager.get_context(session_id)
    if text := report.context["current_summary"]:
        (report.summary,) = shown_texts(manager, session_id, [text])
    report.violations += [f"at the end: {text}" for text in violations(report.context, messages)]
    _verify_stores(manager, report, messages)
    return report


def violations(context: Mapping[str, Any], sent: Sequence[Message]) -> list[str]:
    """Compare one context with everything that was sent, and say in which points it breaks the law."""
    found = []
    watermark, last_seq = context["watermark"], context["last_seq"]
    info = context["buffer_info"]
    if last_seq != len(sent):
        found.append(f"{len(sent)} messages were acknowledged, the context ends at {last_seq}")
    if stored(context) != list(sent[watermark:]):
        found.append(f"messages {watermark + 1}..{last_seq} are not the ones that were sent")
    if not context["complete"]:
        found.append(f"the summary of messages 1..{watermark} is lost")
    count = info["message_count"] - len(context.get(SYNTHETIC, ()))
    if info["message_count"] > info["max_messages"] and count > 1:
        found.append(f"{info['message_count']} messages, the cap is {info['max_messages']}")
    if info["total_tokens"] > info["max_tokens"] and count > 1:
        found.append(f"{info['total_tokens']} tokens, the cap is {info['max_tokens']}")
    return found


def clear_session(manager: MemoryManager, session_id: str) -> None:
    """Delete a session for good; raises StoreUnavailableError where a server was away and some of it may be left."""
    if not manager.clear_session_memory(session_id):
        raise StoreUnavailableError(f"session {session_id!r} is not cleared everywhere", hint="clear it again")


def _verify_stores(manager: MemoryManager, report: SessionReport, messages: Sequence[Message]) -> None:
    """Compare what lies behind the context: the ranges of the summary versions, and the log."""
    history = manager.summary_store.get_summary_history(report.session_id, ALL_VERSIONS)
    report.folds = [(version["first_seq"], version["last_seq"]) for version in history]
    starts = [first for first, _ in report.folds]
    ends = [last for _, last in report.folds]
    # In ephemeral mode only the newest versions are kept, so the first of them need not begin at 1.
    expected = [1 if history and history[0]["version"] == 1 else starts[0] if starts else 0, *(end + 1 for end in ends)]
    if starts != expected[: len(starts)] or (ends[-1] if ends else 0) != report.context["watermark"]:
        report.violations.append(f"the summary versions do not cover 1..{report.context['watermark']}: {report.folds}")
    if manager.config.is_durable and manager.session_store.get_chat_history(report.session_id) != list(messages):
        report.violations.append("the log does not hold the messages that were sent")


def _is_said(message: Message) -> bool:
    return message.get("role") == "user" and isinstance(message.get("content"), str)
