"""Parity: what two histories of one session differ in, each difference named for what it is.

A pure comparison of digests: nothing here reads a store. Content is compared as JSON values, so that the way ``jsonb``
writes keys, texts and numbers is no difference.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from enum import StrEnum
from typing import Any, NamedTuple

from contract_engine.memory.legacy_messages import content_digest
from contract_engine.memory.models import Message

MOST_ALIGNED = 4000
"""Messages on either side, between equal beginnings and ends, up to which two histories are aligned by difflib, whose
time grows with the square; longer ones are aligned by the messages that occur once on each side.
"""


class Kind(StrEnum):
    """What a difference is. The older store is the left side, the log the right one."""

    MISSING_IN_NEW = "missing_in_new"
    MISSING_IN_LEGACY = "missing_in_legacy"
    DUPLICATED_IN_NEW = "duplicated_in_new"
    DUPLICATED_IN_LEGACY = "duplicated_in_legacy"
    REORDERED = "reordered"
    CONTENT_CHANGED = "content_changed"
    ROLE_CHANGED = "role_changed"
    SESSION_MISSING_IN_NEW = "session_missing_in_new"
    SESSION_MISSING_IN_LEGACY = "session_missing_in_legacy"
    SESSION_EMPTY_IN_NEW = "session_empty_in_new"
    SESSION_EMPTY_IN_LEGACY = "session_empty_in_legacy"
    UNREADABLE_IN_LEGACY = "unreadable_in_legacy"


class Mark(NamedTuple):
    """What a message is compared by: all of it, all but its role, and its role."""

    digest: bytes
    content: bytes
    role: object


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference; places count from 1, None on a side that has no such message.

    ``position``: whether it lies before the first message both sides share (``leading``), after the last one
    (``trailing``) or between (``middle``); None for a session as a whole. ``count`` is above 1 for whole sessions.
    """

    session_id: str
    kind: Kind
    legacy_place: int | None = None
    new_place: int | None = None
    position: str | None = None
    count: int = 1

    def as_json(self) -> dict[str, Any]:
        """Return the difference for machines."""
        return asdict(self)


def mark(message: Message) -> Mark:
    """Return what a message is compared by."""
    rest = {name: part for name, part in message.items() if name != "role"}
    role = message.get("role")
    return Mark(content_digest(message), content_digest(rest), role if isinstance(role, str) else None)


def compare(session_id: str, legacy: Sequence[Mark] | None, new: Sequence[Mark] | None) -> list[Difference]:
    """Return the differences of one session, in order; None where a side has no such session."""
    whole = _of_whole_session(session_id, legacy, new)
    if whole is not None:
        return whole
    assert legacy is not None
    assert new is not None
    return _Comparison(session_id, legacy, new).differences()


def summed(differences: Iterable[Difference]) -> Mapping[str, int]:
    """Count differences by their kinds."""
    return Counter(str(item.kind) for item in differences)


def count_arrived(legacy: Sequence[Mark], settled: int, owed: Sequence[Mark]) -> int:
    """Return how many of the first ``owed`` messages the end of the older history shows, where no id tells.

    They are owed in this order, so that its length tells how many there would be, behind ``settled`` others.
    """
    count = len(legacy) - settled
    if not 0 < count <= len(owed):
        return 0
    ends = zip(legacy[-count:], owed[:count], strict=True)
    return count if all(held.digest == sent.digest for held, sent in ends) else 0


def _of_whole_session(
    session_id: str, legacy: Sequence[Mark] | None, new: Sequence[Mark] | None
) -> list[Difference] | None:
    if not legacy and not new:
        # A session without messages may have a row in one store alone, as one whose settings were changed.
        return []
    if not new:
        kind = Kind.SESSION_MISSING_IN_NEW if new is None else Kind.SESSION_EMPTY_IN_NEW
        return [Difference(session_id, kind, count=len(legacy or ()))]
    if not legacy:
        kind = Kind.SESSION_MISSING_IN_LEGACY if legacy is None else Kind.SESSION_EMPTY_IN_LEGACY
        return [Difference(session_id, kind, count=len(new))]
    return None


