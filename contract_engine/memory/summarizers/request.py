"""What a summarizer is asked, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRequest:
    """One fold: ``previous`` and ``messages`` are to become one text of at most ``max_tokens``.

    ``previous`` is the text of the summary so far, empty at first. ``times`` are the unix seconds of each message, or
    empty; a message's own ``timestamp`` comes before them.
    """

    previous: str
    messages: Sequence[Mapping[str, object]]
    max_tokens: int
    count_tokens: Callable[[str], int]
    times: Sequence[float] = ()


class Summarizer(Protocol):
    """Makes the next summary of a session out of the previous one and the messages being folded."""

    def summarize(self, request: SummaryRequest) -> str:
        """Return the text of the next summary; an empty text means there is nothing worth keeping."""
        ...
