"""The checker of fidelity: what a summary tells must have been told to it.

Numbers, identifiers, addresses and names (capitalised words) of a summary are looked for, as whole words, in what the
messages hold: text, names, tool calls and results, keys and values. A line that is a date is looked for among the days
of the messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

DAY_LINE = re.compile(r"(\d{1,2}) ([A-Z][a-z]{2})(?: (\d{1,4}))?|no date")
WORD = re.compile(r"[^\W_](?:[\w.+@'’-]*[^\W_])?")
AT_SIGNS = re.compile(r"[.-]+['’]?(?=[^\W\d_])")
CUT = re.compile(r"[\w.+@'’-]*…")
"""What was cut short: only its beginning was said."""


def untold(summary: str, messages: Sequence[Mapping[str, object]], times: Sequence[float] = ()) -> list[str]:
    """Return what the summary tells that was not in the messages or their times."""
    said = set(_words("\n".join(_texts(list(messages)))))
    days = _days(messages, times)
    found: list[str] = []
    for line in summary.splitlines():
        if match := DAY_LINE.fullmatch(line.strip("[]")):
            if match[1] and not any(day.startswith(line) for day in days):
                found.append(line)
            continue
        for word in WORD.findall(CUT.sub("", line)):
            is_fact = any(map(str.isdigit, word)) or word[0].isupper()
            if is_fact and not set(_forms(word)) & said:
                found.append(word)
    return found


def _words(text: str) -> Iterator[str]:
    for word in WORD.findall(text):
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
    elif value is not None:
        yield str(value)


def _days(messages: Sequence[Mapping[str, object]], times: Sequence[float]) -> set[str]:
    moments = [datetime.fromtimestamp(time, UTC) for time in times]
    for message in messages:
        stamp = message.get("timestamp")
        if isinstance(stamp, str):
            moments.append(datetime.fromisoformat(stamp))
        elif isinstance(stamp, int | float):
            moments.append(datetime.fromtimestamp(stamp, UTC))
    return {f"{moment.day} {moment:%b} {moment.year}" for moment in moments}
