"""Retention on real servers: what is old goes, what is touched stays, and an erasure is searched for what it left."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import sqlalchemy as sa
from memory_contract import Backend, logged, redis_values, row_counts, rows_with, say, talk
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.cli.retention import age_of, moment_of
from contract_engine.memory import (
    ConfigurationError,
    InvalidInputError,
    MemoryManager,
    StoreUnavailableError,
    erasing,
)
from contract_engine.memory._effects import Query, RedisCall, Transaction
from contract_engine.memory._tables import metadata, tables_of_sessions
from contract_engine.memory.errors import DatabaseUnavailableError, RedisUnavailableError
from contract_engine.memory.keys import session_pattern

pytest_plugins = ("memory_fixtures",)

DAY = timedelta(days=1)
AGE = timedelta(days=90)


def make_old(backend: Backend, *session_ids: str, days: int = 100) -> None:
    """Make it so long ago that sessions were touched."""
    assert backend.database_url is not None
    with psycopg.connect(backend.database_url) as connection:
        done = connection.execute(
            "UPDATE memory_sessions SET updated_at = now() - make_interval(days => %s)"
            " WHERE tenant = %s AND session_id = ANY(%s)",
            (days, backend.tenant, list(session_ids)),
        )
        assert done.rowcount == len(session_ids)


def touched_at(backend: Backend, session_id: str) -> datetime:
    assert backend.database_url is not None
    with psycopg.connect(backend.database_url) as connection:
        row = connection.execute(
            "SELECT updated_at FROM memory_sessions WHERE tenant = %s AND session_id = %s", (backend.tenant, session_id)
        ).fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


def keys_of(raw: redis.Redis, backend: Backend) -> list[bytes]:
    return list(redis_values(raw, f"*{{{backend.tenant}/*"))


# -- purge


def test_what_is_old_goes_from_both_servers_and_the_rest_stays(durable: Backend, raw: redis.Redis) -> None:
    manager = durable.open(max_buffer_messages=6)
    canary = f"canary-{durable.tenant}"
    for name in ("old", "older", "young"):
        for message in talk(9):
            manager.append(name, {**message, "canary": f"{canary}-{name}"})
        manager.wait_for_folds()
        manager.get_context(name)
    make_old(durable, "old", "older")
    make_old(durable, "older", days=200)
    before = manager.get_context("young")
    seen: list[int] = []
    done = manager.retention.purge(AGE, progress=seen.append)
    assert (done["sessions"], done["messages"], done["kept"], done["dry_run"]) == (2, 18, 0, False)
    assert datetime.fromisoformat(done["oldest"]) < datetime.now(UTC) - 199 * DAY
    assert seen == [2]
    for name in ("old", "older"):
        assert rows_with(str(durable.database_url), f"{canary}-{name}") == []
        assert [key for key, value in redis_values(raw).items() if f"{canary}-{name}".encode() in value] == []
        assert manager.get_context(name)["last_seq"] == 0
    assert manager.get_context("young")["buffer_messages"] == before["buffer_messages"]
    assert manager.retention.session_ids() == ["young"]
    again = manager.retention.purge(AGE)
    assert (again["sessions"], again["messages"], again["oldest"]) == (0, 0, None)
    assert manager.append("old", say(1)).seq == 1


TOUCHES: dict[str, Callable[[MemoryManager], object]] = {
    "append": lambda manager: manager.append("s", say(50)),
    "append again": lambda manager: manager.add_messages("s", talk(3)),
    "context object": lambda manager: manager.save_context("s", {"session_id": "s"}),
    "limits": lambda manager: manager.set_session_config("s", {"max_buffer_messages": 5}),
    "pin": lambda manager: manager.pin("s", "m2"),
    "unpin": lambda manager: manager.unpin("s", "m1"),
    "instructions": lambda manager: manager.set_summary_instructions("s", "Keep the numbers."),
    "summary of a caller": lambda manager: manager.summary_store.add_summary("s", "A fact."),
    "summaries cleared": lambda manager: manager.summary_store.clear_summaries("s"),
}
NO_TOUCHES: dict[str, Callable[[MemoryManager], object]] = {
    "read": lambda manager: manager.get_context("s"),
    "read again": lambda manager: (manager.buffer_store.clear_buffer("s"), manager.get_context("s")),
    "search": lambda manager: manager.search_messages("s", "message 0002"),
    "drain of nothing": lambda manager: manager.drain("s"),
    "summary written again": lambda manager: manager.summary_store.resummarize("s"),
    "quarantine": lambda manager: manager.summary_store.quarantine("s", 1),
}


@pytest.mark.parametrize("name", [*TOUCHES, *NO_TOUCHES])
def test_what_is_a_touch(blocking: Backend, name: str) -> None:
    manager = blocking.open(max_buffer_messages=4)
    for number in range(1, 8):
        manager.append("s", say(number), message_id=f"m{number}")
        manager.wait_for_folds()
    manager.pin("s", "m1")
    make_old(blocking, "s")
    old = touched_at(blocking, "s")
    (TOUCHES.get(name) or NO_TOUCHES[name])(manager)
    manager.wait_for_folds()
    assert (touched_at(blocking, "s") > old) == (name in TOUCHES)
    assert manager.retention.purge(AGE, dry_run=True)["sessions"] == (name in NO_TOUCHES)


def test_a_dry_run_and_a_limit(blocking: Backend) -> None:
    manager = blocking.open()
    names = [f"s{number:03d}" for number in range(120)]
    for name in names:
        manager.append(name, say(1))
    make_old(blocking, *names[:110])
    found = manager.retention.purge(AGE, dry_run=True)
    assert (found["sessions"], found["messages"], found["dry_run"]) == (110, 110, True)
    assert row_counts(str(blocking.database_url), blocking.tenant)["memory_messages"] == 120
    assert manager.retention.purge(AGE, limit=3, dry_run=True)["sessions"] == 3
    assert manager.retention.purge(AGE, limit=3)["sessions"] == 3
    assert manager.retention.session_ids() == names[3:]
    seen: list[int] = []
    started = time.monotonic()
    assert manager.retention.purge(AGE, sessions_per_second=200, progress=seen.append)["sessions"] == 107
    assert time.monotonic() - started >= 100 / 200, "it was to be throttled"
    assert seen == [50, 100, 107]
    assert manager.retention.session_ids() == names[110:]
    assert manager.retention.session_ids(after=names[112], limit=4) == names[113:117]


class Interruptions:
    """Runs ``meanwhile`` before the effect of a number, as another process would."""

    def __init__(self, manager: MemoryManager, number: int, meanwhile: Callable[[], object]) -> None:
        self._runtime: Any = manager._runtime
        self._original = self._runtime._perform
        self._left, self._meanwhile = number, meanwhile
        self.fired = False
        self._runtime._perform = self._interrupted  # type: ignore[method-assign]  # the point of it

    def _interrupted(self, effect: Any) -> Any:
        if isinstance(effect, RedisCall | Query | Transaction):
            self._left -= 1
            if not self._left:
                self.fired = True
                self._meanwhile()
        return self._original(effect)

    def remove(self) -> None:
        self._runtime._perform = self._original


def test_a_session_that_is_touched_meanwhile_loses_nothing_of_what_was_said_since(blocking: Backend) -> None:
    """Another process appends before the first effect of a purge, its second, ..., its last."""
    purger, other = blocking.open(), blocking.open()
    outcomes = set()
    for number in range(1, 60):
        for message in talk(5):
            other.append("s", message)
        other.get_context("s")
        make_old(blocking, "s")
        at_work = Interruptions(purger, number, lambda: other.append("s", say(99)))
        done = purger.retention.purge(AGE)
        at_work.remove()
        if not at_work.fired:
            break
        said = [message for _, message in logged(str(blocking.database_url), blocking.tenant, "s")]
        outcomes.add(done["sessions"])
        if done["sessions"]:
            assert said == [say(99)], (
                "the new session holds what was said after the old one was erased, and nothing else"
            )
        else:
            assert said == [*talk(5), say(99)]
        for manager in (purger, other):
            context = manager.get_context("s")
            assert (context["buffer_messages"], context["last_seq"]) == (said, len(said))
        assert other.clear_session_memory("s")
    else:
        raise AssertionError("it does not end")
    assert number >= 8
    assert outcomes == {0, 1}


def test_a_session_in_use_is_passed_over_without_waiting(blocking: Backend) -> None:
    manager = blocking.open()
    for name in ("free", "used"):
        manager.append(name, say(1))
    make_old(blocking, "free", "used")
    with psycopg.connect(str(blocking.database_url)) as connection:
        query = "SELECT 1 FROM memory_sessions WHERE tenant = %s AND session_id = 'used' FOR UPDATE"
        connection.execute(query, (blocking.tenant,))
        done = manager.retention.purge(AGE)  # would miss its deadline if it waited
    assert (done["sessions"], done["kept"]) == (1, 1)
    assert manager.retention.session_ids() == ["used"]


def test_the_rate_of_a_purge_is_never_made_up_for(blocking: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever took time before: what comes after it comes at the rate, and not all at once."""
    monkeypatch.setattr(erasing, "BATCH_SESSIONS", 1)
    manager = blocking.open()
    names = [f"s{number}" for number in range(6)]
    for name in names:
        manager.append(name, say(1))
    make_old(blocking, *names)
    moments: list[float] = []

    def progress(done: int) -> None:
        moments.append(time.monotonic())
        if done == 1:
            time.sleep(3)

    assert manager.retention.purge(AGE, sessions_per_second=2, progress=progress)["sessions"] == len(names)
    # Four at two a second; what one takes itself counts for its share of the time.
    assert moments[5] - moments[1] >= 1.4


