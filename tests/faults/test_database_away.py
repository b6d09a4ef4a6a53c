"""PostgreSQL away: messages are acknowledged by Redis, read from there, and logged in their order when it is back."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import psycopg
import pytest
from crash_matrix import OUTAGE, REDIS, Fault, Interposition
from lost_messages import nothing_lost
from memory_contract import (
    ASYNC,
    DURABLE,
    SYNC,
    Backend,
    assert_caps,
    assert_context,
    logged,
    row_counts,
    run_between,
    run_threads,
    say,
    talk,
)
from server_faults import Outage, waited_for
from servers import PrivateServers, redis_client
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.memory import (
    CircuitState,
    DatabaseUnavailableError,
    MemoryManager,
    MessageConflictError,
    StoreUnavailableError,
)
from contract_engine.memory._effects import Flow

pytest_plugins = ("memory_fixtures",)

T = TypeVar("T")

RECOVERY_SECONDS = 0.2
OUTAGE_SECONDS = 60.0
SETTINGS: dict[str, Any] = {
    "redis_timeout_seconds": 5.0,
    "database_timeout_seconds": 2.0,
    "breaker_failure_threshold": 2,
    "breaker_recovery_seconds": RECOVERY_SECONDS,
    "database_breaker_recovery_seconds": RECOVERY_SECONDS,
}


class Away(Outage):
    """An outage of PostgreSQL, with managers that notice its end soon."""

    def end(self) -> None:
        """Bring the database back and wait until nobody's breaker is in the way."""
        self.servers.start()
        breakers = [manager.database_breaker for manager in self.backend.opened]
        assert waited_for(lambda: all(breaker.get_state() is not CircuitState.OPEN for breaker in breakers))

    def logged(self, session_id: str = "s") -> list[dict[str, Any]]:
        rows = logged(self.servers.database_url, self.backend.tenant, session_id)
        assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
        return [message for _, message in rows]

    def waiting(self, session_id: str = "s") -> list[Any]:
        with redis_client(self.servers.redis_url) as client:
            return [json.loads(item) for item in client.lrange(self.backend.keys(session_id).unlogged, 1, -1)]


def _away(private_servers: PrivateServers, colour: str, tenant: str) -> Iterator[Away]:
    servers = private_servers()
    backend = Backend(colour, DURABLE, servers.redis_url, servers.database_url, tenant)
    with closing(Away(servers, backend, SETTINGS)) as outage:
        yield outage


@pytest.fixture(params=[SYNC, ASYNC])
def away(request: pytest.FixtureRequest, private_servers: PrivateServers, tenant: str) -> Iterator[Away]:
    """Both colours."""
    yield from _away(private_servers, request.param, tenant)


@pytest.fixture
def blocking(private_servers: PrivateServers, tenant: str) -> Iterator[Away]:
    """Managers that threads may share, and whose flows can be stopped half way."""
    yield from _away(private_servers, SYNC, tenant)


def test_a_session_goes_on_and_is_logged_afterwards(away: Away) -> None:
    manager, other = away.open(max_buffer_messages=6), away.open(max_buffer_messages=6)
    manager.add_messages("s", talk(4))
    away.kill_database()
    for number in range(5, 21):
        receipt = manager.append("s", say(number))
        assert (receipt.seq, receipt.durable, receipt.degraded) == (number, False, True)
        for reader in (manager, other):
            context = reader.get_context("s")
            assert_context(context, talk(number))
            assert_caps(context)
            assert (context["source"], context["degraded"]) == ("redis", True)
    assert manager.database_breaker.get_state() == CircuitState.OPEN
    assert manager.circuit_breaker.get_state() == CircuitState.CLOSED, "it guards Redis"
    assert [row[4] for row in away.waiting()] == talk(16, start=5)

    away.end()
    receipt = manager.append("s", say(21))
    assert (receipt.seq, receipt.durable, receipt.degraded) == (21, True, False)
    assert away.logged() == talk(21)
    assert away.waiting() == []
    for reader in (manager, other):
        context = reader.get_context("s")
        assert_context(context, talk(21))
        assert_caps(context)
        assert context["degraded"] is False
    assert manager.get_context("s")["source"] == "redis"