def _aligned(legacy: Sequence[bytes], new: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return the places that are taken for the same message, rising on both sides."""
    most = min(len(legacy), len(new))
    start = 0
    while start < most and legacy[start] == new[start]:
        start += 1
    end = 0
    while end < most - start and legacy[-1 - end] == new[-1 - end]:
        end += 1
    old, other = legacy[start : len(legacy) - end], new[start : len(new) - end]
    pairs = [(place, place) for place in range(start)]
    pairs += [(start + left, start + right) for left, right in _aligned_middle(old, other)]
    return pairs + [(len(legacy) - place, len(new) - place) for place in range(end, 0, -1)]


def _aligned_middle(old: Sequence[bytes], new: Sequence[bytes]) -> list[tuple[int, int]]:
    if not old or not new:
        return []
    if max(len(old), len(new)) <= MOST_ALIGNED:
        blocks = SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
        return [(left + step, right + step) for left, right, size in blocks for step in range(size)]
    counts, others = Counter(old), Counter(new)
    places = {digest: place for place, digest in enumerate(new) if others[digest] == 1 == counts[digest]}
    anchors = _rising([(place, places[digest]) for place, digest in enumerate(old) if digest in places])
    if not anchors:
        return []
    pairs: list[tuple[int, int]] = []
    left = right = 0
    for old_stop, new_stop in [*anchors, (len(old), len(new))]:
        pairs += [(left + a, right + b) for a, b in _aligned(old[left:old_stop], new[right:new_stop])]
        if old_stop < len(old):
            pairs.append((old_stop, new_stop))
        left, right = old_stop + 1, new_stop + 1
    return pairs


def _rising(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest part of pairs, sorted by their first number, whose second numbers rise too (patience)."""
    ends: list[int] = []
    tops: list[int] = []
    before: list[int] = []
    for index, (_, place) in enumerate(pairs):
        pile = bisect_left(ends, place)
        before.append(tops[pile - 1] if pile else -1)
        if pile == len(ends):
            ends.append(place)
            tops.append(index)
        else:
            ends[pile], tops[pile] = place, index
    found: list[tuple[int, int]] = []
    index = tops[-1] if tops else -1
    while index >= 0:
        found.append(pairs[index])
        index = before[index]
    return found[::-1]


class _Comparison:
    """Two histories with something in each, and what they differ in."""

    def __init__(self, session_id: str, legacy: Sequence[Mark], new: Sequence[Mark]) -> None:
        self._session_id = session_id
        self._legacy, self._new = legacy, new
        self._legacy_counts = Counter(item.digest for item in legacy)
        self._new_counts = Counter(item.digest for item in new)
        self._found: list[Difference] = []
        self._lost: list[Difference] = []
        self._extra: dict[bytes, list[Difference]] = defaultdict(list)

    def differences(self) -> list[Difference]:
        """Return them, in the order of the older history."""
        legacy, new = self._legacy, self._new
        pairs = _aligned([item.digest for item in legacy], [item.digest for item in new])
        left = right = 0
        for old_stop, new_stop in [*pairs, (len(legacy), len(new))]:
            position = "middle" if left or right else "leading"
            if (old_stop, new_stop) == (len(legacy), len(new)):
                position = "trailing"
            self._look_between(range(left, old_stop), range(right, new_stop), position)
            left, right = old_stop + 1, new_stop + 1
        self._name_the_rest()
        return sorted(self._found, key=lambda item: (item.legacy_place or item.new_place or 0, item.new_place or 0))

    def _look_between(self, old: range, other: range, position: str) -> None:
        """Name what stands between two messages that both sides share."""
        if not old and not other:
            return
        legacy, new = self._legacy, self._new
        places: dict[bytes, list[int]] = defaultdict(list)
        for right in reversed(other):
            places[new[right].content].append(right)
        # The same words said by somebody else; then other words in the same place, unless they stand elsewhere.
        partners = {left: places[legacy[left].content].pop() for left in old if places.get(legacy[left].content)}
        taken = set(partners.values())
        lost = [left for left in old if left not in partners and not self._new_counts[legacy[left].digest]]
        extra = [right for right in other if right not in taken and not self._legacy_counts[new[right].digest]]
        changed = {
            left: right for left, right in zip(lost, extra, strict=False) if legacy[left].role == new[right].role
        }
        taken |= set(changed.values())
        for kind, found in ((Kind.ROLE_CHANGED, partners), (Kind.CONTENT_CHANGED, changed)):
            for left, right in found.items():
                self._found.append(Difference(self._session_id, kind, left + 1, right + 1, position))
        for left in old:
            if left not in partners and left not in changed:
                self._lost.append(Difference(self._session_id, Kind.MISSING_IN_NEW, left + 1, None, position))
        for right in other:
            if right not in taken:
                item = Difference(self._session_id, Kind.MISSING_IN_LEGACY, None, right + 1, position)
                self._extra[new[right].digest].append(item)

    def _name_the_rest(self) -> None:
        """Tell a message that is missing from one that stands elsewhere, and from one that is there twice.

        One that a side has more often than the other, which has it too, is named a duplicate: content alone does not
        tell it from one of several equal messages that the other side has lost.
        """
        for item in self._lost:
            assert item.legacy_place is not None
            digest = self._legacy[item.legacy_place - 1].digest
            if self._extra[digest]:
                partner = self._extra[digest].pop(0)
                item = replace(item, kind=Kind.REORDERED, new_place=partner.new_place)  # noqa: PLW2901
            elif self._new_counts[digest]:
                item = replace(item, kind=Kind.DUPLICATED_IN_LEGACY)  # noqa: PLW2901
            self._found.append(item)
        for digest, items in self._extra.items():
            kind = Kind.DUPLICATED_IN_NEW if self._legacy_counts[digest] else Kind.MISSING_IN_LEGACY
            self._found += [replace(item, kind=kind) for item in items]