@contextmanager
def without(manager: MemoryManager, *, redis_too: bool = False, database: bool = False) -> Iterator[None]:
    """Have a manager find servers away."""
    runtime: Any = manager._runtime
    perform = runtime._perform

    def lost(effect: Any) -> Any:
        if database and isinstance(effect, Query | Transaction):
            raise DatabaseUnavailableError("away")
        if redis_too and isinstance(effect, RedisCall):
            raise RedisUnavailableError("away")
        return perform(effect)

    runtime._perform = lost
    yield
    runtime._perform = perform


def test_messages_that_wait_in_redis_are_a_touch(blocking: Backend) -> None:
    purger, other = blocking.open(), blocking.open()
    for message in talk(3):
        other.append("s", message)
    with without(other, database=True):
        assert not other.append("s", say(4)).durable
    make_old(blocking, "s")
    assert purger.retention.purge(AGE)["kept"] == 1
    assert logged(str(blocking.database_url), blocking.tenant, "s") == list(enumerate(talk(4), 1))


def test_nothing_is_erased_where_redis_cannot_be_asked(blocking: Backend) -> None:
    manager = blocking.open()
    manager.append("s", say(1))
    make_old(blocking, "s")
    with without(manager, redis_too=True), pytest.raises(StoreUnavailableError, match="nothing was done"):
        manager.retention.purge(AGE)
    assert logged(str(blocking.database_url), blocking.tenant, "s") == [(1, say(1))]
    assert manager.retention.purge(AGE)["sessions"] == 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((timedelta(0),), "older_than"),
        ((timedelta(days=-1),), "older_than"),
        ((timedelta(days=900_000),), "older_than"),
        ((datetime(2020, 1, 1),), "older_than"),  # without a time zone
        ((datetime(2999, 1, 1, tzinfo=UTC),), "older_than"),
        (("90d",), "older_than"),
    ],
)
def test_ages_that_are_none_are_refused(blocking: Backend, arguments: tuple[Any], field: str) -> None:
    manager = blocking.open()
    with pytest.raises(InvalidInputError) as caught:
        manager.retention.purge(*arguments)
    assert caught.value.field == field


