"""Units: the sentences and tool facts that a summary keeps or leaves, and how messages become them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from contract_engine.memory.exchange import tells_error
from contract_engine.memory.summarizers.facts import unsigned
from contract_engine.memory.summarizers.sentences import MAX_SENTENCE_CHARS, one_line, plain_lines, sentences

MAX_TEXT_CHARS = 64 * 1024
"""What is read of one text; of a longer one the first three quarters of this and the last quarter."""
MAX_JSON_CHARS = 2 * 1024 * 1024
MAX_UNITS = 2000
"""What one text gives at most; a text of more has a few letters in each."""
MAX_ITEMS = 100
MAX_VALUE_CHARS = 2000
MAX_DEPTH = 8
MAX_LABEL_CHARS = 40
CALL_LABEL = "tool call"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_ROLES = frozenset(("user", "assistant", "system", "developer"))
_NOT_IN_LABEL = re.compile(r"[:\[\]*`]+")
_NAMING_KEYS = tuple(re.compile(rf"(?:.*_)?(?:{key})", re.IGNORECASE) for key in ("id|number|code", "email", "name"))


@dataclass(frozen=True, slots=True)
class Unit:
    """One sentence or fact of ``speaker`` on ``day`` (as ``8 May 2023``); either may be unknown, which is empty."""

    day: str
    speaker: str
    text: str

    @property
    def is_tool(self) -> bool:
        """Whether a tool call or a tool's answer is told."""
        return is_tool_label(self.speaker)


def has_heads(label: str) -> bool:
    """Tell whether lines with this label are answers of tools, whose facts begin with what names their object."""
    return is_tool_label(label) and label != CALL_LABEL


def fact_of(unit: Unit) -> str:
    """Return the text without what names the object it is about, which is repeated with each fact of an object."""
    _, _, fact = unit.text.partition(", ")
    return fact if fact and has_heads(unit.speaker) else unit.text


def is_tool_label(label: str) -> bool:
    """Tell whether lines with this label are facts of tools."""
    return label == "tool" or label.startswith("tool ")


def message_units(messages: Sequence[Mapping[str, object]], times: Sequence[float]) -> list[Unit]:
    """Return what the messages say, in their order; a message's own ``timestamp`` is preferred to ``times``."""
    tools: dict[str, str] = {}
    found: list[Unit] = []
    for index, message in enumerate(messages):
        if isinstance(message, Mapping):
            day = day_of(message.get("timestamp")) or day_of(times[index] if index < len(times) else None)
            for label, text in _statements(message, tools=tools):
                told = unsigned(text) if is_tool_label(label) else text
                if told:
                    found.append(Unit(day, label, told))
    return found


def clean_label(text: str) -> str:
    """Return ``text`` as it can stand before a colon at the beginning of a line."""
    label = " ".join(_NOT_IN_LABEL.sub(" ", one_line(text)).split()).lstrip("-& ")
    if len(label) > MAX_LABEL_CHARS:
        # Half a name would be one that nobody has.
        label = label[: MAX_LABEL_CHARS + 1].rpartition(" ")[0] or label[:MAX_LABEL_CHARS]
    return label.rstrip()


