"""The search for phrases in the log: what the notes of summaries were shortened from, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from contract_engine.memory._effects import Flow, compute
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.refining import SPAN, whole_groups
from contract_engine.memory.summarizers.phrases import Phrases, ReadableText

NEWEST = 2**63 - 1
"""A number that no message has."""


def with_phrases(session_id: str, texts: Sequence[str], *, log: LogFlows | None) -> Flow[list[ReadableText]]:
    """Return texts of a session's summaries with the phrases in place of the notes.

    The log is read from its beginning until all are found. Without one every note stays as it is.
    """
    phrases = yield from compute(partial(Phrases, texts))
    reached = 0
    while log is not None and not phrases.are_found:
        span = whole_groups((yield from log.read_span(session_id, reached, NEWEST, SPAN)))
        if not span:
            break
        messages, times = [entry.message for entry in span], [entry.at_ms / 1000 for entry in span]
        yield from compute(partial(phrases.look_through, messages, times))
        reached = span[-1].seq
    return (yield from compute(lambda: [phrases.readable(text) for text in texts]))