def test_arguments_are_checked(blocking: Backend) -> None:
    retention = blocking.open().retention
    calls: list[Callable[[], object]] = [
        lambda: retention.purge(AGE, limit=0),
        lambda: retention.purge(AGE, sessions_per_second=0),
        lambda: retention.purge(AGE, sessions_per_second=float("nan")),
        lambda: retention.erase("s"),
        lambda: retention.erase(["s", ""]),
        lambda: retention.erase([1]),  # type: ignore[list-item]
        lambda: retention.session_ids(after=3),  # type: ignore[arg-type]
        lambda: retention.session_ids(limit=0),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError):
            call()


def test_without_a_database_nothing_is_old(ephemeral: Backend) -> None:
    manager = ephemeral.open()
    with pytest.raises(ConfigurationError):
        manager.retention.purge(AGE)
    with pytest.raises(ConfigurationError):
        manager.retention.session_ids()


def many_messages(backend: Backend, session_id: str, count: int) -> None:
    """Put a long session in place, past the package."""
    with psycopg.connect(str(backend.database_url)) as connection:
        connection.execute(
            "INSERT INTO memory_sessions (tenant, session_id, epoch, last_seq) VALUES (%s, %s, 7, %s)",
            (backend.tenant, session_id, count),
        )
        connection.execute(
            "INSERT INTO memory_messages (tenant, session_id, seq, message_id, tokens, body)"
            " SELECT %s, %s, n, 'm' || n, 9, convert_to('{\"role\":\"user\",\"content\":\"said ' || n || '\"}', 'UTF8')"
            " FROM generate_series(1, %s) n",
            (backend.tenant, session_id, count),
        )


