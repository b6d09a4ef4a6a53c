"""Write the summaries that docs/summaries.md shows: ``python benchmarks/summaries_page.py``.

They are those of the longest of the shipped conversations, folded as a session folds it that is due at 1,500 tokens. A
test compares the page with what the summarizer writes now.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contract_engine.demo import conversations
from contract_engine.memory import TokenCounter
from contract_engine.memory.exchange import plan_fold
from contract_engine.memory.summarizers import ExtractiveSummarizer, SummaryRequest
from contract_engine.memory.summarizers.phrases import Phrases

PAGE = Path(__file__).parent.parent / "docs" / "summaries.md"
CONVERSATION = "tau-airline-2-1"
TRIGGER_TOKENS, MAX_MESSAGES, SUMMARY_TOKENS = 1500, 30, 400
SHOWN = (1, 5, 9)
_BLOCK = re.compile(
    r"(<!-- (notes|readable|sentences|message) (\d+) -->\n```text\n).*?(^```$)", re.DOTALL | re.MULTILINE
)


def said() -> list[Mapping[str, Any]]:
    """Return the messages, without the system prompt, which an orchestrator keeps itself."""
    record = next(record for record in conversations() if record["id"] == CONVERSATION)
    return [message for message in record["messages"] if message["role"] != "system"]


def summaries(*, readable: bool) -> list[str]:
    """Return the summary after every fold."""
    counter, summarizer = TokenCounter(), ExtractiveSummarizer(readable=readable)
    buffer: list[Mapping[str, Any]] = []
    found: list[str] = []
    for message in said():
        buffer.append(message)
        tokens = [counter.count_message_tokens(one) for one in buffer]
        if sum(tokens) < TRIGGER_TOKENS and len(buffer) < MAX_MESSAGES:
            continue
        count = plan_fold(
            buffer, tokens, target_tokens=TRIGGER_TOKENS // 2, target_messages=MAX_MESSAGES // 2, hard=False
        )
        if count:
            request = SummaryRequest(
                previous=found[-1] if found else "",
                messages=buffer[:count],
                max_tokens=SUMMARY_TOKENS,
                count_tokens=counter.count_tokens,
            )
            found.append(summarizer.summarize(request))
            del buffer[:count]
    return found


def filled(page: str) -> str:
    """Return the page with its blocks as they should be."""
    notes = summaries(readable=False)
    phrases = Phrases(notes)
    phrases.look_through(said(), ())
    texts: dict[str, Sequence[str]] = {
        "notes": notes,
        "readable": [phrases.readable(text).text for text in notes],
        "sentences": summaries(readable=True),
        "message": [str(message.get("content") or message.get("tool_calls")) for message in said()],
    }

    def block(match: re.Match[str]) -> str:
        return match[1] + texts[match[2]][int(match[3]) - 1] + "\n" + match[4]

    return _BLOCK.sub(block, page)


if __name__ == "__main__":
    before = PAGE.read_text("utf-8")
    after = filled(before)
    if "--check" in sys.argv:
        sys.exit(after != before)
    PAGE.write_text(after, "utf-8")
    print(f"{PAGE.name} " + ("is as it was" if after == before else "was brought up to date"))
