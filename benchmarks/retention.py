"""The built-in summarizer in the shape a retention score calls: ``make quality EVAL=DIR``.

DIR holds a ``score.py`` that folds conversations with ``retention:summarize`` and measures, without a model, what can
be recovered from summary and buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contract_engine.memory import TokenCounter
from contract_engine.memory.summarizers import ExtractiveSummarizer, SummaryRequest

_counter = TokenCounter()
_summarizer = ExtractiveSummarizer(readable=False)


def summarize(previous: str | None, messages: Sequence[Mapping[str, object]], max_tokens: int) -> str:
    """Return the next summary, as a session's folds make it."""
    request = SummaryRequest(
        previous=previous or "", messages=messages, max_tokens=max_tokens, count_tokens=_counter.count_tokens
    )
    return _summarizer.summarize(request)
