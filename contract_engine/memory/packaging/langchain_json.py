"""Turns as LangChain's messages in JSON: what ``messages_to_dict`` writes and ``messages_from_dict`` reads.

LangChain hands them on to any provider, so they keep the rules of all: results directly behind their calls, the user
first, no text empty. Blocks are OpenAI's, which LangChain translates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contract_engine.memory.packaging.merging import begun_by_user
from contract_engine.memory.packaging.openai_chat import content
from contract_engine.memory.packaging.parts import text_of
from contract_engine.memory.packaging.turns import ASSISTANT, EMPTY, Turn


def package(turns: Sequence[Turn], system: str | None) -> dict[str, Any]:
    """Return ``{"messages": [...]}``."""
    messages = [_message("system", system)] if system else []
    for turn in begun_by_user(turns):
        messages += _messages(turn)
    return {"messages": messages}


def _messages(turn: Turn) -> list[dict[str, Any]]:
    if turn.role != ASSISTANT:
        return [_message("human", content(turn.parts), **({"name": turn.name} if turn.name else {}))]
    calls = [{"type": "tool_call", "id": call.id, "name": call.name, "args": call.arguments} for call in turn.calls]
    results = [
        _message(
            "tool",
            text_of(call.result),
            tool_call_id=call.id,
            name=call.name,
            status="error" if call.is_error else "success",
        )
        for call in turn.calls
    ]
    text = text_of(turn.parts)
    return [_message("ai", text if text or calls else EMPTY.text, tool_calls=calls, invalid_tool_calls=[]), *results]


def _message(kind: str, held: object, **fields: object) -> dict[str, Any]:
    return {"type": kind, "data": {"content": held, "additional_kwargs": {}, "type": kind, **fields}}
