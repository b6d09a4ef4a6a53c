"""What the soak's readers were shown, against what had been acknowledged, read and erased before. Pure functions.

Of every read: each message was said, in this session, and was not refused; none is shown twice that Redis alone never
held; those of one writer are in order, but for one that waited in Redis where its writer could not see it. Of those
that are complete: nothing is lacking that had been acknowledged before, be it at the end or in the middle; nothing is
both in the summary and word for word; none shows less of that than one that had ended before. Of those that are not
degraded either: what stands word for word is the log's own, from the watermark to the last number.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter

from soak_journal import Clearing, Fold, Key, Read, Said, is_folded, name_of

Told = tuple[float, int, str]
"""When a number came, the number, and whose it is."""


class Highest:
    """The highest number of all that came before a moment."""

    def __init__(self, found: Iterable[Told] = ()) -> None:
        self._all = sorted(found)
        self._highest: list[Told] = []
        for one in self._all:
            highest = self._highest[-1] if self._highest else one
            self._highest.append(one if one[1] > highest[1] else highest)

    def before(self, moment: float) -> Told:
        place = bisect_left(self._all, (moment,))
        return self._highest[place - 1] if place else (0.0, 0, "nothing")


@dataclass(slots=True)
class Shown:
    """The reads of one session, and all that they are held against; ``places`` is the log."""

    reads: Sequence[Read]
    said: Sequence[Said]
    clearings: Sequence[Clearing]
    places: Mapping[Key, int]
    folds: Sequence[Fold] = ()
    _calls: dict[Key, Said] = field(default_factory=dict)
    _final: dict[Key, float] = field(default_factory=dict)
    """When each message was acknowledged for everybody to see, if it was."""
    _placed: dict[Key, float] = field(default_factory=dict)
    """When each was acknowledged so that its place in the log does not change once it has one."""
    _order: dict[int, Key] = field(default_factory=dict)

    def violations(self) -> list[str]:
        self._calls = {key: one for one in self.said for key in one.keys}
        self._order = {place: key for key, place in self.places.items()}
        for one in self.said:
            for answer in one.answers:
                if answer.is_for_all:
                    self._final |= {key: min(answer.at, self._final.get(key, answer.at)) for key in one.keys}
                if answer.is_for_all or answer.durable is False:
                    self._placed |= {key: min(answer.at, self._placed.get(key, answer.at)) for key in one.keys}
        complete = [read for read in self.reads if read.complete and not self._may_be_erased(read.begun)]
        acknowledged: dict[str | None, list[Told]] = defaultdict(list)
        for only_for, told in self._acknowledged():
            acknowledged[only_for].append(told)
        until = {only_for: Highest(found) for only_for, found in acknowledged.items()}
        read_until = Highest((read.ended, read.last_seq, read.reader) for read in complete if not read.degraded)
        wrong = [f"{_name(read)}; {text}" for read in self.reads for text in self._shown_violations(read)]
        for read in complete:
            for_all, own = (until.get(name, Highest()).before(read.begun) for name in (None, read.reader))
            at, place, name = max(for_all, own, key=itemgetter(1))
            _, before, _ = read_until.before(read.begun)
            if self._final.get(self._order.get(before, ("", 0)), math.inf) >= read.begun:
                before = 0  # its writer may still be about to tell Redis of it
            problems = {
                f"the log ends at {len(self.places)}": not read.degraded and read.last_seq > len(self.places),
                f"{before} had been read before it began": read.last_seq < before,
                f"{name}, number {place}, had been acknowledged at {at:.3f}": read.last_seq < place,
            }
            found = [text for text, holds in problems.items() if holds]
            wrong += [f"{_name(read)}; {text}" for text in chain(found, self._buffer_violations(read, for_all[1]))]
        return wrong

    def _may_be_erased(self, begun: float) -> bool:
        return any(begun < one.answered for one in self.clearings)

    def _acknowledged(self) -> Iterator[tuple[str | None, Told]]:
        """Yield what later reads must show, and for whose reads that holds: None is everybody's."""
        for one in self.said:
            key = one.keys[-1]
            for answer in one.answers if key in self.places else ():
                if answer.is_for_all:
                    yield None, (answer.at, self.places[key], name_of(key))
                elif answer.durable and answer.seqs:  # the log may have put it further back since
                    yield one.writer, (answer.at, min(self.places[key], answer.seqs[-1]), name_of(key))

    def _shown_violations(self, read: Read) -> Iterator[str]:
        """What no read may show, not even one that is degraded or not complete."""
        for key, count in Counter(read.kept or ()).items():
            one = self._calls.get(key)
            if one is None or one.begun > read.ended:
                yield f"it shows {name_of(key)}, which nobody had said"
                continue
            if one.is_refused:
                yield f"it shows {name_of(key)}, which was refused"
            if count > 1 and not any(answer.durable is False for answer in one.answers):
                yield f"it shows {name_of(key)} {count} times"
        newest_of: dict[str, Key] = {}
        for key in read.kept or ():
            newest = newest_of.setdefault(key[0], key)
            if key[1] < newest[1] and not self._may_be_overtaken(key, newest):
                yield f"it shows {name_of(newest)} before {name_of(key)}"
            newest_of[key[0]] = max(newest, key)

    def _may_be_overtaken(self, earlier: Key, later: Key) -> bool:
        """Whether what a writer said later may stand before what it had said earlier."""
        first, second = self._calls.get(earlier), self._calls.get(later)
        if first is None or second is None or (first is not second and first.answered >= second.begun):
            return True  # nobody had said it, which is told already; or nobody was told that it is there
        is_early = is_folded(self.folds, self.places.get(later, math.inf), second.answered)
        return first.may_have_waited and (second.is_degraded or is_early)

    def _buffer_violations(self, read: Read, acknowledged: int) -> Iterator[str]:
        """Whether a complete read has its messages from its watermark on; ``acknowledged``: the last it must show."""
        if read.kept is None or read.watermark is None:
            return
        places = [self.places.get(key) for key in read.kept]
        if not read.degraded:
            # What nobody had acknowledged by then may have got another number since: behind what was found waiting.
            settled = [self._placed.get(key, math.inf) <= read.ended for key in read.kept]
            shown_as = range(read.watermark + 1, read.last_seq + 1)
            is_whole = len(places) == len(shown_as) and None not in places
            if not is_whole or any(
                is_settled and one != seq for one, seq, is_settled in zip(places, shown_as, settled, strict=True)
            ):
                yield f"its messages are {places} of the log, behind a summary of {read.watermark}"
            return
        shown = set(read.kept)
        for place in range(read.watermark + 1, acknowledged + 1):
            key = self._order.get(place)
            if key is not None and key not in shown and self._final.get(key, math.inf) < read.begun:
                yield f"it lacks {name_of(key)}, number {place}, acknowledged at {self._final[key]:.3f}"
        for key in shown & self._final.keys():
            if self._final[key] < read.begun and self.places.get(key, math.inf) <= read.watermark:
                yield f"{name_of(key)}, number {self.places[key]}, is in the summary and word for word"


def _name(read: Read) -> str:
    told = f" ({read.source})" if read.source else ""
    return f"{read.reader}, from {read.begun:.3f}, read up to {read.last_seq}{told}"
