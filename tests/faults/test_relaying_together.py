"""Sessions that the legacy store takes several of in one call: each in order and once, whatever fails of a call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from crash_matrix import ERROR_AFTER, ERROR_BEFORE, LEGACY, OUTAGE, Fault, Interposition, server_of
from dual_stores import open_store, say
from legacy_tables import Older
from memory_contract import Backend
from server_faults import waited_for
from test_relaying import fill, hanging
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.memory import LegacySwisperStore, StoreUnavailableError
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.migration import EnhancedSessionStore
from contract_engine.memory.relaying import SESSIONS

pytest_plugins = ("memory_fixtures", "legacy_fixtures")

SEVERAL, EACH = 7, 3


class Calls(LegacySwisperStore):
    """Notes how many sessions each call was for."""

    def __init__(self, older: Older, *, timeout_seconds: float = 30.0) -> None:
        super().__init__(older.url, table=older.table, timeout_seconds=timeout_seconds)
        self.together: list[int] = []
        self.alone: list[str] = []

    def add_to_sessions(self, sessions: Any) -> list[str]:
        self.together.append(len(sessions))
        return super().add_to_sessions(sessions)

    def add_chat_messages(self, session_id: str, messages: Any, *, message_ids: Any = None) -> bool:
        self.alone.append(session_id)
        return super().add_chat_messages(session_id, messages, message_ids=message_ids)

    def add_chat_message(self, session_id: str, message: Any, *, message_id: str | None = None) -> bool:
        self.alone.append(session_id)
        return super().add_chat_message(session_id, message, message_id=message_id)


@pytest.fixture
def legacy(older: Older) -> Iterator[Calls]:
    with closing(Calls(older)) as found:
        yield found


@pytest.fixture
def store(blocking: Backend, legacy: Calls) -> Iterator[EnhancedSessionStore]:
    with open_store(blocking, legacy) as found:
        yield found


def assert_relayed(older: Older, sessions: int, each: int) -> None:
    for session in range(sessions):
        name = f"s{session}"
        assert older.store.get_chat_history(name) == [say(number) for number in range(each)]
        assert older.store.message_ids(name) == [f"{session}.{place}" for place in range(each)]


def expect_together(store: EnhancedSessionStore) -> None:
    """Have all of them written in one call, as after many that went well."""
    relay = store._flows._relay
    assert relay is not None
    relay._together = SEVERAL


def refuse(older: Older, session_id: str) -> None:
    """Have PostgreSQL refuse whatever is written to one session."""
    name = f"refuse_{older.table}"
    body = f"BEGIN IF NEW.session_id = '{session_id}' THEN RAISE 'not this one'; END IF; RETURN NEW; END"
    older.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
    older.execute(f"CREATE TRIGGER one BEFORE INSERT OR UPDATE ON {{table}} FOR EACH ROW EXECUTE FUNCTION {name}()")


def test_short_sessions_share_calls(store: EnhancedSessionStore, legacy: Calls, older: Older) -> None:
    fill(store, sessions=200, each=2)
    assert store.settle(60)
    assert_relayed(older, 200, 2)
    assert (store.stats.relayed, store.stats.failed) == (400, 0)
    assert max(legacy.together) <= SESSIONS
    calls = len(legacy.together) + len(legacy.alone)
    assert calls < 200 / 4, "most of them wait for a commit of their own"


@pytest.mark.parametrize("trouble", ["no list", "refused"])
def test_one_session_at_fault_keeps_no_other_from_being_relayed(
    store: EnhancedSessionStore, legacy: Calls, older: Older, trouble: str
) -> None:
    fill(store, sessions=SEVERAL, each=EACH)
    if trouble == "no list":
        older.fill("s4", {"0": "strange"})
    else:
        refuse(older, "s4")
    expect_together(store)
    assert store.relay_once() == (SEVERAL - 1) * EACH
    assert legacy.together == [SEVERAL]
    store.settle(1.0)
    (waiting,) = store.waiting_sessions()
    assert (waiting.session_id, waiting.messages, waiting.is_parked) == ("s4", EACH, True)
    assert store.stats.relayed == (SEVERAL - 1) * EACH
    assert [name for name in legacy.alone if legacy.alone.count(name) > 2] == ["s4"] * legacy.alone.count("s4")
    older.execute(f"DROP FUNCTION IF EXISTS refuse_{older.table} CASCADE")
    older.execute("DELETE FROM {table} WHERE session_id = 's4'")
    assert store.retry() == ["s4"]
    assert store.settle(30)
    assert_relayed(older, SEVERAL, EACH)


@pytest.mark.parametrize("kind", [ERROR_BEFORE, ERROR_AFTER, OUTAGE])
def test_an_effect_fails(blocking: Backend, legacy: Calls, older: Older, kind: str) -> None:
    of_legacy = 0
    for number in range(1, 40):
        older.execute("DELETE FROM {table}")
        with psycopg.connect(older.url) as connection:
            for table in ("messages", "sessions", "outbox", "relays"):
                connection.execute(f"DELETE FROM memory_{table} WHERE tenant = %s", (blocking.tenant,))
        with open_store(blocking, legacy, breaker=CircuitBreaker(5, 0.05, name="legacy")) as store:
            fill(store, sessions=SEVERAL, each=EACH)
            between = Interposition(store.memory_manager, Fault(kind, number))
            try:
                store.relay_once()
            except StoreUnavailableError:
                assert between.fired is not None
            between.remove()
            with psycopg.connect(older.url) as connection:  # as after a while
                connection.execute(
                    "UPDATE memory_relays SET leased_until = now() WHERE tenant = %s", (blocking.tenant,)
                )
            assert store.settle(60)
            assert store.backlog().messages == 0
        assert_relayed(older, SEVERAL, EACH)
        if between.fired is None:
            break
        of_legacy += server_of(between.fired) == LEGACY
    else:
        raise AssertionError("it never passes untouched")
    assert max(legacy.together) > 1
    assert of_legacy >= 3, "one session, two, and what is left of them"


def test_the_command_says_that_the_legacy_store_is_away(blocking: Backend, store: EnhancedSessionStore) -> None:
    fill(store, sessions=SEVERAL, each=EACH)
    assert blocking.database_url is not None
    given = ["--redis-url", blocking.redis_url, "--database-url", blocking.database_url, "--tenant", blocking.tenant]
    away = ["--legacy-url", "postgresql://nobody@127.0.0.1:1/x", "--patience", "1"]
    done = CliRunner().invoke(app, ["relay", *away, *given])
    assert done.exit_code == 1, done.output
    assert f"Relayed 0 messages. {SEVERAL * EACH} messages of {SEVERAL} sessions wait" in done.stdout
    assert "The legacy store does not answer: bring it back, then call this again." in done.stdout


def test_a_call_that_hangs_is_made_again(blocking: Backend, older: Older) -> None:
    with closing(Calls(older, timeout_seconds=0.5)) as legacy, open_store(blocking, legacy) as store:
        fill(store, sessions=SEVERAL, each=EACH)
        expect_together(store)
        with hanging(older) as is_waited_for:
            round_ = threading.Thread(target=store.relay_once)
            round_.start()
            assert waited_for(is_waited_for)
            round_.join()
        assert legacy.together == [SEVERAL]
        assert store.backlog().in_doubt == SEVERAL
        assert sum(one.attempts for one in store.waiting_sessions()) >= 1, "a doctor would see no failure"
        assert store.settle(60)
        assert_relayed(older, SEVERAL, EACH)
