"""Which messages of an older history the log holds already: told by their ids, and where they have none, by content.

While both stores are written to, the log has a copy of the end of the older history: all of it, or without what only
the older store was given, or with messages that the older store is still to be given.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import NamedTuple


class Told(NamedTuple):
    """What a message is known by; an older one has no id where it was written by somebody who gives none."""

    message_id: str | None
    digest: bytes


def untold_anchors(older: Sequence[Told], newer: Sequence[Told], *, owed: Set[str]) -> dict[int, int] | None:
    """Return pairs of places of the same message where the older one has no id; None where it cannot be told.

    Messages that are on both sides under one id divide the histories, and each part is looked at by itself: what was
    written to both by a program that gives no ids stands between the same neighbours. ``owed``: ids that the older
    store is still to be given, and that nothing there can be.
    """
    places = {item.message_id: place for place, item in enumerate(newer)}
    known = {item.message_id for item in older} | owed
    pairs: dict[int, int] = {}
    parts: list[tuple[int, int]] = []
    reached = 0
    for place, item in enumerate(older):
        at = -1 if item.message_id is None else places.get(item.message_id, -1)
        if at >= reached:
            parts.append((place, at))
            reached = at + 1
    left = right = 0
    for old_stop, new_stop in [*parts, (len(older), len(newer))]:
        old = [place for place in range(left, old_stop) if older[place].message_id is None]
        new = [place for place in range(right, new_stop) if newer[place].message_id not in known]
        found = content_anchors([older[place].digest for place in old], [newer[place].digest for place in new])
        if found is None:
            return None
        pairs |= {old[one]: new[other] for one, other in found.items()}
        left, right = old_stop + 1, new_stop + 1
    return pairs


def content_anchors(older: Sequence[bytes], newer: Sequence[bytes]) -> dict[int, int] | None:
    """Return pairs of places of the same message, rising on both sides; None where it cannot be told.

    ``older`` are the digests of the messages not imported yet, ``newer`` those of the log behind what was imported. If
    all of ``newer`` is found in ``older``, in order, merging the two gives exactly ``older``, whichever of several
    equal messages is taken. Else ``newer`` may begin with the end of ``older`` and go on with what is on its way there;
    that is believed only where nothing of it occurs among the older messages, for what occurs there may have arrived.
    """
    found = _embedded(older, newer)
    if found is not None:
        return found
    overlap = _overlap(older, newer)
    start = len(older) - overlap
    if set(newer[overlap:]) & set(older[:start]):
        return None
    return {start + index: index for index in range(overlap)}


def _embedded(older: Sequence[bytes], newer: Sequence[bytes]) -> dict[int, int] | None:
    """Find all of ``newer`` in ``older``, each as late as possible."""
    anchors: dict[int, int] = {}
    index = len(older)
    for place in range(len(newer) - 1, -1, -1):
        index -= 1
        while index >= 0 and older[index] != newer[place]:
            index -= 1
        if index < 0:
            return None
        anchors[index] = place
    return anchors


def is_contained(part: Sequence[bytes], whole: Sequence[bytes]) -> bool:
    """Whether ``whole`` has all of ``part``, in order."""
    return _embedded(whole, part) is not None


def _overlap(older: Sequence[bytes], newer: Sequence[bytes]) -> int:
    """Return the longest end of ``older`` with which ``newer`` begins, in time linear in the shorter of the two."""
    most = min(len(older), len(newer))
    pattern, text = newer[:most], older[len(older) - most :]
    # Knuth, Morris and Pratt: the longest border of what was read, kept up to date message by message.
    borders = [0] * most
    length = 0
    for index in range(1, most):
        while length and pattern[index] != pattern[length]:
            length = borders[length - 1]
        length += pattern[index] == pattern[length]
        borders[index] = length
    length = 0
    for digest in text:
        while length and (length == most or digest != pattern[length]):
            length = borders[length - 1]
        length += digest == pattern[length] if most else 0
    return length
