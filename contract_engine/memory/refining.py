"""Refining: what a fold has summarized by rule, a language model writes anew from the messages themselves.

Always in the background, seconds after the fold: what the fold wrote stands until then, and for good where the model
fails. A model's version goes on from the newest model's version before it, so the next fold makes up for a failure, and
a text of a text of a text never comes about. It covers what the version before it covers: messages 1 to the watermark.

A model that is away is left alone. One whose answer is turned down is asked without what was noted before, then about
half of the exchanges, down to one; for that one the built-in summarizer writes the notes. So no message can keep a
session from being refined, neither as it was said nor as it was noted.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from contract_engine.memory._effects import Flow, compute, spawn, summarize, write_facts
from contract_engine.memory.exchange import exchange_groups
from contract_engine.memory.folding import Folding
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.models import MODEL, Entry, Origin, Source
from contract_engine.memory.summarizers import Facts, FactsRequest, Rejected, SummaryRequest
from contract_engine.memory.summarizers.merging import merged
from contract_engine.memory.token_counter import TokenCounter

logger = logging.getLogger(__name__)

ROUNDS = 8
"""How often a model's version may find that a fold was faster; each round asks for what that fold has added."""

SPAN = 200
"""Messages read from the log, and given to a model, at once."""

REJECTIONS = 16
"""How often a model that is turned down is asked again in one refinement; to find one exchange of 100 takes eight."""

Progress = Callable[[int, int], object]
"""Is told how many messages are done, of how many."""


@dataclass(slots=True)
class Draft:
    """What a model has written so far of the messages behind a base; kept while folds move the watermark on."""

    epoch: int
    base: int
    reached: int
    segment: str = ""
    model: str | None = None
    prompt_hash: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, facts: Facts) -> None:
        """Note who wrote, and what it cost."""
        self.model, self.prompt_hash = facts.model, facts.prompt_hash
        self.tokens_in += facts.tokens_in
        self.tokens_out += facts.tokens_out

    def goes_on_from(self, source: Source) -> bool:
        """Whether nobody has erased the session, cleared or quarantined the base, or written a newer one."""
        return (self.epoch, self.base) == (source.state.epoch, source.base)


@dataclass(slots=True)
class Pace:
    """What a model is asked at once: less after an answer that was turned down, then more again.

    ``shows_before``: it is shown what was noted before, which may be what leads it astray.
    """

    exchanges: int = SPAN
    shows_before: bool = True
    rejections: int = 0

    @property
    def is_used_up(self) -> bool:
        """Whether the model has been turned down so often that it is not asked again about the same messages."""
        return self.rejections > REJECTIONS

    def first_of(self, span: list[Entry]) -> list[Entry]:
        """Return the messages to ask about next, of those that could be asked about."""
        groups = exchange_groups([entry.message for entry in span])[: self.exchanges]
        self.exchanges = len(groups)
        return span[: groups[-1].stop] if groups else span

    def slows(self, rejected: Rejected, request: FactsRequest) -> bool:
        """Whether to ask less; of messages with nothing worth noting, fewer are not worth it either."""
        self.rejections += 1
        if rejected.reason == "none" or self.is_used_up:
            return False
        if request.before:
            self.shows_before = False
        elif self.exchanges > 1:
            self.exchanges //= 2
        else:
            return False
        return True

    def goes_on(self) -> None:
        """Ask about more exchanges the next time."""
        self.exchanges *= 2