def test_turns_and_batches_go_on_too(away: Away) -> None:
    manager = away.open(max_buffer_messages=6)
    away.kill_database()
    assert manager.add_message("s", say(1)) is True
    context = manager.add_and_get_context("s", say(2))
    assert context["buffer_messages"] == talk(2)
    receipts = manager.add_messages("s", talk(20, start=3))
    assert [receipt.seq for receipt in receipts] == list(range(3, 23))
    assert not any(receipt.durable for receipt in receipts)
    assert_caps(manager.get_context("s"))
    away.end()
    assert_context(manager.add_and_get_context("s", say(23)), talk(23))
    assert away.logged() == talk(23)


def test_what_came_before_may_not_be_known(away: Away) -> None:
    """Redis has lost the session, PostgreSQL is away: what is said goes on, and nobody takes it for the whole."""
    manager = away.open()
    manager.add_messages("s", talk(5))
    away.kill_database()
    with redis_client(away.servers.redis_url) as client:
        assert client.delete(away.backend.keys("s").buffer) == 1
    with pytest.raises(DatabaseUnavailableError):
        manager.get_context("s")
    manager.append("s", say(6))
    context = manager.get_context("s")
    assert context["buffer_messages"] == [say(6)]
    assert (context["complete"], context["degraded"]) == (False, True)
    away.end()
    context = manager.get_context("s")
    assert_context(context, talk(6))
    assert context["degraded"] is False
    assert away.logged() == talk(6)


def test_reading_is_enough_to_have_it_logged(away: Away) -> None:
    manager = away.open()
    manager.append("s", say(1))
    away.kill_database()
    manager.append("s", say(2))
    away.end()
    context = manager.get_context("s")
    assert context["buffer_messages"] == talk(2)
    manager.wait_for_folds()
    assert waited_for(lambda: bool(manager.get_context("s")) and away.logged() == talk(2))
    assert waited_for(lambda: manager.wait_for_folds() and manager.get_context("s")["degraded"] is False)
    assert_context(manager.get_context("s"), talk(2))


def test_an_id_has_one_effect_across_the_outage(away: Away) -> None:
    manager = away.open()
    assert manager.append("s", say(1), message_id="before").seq == 1
    away.kill_database()
    for _ in range(3):
        assert manager.append("s", say(1), message_id="before").seq == 1
        assert manager.append("s", say(2), message_id="during").seq == 2
    with pytest.raises(MessageConflictError):
        manager.append("s", say(9), message_id="during")
    away.end()
    for _ in range(2):
        assert manager.append("s", say(2), message_id="during").seq == 2
        assert manager.append("s", say(3), message_id="after").seq == 3
    assert away.logged() == talk(3)
    assert_context(manager.get_context("s"), talk(3))


def test_an_id_of_the_log_that_redis_has_forgotten(away: Away) -> None:
    """Nobody can see while PostgreSQL is away that the id is taken: the same message is kept once, another one too."""
    manager = away.open(max_buffer_messages=2)
    for number in (1, 2, 3, 4, 5):
        manager.append("s", say(number), message_id=f"id{number}")
    manager.wait_for_folds()
    away.kill_database()
    assert manager.append("s", say(1), message_id="id1").durable is False
    assert manager.append("s", say(6), message_id="id2").durable is False
    away.end()
    manager.append("s", say(7))
    assert away.logged() == [*talk(6), say(7)]


def test_what_was_acknowledged_first_is_logged_first(away: Away) -> None:
    """Another process notices nothing of an outage and logs a message before what waits: it takes its own back."""
    manager, other = away.open(), away.open()
    manager.append("s", say(1))
    assert_context(other.get_context("s"), talk(1))
    away.kill_database()
    manager.add_messages("s", talk(2, start=2))
    away.end()
    receipt = other.append("s", say(4), message_id="mine")
    assert (receipt.seq, receipt.durable) == (4, True)
    assert away.logged() == talk(4)
    assert other.append("s", say(4), message_id="mine").seq == 4
    assert_context(manager.get_context("s"), talk(4))


def test_rounds_of_a_drain_follow_each_other(blocking: Away) -> None:
    """A round begins where the one before it ended, whatever the clock said when its messages were acknowledged."""
    manager = blocking.open(max_buffer_messages=10_000, max_buffer_tokens=2_000_000)
    manager.append("s", say(1))
    blocking.kill_database()
    manager.add_messages("s", talk(1200, start=2, words=0))
    with redis_client(blocking.servers.redis_url) as client:
        key = blocking.backend.keys("s").unlogged
        for place in (500, 1000):  # the last ones of the first two rounds
            element: Any = client.lindex(key, place)
            seq, tokens, at_ms, *rest = json.loads(element)
            client.lset(key, place, json.dumps([seq, tokens, at_ms + 60_000, *rest], separators=(",", ":")))
    blocking.end()
    assert manager.drain("s") == 1200
    assert blocking.logged() == [say(1), *talk(1200, start=2, words=0)]


