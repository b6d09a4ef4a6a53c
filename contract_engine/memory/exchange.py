"""Exchange groups, and how many of the oldest messages a fold takes.

A call and its results mean something only together, and model APIs refuse a result without its call. So a fold
takes whole groups. Messages come from callers: any field may be missing or of a wrong type, and then it says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NO_ID = ("no id",)
"""The key of every call and result that has no id."""


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
    links = link(messages)
    groups: list[Group] = []
    start = 0
    while start < len(messages):
        stop = index = start
        is_open = False
        while index < stop or stop == start or links.repeats.get(index, -1) >= start:
            stop = max(stop, links.stops[index])
            is_open = is_open or index in links.open_calls
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
    added: Callable[[int], tuple[int, int]] | None = None,
) -> int:
    """Return how many of the oldest messages to fold; 0 is nothing.

    Whole groups go, oldest first, until what remains is within both targets. The newest message always remains. A
    group with an open call stays while fewer than ``young_messages`` messages follow its first one, and holds back
    all after it: ``hard`` overrules that, and splits a group if nothing else helps, until what remains is within the
    caps (``None``: no such cap) or is the newest message alone. A rest does not begin with a result whose call is
    gone if folding that result too avoids it. ``tokens[i]`` belongs to ``messages[i]``. ``added`` tells how many
    messages and tokens are shown besides the rest from a message on; they count towards the caps.
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

    def within_caps(start: int) -> bool:
        if not within(start, cap_tokens, cap_messages):
            return False
        more_messages, more_tokens = added(start) if added is not None else (0, 0)
        return not more_messages or within(
            start,
            None if cap_tokens is None else cap_tokens - more_tokens,
            None if cap_messages is None else cap_messages - more_messages,
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
            if within_caps(count):
                break
            count = max(count, group.stop)
        while count < newest and not within_caps(count):
            count += 1
    return _past_orphans(messages, count) if count else 0


def whole_from(messages: Sequence[object], start: int) -> int:
    """Return ``start`` or the first place behind it where no group is cut: what a trim to a limit leaves begins there.

    Only in the newest group there is no such place. Then what is left begins inside, but not with a result whose call
    is gone, unless there is nothing else in it.
    """
    if start <= 0 or start >= len(messages):
        return max(0, start)
    return _past_orphans(messages, next((one.start for one in exchange_groups(messages) if one.start >= start), start))


class Links(NamedTuple):
    """Which message answers which; everything is an index into the messages, a key names one call.

    ``stops``: where the group of each message stops at least. ``repeats``: results given again, with the call they
    answer again. ``answers``: for each message with calls, the index of the result of each call that has one.
    ``open_calls``: for each message with calls that have no result, these calls. ``orphans``: for each message with
    results that answer nothing before them, or what has its answer already, these results.
    """

    stops: list[int]
    repeats: dict[int, int]
    answers: dict[int, dict[Hashable, list[int]]]
    open_calls: dict[int, list[Hashable]]
    orphans: dict[int, list[Hashable]]


def link(messages: Sequence[object]) -> Links:
    """Find the call of every result.

    An id used for a second call means the later one from then on; a result without an id answers the latest call
    without one. One id in several results of one message is one answer.
    """
    links = Links([index + 1 for index in range(len(messages))], {}, {}, {}, {})
    asked: dict[Hashable, int] = {}
    answered: dict[Hashable, int] = {}
    nameless: list[int] = []
    for index, message in enumerate(messages):
        if (type(message) is not dict and not isinstance(message, Mapping)) or not has_exchanges((message,)):
            continue
        for key in once_each(results_of(message)):
            if key in asked:
                call = answered[key] = asked.pop(key)
            elif key == NO_ID and nameless:
                call = nameless.pop()
            else:
                if key in answered:
                    links.repeats[index] = max(links.repeats.get(index, -1), answered[key])
                links.orphans.setdefault(index, []).append(key)
                continue
            links.stops[call] = index + 1
            links.answers.setdefault(call, {}).setdefault(key, []).append(index)
            links.open_calls[call].remove(key)
            if not links.open_calls[call]:
                del links.open_calls[call]
        # The same id may be told twice, as a tool_use block and in tool_calls: that is one call.
        for key in once_each(calls_of(message)):
            if key == NO_ID:
                nameless.append(index)
            else:
                asked[key] = index
            links.open_calls.setdefault(index, []).append(key)
    return links


def has_exchanges(messages: Iterable[Mapping[str, object]]) -> bool:
    """Whether there may be calls or results among the messages. Made for the many conversations that have none."""
    for message in messages:
        if (
            "tool_calls" in message
            or "function_call" in message
            or type(message.get("content")) is not str
            or message.get("role") in ("tool", "function")
        ):
            return True
    return False


def once_each(keys: list[Hashable]) -> list[Hashable]:
    """Return the keys in their order, each id once; what has no id counts every time."""
    if len(keys) < 2:
        return keys
    found: list[Hashable] = []
    for key in keys:
        if key == NO_ID or key not in found:
            found.append(key)
    return found


def calls_of(message: Mapping[Any, object]) -> list[Hashable]:
    """Name every call a message makes."""
    calls = message.get("tool_calls")
    keys = [_key("id", call.get("id")) for call in entries_of(calls)] if calls else []
    content = message.get("content")
    if type(content) is not str:
        keys += [_key("id", block.get("id")) for block in entries_of(content) if block.get("type") == "tool_use"]
    legacy = message.get("function_call")
    if legacy is not None and isinstance(legacy, Mapping):
        keys.append(_key("function", legacy.get("name")))
    return keys


def results_of(message: Mapping[Any, object]) -> list[Hashable]:
    """Name every call a message answers."""
    keys: list[Hashable] = []
    role = message.get("role")
    if role == "tool":
        keys.append(_key("id", message.get("tool_call_id")))
    elif role == "function":
        keys.append(_key("function", message.get("name")))
    content = message.get("content")
    if type(content) is not str:
        blocks = entries_of(content)
        keys += [_key("id", block.get("tool_use_id")) for block in blocks if block.get("type") == "tool_result"]
    return keys


def tells_error(result: Mapping[Any, object]) -> bool:
    """Whether a result, a message or a block, says that its call failed: as Anthropic or as LangChain marks it."""
    return result.get("is_error") is True or result.get("status") == "error"


def entries_of(value: object) -> list[Mapping[str, object]]:
    """Return the objects in a list, none where it is no list."""
    if type(value) is list or isinstance(value, tuple):
        return [entry for entry in value if type(entry) is dict or isinstance(entry, Mapping)]
    return []


def _key(kind: str, value: object) -> Hashable:
    return (kind, value) if isinstance(value, str | int) else NO_ID


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
    if not isinstance(message, Mapping):
        return False
    return bool(results_of(message)) and not calls_of(message)
