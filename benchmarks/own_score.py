"""How much a summary keeps of what is needed later, on the shipped conversations and without a model: ``make quality``.

A conversation is folded as a session folds it (due at 3,000 tokens, down to 1,000; these conversations are short, so at
1,000 and 300 by default). What is needed: numbers, ids, dates, names and addresses that a later tool call passes or a
later answer tells, that were said in what is folded, and that the buffer does not hold: only the summary still can.
``kept`` is the share of them that it holds, ``floor`` the same for the summaries of the other conversations, and
``rolling`` what a summary made fold by fold keeps, as a ratio to one made of the same messages at once.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retention import summarize
from rich.console import Console
from rich.progress import track
from rich.table import Table

from contract_engine.demo import conversations
from contract_engine.memory import TokenCounter

Messages = Sequence[Mapping[str, Any]]

REACH_ROLLING = 0.97
BUDGETS = (200, 400, 800)
_VALUE = re.compile(r"#?[\w@.+-]*\d[\w@.+-]*\w|[\w.+-]+@[\w-]+\.\w+|(?<=[a-z,] )[A-Z][^\W\d_]{2,}")
_counter = TokenCounter()


@dataclass(frozen=True, slots=True)
class Fold:
    """A summary, what was folded into it, the buffer beside it, and what comes until the next fold."""

    summary: str
    folded: Messages
    buffer: Messages
    later: Messages
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Score:
    """One line of the table."""

    max_tokens: int
    needed: int
    kept: float
    floor: float
    rolling: float
    milliseconds: float


def text_of(messages: Messages) -> str:
    """Return all that the messages tell."""
    return "\n".join(json.dumps(message, ensure_ascii=False).replace('\\"', '"') for message in messages)


def values(text: str) -> set[str]:
    """Return the numbers, ids, dates, names and addresses of a text."""
    return {match.strip(".+-") for match in _VALUE.findall(text) if len(match) > 2}


def folds(messages: Messages, max_tokens: int, *, trigger: int, keep: int) -> list[Fold]:
    """Fold a conversation as it goes on."""
    cuts: list[tuple[int, int]] = []  # up to where is folded, and how much was seen by then
    start = 0
    tokens = [_counter.count_message_tokens(message) for message in messages]
    for seen in range(1, len(messages) + 1):
        if sum(tokens[start:seen]) > trigger:
            while start < seen - 1 and (sum(tokens[start:seen]) > keep or messages[start]["role"] == "tool"):
                start += 1
            cuts.append((start, seen))
    found: list[Fold] = []
    summary = ""
    for number, (end, seen) in enumerate(cuts):
        began = time.perf_counter()
        summary = summarize(summary, messages[cuts[number - 1][0] if number else 0 : end], max_tokens)
        taken = (time.perf_counter() - began) * 1000
        until = cuts[number + 1][1] if number + 1 < len(cuts) else len(messages)
        found.append(Fold(summary, messages[:end], messages[end:seen], messages[seen:until], taken))
    return found


def needed(fold: Fold) -> set[str]:
    """Return the values that come again and that only the summary can still hold."""
    later = [message for message in fold.later if message["role"] == "assistant"]
    return (values(text_of(later)) & values(text_of(fold.folded))) - values(text_of(fold.buffer))


def score(all_folds: Sequence[Sequence[Fold]], max_tokens: int) -> Score:
    """Score every fold of every conversation."""
    kept: list[bool] = []
    floor: list[bool] = []
    at_once: list[bool] = []
    for own in all_folds:
        others = [values(other[-1].summary) for other in all_folds if other is not own]
        for fold in own:
            wanted, held = sorted(needed(fold)), values(fold.summary)
            whole = values(summarize("", fold.folded, max_tokens)) if wanted else set()
            kept += [value in held for value in wanted]
            floor += [value in other for value in wanted for other in others]
            at_once += [value in whole for value in wanted]
    mean = statistics.mean(kept)
    taken = statistics.median(fold.milliseconds for own in all_folds for fold in own)
    return Score(max_tokens, len(kept), mean, statistics.mean(floor), mean / statistics.mean(at_once), taken)


def read(folder: Path | None) -> Iterator[Messages]:
    """Give the conversations that are shipped, or those of a folder's ``*.jsonl`` files that hold messages."""
    if folder is None:
        yield from (record["messages"] for record in conversations())
        return
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text("utf-8").split("\n"):
            record = json.loads(line) if line else {}
            if isinstance(record, dict) and "messages" in record:
                yield record["messages"]


def main() -> int:
    """Print the table; exit code 1 where folding again and again loses more than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)), help="tokens of a summary (200,400,800)")
    parser.add_argument("--trigger", type=int, default=1000, help="tokens at which a fold is due (default 1000)")
    parser.add_argument("--keep", type=int, default=300, help="tokens that stay word for word (default 300)")
    parser.add_argument("--data", type=Path, help="a folder of other conversations, one JSON with messages per line")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    told = [[one for one in messages if one["role"] != "system"] for messages in read(options.data)]
    budgets = [int(budget) for budget in options.budgets.split(",")]
    scores = []
    for budget in track(budgets, description="folding", disable=options.json, console=Console(stderr=True)):
        made = [folds(messages, budget, trigger=options.trigger, keep=options.keep) for messages in told]
        scores.append(score([own for own in made if own], budget))
    if options.json:
        print(json.dumps([asdict(one) for one in scores], indent=2))
    else:
        table = Table(title=f"What summaries keep of what is needed later ({len(told)} conversations)")
        for name in ("tokens", "values needed", "kept", "floor", "rolling / at once", "ms per fold"):
            table.add_column(name, justify="right")
        for one in scores:
            colour = "green" if one.rolling >= REACH_ROLLING else "red"
            table.add_row(
                str(one.max_tokens),
                str(one.needed),
                f"{one.kept:.3f}",
                f"{one.floor:.3f}",
                f"[{colour}]{one.rolling:.3f}[/]",
                f"{one.milliseconds:.1f}",
            )
        Console().print(table)
    return 0 if all(one.rolling >= REACH_ROLLING for one in scores) else 1


if __name__ == "__main__":
    sys.exit(main())
