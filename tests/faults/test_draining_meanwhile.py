"""What waited in Redis, or is imported, is logged while others log the same, relay it, and go on adding to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from crash_matrix import DATABASE, Interposition, name_of, outage_of
from dual_stores import contents, log_alone, open_store, plain_url, say, talk
from legacy_stores import ListStore
from memory_contract import Backend, logged
from server_faults import waited_for
from servers import redis_client

from contract_engine.memory import DatabaseUnavailableError, MemoryManager
from contract_engine.memory._log_backfill import HistoryRow
from contract_engine.memory.log_writer import LogWriter
from contract_engine.memory.migration import RelaySettings

pytest_plugins = ("memory_fixtures",)

WIDE: dict[str, Any] = {"max_buffer_messages": 10_000, "max_buffer_tokens": 5_000_000}
LONG = "x" * 60_000
"""So that a megabyte, which is read at once, is some seventeen messages."""


class Told(ListStore):
    """Does something before and after it takes a message."""

    before: Callable[[str], object] = staticmethod(lambda _: None)
    after: Callable[[str], object] = staticmethod(lambda _: None)

    def add_chat_message(self, session_id: str, message: dict[str, Any]) -> None:
        self.before(session_id)
        super().add_chat_message(session_id, message)
        self.after(session_id)


class Halt(Interposition):
    """Does something before the first effect of a name."""

    def __init__(self, manager: MemoryManager, name: str, action: Callable[[], object]) -> None:
        self._name, self._action = name, action
        self.is_done = False
        super().__init__(manager)

    def admit(self, effect: Any, server: str) -> str | None:
        if name_of(effect) == self._name and not self.is_done:
            self.is_done = True
            self._action()
        return super().admit(effect, server)


@contextmanager
def halted(manager: MemoryManager, name: str) -> Iterator[Callable[[], None]]:
    """Begin to drain in a thread, up to an effect; yields what lets it log what it has read, and waits until it has."""
    reached, goes_on = threading.Event(), threading.Event()
    unlogged = manager._flows.waiting()

    def stop() -> None:
        reached.set()
        assert goes_on.wait(30)

    halt = Halt(manager, name, stop)
    thread = threading.Thread(target=lambda: manager._runtime.run(unlogged.drain_known(["s"], until=0.0)))

    def let_go() -> None:
        goes_on.set()
        thread.join()

    thread.start()
    try:
        assert reached.wait(10)
        yield let_go
    finally:
        let_go()
        halt.remove()


def say_long(manager: MemoryManager, numbers: range) -> None:
    """Without the database; each has a time of its own."""
    for number in numbers:
        manager.append("s", {"role": "user", "content": f"message {number} {LONG}"})
        time.sleep(0.002)


def waiting(backend: Backend, session_id: str = "s") -> int:
    with redis_client(backend.redis_url) as client:
        length: Any = client.llen(backend.keys(session_id).unlogged)
        return max(0, int(length) - 1)


def first_words(messages: list[dict[str, Any]]) -> list[str]:
    return [" ".join(one["content"].split()[:2]) for one in messages]


def test_a_drain_that_another_has_overtaken_logs_all_it_owes(blocking: Backend) -> None:
    """The other one has taken from the list a part of what this one has read: that counts once."""
    manager, writer, other = (blocking.open(**WIDE) for _ in range(3))
    writer.database_breaker.force_open()
    say_long(writer, range(10))
    with halted(other, "drained") as let_go:
        say_long(writer, range(10, 46))
        overtaken = Halt(manager, "drained", let_go)
        manager.drain("s")
        overtaken.remove()
        assert overtaken.is_done
    assert waiting(blocking) == 0
    assert blocking.database_url is not None
    rows = [message for _, message in logged(blocking.database_url, blocking.tenant, "s")]
    assert first_words(rows) == talk(*range(46))


def test_a_relay_that_another_drain_overtakes_keeps_the_order(blocking: Backend) -> None:
    legacy = ListStore()
    with ExitStack() as stack:
        store, direct, other = (stack.enter_context(open_store(blocking, legacy)) for _ in range(3))
        store.memory_manager.set_session_config("s", {**WIDE, "summary_trigger_tokens": 4_000_000})
        writer = stack.enter_context(open_store(blocking, legacy))
        writer.append("s", say(0))
        assert store.settle()
        writer.memory_manager.database_breaker.force_open()
        for number in range(1, 11):
            writer.append("s", {"role": "user", "content": f"message {number} {LONG}"})
            time.sleep(0.002)
        with halted(other.memory_manager, "drained") as let_go:
            for number in range(11, 47):
                writer.append("s", {"role": "user", "content": f"message {number} {LONG}"})
                time.sleep(0.002)
            time.sleep(0.7)  # longer than clocks may be apart
            for number in range(47, 117):
                log_alone(direct, "s", say(number))
            overtaken = Halt(store.memory_manager, "drained", let_go)
            store.relay_once()
            overtaken.remove()
            assert overtaken.is_done
        assert store.settle()
        assert first_words(legacy.sessions["s"]) == talk(*range(117))
        assert first_words(store.memory_manager.session_store.get_chat_history("s")) == talk(*range(117))


@pytest.mark.parametrize("attempt", range(4))
def test_two_drains_put_nothing_before_what_a_relay_has_read(blocking: Backend, attempt: int) -> None:
    """One has read what the other has logged already, and behind that what came to wait after the relay's look."""
    legacy = Told()
    with ExitStack() as stack:
        writer, other, direct, store = (stack.enter_context(open_store(blocking, legacy)) for _ in range(4))
        writer.append("s", say(0))
        assert store.settle()
        writer.memory_manager.database_breaker.force_open()
        writer.append("s", say(1))
        time.sleep(0.6)  # longer than clocks may be apart
        for number in (2, 3):
            log_alone(direct, "s", say(number))
        time.sleep(0.02)
        halts: list[Any] = []

        def add_one_and_drain() -> None:
            writer.append("s", say(4))
            halts.append(stack.enter_context(halted(other.memory_manager, "Transaction")))

        halt = Halt(store.memory_manager, "Transaction", add_one_and_drain)
        legacy.before = lambda _: halts and halts[0]()
        store.relay_once()
        assert halt.is_done
        assert store.settle()
        assert legacy.contents("s") == contents(store.memory_manager.session_store.get_chat_history("s"))
        assert sorted(legacy.contents("s")) == talk(*range(5))


