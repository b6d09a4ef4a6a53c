"""Which messages of an older history the log holds already, where nothing but their content can tell.

While both stores are written to, the log has a copy of the end of the older history: all of it, or without what only
the older store was given, or with messages that the older store is still to be given.
"""

from __future__ import annotations

from collections.abc import Sequence


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
