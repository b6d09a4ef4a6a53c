"""Conversations with tool calls in every shape the library knows, whole and broken, and what a context has to be."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from hypothesis import strategies as st

Message = dict[str, Any]


def said(role: str = "user", text: str = "words") -> Message:
    return {"role": role, "content": text}


def tool_calls(*ids: Any, name: str = "look_up", text: str | None = None) -> Message:
    """Return an assistant's message with OpenAI's calls; an id of None is left out."""
    calls = [{"type": "function", "function": {"name": name, "arguments": '{"q": 1}'}} for _ in ids]
    with_ids = [call if one is None else {"id": one, **call} for one, call in zip(ids, calls, strict=True)]
    return {"role": "assistant", "content": text, "tool_calls": with_ids}


def tool_result(call_id: Any, text: str = "found") -> Message:
    return {"role": "tool", "content": text} | ({} if call_id is None else {"tool_call_id": call_id})


def tool_uses(*ids: Any, name: str = "look_up", text: str = "Let me look.") -> Message:
    """Return an assistant's message with Anthropic's calls."""
    blocks = [{"type": "tool_use", "name": name, "input": {"q": 1}} for _ in ids]
    with_ids = [block if one is None else {"id": one, **block} for one, block in zip(ids, blocks, strict=True)]
    return {"role": "assistant", "content": [{"type": "text", "text": text}, *with_ids]}


def tool_results(*ids: Any, text: str | None = None) -> Message:
    """Return a user's message with Anthropic's results, and words behind them if there are any."""
    blocks: list[Message] = [{"type": "tool_result", "content": "found"} for _ in ids]
    found = [block if one is None else {"tool_use_id": one, **block} for one, block in zip(ids, blocks, strict=True)]
    return {"role": "user", "content": found if text is None else [*found, {"type": "text", "text": text}]}


def function_call(name: str | None) -> Message:
    return {
        "role": "assistant",
        "content": None,
        "function_call": {"arguments": "{}"} | ({"name": name} if name else {}),
    }


def function_result(name: str | None) -> Message:
    return {"role": "function", "content": "found"} | ({"name": name} if name else {})


IDS = st.sampled_from(["a", "b", "c", None])
SEVERAL = st.lists(IDS, min_size=1, max_size=3)
NAMES = st.sampled_from(["f", "g", None])
WORDS = st.sampled_from(["user", "assistant", "system"]).map(said)
MESSAGES = st.one_of(
    WORDS,
    SEVERAL.map(lambda ids: tool_calls(*ids)),
    IDS.map(tool_result),
    SEVERAL.map(lambda ids: tool_uses(*ids)),
    st.builds(lambda ids, text: tool_results(*ids, text=text), SEVERAL, st.sampled_from([None, "And?"])),
    NAMES.map(function_call),
    NAMES.map(function_result),
    st.builds(lambda ids, more: tool_calls(*ids) | tool_uses(*more), SEVERAL, SEVERAL),
    st.builds(lambda one, more: tool_result(one) | {"content": tool_results(*more)["content"]}, IDS, SEVERAL),
    st.builds(lambda one, ids: tool_result(one) | {"tool_calls": tool_calls(*ids)["tool_calls"]}, IDS, SEVERAL),
)
TRAFFIC = st.lists(MESSAGES, max_size=24)
"""Messages with few ids, so that calls are answered, answered twice, forgotten, and their ids used again."""


def keys_of(message: Message) -> tuple[list[Hashable], list[Hashable]]:
    """Return what a message answers and what it calls, read from the shapes alone."""
    content = message.get("content")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    results: list[Hashable] = [one.get("tool_use_id") for one in blocks if one.get("type") == "tool_result"]
    if message.get("role") == "tool":
        results.append(message.get("tool_call_id"))
    if message.get("role") == "function":
        name = message.get("name")
        results.append(("function", name) if name else None)
    calls: list[Hashable] = [one.get("id") for one in message.get("tool_calls") or ()]
    calls += [one.get("id") for one in blocks if one.get("type") == "tool_use"]
    if legacy := message.get("function_call"):
        calls.append(("function", legacy["name"]) if "name" in legacy else None)
    return _once(results), _once(calls)


def faults(messages: Sequence[Message], *, is_all: bool = False) -> list[str]:
    """Say what is wrong with the calls and results of a context; ``is_all``: also with those that have no id."""
    found = []
    waiting: list[tuple[Hashable, int]] = []
    for index, message in enumerate(messages):
        results, calls = keys_of(message)
        for key in results if is_all else filter(None, results):
            match = [one for one in waiting if one[0] == key]
            if not match:
                found.append(f"message {index} answers {key!r}, which nobody asked")
            else:
                waiting.remove(match[-1])
        for key in calls if is_all else filter(None, calls):
            if key is not None and any(one[0] == key for one in waiting):
                found.append(f"message {index} uses the id {key!r} of a call that waits")
            waiting.append((key, index))
    for key, index in waiting:
        if any(not keys_of(later)[0] or keys_of(later)[1] for later in messages[index + 1 :]):
            found.append(f"message {index} calls {key!r}, and the conversation went on without an answer")
    return found


def without_synthetic(context: dict[str, Any]) -> list[Message]:
    """Return the messages of a context that somebody wrote."""
    added = context.get("synthetic", ())
    assert all(context["buffer_messages"][at]["synthetic"] is True for at in added)
    return [message for at, message in enumerate(context["buffer_messages"]) if at not in added]


def _once(keys: list[Hashable]) -> list[Hashable]:
    """Return each id once: told twice in one message it is the same call or answer."""
    return [key for at, key in enumerate(keys) if key is None or key not in keys[:at]]