@pytest.mark.parametrize("names", [["s"], ["s", "t"]], ids=["one session", "two"])
def test_an_import_and_a_relay_that_takes_note_wait_for_no_ring(blocking: Backend, names: list[str]) -> None:
    """What is given to the legacy store right now gets another number: both change the outbox, and its session."""
    assert blocking.database_url is not None
    legacy = Told()
    with ExitStack() as stack:
        direct, store = (stack.enter_context(open_store(blocking, legacy)) for _ in range(2))
        config = store.memory_manager.config
        for name in names:
            log_alone(direct, name, say(1))
        older = stack.enter_context(LogWriter(config))
        row = HistoryRow("older", 1, 0, b'{"role":"user","content":"message 0"}')
        times = {"created_ms": 0, "updated_ms": 0}
        holder = stack.enter_context(psycopg.connect(plain_url(config)))
        watcher = stack.enter_context(psycopg.connect(plain_url(config), autocommit=True))

        def are_waiting(number: int) -> bool:
            sql = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            return bool(watcher.execute(sql).fetchall()[0][0] >= number)

        stored: list[bool] = []
        imports = threading.Thread(
            target=lambda: stored.append(older.store("s", [row], after_id=None, is_covered=False, **times))
        )
        both: list[bool] = []

        def let_go() -> None:
            both.append(waited_for(lambda: are_waiting(2)))
            holder.rollback()

        ends = threading.Thread(target=let_go)

        def hold(session_id: str) -> None:
            if session_id == "s" and not both and imports.ident is None:
                sql = "SELECT FROM memory_relays WHERE tenant = %s AND session_id = 's' FOR UPDATE"
                holder.execute(sql, (blocking.tenant,))
                imports.start()
                assert waited_for(lambda: are_waiting(1))
                ends.start()

        legacy.after = hold
        assert store.relay_once() == len(names)
        imports.join()
        ends.join()
        assert (both, stored) == ([True], [True])
        assert store.settle()
        assert contents(store.memory_manager.session_store.get_chat_history("s")) == talk(0, 1)
        assert legacy.contents("s") == talk(1)


@pytest.mark.parametrize("is_evicted", [False, True])
def test_calls_end_while_others_go_on_in_redis(blocking: Backend, *, is_evicted: bool) -> None:
    """A process that lacks the database adds to what waits faster than any call can log it."""
    manager, reader, writer = (blocking.open(**WIDE) for _ in range(3))
    manager.append("s", say(0))
    if is_evicted:
        with redis_client(blocking.redis_url) as client:
            assert client.delete(blocking.keys("s").buffer)
    writer.database_breaker.force_open()
    is_over = threading.Event()
    acknowledged: list[str] = []

    def go_on() -> None:
        while not is_over.is_set() and len(acknowledged) < 9_000:
            writer.append("s", {"role": "user", "content": f"theirs {len(acknowledged)}"})
            acknowledged.append(f"theirs {len(acknowledged)}")

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        assert waited_for(lambda: len(acknowledged) > 20)
        said: list[str] = []
        for number in range(8):
            for calls in (manager.add_and_get_context, None):
                before = [*said, *acknowledged]
                if calls is not None:
                    said.append(f"ours {number}")
                    context = calls("s", {"role": "user", "content": said[-1]})
                    before.append(said[-1])
                else:
                    context = reader.get_context("s")
                assert context["complete"] is True
                found = [one["content"] for one in context["buffer_messages"]]
                assert set(before) <= set(found), "all that was acknowledged before the call"
                assert len(set(found)) == len(found)
        assert thread.is_alive()
    finally:
        is_over.set()
        thread.join()
    writer.database_breaker.reset()
    assert blocking.database_url is not None
    manager.drain("s")
    rows = [message["content"] for _, message in logged(blocking.database_url, blocking.tenant, "s")]
    assert [one for one in rows if one.startswith("theirs")] == acknowledged
    assert [one for one in rows if one.startswith("ours")] == said
    assert [one["content"] for one in manager.get_context("s")["buffer_messages"]] == rows


