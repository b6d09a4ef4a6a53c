"""How many questions about what was folded can be answered from summary, recalled messages and buffer.

    python benchmarks/recall_quality.py EVAL_DIR [--budgets 200,400,800]

EVAL_DIR is the folder that ``make quality EVAL=DIR`` names; its measure is used as it is. For each question about
folded messages a context is made of the summary, of messages recalled with the question as the query and within as many
tokens again, and of the buffer. Messages are indexed, ranked and chosen by the code of the package; only PostgreSQL,
which finds the rows that have a term, is not in between.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retention import summarize

from contract_engine.memory import TokenCounter
from contract_engine.memory.ranking import Match, best_first, questions_of, scores, with_neighbours, within_budget
from contract_engine.memory.recall import most_candidates
from contract_engine.memory.terms import message_terms, query_terms


class Conversation:
    """The folded messages of a conversation, as the package would search them; their numbers begin at 1."""

    def __init__(self, messages: Sequence[Mapping[str, Any]]) -> None:
        counter = TokenCounter()
        self.tokens = {seq: counter.count_message_tokens(dict(message)) for seq, message in enumerate(messages, 1)}
        found = [message_terms(message, 0.0) for message in messages]
        self._matches = {
            seq: Match(len(terms), {term: terms.count(term) for term in set(terms)})
            for seq, terms in enumerate(found, 1)
        }

    def recall(self, question: str, last_seq: int, budget: int) -> list[int]:
        """Return the numbers of the messages to recall, in order."""
        folded = {seq: match for seq, match in self._matches.items() if seq <= last_seq}
        total_length = sum(match.length for match in folded.values())
        scored = scores(query_terms(question), folded, count=last_seq, total_length=total_length)
        shared = with_neighbours(scored, questions_of(folded), last_seq=last_seq)
        return within_budget(best_first(shared, most_candidates(budget)), self.tokens, budget)


def measure(locomo: Any, metrics: Any, budget: int) -> tuple[dict[str, list[float]], list[int]]:
    """Return for each conversation which share of each question's answer can be recovered, and the tokens recalled."""
    evaluation = locomo.LocomoEval()
    traces = evaluation.run(summarize, budget)
    hits: dict[str, list[float]] = defaultdict(list)
    used = []
    for name, conversation in evaluation.convs.items():
        messages, trace = conversation["messages"], traces[name]
        searched = Conversation(messages)
        kept = metrics.windows(metrics.ctx_units(trace.summary, messages[trace.buf_start :]))
        for question in evaluation.qas[name]:
            if question.last_ev >= trace.buf_start:
                continue
            chosen = searched.recall(question.q["question"], trace.buf_start, budget)
            used.append(sum(searched.tokens[seq] for seq in chosen))
            recalled = metrics.windows(metrics.ctx_units("", [messages[seq - 1] for seq in chosen]))
            hits[name].append(question.ans([*kept, *recalled])[1])
    return hits, used


def main() -> int:
    """Print a line for each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("eval_dir", type=Path, help="the folder with the measure")
    parser.add_argument("--budgets", default="200,400,800", help="tokens of the summary, and of what is recalled")
    options = parser.parse_args()
    if not (options.eval_dir / "locomo.py").is_file():
        parser.error(f"{options.eval_dir} has no locomo.py")
    sys.path.insert(0, str(options.eval_dir))
    locomo, metrics = importlib.import_module("locomo"), importlib.import_module("metrics")
    for budget in map(int, options.budgets.split(",")):
        hits, used = measure(locomo, metrics, budget)
        every = [hit for found in hits.values() for hit in found]
        print(
            f"recall   b={budget:4d} n={len(every)} hit={statistics.mean(every):.3f} recalled tokens "
            f"{statistics.mean(used):.0f} | "
            + " ".join(f"{name} {statistics.mean(found):.3f}" for name, found in hits.items()),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