def _statements(message: Mapping[str, object], *, tools: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Give the label and text of every unit of a message; ``tools`` remembers which call id belongs to which tool."""
    label = label_of(message, tools)
    content = message.get("content")
    for block in content if isinstance(content, list | tuple) else (content,):
        if isinstance(block, str):
            yield from _told(label, block)
        elif not isinstance(block, Mapping):
            continue
        elif block.get("type") == "tool_use":
            yield from _call(block.get("name"), block.get("input"), call_id=block.get("id"), tools=tools)
        elif block.get("type") == "tool_result":
            answer = {**block, "role": "tool", "tool_call_id": block.get("tool_use_id")}
            # An answer holds texts; one inside another is nothing an API makes, and could be nested without end.
            if not _nests(block.get("content")):
                yield from _statements(answer, tools=tools)
        elif isinstance(text := block.get("text"), str):
            yield from _told(label, text)
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            arguments = function.get("arguments")
            yield from _call(function.get("name"), arguments, call_id=call.get("id"), tools=tools)
    if isinstance(legacy := message.get("function_call"), Mapping):
        yield from _call(legacy.get("name"), legacy.get("arguments"), call_id=None, tools=tools)


def _nests(content: object) -> bool:
    return isinstance(content, list | tuple) and any(
        isinstance(block, Mapping) and block.get("type") == "tool_result" for block in content
    )


def label_of(message: Mapping[str, object], tools: Mapping[str, str]) -> str:
    """Return what a line of this message begins with; ``tools`` says which call id belongs to which tool."""
    role, name = message.get("role"), message.get("name")
    if role in ("tool", "function"):
        call_id = message.get("tool_call_id")
        known = name if isinstance(name, str) else tools.get(call_id, "") if isinstance(call_id, str) else ""
        return clean_label(f"tool error {known}" if tells_error(message) else f"tool {known}")
    if isinstance(name, str) and (label := clean_label(name)):
        # A name must not pass for a role or a tool.
        lowered = label.lower()
        if lowered not in _ROLES and not is_tool_label(lowered):
            return label
    label = clean_label(role) if isinstance(role, str) else ""
    return label if label and not is_tool_label(label) else "unknown"


def _told(label: str, text: str) -> Iterator[tuple[str, str]]:
    if is_tool_label(label) and text.lstrip()[:1] in ("{", "["):
        value = _decoded(text)
        if value is not None:
            for fact in islice(_facts(value), MAX_UNITS):
                for sentence in _one_sentence(fact):
                    yield label, sentence
            return
    told = (sentence for line in plain_lines(_capped(text)) for sentence in sentences(line))
    for sentence in islice(told, MAX_UNITS):
        yield label, sentence


def _call(name: object, arguments: object, *, call_id: object, tools: dict[str, str]) -> Iterator[tuple[str, str]]:
    tool = one_line(name)[:MAX_LABEL_CHARS] if isinstance(name, str) else "unknown"
    if isinstance(call_id, str):
        tools[call_id] = tool
    if isinstance(arguments, str):
        decoded = _decoded(arguments)
        arguments = arguments[:MAX_VALUE_CHARS] if decoded is None else decoded
    pairs = (
        [f"{key}={_inline(value, depth=1)}" for key, value in arguments.items() if not _is_empty(value)]
        if isinstance(arguments, Mapping)
        else [_inline(arguments, depth=1)]
    )
    for pack in (_packs(pairs, head="", around=len(f"{tool}()")) or [""])[:MAX_UNITS]:
        for sentence in _one_sentence(f"{tool}({pack})"):
            yield CALL_LABEL, sentence


def _facts(value: object, *, head: str = "", depth: int = 0) -> Iterator[str]:
    """Give ``k v, k v`` facts of a decoded JSON value; every further fact of an object begins with what names it."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        simple = {key: item for key, item in value.items() if not _is_empty(item) and _is_small(item)}
        pairs = [f"{key} {_inline(item, depth=depth)}" for key, item in simple.items()]
        own = _naming_pair(simple)
        yield from _packs(pairs, head=head, again=own)
        for key, item in value.items():
            if key not in simple and not _is_empty(item):
                yield from _facts(item, head=", ".join(filter(None, (own or head, str(key)))), depth=depth + 1)
    elif isinstance(value, list) and not _is_small(value):
        for item in value:
            yield from _facts(item, head=head, depth=depth + 1)
    elif not _is_empty(value):
        yield from _packs([_inline(value, depth=depth)], head=head)


def _naming_pair(simple: Mapping[object, object]) -> str:
    """Return the pair that tells an object from its like: an id rather than an address, and that rather than a name."""
    for naming in _NAMING_KEYS:
        for key, item in simple.items():
            if naming.fullmatch(str(key)) and isinstance(item, str | int) and len(str(item)) <= MAX_LABEL_CHARS:
                return f"{key} {_inline(item, depth=0)}"
    return ""


def _packs(pairs: Sequence[str], *, head: str, again: str = "", around: int = 0) -> list[str]:
    """Join pairs into facts that are one sentence each: ``head`` opens the first, and ``again`` too the others.

    ``around``: how many characters the caller will put around each.
    """
    packs: list[str] = []
    current: list[str] = []
    for pair in pairs:
        if current and len(", ".join([head, *current, pair])) + around > MAX_SENTENCE_CHARS:
            packs.append(", ".join(current))
            current = [again] if again else []
        current.append(pair)
    if current:
        packs.append(", ".join(current))
    return [f"{head} {pack}" if head else pack for pack in packs]


def _is_empty(value: object) -> bool:
    return value is None or value in ("", [], {})


def _is_small(value: object) -> bool:
    """Tell whether a value can stand inside the fact of its object."""
    if isinstance(value, Mapping):
        return len(value) <= 5 and not any(isinstance(item, Mapping | list) for item in value.values())
    return not isinstance(value, list) or not any(isinstance(item, Mapping | list) for item in value)


def _inline(value: object, *, depth: int) -> str:
    if depth > MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        inner = (f"{key} {_inline(item, depth=depth + 1)}" for key, item in value.items() if not _is_empty(item))
        return f"({', '.join(inner)})"
    if isinstance(value, list):
        return ", ".join(_inline(item, depth=depth + 1) for item in value[:MAX_ITEMS])
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int) and value.bit_length() > MAX_VALUE_CHARS:
        return "…"  # Python refuses to write numbers of thousands of digits.
    return str(value)[:MAX_VALUE_CHARS] if isinstance(value, str | int | float) else type(value).__name__


def _one_sentence(fact: str) -> list[str]:
    """Return the fact as one sentence where its values hold several."""
    pieces = sentences(one_line(fact))
    if len(pieces) < 2:
        return pieces
    return sentences(", ".join(piece.rstrip(".!?…。！？；,") for piece in pieces))


def _decoded(text: str) -> object:
    """Return what a JSON text says, ``None`` if it is none or too large to be worth reading."""
    if len(text) > MAX_JSON_CHARS:
        return None
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value


def _capped(text: str) -> str:
    if len(text) <= MAX_TEXT_CHARS:
        return text
    return f"{text[: MAX_TEXT_CHARS * 3 // 4]}\n{text[-MAX_TEXT_CHARS // 4 :]}"


def day_of(value: object) -> str:
    """Return the day of an ISO text (in its own zone) or of unix seconds (in UTC); empty if it is neither."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
        elif isinstance(value, datetime):
            moment = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            moment = datetime.fromtimestamp(value, UTC)
        else:
            return ""
    except (ValueError, OverflowError, OSError):
        return ""
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}"
