"""A transcript: messages as a language model is shown them, and the parts that fit into its window.

    [8 May 2023] Ana: We moved to Porto.
    [8 May 2023] tool call: get_order({"order_id":"#W12"})
    [8 May 2023] tool get_order: {"status":"delivered"}

The speakers are those of the summary. Lines after the first one of a message are indented, so that no text can pass for
the beginning of another message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain

from contract_engine.memory.exchange import exchange_groups
from contract_engine.memory.summarizers.sentences import one_line
from contract_engine.memory.summarizers.units import CALL_LABEL, MAX_LABEL_CHARS, day_of, is_tool_label, label_of

CUT_WITHIN = 0.2
"""A message that must be split is cut at white space where some stands in this last share of a piece."""

_STRING_OR_SPACE = re.compile(r'("(?:[^"\\]|\\.)*")|\s+')
_BLOBS = frozenset(("image", "image_url", "input_image", "audio", "input_audio", "file", "input_file", "document"))


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says in one message; ``day`` is empty where it is not known. ``part`` counts pieces, from 1.

    ``is_user``: the speaker is whom the assistant serves.
    """

    day: str
    speaker: str
    text: str
    part: int = 0
    is_user: bool = False

    @property
    def is_speech(self) -> bool:
        """Whether a person or an assistant speaks: no tool, and no instructions of the application."""
        return not is_tool_label(self.speaker) and self.speaker not in ("system", "developer")

    @property
    def shown(self) -> str:
        """The lines the model reads."""
        date = f"[{self.day}] " if self.day else ""
        part = f" (part {self.part})" if self.part else ""
        return f"{date}{self.speaker}{part}: " + "\n  ".join(self.text.splitlines())


def turns(messages: Sequence[Mapping[str, object]], times: Sequence[float]) -> list[list[Turn]]:
    """Return the turns of each message; a message's own ``timestamp`` is preferred to ``times``."""
    tools: dict[str, str] = {}
    found: list[list[Turn]] = []
    for index, message in enumerate(messages):
        day = day_of(message.get("timestamp")) or day_of(times[index] if index < len(times) else None)
        said = _statements(message, tools)
        is_user = message.get("role") == "user"
        found.append(
            [
                Turn(day, speaker, text, is_user=is_user and not is_tool_label(speaker))
                for speaker, text in said
                if text.strip()
            ]
        )
    return found


