"""Dual write, backfill and parity together: what each of them leaves behind is what the next one goes on from."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
from dual_stores import open_store
from legacy_tables import Older, said
from memory_contract import Backend
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.memory.dual_writing import PHASE_SECONDS
from contract_engine.memory.legacy_store import LegacySwisperStore
from contract_engine.memory.migration import EnhancedSessionStore, Phase
from contract_engine.memory.parity import count_arrived, mark

pytest_plugins = ("memory_fixtures", "legacy_fixtures")

Messages = list[dict[str, Any]]


def history(start: int, stop: int) -> Messages:
    return [said(number) for number in range(start, stop)]


@pytest.fixture
def store(blocking: Backend, older: Older) -> Iterator[EnhancedSessionStore]:
    with open_store(blocking, older.store) as found:
        yield found


def parity(older: Older, *arguments: str) -> dict[str, Any]:
    """Compare both stores by the command; answers what it tells."""
    given = ["parity", "--legacy-url", older.url, "--table", older.table, "--database-url", older.url]
    result = CliRunner().invoke(app, [*given, "--tenant", older.config.tenant, "--json", *arguments])
    assert result.exit_code in (0, 1), result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == bool(answer["differences"])
    return answer


# -- a message that is there already


class Deaf(LegacySwisperStore):
    """Answers False and does nothing."""

    def add_chat_message(self, session_id: str, message: dict[str, Any], *, message_id: str | None = None) -> bool:
        return False

    def add_chat_messages(self, session_id: str, messages: Any, *, message_ids: Any = None) -> bool:
        return False


@pytest.mark.parametrize("number", [1, 5])
def test_what_the_legacy_store_has_already_is_relayed(store: EnhancedSessionStore, older: Older, number: int) -> None:
    messages = history(0, number)
    for message in messages:
        receipt = store.append("s", message)
        assert older.store.add_chat_message("s", message, message_id=receipt.message_id)
    assert store.relay_once() == number
    assert (store.backlog().messages, store.stats.failed) == (0, 0)
    assert older.store.get_chat_history("s") == messages


@pytest.mark.parametrize("number", [1, 5])
def test_false_is_a_failure_where_the_message_is_not_there(blocking: Backend, older: Older, number: int) -> None:
    with Deaf(older.url, table=older.table) as deaf, open_store(blocking, deaf) as store:
        first = store.append("s", said(0))
        for message in history(1, number):
            store.append("s", message)
        if number > 1:  # that some of them are there is not enough
            older.store.add_chat_message("s", said(0), message_id=first.message_id)
        assert store.relay_once() == 0
        assert (store.backlog().messages, store.stats.failed) == (number, 1)
        assert store.waiting_sessions()[0].error == "it answered False"
    with open_store(blocking, older.store) as store:
        assert store.settle()
    assert older.store.get_chat_history("s") == history(0, number)


# -- parity while messages are on their way


def test_what_is_still_to_be_relayed_is_pending_and_no_difference(store: EnhancedSessionStore, older: Older) -> None:
    for session_id in ("begun", "new"):
        if session_id == "begun":
            for message in history(0, 3):
                store.append(session_id, message)
            assert store.settle()
        for message in history(3, 7):
            store.append(session_id, message)
    answer = parity(older)
    assert (answer["pending"], answer["messages"], answer["differences"]) == (8, 3, [])
    # One of them is there, though nobody has noted it: it is not pending, and not missing either.
    (_, message_id, message) = list(older.log.messages("begun"))[3]
    older.store.add_chat_message("begun", message, message_id=message_id)
    answer = parity(older)
    assert (answer["pending"], answer["messages"], answer["differences"]) == (7, 4, [])
    assert store.settle()
    answer = parity(older)
    assert (answer["pending"], answer["messages"], answer["differences"]) == (0, 11, [])


def test_pending_messages_hide_no_difference(store: EnhancedSessionStore, older: Older) -> None:
    for message in history(0, 5):
        store.append("s", message)
    assert store.settle()
    store.memory_manager.append("s", said(70))  # to the log alone
    for message in history(5, 8):
        store.append("s", message)
    older.execute("UPDATE {table} SET chat_history = chat_history - 1")
    older.store.add_chat_message("s", said(81))
    answer = parity(older)
    assert answer["pending"] == 3
    told = {(item["kind"], item["legacy_place"], item["new_place"]) for item in answer["differences"]}
    assert told == {("missing_in_legacy", None, 2), ("missing_in_legacy", None, 6), ("missing_in_new", 5, None)}


def test_without_ids_the_length_and_the_end_tell_what_has_arrived() -> None:
    owed = [mark(message) for message in history(5, 8)]
    held = [mark(message) for message in history(0, 5)]
    assert [count_arrived(held + owed[:number], 5, owed) for number in range(4)] == [0, 1, 2, 3]
    assert count_arrived([*held, mark(said(9))], 5, owed) == 0
    assert count_arrived([*held, *owed, mark(said(9))], 5, owed) == 0
    assert count_arrived(held[:3], 5, owed) == 0


def test_a_store_without_ids_is_compared_while_messages_are_on_their_way(blocking: Backend, older: Older) -> None:
    class Plain:
        """The original's way to write: no ids."""

        def add_chat_message(self, session_id: str, message: dict[str, Any]) -> bool:
            return older.store.add_chat_message(session_id, message)

        def get_chat_history(self, session_id: str) -> Messages:
            return older.store.get_chat_history(session_id)

    with open_store(blocking, Plain()) as store:
        for message in history(0, 3):
            store.append("s", message)
        assert store.settle()
        for message in history(3, 6):
            store.append("s", message)
        assert parity(older)["pending"] == 3
        older.store.add_chat_message("s", said(3))  # relayed, and not noted
        answer = parity(older)
        assert (answer["pending"], answer["differences"]) == (2, [])


