"""Globs over the names of records, as Redis reads them: ``*``, ``?``, ``[a-z]``, ``[^a]`` and the backslash."""

from __future__ import annotations

import re
from collections.abc import Callable

from contract_engine.memory.errors import InvalidInputError
from contract_engine.memory.keys import MAX_SESSION_ID_CHARS
from contract_engine.working_memory.models import ConversationMemoryType
from contract_engine.working_memory.records import RecordKey

MAX_PATTERN_CHARS = 1024

_PIECE = re.compile(
    r"\\(?P<escaped>.)|(?P<stars>\*+)|(?P<any>\?)|\[(?P<no>\^?)(?P<set>(?:\\.|[^\]\\])*)\]?|(?P<plain>.)", re.DOTALL
)
_MEMBER = re.compile(r"\\?(?P<first>.)(?:-\\?(?P<last>.))?", re.DOTALL)


def matcher(pattern: str) -> Callable[[str], object]:
    """Return what tells whether a name matches; its time grows with the length of the name, whatever the pattern."""
    chunks = [""]
    for piece in _PIECE.finditer(pattern):
        if piece["stars"]:
            chunks.append("")
        else:
            chunks[-1] += _expression(piece)
    first, *rest = chunks
    if not rest:
        return re.compile(first, re.DOTALL).fullmatch
    *middle, last = rest
    # An atomic group does not give back what it has found, so nothing is tried twice. The first place where a chunk
    # fits is as good as any later one.
    found = "".join(f"(?>.*?{chunk})" for chunk in middle if chunk)
    return re.compile(f"{first}{found}.*{last}", re.DOTALL).fullmatch


def widened(pattern: str) -> str:
    """Return a pattern for who matches bytes, and no fewer names: ``?`` and a set are one byte there, and one character
    here. What it brings is to be matched again.
    """
    wide = _PIECE.sub(lambda piece: piece[0] if piece["escaped"] or piece["plain"] else "*", pattern)
    return re.sub(r"\\.|\*+", lambda found: "*" if found[0][0] == "*" else found[0], wide, flags=re.DOTALL)


def literal_head(pattern: str) -> str:
    """Return what every matching name begins with."""
    return re.split(r"[*?\[\\]", pattern, maxsplit=1)[0]


def check_pattern(pattern: object, prefix: str, *, everything: bool) -> str:
    """Return a pattern; :class:`InvalidInputError` where it may match every name and that was not asked for."""
    if not isinstance(pattern, str) or not pattern:
        raise InvalidInputError("pattern", "expected a text that is not empty")
    if len(pattern) > MAX_PATTERN_CHARS:
        raise InvalidInputError("pattern", f"{len(pattern):,} characters, at most {MAX_PATTERN_CHARS:,}")
    if any(ch < " " or "\ud800" <= ch <= "\udfff" for ch in pattern):
        raise InvalidInputError("pattern", "control characters and lone surrogates stand in no key")
    if not everything and _matches_everything(pattern, prefix):
        hint = f"name a type or a conversation ({prefix}:*:some-id), or say everything=True"
        raise InvalidInputError("pattern", f"{pattern!r} may match every conversation; {hint}")
    return pattern


def _matches_everything(pattern: str, prefix: str) -> bool:
    """Whether it matches, in every type, a conversation that it cannot mean: one without any character in use.

    A set is as good as any character here: nobody knows which of them the conversations have.
    """
    matches = matcher(_PIECE.sub(lambda piece: piece[0] if piece["set"] is None else "?", pattern))
    return any(
        all(matches(RecordKey.under(prefix, kind, "\ue0ff" * length).name) for kind in ConversationMemoryType)
        for length in range(1, MAX_SESSION_ID_CHARS + 1)
    )


def _expression(piece: re.Match[str]) -> str:
    if piece["any"]:
        return "."
    if piece["set"] is None:
        return re.escape(piece["escaped"] or piece["plain"])
    members = ""
    for member in _MEMBER.finditer(piece["set"]):
        first, last = sorted((member["first"], member["last"] or member["first"]))
        members += f"{re.escape(first)}-{re.escape(last)}"
    if not members:  # `[]` is no character, and `[^]` any
        return "." if piece["no"] else "(?!)"
    return f"[{piece['no']}{members}]"
