"""What a server with the interface of OpenAI's chat completions sends: one JSON object, or a stream of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from contract_engine.memory.errors import ModelUnavailableError
from contract_engine.memory.summarizers.chat_model import ModelAnswer

_DONE = "[DONE]"

_CONTENT_CODES = ("content_filter", "content_policy_violation", "context_length_exceeded", "invalid_prompt")
"""What OpenAI and Azure, and servers like them, call an error that is about the messages."""


def parsed(body: bytes) -> ModelAnswer:
    """Return the answer in a whole body; whether it is a stream shows in it, for servers differ in what they call it.

    Raises ModelUnavailableError: ``cut_stream`` for one without its end, ``server_error`` for one that holds an error,
    ``invalid_answer`` for anything else.
    """
    try:
        text = body.decode("utf-8")
        if text.lstrip()[:1] != "{" and ("data:" in text[:4096] or text.startswith(":")):
            return _stream(text)
        return _answer(json.loads(text))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as exc:
        if isinstance(exc, ModelUnavailableError):
            raise
        # The text of the cause may hold a piece of the answer.
        raise ModelUnavailableError("invalid_answer", f"no chat completion ({type(exc).__name__})") from None


def _answer(found: Mapping[str, Any]) -> ModelAnswer:
    _raise_error(found)
    choice = found["choices"][0]
    message = choice["message"]
    text = _text(message.get("content")) or _text(message.get("refusal"))
    return ModelAnswer(text, *_usage(found), is_cut=_is_cut(choice.get("finish_reason")))


def _stream(text: str) -> ModelAnswer:
    pieces: list[str] = []
    refusal: list[str] = []
    end: object = None
    usage: tuple[int | None, int | None] = (None, None)
    is_done = False
    for data in _events(text):
        if data == _DONE:
            is_done = True
            break
        found = json.loads(data)
        _raise_error(found)
        usage = _usage(found) if found.get("usage") else usage
        for choice in found.get("choices") or ():
            if choice.get("index", 0) == 0:
                delta = choice.get("delta") or {}
                pieces.append(_text(delta.get("content")))
                refusal.append(_text(delta.get("refusal")))
                end = choice.get("finish_reason") or end
    if not is_done and end is None:
        raise ModelUnavailableError("cut_stream", "the stream ended before the answer did")
    return ModelAnswer("".join(pieces) or "".join(refusal), *usage, is_cut=_is_cut(end))


def _events(text: str) -> Iterator[str]:
    """Give the data of each event. A last one without its line break was cut, and is left out."""
    *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if rest.strip() == f"data: {_DONE}":
        lines.append(rest)
    for line in lines:
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def content_code(body: bytes) -> str | None:
    """Return the code of an error that is about the messages which were sent; None for any other body."""
    try:
        return _content_code(json.loads(body))
    except (ValueError, RecursionError):
        return None


def _content_code(found: object) -> str | None:
    error = found.get("error") if isinstance(found, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if code in _CONTENT_CODES else None


def _raise_error(found: Mapping[str, Any]) -> None:
    if found.get("error") and not found.get("choices"):
        if code := _content_code(found):
            raise ModelUnavailableError("content", code)
        raise ModelUnavailableError("server_error", "an error in place of an answer")


def _text(content: object) -> str:
    """Return a content; some servers send it in blocks."""
    if isinstance(content, list):
        return "".join(block["text"] for block in content if isinstance(block.get("text"), str))
    return content if isinstance(content, str) else ""


def _usage(found: Mapping[str, Any]) -> tuple[int | None, int | None]:
    usage = found.get("usage")
    if not isinstance(usage, Mapping):
        return None, None
    counts = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    tokens_in, tokens_out = (count if type(count) is int and 0 <= count < 2**31 else None for count in counts)
    return tokens_in, tokens_out


def _is_cut(finish_reason: object) -> bool:
    return finish_reason in ("length", "content_filter")