def test_rounds_of_two_drains_that_take_turns_keep_the_order(blocking: Away) -> None:
    """What another drain has logged since our last round comes before our next one, not behind it."""
    wide = {"max_buffer_messages": 10_000, "max_buffer_tokens": 2_000_000}
    manager, other = blocking.open(**wide), blocking.open(**wide)
    manager.append("s", say(1))
    blocking.kill_database()
    for start in range(2, 1602, 100):
        manager.add_messages("s", talk(100, start=start, words=0))
    blocking.end()
    ours, theirs = manager._flows._sessions.unlogged, other._flows._sessions.unlogged
    assert ours is not None
    assert theirs is not None
    left: list[int] = []

    def drain_one_round() -> None:
        left.append(len(blocking.waiting()))
        with pytest.raises(KeyboardInterrupt):
            run_between(other, theirs.drain("s"), after=5, action=die)
        left.append(len(blocking.waiting()))

    run_between(manager, ours.drain("s"), after=4, action=drain_one_round)
    assert left[0] > left[1] > 500, "each has drained a round, and there is one more"
    assert blocking.waiting() == []
    assert blocking.logged() == [say(1), *talk(1600, start=2, words=0)]


def test_a_drain_ends_while_others_go_on(blocking: Away) -> None:
    """It owes what waited when it began; processes that do not reach PostgreSQL may be quicker than it is."""
    wide = {"max_buffer_messages": 10_000, "max_buffer_tokens": 2_000_000}
    manager, other = blocking.open(**wide), blocking.open(**wide)
    other.database_breaker.force_open()
    other.add_messages("s", talk(600, words=0))
    starts = iter(range(601, 10_601, 200))
    said = 600

    def say_more() -> None:
        nonlocal said
        if (start := next(starts, None)) is not None:
            other.add_messages("s", talk(200, start=start, words=0))
            said += 200

    unlogged = manager._flows._sessions.unlogged
    assert unlogged is not None
    logged_of_it = manager._runtime.run(before_each(unlogged.drain("s"), say_more)).count
    assert 600 <= logged_of_it <= 1200, "what waited, and the rest of its last round"
    assert len(blocking.waiting()) == said - logged_of_it > 0
    assert manager.drain("s") == said - logged_of_it
    assert blocking.logged() == talk(said, words=0)


def test_what_is_logged_behind_what_waits_is_in_every_copy(blocking: Away) -> None:
    """Others go on in Redis while it is logged in front; who has been told of the one behind is told of it again."""
    manager, other, reader = blocking.open(), blocking.open(), blocking.open()
    manager.append("s", say(1))
    other.database_breaker.force_open()
    numbers = iter(range(101, 113))
    said: list[int] = []

    def say_more() -> None:
        if (number := next(numbers, None)) is not None:
            assert other.append("s", say(number)).durable is False
            said.append(number)

    say_more()
    receipt = manager._runtime.run(before_each(manager._flows.append("s", say(2), None), say_more))
    assert receipt.durable is True
    for who in (reader, manager):
        found = [one["content"] for one in who.get_context("s")["buffer_messages"]]
        assert say(2)["content"] in found
    assert len(said) > 3, "they went on while it was drained"
    other.database_breaker.reset()
    assert_context(reader.get_context("s"), blocking.logged())
    assert sorted(one["content"] for one in blocking.logged()) == sorted(
        say(number)["content"] for number in (1, 2, *said)
    )


def before_each(flow: Flow[T], action: Callable[[], None]) -> Flow[T]:
    """Run a flow, and something else before each of its effects."""
    answer: Any = None
    while True:
        try:
            effect = flow.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        action()
        answer = yield effect


