"""The messages of a conversation as turns: who spoke, and each call together with its result."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from contract_engine.memory.exchange import NO_ID, calls_of, entries_of, link, once_each, results_of, tells_error
from contract_engine.memory.mending import UNKNOWN_TOOL, mend
from contract_engine.memory.packaging.parts import Part, Text, Thought, json_text, parts_of

EMPTY = Text("(empty message)")
EMPTY_RESULT = Text("(empty result)")

USER, ASSISTANT = "user", "assistant"
_USERS = frozenset(("user", "human"))
_ASSISTANTS = frozenset(("assistant", "ai", "model", "bot"))

# What all providers take: OpenAI refuses ids above 40 characters, Anthropic those with other characters. Names: 64.
_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9_-]")
_NOT_IN_ROLE = re.compile(r"[^\w -]")


def _refuse(constant: str) -> None:
    raise ValueError(constant)


_DECODER = json.JSONDecoder(parse_constant=_refuse)


class Call(NamedTuple):
    """A call and its result. ``arguments`` is what ``arguments_text`` says; ``signature`` is Gemini's, if any."""

    id: str
    name: str
    arguments: dict[str, Any]
    arguments_text: str
    result: list[Part]
    is_error: bool
    signature: str


class Turn(NamedTuple):
    """What one side says at once; the results of its calls follow it directly, before anything else."""

    role: str
    parts: list[Part]
    calls: list[Call]
    name: str = ""


def turns_of(messages: Sequence[dict[str, Any]]) -> list[Turn]:
    """Return the turns of a conversation: every call has its result, marked as synthetic where none was stored.

    Results stand with their calls wherever they were stored. Ids are kept where every provider takes them and no
    earlier call has the same. A role system or one that is not known becomes a user's turn that names it.
    """
    held, links = messages, link(messages)
    if (links.open_calls or links.orphans) and (mended := mend(messages, is_all=True)) is not None:
        held = mended.messages
        links = link(held)
    ids = _Ids()
    taken: Counter[int] = Counter()
    turns: list[Turn] = []
    for index, message in enumerate(held):
        calls: list[Call] = []
        answers = links.answers.get(index, {})
        for key, told in told_calls(message) if answers else ():
            at = answers[key].pop(0)
            result, is_error = _result(held[at], key, taken[at])
            taken[at] += key == NO_ID
            calls.append(call_of(ids.unique(key), told, result=result, is_error=is_error))
        turns += _said(message, calls)
    return turns


def _said(message: Mapping[str, Any], calls: list[Call]) -> list[Turn]:
    role = message.get("role")
    speaker = ASSISTANT if isinstance(role, str) and role in _ASSISTANTS else USER
    parts = [] if role in ("tool", "function") else _words(message)
    if not parts and not calls:
        return [] if results_of(message) else [Turn(speaker, [EMPTY], [])]
    if speaker == ASSISTANT:
        return [Turn(ASSISTANT, parts, calls)]
    turns = [Turn(USER, [*_label(role), *parts], [], _name(message))] if parts else []
    return [*turns, Turn(ASSISTANT, [], calls)] if calls else turns


def _words(message: Mapping[str, Any]) -> list[Part]:
    parts = parts_of(message.get("content"))
    if not parts and isinstance(refusal := message.get("refusal"), str):
        parts = parts_of(refusal)
    if not parts and isinstance(audio := message.get("audio"), Mapping):
        parts = parts_of(audio.get("transcript"))
    return parts


def _label(role: object) -> list[Part]:
    if role is None or (isinstance(role, str) and role in _USERS):
        return []
    name = _NOT_IN_ROLE.sub("", role)[:40].strip() if isinstance(role, str) else ""
    return [Text(f"[message with the role {name or 'unknown'}]")]


def _name(message: Mapping[str, Any]) -> str:
    name = message.get("name")
    return " ".join(name.split())[:64] if isinstance(name, str) else ""


