"""Histories made at random, in order by construction: nothing is found in them, and any one thing done to them is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_histories import ERASED, STEPS, Made, Reading, Step, made

Pick = Callable[[Sequence[Any]], Any]


def lose(history: Made, pick: Pick, kind: str) -> None:
    history.log.remove(pick(pick(history.lasting(kind)).keys))


def repeat(history: Made, pick: Pick) -> None:
    key = pick(history.log)
    history.log.insert(pick(range(len(history.log) + 1)), key)


def invent(history: Made, pick: Pick) -> None:
    history.log.insert(pick(range(len(history.log) + 1)), ("z", 1))


def heed(history: Made, pick: Pick, kind: str) -> None:
    history.log += pick([one for one in history.calls if one.kind == kind]).keys


def resurrect(history: Made, pick: Pick) -> None:
    last = max(begun for begun, _ in history.clearings)
    history.log += pick([one for one in history.calls if one.answered is not None and one.answered < last]).keys


def tear(history: Made, pick: Pick) -> None:
    keys = pick(history.final("batch")).keys
    place = history.log.index(keys[0])
    history.log.remove(keys[1])
    history.log.insert(
        pick([other for other in range(len(history.log) + 1) if other not in (place, place + 1)]), keys[1]
    )


def halve(history: Made, pick: Pick) -> None:
    one = pick(history.final("batch"))
    one.answered = None
    history.log.remove(pick(one.keys))


def misnumber(history: Made, pick: Pick) -> None:
    key = pick(pick(history.final("append", "resent", "batch")).keys)
    history.seqs[key] += pick((-1, 1, 100))


def number_twice(history: Made, pick: Pick) -> None:
    first, second = (one.keys[0] for one in history.final("append")[-2:])
    history.seqs[second] = history.seqs[first]


def reorder(history: Made, pick: Pick, *, is_own: bool) -> None:
    """Put a message behind one whose call began after it had been answered."""
    pairs = [
        (one.keys[0], other.keys[0])
        for one in history.final("append", "turn", "resent")
        for other in history.final("append", "turn", "resent")
        if one.answered is not None and one.answered < other.begun and (one.keys[0][0] == other.keys[0][0]) is is_own
    ]
    early, late = pick(pairs)
    history.log.remove(early)
    history.log.insert(history.log.index(late) + 1, early)


def forget_in_read(history: Made, pick: Pick) -> None:
    one = history.reads[-1]
    one.last_seq -= pick(range(1, one.last_seq + 1))


def read_back_in_time(history: Made, pick: Pick) -> None:
    one = history.reads[-1]
    last = pick(range(one.last_seq))
    history.reads.append(Reading(one.ended + 1, one.ended + 2, last, False, last, []))


def read_beyond(history: Made, pick: Pick) -> None:
    history.reads[-1].last_seq += pick((1, 2, 50))


def skip_in_read(history: Made, pick: Pick) -> None:
    """Leave a gap: behind the summary, in the middle, or at the end."""
    kept = history.reads[-1].kept
    kept.remove(pick(kept))


def overlap_in_read(history: Made, pick: Pick) -> None:
    history.reads[-1].watermark += pick(range(1, len(history.reads[-1].kept) + 1))


def repeat_in_read(history: Made, pick: Pick) -> None:
    """Show a message twice that Redis alone never held."""
    kept = history.reads[-1].kept
    final = [key for one in history.final("append", "batch", "resent") for key in one.keys if key in kept]
    kept.insert(pick(range(len(kept) + 1)), pick(final))


def reorder_in_read(history: Made, pick: Pick) -> None:
    kept = history.reads[-1].kept
    place = pick(range(len(kept) - 1))
    kept[place], kept[place + 1] = kept[place + 1], kept[place]


def invent_in_read(history: Made, pick: Pick) -> None:
    kept = history.reads[-1].kept
    kept.insert(pick(range(len(kept) + 1)), ("z", 1))


MUTATIONS: dict[str, tuple[Callable[[Made, Pick], None], str]] = {
    "lost append": (lambda history, pick: lose(history, pick, "append"), "(logged) at"),
    "lost batch": (lambda history, pick: lose(history, pick, "batch"), "(logged) at"),
    "lost turn": (lambda history, pick: lose(history, pick, "turn"), "(turn) at"),
    "lost unlogged": (lambda history, pick: lose(history, pick, "unlogged"), "(unlogged) at"),
    "duplicate": (repeat, "is there 2 times"),
    "phantom": (invent, "z-1 is there, and nobody said it"),
    "refused and there": (lambda history, pick: heed(history, pick, "refused"), "and it was refused"),
    "erased and there": (resurrect, "and it was erased"),
    "torn batch": (tear, "the batch is torn"),
    "half batch": (halve, "half of a batch is there"),
    "another number": (misnumber, "the receipt said"),
    "one number for two": (number_twice, "was given to"),
    "reordered, one writer": (lambda history, pick: reorder(history, pick, is_own=True), "stands behind"),
    "reordered, two writers": (lambda history, pick: reorder(history, pick, is_own=False), "stands behind"),
    "read lacks": (forget_in_read, "had been acknowledged at"),
    "read back in time": (read_back_in_time, "had been read before it began"),
    "read beyond": (read_beyond, "; the log ends at"),
    "read with a gap": (skip_in_read, "its messages are ["),
    "read with an overlap": (overlap_in_read, "its messages are ["),
    "read of a message twice": (repeat_in_read, " 2 times"),
    "read in another order": (reorder_in_read, "its messages are ["),
    "read of what nobody said": (invent_in_read, "it shows z-1, which nobody had said"),
}

steps = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.integers(0, 6), st.integers(0, 6)), max_size=25
)


@given(steps)
@settings(deadline=None, max_examples=300)
def test_nothing_is_found_in_a_made_history(plan: list[Step]) -> None:
    history = made(plan)
    assert history.judged() == []


@pytest.mark.parametrize("kind", MUTATIONS)
@given(plan=steps, data=st.data())
@settings(deadline=None, max_examples=40)
def test_one_thing_done_to_a_made_history_is_found(kind: str, plan: list[Step], data: st.DataObject) -> None:
    mutate, words = MUTATIONS[kind]
    history = made([*ERASED, *plan] if kind == "erased and there" else plan)
    mutate(history, lambda choices: data.draw(st.sampled_from(choices)))
    found = history.judged()
    assert any(words in one for one in found), (found, history.lines(), history.log)