def test_what_was_logged_meanwhile_tears_no_batch_and_comes_before_nothing_that_waited(blocking: Away) -> None:
    """Redis is away for one process while messages wait there for another."""
    wide = {"max_buffer_messages": 10_000, "max_buffer_tokens": 2_000_000}
    manager, other = blocking.open(**wide), blocking.open(**wide)
    manager.append("s", say(1))
    manager.database_breaker.force_open()
    other.circuit_breaker.force_open()
    waiting, logged_meanwhile = [], []
    for number in range(12):
        waiting += talk(100, start=1000 + 100 * number, words=0)
        manager.add_messages("s", waiting[-100:])
        logged_meanwhile.append(say(100 + number))
        assert other.append("s", logged_meanwhile[-1]).degraded is True
    manager.database_breaker.reset()
    assert len(blocking.waiting()) == len(waiting)
    assert manager.drain("s") == len(waiting)
    found = blocking.logged()
    assert found[0] == say(1)
    assert [message for message in found if message in waiting] == waiting
    assert [message for message in found if message in logged_meanwhile] == logged_meanwhile
    for number, message in enumerate(logged_meanwhile):
        place = found.index(message)
        before = sum(other in waiting for other in found[:place])
        assert before >= 100 * (number + 1), "these waited when it was logged"
        assert before % 100 == 0, "a batch is torn"


def test_what_redis_took_long_after_a_message_was_logged_comes_behind_it(blocking: Away) -> None:
    """One list, begun before that message and gone on with after it: Redis was not told of it in between."""
    manager, other = blocking.open(), blocking.open()
    manager.append("s", say(1))
    manager.database_breaker.force_open()
    other.circuit_breaker.force_open()
    said = [say(1)]
    for number in range(2, 8):
        writer = (manager, other)[number % 2]
        assert writer.append("s", say(number)).durable is (writer is other)
        said.append(say(number))
        time.sleep(0.7)  # longer than clocks may be apart
    manager.database_breaker.reset()
    assert manager.drain("s") == 3
    assert blocking.logged() == said
    assert_context(manager.get_context("s"), said)


def test_many_drain_at_once(blocking: Away) -> None:
    managers = [blocking.open() for _ in range(8)]
    managers[0].append("s", say(1))
    blocking.kill_database()
    managers[0].add_messages("s", talk(24, start=2))
    blocking.end()
    run_threads(len(managers), lambda number: drained(managers[number]))
    assert blocking.logged() == talk(25)
    assert blocking.waiting() == []
    assert_context(managers[0].get_context("s"), talk(25))


def drained(manager: MemoryManager) -> None:
    manager.drain("s")
    assert_context(manager.get_context("s"), talk(25))


def test_writers_that_return_at_once(blocking: Away) -> None:
    """Eight writers of eight processes when the database comes back: nobody's order changes, nothing is doubled."""
    managers = [blocking.open() for _ in range(8)]
    managers[0].append("s", say(1))
    blocking.kill_database()
    managers[0].add_messages("s", talk(9, start=2))
    blocking.end()
    receipts: list[list[int]] = [[] for _ in managers]

    def write(number: int) -> None:
        for turn in range(5):
            receipts[number].append(managers[number].append("s", {"content": f"{number}.{turn}"}).seq)

    run_threads(8, write)
    rows = blocking.logged()
    assert rows[:10] == talk(10)
    assert len(rows) == 50
    for number in range(8):
        own = [row["content"] for row in rows if row["content"].startswith(f"{number}.")]
        assert own == [f"{number}.{turn}" for turn in range(5)]
    assert_context(managers[0].get_context("s"), rows)


def die() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("after", range(1, 5))
def test_a_drain_that_is_killed_is_finished_by_the_next(blocking: Away, after: int) -> None:
    """The process dies after each of its steps in turn; what it has logged is not logged again."""
    manager, other = blocking.open(), blocking.open()
    manager.append("s", say(1))
    blocking.kill_database()
    manager.add_messages("s", talk(3, start=2))
    blocking.end()

    unlogged = manager._flows._sessions.unlogged
    assert unlogged is not None
    with pytest.raises(KeyboardInterrupt):
        run_between(manager, unlogged.drain("s"), after=after, action=die)
    other.append("s", say(5))
    assert blocking.logged() == talk(5)
    assert blocking.waiting() == []
    assert_context(manager.get_context("s"), talk(5))


def test_clearing_takes_what_waits_with_it(away: Away) -> None:
    manager = away.open()
    manager.append("s", say(1))
    away.kill_database()
    manager.append("s", say(2))
    assert manager.clear_session_memory("s") is False, "the log is away"
    assert_context(manager.get_context("s"), talk(2))
    away.end()
    assert waited_for(lambda: manager.clear_session_memory("s"))  # a drain in the background may be the one probe
    assert away.logged() == []
    assert away.waiting() == []
    assert manager.append("s", say(1)).seq == 1
    assert_context(manager.get_context("s"), talk(1))


