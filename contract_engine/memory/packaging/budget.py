"""What a package costs, and what goes where it costs too much.

Counted on the turns, before a provider's form is made: no form of them costs more. The framing is what an object of the
widest form, Anthropic's, adds to its texts in JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from contract_engine.memory.errors import PackageTooLargeError
from contract_engine.memory.packaging.notes import recalled_turns
from contract_engine.memory.packaging.parts import Media, Part, Text, json_text
from contract_engine.memory.packaging.turns import USER, Turn
from contract_engine.memory.token_counter import AUDIO_TOKENS, FILE_TOKENS, IMAGE_TOKENS

TURN_TOKENS = 8
CALL_TOKENS = 32
_MEDIA_TOKENS = {"image": IMAGE_TOKENS, "audio": AUDIO_TOKENS, "file": FILE_TOKENS}

LEFT_OUT = "[older messages left out here for want of room: {}]"

Count = Callable[[str], int]


class Content(NamedTuple):
    """What goes into a package: the turn of notes, if any, the conversation, and the messages that were recalled."""

    notes: list[Turn]
    turns: list[Turn]
    recalled: list[Mapping[str, Any]]


def within(content: Content, most: int, *, count: Count, system: str | None) -> Content:
    """Return what fits: without the oldest of what was recalled, then without that and the oldest turns, in steps."""
    notes, turns, recalled = content
    fixed = [*([Turn(USER, [Text(system)], [])] if system else []), *notes, *turns[-1:]]
    # Besides, the package may have to say that something was left out, and to begin with the user.
    needed = sum(turn_tokens(turn, count) for turn in fixed) + 2 * turn_tokens(_left_out(10**6), count)
    if needed > most:
        raise PackageTooLargeError(needed, most)
    first = max(0, len(turns) - 1)
    while first and needed + (cost := turn_tokens(turns[first - 1], count)) <= most:
        needed += cost
        first -= 1
    if first:
        first = _in_steps(first, len(turns))
        return Content(notes, [_left_out(first), *turns[first:]], [])
    while recalled and needed + sum(turn_tokens(turn, count) for turn in recalled_turns(recalled)) > most:
        recalled = recalled[1:]
    return Content(notes, turns, recalled)


def _in_steps(first: int, end: int) -> int:
    """Return the turn to begin with: of those that fit, up to a quarter more goes.

    Else it would be another at each turn of the conversation, and a provider's cache of prefixes would never apply.
    """
    step = 1 << max(0, ((end - first) // 4).bit_length() - 1)
    return first + -first % step


def is_surely_within(content: Content, most: int, *, system: str | None) -> bool:
    """Whether it fits however it is encoded, since a token has a byte or more; that is much faster than to count."""
    turns = [*content.notes, *content.turns, *recalled_turns(content.recalled), Turn(USER, [Text(system or "")], [])]
    return sum(turn_tokens(turn, _bytes) for turn in turns) + 2 * turn_tokens(_left_out(10**6), _bytes) <= most


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _left_out(number: int) -> Turn:
    return Turn(USER, [Text(LEFT_OUT.format(number))], [])


def turn_tokens(turn: Turn, count: Count) -> int:
    """Return what a turn costs with the results of its calls."""
    total = TURN_TOKENS + count(turn.name) + _parts_tokens(turn.parts, count)
    for call in turn.calls:
        arguments = max(count(call.arguments_text), count(json_text(call.arguments)))
        total += CALL_TOKENS + 2 * (count(call.id) + count(call.name)) + count(call.signature) + arguments
        total += _parts_tokens(call.result, count)
    return total


def _parts_tokens(parts: Sequence[Part], count: Count) -> int:
    total = 0
    for part in parts:
        if isinstance(part, Text):
            total += 1 + count(part.text)
        elif isinstance(part, Media):
            total += max(_MEDIA_TOKENS[part.kind], 1 + count(part.marked.text))
        else:
            total += count(json_text(part.block))
    return total