def told_calls(message: Mapping[str, Any]) -> list[tuple[Hashable, Mapping[str, Any]]]:
    """Return the calls of a message, each once, in the order of ``calls_of``."""
    blocks = [block for block in entries_of(message.get("content")) if block.get("type") == "tool_use"]
    legacy = message.get("function_call")
    told = [*entries_of(message.get("tool_calls")), *blocks, *([legacy] if isinstance(legacy, Mapping) else ())]
    keys = calls_of(message)
    first: dict[Hashable, Mapping[str, Any]] = {}
    for key, call in zip(keys, told, strict=True):
        first.setdefault(key, call)
    nameless = iter([call for key, call in zip(keys, told, strict=True) if key == NO_ID])
    return [(key, next(nameless) if key == NO_ID else first[key]) for key in once_each(keys)]


def call_of(call_id: str, told: Mapping[str, Any], *, result: list[Part], is_error: bool) -> Call:
    """Return a call from OpenAI's ``function``, a legacy function call, Anthropic's block or LangChain's call."""
    nested = told.get("function")
    function = nested if isinstance(nested, Mapping) else told
    name = function.get("name")
    arguments = next((function[key] for key in ("arguments", "input", "args") if key in function), None)
    known, text = _arguments(arguments)
    told_result: list[Part] = [part for part in result if not isinstance(part, Thought)] or [EMPTY_RESULT]
    return Call(call_id, tool_name(name), known, text, told_result, is_error, _signature(told))


def tool_name(name: object) -> str:
    """Return a name as every provider takes it: a letter or underscore, then letters, digits, ``_`` and ``-``."""
    if not isinstance(name, str) or not name:
        return UNKNOWN_TOOL
    found = _NOT_IN_NAME.sub("_", name)
    return (found if found[0].isalpha() or found[0] == "_" else f"_{found}")[:64]


def _arguments(given: object) -> tuple[dict[str, Any], str]:
    """Return arguments as an object and as text; what is no object becomes one with the single key ``arguments``."""
    if given is None or given == "":
        return {}, "{}"
    if isinstance(given, str):
        decoded = {} if given == "{}" else _decoded(given)
        return (decoded, given) if isinstance(decoded, dict) else _wrapped(given if decoded is None else decoded)
    if isinstance(given, Mapping):
        return dict(given), json_text(given)
    return _wrapped(given)


def _wrapped(value: object) -> tuple[dict[str, Any], str]:
    found = {"arguments": value}
    return found, json_text(found)


def _decoded(text: str) -> object:
    """Return what a JSON text says; None where it is none that can be sent on."""
    try:
        found: object = _DECODER.decode(text)
        if "\\u" in text:
            json_text(found).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError):
        return None
    return found


def _signature(told: Mapping[str, Any]) -> str:
    """Return the thought signature where Gemini's OpenAI-compatible interface puts it."""
    extra = told.get("extra_content")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    signature = google.get("thought_signature") if isinstance(google, Mapping) else None
    return signature if isinstance(signature, str) else ""


def _result(message: Mapping[str, Any], key: Hashable, skip: int) -> tuple[list[Part], bool]:
    """Return what a message answers to the call ``key``; of results without id the one after ``skip`` others."""
    answers: list[tuple[object, bool]] = []
    role = message.get("role")
    keys = results_of(message)
    own = 1 if role in ("tool", "function") else 0
    if own and keys[0] == key:
        answers.append((message.get("content"), tells_error(message)))
    blocks = [block for block in entries_of(message.get("content")) if block.get("type") == "tool_result"]
    for found, block in zip(keys[own:], blocks, strict=True):
        if found == key:
            answers.append((block.get("content"), tells_error(block)))
    if key == NO_ID:
        answers = answers[skip : skip + 1]
    return [part for content, _ in answers for part in parts_of(content)], any(is_error for _, is_error in answers)


class _Ids:
    """Gives every call an id of its own; the same for the same calls, however many follow."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def unique(self, key: Hashable) -> str:
        wanted = str(key[1]) if isinstance(key, tuple) and len(key) > 1 and key[0] == "id" else ""
        if not _ID.fullmatch(wanted) or wanted in self._used:
            digest = hashlib.sha256(f"{key!r} {len(self._used)}".encode("utf-8", "replace")).hexdigest()
            wanted = f"call_{digest[:24]}"
        self._used.add(wanted)
        return wanted
