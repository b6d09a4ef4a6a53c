"""Sessions that are deleted while they are relayed: the legacy store is given nothing of them from then on."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from crash_matrix import DATABASE, Interposition
from dual_stores import contents, open_store, plain_url, say, talk
from legacy_stores import ListStore
from meanwhile import Meanwhile, end_leases
from memory_contract import Backend
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.memory import ContentionError
from contract_engine.memory.migration import EnhancedSessionStore, RelaySettings

pytest_plugins = ("memory_fixtures", "meanwhile_fixtures", "dual_write_fixtures")

OWED = 4
LOOK_SECONDS = 0.15
"""For so long a relay stands still while a session is deleted: one that does not wait for it is done by then."""

Deletion = Callable[[EnhancedSessionStore, str], bool]
"""Deletes a session; answers whether it is gone."""


def clear(store: EnhancedSessionStore, name: str) -> bool:
    return store.memory_manager.clear_session_memory(name)


def erase(store: EnhancedSessionStore, name: str) -> bool:
    (report,) = store.memory_manager.retention.erase([name])
    assert not report["left_rows"]
    assert not report["left_keys"]
    return True


def replace(store: EnhancedSessionStore, name: str) -> bool:
    retention = store.memory_manager.retention
    file = io.BytesIO()
    assert retention.export_session("another", file.write) is not None
    answer = retention.import_sessions(io.BytesIO(file.getvalue()), session_id=name, existing="replace")
    assert answer["replaced"] == [name]
    return True


def purge(store: EnhancedSessionStore, name: str) -> bool:
    config = store.memory_manager.config
    with psycopg.connect(plain_url(config)) as connection:
        connection.execute(
            "UPDATE memory_sessions SET updated_at = now() - interval '9 days' WHERE tenant = %s AND session_id = %s",
            (config.tenant, name),
        )
    answer = store.memory_manager.retention.purge(timedelta(days=8))
    assert answer["sessions"] + answer["kept"] == 1
    return bool(answer["sessions"])


class Deleting:
    """A session that is deleted beside a relay, and what the legacy store had of it when it was gone."""

    def __init__(self, store: EnhancedSessionStore, legacy: Any, name: str, delete: Deletion) -> None:
        self.store, self.legacy, self.name, self._delete = store, legacy, name, delete
        self.is_gone = self.has_waited = False
        self.given: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def begin(self) -> None:
        self._thread.start()
        self._thread.join(LOOK_SECONDS)
        self.has_waited = self._thread.is_alive() or not self.is_gone

    def _run(self) -> None:
        self.is_gone = self._delete(self.store, self.name)
        self.given = self.shown()

    def end(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()

    def shown(self) -> list[str]:
        return contents(self.legacy.get_chat_history(self.name))


@pytest.mark.parametrize("delete", [clear, erase, replace, purge])
def test_nothing_is_given_on_of_a_session_that_is_gone(blocking: Backend, each_legacy: Any, delete: Deletion) -> None:
    waits = 0
    with open_store(blocking, each_legacy) as relaying, open_store(blocking, each_legacy) as other:
        other.append("another", say(0))
        assert other.settle()
        number, is_met = 0, True
        while is_met:
            number += 1
            name = f"s{number}"
            for said in range(OWED):
                other.append(name, say(said))
            deleting = Deleting(other, each_legacy, name, delete)
            effects = Meanwhile(relaying, number, deleting.begin)
            relaying.relay_once()
            effects.remove()
            is_met = effects.is_met
            if not is_met:
                break
            deleting.end()
            waits += deleting.has_waited
            end_leases(other)
            assert other.settle(30)
            if deleting.is_gone:
                assert deleting.shown() == deleting.given
            else:
                assert delete is purge
                assert deleting.shown() == talk(*range(OWED)), "it was passed over as a whole"
                assert clear(other, name)
        assert number > 3, "a round has effects, and it happened before each of them"
        assert waits, "a relay was waited for, or what it was at was passed over"


def test_it_is_deleted_soon_after_its_relay_however_much_is_owed(blocking: Backend, legacy: ListStore) -> None:
    """A relay that always has more to do for the session leaves it to who waits."""
    with open_store(blocking, legacy) as relaying, open_store(blocking, legacy) as other:
        for said in range(1200):
            other.append("s", say(said))
        delete = threading.Thread(target=clear, args=(other, "s"))
        effects = Meanwhile(relaying, 3, delete.start)
        rounds = 0
        while relaying.relay_once():
            rounds += 1
        effects.remove()
        delete.join(30)
        given = len(legacy.contents("s"))
        assert 0 < given < 1200
        assert rounds < 3
        assert other.settle()
        assert len(legacy.contents("s")) == given


def test_a_relay_that_has_died_holds_its_session_until_its_lease_is_over(
    blocking: Backend, store: EnhancedSessionStore, legacy: ListStore
) -> None:
    store.append("s", say(0))
    flows, manager = store._flows, store.memory_manager
    manager._runtime.run(flows.outbox.claim("one that dies", sessions=1, lease_seconds=60.0))
    no_pauses = Interposition(manager)
    with pytest.raises(ContentionError, match="session 's' was being given to the legacy store during each of 60"):
        manager.retention.erase(["s"])
    assert manager.clear_session_memory("s") is False
    no_pauses.remove()
    servers = ("--redis-url", blocking.redis_url, "--database-url", str(blocking.database_url))
    done = CliRunner().invoke(app, ["erase", "s", "--yes", *servers, "--tenant", blocking.tenant])
    assert done.exit_code == 2
    assert "was being given to the legacy store" in done.output
    assert contents(store.get_chat_history("s")) == talk(0)
    end_leases(store)
    assert manager.clear_session_memory("s") is True
    assert store.settle()
    assert legacy.sessions == {}


def test_a_session_is_held_for_a_second_at_most(blocking: Backend, legacy: ListStore) -> None:
    """But for a call that is under way: by then what is done is noted, and the rest given back."""
    with open_store(blocking, legacy, relay=RelaySettings()) as store:
        for said in range(10):
            store.append("s", say(said))
        add, slow = legacy.add_chat_message, 0.3

        def add_slowly(*arguments: Any, **keywords: Any) -> Any:
            time.sleep(slow)
            return add(*arguments, **keywords)

        legacy.add_chat_message = add_slowly  # type: ignore[method-assign]
        assert store.relay_once() == 4, "the last begins before the second is over"
        slow = 0.0
        assert store.settle()
        assert legacy.contents("s") == talk(*range(10))


def test_a_round_writes_something_however_long_it_looks_first(blocking: Backend, legacy: ListStore) -> None:
    """A session in doubt whose history takes longer to read than a session is held."""
    with open_store(blocking, legacy, relay=RelaySettings(first_delay_seconds=0.01)) as store:
        store.append("s", say(0))
        legacy.fails = True
        assert store.relay_once() == 0
        legacy.fails = False
        read = legacy.get_chat_history

        def read_slowly(session_id: str) -> Any:
            time.sleep(1.1)
            return read(session_id)

        legacy.get_chat_history = read_slowly  # type: ignore[method-assign]
        assert store.settle(20)
    assert legacy.contents("s") == talk(0)


def test_what_waits_of_a_session_stays_where_the_session_does(
    blocking: Backend, store: EnhancedSessionStore, legacy: ListStore
) -> None:
    """It is deleted in two steps, and the first is not taken before the second can be."""
    store.append("s", say(0))
    flows, manager = store._flows, store.memory_manager
    outage = Interposition(manager, away=DATABASE)
    store.append("s", say(1))
    outage.remove()
    manager._runtime.run(flows.outbox.claim("one that dies", sessions=1, lease_seconds=60.0))
    no_pauses = Interposition(manager)
    assert manager.clear_session_memory("s") is False
    no_pauses.remove()
    assert manager.unlogged_sessions() == ["s"]
    assert contents(manager.get_context("s")["buffer_messages"]) == talk(0, 1)
    end_leases(store)
    assert manager.clear_session_memory("s") is True
    assert manager.unlogged_sessions() == []
    assert store.settle()
    assert legacy.sessions == {}


def test_a_purge_does_not_wait_for_who_notes_what_was_relayed(blocking: Backend, store: EnhancedSessionStore) -> None:
    """Whoever notes it of several sessions may come to the others of a batch, and wait for the purge."""
    for name in ("noted", "old"):
        store.append(name, say(0))
    config = store.memory_manager.config
    with psycopg.connect(plain_url(config)) as connection:
        connection.execute(
            "UPDATE memory_sessions SET updated_at = now() - interval '9 days' WHERE tenant = %s", (config.tenant,)
        )
    with psycopg.connect(plain_url(config)) as noting:
        noting.execute(
            "SELECT 1 FROM memory_relays WHERE tenant = %s AND session_id = 'noted' FOR UPDATE", (config.tenant,)
        )
        done = store.memory_manager.retention.purge(timedelta(days=8))
        assert (done["sessions"], done["kept"]) == (1, 1)
    assert store.memory_manager.retention.session_ids() == ["noted"]
