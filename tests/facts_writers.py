"""Writers of facts that answer from what they are asked, and what must hold for the versions that come of it."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from contract_engine.memory.summarizers import Facts, FactsRequest, Rejected


def fact_of(message: Mapping[str, object]) -> str:
    """Return a fact that nobody tells but of this message."""
    number = message["content"] if "n" not in message else f"{message['writer']}-{message['n']}-"
    found = re.search(r"\d+(-\d+-)?", str(number))
    assert found is not None
    return f"user: Fact <{found[0]}> holds."


def facts_in(text: str | None) -> list[str]:
    """Return what the facts in a text are about, in their order."""
    return re.findall(r"<([\d-]+)>", text or "")


class Notes:
    """Tells one fact of each message; ``requests`` are those it was asked."""

    def __init__(self) -> None:
        self.requests: list[FactsRequest] = []
        self.extra = ""
        """Told with every answer."""
        self.fails = False

    async def write(self, request: FactsRequest) -> Facts | Rejected | None:
        self.requests.append(request)
        if self.fails:
            return None
        lines = [fact_of(message) for message in request.messages]
        if self.extra:
            lines.append(self.extra)
        return Facts("\n".join(lines), "little-1", "hash-1", 10 * len(lines), len(lines))

    @property
    def asked(self) -> list[list[str]]:
        """What each request was about."""
        return [facts_in("\n".join(map(fact_of, request.messages))) for request in self.requests]


class PickyNotes(Notes):
    """Is turned down, for ``reason``, wherever it is shown one of ``poison``."""

    def __init__(self, *poison: str, reason: str = "malformed") -> None:
        super().__init__()
        self.poison = poison
        self.reason = reason

    async def write(self, request: FactsRequest) -> Facts | Rejected | None:
        found = await super().write(request)
        shown = f"{request.before} {request.messages}"
        return Rejected(self.reason) if any(text in shown for text in self.poison) else found


class HeldNotes(Notes):
    """Answers when it is let go; ``begun`` is set by the first request that waits."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.let_go = threading.Event()

    async def write(self, request: FactsRequest) -> Facts | Rejected | None:
        found = await super().write(request)
        self.begun.set()
        while not self.let_go.is_set():
            await asyncio.sleep(0.005)
        return found


class RaisingNotes(Notes):
    """Fails in a way nobody foresaw."""

    async def write(self, request: FactsRequest) -> Facts | Rejected | None:
        await super().write(request)
        raise RuntimeError("the writer is broken")


def assert_chain(history: Sequence[Mapping[str, Any]]) -> None:
    """Hold the versions against each other: each covers what its parent covers and what it adds, and none covers less.

    ``history`` begins with version 1.
    """
    assert [entry["version"] for entry in history] == list(range(1, len(history) + 1))
    ends = {entry["version"]: entry["last_seq"] for entry in history}
    for entry in history:
        parent = entry["parent"]
        assert parent is None or parent < entry["version"]
        assert entry["first_seq"] == (1 if parent is None else ends[parent] + 1), entry
        before = ends.get(entry["version"] - 1, 0)
        assert entry["last_seq"] >= before, "coverage went back"
        if entry["method"] == "extractive":
            assert parent == (entry["version"] - 1 or None)
            assert entry["last_seq"] > before


def methods(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return [entry["method"] for entry in history]
