"""Refining: what a fold has summarized by rule, a language model writes anew from the messages themselves.

Always in the background, seconds after the fold: what the fold wrote stands until then, and for good where the model
fails. A model's version goes on from the newest model's version before it, so the next fold makes up for a failure, and
a text of a text of a text never comes about. It covers what the version before it covers: messages 1 to the watermark.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from contract_engine.memory._effects import Flow, compute, spawn, write_facts
from contract_engine.memory.exchange import exchange_groups
from contract_engine.memory.folding import Folding
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.models import MODEL, Entry, Origin, Source
from contract_engine.memory.summarizers import FactsRequest
from contract_engine.memory.summarizers.merging import merged
from contract_engine.memory.token_counter import TokenCounter

logger = logging.getLogger(__name__)

ROUNDS = 8
"""How often a model's version may find that a fold was faster; each round asks for what that fold has added."""

SPAN = 200
"""Messages read from the log, and given to a model, at once."""

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

    def goes_on_from(self, source: Source) -> bool:
        """Whether nobody has erased the session, cleared or quarantined the base, or written a newer one."""
        return (self.epoch, self.base) == (source.state.epoch, source.base)


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

        ``draft`` keeps what it has got by then.
        """
        last_seq = source.state.watermark
        begun, most = (yield from self.begun(source)), self._folding.text_budget(source.state)
        while draft.reached < last_seq:
            span = whole_groups((yield from self._log.read_span(session_id, draft.reached, last_seq, SPAN)))
            if not span:
                return False  # it is being erased
            before = yield from self._merged(begun, draft.segment, most)
            # The first facts may fill the summary; later ones leave room for those.
            room = max(1, most // 2) if begun else most
            facts = yield from write_facts(self._request(span, before, source.state.summary_instructions, room))
            if facts is None:
                return False
            draft.segment = yield from self._merged(draft.segment, facts.text, room)
            draft.reached = span[-1].seq
            draft.model, draft.prompt_hash = facts.model, facts.prompt_hash
            draft.tokens_in += facts.tokens_in
            draft.tokens_out += facts.tokens_out
            if progress is not None:
                progress(draft.reached, last_seq)
        return bool(draft.segment.strip())

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