NAMES = [f"s{number:02}" for number in range(25)]


class Slow(Interposition):
    """Each effect takes a while, as with servers that are far away."""

    def admit(self, effect: Any, server: str) -> str | None:
        time.sleep(0.05)
        return super().admit(effect, server)


def is_at_it(backend: Backend) -> bool:
    """Whether a relay holds sessions."""
    assert backend.database_url is not None
    sql = "SELECT count(*) FROM memory_relays WHERE tenant = %s AND lease IS NOT NULL"
    with psycopg.connect(backend.database_url) as connection:
        return connection.execute(sql, (backend.tenant,)).fetchall() != [(0,)]


def test_a_relay_holds_no_session_for_as_long_as_all_of_them_take_to_be_logged(blocking: Backend) -> None:
    """What it had no time to log is given back, and gone on with; so whoever erases such a session does not give up."""
    legacy = ListStore()
    with ExitStack() as stack:
        store, other = (stack.enter_context(open_store(blocking, legacy, relay=RelaySettings())) for _ in range(2))
        writer = blocking.open()
        for name in NAMES:
            other.append(name, say(0))
        writer.database_breaker.force_open()
        for name in NAMES:
            writer.append(name, say(1))
        erased: list[bool] = []

        def erase() -> None:
            assert waited_for(lambda: is_at_it(blocking))
            erased.append(other.memory_manager.clear_session_memory(NAMES[-1]))

        thread = threading.Thread(target=erase)
        slow = Slow(store.memory_manager)
        thread.start()
        store.relay_once()
        slow.remove()
        thread.join()
        assert erased == [True], "nobody has given up"
        assert blocking.database_url is not None
        assert not is_at_it(blocking), "all are given back"
        assert store.settle()
        for name in NAMES[:-1]:
            assert legacy.contents(name) == talk(0)


def test_a_session_that_is_never_done_keeps_no_other_waiting(blocking: Backend) -> None:
    """To two of them a process that lacks the database adds for as long as the relay is at work."""
    legacy = ListStore()
    with ExitStack() as stack:
        store, other = (stack.enter_context(open_store(blocking, legacy)) for _ in range(2))
        writer = blocking.open(**WIDE)
        writer.database_breaker.force_open()
        is_over = threading.Event()

        def go_on() -> None:
            for number in range(100_000):
                if is_over.is_set():
                    return
                writer.append(NAMES[number % 2], say(number))

        threads = [threading.Thread(target=go_on) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for number in range(5):
                for name in NAMES[:4]:
                    log_alone(other, name, say(number))
            assert waited_for(lambda: store.relay_once() >= 0 and store.backlog().messages == 0, 30)
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        for name in NAMES[:4]:
            assert legacy.contents(name) == talk(*range(5))


def test_a_session_that_was_given_back_comes_after_those_that_are_due(blocking: Backend) -> None:
    legacy = ListStore()
    with ExitStack() as stack:
        store, other = (stack.enter_context(open_store(blocking, legacy)) for _ in range(2))
        writer = blocking.open(**WIDE)
        for name in NAMES[:2]:
            log_alone(other, name, say(0))
        writer.database_breaker.force_open()
        for _ in range(6):
            writer.add_messages(NAMES[0], [say(number) for number in range(500)])
        relay: Any = store._flows._relay
        relay._sessions = 1  # as after rounds that had no time for more
        slow = Slow(store.memory_manager)
        for contents_of_second in ([], talk(0)):
            store.relay_once()
            assert legacy.contents(NAMES[0]) == []
            assert legacy.contents(NAMES[1]) == contents_of_second
        slow.remove()
        assert waiting(blocking, NAMES[0]) > 0
        assert store.settle()
        assert legacy.contents(NAMES[0]) == talk(0)


def fail() -> None:
    raise outage_of(DATABASE)


def test_where_what_waits_cannot_be_logged_the_sessions_are_given_back(blocking: Backend) -> None:
    """Nothing was written of them: nobody waits for the lease, and none is in doubt."""
    legacy = ListStore()
    with open_store(blocking, legacy) as other, open_store(blocking, legacy, relay=RelaySettings()) as store:
        for name in NAMES[:3]:
            other.append(name, say(0))
        other.memory_manager.database_breaker.force_open()
        other.append(NAMES[0], say(1))
        halt = Halt(store.memory_manager, "Transaction", fail)
        with pytest.raises(DatabaseUnavailableError):
            store.relay_once()
        halt.remove()
        assert store.backlog().in_doubt == 0
        assert store.relay_once() == 3, "at once"
        assert store.settle()
        assert legacy.contents(NAMES[0]) == talk(0, 1)
