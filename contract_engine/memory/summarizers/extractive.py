"""The built-in summarizer: keeps what is worth most of what was said."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace, nlargest

from contract_engine.memory.summarizers.facts import with_signs
from contract_engine.memory.summarizers.form import label_text, read, written
from contract_engine.memory.summarizers.notes import noted, speaker_names
from contract_engine.memory.summarizers.request import SummaryRequest
from contract_engine.memory.summarizers.salience import content_stems, salience
from contract_engine.memory.summarizers.units import CALL_LABEL, Unit, message_units
from contract_engine.memory.summarizers.wishes import Wishes

MAX_CANDIDATES = 3000
"""More units than this are first thinned by salience, so that a fold stays a matter of milliseconds."""
DAY_TOKENS = 3
LENGTH_POWER = 0.8
NO_CONTENT_NOVELTY = 0.1
REPEAT_PENALTY = 0.8
REFILLS = 3
FAR_TOO_LONG = 8
"""Characters for each token of a budget: twice what a token of English has."""


class ExtractiveSummarizer:
    """Chooses whole sentences and tool facts by salience, novelty and length; needs no model and keeps no state.

    ``readable=False`` shortens English sentences to notes, for a model rather than for people: of long English
    conversations a budget then answers about an eighth more questions.

    The text is the whole state: it is read back exactly, and its sentences compete with the new ones on one scale. A
    text in any other form takes part with its sentences. Equal requests give equal answers.
    """

    def __init__(self, *, readable: bool = True) -> None:
        self._readable = readable

    def summarize(self, request: SummaryRequest) -> str:
        """Return the next summary: chronological, and never above ``max_tokens`` as ``count_tokens`` counts it."""
        units, new = read(request.previous), message_units(request.messages, request.times)
        names = speaker_names([*units, *new])
        if not self._readable:
            new = list(noted(new, names))
            if not _fits([*units, *new], request):  # notes are shortened further where room is wanted, and only there
                units = list(noted(units, names, again=True))
        wishes = Wishes(request.instructions)
        selection = _Selection(_candidates([*units, *new], names, wishes), request.count_tokens)
        text = selection.fill(request.max_tokens)
        return text or _clipped(selection.best(), request.max_tokens, request.count_tokens)


def _fits(units: Sequence[Unit], request: SummaryRequest) -> bool:
    """Tell whether all of them are within the budget; what is far too long is not counted, since that takes time."""
    if sum(len(unit.text) for unit in units) > FAR_TOO_LONG * request.max_tokens:
        return False
    return request.count_tokens(written(list(dict.fromkeys(units)))) <= request.max_tokens


@dataclass(frozen=True, slots=True)
class _Candidate:
    unit: Unit
    stems: tuple[str, ...]
    value: float


def _candidates(units: Sequence[Unit], names: frozenset[str], wishes: Wishes) -> list[_Candidate]:
    found = []
    for unit in dict.fromkeys(units):
        stems = content_stems(unit.text)
        value = salience(unit, stems, names) + wishes.bonus(stems)
        found.append(_Candidate(unit, tuple(dict.fromkeys(_news(unit, stems))), value))
    if len(found) > MAX_CANDIDATES:
        kept = nlargest(MAX_CANDIDATES, range(len(found)), key=lambda index: found[index].value)
        found = [found[index] for index in sorted(kept)]
    return found


def _news(unit: Unit, stems: Sequence[str]) -> Sequence[str]:
    """Return what can be new in a unit: of a tool's facts the values, since their keys are those of all of the kind."""
    values = [stem for stem in stems if any(map(str.isdigit, stem))] if unit.is_tool else ()
    return values or stems


