"""What a context shows besides the stored messages, so that model APIs take it: calls for results, results for calls.

APIs refuse a result without its call and a call without its result. The stored messages stay as they are; what is put
between them is marked with ``"synthetic": True`` and a text that says so.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from contract_engine.memory.exchange import NO_ID, Links, calls_of, entries_of, has_exchanges, link, results_of

SYNTHETIC = "synthetic"
"""The key that marks a message which nobody wrote."""

NO_RESULT = "[synthetic: no result was recorded for this call]"
EARLIER_CALL = "[synthetic: this call was made earlier, its arguments are not known]"
UNKNOWN_TOOL = "unknown_tool"


class Mended(NamedTuple):
    """Messages and what was put between them; ``added`` are the positions of the latter, in order."""

    messages: list[dict[str, Any]]
    added: list[int]


def mend(messages: Sequence[dict[str, Any]], *, is_all: bool = False) -> Mended | None:
    """Return the messages with every result after its call and every call answered; None where they are so already.

    A call without result gets one behind the last result of the same message, and before the next calls. The newest
    call is left open as long as nothing but results of its message follows. A result whose call is not there gets one
    directly before it; so does a second answer to a call, which an API takes for an answer to nothing. What stands
    between a call and its result stays there. A result without id answers the latest call without one, and what is put
    in for such has no id either: some servers ask for none, and ``to_messages`` gives one to each. ``is_all``: the
    newest call is closed too.
    """
    if not has_exchanges(messages):
        return None
    links = link(messages)
    if not links.open_calls and not links.orphans:
        return None
    newest = -1 if is_all else _newest_call(messages, links)
    before: dict[int, dict[str, Any]] = {}
    for index, keys in links.orphans.items():
        before[index] = _calls(messages, index, keys)
    after: dict[int, list[dict[str, Any]]] = {}
    for index, keys in links.open_calls.items():
        if index != newest:
            after.setdefault(_place(messages, links, index), []).extend(_results(messages[index], keys))
    found: list[dict[str, Any]] = []
    added: list[int] = []
    for index, message in enumerate(messages):
        if index in before:
            added.append(len(found))
            found.append(before[index])
        found.append(message)
        for closing in after.get(index, ()):
            added.append(len(found))
            found.append(closing)
    return Mended(found, added) if added else None


def stored(context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of a context that somebody wrote: W+1..N."""
    added = frozenset(context.get(SYNTHETIC, ()))
    return [message for at, message in enumerate(context["buffer_messages"]) if at not in added]


def _newest_call(messages: Sequence[dict[str, Any]], links: Links) -> int:
    """Return the message with open calls whose results are still being gathered, -1 where there is none."""
    newest = max(links.open_calls, default=-1)
    gathered = {at for places in links.answers.get(newest, {}).values() for at in places}
    for index in range(newest + 1, len(messages)):
        if index not in gathered or index in links.orphans or not _is_result_alone(messages[index]):
            return -1
    return newest


def _is_result_alone(message: Mapping[str, object]) -> bool:
    if calls_of(message):
        return False
    blocks = message.get("content")
    return message.get("role") in ("tool", "function") or (
        isinstance(blocks, list)
        and all(isinstance(one, Mapping) and one.get("type") == "tool_result" for one in blocks)
    )


def _place(messages: Sequence[Mapping[str, object]], links: Links, index: int) -> int:
    """Return behind which message the open calls of one message are closed: its last result before the next calls.

    Behind those an id may mean another call.
    """
    again = next((at for at in range(index + 1, len(messages)) if calls_of(messages[at])), len(messages))
    results = (at for places in links.answers.get(index, {}).values() for at in places)
    return max((at for at in results if at < again), default=index)


def _results(message: Mapping[str, object], keys: Sequence[Hashable]) -> list[dict[str, Any]]:
    """Return results for calls of one message, in the shape in which it made them; blocks share one message."""
    names = {key: call.get("id") for key, call in _block_calls(message)}
    told = [_key_of(call) for call in entries_of(message.get("tool_calls"))]
    legacy = message.get("function_call")
    found: list[dict[str, Any]] = []
    blocks: list[dict[str, Any]] = []
    for key in keys:
        if key in told or (key not in names and not isinstance(legacy, Mapping)):
            found.append({"role": "tool", **_given(tool_call_id=_id_of(key)), "content": NO_RESULT, SYNTHETIC: True})
        elif key in names:
            blocks.append(
                {"type": "tool_result", **_given(tool_use_id=_id_of(key)), "content": NO_RESULT, "is_error": True}
            )
        else:
            found.append({"role": "function", **_given(name=_id_of(key)), "content": NO_RESULT, SYNTHETIC: True})
    if blocks:
        found.append({"role": "user", "content": blocks, SYNTHETIC: True})
    return found


def _calls(messages: Sequence[Mapping[str, object]], index: int, keys: Sequence[Hashable]) -> dict[str, Any]:
    """Return one message with a call for each of the results of message ``index`` that lack one."""
    message = messages[index]
    role = message.get("role")
    missing = list(keys)
    call: dict[str, Any] = {"role": "assistant", "content": EARLIER_CALL, SYNTHETIC: True}
    if role in ("tool", "function"):
        # Such a message is the result as a whole, and first among those it may hold besides.
        own = results_of(message)[0]
        if own in missing:
            missing.remove(own)
            if role == "tool":
                function = {"name": _name(messages, index, own), "arguments": "{}"}
                call["tool_calls"] = [{**_given(id=_id_of(own)), "type": "function", "function": function}]
            else:
                call["function_call"] = {**_given(name=_id_of(own)), "arguments": "{}"}
    if missing:
        blocks = [
            {"type": "tool_use", **_given(id=_id_of(key)), "name": _name(messages, index, key), "input": {}}
            for key in missing
        ]
        call["content"] = [{"type": "text", "text": EARLIER_CALL}, *blocks]
    return call


def _name(messages: Sequence[Mapping[str, object]], index: int, key: Hashable) -> str:
    """Return the name of the tool that a result is of: its own, or that of the last call before it with this id."""
    own = messages[index].get("name")
    if messages[index].get("role") == "tool" and isinstance(own, str) and own:
        return own
    for message in reversed(messages[:index]) if key != NO_ID else ():
        for call in entries_of(message.get("tool_calls")):
            function = call.get("function")
            name = function.get("name") if isinstance(function, Mapping) else None
            if _key_of(call) == key and isinstance(name, str) and name:
                return name
        for found, block in _block_calls(message):
            name = block.get("name")
            if found == key and isinstance(name, str) and name:
                return name
    return UNKNOWN_TOOL


def _block_calls(message: Mapping[str, object]) -> list[tuple[Hashable, Mapping[str, object]]]:
    blocks = entries_of(message.get("content"))
    return [(_key_of(block), block) for block in blocks if block.get("type") == "tool_use"]


def _key_of(call: Mapping[str, object]) -> Hashable:
    return calls_of({"tool_calls": [call]})[0]


def _id_of(key: Hashable) -> object:
    """Return the id or name a key was made of, None where there was none."""
    return key[1] if isinstance(key, tuple) and key != NO_ID else None


def _given(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}
