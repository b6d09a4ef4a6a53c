"""A message is logged, and before its writer has told Redis others log what waited: its receipt has its number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from memory_contract import Backend, logged, run_between, say

from contract_engine.memory.models import EXTRACTIVE, Receipt

pytest_plugins = ("memory_fixtures",)


class Others:
    """Another process, and what it may do meanwhile to session ``s``, where messages wait that nobody has logged."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._manager: Any = backend.open()
        self._sessions: Any = self._manager._flows._sessions

    def _run(self, flow: Any) -> Any:
        return self._backend.run(self._manager, flow)

    def wait(self, *numbers: int) -> None:
        outgoing = [self._manager._flows._intake.message(say(number), f"m{number}") for number in numbers]
        self._run(self._sessions.unlogged.append("s", outgoing, read=False, expected_seq=0))

    def drain(self) -> None:
        assert self._manager.drain("s") == 2

    def drain_and_read(self) -> None:
        self.drain()
        self._manager.get_context("s")

    def drain_and_begin_to_read(self) -> None:
        self.drain()
        assert self._run(self._sessions.cache.claim("s", b""))[1]

    def drain_and_fold(self) -> None:
        self.drain_and_read()
        state = self._run(self._sessions.folding.read_truth("s"))
        folding = self._sessions.folding.commit("s", state, last_seq=state.last_seq, text="All.", method=EXTRACTIVE)
        assert self._run(folding).watermark == state.last_seq


def append(backend: Backend, numbers: list[int], meanwhile: Callable[[], None] | None = None) -> list[Receipt]:
    """Append messages, and let something else happen when they are in the log and Redis is still to be told."""
    writer: Any = backend.open()
    outgoing = [writer._flows._intake.message(say(number), f"m{number}") for number in numbers]
    flow = writer._flows._sessions.append("s", outgoing)
    done = backend.run(writer, flow) if meanwhile is None else run_between(writer, flow, after=1, action=meanwhile)
    receipts: list[Receipt] = done.receipts
    return receipts


def in_log(backend: Backend) -> dict[str, int]:
    """Return the number of each message by what it says."""
    assert backend.database_url is not None
    return {message["content"]: seq for seq, message in logged(backend.database_url, backend.tenant, "s")}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "meanwhile", [Others.drain, Others.drain_and_read, Others.drain_and_begin_to_read, Others.drain_and_fold]
)
@pytest.mark.parametrize("is_known", [True, False])
def test_who_was_moved_before_redis_was_told_is_told_the_new_number(
    blocking: Backend, meanwhile: Callable[[Others], None], count: int, *, is_known: bool
) -> None:
    others = Others(blocking)
    if is_known:
        append(blocking, [1])
    others.wait(2, 3)
    numbers = list(range(4, 4 + count))
    receipts = append(blocking, numbers, lambda: meanwhile(others))
    places = in_log(blocking)
    assert [receipt.seq for receipt in receipts] == [places[say(number)["content"]] for number in numbers]
    assert receipts[0].seq == 3 + is_known, "what waited stands before it"
    assert not any(receipt.degraded for receipt in receipts)


def test_who_sends_a_batch_again_with_more_in_it_is_told_numbers_that_stay(blocking: Backend) -> None:
    others = Others(blocking)
    append(blocking, [1])
    append(blocking, [2])
    others.wait(3, 4)
    receipts = append(blocking, [1, 5])
    others._manager.get_context("s")
    assert list(in_log(blocking)) == [say(number)["content"] for number in range(1, 6)]
    assert [receipt.seq for receipt in receipts] == [1, 5]
