"""What a summarizer is asked, and what it is: the built-in one, and one that asks a language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRequest:
    """One fold: ``previous`` and ``messages`` are to become one text of at most ``max_tokens``.

    ``previous`` is the text of the summary so far, empty at first. ``times`` are the unix seconds of each message, or
    empty; a message's own ``timestamp`` comes before them. ``instructions`` are the session's own wishes, empty where
    it has none.
    """

    previous: str
    messages: Sequence[Mapping[str, object]]
    max_tokens: int
    count_tokens: Callable[[str], int]
    times: Sequence[float] = ()
    instructions: str = ""


class Summarizer(Protocol):
    """Makes the next summary of a session out of the previous one and the messages being folded."""

    def summarize(self, request: SummaryRequest) -> str:
        """Return the text of the next summary; an empty text means there is nothing worth keeping."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FactsRequest:
    """What a language model is asked: the facts of ``messages`` as one text of at most ``max_tokens``.

    ``before`` is what the summary says of what came earlier: to understand them by, not to be told again.
    ``instructions`` are the session's own wishes, empty where it has none. ``times`` are the unix seconds of each
    message.
    """

    messages: Sequence[Mapping[str, object]]
    times: Sequence[float]
    before: str
    instructions: str
    max_tokens: int
    count_tokens: Callable[[str], int]


class Facts(NamedTuple):
    """What a model wrote and the gate let through; ``tokens_in`` and ``tokens_out`` are what the model was charged."""

    text: str
    model: str
    prompt_hash: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """What a model answered these messages may not be used; as false as None, which is no answer.

    ``reason`` is one word; ``none``: the model found nothing to note; ``content``: its server did not take them.
    """

    reason: str

    def __bool__(self) -> bool:
        return False


class FactsWriter(Protocol):
    """Has a language model write the facts of messages."""

    async def write(self, request: FactsRequest) -> Facts | Rejected | None:
        """Return what may become part of a summary.

        :class:`Rejected` has the model asked again about fewer of the messages, at once; None, where it is away, has it
        left alone until the next fold.
        """
        ...