def test_parity_raises_no_alarm_while_writers_are_at_work(blocking: Backend, older: Older) -> None:
    stop, looks, on_their_way = threading.Event(), 0, 0
    until = time.monotonic() + 60
    with open_store(blocking, older.store, is_relaying=True) as store:

        def write() -> None:
            for number in count():
                if stop.is_set():
                    return
                store.append(f"s{number % 2}", said(number))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            while looks < 6 or not on_their_way:
                assert time.monotonic() < until, "nothing was ever on its way during a look"
                answer = parity(older)
                assert answer["differences"] == []
                on_their_way += answer["pending"]
                looks += 1
        finally:
            stop.set()
            writer.join()
        assert store.settle()
        answer = parity(older)
        assert (answer["pending"], answer["differences"]) == (0, [])
        assert answer["messages"] == store.stats.written > looks


# -- backfill while the outbox has rows


@pytest.mark.parametrize("old", [7, 300])
def test_older_history_comes_in_before_what_waits_for_the_legacy_store(
    store: EnhancedSessionStore, older: Older, old: int
) -> None:
    older.fill("s", history(0, old))
    with older.read_only():
        for message in history(old, old + 6):
            store.append("s", message)
        assert store.relay_once() == 0, "the table takes nothing"
        assert store.backlog()[:2] == (6, 1)
        seen = store.get_chat_history("s")
        assert seen == history(0, old + 6)
        assert older.backfill("s", batch=100).imported == old
        numbers = older.execute("SELECT seq FROM memory_outbox WHERE tenant = %s ORDER BY seq", (older.config.tenant,))
        assert [number for (number,) in numbers] == list(range(old + 1, old + 7))
        assert store.get_chat_history("s") == seen
        answer = parity(older)
        assert (answer["pending"], answer["differences"]) == (6, [])
        for message in history(old + 6, old + 8):
            store.append("s", message)
    store.retry()
    assert store.settle()
    assert older.store.get_chat_history("s") == older.logged("s") == history(0, old + 8)
    answer = parity(older)
    assert (answer["pending"], answer["differences"], answer["messages"]) == (0, [], old + 8)
    assert older.backfill("s").imported == 0


# -- the whole way, and back


