"""Turns as the contents of Gemini's generateContent (REST names; the google-genai SDK takes them too).

Rules: roles are user and model, the first content is the user's, and roles alternate; the content behind one with calls
begins with as many responses, in their order and by their names; arguments and responses are objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contract_engine.memory.packaging.merging import begun_by_user, named
from contract_engine.memory.packaging.parts import Media, Part, Text, text_of
from contract_engine.memory.packaging.turns import ASSISTANT, EMPTY, Call, Turn

NO_SIGNATURE = "skip_thought_signature_validator"
"""What Google's page on thought signatures gives for calls that have none because another model made them."""

_ITS_FILES = ("gs://", "https://generativelanguage.googleapis.com/")


def package(turns: Sequence[Turn], system: str | None) -> dict[str, Any]:
    """Return ``{"system_instruction", "contents"}``, the first only if there is one."""
    contents: list[dict[str, Any]] = []
    for turn in begun_by_user(turns):
        if turn.role == ASSISTANT:
            parts = _parts(turn.parts, is_model=True)
            _add(contents, "model", [*parts, *_calls(turn.calls)] or [{"text": EMPTY.text}])
            if turn.calls:
                _add(contents, "user", [_response(call) for call in turn.calls])
        else:
            _add(contents, "user", _parts(named(turn).parts) or [{"text": EMPTY.text}])
    instruction = {"system_instruction": {"parts": [{"text": system}]}} if system else {}
    return instruction | {"contents": contents}


def _add(contents: list[dict[str, Any]], role: str, parts: list[dict[str, Any]]) -> None:
    if contents and contents[-1]["role"] == role:
        contents[-1]["parts"] += parts
    else:
        contents.append({"role": role, "parts": parts})


def _calls(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Return calls; of parallel ones the first bears the signature."""
    found: list[dict[str, Any]] = [{"functionCall": {"name": call.name, "args": call.arguments}} for call in calls]
    for number, (part, call) in enumerate(zip(found, calls, strict=True)):
        if call.signature or number == 0:
            part["thoughtSignature"] = call.signature or NO_SIGNATURE
    return found


def _response(call: Call) -> dict[str, Any]:
    response = {"error" if call.is_error else "output": text_of(call.result)}
    return {"functionResponse": {"name": call.name, "response": response}}


def _parts(parts: Sequence[Part], *, is_model: bool = False) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Text):
            found.append({"text": part.text})
        elif isinstance(part, Media):
            found.append({"text": part.marked.text} if is_model else _media(part))
    return found


def _media(part: Media) -> dict[str, Any]:
    if part.data and part.mime != "application/octet-stream":
        return {"inlineData": {"mimeType": part.mime, "data": part.data}}
    if part.url.startswith(_ITS_FILES):
        return {"fileData": {"fileUri": part.url} | ({"mimeType": part.mime} if part.mime else {})}
    return {"text": part.marked.text}
