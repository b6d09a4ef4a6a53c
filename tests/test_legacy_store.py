"""The older session store: one row per session, appended to without losing anything."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from legacy_tables import Older, said

from contract_engine.memory import (
    AsyncLegacySwisperStore,
    DatabaseUnavailableError,
    InvalidInputError,
    LegacySwisperStore,
    SerializationError,
    StoreMisconfiguredError,
)
from contract_engine.memory._effects import Statement, query
from contract_engine.memory.legacy_messages import (
    EXACT_FIELD,
    MESSAGE_ID_FIELD,
    LegacyMessage,
    content_digest,
    legacy_json,
    parse_legacy,
)

pytest_plugins = ("legacy_fixtures",)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
MESSAGES = st.dictionaries(st.text(st.characters(), max_size=5), VALUES, max_size=4)


def test_a_row_begins_with_its_first_message_and_is_kept_up_to_date(older: Older) -> None:
    store = older.store
    first, second = {"role": "user", "content": "hello " * 20}, {"role": "assistant", "content": "yes?"}
    assert store.get_chat_history("s") == []
    assert store.add_chat_message("s", first)
    assert store.add_chat_message("s", second)
    assert store.get_chat_history("s") == [first, second]
    assert store.get_chat_history("s", 1) == [second]
    assert store.get_chat_history("s", 0) == []
    (row,) = older.execute(
        "SELECT title, message_count, last_user_text, updated_at >= created_at, last_user_ts FROM {table}"
    )
    assert row[:4] == (first["content"][:64], 2, first["content"], True)
    assert row[4] is not None


def test_a_row_of_the_original_is_gone_on_with(older: Older) -> None:
    older.fill("s", [said(1), said(2)])
    older.execute("UPDATE {table} SET message_count = 1")  # as the original leaves it
    older.store.add_chat_message("s", said(3))
    assert older.store.get_chat_history("s") == [said(1), said(2), said(3)]
    assert older.execute("SELECT message_count FROM {table}") == [(3,)]


def test_times_are_those_of_utc_whatever_zone_the_server_has(older: Older, tenant: str) -> None:
    """The columns have no zone, so that a reader elsewhere could not tell what the server's was."""
    with psycopg.connect(older.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE far_{tenant} LOGIN SUPERUSER PASSWORD 'far'".encode())
        connection.execute(f"ALTER ROLE far_{tenant} SET timezone = 'Pacific/Kiritimati'".encode())  # UTC+14
    try:
        parts = urlsplit(older.url)
        url = urlunsplit(parts._replace(netloc=f"far_{tenant}:far@{parts.netloc.rpartition('@')[2]}"))
        with psycopg.connect(url) as connection:
            assert connection.execute("SHOW timezone").fetchone() == ("Pacific/Kiritimati",)
        with LegacySwisperStore(url, table=older.table, timeout_seconds=30.0) as far:
            far.add_chat_message("s", {"role": "user", "content": "now"})
            far.save_session("saved", {"title": "now"})
            (ages,) = older.execute(
                "SELECT max(abs(extract(epoch FROM now() AT TIME ZONE 'utc' - t)))::bigint FROM {table},"
                " LATERAL unnest(ARRAY[created_at, updated_at, last_user_ts]) AS t"
            )
            assert ages[0] < 3600
            outline = far.outline("s")
            assert outline is not None
            assert abs(outline.created_ms / 1000 - time.time()) < 3600
        older.execute("DROP TABLE {table}")
        with LegacySwisperStore(url, table=older.table, timeout_seconds=30.0) as far:
            far.create_table()
        older.execute("INSERT INTO {table} (session_id) VALUES ('made')")
        with psycopg.connect(url) as connection:
            made = connection.execute(
                f"INSERT INTO {older.table} (session_id) VALUES ('far')"
                " RETURNING abs(extract(epoch FROM now() AT TIME ZONE 'utc' - created_at)) < 3600".encode()
            ).fetchone()
            assert made == (True,)
    finally:
        with psycopg.connect(older.url, autocommit=True) as connection:
            connection.execute(f"REASSIGN OWNED BY far_{tenant} TO CURRENT_USER".encode())
            connection.execute(f"DROP ROLE far_{tenant}".encode())


def test_eight_threads_append_and_nothing_is_lost(older: Older) -> None:
    start = threading.Barrier(8)

    def write(writer: int) -> None:
        start.wait()
        for number in range(25):
            assert older.store.add_chat_message("s", {"role": "user", "content": f"{writer}.{number}"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    texts = [message["content"] for message in older.store.get_chat_history("s")]
    assert len(texts) == len(set(texts)) == 200
    for writer in range(8):
        own = [text for text in texts if text.startswith(f"{writer}.")]
        assert own == [f"{writer}.{number}" for number in range(25)]
    assert older.execute("SELECT message_count FROM {table}") == [(200,)]


def test_a_message_with_an_id_is_appended_once_however_often_it_is_sent(older: Older) -> None:
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: older.store.add_chat_message("s", said(1), message_id="m-1"), range(16)))
    assert sorted(done) == [False] * 15 + [True]
    assert older.store.add_chat_message("s", said(2), message_id="m-2")
    older.store.add_chat_message("s", said(3))
    assert older.store.get_chat_history("s") == [said(1), said(2), said(3)]
    assert older.store.message_ids("s") == ["m-1", "m-2"]
    assert older.store.has_message("s", "m-2")
    assert not older.store.has_message("s", "m-3")
    assert not older.store.has_message("nobody", "m-1")


def test_several_messages_are_appended_at_once_and_those_that_are_there_are_passed_over(older: Older) -> None:
    store, messages, ids = older.store, [said(number) for number in range(6)], [f"m{number}" for number in range(6)]
    assert store.add_chat_messages("s", messages[:2], message_ids=ids[:2])
    assert store.add_chat_messages("s", messages[:5], message_ids=ids[:5])
    assert not store.add_chat_messages("s", messages[:5], message_ids=ids[:5])
    assert store.add_chat_messages("s", [messages[3], messages[5]], message_ids=[ids[3], ids[5]])
    assert store.get_chat_history("s") == messages
    assert store.message_ids("s") == ids
    assert store.add_chat_messages("s", messages[:2])  # without ids nobody can tell
    assert store.add_chat_messages("s", [said(9)] * 2, message_ids=["m9", "m10"])
    assert store.get_chat_history("s") == [*messages, *messages[:2], said(9), said(9)]
    assert not store.add_chat_messages("s", [])
    assert older.execute("SELECT message_count, title, last_user_text FROM {table}") == [
        (10, said(1)["content"], said(9)["content"])
    ]
    with pytest.raises(InvalidInputError, match="message_ids"):
        store.add_chat_messages("s", messages[:2], message_ids=["same", "same"])
    with pytest.raises(InvalidInputError, match="message_ids"):
        store.add_chat_messages("s", messages[:2], message_ids=["one"])
    wrong: Any = [said(11), "no message"]
    with pytest.raises(InvalidInputError, match="message"):
        store.add_chat_messages("s", wrong)
    assert len(store.get_chat_history("s")) == 10


def test_eight_threads_append_batches_that_overlap(older: Older) -> None:
    """Each batch is sent by two threads, one of which has half of the next as well; each message is there once."""
    start = threading.Barrier(8)

    def write(writer: int) -> None:
        lane, extra = writer // 2, 10 * (writer % 2)
        start.wait()
        for first in range(0, 100, 20):
            numbers = range(first, min(100, first + 20 + extra))
            older.store.add_chat_messages(
                "s",
                [{"role": "user", "content": f"{lane}.{number}"} for number in numbers],
                message_ids=[f"{lane}.{number}" for number in numbers],
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    texts = [message["content"] for message in older.store.get_chat_history("s")]
    assert texts == older.store.message_ids("s")
    for lane in range(4):
        assert [text for text in texts if text.startswith(f"{lane}.")] == [f"{lane}.{number}" for number in range(100)]
    assert older.execute("SELECT message_count FROM {table}") == [(400,)]


def numbered(*numbers: int) -> dict[str, dict[str, Any]]:
    """Return messages by their ids."""
    return {f"m{number}": said(number) for number in numbers}


def test_several_sessions_are_appended_to_at_once(older: Older) -> None:
    store = older.store
    store.add_chat_message("begun", said(0))
    store.add_chat_message("half", said(1), message_id="m1")
    older.fill("strange", {"0": "no list"})
    given = {
        "begun": numbered(1, 2), "half": numbered(1, 2, 3), "strange": numbered(1), "new": numbered(2, 1),
        "nul": {"m": {"content": "a\x00b"}},
    }  # fmt: skip
    for _ in range(2):
        assert sorted(store.add_to_sessions(given)) == ["begun", "half", "new", "nul"]
        assert store.get_chat_history("begun") == [said(0), said(1), said(2)]
        assert store.get_chat_history("half") == [said(1), said(2), said(3)]
        assert store.get_chat_history("new") == [said(2), said(1)]
        assert store.get_chat_history("nul") == [{"content": "a\x00b"}]
    assert store.message_ids("new") == ["m2", "m1"]
    rows = older.execute("SELECT session_id, message_count, title, last_user_text FROM {table} ORDER BY session_id")
    spoken = said(1)["content"]
    assert rows == [
        ("begun", 3, spoken, spoken), ("half", 3, spoken, said(3)["content"]), ("new", 2, spoken, spoken),
        ("nul", 1, None, None), ("strange", 0, None, None),
    ]  # fmt: skip
    assert older.execute("SELECT chat_history FROM {table} WHERE session_id = 'strange'") == [({"0": "no list"},)]
    assert store.add_to_sessions({}) == []


def test_to_all_of_them_or_to_none(older: Older) -> None:
    wrong: Any
    for wrong in ({"a": numbered(1), "b": {"m": "no message"}}, {"a": numbered(1), "": numbered(1)}, {"a": {}}, ["a"]):
        with pytest.raises(InvalidInputError):
            older.store.add_to_sessions(wrong)
    with older.read_only(), pytest.raises(DatabaseUnavailableError):
        older.store.add_to_sessions({"a": numbered(1), "b": numbered(1)})
    assert older.execute("SELECT count(*) FROM {table}") == [(0,)]


def test_eight_threads_append_to_the_same_sessions_each_in_an_order_of_its_own(older: Older) -> None:
    names = [f"s{number}" for number in range(12)]
    start = threading.Barrier(8)

    def write(writer: int) -> None:
        mine = [*names[writer:], *names[:writer]]
        start.wait()
        for first in range(0, 30, 3):
            numbers = range(first, first + 3)
            given = {f"{writer}.{number}": {"role": "user", "content": f"{writer}.{number}"} for number in numbers}
            assert older.store.add_to_sessions(dict.fromkeys(mine, given)) == mine

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    for name in names:
        texts = [message["content"] for message in older.store.get_chat_history(name)]
        for writer in range(8):
            mine = [text for text in texts if text.startswith(f"{writer}.")]
            assert mine == [f"{writer}.{number}" for number in range(30)]
        assert len(texts) == 8 * 30


def test_a_long_history_is_compressed_quickly_and_no_setting_stays_behind(older: Older) -> None:
    ((can,),) = older.execute("SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'")
    quickest = "lz4" if can else "pglz"  # a server may have been built without it
    shown = "SELECT pg_column_compression(chat_history) FROM {table}"
    older.fill("s", [said(number) for number in range(200)])
    assert older.execute(shown) == [("pglz",)]
    older.store.add_chat_message("s", said(200))
    assert older.execute(shown) == [(quickest,)]
    setting = query(Statement("setting", lambda: sa.text("SHOW default_toast_compression")), {})
    assert older.store._runtime.run(setting) == [("pglz",)]
    assert older.store.get_chat_history("s") == [said(number) for number in range(201)]
    with psycopg.connect(older.url) as connection:
        connection.execute("ALTER ROLE CURRENT_USER SET default_toast_compression = pglz")
    try:
        with LegacySwisperStore(older.url, table=older.table, timeout_seconds=30) as chosen:
            chosen.add_chat_message("s", said(201))
        assert older.execute(shown) == [("pglz",)], "somebody has chosen that"
    finally:
        older.execute("ALTER ROLE CURRENT_USER RESET default_toast_compression")


@pytest.mark.parametrize(
    "text", ["a\x00b", "\ud800", "x\udfff\x00", "\ud83d\ude00", "\\u0000", "emoji \U0001f600 \u05d0"]
)
def test_what_jsonb_refuses_comes_back_exactly(older: Older, text: str) -> None:
    message = {"role": "user", "content": text, "deep": [{"key" + text: text}]}
    older.store.add_chat_message("s", message, message_id="m")
    assert older.store.get_chat_history("s") == [message]
    older.store.save_session_context_atomic("s", {"note": text})
    assert older.store.get_session_context_atomic("s") == {"note": text}
    assert len(older.store.search_chat_history(text)) == 1
    ((shown,),) = older.execute("SELECT chat_history -> 0 ->> 'content' FROM {table}")
    assert shown == re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


@given(MESSAGES)
def test_any_message_survives_its_text(message: dict[str, Any]) -> None:
    if {MESSAGE_ID_FIELD, EXACT_FIELD} & set(message):
        return
    text = legacy_json(message, message_id="m")
    assert "\\u0000" not in text.replace("\\\\", "")
    found = parse_legacy(text)
    assert found == LegacyMessage(message, "m")
    assert content_digest(found.message) == content_digest(message)


def test_what_is_no_message_is_refused_before_anything_is_written(older: Older) -> None:
    store: Any = older.store
    with pytest.raises(InvalidInputError, match="message"):
        store.add_chat_message("s", ["no dict"])
    with pytest.raises(SerializationError, match="bytes"):
        store.add_chat_message("s", {"content": b"bytes"})
    with pytest.raises(SerializationError, match=MESSAGE_ID_FIELD):
        store.add_chat_message("s", {MESSAGE_ID_FIELD: "mine"})
    with pytest.raises(InvalidInputError, match="session_id"):
        store.add_chat_message("", said(1))
    with pytest.raises(InvalidInputError, match="message_id"):
        store.add_chat_message("s", said(1), message_id="")
    with pytest.raises(InvalidInputError, match=r"session\.colour"):
        store.save_session("s", {"colour": "red"})
    assert older.execute("SELECT count(*) FROM {table}") == [(0,)]


def test_metadata_or_a_context_that_is_null_is_none(older: Older) -> None:
    """The original stores ``None`` as JSON's null."""
    store = older.store
    for name, metadata in (("metadata", "null"), ("context", '{"context": null, "lang": "de"}')):
        store.add_chat_message(name, said(1))
        older.execute("UPDATE {table} SET session_metadata = %s WHERE session_id = %s", (metadata, name))
        assert store.get_session_context_atomic(name) is None
        assert store.save_session_context_atomic(name, {"state": "search"})
        assert store.get_session_context_atomic(name) == {"state": "search"}
    rest = older.execute("SELECT session_metadata - 'context' FROM {table} ORDER BY session_id")
    assert rest == [({"lang": "de"},), ({},)]


def test_sessions_are_saved_searched_and_listed(older: Older) -> None:
    store = older.store
    store.add_chat_message("a", {"role": "user", "content": "A blue BICYCLE"})
    store.add_chat_message("b", {"role": "user", "content": "a red car"})
    assert store.save_session("b", {"title": "Cars", "has_contract": True, "session_metadata": {"lang": "de"}})
    assert store.save_session_context_atomic("b", {"state": "search"})
    assert store.save_session_context_atomic("new", {"state": "start"})
    assert store.get_session_context_atomic("b") == {"state": "search"}
    assert store.get_session_context_atomic("a") is None
    assert store.get_session_context_atomic("nobody") is None
    assert older.execute("SELECT session_metadata ->> 'lang' FROM {table} WHERE session_id = 'b'") == [("de",)]
    (found,) = store.search_chat_history("bicycle")
    assert (found["session_id"], found["place"]) == ("a", 1)
    assert store.search_chat_history("bicycle", session_id="b") == []
    listed = {row["session_id"]: row for row in store.get_all_sessions()}
    assert set(listed) == {"a", "b", "new"}
    assert (listed["b"]["title"], listed["b"]["has_contract"], listed["b"]["message_count"]) == ("Cars", True, 1)
    assert len(store.get_all_sessions(2)) == 2


def test_a_history_that_is_no_list_is_not_written_over(older: Older) -> None:
    older.fill("s", {"0": "strange"})
    with pytest.raises(StoreMisconfiguredError, match="no list"):
        older.store.add_chat_message("s", said(1))
    with pytest.raises(StoreMisconfiguredError, match="no list"):
        older.store.add_chat_messages("s", [said(1), said(2)], message_ids=["m1", "m2"])
    assert older.execute("SELECT chat_history FROM {table}") == [({"0": "strange"},)]


def test_a_row_without_a_history_begins_with_the_first_message(older: Older) -> None:
    """SQL NULL, from whoever made the row without the library: nothing was said there, and nothing is lost."""
    older.execute("ALTER TABLE {table} ALTER chat_history DROP NOT NULL")
    store = older.store
    for name in ("one", "ids", "relayed"):
        older.fill(name, [])
    older.execute("UPDATE {table} SET chat_history = NULL, message_count = NULL")
    outline = store.outline("one")
    assert outline is not None
    assert (outline.kind, outline.length, outline.has_ids) == ("array", 0, False)
    assert store.get_chat_history("one") == []
    assert store.message_ids("one") == []
    assert not store.has_message("one", "m1")
    assert store.add_chat_message("one", said(1))
    assert store.add_chat_messages("ids", [said(1), said(2)], message_ids=["m1", "m2"])
    assert not store.add_chat_messages("ids", [said(1), said(2)], message_ids=["m1", "m2"])
    assert store.add_to_sessions({"relayed": numbered(1, 2)}) == ["relayed"]
    assert store.get_chat_history("one") == [said(1)]
    assert store.get_chat_history("ids") == store.get_chat_history("relayed") == [said(1), said(2)]
    counts = older.execute("SELECT session_id, message_count FROM {table} ORDER BY session_id")
    assert counts == [("ids", 2), ("one", 1), ("relayed", 2)]


def test_all_session_ids_are_listed_also_an_empty_one(older: Older) -> None:
    for name in ("b", "", "a"):
        older.fill(name, [said(1)])
    assert older.store.session_names() == ["", "a", "b"]
    assert older.store.session_names(most=2) == ["", "a"]
    assert older.store.session_names(after="") == ["a", "b"]


def test_a_wrong_table_says_so(database_url: str) -> None:
    with (
        LegacySwisperStore(database_url, table="nothing_here") as store,
        pytest.raises(StoreMisconfiguredError, match="nothing_here"),
    ):
        store.get_chat_history("s")
    with pytest.raises(InvalidInputError, match="table"):
        LegacySwisperStore(database_url, table="a; DROP TABLE b")


def test_an_outage_is_no_empty_history() -> None:
    with LegacySwisperStore("postgresql://nobody@127.0.0.1:1/none", timeout_seconds=2) as store:
        for call in (lambda: store.get_chat_history("s"), lambda: store.add_chat_message("s", said(1))):
            with pytest.raises(DatabaseUnavailableError):
                call()


def test_a_newcomer_makes_the_table_itself(database_url: str, tenant: str) -> None:
    with LegacySwisperStore(database_url, table=f"public.made_{tenant}") as store:
        store.create_table()
        store.create_table()
        store.add_chat_message("s", said(1))
        assert store.get_chat_history("s") == [said(1)]


async def test_the_twin_for_asyncio_does_the_same(older: Older) -> None:
    async with AsyncLegacySwisperStore(older.url, table=older.table, timeout_seconds=30) as store:
        await asyncio.gather(
            *(store.add_chat_message("s", said(number), message_id=f"m{number}") for number in range(10))
        )
        assert len(await store.get_chat_history("s")) == 10
        assert not await store.add_chat_message("s", said(3), message_id="m3")
        assert await store.has_message("s", "m9")
        assert await store.add_chat_messages("s", [said(9), said(10)], message_ids=["m9", "m10"])
        assert len(await store.get_chat_history("s")) == 11
        assert await store.add_to_sessions({"s": {"m10": said(10)}, "t": {"m1": said(1)}}) == ["s", "t"]
        assert await store.get_chat_history("t") == [said(1)]


def test_the_twins_have_the_same_methods() -> None:
    """But for what an import and a comparison need, which are blocking."""
    of_an_import = {"outline", "read_page", "put_messages", "session_names", "totals"}

    def shape(kind: type) -> dict[str, str]:
        found = {"close" if name == "aclose" else name: method for name, method in vars(kind).items()}
        return {name: str(inspect.signature(method)) for name, method in found.items() if name[0] != "_"}

    blocking = shape(LegacySwisperStore)
    assert of_an_import <= set(blocking)
    assert {name: blocking[name] for name in blocking.keys() - of_an_import} == shape(AsyncLegacySwisperStore)
