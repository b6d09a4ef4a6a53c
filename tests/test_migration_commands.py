"""``contract-memory phase`` and ``contract-memory relay``, on real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dual_stores import contents, open_store, say, talk
from legacy_stores import AsyncListStore, LegacyError, ListStore
from legacy_tables import Older
from memory_contract import Backend
from typer.testing import CliRunner, Result

from contract_engine.cli.app import app
from contract_engine.cli.legacy_stores import find_legacy_store
from contract_engine.memory import AsyncLegacySwisperStore
from contract_engine.memory.migration import EnhancedSessionStore

pytest_plugins = ("memory_fixtures", "legacy_fixtures")

LISTED, AWAITED = ListStore(), AsyncListStore()
"""What the commands find under ``test_migration_commands:``."""

Command = Callable[..., Result]


class Refusing(ListStore):
    """Refuses every write and answers reads."""

    def add_chat_message(self, session_id: str, message: dict[str, Any]) -> None:
        raise LegacyError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, blocking: Backend) -> Command:
    monkeypatch.setenv("REDIS_URL", blocking.redis_url)
    monkeypatch.setenv("DATABASE_URL", blocking.database_url or "")
    monkeypatch.setenv("CONTRACT_MEMORY_TENANT", blocking.tenant)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def store(blocking: Backend) -> Iterator[EnhancedSessionStore]:
    with open_store(blocking, ListStore()) as found:
        yield found


def place(name: str) -> str:
    return f"{__name__}:{name}"


def test_a_phase_is_shown_set_and_ended(command: Command, store: EnhancedSessionStore) -> None:
    none = command("phase", "show")
    assert (none.exit_code, "no legacy store" in none.stdout) == (1, True)
    assert "Would go from none to full" in command("phase", "set", "full", "--new-tenant", "--dry-run").stdout
    assert command("phase", "show").exit_code == 1
    answer = command("phase", "set", "gradual", "--percentage", "25", "--new-tenant")
    assert answer.exit_code == 0
    assert "Went from none to gradual (25 %)" in answer.stdout
    assert store.get_phase() == ("gradual", 25)
    store.add_chat_message("s", say(1))
    shown = json.loads(command("phase", "show", "--json").stdout)
    assert (shown["phase"], shown["percentage"], shown["backlog"]["messages"]) == ("gradual", 25, 1)
    assert "1 message of 1 session waits, the oldest" in command("phase", "show").stdout
    changed = json.loads(command("phase", "set", "coexistence", "--json").stdout)
    assert (changed["phase"], changed["before"]["phase"]) == ("coexistence", "gradual")
    assert command("phase", "end").exit_code == 1, "nobody there to ask"
    shown = command("phase", "end", "--dry-run", "--json")
    assert json.loads(shown.stdout) == {"had_phase": True, "ended": False, "not_relayed": 1, "dry_run": True}
    assert "The migration would end." in command("phase", "end", "--dry-run").stdout
    ended = command("phase", "end", "--yes", "--json")
    assert json.loads(ended.stdout) == {"had_phase": True, "ended": True, "not_relayed": 1, "dry_run": False}
    assert ended.exit_code == 1, "not all"
    assert command("phase", "show").exit_code == 1
    again = command("phase", "end", "--yes")
    assert (again.exit_code, "1 message was not relayed" in again.stdout) == (1, True)
    assert store.settle()
    assert command("phase", "end", "--yes").exit_code == 0


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--json",)])
def test_a_tenant_nobody_has_used_is_taken_for_a_mistyped_one(
    command: Command, blocking: Backend, more: tuple[str, ...]
) -> None:
    answer = command("phase", "set", "full", *more)
    assert (answer.exit_code, answer.stdout) == (2, "")
    for word in (f"tenant: '{blocking.tenant}'", "no session", "--new-tenant"):
        assert word in answer.stderr
    shown = command("phase", "show")
    assert (shown.exit_code, f"tenant {blocking.tenant} writes to no legacy store" in shown.stdout) == (1, True)


def test_a_tenant_with_a_session_or_a_phase_is_known(command: Command, blocking: Backend) -> None:
    manager = blocking.open()
    manager.append("s", say(1))
    assert command("phase", "set", "coexistence").exit_code == 0, "it has a session"
    manager.clear_session_memory("s")
    assert manager.session_store.get_all_sessions() == []
    assert command("phase", "set", "full").exit_code == 0, "it has a phase"
    assert command("phase", "end", "--yes").exit_code == 0
    assert command("phase", "set", "full").exit_code == 2, "it has neither any more"


@pytest.mark.parametrize("arguments", [("later",), ("gradual",), ("full", "--percentage", "5")])
def test_a_phase_that_makes_no_sense_is_an_error(command: Command, arguments: tuple[str, ...]) -> None:
    answer = command("phase", "set", *arguments)
    assert answer.exit_code == 2
    assert "Error: " in answer.stderr


@pytest.mark.parametrize("name", ["LISTED", "AWAITED"])
def test_relay_gives_the_legacy_store_what_it_lacks(command: Command, store: EnhancedSessionStore, name: str) -> None:
    for number in range(30):
        store.add_chat_message(f"{name}-{number % 3}", say(number))
    shown = command("relay", "--dry-run", "--json")
    assert shown.exit_code == 1, "something waits"
    before = json.loads(shown.stdout)
    assert before["backlog"]["messages"] == 30
    assert [one["messages"] for one in before["sessions"]] == [10, 10, 10]
    listed = command("relay", "--list")
    assert (listed.exit_code, "30 messages of 3 sessions wait" in listed.stdout) == (1, True)
    answer = command("relay", "--legacy", place(name), "--json")
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout)["relayed"] == 30
    legacy: Any = {"LISTED": LISTED, "AWAITED": AWAITED}[name]
    assert legacy.contents(f"{name}-1") == talk(*range(1, 30, 3))
    assert "The legacy store has everything." in command("relay", "--legacy", place(name)).stdout
    assert command("relay", "--list").exit_code == 0


def test_relay_writes_to_the_table_of_the_original(command: Command, store: EnhancedSessionStore, older: Older) -> None:
    older.fill("s", [say(0)])
    sent = [store.append("s", say(number)).message_id for number in range(1, 4)]
    answer = command("relay", "--legacy-url", older.url, "--table", older.table, "--json")
    assert json.loads(answer.stdout)["relayed"] == 3
    assert older.store.get_chat_history("s") == [say(number) for number in range(4)]
    assert older.store.message_ids("s") == sent


TABLE: dict[str, str] = {}


def coroutines() -> AsyncLegacySwisperStore:
    """What ``--legacy`` finds under this name."""
    return AsyncLegacySwisperStore(TABLE["url"], table=TABLE["name"])


def test_a_store_of_coroutines_loses_nothing_it_can_do(blocking: Backend, older: Older) -> None:
    TABLE.update(url=older.url, name=older.table)
    found = find_legacy_store(place("coroutines"))
    with open_store(blocking, found) as store:
        try:
            sent = [store.append("s", say(number)).message_id for number in range(3)]
            assert store.relay_once() == 3
            assert contents(store.get_chat_history("s", 2)) == talk(1, 2)
            assert store.await_legacy(lambda: found.message_ids("s")) == sent
        finally:
            store.await_legacy(found.aclose)


def test_relay_shows_and_retries_what_is_parked(command: Command, store: EnhancedSessionStore) -> None:
    store.add_chat_message("refused", say(1))
    legacy = ("--legacy", place("Refusing"))
    answer = command("relay", *legacy, "--patience", "0.5")
    assert answer.exit_code == 1
    assert "1 message of 1 session waits" in answer.stdout
    listed = command("relay", "--list")
    assert "refused" in listed.stdout
    assert "LegacyError" in listed.stdout
    assert json.loads(command("relay", "--retry", "--session", "refused", "--json").stdout) == {"retried": ["refused"]}
    assert command("relay", "--legacy", place("ListStore")).exit_code == 0


def test_an_import_goes_to_the_legacy_store_too_where_that_is_said(
    command: Command, store: EnhancedSessionStore, tmp_path: Path
) -> None:
    store.memory_manager.add_messages("s", [say(1), say(2)])
    file = str(tmp_path / "s.jsonl")
    assert command("export", "s", "-o", file).exit_code == 0
    refused = command("import", file, "--session", "copy", "--relay")
    assert (refused.exit_code, "has no phase" in refused.stderr) == (2, True)
    store.set_phase("coexistence")
    assert command("import", file, "--session", "copy", "--relay").exit_code == 0
    assert contents(store.get_chat_history("copy")) == talk(1, 2)
    assert store.backlog().messages == 2


class Hanging(ListStore):
    """Never comes back from a write."""

    def add_chat_message(self, session_id: str, message: dict[str, Any]) -> None:
        threading.Event().wait()


def test_a_relay_ends_though_a_call_to_the_legacy_store_never_does(
    blocking: Backend, store: EnhancedSessionStore
) -> None:
    store.add_chat_message("s", say(1))
    servers = ["--redis-url", blocking.redis_url, "--database-url", str(blocking.database_url)]
    command = [sys.executable, "-m", "contract_engine.cli", "relay", "--legacy", place("Hanging"), "--patience", "0.2"]
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    answer = subprocess.run(
        [*command, *servers, "--tenant", blocking.tenant],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": here},
    )
    assert answer.returncode == 1, answer.stderr
    assert "1 message of 1 session waits" in answer.stdout
    assert "The legacy store does not answer" in answer.stdout


@pytest.mark.parametrize("legacy", ["nowhere", "no.such.module:store", "json:nothing", "json:dumps"])
def test_a_legacy_store_that_is_not_there_is_an_error(
    command: Command, store: EnhancedSessionStore, legacy: str
) -> None:
    store.add_chat_message("s", say(1))
    answer = command("relay", "--legacy", legacy)
    assert answer.exit_code == 2, answer.stdout
    assert "legacy" in answer.stderr


def test_relay_says_that_it_needs_a_legacy_store(command: Command, store: EnhancedSessionStore) -> None:
    store.add_chat_message("s", say(1))
    answer = command("relay")
    assert answer.exit_code == 2
    assert "LEGACY_STORE" in answer.stderr


def test_relay_refuses_a_table_that_is_not_there(command: Command, store: EnhancedSessionStore, older: Older) -> None:
    """Also where nothing waits; and before a session is tried there, which would be parked for it."""
    url = ("--legacy-url", older.url)
    store.add_chat_message("s", say(1))
    for _ in range(2):
        for more in ((), ("--retry",), ("--json",)):
            answer = command("relay", *url, "--table", "nonesuch", *more)
            assert (answer.exit_code, answer.stdout) == (2, "")
            assert "there is no table 'nonesuch'" in answer.stderr
        assert sum(one.attempts for one in store.waiting_sessions()) == 0
        assert command("relay", *url, "--table", older.table).exit_code == 0
    assert older.store.get_chat_history("s") == [say(1)]


def test_relay_refuses_a_tenant_or_a_session_that_is_not_there(
    command: Command, store: EnhancedSessionStore, older: Older
) -> None:
    store.add_chat_message("s", say(1))
    table = ("--legacy-url", older.url, "--table", older.table)
    for more in ((*table,), (*table, "--retry"), ("--retry",), ("--list",), ("--dry-run",), ("--list", "--json")):
        answer = command("relay", "--tenant", "mistyped", *more)
        assert (answer.exit_code, answer.stdout) == (2, ""), more
        assert "tenant: 'mistyped' has no phase and no session in the log. Correct --tenant" in answer.stderr
        assert "--new-tenant" not in answer.stderr, "that is no option of this command"
    for where in (table, ()):
        answer = command("relay", "--retry", "--session", "nobody", *where)
        assert (answer.exit_code, answer.stdout) == (2, ""), where
        assert "session: 'nobody' is not in the log; correct the name" in answer.stderr
    assert store.backlog().messages == 1, "nothing was relayed"
    assert command("relay", "--retry", "--session", "s", *table).exit_code == 0
    assert command("relay", "--retry", "--session", "s").exit_code == 0, "it is there, and was not put off"


def test_what_is_owed_is_relayed_also_when_the_phase_has_ended(
    command: Command, store: EnhancedSessionStore, older: Older
) -> None:
    store.add_chat_message("s", say(1))
    assert command("phase", "end", "--yes").exit_code == 1
    assert command("relay", "--legacy-url", older.url, "--table", older.table).exit_code == 0
    assert older.store.get_chat_history("s") == [say(1)]


def test_what_would_be_ignored_is_refused(
    command: Command, store: EnhancedSessionStore, older: Older, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_chat_message("s", say(1))
    table = ("--legacy-url", older.url, "--table", older.table)
    for field, arguments in {
        "session": ("--session", "s", *table),
        "legacy": ("--legacy", place("ListStore"), *table),
    }.items():
        answer = command("relay", *arguments)
        assert answer.exit_code == 2, arguments
        assert field in answer.stderr
    assert store.backlog().messages == 1, "nothing was relayed"
    monkeypatch.setenv("LEGACY_STORE", "no.such.module:store")
    assert command("relay", *table).exit_code == 0, "what is said goes before what is set"
    assert older.store.get_chat_history("s") == [say(1)]
