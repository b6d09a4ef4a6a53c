"""Pinned messages with a server away: nothing is pinned that is not in the log, and nothing that is pinned is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from crash_matrix import DATABASE, REDIS, Interposition
from crash_operations import LIMITS, PATIENT
from memory_contract import Backend, assert_context, say

from contract_engine.memory import DatabaseUnavailableError, InvalidInputError, MemoryManager, RedisUnavailableError

pytest_plugins = ("memory_fixtures",)


@contextmanager
def away(manager: MemoryManager, server: str) -> Iterator[None]:
    interposition = Interposition(manager, away=server)
    yield
    manager.wait_for_folds()
    interposition.remove()


def tell(manager: MemoryManager, count: int, *, start: int = 1) -> list[dict[str, Any]]:
    said = [say(number) for number in range(start, start + count)]
    for number, message in enumerate(said, start):
        manager.append("s", message, message_id=f"id{number}")
        manager.wait_for_folds()
    return said


def seqs(context: dict[str, Any]) -> list[int]:
    return [pinned["seq"] for pinned in context["pinned_messages"]]


def test_nothing_is_pinned_while_the_log_is_away(blocking: Backend) -> None:
    manager = blocking.open(limits=LIMITS, **PATIENT)
    tell(manager, 3)
    manager.pin("s", "id2")
    with away(manager, DATABASE):
        for call in (
            lambda: manager.pin("s", "id1"),
            lambda: manager.unpin("s", "id2"),
            lambda: manager.set_summary_instructions("s", "numbers"),
            lambda: manager.get_summary_instructions("s"),
        ):
            with pytest.raises(DatabaseUnavailableError):
                call()
    said = [say(number) for number in range(1, 4)] + tell(manager, 12, start=4)
    context = manager.get_context("s")
    assert seqs(context) == [2]
    assert_context(context, said)
    assert manager.get_summary_instructions("s") is None


def test_a_message_that_waits_in_redis_is_logged_and_pinned(blocking: Backend) -> None:
    manager, other = (blocking.open(limits=LIMITS, **PATIENT) for _ in range(2))
    said = tell(manager, 2)
    with away(manager, DATABASE):
        said += tell(manager, 2, start=3)
    assert other.pin("s", "id4")
    assert other.pin("s", "id3")
    said += tell(manager, 12, start=5)
    context = other.get_context("s")
    assert seqs(context) == [3, 4]
    assert_context(context, said)


def test_a_message_that_may_wait_where_nobody_can_look_is_not_called_unknown(blocking: Backend) -> None:
    manager, other = (blocking.open(limits=LIMITS, **PATIENT) for _ in range(2))
    tell(manager, 2)
    with away(manager, DATABASE):
        tell(manager, 1, start=3)
    for each in (manager, other):
        with away(each, REDIS):
            with pytest.raises(RedisUnavailableError):
                each.pin("s", "id3")
            assert each.pin("s", "id1"), "that one is in the log"
    with pytest.raises(InvalidInputError):
        other.pin("s", "id4")
    assert other.pin("s", "id3")


@pytest.mark.parametrize("before", [3, 14])
def test_folds_in_redis_alone_keep_what_is_pinned(blocking: Backend, raw: redis.Redis, before: int) -> None:
    """With nothing folded yet and with a summary, of which Redis has the copy."""
    manager = blocking.open(limits=LIMITS, **PATIENT)
    said = tell(manager, before)
    for name in ("id2", f"id{before}"):
        manager.pin("s", name)
    manager.set_summary_instructions("s", "numbers")
    manager.get_context("s")
    with away(manager, DATABASE):
        said += tell(manager, 20, start=before + 1)
        context = manager.get_context("s")
        assert context["degraded"]
        assert context["watermark"] > before
        assert seqs(context) == [2, before]
    for reader in (manager, blocking.open(limits=LIMITS, **PATIENT)):
        reader.get_context("s")
        reader.drain("s")
        context = reader.get_context("s")
        assert not context["degraded"]
        assert seqs(context) == [2, before]
        assert [one["message"] for one in context["pinned_messages"]] == [said[1], said[before - 1]]
        assert_context(context, said)
        assert reader.get_summary_instructions("s") == "numbers"


def test_what_is_pinned_while_redis_is_away_is_there_at_once_and_later(blocking: Backend) -> None:
    manager, other = (blocking.open(limits=LIMITS, **PATIENT) for _ in range(2))
    said = tell(manager, 14)
    with away(manager, REDIS):
        assert manager.pin("s", "id2")
        context = manager.get_context("s")
        assert (context["source"], seqs(context)) == ("postgres", [2])
        assert_context(context, said)
    manager.get_context("s")  # tells Redis
    manager.wait_for_folds()
    for reader in (manager, other):
        context = reader.get_context("s")
        assert seqs(context) == [2]
        assert_context(context, said)