def test_what_was_cleared_is_not_begun_again(away: Away) -> None:
    manager = away.open()
    manager.append("s", say(1))
    away.kill_database()
    assert manager.append("s", say(2)).degraded is True
    away.end()
    assert waited_for(lambda: manager.clear_session_memory("s"))
    assert manager.drain("s") == 0
    assert set(row_counts(away.servers.database_url, away.backend.tenant).values()) == {0}


def test_a_drain_that_failed_keeps_nobody_from_the_next(blocking: Away) -> None:
    manager = blocking.open()
    manager.append("s", say(1))
    blocking.kill_database()
    manager.append("s", say(2))
    assert_context(manager.get_context("s"), talk(2))  # which has it drained in the background, in vain
    assert manager.wait_for_folds()
    with redis_client(blocking.servers.redis_url) as client:
        assert client.exists(blocking.backend.keys("s").drain) == 0


def test_a_drain_that_the_clearing_overtakes_logs_nothing(blocking: Away) -> None:
    """It has read the list, and then the session is erased: no byte of it comes back."""
    manager, other, third = blocking.open(), blocking.open(), blocking.open()
    manager.append("s", say(1))
    blocking.kill_database()
    manager.append("s", say(2))
    blocking.end()
    cleared: list[bool] = []

    def clear() -> None:
        cleared.append(other.clear_session_memory("s"))

    # The writer knows that something waits; the third one finds it, begins the session, and then reads the list.
    for drainer, after in ((manager, 1), (manager, 2), (manager, 3), (third, 1), (third, 2), (third, 3)):
        unlogged = drainer._flows._sessions.unlogged
        assert unlogged is not None
        run_between(drainer, unlogged.drain("s"), after=after, action=clear)
        assert cleared.pop() is True
        assert set(row_counts(blocking.servers.database_url, blocking.backend.tenant).values()) == {0}
        assert other.get_context("s")["last_seq"] == 0
        blocking.kill_database()
        manager.append("s", say(2))
        blocking.end()


def test_the_list_outlives_the_buffer_and_the_buffer_the_list(away: Away) -> None:
    manager = away.open()
    manager.append("s", say(1))
    away.kill_database()
    manager.append("s", say(2))
    manager.append("r", say(1))
    with redis_client(away.servers.redis_url) as client:
        keys = away.backend.keys("s")
        assert client.ttl(keys.unlogged) == -1, "what is only here does not expire"
        assert client.ttl(keys.buffer) > 0
        assert client.delete(keys.buffer) == 1
        assert client.delete(away.backend.keys("r").unlogged) == 1
    away.end()
    assert_context(manager.get_context("s"), talk(2))
    assert away.logged("s") == talk(2)
    assert_context(manager.get_context("r"), talk(1))
    assert waited_for(lambda: manager.wait_for_folds() and manager.get_context("r")["degraded"] is False)
    assert away.logged("r") == talk(1)


WHILE_AWAY = {"one more while away": 1, "many more while away": 9}
AFTERWARDS = ("appended by another", "limits changed by another", "read by another")


@pytest.mark.parametrize("then", [*WHILE_AWAY, *AFTERWARDS])
def test_where_the_list_alone_is_gone_nobody_takes_what_is_left(away: Away, then: str) -> None:
    """Redis has evicted it, or somebody deleted it: the buffer is all that shows what waits there."""
    manager, other = away.open(max_buffer_messages=6), away.open(max_buffer_messages=6)
    manager.add_messages("s", talk(2))
    away.kill_database()
    for number in (3, 4):
        assert manager.append("s", say(number)).durable is False
    with redis_client(away.servers.redis_url) as client:
        assert client.delete(away.backend.keys("s").unlogged) == 1
    said = 4
    for _ in range(WHILE_AWAY.get(then, 0)):
        said += 1
        assert other.append("s", say(said)).durable is False
        with nothing_lost():
            context = other.get_context("s")
            assert context["buffer_messages"] == talk(said)[-len(context["buffer_messages"]) :]
    away.end()
    if then == "appended by another":
        said += 1
        other.append("s", say(said))
    elif then == "limits changed by another":
        other.set_session_config("s", {"max_buffer_messages": 8})
    assert waited_for(lambda: other.get_context("s")["degraded"] is False)
    with nothing_lost():
        rows = away.logged()
        assert sorted(map(repr, rows)) == sorted(map(repr, talk(said))), rows
        assert [row for row in rows if row in talk(4)] == talk(4)
        assert_context(other.get_context("s"), rows)


