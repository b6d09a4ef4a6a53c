"""Turns as the messages of Anthropic's API.

Rules: the first message is the user's; roles alternate (the API joins what does not; done here, the package is what is
seen); the results of an assistant's calls are the first blocks of the next message; ids are unique; no text is empty or
blank; the last text of an assistant does not end in blanks; arguments are objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contract_engine.memory.packaging.merging import begun_by_user, named
from contract_engine.memory.packaging.parts import Media, Part, Text, Thought
from contract_engine.memory.packaging.turns import ASSISTANT, EMPTY, Call, Turn

_IMAGES = frozenset(("image/jpeg", "image/png", "image/gif", "image/webp"))
_CACHED = {"type": "ephemeral"}


def package(turns: Sequence[Turn], system: str | None, *, stable: int = 0, has_notes: bool = False) -> dict[str, Any]:
    """Return ``{"system", "messages"}``, the first only if there is one.

    ``stable``: the first so many turns get cache markers, one behind the notes (if the first turn is ``has_notes``) and
    one behind the last of them; 0: no markers.
    """
    messages: list[dict[str, Any]] = []
    last: dict[str, Any] | None = None
    begun = begun_by_user(turns)
    for number, turn in enumerate(begun, 1 + len(turns) - len(begun)):
        if turn.role == ASSISTANT:
            last = _add(messages, "assistant", _assistant(turn))
            if turn.calls:
                last = _add(messages, "user", [_result(call) for call in turn.calls])
        else:
            last = _add(messages, "user", _blocks(named(turn).parts, "image", "file") or [_text(EMPTY.text)])
        if stable and (number == stable or (number == 1 and has_notes)) and last is not None:
            last["cache_control"] = _CACHED
    _trim_end(messages)
    return ({"system": system} if system else {}) | {"messages": messages}


def _add(messages: list[dict[str, Any]], role: str, blocks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Add blocks to the last message if it is of this role, else as the next; answer the last that can be marked."""
    if not messages or messages[-1]["role"] != role:
        messages.append({"role": role, "content": blocks})
    else:
        messages[-1]["content"] += blocks
    return next((block for block in reversed(messages[-1]["content"]) if "thinking" not in block["type"]), None)


def _assistant(turn: Turn) -> list[dict[str, Any]]:
    blocks = _blocks(turn.parts, thoughts=True)
    calls = [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in turn.calls]
    # A message must not end with a thought.
    ends = not blocks or "thinking" in blocks[-1]["type"]
    return [*blocks, *calls] if calls or not ends else [*blocks, _text(EMPTY.text)]


def _result(call: Call) -> dict[str, Any]:
    found = {"type": "tool_result", "tool_use_id": call.id, "content": _blocks(call.result, "image")}
    return found | ({"is_error": True} if call.is_error else {})


def _blocks(parts: Sequence[Part], *media: str, thoughts: bool = False) -> list[dict[str, Any]]:
    """Return parts as blocks, with a mark in the place of media that are not of these kinds."""
    found = []
    for part in parts:
        if isinstance(part, Text):
            found.append(_text(part.text))
        elif isinstance(part, Thought):
            found += [dict(part.block)] if thoughts else []
        else:
            found.append(_media(part) if part.kind in media else _text(part.marked.text))
    return found


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _media(part: Media) -> dict[str, Any]:
    kind = "image" if part.kind == "image" else "document"
    is_taken = part.mime in _IMAGES if kind == "image" else part.mime == "application/pdf"
    if part.data and is_taken:
        return {"type": kind, "source": {"type": "base64", "media_type": part.mime, "data": part.data}}
    if part.is_on_the_web:
        return {"type": kind, "source": {"type": "url", "url": part.url}}
    return _text(part.marked.text)


def _trim_end(messages: list[dict[str, Any]]) -> None:
    if messages and messages[-1]["role"] == "assistant" and messages[-1]["content"][-1]["type"] == "text":
        last = messages[-1]["content"][-1]
        last["text"] = last["text"].rstrip()
