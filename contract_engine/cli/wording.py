"""Numbers of things in words."""

from __future__ import annotations

_SINGULAR = {"are": "is", "were": "was"}


def counted(number: int, noun: str, verb: str = "") -> str:
    """Return a number of things, and what they do: ``1 session``, ``2,000 sessions``, ``1 session waits``."""
    if number != 1:
        return f"{number:,} {noun}s {verb}".rstrip()
    return f"1 {noun} {_SINGULAR.get(verb, verb and verb + 's')}".rstrip()
