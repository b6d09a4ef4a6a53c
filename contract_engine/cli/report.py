"""What became of conversations that were replayed, one by one and in sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from contract_engine.cli.summary_texts import ShownText


@dataclass(slots=True, kw_only=True)
class SessionReport:
    """What became of one conversation; ``violations`` is empty where the law held after every message.

    ``opening`` is what the user said first. ``turns`` are the model calls the conversation shows: messages that an
    assistant's message follows. ``whole_sent`` is what these calls cost in tokens if each is given the whole
    conversation, ``context_sent`` if each is given the context.
    """

    session_id: str
    messages: int
    opening: str = ""
    conversation_tokens: int = 0
    context: dict[str, Any] = field(default_factory=dict)
    summary: ShownText | None = None
    folds: list[tuple[int, int]] = field(default_factory=list)
    turns: int = 0
    whole_sent: int = 0
    context_sent: int = 0
    degraded_reads: int = 0
    violations: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the report for machines."""
        info = self.context["buffer_info"]
        return {
            "session_id": self.session_id,
            "messages": self.messages,
            "folds": [{"first_seq": first, "last_seq": last} for first, last in self.folds],
            "summary_version": self.context["summary_version"],
            "watermark": self.context["watermark"],
            "last_seq": self.context["last_seq"],
            "buffer": {
                "messages": info["message_count"],
                "max_messages": info["max_messages"],
                "tokens": info["total_tokens"],
                "max_tokens": info["max_tokens"],
            },
            "summary": self.context["current_summary"],
            "readable_summary": None if self.summary is None else self.summary.readable,
            "summary_tokens": self.context["summary_tokens"],
            "conversation_tokens": self.conversation_tokens,
            "context_tokens": self.context["total_tokens"],
            "turns": self.turns,
            "tokens_sent": {"whole": self.whole_sent, "context": self.context_sent},
            "degraded_reads": self.degraded_reads,
            "violations": self.violations,
        }


def reports_as_json(reports: Sequence[SessionReport]) -> dict[str, Any]:
    """Return all reports with their sums for machines."""
    return {
        "verified": not any(report.violations for report in reports),
        "messages": sum(report.messages for report in reports),
        "folds": sum(len(report.folds) for report in reports),
        "tokens_sent": {
            "whole": sum(report.whole_sent for report in reports),
            "context": sum(report.context_sent for report in reports),
        },
        "sessions": [report.as_json() for report in reports],
    }
