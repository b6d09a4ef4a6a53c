"""Turns as the messages of OpenAI's chat completions, which most local servers take too.

Rules: results follow the message of their calls directly, all of them; arguments are text; a result and an assistant's
message hold text only; a name has no blanks and none of ``<|\\/>``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from contract_engine.memory.packaging.parts import Media, Part, Text, text_of
from contract_engine.memory.packaging.turns import ASSISTANT, EMPTY, Turn

_NOT_IN_NAME = re.compile(r"[\s<|\\/>]+")
_AUDIO_FORMATS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mp3": "mp3", "audio/mpeg": "mp3"}


def package(turns: Sequence[Turn], system: str | None) -> dict[str, Any]:
    """Return ``{"messages": [...]}``."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages += _messages(turn)
    return {"messages": messages}


def _messages(turn: Turn) -> list[dict[str, Any]]:
    if turn.role != ASSISTANT:
        message: dict[str, Any] = {"role": "user", "content": content(turn.parts)}
        if name := _NOT_IN_NAME.sub("_", turn.name):
            message["name"] = name
        return [message]
    text = text_of(turn.parts)
    if not turn.calls:
        return [{"role": "assistant", "content": text or EMPTY.text}]
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_text}}
        for call in turn.calls
    ]
    results = [{"role": "tool", "tool_call_id": call.id, "content": text_of(call.result)} for call in turn.calls]
    return [{"role": "assistant", "content": text or None, "tool_calls": calls}, *results]


def content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    """Return a user's content: one text as it is, several parts as blocks."""
    blocks = [block for block in map(_block, parts) if block is not None]
    if not blocks:
        return EMPTY.text
    return blocks[0]["text"] if len(blocks) == 1 and blocks[0]["type"] == "text" else blocks


def _block(part: Part) -> dict[str, Any] | None:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if not isinstance(part, Media):
        return None
    if part.kind == "image" and (part.mime.startswith("image/") if part.data else part.is_on_the_web):
        image = {"url": part.data_url if part.data else part.url}
        return {"type": "image_url", "image_url": image | ({"detail": part.detail} if part.detail else {})}
    if part.kind == "audio" and part.data and part.mime in _AUDIO_FORMATS:
        return {"type": "input_audio", "input_audio": {"data": part.data, "format": _AUDIO_FORMATS[part.mime]}}
    if part.kind == "file" and part.data:
        return {"type": "file", "file": {"filename": part.name or "file.pdf", "file_data": part.data_url}}
    return {"type": "text", "text": part.marked.text}