class Refining:
    """Refines the summaries of one tenant's sessions."""

    def __init__(self, counter: TokenCounter, folding: Folding, log: LogFlows) -> None:
        self._count_tokens = counter.count_tokens
        self._folding = folding
        self._log = log
        self._at_work = AtWork()

    def spawn(self, session_id: str) -> Flow[None]:
        """Have :meth:`refine` run in the background."""
        yield from spawn(lambda: self.refine(session_id), f"refinement of session {session_id}", is_slow=True)

    def refine(self, session_id: str) -> Flow[None]:
        """Write the newest model's version; by one flow of this process at a time.

        Of several processes the first to commit wins, and the others find nothing left to do, or less.
        """
        if not self._at_work.begin(session_id):
            return
        is_over = False
        try:
            while not is_over:
                yield from self._refine(session_id)
                is_over = not self._at_work.is_asked_again(session_id)
        finally:
            if not is_over:
                self._at_work.end(session_id)

    def _refine(self, session_id: str) -> Flow[None]:
        draft: Draft | None = None
        for _ in range(ROUNDS):
            source = yield from self._log.read_source(session_id, None)
            if source is None or source.base_last_seq >= source.state.watermark:
                return
            if draft is None or not draft.goes_on_from(source):
                draft = Draft(source.state.epoch, source.base, source.base_last_seq)
            if not (yield from self.write(session_id, source, draft)):
                logger.info("session %s: no facts to use; what the fold wrote stands", session_id)
                return
            if (yield from self.commit(session_id, source, draft)) is not None:
                return
        logger.info("session %s: folds were faster than %d refinements; left for the next", session_id, ROUNDS)

    def write(self, session_id: str, source: Source, draft: Draft, progress: Progress | None = None) -> Flow[bool]:
        """Add to the draft what the model writes of the messages it lacks; False where the model gives nothing to use.

        ``draft`` keeps what it has got by then. The built-in summarizer writes the notes of an exchange that the model
        is turned down on; but of a model that is turned down on everything nothing is used.
        """
        last_seq, pace = source.state.watermark, Pace()
        begun, most = (yield from self.begun(source)), self._folding.text_budget(source.state)
        while draft.reached < last_seq:
            span = whole_groups((yield from self._log.read_span(session_id, draft.reached, last_seq, SPAN)))
            if not span:
                return False  # it is being erased
            span = pace.first_of(span)
            before = (yield from self._merged(begun, draft.segment, most)) if pace.shows_before else ""
            # The first facts may fill the summary; later ones leave room for those.
            room = max(1, most // 2) if begun else most
            request = self._request(span, before, source.state.summary_instructions, room)
            answer = yield from write_facts(request)
            if answer is None:
                return False
            if isinstance(answer, Facts):
                notes = answer.text
                draft.add(answer)
            elif pace.slows(answer, request):
                continue
            elif pace.is_used_up and draft.model is None:
                return False
            else:
                logger.info("session %s: built-in notes of messages %d to %d", session_id, span[0].seq, span[-1].seq)
                notes = yield from summarize(_for_the_built_in(request))
            draft.segment = yield from self._merged(draft.segment, notes, room)
            draft.reached = span[-1].seq
            pace.goes_on()
            if progress is not None:
                progress(draft.reached, last_seq)
        return draft.model is not None and bool(draft.segment.strip())

    def text(self, source: Source, draft: Draft) -> Flow[str]:
        """Return the whole summary that comes of a draft."""
        begun = yield from self.begun(source)
        return (yield from self._merged(begun, draft.segment, self._folding.text_budget(source.state)))

    def commit(self, session_id: str, source: Source, draft: Draft) -> Flow[int | None]:
        """Commit the draft if the session still stands where ``source`` read it; answers the version, None if not."""
        text = yield from self.text(source, draft)
        origin = Origin(
            source.base or None,
            source.base_last_seq + 1,
            draft.model,
            draft.prompt_hash,
            draft.tokens_in,
            draft.tokens_out,
        )
        done = yield from self._folding.commit(
            session_id,
            source.state,
            last_seq=draft.reached,
            text=text,
            method=MODEL,
            origin=origin,
            segment=draft.segment,
        )
        return None if done is None else done.summary_version

    def begun(self, source: Source) -> Flow[str]:
        """Return the text to go on from: that of the base, and what callers have added since."""
        text = source.base_text
        for _, added in source.added:
            text = yield from self._merged(text, added, self._folding.text_budget(source.state))
        return text

    def _merged(self, text: str, segment: str, max_tokens: int) -> Flow[str]:
        if not segment:
            return text
        return (
            yield from compute(partial(merged, text, segment, max_tokens=max_tokens, count_tokens=self._count_tokens))
        )

    def _request(self, span: Sequence[Entry], before: str, instructions: str, max_tokens: int) -> FactsRequest:
        messages: list[Mapping[str, object]] = [entry.message for entry in span]
        return FactsRequest(
            messages=messages,
            times=[entry.at_ms / 1000 for entry in span],
            before=before,
            instructions=instructions,
            max_tokens=max_tokens,
            count_tokens=self._count_tokens,
        )


def _for_the_built_in(request: FactsRequest) -> SummaryRequest:
    return SummaryRequest(
        previous="",
        messages=request.messages,
        times=request.times,
        max_tokens=request.max_tokens,
        count_tokens=request.count_tokens,
        instructions=request.instructions,
    )


def whole_groups(span: list[Entry]) -> list[Entry]:
    """Return messages that were read as one span without the beginning of an exchange that may go on behind it."""
    if len(span) < SPAN:
        return span
    last = exchange_groups([entry.message for entry in span])[-1]
    return (span[: last.start] or span) if last.is_open else span


class AtWork:
    """The sessions that a flow of this process is refining; what is asked for meanwhile is done by that flow."""

    def __init__(self) -> None:
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._asked: dict[str, bool] = {}

    def begin(self, session_id: str) -> bool:
        """Answer True to the one that is to do it."""
        if self._pid != os.getpid():  # the threads of the parent do not exist in a child
            self._begin_afresh()
        with self._lock:
            is_free = session_id not in self._asked
            self._asked[session_id] = not is_free
        return is_free

    def is_asked_again(self, session_id: str) -> bool:
        """Whether to do it once more; where not, another may begin."""
        with self._lock:
            is_asked = self._asked.pop(session_id)
            if is_asked:
                self._asked[session_id] = False
        return is_asked

    def end(self, session_id: str) -> None:
        """Let another one begin, since this one has failed."""
        with self._lock:
            self._asked.pop(session_id, None)
