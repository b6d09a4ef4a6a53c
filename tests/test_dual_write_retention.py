"""Sessions of which a legacy store lacks messages: erased, purged, exported, imported and replaced."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from dual_stores import contents, say, talk
from legacy_stores import ListStore
from memory_contract import Backend, row_counts

from contract_engine.memory import InvalidInputError, MemoryManager
from contract_engine.memory.migration import EnhancedSessionStore
from contract_engine.memory.migration_control import MigrationControl

pytest_plugins = ("memory_fixtures", "dual_write_fixtures")

TABLES = ("memory_outbox", "memory_relays")


@pytest.fixture
def manager(store: EnhancedSessionStore) -> MemoryManager:
    return store.memory_manager


def owed(backend: Backend) -> dict[str, set[str]]:
    """Return the sessions of which there are rows in the tables of the outbox."""
    assert backend.database_url is not None
    with psycopg.connect(backend.database_url) as connection:
        return {
            table: {
                row[0]
                for row in connection.execute(
                    f"SELECT session_id FROM {table} WHERE tenant = %s",
                    (backend.tenant,),
                )
            }
            for table in TABLES
        }


def exported(manager: MemoryManager, session_id: str) -> bytes:
    file = io.BytesIO()
    assert manager.retention.export_session(session_id, file.write) is not None
    return file.getvalue()


def write(store: EnhancedSessionStore, *session_ids: str) -> None:
    for name in session_ids:
        for number in (1, 2, 3):
            assert store.add_chat_message(name, say(number))


def test_an_erased_session_owes_nothing_and_the_report_says_so(
    blocking: Backend, store: EnhancedSessionStore, manager: MemoryManager, legacy: ListStore
) -> None:
    write(store, "erased", "stays")
    [report] = manager.retention.erase(["erased"])
    assert {table: report["tables"][table] for table in TABLES} == {"memory_outbox": 3, "memory_relays": 1}
    assert not report["left_rows"]
    assert owed(blocking) == {table: {"stays"} for table in TABLES}
    assert store.settle()
    assert sorted(legacy.sessions) == ["stays"]


def test_a_purged_session_owes_nothing(
    blocking: Backend, store: EnhancedSessionStore, manager: MemoryManager, legacy: ListStore
) -> None:
    write(store, "purged", "stays")
    assert blocking.database_url is not None
    with psycopg.connect(blocking.database_url) as connection:
        changed = connection.execute(
            "UPDATE memory_sessions SET updated_at = now() - interval '9 days' WHERE tenant = %s AND session_id = %s",
            (blocking.tenant, "purged"),
        )
        assert changed.rowcount == 1
    assert manager.retention.purge(timedelta(days=8))["sessions"] == 1
    assert owed(blocking) == {table: {"stays"} for table in TABLES}
    assert store.settle()
    assert sorted(legacy.sessions) == ["stays"]


def test_an_archive_has_what_is_still_owed_and_not_that_it_is(
    blocking: Backend, store: EnhancedSessionStore, manager: MemoryManager, legacy: ListStore
) -> None:
    write(store, "s")
    before = exported(manager, "s")
    assert store.settle()
    assert exported(manager, "s") == before, "relaying changes nothing of a session"
    assert legacy.contents("s") == talk(1, 2, 3)


def test_what_is_imported_is_history_and_what_follows_is_relayed(
    blocking: Backend, store: EnhancedSessionStore, manager: MemoryManager, legacy: ListStore
) -> None:
    write(store, "s")
    archive = exported(manager, "s")
    assert store.settle()
    manager.retention.import_sessions(iter(archive.splitlines(keepends=True)), session_id="copy")
    assert "copy" not in owed(blocking)["memory_outbox"]
    assert store.add_chat_message("copy", say(4))
    assert store.settle()
    assert legacy.contents("copy") == talk(4), "whoever wants the rest there copies it there"
    store.set_phase("full")
    assert contents(store.get_chat_history("copy")) == talk(1, 2, 3, 4)


@pytest.mark.parametrize("phase", [("coexistence",), ("gradual", 0), ("gradual", 100), ("full",)])
def test_what_is_imported_for_both_is_in_both_in_every_phase(
    store: EnhancedSessionStore, manager: MemoryManager, legacy: ListStore, phase: tuple[Any, ...]
) -> None:
    write(store, "s")
    archive = exported(manager, "s")
    assert store.settle()
    store.set_phase(*phase)
    lines = archive.splitlines(keepends=True)
    assert manager.retention.import_sessions(lines, session_id="copy", relay=True, dry_run=True)["messages"] == 3
    assert store.backlog().messages == 0
    manager.retention.import_sessions(lines, session_id="copy", relay=True)
    assert store.backlog().messages == 3
    for number in (4, 5):
        assert store.add_chat_message("copy", say(number))
        assert contents(store.get_chat_history("copy")) == talk(*range(1, number + 1))
    for back in (("coexistence",), phase):
        store.set_phase(*back)
        assert contents(store.get_chat_history("copy")) == talk(1, 2, 3, 4, 5)
    assert store.settle()
    assert legacy.contents("copy") == contents(store.get_chat_history("copy")) == talk(1, 2, 3, 4, 5)


def test_an_import_for_both_replaces_what_was_owed_and_needs_a_legacy_store(
    store: EnhancedSessionStore, manager: MemoryManager, legacy: ListStore
) -> None:
    write(store, "s")
    lines = exported(manager, "s").splitlines(keepends=True)
    assert store.add_chat_message("s", say(4))
    assert manager.retention.import_sessions(lines, existing="replace", relay=True)["replaced"] == ["s"]
    assert store.settle()
    assert legacy.contents("s") == talk(1, 2, 3)
    MigrationControl(manager).end()
    for dry_run in (True, False):
        with pytest.raises(InvalidInputError, match=r"relay: tenant .* has no phase"):
            manager.retention.import_sessions(lines, session_id="more", relay=True, dry_run=dry_run)
    assert manager.retention.session_ids() == ["s"]


def test_a_session_that_is_replaced_owes_nothing_of_its_life_before(
    blocking: Backend, store: EnhancedSessionStore, manager: MemoryManager, legacy: ListStore
) -> None:
    write(store, "s")
    archive = exported(manager, "s")
    assert store.add_chat_message("s", say(4))
    manager.retention.import_sessions(iter(archive.splitlines(keepends=True)), existing="replace")
    assert owed(blocking) == {table: set() for table in TABLES}
    assert store.settle()
    assert legacy.sessions == {}
    assert blocking.database_url is not None
    assert row_counts(blocking.database_url, blocking.tenant)["memory_messages"] == 3
