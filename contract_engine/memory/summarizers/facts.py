"""Facts of tools on one line of a summary: what the one before has said already is written as a sign.

    tool get_order: order_id W12, status sent, city Porto; & items item_id 77, price 20; = W13, late, Rome
    tool call: get_order(order_id=W12); & (order_id=W13)

``&`` stands for the same beginning: the object that is told of, or the function that is called. ``=`` stands for the
same keys, as a row of a table has those of the row above. Each fact is read back exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from contract_engine.memory.summarizers.sentences import is_sentence

SAME_HEAD = "& "
SAME_KEYS = "= "
_SIGNS = "&= "

_TOLD_BY_VALUE = re.compile(
    r"""(?<![^\s(]) (?:\w+_)? (?:ids?|numbers?|codes?|email|date) [ =]
        (?= (?: \#? (?=[\w-]*\d) (?=[\w-]*[A-Za-z]) [A-Za-z0-9][\w-]{3,}
              | \d{4}-\d\d-\d\d
              | [\w.+-]+@[\w-]+\.[\w.-]+
            ) (?: [,)] | $ ) )""",
    re.VERBOSE,
)


def unsigned(text: str) -> str:
    """Return ``text`` without signs at its beginning, which only a shortened fact has."""
    return text.lstrip(_SIGNS)


def with_signs(facts: Sequence[str], *, are_calls: bool) -> list[str]:
    """Return the facts of one line, each as short as it can be after those before it."""
    line = _Line(are_calls=are_calls)
    return [line.short(fact) for fact in facts]


def without_signs(texts: Sequence[str], *, are_calls: bool) -> list[str]:
    """Return the facts that ``with_signs`` has shortened."""
    line = _Line(are_calls=are_calls)
    return [fact for text in texts if (fact := line.whole(text))]


def without_keys(fact: str) -> str:
    """Return the fact without the keys whose values tell by their form what they are: ids, addresses, dates."""
    shorter = unsigned(_TOLD_BY_VALUE.sub("", fact))
    return shorter if is_sentence(shorter) else fact


class _Line:
    """What a line has told so far."""

    def __init__(self, *, are_calls: bool) -> None:
        self._are_calls = are_calls
        self._head = ""
        self._keys: dict[int, list[str]] = {}

    def short(self, fact: str) -> str:
        """Write the next fact."""
        choices = (SAME_HEAD + fact[len(self._head) :].removeprefix(", "), SAME_KEYS + _values(fact))
        exact = [text for text in choices if self._read(text) == fact and is_sentence(text)]
        text = min([*exact, fact], key=len)
        self._remember(fact)
        return text

    def whole(self, text: str) -> str:
        """Read the next fact."""
        fact = self._read(text)
        self._remember(fact)
        return fact

    def _read(self, text: str) -> str:
        fact = ""
        told = unsigned(text)
        if told and text.startswith(SAME_HEAD) and self._head:
            fact = f"{self._head}{told}" if self._are_calls else f"{self._head}, {told}"
        elif told and text.startswith(SAME_KEYS):
            values = told.split(", ")
            keys = self._keys.get(len(values), [])
            fact = ", ".join(f"{key} {value}" if key else value for key, value in zip(keys, values, strict=False))
        # In a text of somebody else a sign may be anything.
        return fact if fact and is_sentence(fact) else told

    def _remember(self, fact: str) -> None:
        self._head = fact.partition("(" if self._are_calls else ", ")[0]
        pairs = [part.partition(" ") for part in fact.split(", ")]
        self._keys[len(pairs)] = [key if value else "" for key, _, value in pairs]


def _values(fact: str) -> str:
    pairs = (part.partition(" ") for part in fact.split(", "))
    return ", ".join(value or key for key, _, value in pairs)
