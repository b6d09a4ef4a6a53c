"""Ranking: which messages answer a question best, from how often its terms stand in them. No input or output here."""

from __future__ import annotations

import heapq
import math
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from contract_engine.memory.terms import ASKS

K1 = 0.9
B = 0.4
"""The parameters of BM25 as Anserini sets them, after Trotman, Jia and Crane, "Towards an Efficient and Effective
Search Engine" (workshop on open source information retrieval, SIGIR 2012): messages are short, and alike in length."""

FROM_QUESTION = 0.5
FROM_PREVIOUS = 0.2
FROM_NEXT = 0.1
"""Shares of its neighbour's score that a message gets too, the first where that one asks something: an answer seldom
repeats the words it answers. Chosen on three conversations of LoCoMo, held against the two others."""

NONE_COMMON: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """What makes a message a candidate: how many terms it has in all, and how often each of those asked for, ``ASKS``
    among them. Messages that are alike share one, and are scored once.
    """

    length: int
    frequencies: Mapping[str, int]


def scores(
    terms: Sequence[str],
    candidates: Mapping[int, Match],
    *,
    count: int,
    total_length: int,
    common: Mapping[str, float] = NONE_COMMON,
) -> dict[int, float]:
    """Return the BM25 score of each candidate by its number (Robertson and Zaragoza, "The Probabilistic Relevance
    Framework", 2009), with the inverse document frequency that is never negative, as in Lucene.

    ``count`` and ``total_length`` are those of all messages looked through. ``common``: the share of these that have a
    term, where not all of them that do are candidates. Candidates without a term have no score.
    """
    alike = Counter(candidates.values())
    spread: Counter[str] = Counter()
    for match, times in alike.items():
        spread.update(dict.fromkeys(match.frequencies, times))
    weights = {}
    for term in terms:
        having = max(spread[term], common.get(term, 0) * count)
        weights[term] = math.log(1 + (count - having + 0.5) / (having + 0.5)) * (K1 + 1)
    by_length = K1 * B * count / (total_length or 1)
    scored = {}
    for match in alike:
        damping = K1 * (1 - B) + by_length * match.length
        scored[match] = sum(
            weights[term] * frequency / (frequency + damping)
            for term, frequency in match.frequencies.items()
            if term in weights
        )
    return {seq: score for seq, match in candidates.items() if (score := scored[match]) > 0}


def with_neighbours(scored: Mapping[int, float], questions: frozenset[int], *, last_seq: int) -> dict[int, float]:
    """Return the scores with what each message gets from the one before it and the one after it."""
    shared = dict(scored)
    for seq, score in scored.items():
        if seq < last_seq:
            share = FROM_PREVIOUS + FROM_QUESTION if seq in questions else FROM_PREVIOUS
            shared[seq + 1] = shared.get(seq + 1, 0.0) + share * score
        if seq > 1:
            shared[seq - 1] = shared.get(seq - 1, 0.0) + FROM_NEXT * score
    return shared


def questions_of(candidates: Mapping[int, Match]) -> frozenset[int]:
    """Return the numbers of those that ask something."""
    return frozenset(seq for seq, match in candidates.items() if ASKS in match.frequencies)


def best_first(scored: Mapping[int, float], limit: int) -> list[int]:
    """Return so many numbers by score, the best first; of equals the older first."""
    return [seq for _, seq in heapq.nsmallest(limit, zip(map(operator.neg, scored.values()), scored, strict=True))]


def within_budget(seqs: Iterable[int], tokens: Mapping[int, int], budget: int) -> list[int]:
    """Return the best that fit together, in their order of time; one that does not fit makes way for the next.

    Numbers without tokens are left out.
    """
    chosen = []
    for seq in seqs:
        cost = tokens.get(seq)
        if cost is not None and cost <= budget:
            chosen.append(seq)
            budget -= cost
    return sorted(chosen)
