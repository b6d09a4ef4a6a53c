"""What became of a call that met a fault, and what a context shows of what was said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crash_matrix import AsyncInterposition, Interposition
from crash_operations import Does, Operation
from lost_messages import nothing_lost
from memory_contract import assert_caps

from contract_engine.memory._effects import Effect

Messages = list[dict[str, Any]]


@dataclass
class Outcome:
    """What became of a call. ``begun``: the effects that a server has seen, or may have.

    ``is_silent``: nobody lived to hear the answer.
    """

    value: Any = None
    error: Exception | None = None
    is_silent: bool = False
    begun: Sequence[Effect] = ()
    effects: int = 0
    has_fired: bool = False
    lost: frozenset[str] = frozenset()
    """The servers that failed, once or all along."""

    def take(self, interposition: Interposition | AsyncInterposition) -> None:
        """Note what has become of the effects."""
        self.begun, self.effects = interposition.begun(), len(interposition.effects)
        self.has_fired, self.lost = interposition.fired is not None, interposition.lost()

    def is_acknowledged(self, operation: Operation) -> bool:
        if self.is_silent or self.error is not None:
            return False
        return self.value is not False or operation.does is Does.CLEAR_LOG


def is_read(context: Mapping[str, Any], truth: Messages) -> bool:
    return (context["last_seq"], context["buffer_messages"]) == (len(truth), truth[context["watermark"] :])


def assert_reads(context: Mapping[str, Any], truths: Sequence[Messages], *, has_summary: bool) -> None:
    """Hold a context against what may be true."""
    assert context["complete"] is True
    with nothing_lost():
        assert any(is_read(context, truth) for truth in truths), (
            f"{_seen(context)} read, not one of {[numbers(truth) for truth in truths]}"
        )
    if has_summary:
        assert context["watermark"] == 0 or context["current_summary"]
    assert_caps(context)


def numbers(messages: Messages) -> list[int]:
    return [int(message["content"].split()[3]) for message in messages]


def _seen(context: Mapping[str, Any]) -> str:
    return f"summary of {context['watermark']}, then {numbers(context['buffer_messages'])} of {context['last_seq']}"