@pytest.mark.parametrize("way", ["clear", "purge", "erase"])
def test_a_session_of_many_messages_is_deleted_in_several_statements(blocking: Backend, way: str) -> None:
    manager = blocking.open()
    many_messages(blocking, "s", 120_001)
    make_old(blocking, "s")
    if way == "clear":
        assert manager.clear_session_memory("s")
    elif way == "purge":
        assert manager.retention.purge(AGE)["messages"] == 120_001
    else:
        assert manager.retention.erase(["s"])[0]["tables"]["memory_messages"] == 120_001
    assert not any(row_counts(str(blocking.database_url), blocking.tenant).values())


# -- erase


def put_a_row_into_every_table(backend: Backend, session_id: str, text: str) -> list[str]:
    """Insert a row of the session into each table of the package that has sessions; answers their names."""
    names = []
    with psycopg.connect(str(backend.database_url), autocommit=True) as connection:
        for table in metadata.sorted_tables:
            if "session_id" not in table.c:
                continue
            values = {column.name: _any_value(column, text) for column in table.c}
            values |= {"tenant": backend.tenant, "session_id": session_id}
            marks = ", ".join(f"%({name})s" for name in values)
            statement = f"INSERT INTO {table.name} ({', '.join(values)}) VALUES ({marks}) ON CONFLICT DO NOTHING"
            assert connection.execute(statement.encode(), values).rowcount == 1, table.name
            names.append(table.name)
    return names


def _any_value(column: sa.Column[Any], text: str) -> object:
    kind = column.type
    if isinstance(kind, sa.ARRAY):
        return [text]
    if isinstance(kind, sa.LargeBinary):
        return text.encode()
    if isinstance(kind, sa.Integer):
        return 1
    if isinstance(kind, sa.DateTime):
        return datetime.now(UTC)
    if isinstance(kind, sa.Boolean):
        return True
    return f"'{text}'" if not isinstance(kind, sa.Text | sa.String) else text


