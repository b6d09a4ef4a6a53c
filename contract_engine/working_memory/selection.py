"""Which memories of a record a request asks for, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from contract_engine.memory.ranking import Match, best_first, scores
from contract_engine.memory.terms import query_terms, text_terms
from contract_engine.working_memory.errors import WrapperMissingError
from contract_engine.working_memory.models import IMemoryInput, IWorkingMemory
from contract_engine.working_memory.records import Item, Record


def select(record: Record, request: IMemoryInput, name: str) -> list[IWorkingMemory]:
    """Return the memories asked for; ``name`` of the record is for :class:`WrapperMissingError`."""
    check_marks(record, name)
    found = [_memory(item, record) for item in record.items if request.memory_id in (None, item.memory_id)]
    if request.filters:
        wanted = request.filters.items()
        found = [memory for memory in found if all(_has(memory, field, value) for field, value in wanted)]
    if request.query is not None:
        found = ranked(found, request.query)
    return found if request.limit is None else found[: request.limit]


def ranked(memories: Sequence[IWorkingMemory], query: str) -> list[IWorkingMemory]:
    """Return those in which words of the query stand, the best first; forms of a word are the same word.

    A query of nothing but function words ("what is it") is looked for as it is written.
    """
    terms = query_terms(query)
    if not terms:
        sought = query.strip().casefold()
        return [memory for memory in memories if sought in memory.working_memory.casefold()]
    candidates: dict[int, Match] = {}
    total = 0
    for number, memory in enumerate(memories):
        found = text_terms(memory.working_memory)
        total += len(found)
        frequencies = {term: count for term, count in Counter(found).items() if term in terms}
        if frequencies:
            candidates[number] = Match(len(found), frequencies)
    scored = scores(terms, candidates, count=len(memories), total_length=total)
    return [memories[number] for number in best_first(scored, len(memories))]


def check_marks(record: Record, name: str) -> None:
    """Raise :class:`WrapperMissingError` where a text is not what its author wrote, or why a version is not."""
    if record.left is not None:
        raise record.left[1]
    for item in record.items:
        if item.marks:
            raise WrapperMissingError(item.marks[-1], name)


def _has(memory: IWorkingMemory, field: str, value: object) -> bool:
    return field in memory.metadata and memory.metadata[field] == value


def _memory(item: Item, record: Record) -> IWorkingMemory:
    metadata = {**record.metadata, **item.metadata}
    return IWorkingMemory(item.text, metadata, item.memory_id, record.created_at or None, record.last_update or None)
