"""Turns where a provider wants them to alternate."""

from __future__ import annotations

from collections.abc import Sequence

from contract_engine.memory.packaging.parts import Text
from contract_engine.memory.packaging.turns import ASSISTANT, USER, Turn

BEGINNING = Text("(The conversation begins with the assistant.)")


def begun_by_user(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns with a user's before an assistant's that would be the first."""
    return [Turn(USER, [BEGINNING], []), *turns] if turns and turns[0].role == ASSISTANT else list(turns)


def named(turn: Turn) -> Turn:
    """Return a turn that tells its speaker's name in its words, for providers without a field for it."""
    if not turn.name:
        return turn
    for at, part in enumerate(turn.parts):
        if isinstance(part, Text):
            told = Text(f"{turn.name}: {part.text}")
            return turn._replace(parts=[*turn.parts[:at], told, *turn.parts[at + 1 :]])
    return turn._replace(parts=[Text(f"{turn.name}:"), *turn.parts])