@pytest.mark.parametrize("turn", [False, True], ids=["read", "turn"])
def test_whoever_was_told_that_messages_wait_does_not_call_an_answer_without_them_complete(
    blocking: Away, turn: bool
) -> None:
    manager, other = blocking.open(), blocking.open()
    manager.append("s", say(1))
    blocking.kill_database()
    manager.append("s", say(2))
    with redis_client(blocking.servers.redis_url) as client:
        assert client.delete(blocking.backend.keys("s").buffer) == 1
    blocking.end()
    faults = Interposition(other, Fault(OUTAGE, 3))  # the second was the one that told it
    context = other.add_and_get_context("s", say(3)) if turn else other.get_context("s")
    faults.remove()
    assert faults.lost() == {REDIS}
    assert (context["source"], context["degraded"], context["complete"]) == ("postgres", True, False)
    assert context["buffer_messages"] == ([*talk(1), say(3)] if turn else talk(1))
    assert waited_for(lambda: other.get_context("s")["complete"])
    assert sorted(map(repr, blocking.logged())) == sorted(map(repr, talk(3 if turn else 2)))


def test_a_drain_that_is_cancelled_leaves_it_known_that_messages_wait(blocking: Away) -> None:
    manager = blocking.open()
    manager.append("s", say(1))
    blocking.kill_database()
    manager.append("s", say(2))
    blocking.end()
    unlogged, runtime = manager._flows._sessions.unlogged, manager._runtime
    assert unlogged is not None
    flow: Any = unlogged.drain("s")
    flow.send(runtime._perform(next(flow)))
    flow.close()  # as when the task is cancelled that waits for the list
    blocking.kill_redis()
    context = manager.get_context("s")
    assert (context["source"], context["complete"], context["buffer_messages"]) == ("postgres", False, talk(1))
    assert manager.unlogged_backlog[0] == 1


def test_a_summary_of_an_erased_life_covers_nothing_of_the_next(blocking: Away) -> None:
    """Both lives were never in the log, so that neither has a name; the numbers of their messages are the same."""
    manager, other = blocking.open(), blocking.open()
    sessions, run = manager._flows._sessions, manager._runtime.run
    blocking.kill_database()
    manager.add_messages("s", talk(4))
    state = run(sessions.cache.read("s")).state
    assert state is not None
    blocking.end()
    assert waited_for(lambda: other.clear_session_memory("s"))
    blocking.kill_database()
    other.add_messages("s", talk(8, start=5))
    late = sessions._folding_alone.commit("s", state, last_seq=2, text="What was erased.", method="extractive")
    assert run(late) is None
    context = other.get_context("s")
    assert (context["current_summary"], context["buffer_messages"]) == (None, talk(8, start=5))


def test_with_both_away_nothing_is_acknowledged(away: Away) -> None:
    manager = away.open(redis_timeout_seconds=2.0)
    manager.append("s", say(1))
    away.kill_database()
    manager.append("s", say(2))
    away.stop_redis()
    with pytest.raises(StoreUnavailableError):
        manager.append("s", say(3))
    assert manager.add_message("s", say(3)) is False
    assert manager.is_available() is False
    with pytest.raises(StoreUnavailableError):
        manager.get_context("s")
    away.go_on()
    away.end()
    assert waited_for(lambda: manager.add_message("s", say(4)))
    manager.drain("s")
    rows = [row for row in away.logged() if row != say(3)]  # a stopped server may have done what it was asked
    assert rows == [say(1), say(2), say(4)]


def test_a_stopped_database_costs_its_deadline_and_then_nothing(away: Away) -> None:
    manager = away.open(database_timeout_seconds=0.5)
    manager.append("s", say(1))
    manager.add_messages("s", talk(2, start=2))
    away.stop_database()
    for number in range(4, 8):
        assert manager.append("s", say(number)).durable is False
    assert manager.database_breaker.get_state() == CircuitState.OPEN
    started = time.monotonic()
    count = 0
    while manager.database_breaker.get_state() == CircuitState.OPEN and count < 20:
        manager.append("s", say(8 + count))
        count += 1
    assert count > 1, "the breaker was open"
    assert time.monotonic() - started < 5
    away.go_on()
    assert waited_for(lambda: manager.append("s", say(8 + count), message_id="last").durable)
    assert away.logged() == talk(8 + count)
    assert_context(manager.get_context("s"), talk(8 + count))


