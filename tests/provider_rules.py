"""What each provider documents about its input, as checks that say what is wrong with a package.

OpenAI: the chat completions reference, and its messages about tool_calls without tool messages. Anthropic: the Messages
reference and the tool use guide. Gemini: the generateContent reference and the function calling guide. LangChain: what
``messages_from_dict`` builds its messages from. OpenAI's are held against the types of its own client as well.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from openai.types.chat import ChatCompletionMessageParam
from pydantic import TypeAdapter, ValidationError

_ID = re.compile(r"[a-zA-Z0-9_-]{1,40}")
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,63}")
_SPEAKER = re.compile(r"[^\s<|\\/>]{1,64}")
_OPENAI: TypeAdapter[Any] = TypeAdapter(list[ChatCompletionMessageParam])
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")


def openai_faults(package: Mapping[str, Any]) -> list[str]:
    messages = package["messages"]
    found = [*_json_faults(package), *_extra_keys(package, {"messages"}), *_typed_faults(messages)]
    if any(message["role"] == "system" for message in messages[1:]):
        found.append("a system message that is not the first")
    waiting: list[str] = []
    seen: set[str] = set()
    for at, message in enumerate(messages):
        role, content = message["role"], message.get("content")
        if role not in ("system", "user", "assistant", "tool"):
            found.append(f"{at}: role {role}")
        if role == "tool":
            if not waiting or message["tool_call_id"] != waiting[0]:
                found.append(f"{at}: a result out of place")
            else:
                waiting.pop(0)
        elif waiting:
            found.append(f"{at}: calls without results")
            waiting = []
        calls = message.get("tool_calls")
        if calls is not None:
            found += [] if role == "assistant" and calls else [f"{at}: no calls, or not by the assistant"]
            waiting = [call["id"] for call in calls]
            found += _id_faults(at, waiting, seen)
            for call in calls:
                found += [] if _NAME.fullmatch(call["function"]["name"]) else [f"{at}: a name"]
                found += [] if _is_object_text(call["function"]["arguments"]) else [f"{at}: arguments"]
        elif not content or (isinstance(content, str) and not content.strip()):
            found.append(f"{at}: nothing in it")
        if role != "user" and not isinstance(content, str | None):
            found.append(f"{at}: content that is no text")
        if isinstance(content, list):
            found += [f"{at}: empty text" for part in content if part["type"] == "text" and not part["text"].strip()]
            found += [f"{at}: {part['type']}" for part in content if part["type"] == "image_url" and not _url(part)]
        if "name" in message and not _SPEAKER.fullmatch(message["name"]):
            found.append(f"{at}: a speaker's name")
    return [*found, *(["calls without results at the end"] if waiting else [])]


def anthropic_faults(package: Mapping[str, Any]) -> list[str]:
    messages = package["messages"]
    found = [*_json_faults(package), *_extra_keys(package, {"messages", "system"})]
    if "system" in package and not str(package["system"]).strip():
        found.append("an empty system")
    found += _alternation_faults(messages, ("user", "assistant"))
    waiting: list[str] = []
    seen: set[str] = set()
    markers = 0
    for at, message in enumerate(messages):
        found += _extra_keys(message, {"role", "content"})
        blocks = message["content"]
        if not isinstance(blocks, list) or not blocks:
            found.append(f"{at}: no blocks")
            continue
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        if results != waiting or [block["type"] for block in blocks[: len(results)]] != ["tool_result"] * len(results):
            found.append(f"{at}: results that are not those of the calls before it, in front")
        waiting = [block["id"] for block in blocks if block["type"] == "tool_use"]
        found += [f"{at}: {one}" for block in blocks for one in _block_faults(block, message["role"])]
        found += _id_faults(at, waiting, seen)
        markers += sum("cache_control" in block for block in blocks)
        if message["role"] == "assistant" and "thinking" in blocks[-1]["type"]:
            found.append(f"{at}: ends with a thought")
    if messages and messages[-1]["role"] == "assistant":
        last = messages[-1]["content"][-1]
        found += ["blanks at the end"] if last["type"] == "text" and last["text"] != last["text"].rstrip() else []
    found += ["too many cache markers"] if markers > 4 else []
    return [*found, *(["calls without results at the end"] if waiting else [])]


def _block_faults(block: Mapping[str, Any], role: str) -> Iterator[str]:
    kind = block["type"]
    allowed = {
        "user": ("text", "image", "document", "tool_result"),
        "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    }
    if kind not in allowed.get(role, ()):
        yield f"{kind} by the {role}"
    if kind == "text":
        if not block["text"].strip():
            yield "an empty text"
        yield from _extra_keys(block, {"type", "text", "cache_control"})
    if kind in ("image", "document"):
        yield from _source_faults(kind, block["source"])
    if kind == "tool_use":
        if not isinstance(block["input"], dict):
            yield "arguments that are no object"
        if not _NAME.fullmatch(block["name"]):
            yield "a name"
    if kind == "tool_result":
        yield from _extra_keys(block, {"type", "tool_use_id", "content", "is_error", "cache_control"})
        if not block["content"] or any(part["type"] not in ("text", "image") for part in block["content"]):
            yield "the content of a result"
        for part in block["content"]:
            yield from _block_faults(part, "user")


def _source_faults(kind: str, source: Mapping[str, Any]) -> Iterator[str]:
    if source["type"] == "base64":
        if source["media_type"] not in (_IMAGES if kind == "image" else ("application/pdf",)):
            yield "a media type"
        if not _is_base64(source["data"]):
            yield "data that is not base64"
    elif source["type"] != "url" or not source["url"].startswith(("http://", "https://")):
        yield "a source"


def gemini_faults(package: Mapping[str, Any]) -> list[str]:
    contents = package["contents"]
    found = [*_json_faults(package), *_extra_keys(package, {"contents", "system_instruction"})]
    if "system_instruction" in package and not package["system_instruction"]["parts"][0]["text"].strip():
        found.append("an empty system")
    found += _alternation_faults(contents, ("user", "model"))
    waiting: list[str] = []
    for at, content in enumerate(contents):
        found += _extra_keys(content, {"role", "parts"})
        parts = content["parts"]
        if not parts:
            found.append(f"{at}: no parts")
        responses = [part["functionResponse"]["name"] for part in parts if "functionResponse" in part]
        if responses != waiting or any("functionResponse" not in part for part in parts[: len(responses)]):
            found.append(f"{at}: responses that are not those of the calls before it, in front")
        waiting = [part["functionCall"]["name"] for part in parts if "functionCall" in part]
        found += [f"{at}: {one}" for part in parts for one in _part_faults(part, content["role"])]
        calls = [part for part in parts if "functionCall" in part]
        if calls and not calls[0].get("thoughtSignature"):
            found.append(f"{at}: no signature with the first call")
    return [*found, *(["calls without results at the end"] if waiting else [])]


def _part_faults(part: Mapping[str, Any], role: str) -> Iterator[str]:
    kinds = set(part) - {"thoughtSignature"}
    if len(kinds) != 1 or not kinds <= {"text", "inlineData", "fileData", "functionCall", "functionResponse"}:
        yield f"a part of {sorted(part)}"
    if "text" in part and not part["text"].strip():
        yield "an empty text"
    if "functionCall" in part:
        if role != "model" or not isinstance(part["functionCall"]["args"], dict):
            yield "a call"
        if not _NAME.fullmatch(part["functionCall"]["name"]):
            yield "a name"
    if "functionResponse" in part and (
        role != "user" or not isinstance(part["functionResponse"]["response"], dict) or not part["functionResponse"]
    ):
        yield "a response"
    if "inlineData" in part and (
        "/" not in part["inlineData"]["mimeType"] or not _is_base64(part["inlineData"]["data"])
    ):
        yield "inline data"


def langchain_faults(package: Mapping[str, Any]) -> list[str]:
    """Translate the messages as LangChain does for OpenAI, and check those; and what only LangChain asks for."""
    found = []
    roles = {"human": "user", "ai": "assistant", "tool": "tool", "system": "system"}
    translated = []
    for at, message in enumerate(package["messages"]):
        data = message["data"]
        if message["type"] not in roles or data["type"] != message["type"]:
            found.append(f"{at}: type {message['type']}")
            continue
        one = {"role": roles[message["type"]], "content": data["content"]}
        if calls := data.get("tool_calls"):
            if any(call["type"] != "tool_call" or not isinstance(call["args"], dict) for call in calls):
                found.append(f"{at}: calls")
            one["tool_calls"] = [
                {"id": call["id"], "type": "function", "function": _function(call["name"], call["args"])}
                for call in calls
            ]
            one["content"] = data["content"] or None
        if message["type"] == "tool":
            one["tool_call_id"] = data["tool_call_id"]
            found += [] if data["status"] in ("success", "error") else [f"{at}: status"]
        if message["type"] == "human" and "name" in data:
            one["name"] = re.sub(r"[\s<|\\/>]+", "_", data["name"])
        translated.append(one)
    spoken = [message["role"] for message in translated if message["role"] != "system"]
    found += ["the first is not the user's"] if spoken and spoken[0] != "user" else []
    return [*found, *openai_faults({"messages": translated})]


FAULTS: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "openai": openai_faults,
    "anthropic": anthropic_faults,
    "gemini": gemini_faults,
    "langchain-json": langchain_faults,
}


def texts(package: Mapping[str, Any]) -> list[str]:
    """Return every text in a package, in its order."""
    return list(_strings(package))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for held in value.values():
            yield from _strings(held)
    elif isinstance(value, list):
        for held in value:
            yield from _strings(held)


def _function(name: str, arguments: object) -> dict[str, Any]:
    return {"name": name, "arguments": json.dumps(arguments)}


def _typed_faults(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Hold messages against the types of OpenAI's client."""
    try:
        _OPENAI.validate_python(messages)
    except ValidationError as exc:
        return [f"openai: {exc.errors()[0]['msg']} at {exc.errors()[0]['loc']}"]
    return []


def _json_faults(package: Mapping[str, Any]) -> list[str]:
    try:
        json.dumps(package, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as exc:
        return [f"no JSON: {exc}"]
    return []


def _extra_keys(held: Mapping[str, Any], allowed: set[str]) -> list[str]:
    return [f"key {key}" for key in held if key not in allowed]


def _alternation_faults(messages: Sequence[Mapping[str, Any]], roles: tuple[str, str]) -> list[str]:
    expected = [roles[at % 2] for at in range(len(messages))]
    found = [message["role"] for message in messages]
    return [] if found == expected else [f"roles {found}"]


def _id_faults(at: int, ids: Sequence[str], seen: set[str]) -> list[str]:
    found = [f"{at}: id {one}" for one in ids if not _ID.fullmatch(one)]
    for one in ids:
        found += [f"{at}: id {one} again"] if one in seen else []
        seen.add(one)
    return found


def _is_object_text(text: object) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _is_base64(data: str) -> bool:
    try:
        return bool(base64.b64decode(data, validate=True))
    except binascii.Error:
        return False


def _url(part: Mapping[str, Any]) -> bool:
    return str(part["image_url"]["url"]).startswith(("data:image/", "http://", "https://"))
