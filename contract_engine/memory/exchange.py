"""Exchange groups, and how many of the oldest messages a fold takes.

A call and its results mean something only together, and model APIs refuse a result without its call. So a fold
takes whole groups. Messages come from callers: any field may be missing or of a wrong type, and then it says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

_NO_ID = ("no id",)


@dataclass(frozen=True, slots=True)
class Group:
    """Messages ``start`` to ``stop - 1``, one unit; ``is_open``: some call in it has no result yet."""

    start: int
    stop: int
    is_open: bool = False


def exchange_groups(messages: Sequence[object]) -> list[Group]:
    """Cut ``messages`` into groups that follow each other without gap.

    A message with calls and everything up to the last result of these calls is one group, whatever stands in
    between; groups that overlap are one. A result that answers nothing known is a group of its own; one that answers
    a second time joins its call's group while it directly follows it. Calls are OpenAI ``tool_calls``, the older
    ``function_call`` (answered by role ``function`` with the same name) and Anthropic ``tool_use`` blocks.
    """
    stops, repeats, open_calls = _links(messages)
    groups: list[Group] = []
    start = 0
    while start < len(messages):
        stop = index = start
        is_open = False
        while index < stop or stop == start or repeats.get(index, -1) >= start:
            stop = max(stop, stops[index])
            is_open = is_open or index in open_calls
            index += 1
        groups.append(Group(start, stop, is_open))
        start = stop
    return groups


def plan_fold(
    messages: Sequence[object],
    tokens: Sequence[int],
    *,
    target_tokens: int,
    target_messages: int,
    hard: bool,
    cap_tokens: int | None = None,
    cap_messages: int | None = None,
    young_messages: int = 8,
) -> int:
    """Return how many of the oldest messages to fold; 0 is nothing.

    Whole groups go, oldest first, until what remains is within both targets. The newest message always remains. A
    group with an open call stays while fewer than ``young_messages`` messages follow its first one, and holds back
    all after it: ``hard`` overrules that, and splits a group if nothing else helps, until what remains is within the
    caps (``None``: no such cap) or is the newest message alone. A rest does not begin with a result whose call is
    gone if folding that result too avoids it. ``tokens[i]`` belongs to ``messages[i]``.
    """
    newest = len(messages) - 1
    if newest < 1:
        return 0
    rest = _rests(tokens)
    groups = [group for group in exchange_groups(messages) if group.stop <= newest]

    def within(start: int, token_limit: int | None, message_limit: int | None) -> bool:
        return (token_limit is None or rest[start] <= token_limit) and (
            message_limit is None or len(messages) - start <= message_limit
        )

    count = 0
    for group in groups:
        if within(count, target_tokens, target_messages):
            break
        if group.is_open and newest - group.start < young_messages:
            break
        count = group.stop
    if hard:
        for group in groups:
            if within(count, cap_tokens, cap_messages):
                break
            count = max(count, group.stop)
        while count < newest and not within(count, cap_tokens, cap_messages):
            count += 1
    return _past_orphans(messages, count) if count else 0


def _links(messages: Sequence[object]) -> tuple[list[int], dict[int, int], set[int]]:
    """Return where the group of each message stops at least, the repeated results, and the messages with open calls.

    A repeated result is given with the index of the call it answers again. An id used for a second call means the
    later one from then on; a result without an id answers the latest call without one.
    """
    stops = [index + 1 for index in range(len(messages))]
    repeats: dict[int, int] = {}
    unanswered: Counter[int] = Counter()
    asked: dict[Hashable, int] = {}
    answered: dict[Hashable, int] = {}
    nameless: list[int] = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            continue
        for key in _results(message):
            if key in asked:
                call = answered[key] = asked.pop(key)
            elif key == _NO_ID and nameless:
                call = nameless.pop()
            else:
                if key in answered:
                    repeats[index] = max(repeats.get(index, -1), answered[key])
                continue
            stops[call] = index + 1
            unanswered[call] -= 1
        # The same id may be told twice, as a tool_use block and in tool_calls: that is one call.
        for key, count in Counter(_calls(message)).items():
            if key == _NO_ID:
                nameless += [index] * count
                unanswered[index] += count
            else:
                asked[key] = index
                unanswered[index] += 1
    return stops, repeats, {index for index, count in unanswered.items() if count}


def _calls(message: Mapping[object, object]) -> Iterator[Hashable]:
    """Name every call a message makes."""
    for call in _entries(message.get("tool_calls")):
        yield _key("id", call.get("id"))
    for block in _entries(message.get("content")):
        if block.get("type") == "tool_use":
            yield _key("id", block.get("id"))
    legacy = message.get("function_call")
    if isinstance(legacy, Mapping):
        yield _key("function", legacy.get("name"))


def _results(message: Mapping[object, object]) -> Iterator[Hashable]:
    """Name every call a message answers."""
    if message.get("role") == "tool":
        yield _key("id", message.get("tool_call_id"))
    elif message.get("role") == "function":
        yield _key("function", message.get("name"))
    for block in _entries(message.get("content")):
        if block.get("type") == "tool_result":
            yield _key("id", block.get("tool_use_id"))


def _entries(value: object) -> list[Mapping[object, object]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list | tuple) else []


def _key(kind: str, value: object) -> Hashable:
    return (kind, value) if isinstance(value, str | int) else _NO_ID


def _rests(tokens: Sequence[int]) -> list[int]:
    """Return for each index the tokens from there to the end."""
    rests = [0] * (len(tokens) + 1)
    for index in range(len(tokens) - 1, -1, -1):
        rests[index] = rests[index + 1] + tokens[index]
    return rests


def _past_orphans(messages: Sequence[object], count: int) -> int:
    """Return ``count`` moved past bare results, unless nothing else remains: whatever they answer is before them."""
    moved = count
    while moved < len(messages) and _is_bare_result(messages[moved]):
        moved += 1
    return moved if moved < len(messages) else count


def _is_bare_result(message: object) -> bool:
    return (
        isinstance(message, Mapping) and any(True for _ in _results(message)) and not any(True for _ in _calls(message))
    )