def parts(
    messages: Sequence[Mapping[str, object]],
    times: Sequence[float],
    *,
    max_tokens: int,
    count_tokens: Callable[[str], int],
) -> list[list[Turn]]:
    """Return all turns in their order, in parts of at most ``max_tokens`` each as they are shown.

    Parts end between exchange groups, and are about equal. Only a group that is too large alone is cut, between
    messages, and only a message that is too large alone is split.
    """
    by_message = turns(messages, times)
    groups: list[tuple[list[Turn], int]] = []
    for group in exchange_groups(messages):
        together = list(chain.from_iterable(by_message[group.start : group.stop]))
        groups += ((piece, _tokens(piece, count_tokens)) for piece in _within(together, max_tokens, count_tokens))
    total = sum(tokens for _, tokens in groups)
    aim = total / max(1, -(-total // max_tokens))
    found: list[list[Turn]] = []
    used = 0
    for piece, tokens in groups:
        if not found or used + tokens > max_tokens or used >= aim:
            found.append([])
            used = 0
        found[-1] += piece
        used += tokens
    return found


def shown(part: Sequence[Turn]) -> str:
    """Return the text of a part."""
    return "\n".join(turn.shown for turn in part)


def _tokens(part: Sequence[Turn], count_tokens: Callable[[str], int]) -> int:
    """Count a part from above: tokens never reach over a line break and the line after it."""
    return sum(count_tokens(turn.shown) + 1 for turn in part)


def _within(group: list[Turn], max_tokens: int, count_tokens: Callable[[str], int]) -> Iterator[list[Turn]]:
    """Give a group whole if it fits, else its turns alone, and what even then does not fit in pieces."""
    if not group:
        return
    if _tokens(group, count_tokens) <= max_tokens:
        yield group
        return
    for turn in group:
        if _tokens([turn], count_tokens) <= max_tokens:
            yield [turn]
        else:
            for piece in _pieces(turn, max_tokens, count_tokens):
                yield [piece]


def _pieces(turn: Turn, max_tokens: int, count_tokens: Callable[[str], int]) -> Iterator[Turn]:
    """Split a turn; the texts of the pieces put together are its text."""
    rest, number, size = turn.text, 0, len(turn.text)
    while rest:
        number += 1
        size = min(len(rest), size)
        piece = replace(turn, text=rest[:size], part=number)
        while size > 1 and (tokens := _tokens([piece], count_tokens)) > max_tokens:
            size = max(1, min(size - 1, int(size * max_tokens / tokens * 0.95)))
            piece = replace(piece, text=_cut(rest, size))
        yield piece
        rest = rest[len(piece.text) :]
        size = len(piece.text) * 2


def _cut(text: str, size: int) -> str:
    """Return the beginning of ``text`` up to ``size`` characters, ending with white space if some is near."""
    least = int(size * (1 - CUT_WITHIN))
    for index in range(size - 1, least, -1):
        if text[index].isspace():
            return text[: index + 1]
    return text[:size]


def _statements(message: Mapping[str, object], tools: dict[str, str]) -> Iterator[tuple[str, str]]:
    label = label_of(message, tools)
    content = message.get("content")
    for block in content if isinstance(content, list | tuple) else (content,):
        if isinstance(block, str):
            yield label, _plain(block, is_tool=is_tool_label(label))
        elif isinstance(block, Mapping):
            kind = block.get("type")
            if kind == "tool_use":
                yield CALL_LABEL, _call(block.get("name"), block.get("input"), block.get("id"), tools)
            elif kind == "tool_result":
                answer = {**block, "role": "tool", "tool_call_id": block.get("tool_use_id")}
                yield label_of(answer, tools), _result(block.get("content"))
            else:
                yield label, _block(block)
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield CALL_LABEL, _call(function.get("name"), function.get("arguments"), call.get("id"), tools)
    if isinstance(legacy := message.get("function_call"), Mapping):
        yield CALL_LABEL, _call(legacy.get("name"), legacy.get("arguments"), None, tools)


def _call(name: object, arguments: object, call_id: object, tools: dict[str, str]) -> str:
    tool = one_line(name)[:MAX_LABEL_CHARS] if isinstance(name, str) else "unknown"
    if isinstance(call_id, str):
        tools[call_id] = tool
    return f"{tool}({_plain(arguments, is_tool=True) if isinstance(arguments, str) else _compact(arguments)})"


def _result(content: object) -> str:
    if isinstance(content, str):
        return _plain(content, is_tool=True)
    blocks = content if isinstance(content, list | tuple) else (content,)
    texts = (_block(block) if isinstance(block, Mapping) else _compact(block) for block in blocks if block is not None)
    return "\n".join(texts)


def _block(block: Mapping[str, object]) -> str:
    """Return a block of content; pictures, sounds and files are named only, for they are no text."""
    if isinstance(text := block.get("text"), str):
        return _plain(text, is_tool=False)
    kind = block.get("type")
    return f"[{kind}]" if kind in _BLOBS else _compact(block)


def _plain(text: str, *, is_tool: bool) -> str:
    """Return a text as it can be sent; JSON of a tool without its white space and escapes, its numbers untouched."""
    if is_tool and text.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            json.loads(text)
            text = _STRING_OR_SPACE.sub(_without_escapes, text)
    return _encodable(text)


def _without_escapes(match: re.Match[str]) -> str:
    string = match[1] or ""
    return json.dumps(json.loads(string), ensure_ascii=False) if "\\u" in string else string


def _compact(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except (ValueError, RecursionError):
        text = "[not JSON]"
    return _encodable(text)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
