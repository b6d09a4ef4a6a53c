"""The checker of fidelity: what a summary tells must have been told to it.

Every word of a summary (numbers, identifiers, addresses, names in whatever case) is looked for, as a whole word, in
what the messages hold: text, names, tool calls and results, keys and values. Chinese and Japanese, which have no blanks
between words, are looked for as they stand there. A line that is a date is looked for among the days of the messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

DAY_LINE = re.compile(r"(\d{1,2}) ([A-Z][a-z]{2})(?: (\d{1,4}))?|no date")
WORD = re.compile(r"[^\W_](?:[\w.+@'’-]*[^\W_])?")
AT_SIGNS = re.compile(r"[.-]+['’]?(?=[^\W\d_])")
CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
LABELS = ("tool", "call", "error", "unknown")
"""Words with which a line may begin though nobody said them."""
CUT = re.compile(r"[\w.+@'’-]*…")
"""What was cut short: only its beginning was said."""


def untold(summary: str, messages: Sequence[Mapping[str, object]], times: Sequence[float] = ()) -> list[str]:
    """Return what the summary tells that was not in the messages or their times."""
    return Told(messages, times).untold(summary)


class Told:
    """What messages and their times tell, to check several summaries against."""

    def __init__(self, messages: Sequence[Mapping[str, object]], times: Sequence[float] = ()) -> None:
        self._text = "\n".join(_texts(list(messages)))
        self._words = {*_words(self._text), *LABELS}
        self._days = _days(messages, times)

    def untold(self, summary: str) -> list[str]:
        """Return what the summary tells besides."""
        found: list[str] = []
        for line in summary.splitlines():
            if match := DAY_LINE.fullmatch(line.strip("[]")):
                if match[1] and not any(day.startswith(line) for day in self._days):
                    found.append(line)
                continue
            uncut = CUT.sub("", line)
            found += [run for run in CJK.findall(uncut) if run not in self._text]
            for word in WORD.findall(CJK.sub(" ", uncut)):
                if self._words.isdisjoint(_forms(word)):
                    found.append(word)
        return found


def _words(text: str) -> Iterator[str]:
    for word in WORD.findall(CJK.sub(" ", text)):
        yield from _forms(word)
        # People leave out the blank between two sentences, or a dash's ("okay.Check", "no--Cause").
        for part in AT_SIGNS.split(word):
            yield from _forms(part)


def _forms(word: str) -> Iterator[str]:
    """Give a word as it may stand in another sentence: without what a note drops at an apostrophe."""
    yield word
    yield re.split("['’]", word, maxsplit=1)[0]


def _texts(value: object) -> Iterator[str]:
    """Give every text, key and number inside a message; JSON in a text also as what it says."""
    if isinstance(value, str):
        yield value
        if value.lstrip()[:1] in ("{", "["):
            try:
                yield from _texts(json.loads(value))
            except (ValueError, RecursionError):
                return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    else:
        yield json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _days(messages: Sequence[Mapping[str, object]], times: Sequence[float]) -> set[str]:
    moments = [datetime.fromtimestamp(time, UTC) for time in times]
    for message in messages:
        stamp = message.get("timestamp")
        if isinstance(stamp, str):
            moments.append(datetime.fromisoformat(stamp))
        elif isinstance(stamp, int | float):
            moments.append(datetime.fromtimestamp(stamp, UTC))
    return {f"{moment.day} {moment:%b} {moment.year}" for moment in moments}
