"""Recall: the messages that a summary covers, found again by what they say.

A message can be searched once it is folded, when a flow in the background writes what it is found by. That is no part
of any promise: where it fails or has not come to it, whoever searches first writes what is missing.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from contract_engine.memory._effects import Flow, query, spawn
from contract_engine.memory._log_recall import (
    COMMON,
    FETCH,
    INDEX,
    MAX_FREQUENCY,
    SEARCH,
    UNINDEXED,
    candidates,
    search_words,
    vector_text,
)
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import ContentionError, CorruptDataError, MemoryServiceError
from contract_engine.memory.message_log import NO_LIMIT, LogFlows
from contract_engine.memory.models import Message, SessionState, iso_time
from contract_engine.memory.ranking import (
    Match,
    best_first,
    questions_of,
    scores,
    with_neighbours,
    within_budget,
)
from contract_engine.memory.serializer import decode_value
from contract_engine.memory.terms import ASKS, message_terms, query_terms

logger = logging.getLogger(__name__)

BATCH = 50
"""Messages indexed by one statement; making their terms takes some 10 ms of processor time."""
MOST_BATCHES_OF_A_CONTEXT = 20
"""What a context waits for where messages have not been indexed; of a session that lacks more, the background does it.
"""
MOST_RECALLED = 100
"""Messages that one context recalls at most."""
MOST_UNFOLDED = 1000
"""How many of the messages that are not folded yet a search looks through: the newest."""
TOKENS_OF_A_CANDIDATE = 20
"""How much of a budget one candidate is expected to fill, where there are many to choose from."""
SAMPLE_FROM = 1000
SAMPLE_SIZE = 100
COMMON_SHARE = 0.15
"""In a session of so many messages a sample tells which terms are common: the name of who says every second message
weighs next to nothing, and would have half of the session read for it. It serves until there are as many more."""
MOST_COMMON = 200
"""So many terms are common at most: where each message repeats the form of the last, nearly all of them would be."""
MOST_SAMPLES = 1000
"""The common terms of so many sessions are kept, of those that were asked last."""
ATTEMPTS = 10
"""How often a search begins anew because the session was erased and begun again meanwhile."""


class Recalled(NamedTuple):
    """What a context recalls: ``{"seq", "at", "message"}`` in order of seq, and their tokens."""

    messages: list[dict[str, Any]]
    tokens: int
    is_available: bool


NOT_AVAILABLE = Recalled([], 0, False)


def most_candidates(max_tokens: int) -> int:
    """Return how many messages to read for a budget: it may be filled by short ones."""
    return min(MOST_RECALLED, max(10, max_tokens // 8))


class _Found(NamedTuple):
    """The messages of one life of a session that have a term asked for, and what they are compared with."""

    epoch: int
    is_indexed: bool
    candidates: Mapping[int, Match]
    searched: int
    total_length: int
    common: Mapping[str, float]


class _Row(NamedTuple):
    tokens: int
    at_ms: int
    body: bytes

    def told(self, seq: int) -> dict[str, Any]:
        return _told(seq, self.at_ms, decode_value(self.body))


class Recall:
    """Searches the sessions of one tenant. Arguments have been checked by the caller."""

    def __init__(self, config: MemoryConfig, log: LogFlows) -> None:
        self._tenant = config.tenant
        self._log = log
        self._shares: OrderedDict[tuple[str, int, int], Mapping[str, float]] = OrderedDict()

    def _key(self, session_id: str) -> dict[str, str]:
        return {"of_tenant": self._tenant, "of_session": session_id}

    def index(self, session_id: str, *, most_batches: int = NO_LIMIT) -> Flow[None]:
        """Make every folded message searchable, or the oldest that are not, up to so many batches of them.

        Each batch is one transaction of its own. Two flows at the same session do not harm each other.
        """
        for _ in range(most_batches):
            rows = yield from query(UNINDEXED, {**self._key(session_id), "count": BATCH})
            if not rows:
                return
            epoch, revision, after, up_to = rows[0][:4]
            if after >= up_to:
                return
            indexed = [(seq, _terms(body, at_ms)) for _, _, _, _, seq, at_ms, body in rows if seq is not None]
            yield from query(
                INDEX,
                {
                    **self._key(session_id),
                    "epoch": epoch,
                    "revision": revision,
                    "after": after,
                    "up_to": up_to,
                    "seqs": [seq for seq, _ in indexed],
                    "lengths": [len(terms) for _, terms in indexed],
                    "terms": [vector_text(terms) for _, terms in indexed],
                },
            )

    def index_folded(self, session_id: str) -> Flow[None]:
        """Make what was just folded searchable; a failure is logged, and is nobody else's."""
        try:
            yield from self.index(session_id)
        except MemoryServiceError as exc:
            logger.warning("session %s: what was folded is indexed later: %s", session_id, exc)

    def spawn_index(self, session_id: str) -> Flow[None]:
        """Have :meth:`index_folded` run in the background."""
        yield from spawn(lambda: self.index_folded(session_id), f"index of session {session_id}")

    def search(self, session_id: str, question: str, limit: int) -> Flow[list[dict[str, Any]]]:
        """Find the messages with words of the question, best first: ``{"seq", "at", "message", "score"}``."""
        terms = query_terms(question)
        for _ in range(ATTEMPTS if terms else 0):
            state = yield from self._log.read_state(session_id)
            if state is None:
                return []
            found = yield from self._find(session_id, state, terms, least=limit)
            if not found.is_indexed:
                yield from self.index(session_id)
                found = yield from self._find(session_id, state, terms, least=limit)
            if found.epoch != state.epoch:
                continue
            entries = {entry.seq: entry for entry in state.entries[-MOST_UNFOLDED:]}
            unfolded = {seq: _match(entry.message, entry.at_ms) for seq, entry in entries.items()}
            scored = scores(
                terms,
                {**found.candidates, **unfolded},
                count=found.searched + len(unfolded),
                total_length=found.total_length + sum(match.length for match in unfolded.values()),
                common=found.common,
            )
            best = best_first(scored, limit)
            rows = yield from self._fetch(session_id, found.epoch, [seq for seq in best if seq not in entries])
            told = {seq: row.told(seq) for seq, row in rows.items()}
            told |= {seq: _told(seq, entry.at_ms, entry.message) for seq, entry in entries.items()}
            if all(seq in told for seq in best):
                return [told[seq] | {"score": scored[seq]} for seq in best]
        if not terms:
            return []
        raise ContentionError(session_id, ATTEMPTS)

    def recall(self, session_id: str, state: SessionState, question: str, max_tokens: int) -> Flow[Recalled]:
        """Find what answers the question among the messages that the summary of ``state`` covers, and none after them;
        none of the pinned ones.

        Not available where the log cannot be asked, or a session of long ago is still being indexed.
        """
        terms = query_terms(question)
        # Enough to choose from: each of them brings its neighbours.
        least = min(MOST_RECALLED, max(10, max_tokens // TOKENS_OF_A_CANDIDATE))
        if not terms or not state.watermark:
            return Recalled([], 0, True)
        try:
            found = yield from self._find(session_id, state, terms, least=least)
            if not found.is_indexed:
                yield from self.index(session_id, most_batches=MOST_BATCHES_OF_A_CONTEXT)
                found = yield from self._find(session_id, state, terms, least=least)
                if not found.is_indexed:
                    yield from self.spawn_index(session_id)
                    return NOT_AVAILABLE
            if state.epoch and found.epoch != state.epoch:  # the session was erased since it was read
                return Recalled([], 0, True)
            scored = scores(
                terms,
                found.candidates,
                count=found.searched,
                total_length=found.total_length,
                common=found.common,
            )
            shared = with_neighbours(scored, questions_of(found.candidates), last_seq=state.watermark)
            pinned = {row[0] for row in state.summary.pinned_rows}  # which the context shows anyway
            most = most_candidates(max_tokens)
            best = [seq for seq in best_first(shared, most + len(pinned)) if seq not in pinned][:most]
            rows = yield from self._fetch(session_id, found.epoch, best, most_tokens=max_tokens)
            tokens = {seq: row.tokens for seq, row in rows.items()}
            chosen = within_budget(best, tokens, max_tokens)
            return Recalled([rows[seq].told(seq) for seq in chosen], sum(tokens[seq] for seq in chosen), True)
        except MemoryServiceError as exc:
            logger.warning("session %s: nothing recalled: %s", session_id, exc)
            return NOT_AVAILABLE

    def _find(self, session_id: str, state: SessionState, terms: Sequence[str], *, least: int) -> Flow[_Found]:
        """Find the messages with any of the terms that the summary of ``state`` covers; where ``least`` have others,
        those with nothing but common ones are left out.
        """
        epoch, up_to = state.epoch, state.watermark
        sampled = up_to - up_to % SAMPLE_FROM if len(terms) > 1 else 0
        shares = self._shares.get((session_id, epoch, sampled))
        if sampled and shares is None:
            shares = yield from self._sample(session_id, sampled)
        common = {term: shares[term] for term in terms if term in shares} if shares else {}
        if len(common) == len(terms):  # all with any of them are read, and counted
            common = {}
        found = yield from self._find_any(session_id, terms, up_to, common)
        if common and len(found.candidates) < least:
            found = yield from self._find_any(session_id, terms, up_to, {})
        # Of all that the sample was drawn from, and of the life of the session that it is kept for.
        if shares is not None and found.is_indexed and found.epoch == epoch:
            self._shares.pop((session_id, epoch, sampled), None)
            self._shares[session_id, epoch, sampled] = shares
            if len(self._shares) > MOST_SAMPLES:
                self._shares.popitem(last=False)
        return found

    def _sample(self, session_id: str, up_to: int) -> Flow[dict[str, float]]:
        """Look at a few messages, and return the terms that are common among them with the share that has each."""
        # At random, for two speakers take turns; seeded, so that the same question has the same answer.
        seqs = random.Random(up_to).sample(range(1, up_to + 1), SAMPLE_SIZE)
        rows = yield from query(
            COMMON, {**self._key(session_id), "seqs": seqs, "share": COMMON_SHARE, "limit": MOST_COMMON}
        )
        return dict(rows)

    def _find_any(self, session_id: str, terms: Sequence[str], up_to: int, common: Mapping[str, float]) -> Flow[_Found]:
        asked = [term for term in terms if term not in common]
        told = [*terms, ASKS]
        rows = yield from query(SEARCH, {**self._key(session_id), **search_words(told, asked), "up_to": up_to})
        if not rows:
            return _Found(0, True, {}, 0, 0, {})
        epoch, indexed_seq, watermark, count, length, lines = rows[0]
        found = candidates(lines or "", told)
        return _Found(epoch, indexed_seq >= min(up_to, watermark), found, count, length, common)

    def _fetch(
        self, session_id: str, epoch: int, seqs: Iterable[int], *, most_tokens: int = NO_LIMIT
    ) -> Flow[dict[int, _Row]]:
        wanted = {**self._key(session_id), "epoch": epoch, "seqs": list(seqs), "most_tokens": most_tokens}
        if not wanted["seqs"]:
            return {}
        rows = yield from query(FETCH, wanted)
        return {seq: _Row(tokens, at_ms, bytes(body)) for seq, tokens, at_ms, body in rows}


def _terms(body: bytes, at_ms: int) -> list[str]:
    """Return the terms of a stored message; none for one that nobody can read, so that it is not tried for ever."""
    try:
        return message_terms(decode_value(bytes(body)), at_ms / 1000)
    except CorruptDataError:
        return []


def _match(message: Message, at_ms: int) -> Match:
    terms = message_terms(message, at_ms / 1000)
    return Match(len(terms), {term: min(count, MAX_FREQUENCY) for term, count in Counter(terms).items()})


def _told(seq: int, at_ms: int, message: Message) -> dict[str, Any]:
    return {"seq": seq, "at": iso_time(at_ms), "message": message}
