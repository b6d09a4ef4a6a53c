"""Folding: the oldest messages become summary, and nothing is in both parts or in neither.

The commit is a compare-and-set on the session's revision: in the log where there is one, else in Redis. Whoever loses
the race has changed nothing. With a log, a crash between its commit and Redis leaves a copy in Redis that is older, but
whole, and that the next append finds out of date.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence

import msgspec

from contract_engine.memory._effects import Flow, pause, spawn, summarize
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import ContentionError, MemoryServiceError
from contract_engine.memory.exchange import plan_fold
from contract_engine.memory.hooks import FoldEnded, SummaryWritten, observers
from contract_engine.memory.mending import mend
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.models import EXTRACTIVE, Message, Origin, Outgoing, SessionState, Summary
from contract_engine.memory.session_cache import REDIS_TROUBLE, SessionCache, new_ticket
from contract_engine.memory.summarizers import SummaryRequest
from contract_engine.memory.summary_entries import history_entry
from contract_engine.memory.token_counter import TokenCounter

logger = logging.getLogger(__name__)

ATTEMPTS = 400
"""How often a call goes round when others keep changing its session; in each round somebody makes progress."""


PAUSE_SECONDS = 0.005
"""How long a writer waits for the room that another one is making: a fold takes about this long."""


class Folding:
    """Folds the sessions of one tenant. ``log`` is None in ephemeral mode.

    ``after_fold`` is run after every fold that was committed and must not take time: it spawns what does.
    """

    def __init__(
        self,
        config: MemoryConfig,
        counter: TokenCounter,
        cache: SessionCache,
        *,
        log: LogFlows | None,
        distrust: Callable[[str], Flow[None]],
        after_fold: Callable[[str], Flow[None]] | None = None,
    ) -> None:
        self.summary_budget = config.summary_budget
        self._counter = counter
        self._cache = cache
        self._log = log
        self._distrust = distrust
        self._after_fold = after_fold

    def text_budget(self, state: SessionState) -> int:
        """Return the tokens that the text for messages 1 to the watermark may have beside the pinned ones of them."""
        return self._room(state.watermark, state.summary.pinned_tokens)

    def _room(self, last_seq: int, pinned_tokens: int) -> int:
        """Return what is left of the budget; pinned messages get half of it, and more only where it was lowered."""
        budget = self.summary_budget(last_seq)
        return max(1, budget // 2, budget - pinned_tokens)

    def read_truth(self, session_id: str) -> Flow[SessionState | None]:
        """Read the session where it cannot be out of date."""
        if self._log is not None:
            return (yield from self._log.read_state(session_id))
        return (yield from self._cache.read_alone(session_id))

    def fold_when_due(self, session_id: str, lease_token: int = 0) -> Flow[None]:
        """Fold in the background and give back the lease, if one is held; one that is not given back expires."""
        try:
            # What waits to be logged goes before what a writer may just have logged: that must not be folded yet.
            waits = self._log is not None and (yield from self._cache.has_unlogged(session_id))
            state = None if waits else (yield from self.read_truth(session_id))
            if state is not None:
                yield from self.fold(session_id, state, hard=state.exceeds_caps)
        except MemoryServiceError:
            yield from self._release(session_id, lease_token)
            raise
        yield from self._release(session_id, lease_token)

    def spawn(self, session_id: str, lease_token: int) -> Flow[None]:
        """Have :meth:`fold_when_due` run in the background."""
        yield from spawn(lambda: self.fold_when_due(session_id, lease_token), f"fold of session {session_id}")

    def _release(self, session_id: str, lease_token: int) -> Flow[None]:
        if lease_token:
            yield from self._cache.release(session_id, lease_token)

    def make_room(self, session_id: str, incoming: Sequence[Outgoing], *, is_patient: bool) -> Flow[bool]:
        """Fold in Redis for what is about to come; False where the buffer is empty, so that room cannot be the matter.

        One caller folds and the others wait a moment (``is_patient``): they need the room, not the work.
        """
        token = new_ticket()
        if not (yield from self._cache.lease(session_id, token)) and is_patient:
            yield from pause(PAUSE_SECONDS * random.uniform(0.5, 1.5))
            return True
        state = yield from self._cache.read_alone(session_id)
        has_rows = state is not None and bool(state.rows)
        if state is not None and has_rows:
            yield from self.fold(session_id, state, incoming=incoming, hard=True)
        yield from self._cache.release(session_id, token)
        return has_rows

    def read_within_caps(self, session_id: str) -> Flow[SessionState | None]:
        """Read the session where it cannot be out of date, folding first what exceeds its caps."""
        for _ in range(ATTEMPTS):
            state = yield from self.read_truth(session_id)
            if state is None or not state.exceeds_caps:
                return state
            # The reader is about to put the whole session in place: telling Redis of this step alone would be in vain.
            folded = yield from self.fold(session_id, state, hard=True, update_cache=self._log is None)
            if folded is not None and not folded.exceeds_caps:
                return folded  # not read again: writers may be faster than a fold
        raise ContentionError(session_id, ATTEMPTS)

    def added_to(self, messages: Sequence[Message]) -> tuple[int, int]:
        """Return how many messages and tokens a context of these shows besides them."""
        mended = mend(messages)
        if mended is None:
            return 0, 0
        return len(mended.added), self._counter.count_batch_tokens(mended.messages[at] for at in mended.added)

    def fold(
        self,
        session_id: str,
        state: SessionState,
        *,
        hard: bool,
        incoming: Sequence[Outgoing] = (),
        update_cache: bool = True,
        is_kept: bool = True,
    ) -> Flow[SessionState | None]:
        """Fold what the plan says, and answer the session as it was read and is folded now.

        None where the session has changed meanwhile by more than an append, or there was nothing to fold.

        ``incoming`` is about to be appended and needs room. ``hard``: the caps come before everything else.
        ``is_kept``: unless it is, nothing is written, and the answer is what the session would be.
        """
        limits = state.limits
        messages = [*state.messages, *(message.message for message in incoming)]
        count = plan_fold(
            messages,
            [*(row[1] for row in state.rows), *(message.tokens for message in incoming)],
            target_tokens=limits.summary_trigger_tokens // 2,
            target_messages=limits.max_buffer_messages // 2,
            cap_tokens=limits.max_buffer_tokens,
            cap_messages=limits.max_buffer_messages,
            hard=hard,
            added=lambda start: self.added_to(messages[start:]),
        )
        folded = state.entries[:count]
        if not folded:
            return None
        pinned = sum(row[1] for row in state.rows_pinned(folded[-1].seq)) if state.summary.pinned_ids else 0
        text = yield from summarize(
            SummaryRequest(
                previous=state.summary.text,
                messages=[entry.message for entry in folded],
                times=[entry.at_ms / 1000 for entry in folded],
                max_tokens=self._room(folded[-1].seq, pinned),
                count_tokens=self._counter.count_tokens,
                instructions=state.summary_instructions,
            )
        )
        if not is_kept:
            tokens = self._counter.count_tokens(text)
            summary = Summary(state.summary_version, folded[-1].seq, tokens, self._cache.now_ms(), text)
            summary = _with_pins(state, summary)
            return _summarized(state, summary, state.revision)
        done = yield from self.commit(
            session_id,
            state,
            last_seq=folded[-1].seq,
            text=text,
            method=EXTRACTIVE,
            origin=state.origin(tokens_in=state.summary.tokens + sum(entry.tokens for entry in folded)),
            update_cache=update_cache,
        )
        if done is not None:
            if observers.is_active:
                before = state.summary.tokens + sum(entry.tokens for entry in folded)
                observers.tell(FoldEnded(len(folded), before, done.summary.tokens, bool(state.summary.text)))
            if self._after_fold is not None:
                yield from self._after_fold(session_id)
        return done

    def commit(
        self,
        session_id: str,
        state: SessionState,
        *,
        last_seq: int,
        text: str,
        method: str,
        origin: Origin | None = None,
        segment: str | None = None,
        metadata: Mapping[str, object] | None = None,
        update_cache: bool = True,
    ) -> Flow[SessionState | None]:
        """Make ``text`` the summary of messages 1 to ``last_seq`` if the session still stands where ``state`` read it.

        Answers ``state`` with that summary; None where it does not: then nothing was written. ``origin`` is given where
        the text does not go on from that of the current version.
        """
        tokens = self._counter.count_tokens(text)
        version = state.summary_version + 1
        origin = origin or state.origin()
        if self._log is None:
            summary = _with_pins(state, Summary(version, last_seq, tokens, self._cache.now_ms(), text))
            entry = history_entry(summary, origin, method, segment, metadata)
            done = yield from self._cache.commit(
                session_id, state, summary, new_revision=state.revision, history_entry=entry
            )
            if done and observers.is_active:
                observers.tell(SummaryWritten(method))
            return _summarized(state, summary, state.revision) if done else None
        committed = yield from self._log.commit_summary(
            session_id,
            state,
            last_seq=last_seq,
            text=text,
            tokens=tokens,
            method=method,
            origin=origin,
            segment=segment,
            metadata=metadata,
        )
        if committed is None:
            return None
        if observers.is_active:
            observers.tell(SummaryWritten(method))
        summary, revision = _with_pins(state, committed[0]), committed[1]
        if update_cache:
            try:
                yield from self._cache.commit(session_id, state, summary, new_revision=revision, history_entry=b"")
            except REDIS_TROUBLE as exc:
                logger.info("session %s: summary %d is in the log, Redis not told: %s", session_id, version, exc)
                yield from self._distrust(session_id)
        return _summarized(state, summary, revision)


def _with_pins(state: SessionState, summary: Summary) -> Summary:
    """Return the summary with the pinned messages that it covers now, and the session's wishes as they were read."""
    old = state.summary
    if old.is_plain:
        return summary
    rows = state.rows_pinned(summary.last_seq)
    return summary._replace(pinned_ids=old.pinned_ids, pinned_rows=rows, instructions=old.instructions)


def _summarized(state: SessionState, summary: Summary, revision: int) -> SessionState:
    """Return the session with what the summary covers in its place."""
    rows = [row for row in state.rows if row[0] > summary.last_seq]
    return msgspec.structs.replace(
        state,
        revision=revision,
        watermark=summary.last_seq,
        summary_version=summary.version,
        summary=summary,
        rows=rows,
        buffer_tokens=sum(row[1] for row in rows),
    )