def test_the_command_drains_every_session(blocking: Away, tenant: str) -> None:
    manager = blocking.open()
    names = ["a", "b{}%7B", "c d:*"]
    for name in names:
        manager.append(name, say(1))
    blocking.kill_database()
    for name in names[:2]:
        manager.add_messages(name, talk(3, start=2))
    blocking.end()
    arguments = ["drain", "--json", "--redis-url", blocking.servers.redis_url, "--tenant", tenant]
    found = CliRunner().invoke(app, [*arguments, "--database-url", blocking.servers.database_url])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == {"sessions": {"a": 3, "b{}%7B": 3}, "messages": 6, "failed": {}}
    assert manager.unlogged_sessions() == []
    assert blocking.logged("a") == blocking.logged("b{}%7B") == talk(4)
    assert blocking.logged("c d:*") == talk(1)


def test_the_command_shows_how_far_it_is_on_a_terminal(blocking: Away, tenant: str) -> None:
    manager = blocking.open()
    blocking.kill_database()
    for name in ("a", "b", "c"):
        manager.append(name, say(1))
    blocking.end()
    shown, terminal = pty.openpty()
    try:
        arguments = ["drain", "--redis-url", blocking.servers.redis_url, "--tenant", tenant]
        command = [sys.executable, "-m", "contract_engine.cli", *arguments]
        done = subprocess.run(
            [*command, "--database-url", blocking.servers.database_url],
            stdout=subprocess.PIPE,
            stderr=terminal,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
            text=True,
            check=False,
            timeout=60,
        )
        text = os.read(shown, 65536).decode()
    finally:
        os.close(shown)
        os.close(terminal)
    assert done.returncode == 0, text
    assert "3/3 sessions" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "\x1b[2K" in text, "the bar goes when it is done"
    assert "3/3" not in done.stdout


def test_a_session_that_cannot_be_logged_keeps_no_other_waiting(blocking: Away, tenant: str) -> None:
    manager = blocking.open()
    blocking.kill_database()
    for name in ("a", "b", "c"):
        manager.append(name, say(1))
    blocking.end()
    with psycopg.connect(blocking.servers.database_url) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF NEW.session_id = 'b' THEN RAISE 'full' USING ERRCODE = '53100'; END IF; RETURN NEW; END $$"
        )
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON memory_messages FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    arguments = ["drain", "--json", "--redis-url", blocking.servers.redis_url, "--tenant", tenant]
    found = CliRunner().invoke(app, [*arguments, "--database-url", blocking.servers.database_url])
    assert found.exit_code == 2, found.output
    answer = json.loads(found.stdout)
    assert (answer["sessions"], list(answer["failed"])) == ({"a": 1, "c": 1}, ["b"])
    assert "1 session waits still" in found.stderr
    assert manager.unlogged_sessions() == ["b"]


KILLED_DRAIN = """
import sys
from contract_engine.memory import MemoryManager
manager = MemoryManager(redis_url=sys.argv[1], database_url=sys.argv[2], tenant=sys.argv[3])
print("ready", flush=True)
for session_id in manager.unlogged_sessions():
    print(manager.drain(session_id), flush=True)
"""


def test_kill_9_in_the_middle_of_a_drain(blocking: Away, tmp_path: Path, tenant: str) -> None:
    manager = blocking.open(max_buffer_messages=10_000, max_buffer_tokens=2_000_000)
    manager.append("s", say(1))
    blocking.kill_database()
    for start in range(2, 4002, 1000):
        manager.add_messages("s", talk(1000, start=start, words=0))
    blocking.end()
    program = tmp_path / "drain.py"
    program.write_text(KILLED_DRAIN)
    arguments = [sys.executable, str(program), blocking.servers.redis_url, blocking.servers.database_url, tenant]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert waited_for(lambda: len(blocking.waiting()) < 4000)
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it ended by itself: nothing was in the middle"
    assert len(blocking.waiting()) > 0
    manager.drain("s")
    rows = blocking.logged()
    assert len(rows) == 4001
    assert rows[1:] == talk(4000, start=2, words=0)