@dataclass(slots=True)
class _Selection:
    """The units chosen so far among candidates in the order they were said."""

    candidates: Sequence[_Candidate]
    count_tokens: Callable[[str], int]
    chosen: list[int] = field(default_factory=list)
    history: list[int] = field(default_factory=list)
    said: Counter[str] = field(default_factory=Counter)
    news: defaultdict[str, float] = field(default_factory=lambda: defaultdict(lambda: 1.0))
    tokens: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    kinds: list[tuple[str, ...]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = [self.count_tokens(" " + candidate.unit.text) for candidate in self.candidates]
        for told, indexes in self._tool_lines().items():
            facts = with_signs([self.candidates[index].unit.text for index in indexes], are_calls=told[1] == CALL_LABEL)
            for index, fact in zip(indexes, facts, strict=True):
                self.tokens[index] = self.count_tokens(" " + fact)
        self.rates = [
            candidate.value / max(1, tokens) ** LENGTH_POWER
            for candidate, tokens in zip(self.candidates, self.tokens, strict=True)
        ]
        times = Counter(stem for candidate in self.candidates for stem in candidate.stems)
        self.kinds = [
            tuple(stem if times[stem] > 1 else "" for stem in candidate.stems) for candidate in self.candidates
        ]
        speakers = {candidate.unit.speaker for candidate in self.candidates}
        self.labels = {speaker: self.count_tokens(label_text(speaker).rstrip()) for speaker in sorted(speakers)}

    def _tool_lines(self) -> Mapping[tuple[str, str], Sequence[int]]:
        """Return which candidates are facts of tools that would share a line: each is shorter beside its like."""
        lines: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for index, candidate in enumerate(self.candidates):
            if candidate.unit.is_tool:
                lines[candidate.unit.day, candidate.unit.speaker].append(index)
        return lines

    def fill(self, max_tokens: int) -> str:
        """Choose until the text is full, and return it."""
        text, used = "", 0
        for _ in range(1 + REFILLS):
            before = len(self.history)
            self._choose(max_tokens - used)
            # The estimate is not the count: what came last goes until the text really fits.
            while len(self.history) > before:
                candidate_text = written([self.candidates[index].unit for index in self.chosen])
                count = self.count_tokens(candidate_text)
                if count <= max_tokens:
                    text, used = candidate_text, count
                    break
                self._drop(count - max_tokens, keep=before)
            if len(self.history) == before:
                break
        return text

    def best(self) -> Unit | None:
        """Return the unit of most value."""
        return max(self.candidates, key=lambda candidate: candidate.value).unit if self.candidates else None

    def _choose(self, room: int) -> None:
        """Take units by gain, the best first, while ``room`` tokens last.

        Novelty only falls, so a gain computed earlier is an upper bound: it is computed again when it comes first. Of
        units that are alike only the one of the highest rate is in the heap.
        """
        days = {self.candidates[index].unit.day for index in self.chosen}
        heap = [(-self._gain(alike[-1]), alike.pop(), alike) for alike in self._alike()]
        heapify(heap)
        while heap and room > 0:
            bound, index, alike = heap[0]
            gain = self._gain(index)
            if gain < -bound:
                heapreplace(heap, (-gain, index, alike))
                continue
            heappop(heap)
            unit = self.candidates[index].unit
            cost = self.tokens[index] + (0 if self._continues(index) else self.labels[unit.speaker])
            cost += DAY_TOKENS if unit.day and unit.day not in days else 0
            if cost <= room:
                room -= cost
                days.add(unit.day)
                insort(self.chosen, index)
                self.history.append(index)
                self._say(self.candidates[index].stems, 1)
            if alike:
                heappush(heap, (-self._gain(alike[-1]), alike.pop(), alike))

    def _alike(self) -> Iterable[list[int]]:
        """Return those not chosen, together where their novelty is the same whatever is chosen: they have the stems in
        common that more than one candidate has, and as many of their own. The highest rate comes last.
        """
        taken = set(self.chosen)
        alike: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for index in sorted(range(len(self.kinds)), key=lambda index: (self.rates[index], -index)):
            if index not in taken:
                alike[self.kinds[index]].append(index)
        return alike.values()

    def _gain(self, index: int) -> float:
        """Return value x novelty / length; what the chosen units say already is worth little."""
        stems = self.candidates[index].stems
        novelty = NO_CONTENT_NOVELTY
        if stems:
            novelty = sum(map(self.news.__getitem__, stems)) / len(stems)
        return self.rates[index] * novelty

    def _say(self, stems: Iterable[str], times: int) -> None:
        """Note that the stems are said so many times more: the next time each is worth less."""
        for stem in stems:
            self.said[stem] += times
            self.news[stem] = 1.0 / (1.0 + REPEAT_PENALTY * self.said[stem])

    def _continues(self, index: int) -> bool:
        """Tell whether the unit would stand on a line that is there anyway."""
        at = bisect_left(self.chosen, index)
        unit = self.candidates[index].unit
        around = (self.candidates[other].unit for other in self.chosen[max(0, at - 1) : at + 1])
        return any((other.day, other.speaker) == (unit.day, unit.speaker) for other in around)

    def _drop(self, tokens: int, *, keep: int) -> None:
        """Give back units chosen last, for ``tokens`` tokens and at least one, but not the first ``keep`` ones."""
        while len(self.history) > keep:
            index = self.history.pop()
            self.chosen.remove(index)
            self._say(self.candidates[index].stems, -1)
            tokens -= max(1, self.tokens[index])
            if tokens <= 0:
                return


def _clipped(unit: Unit | None, max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Return the longest beginning of ``unit`` that fits, empty if not even its first word does."""
    text = ""
    if unit is None:
        return text
    low, high = 1, len(unit.text)
    while low <= high:
        middle = (low + high) // 2
        said = unit.text[:middle].rpartition(" ")[0] or unit.text[:middle]
        clipped = written([Unit(unit.day, unit.speaker, said.rstrip(" ,") + "…")])
        if count_tokens(clipped) <= max_tokens:
            text, low = clipped if any(map(str.isalnum, said)) else text, middle + 1
        else:
            high = middle - 1
    return text