def rows_left(backend: Backend, names: Sequence[str]) -> dict[str, int]:
    counts = {}
    with psycopg.connect(str(backend.database_url)) as connection:
        for name in names:
            query = f"SELECT count(*) FROM {name} WHERE tenant = %s AND session_id = 's'"
            row = connection.execute(query.encode(), (backend.tenant,)).fetchone()
            assert row is not None
            counts[name] = row[0]
    return counts


@pytest.fixture
def added_table(blocking: Backend) -> Iterator[str]:
    """A table with sessions that nobody who erases has heard of by name."""
    table = sa.Table(
        "memory_added",
        metadata,
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column("note", sa.Text),
    )
    try:
        with psycopg.connect(str(blocking.database_url), autocommit=True) as connection:
            connection.execute("CREATE TABLE memory_added (tenant text, session_id text, note text)")
            yield table.name
            connection.execute("DROP TABLE memory_added")
    finally:
        metadata.remove(table)


WAYS: dict[str, Callable[[MemoryManager], object]] = {
    "clear": lambda manager: manager.clear_session_memory("s"),
    "clear the log": lambda manager: manager.session_store.clear_session("s"),
    "purge": lambda manager: manager.retention.purge(timedelta(microseconds=1)),
    "erase": lambda manager: manager.retention.erase(["s"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_clear_a_session_forgets_a_table(blocking: Backend, added_table: str, way: str) -> None:
    """Fails where a table with sessions is added that clearing does not know of, or that has no tenant."""
    for table in metadata.sorted_tables:
        assert ("session_id" in table.c) == (table in tables_of_sessions()), table.name
        assert "tenant" in table.c
    with psycopg.connect(str(blocking.database_url)) as connection:
        found = connection.execute(
            "SELECT table_name FROM information_schema.columns"
            " WHERE column_name = 'session_id' AND table_name LIKE 'memory\\_%'"
        ).fetchall()
    assert {name for (name,) in found} == {table.name for table in tables_of_sessions()}
    names = put_a_row_into_every_table(blocking, "s", f"canary-{blocking.tenant}")
    assert added_table in names
    assert set(rows_left(blocking, names).values()) == {1}
    WAYS[way](blocking.open())
    assert not any(rows_left(blocking, names).values())
    assert rows_with(str(blocking.database_url), f"canary-{blocking.tenant}") == []


def test_an_erasure_reports_what_was_there_and_that_nothing_is(backend: Backend, raw: redis.Redis) -> None:
    manager = backend.open(max_buffer_messages=4)
    for name in ("s", "t", "u"):
        for message in talk(7):
            manager.append(name, {**message, "canary": f"canary-{backend.tenant}"})
            manager.wait_for_folds()  # one that meets an append may give up the copy in Redis
        manager.save_context(name, {"session_id": name})
    counted = manager.retention.erase(["s", "never"], dry_run=True)
    assert manager.get_context("s")["last_seq"] == 7
    reports = manager.retention.erase(["s", "t", "never", "s"])
    assert [report["session_id"] for report in reports] == ["s", "t", "never"]
    for report in reports:
        assert (report["left_rows"], report["left_keys"], report["begun_anew"]) == ({}, [], False)
    if backend.is_durable:
        assert counted[0]["tables"]["memory_messages"] == reports[0]["tables"]["memory_messages"] == 7
        assert counted[0]["tables"] == reports[0]["tables"]
        assert set(reports[0]["tables"]) == {table.name for table in tables_of_sessions()}
        assert not any(reports[2]["tables"].values())
    assert counted[0]["redis_keys"] == reports[0]["redis_keys"] >= 2
    assert reports[2]["redis_keys"] == 0
    assert all(f"{backend.tenant}/u".encode() in key for key in keys_of(raw, backend))
    assert manager.get_context("u")["last_seq"] == 7
    assert manager.get_context("s")["last_seq"] == 0


STRANGE = ("a*", "[b]", "c?\\", "{d}", "e%7B", "f^-g", "ü/ü")


@pytest.mark.parametrize("session_id", STRANGE)
def test_a_key_that_is_left_is_found_whatever_the_session_is_called(
    blocking: Backend, raw: redis.Redis, session_id: str
) -> None:
    manager = blocking.open()
    manager.append(session_id, say(1))
    for other in ("abc", "b", "cx\\", "d", "e{", "fg"):
        manager.append(other, say(1))
    stem = blocking.keys(session_id).buffer.removesuffix("buffer")
    raw.set(stem + "extra", "left", ex=60)
    (report,) = manager.retention.erase([session_id])
    assert (report["left_keys"], report["left_rows"]) == ([stem + "extra"], {})
    reports = manager.retention.erase([session_id, "other"])
    assert [one["left_keys"] for one in reports] == [[stem + "extra"], []]
    raw.delete(stem + "extra")
    assert manager.retention.erase([session_id])[0]["left_keys"] == []
    assert len(manager.retention.session_ids()) == 6


def test_the_pattern_of_a_session_matches_no_other(raw: redis.Redis, tenant: str) -> None:
    for name in STRANGE:
        assert raw.keys(session_pattern("contract", tenant, name)) == []


@pytest.fixture
def stubborn(blocking: Backend) -> Iterator[Backend]:
    """A database that does not delete the rows of one table, and says nothing."""
    with psycopg.connect(str(blocking.database_url), autocommit=True) as connection:
        connection.execute("CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        connection.execute(
            "CREATE TRIGGER keep BEFORE DELETE ON memory_recall FOR EACH ROW"
            f" WHEN (OLD.tenant = '{blocking.tenant}') EXECUTE FUNCTION keep()".encode()
        )
        try:
            yield blocking
        finally:
            connection.execute("DROP FUNCTION keep() CASCADE")


def run(backend: Backend, *arguments: str) -> tuple[int, str, str]:
    servers = ["--redis-url", backend.redis_url, "--database-url", str(backend.database_url)]
    done = CliRunner().invoke(app, [*arguments, *servers, "--tenant", backend.tenant])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_rows_that_are_left_are_found(stubborn: Backend) -> None:
    manager = stubborn.open(max_buffer_messages=4)
    for message in talk(9):
        manager.append("s", message)
        manager.wait_for_folds()
    count = row_counts(str(stubborn.database_url), stubborn.tenant)["memory_recall"]
    assert count > 0
    code, out, _ = run(stubborn, "erase", "s", "--yes", "--json")
    assert code == 1
    answer = json.loads(out)
    assert answer["proven"] is False
    assert answer["sessions"][0]["left_rows"] == {"memory_recall": count}
    code, _, err = run(stubborn, "erase", "s", "--yes")
    assert code == 1
    assert f"{count} rows of memory_recall" in err.replace("\n", " ")


def test_what_is_begun_anew_meanwhile_is_not_taken_for_what_is_left(blocking: Backend) -> None:
    eraser, other = blocking.open(), blocking.open()
    begun = set()
    for number in range(1, 40):
        for message in talk(5):
            other.append("s", {**message, "canary": f"canary-{blocking.tenant}"})
        at_work = Interruptions(eraser, number, lambda: other.append("s", say(99)))
        (report,) = eraser.retention.erase(["s"])
        at_work.remove()
        assert (report["left_rows"], report["left_keys"]) == ({}, []), number
        if not at_work.fired:
            break
        begun.add(report["begun_anew"])
        assert rows_with(str(blocking.database_url), f"canary-{blocking.tenant}") == []
        said = [message for _, message in logged(str(blocking.database_url), blocking.tenant, "s")]
        assert said == ([say(99)] if report["begun_anew"] or said else [])
        assert other.get_context("s")["buffer_messages"] == said
        other.clear_session_memory("s")
    assert begun == {False, True}


def test_a_reader_of_the_erased_session_leaves_no_key(blocking: Backend) -> None:
    """Others read it all the time: what they put in place for a moment is not taken for what is left."""
    manager, reader = blocking.open(), blocking.open()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            reader.get_context("s")

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(20):
            manager.add_messages("s", talk(3))
            (report,) = manager.retention.erase(["s"])
            assert (report["left_rows"], report["left_keys"], report["begun_anew"]) == ({}, [], False)
    finally:
        ended.set()
        thread.join()


# -- the command line


def test_the_commands(blocking: Backend) -> None:
    manager = blocking.open()
    for name in ("a", "b", "c"):
        manager.add_messages(name, talk(3))
    make_old(blocking, "a", "b")
    code, out, _ = run(blocking, "purge", "--older-than", "90d", "--dry-run", "--json")
    assert (code, json.loads(out)["sessions"], json.loads(out)["dry_run"]) == (0, 2, True)
    code, out, err = run(blocking, "purge", "--older-than", "12w")
    assert (code, out) == (1, "")
    assert "2 sessions with 6 messages" in err
    assert "give --yes" in err
    assert manager.retention.session_ids() == ["a", "b", "c"]
    code, out, _ = run(blocking, "purge", "--older-than", "90d", "--yes", "--limit", "1")
    assert (code, out.partition(",")[0]) == (0, "Erased 1 session with 3 messages")
    date = (datetime.now(UTC) - 30 * DAY).date().isoformat()
    code, out, _ = run(blocking, "purge", "--older-than", date, "--yes", "--json", "--rate", "0")
    assert (code, json.loads(out)["sessions"], json.loads(out)["messages"]) == (0, 1, 3)
    code, out, _ = run(blocking, "purge", "--older-than", "30m", "--yes")
    assert code == 0
    assert re.fullmatch(r"Nothing to erase: every session was touched since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\.\n", out)
    assert run(blocking, "purge", "--older-than", "soon")[0] == 2
    assert run(blocking, "purge", "--older-than", "2999-01-01", "--yes")[0] == 2
    assert run(blocking, "erase", "c")[0] == 1
    code, out, _ = run(blocking, "erase", "c", "--dry-run", "--json")
    assert (code, json.loads(out)["proven"]) == (0, None)
    code, out, err = run(blocking, "erase", "c", "d", "--yes")
    assert (code, out.count("✓ erased"), out.count("✓ nothing was there")) == (0, 1, 1)
    assert "memory_messages" in err
    code, out, _ = run(blocking, "erase", "c", "--yes", "--json")
    assert (code, json.loads(out)["proven"]) == (0, True)
    assert manager.retention.session_ids() == []


def test_a_server_that_is_away(blocking: Backend, tmp_path: Path) -> None:
    manager = blocking.open()
    manager.append("a", say(1))
    make_old(blocking, "a")
    where = ["--redis-url", f"unix://{tmp_path}/nobody", "--database-url", str(blocking.database_url)]
    for command in (["purge", "--older-than", "1d"], ["erase", "a"]):
        done = CliRunner().invoke(app, [*command, "--yes", *where, "--tenant", blocking.tenant])
        assert done.exit_code == 2, done.output
        assert "Error:" in done.stderr


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        ("90d", timedelta(days=90)),
        (" 8w", timedelta(weeks=8)),
        ("45s", timedelta(seconds=45)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:00+01:00", datetime(2026, 1, 31, 11, tzinfo=UTC)),
    ],
)
def test_times(text: str, age: timedelta | datetime) -> None:
    assert age_of(text) == age


def test_moments_are_told_in_utc_and_may_be_given_again() -> None:
    """Whatever zone the server answers in."""
    shown = moment_of("2026-01-31T01:30:00.250000+02:00")
    assert shown == "2026-01-30T23:30:00Z"
    assert age_of(shown) == datetime(2026, 1, 30, 23, 30, tzinfo=UTC)
