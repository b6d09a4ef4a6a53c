"""Any legacy object that lists its sessions is imported and compared by the commands, as the table is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import pytest
from dual_stores import open_store
from legacy_stores import AsyncListStore, LegacyError, ListStore
from legacy_tables import said
from memory_contract import Backend
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.memory.backfill import Backfill
from contract_engine.memory.legacy_messages import MESSAGE_ID_FIELD
from contract_engine.memory.legacy_object import LegacyObject
from contract_engine.memory.log_writer import LogWriter

pytest_plugins = ("memory_fixtures",)

Messages = list[dict[str, Any]]
Command = Callable[..., tuple[int, Any]]

OLD = 250
"""Messages of the longest session: so many that the log covers the first ones at once."""


class Listing(ListStore):
    """Lists its sessions, one of them twice, as a paged listing may; ``listings``: how often."""

    listings = 0

    def session_ids(self) -> Any:
        self.listings += 1
        if self.fails_reads:
            raise LegacyError
        yield from [*self.sessions, *list(self.sessions)[:1]]


class AsyncListing(AsyncListStore):
    """The same with coroutines."""

    async def session_ids(self) -> list[str]:
        return list(self.inner.sessions)


class PagingListing(AsyncListStore):
    """Lists its sessions by and by."""

    async def session_ids(self) -> AsyncIterator[str]:
        for name in list(self.inner.sessions):
            yield name


STORES: dict[str, Any] = {}


def listed() -> Any:
    """What the commands find under this name."""
    return STORES["store"]


@pytest.fixture(params=[Listing, AsyncListing, PagingListing])
def inner(request: pytest.FixtureRequest) -> ListStore:
    """The sessions of the object at hand."""
    store: Any = request.param()
    STORES["store"] = store
    return store if isinstance(store, ListStore) else store.inner


@pytest.fixture
def command(blocking: Backend, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("LEGACY_STORE", f"{__name__}:listed")
    given = ["--database-url", str(blocking.database_url), "--tenant", blocking.tenant]
    given += ["--redis-url", blocking.redis_url, "--json"]

    def run(*arguments: str) -> tuple[int, Any]:
        result = CliRunner().invoke(app, [*arguments, *given])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, json.loads(result.stdout) if result.stdout else result.stderr

    return run


def test_an_object_is_imported_and_compared(inner: ListStore, command: Command, blocking: Backend) -> None:
    history = [said(number) for number in range(OLD)]
    inner.sessions.update({"long": history[:-5], "short": [said(1)], "empty": []})
    with open_store(blocking, inner) as store:
        for message in history[-5:]:
            store.add_chat_message("long", message)
        assert store.settle()
    assert inner.sessions["long"] == history
    code, found = command("parity")
    assert (code, found["sessions_with_differences"], found["messages"]) == (1, 2, OLD + 1)
    code, done = command("backfill")
    assert (code, done["imported"], done["not_imported"]) == (0, OLD - 5 + 1, [])
    assert command("backfill")[1]["imported"] == 0
    assert blocking.open().session_store.get_chat_history("long") == history
    code, found = command("parity")
    assert (code, found["messages"], found["differences"]) == (0, OLD + 1, [])
    inner.sessions["short"].append(said(2))
    inner.sessions["new"] = [said(3)]
    code, found = command("parity")
    assert (code, {item["session_id"]: item["kind"] for item in found["differences"]}) == (
        1,
        {"short": "missing_in_new", "new": "session_missing_in_new"},
    )
    assert command("backfill", "--session", "nobody")[0] == 1


def test_sessions_are_listed_once_however_many_it_lacks(command: Command, blocking: Backend) -> None:
    """A listing may be a walk through all of a store."""
    store = STORES["store"] = Listing()
    store.sessions.update({"s": [said(1)], "empty": []})
    for name in ("alone-1", "alone-2", "alone-3"):
        blocking.open().append(name, said(1))
    named = ("backfill", "--session", "nobody", "--session", "empty", "--session", "no one")
    for arguments, code in ((("parity",), 1), (("backfill",), 0), (named, 1)):
        store.listings = 0
        assert command(*arguments)[0] == code
        assert store.listings == 1


def test_an_id_inside_a_message_tells_it(inner: ListStore, command: Command, blocking: Backend) -> None:
    """So it does not matter that the older store lacks what the log has, nor that the words are said twice."""
    manager = blocking.open()
    receipts = [manager.append("s", said(number)) for number in (1, 1, 2)]
    inner.sessions["s"] = [said(1), {**said(1), MESSAGE_ID_FIELD: receipts[0].message_id}]
    code, done = command("backfill")
    assert (code, done["imported"]) == (0, 1)
    assert manager.session_store.get_chat_history("s") == [said(1), said(1), said(1), said(2)]


def test_a_store_that_fails_is_an_error_and_not_empty(command: Command) -> None:
    store = Listing()
    STORES["store"] = store
    store.sessions["s"] = [said(1)]
    store.fails_reads = True
    for name in ("backfill", "parity"):
        code, told = command(name)
        assert code == 2
        assert "legacy store unavailable: LegacyError" in told


def test_a_store_that_cannot_list_its_sessions_is_refused_with_what_to_do(command: Command) -> None:
    STORES["store"] = ListStore()
    for name in ("backfill", "parity"):
        code, told = command(name)
        assert code == 2
        assert "has no method session_ids()" in told


def test_without_a_store_it_is_said_how_to_name_one(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEGACY_STORE")
    for name in ("backfill", "parity"):
        code, told = command(name)
        assert code == 2
        assert "no legacy store is named: give --legacy-url URL" in told
        assert "to backfill, --legacy-redis-url URL" in told, "parity does not take it"


def test_what_is_erased_while_it_is_imported_stays_erased(blocking: Backend) -> None:
    """The object's history is held by whoever imports it, until all of it is in the log."""
    legacy = Listing()
    legacy.sessions = {"s": [said(number) for number in range(OLD)]}
    manager = blocking.open()
    erased: list[bool] = []

    def erase(count: int) -> None:
        if count and not erased:
            legacy.sessions.clear()
            erased.append(manager.clear_session_memory("s"))

    with LogWriter(manager.config) as log, closing(LegacyObject(legacy)) as source:
        history = source.history("s")
        assert history is not None
        backfill = Backfill(log, batch=20)
        backfill.pace.wait = erase  # type: ignore[method-assign]  # after each batch
        outcome = backfill.import_session(history)
        assert erased == [True]
        assert outcome.left is not None
        assert "erased while it was imported" in outcome.left
        assert log.position("s") is None, "not even an empty session"
        assert backfill.import_session(history).imported == OLD, "as nothing was there before"
