"""Rebuilding: a summary is written again from the messages, because it is poisoned, or because somebody wants another.

The messages are in the log, so nothing is lost by it. The new version takes the place of the current one by the same
compare-and-set as a fold, and covers the same messages, or more where folds were faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from contract_engine.memory._effects import Flow, summarize
from contract_engine.memory.errors import ConfigurationError, ContentionError, InvalidInputError
from contract_engine.memory.exchange import exchange_groups
from contract_engine.memory.folding import ATTEMPTS
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.models import MODEL, REBUILT, Entry, Origin, Source
from contract_engine.memory.refining import ROUNDS, SPAN, Draft, Progress, Refining, whole_groups
from contract_engine.memory.sessions import Sessions
from contract_engine.memory.summarizers import SummaryRequest
from contract_engine.memory.token_counter import TokenCounter

FOLD_TOKENS = 2000
"""Messages summarized at once: about what a fold takes."""


@dataclass(slots=True)
class _Rolled:
    """A summary that the built-in summarizer is writing fold by fold; kept while folds move the watermark on."""

    epoch: int
    base: int
    added: tuple[tuple[int, str], ...]
    instructions: str
    reached: int
    text: str
    tokens_in: int = 0

    def goes_on_from(self, source: Source) -> bool:
        state = source.state
        now = (state.epoch, source.base, source.added, state.summary_instructions)
        return (self.epoch, self.base, self.added, self.instructions) == now


class Rebuilding:
    """Writes the summaries of one tenant's sessions again. ``log`` is None in ephemeral mode: then nothing can be."""

    def __init__(self, counter: TokenCounter, sessions: Sessions, *, log: LogFlows | None) -> None:
        self._count_tokens = counter.count_tokens
        self._sessions = sessions
        self._log = log

    def _needed(self) -> tuple[LogFlows, Refining]:
        if self._log is None or self._sessions.refining is None:
            raise ConfigurationError("database_url", "summaries are rebuilt from the log; set DATABASE_URL")
        return self._log, self._sessions.refining

    def quarantine(self, session_id: str, version: int, *, dry_run: bool) -> Flow[dict[str, Any]]:
        """Mark a version and all that derives from it; where the current one does, put a clean one in its place.

        After a crash between the two, and after any error, the call is to be sent again.
        """
        log, _ = self._needed()
        rolled: _Rolled | None = None
        for _ in range(ATTEMPTS):
            derived = yield from log.quarantine(session_id, version, dry_run=dry_run)
            if derived is None:
                raise InvalidInputError("version", f"session {session_id!r} has no summary version {version}")
            answer: dict[str, Any] = {
                "versions": list(derived.versions),
                "is_current": derived.is_current,
                "parent": (derived.ancestor or None) if derived.is_current else None,
                "rebuilt": None,
                "dry_run": dry_run,
            }
            if dry_run:
                return answer
            if not derived.is_current:
                yield from self._sessions.telling.distrust(session_id)
                return answer
            source = yield from log.read_source(session_id, derived.ancestor)
            if source is None or source.state.revision != derived.revision:
                continue  # a fold was faster; what it wrote derives from what is marked
            rolled = yield from self._roll(session_id, log, source, rolled, None)
            done = yield from self._commit(session_id, source, rolled)
            if done is not None:
                return answer | {"rebuilt": done}
        raise ContentionError(session_id, ATTEMPTS)

    def resummarize(
        self, session_id: str, *, use_model: bool, dry_run: bool, progress: Progress | None
    ) -> Flow[dict[str, Any]]:
        """Write the summary of messages 1 to the watermark from the messages alone, and what callers have added."""
        log, refining = self._needed()
        if use_model and not self._sessions.refines:
            raise ConfigurationError("facts_writer", "no model is configured; give the manager a facts_writer")
        rolled: _Rolled | None = None
        draft: Draft | None = None
        attempts = ROUNDS if use_model else ATTEMPTS
        for _ in range(attempts):
            source = yield from log.read_source(session_id, 0)
            if source is None or source.state.watermark == 0:
                return _rewritten(None, "nothing is folded yet")
            if use_model:
                if draft is None or not draft.goes_on_from(source):
                    draft = Draft(source.state.epoch, source.base, source.base_last_seq)
                if not (yield from refining.write(session_id, source, draft, progress)):
                    return _rewritten(None, "the model failed, or nothing it answered can be used")
                text = yield from refining.text(source, draft)
                done = None if dry_run else (yield from refining.commit(session_id, source, draft))
                made = _made(MODEL, draft.reached, draft.tokens_in) | {
                    "model": draft.model,
                    "tokens_out": draft.tokens_out,
                }
            else:
                rolled = yield from self._roll(session_id, log, source, rolled, progress)
                text = rolled.text
                done = None if dry_run else (yield from self._commit(session_id, source, rolled))
                made = _made(REBUILT, rolled.reached, rolled.tokens_in)
            if dry_run or done is not None:
                told = {"text": text, "tokens": self._count_tokens(text), "dry_run": dry_run}
                return _rewritten(done, None) | made | told
        raise ContentionError(session_id, attempts)

    def _roll(
        self,
        session_id: str,
        log: LogFlows,
        source: Source,
        rolled: _Rolled | None,
        progress: Progress | None,
    ) -> Flow[_Rolled]:
        """Bring what was rolled up to the watermark, or begin it."""
        if rolled is None or not rolled.goes_on_from(source):
            text = "\n".join(filter(None, (source.base_text, *(added for _, added in source.added))))
            state = source.state
            rolled = _Rolled(
                state.epoch, source.base, source.added, state.summary_instructions, source.base_last_seq, text
            )
            rolled.tokens_in = self._count_tokens(text)
        last_seq = source.state.watermark
        while rolled.reached < last_seq:
            span = whole_groups((yield from log.read_span(session_id, rolled.reached, last_seq, SPAN)))
            if not span:
                break  # it is being erased, and nothing will be committed
            for folded in _folds(span):
                rolled.text = yield from self._summarized(source, rolled.text, folded)
                rolled.reached = folded[-1].seq
                rolled.tokens_in += sum(entry.tokens for entry in folded)
            if progress is not None:
                progress(rolled.reached, last_seq)
        if self._count_tokens(rolled.text) > self._sessions.folding.text_budget(source.state):
            # There was nothing to add to the text, or messages have been pinned since.
            rolled.text = yield from self._summarized(source, rolled.text, [])
        return rolled

    def _summarized(self, source: Source, text: str, folded: list[Entry]) -> Flow[str]:
        return (
            yield from summarize(
                SummaryRequest(
                    previous=text,
                    messages=[entry.message for entry in folded],
                    times=[entry.at_ms / 1000 for entry in folded],
                    max_tokens=self._sessions.folding.text_budget(source.state),
                    count_tokens=self._count_tokens,
                    instructions=source.state.summary_instructions,
                )
            )
        )

    def _commit(self, session_id: str, source: Source, rolled: _Rolled) -> Flow[int | None]:
        if rolled.reached != source.state.watermark:
            return None
        done = yield from self._sessions.folding.commit(
            session_id,
            source.state,
            last_seq=rolled.reached,
            text=rolled.text,
            method=REBUILT,
            origin=Origin(source.base or None, source.base_last_seq + 1, tokens_in=rolled.tokens_in),
        )
        return None if done is None else done.summary_version


def _made(method: str, last_seq: int, tokens_in: int) -> dict[str, Any]:
    return {"method": method, "last_seq": last_seq, "tokens_in": tokens_in}


def _rewritten(version: int | None, reason: str | None) -> dict[str, Any]:
    names = ("method", "model", "last_seq", "tokens_in", "tokens_out", "text", "tokens")
    return {"version": version, "reason": reason, **dict.fromkeys(names), "dry_run": False}


def _folds(span: list[Entry]) -> Iterator[list[Entry]]:
    """Cut messages into what is summarized at once: whole exchanges, of ``FOLD_TOKENS`` or little more."""
    start, tokens = 0, 0
    for group in exchange_groups([entry.message for entry in span]):
        tokens += sum(entry.tokens for entry in span[group.start : group.stop])
        if tokens >= FOLD_TOKENS:
            yield span[start : group.stop]
            start, tokens = group.stop, 0
    if start < len(span):
        yield span[start:]