@dataclass
class Seen:
    """What one writer was answered; ``away`` is set from when the database was dead until before it returned."""

    away: threading.Event
    acknowledged: list[str] = field(default_factory=list)
    answers: list[bool] = field(default_factory=list)
    """Of each read of the session of all writers, whether it was complete."""
    times: list[float] = field(default_factory=list)
    durable: list[bool] = field(default_factory=list)
    """Of each append within the outage."""
    reads: int = 0
    own_reads: int = 0
    """Within the outage, of the session of all and of the one that this writer has to itself."""

    def append(self, manager: MemoryManager, session_id: str, text: str) -> None:
        began_away, started = self.away.is_set(), time.monotonic()
        receipt = manager.append(session_id, {"content": text}, message_id=text)
        self.times.append(time.monotonic() - started)
        assert receipt.message_id == text
        if began_away and self.away.is_set():
            self.durable.append(receipt.durable)

    def read(self, manager: MemoryManager) -> None:
        began_away = self.away.is_set()
        with suppress(DatabaseUnavailableError):  # the copy may just be out of date: then only the log can tell
            context = manager.get_context("s")
            assert_caps(context)
            is_away = began_away and self.away.is_set()
            if is_away or context["complete"]:
                assert_without_a_hole(context)
            if is_away:
                assert (context["source"], context["degraded"]) == ("redis", True)
                self.reads += 1
            self.answers.append(context["complete"])

    def read_own(self, manager: MemoryManager, session_id: str) -> None:
        """Nobody overtakes the one writer of a session, so Redis had all of it when the database died."""
        if self.away.is_set():
            context = manager.get_context(session_id)
            assert_context(context, [{"content": text} for text in self.acknowledged])
            self.own_reads += 1


def test_writers_through_a_minute_of_outage(blocking: Away) -> None:
    """Threads go on writing while the database dies and returns; every acknowledged message is there once, in order."""
    managers = [blocking.open(max_buffer_messages=8) for _ in range(4)]
    away, stop = threading.Event(), threading.Event()
    writers = [Seen(away) for _ in managers]

    def work(number: int) -> None:
        if number == len(managers):
            try:
                assert waited_for(lambda: all(len(writer.acknowledged) >= 5 for writer in writers), 60.0)
                blocking.kill_database()
                away.set()
                time.sleep(OUTAGE_SECONDS)
                away.clear()
                blocking.end()
                time.sleep(1.0)
            finally:
                stop.set()  # or the writers would never end
            return
        manager, writer = managers[number], writers[number]
        while not stop.is_set():
            text = f"{number}.{len(writer.acknowledged)}"
            writer.append(manager, "s", text)
            writer.append(manager, f"s{number}", text)
            writer.acknowledged.append(text)
            writer.read(manager)
            writer.read_own(manager, f"s{number}")
            time.sleep(0.02)

    run_threads(len(managers) + 1, work)
    asked = sum(len(writer.acknowledged) for writer in writers)
    answered = sum(len(writer.answers) for writer in writers)
    complete = sum(sum(writer.answers) for writer in writers)
    longest = max(max(writer.times) for writer in writers)
    print(f"{asked} reads, {answered} answered, {complete} of them complete; longest append {longest:.2f} s")
    print("of the outage:", [(len(writer.durable), writer.reads, writer.own_reads) for writer in writers])
    assert answered >= 0.9 * asked
    assert complete > 0
    for writer in writers:
        assert writer.durable == [False] * len(writer.durable), "the log was not away"
        assert len(writer.durable) > 2 * OUTAGE_SECONDS, "a writer stood still"
        assert min(writer.reads, writer.own_reads) > OUTAGE_SECONDS
    assert longest < 2 * (SETTINGS["redis_timeout_seconds"] + SETTINGS["database_timeout_seconds"])
    for name in ("s", *(f"s{number}" for number in range(len(managers)))):
        managers[0].drain(name)
    managers[0].wait_for_folds()
    rows = [row["content"] for row in blocking.logged()]
    assert sorted(rows) == sorted(text for writer in writers for text in writer.acknowledged)
    for number, writer in enumerate(writers):
        assert [row for row in rows if row.startswith(f"{number}.")] == writer.acknowledged
        assert [row["content"] for row in blocking.logged(f"s{number}")] == writer.acknowledged
    assert any(manager.database_breaker.snapshot().failed for manager in managers), "the outage was noticed"
    assert_context(managers[1].get_context("s"), [{"content": row} for row in rows])


@nothing_lost()
def assert_without_a_hole(context: Mapping[str, Any]) -> None:
    """The messages end at the last number there is, and each writer's follow each other."""
    texts = [message["content"] for message in context["buffer_messages"]]
    assert context["watermark"] + len(texts) == context["last_seq"]
    turns: dict[str, list[int]] = {}
    for text in texts:
        writer, _, turn = text.partition(".")
        turns.setdefault(writer, []).append(int(turn))
    facts = {name: context[name] for name in ("source", "degraded", "watermark", "last_seq")}
    for shown in turns.values():
        assert shown == list(range(shown[0], shown[0] + len(shown))), f"{texts}, {facts}"