class Reader:
    """Reads all sessions again and again; whatever phase it is, a read begins with what the read before it showed."""

    def __init__(self, store: EnhancedSessionStore, sessions: list[str]) -> None:
        self._store = store
        self._seen: dict[str, Messages] = {name: [] for name in sessions}
        self.acknowledged = Counter[str]()
        self.rounds = 0

    def look(self) -> None:
        for name, before in self._seen.items():
            least = self.acknowledged[name]
            now = self._store.get_chat_history(name)
            assert now[: len(before)] == before, f"{name}: {len(before)} messages were there, now {len(now)} others"
            assert len(now) >= least, f"{name}: {least} were acknowledged, {len(now)} are shown"
            self._seen[name] = now
        self.rounds += 1


def test_the_whole_way_and_back_under_load(blocking: Backend, older: Older) -> None:
    lengths = {"empty": 0, "short": 7, "long": 450, "other": 60, "another": 61}
    for name, length in lengths.items():
        older.fill(name, history(0, length))
    stop = threading.Event()
    writing = open_store(blocking, older.store, is_relaying=True)
    reading = open_store(blocking, older.store)  # to the servers it is another process
    reader = Reader(reading, list(lengths))
    reader.acknowledged.update(lengths)
    sent: dict[str, list[str]] = {name: [] for name in lengths}
    lock = threading.Lock()

    def write(writer: int) -> None:
        for number in count():
            if stop.wait(0.02):  # a history that grows without bounds slows everything that reads it
                return
            name = list(lengths)[(writer + number) % len(lengths)]
            text = f"{writer}.{number}"
            assert writing.add_chat_message(name, {"role": "user", "content": text})
            with lock:
                sent[name].append(text)
                reader.acknowledged[name] += 1

    def read() -> None:
        while not stop.is_set():
            reader.look()

    def command(*arguments: str) -> Any:
        given = ["--database-url", older.url, "--redis-url", blocking.redis_url, "--tenant", older.config.tenant]
        result = CliRunner().invoke(app, [*arguments, *given, "--json"])
        assert result.exit_code == 0, result.stdout + result.stderr
        return json.loads(result.stdout)

    def go_on() -> None:
        """Wait until every session was written to and read in this phase, by adapters that have heard of it."""
        until, rounds, written = time.monotonic() + 60, reader.rounds, writing.stats.written
        heard = time.monotonic() + 2 * PHASE_SECONDS
        while time.monotonic() < heard or reader.rounds < rounds + 3 or writing.stats.written < written + 40:
            assert time.monotonic() < until, "not in time"
            assert not any(one.done() for one in running), [one.exception() for one in running if one.done()]
            time.sleep(0.02)

    with writing, reading, ThreadPoolExecutor(5) as pool:
        assert writing.get_phase().phase is Phase.COEXISTENCE
        running = [pool.submit(write, writer) for writer in range(4)]
        running.append(pool.submit(read))
        try:
            go_on()
            table = ("--legacy-url", older.url, "--table", older.table)
            imported = command("backfill", *table)
            assert imported["imported"] == sum(lengths.values())
            assert command("backfill", *table)["imported"] == 0
            assert parity(older)["differences"] == []
            for percentage in ("10", "50", "100"):
                command("phase", "set", "gradual", "--percentage", percentage)
                go_on()
                assert parity(older)["differences"] == []
            command("phase", "set", "full")
            go_on()
            command("phase", "set", "coexistence")
            go_on()
        finally:
            stop.set()
        for one in running:
            one.result()
        assert reading.get_phase().phase is Phase.COEXISTENCE
        assert writing.settle()
        reader.look()
    assert writing.stats.failed == 0
    answer = parity(older)
    total = sum(lengths.values()) + writing.stats.written
    assert (answer["pending"], answer["differences"], answer["messages"]) == (0, [], total)
    for name, length in lengths.items():
        found = older.logged(name)
        assert found == older.store.get_chat_history(name)
        assert found[:length] == history(0, length)
        texts = [message["content"] for message in found[length:]]
        assert sorted(texts) == sorted(sent[name])
        for writer in "0123":
            own = [int(text.partition(".")[2]) for text in texts if text.startswith(f"{writer}.")]
            assert own == sorted(own)
