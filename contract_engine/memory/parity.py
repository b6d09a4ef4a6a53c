"""Parity: what two histories of one session differ in, each difference named for what it is.

A pure comparison of digests: nothing here reads a store. Content is compared as JSON values, so that the way ``jsonb``
writes keys, texts and numbers is no difference.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    pairs = _aligned([item.digest for item in legacy], [item.digest for item in new])
    found: list[Difference] = []
    old_start = new_start = 0
    for old_stop, new_stop in [*pairs, (len(legacy), len(new))]:
        position = "leading" if not old_start and not new_start else "middle"
        if old_stop == len(legacy) and new_stop == len(new):
            position = "trailing"
        found += _changed(session_id, legacy, new, range(old_start, old_stop), range(new_start, new_stop), position)
        old_start, new_start = old_stop + 1, new_stop + 1
    return _moved_or_duplicated(found, legacy, new)


def summed(differences: Iterable[Difference]) -> Mapping[str, int]:
    """Count differences by their kinds."""
    return Counter(str(item.kind) for item in differences)


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


def _changed(
    session_id: str, legacy: Sequence[Mark], new: Sequence[Mark], old: range, other: range, position: str
) -> list[Difference]:
    """Name what stands between two messages that both sides share."""
    found: list[Difference] = []
    left, right = list(old), list(other)
    # The same words said by somebody else.
    places: dict[bytes, list[int]] = defaultdict(list)
    for place in right:
        places[new[place].content].append(place)
    for place in list(left):
        if others := places.get(legacy[place].content):
            partner = others.pop(0)
            left.remove(place)
            right.remove(partner)
            found.append(Difference(session_id, Kind.ROLE_CHANGED, place + 1, partner + 1, position))
    # What remains may be somewhere else altogether; only what is nowhere else can have been changed here.
    here, there = {item.digest for item in legacy}, {item.digest for item in new}
    lost = [place for place in left if legacy[place].digest not in there]
    extra = [place for place in right if new[place].digest not in here]
    for place, partner in zip(lost, extra, strict=False):
        if legacy[place].role != new[partner].role:
            continue
        left.remove(place)
        right.remove(partner)
        found.append(Difference(session_id, Kind.CONTENT_CHANGED, place + 1, partner + 1, position))
    found += [Difference(session_id, Kind.MISSING_IN_NEW, place + 1, None, position) for place in left]
    found += [Difference(session_id, Kind.MISSING_IN_LEGACY, None, place + 1, position) for place in right]
    return sorted(found, key=lambda item: item.legacy_place or item.new_place or 0)


def _moved_or_duplicated(found: Sequence[Difference], legacy: Sequence[Mark], new: Sequence[Mark]) -> list[Difference]:
    """Tell a message that is lost from one that stands elsewhere, and one that is extra from one that is there twice.

    A message that both sides have equally often is in another place; one that a side has more often than the other,
    which has it too, is there twice.
    """
    counts = Counter(item.digest for item in legacy), Counter(item.digest for item in new)
    elsewhere: dict[bytes, list[Difference]] = defaultdict(list)
    for item in found:
        if item.kind is Kind.MISSING_IN_LEGACY and item.new_place is not None:
            elsewhere[new[item.new_place - 1].digest].append(item)
    named: list[Difference] = []
    moved: set[int] = set()
    for item in found:
        if item.kind is Kind.MISSING_IN_NEW and item.legacy_place is not None:
            digest = legacy[item.legacy_place - 1].digest
            if partners := elsewhere.get(digest):
                partner = partners.pop(0)
                moved.add(id(partner))
                named.append(
                    Difference(item.session_id, Kind.REORDERED, item.legacy_place, partner.new_place, item.position)
                )
            elif counts[1][digest]:
                named.append(_renamed(item, Kind.DUPLICATED_IN_LEGACY))
            else:
                named.append(item)
        elif item.kind is not Kind.MISSING_IN_LEGACY:
            named.append(item)
    for item in found:
        if item.kind is Kind.MISSING_IN_LEGACY and item.new_place is not None and id(item) not in moved:
            is_double = counts[0][new[item.new_place - 1].digest] > 0
            named.append(_renamed(item, Kind.DUPLICATED_IN_NEW) if is_double else item)
    return sorted(named, key=lambda item: (item.legacy_place or item.new_place or 0, item.new_place or 0))


def _renamed(item: Difference, kind: Kind) -> Difference:
    return Difference(item.session_id, kind, item.legacy_place, item.new_place, item.position)
