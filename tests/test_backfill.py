"""Backfill: older history comes into the log once, in its order, in front of what was written to both."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from legacy_tables import Older, said
from memory_contract import run_threads
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.cli.servers import ADDRESS_VARIABLES
from contract_engine.memory import DatabaseUnavailableError, MemoryManager, MessageSerializer, SwisperContext
from contract_engine.memory._log_retention import end_erased
from contract_engine.memory.backfill import AT_ONCE, Backfill
from contract_engine.memory.history_alignment import content_anchors
from contract_engine.memory.legacy_messages import imported_place
from contract_engine.memory.legacy_redis import LegacyRedis
from contract_engine.memory.legacy_source import message_time_ms, redis_history
from contract_engine.memory.log_writer import LogWriter
from contract_engine.memory.migration import EnhancedSessionStore

pytest_plugins = ("legacy_fixtures",)

Messages = list[dict[str, Any]]


def history(count: int, start: int = 0) -> Messages:
    return [said(number) for number in range(start, start + count)]


@pytest.fixture
def manager(older: Older) -> Any:
    with MemoryManager(config=older.config) as found:
        yield found


@pytest.fixture
def old_redis(redis_url: str, tenant: str) -> Any:
    """Redis as the original uses it; keys of this test begin with its tenant."""
    with redis.Redis.from_url(redis_url) as client:
        yield client
        for key in client.scan_iter(f"*:{tenant}*"):
            client.delete(key)


def write_both(manager: MemoryManager, older: Older, session_id: str, messages: Messages, *, ids: bool = True) -> None:
    """Write as the adapter does: the log first, then the older store, with the id of the message or without."""
    for message in messages:
        receipt = manager.append(session_id, message)
        older.store.add_chat_message(session_id, message, message_id=receipt.message_id if ids else None)


def contains(manager: MemoryManager, session_id: str, expected: Messages) -> None:
    """Check the log, and that the context is made of it: a summary up to the watermark, and the rest word for word."""
    assert manager.session_store.get_chat_history(session_id) == expected
    context = manager.get_context(session_id)
    assert context["last_seq"] == len(expected)
    assert context["buffer_messages"] == expected[context["watermark"] :]
    assert context["complete"]
    assert bool(context["current_summary"]) == (context["watermark"] > 0)
    assert context["message_count"] <= context["buffer_info"]["max_messages"]
    versions = manager.summary_store.get_summary_history(session_id, 1000)
    assert (versions[-1]["last_seq"] if versions else 0) == context["watermark"]


# -- what is taken for the same


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(0, 12), st.lists(st.integers(3, 9), max_size=3), st.data())
def test_a_copy_of_the_end_is_found_with_what_is_on_its_way(
    numbers: list[int], overlap: int, waiting: list[int], data: st.DataObject
) -> None:
    older = [bytes([number]) for number in numbers]
    copied = older[max(0, len(older) - overlap) :]
    for place in sorted(data.draw(st.sets(st.integers(0, 11))), reverse=True):  # what only the older store was given
        if not waiting and place < len(copied):
            del copied[place]
    newer = copied + [bytes([number]) for number in waiting]
    anchors = content_anchors(older, newer)
    if anchors is None:
        assert waiting
        return
    assert [newer[place] for place in anchors.values()] == [older[place] for place in anchors]
    assert sorted(anchors) == sorted(anchors, key=lambda place: anchors[place])
    merged = [item for place, item in enumerate(older) if place not in anchors] + newer
    assert sorted(merged) == sorted(older + newer[len(copied) :])


def test_what_may_have_arrived_is_not_decided() -> None:
    assert content_anchors([b"a", b"b", b"c"], [b"a", b"x"]) is None
    assert content_anchors([b"a", b"b", b"c"], [b"c", b"x"]) == {2: 0}
    assert content_anchors([b"a"], []) == {}


# -- whole sessions


@pytest.mark.parametrize("count", [0, 1, 30, AT_ONCE, AT_ONCE + 1, 2500])
def test_a_session_comes_in_whole_and_a_second_run_changes_nothing(
    older: Older, manager: MemoryManager, count: int
) -> None:
    older.fill("s", history(count))
    outcome = older.backfill("s")
    assert (outcome.older, outcome.imported, outcome.is_whole) == (count, count, True)
    contains(manager, "s", history(count))
    state = snapshot(older)
    again = older.backfill("s")
    assert (again.imported, again.is_whole) == (0, True)
    assert snapshot(older) == state
    older.fill("s", history(count + 3))  # written to the older store alone
    assert older.backfill("s").imported == 3
    contains(manager, "s", history(count + 3))


def snapshot(older: Older) -> list[tuple[Any, ...]]:
    """Return all that the tables hold of this tenant."""
    tenant = (older.config.tenant,)
    return [
        *older.execute("SELECT * FROM memory_sessions WHERE tenant = %s ORDER BY session_id", tenant),
        *older.execute("SELECT * FROM memory_messages WHERE tenant = %s ORDER BY session_id, seq", tenant),
        *older.execute("SELECT * FROM memory_summaries WHERE tenant = %s ORDER BY session_id, version", tenant),
        *older.execute("SELECT * FROM memory_recall WHERE tenant = %s ORDER BY session_id, seq", tenant),
    ]


@pytest.mark.parametrize("ids", [True, False], ids=["with ids", "without ids"])
@pytest.mark.parametrize("old", [5, 400])
@pytest.mark.parametrize("both", [1, 7, 80])
def test_older_history_goes_before_what_was_written_to_both(
    older: Older, manager: MemoryManager, ids: bool, old: int, both: int
) -> None:
    older.fill("s", history(old))
    write_both(manager, older, "s", history(both, old), ids=ids)
    manager.wait_for_folds()
    outcome = older.backfill("s", batch=150)
    assert (outcome.imported, outcome.elsewhere, outcome.is_whole) == (old, 0, True)
    contains(manager, "s", history(old + both))
    assert older.backfill("s").imported == 0
    write_both(manager, older, "s", history(2, old + both), ids=ids)
    assert older.backfill("s").imported == 0
    contains(manager, "s", history(old + both + 2))


def test_what_only_the_older_store_was_given_goes_between(older: Older, manager: MemoryManager) -> None:
    """While programs are replaced one by one, some write to both and some still to the older store alone."""
    for session_id, ids in (("with", True), ("without", False)):
        older.fill(session_id, history(3))
        write_both(manager, older, session_id, history(2, 3), ids=ids)
        older.store.add_chat_message(session_id, said(5))
        write_both(manager, older, session_id, history(1, 6), ids=ids)
        assert older.backfill(session_id).imported == 4
        contains(manager, session_id, history(7))


def test_messages_without_ids_are_told_between_those_that_have_one(older: Older, manager: MemoryManager) -> None:
    """A wrapper that gives no ids was replaced midway by one that does, while programs still wrote without either."""
    older.fill("s", history(3))
    write_both(manager, older, "s", history(2, 3), ids=False)
    older.store.add_chat_message("s", said(5))
    write_both(manager, older, "s", history(2, 6))
    write_both(manager, older, "s", [said(8), said(0)], ids=False)
    older.store.add_chat_message("s", said(1))
    write_both(manager, older, "s", [said(9)])
    expected = [*history(9), said(0), said(1), said(9)]
    assert older.store.get_chat_history("s") == expected
    for dry_run, imported in ((True, 5), (False, 5), (False, 0)):
        outcome = older.backfill("s", dry_run=dry_run, batch=2)
        assert (outcome.imported, outcome.elsewhere, outcome.left) == (imported, 0, None)
    contains(manager, "s", expected)


def test_what_the_older_store_is_owed_under_its_id_is_no_equal_message_of_it(
    older: Older, manager: MemoryManager
) -> None:
    """The same words were written to the older store alone; then those of the log arrive there."""
    with EnhancedSessionStore(manager, older.store, is_relaying=False) as store:
        older.fill("s", [said(0)])
        store.append("s", said(1))
        store.relay_once()
        older.store.add_chat_message("s", said(2))
        older.store.add_chat_message("s", said(3))
        store.append("s", said(2))
        assert older.backfill("s").imported == 3
        store.relay_once()
        assert older.backfill("s").imported == 0
    contains(manager, "s", [*history(4), said(2)])
    assert older.store.get_chat_history("s") == [*history(4), said(2)]


def test_what_the_older_store_is_still_to_be_given_stays_at_the_end(older: Older, manager: MemoryManager) -> None:
    for session_id, ids in (("with", True), ("without", False)):
        older.fill(session_id, history(3))
        write_both(manager, older, session_id, history(2, 3), ids=ids)
        receipts = manager.add_messages(session_id, history(2, 5))
        assert older.backfill(session_id).imported == 3
        contains(manager, session_id, history(7))
        for receipt, message in zip(receipts, history(2, 5), strict=True):
            older.store.add_chat_message(session_id, message, message_id=receipt.message_id if ids else None)
        assert older.backfill(session_id).imported == 0
        contains(manager, session_id, history(7))


def test_what_content_cannot_tell_is_left_and_told(older: Older, manager: MemoryManager) -> None:
    older.fill("s", history(5))
    manager.add_messages("s", [said(2), said(90)])
    outcome = older.backfill("s")
    assert outcome.left is not None
    assert "may or may not" in outcome.left
    assert manager.session_store.get_chat_history("s") == [said(2), said(90)]


def test_a_message_that_was_relayed_late_keeps_its_place_in_the_log(older: Older, manager: MemoryManager) -> None:
    older.fill("s", history(2))
    late = manager.append("s", said(2))
    write_both(manager, older, "s", history(2, 3))
    older.store.add_chat_message("s", said(2), message_id=late.message_id)
    outcome = older.backfill("s")
    assert (outcome.imported, outcome.elsewhere) == (2, 1)
    contains(manager, "s", history(5))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["both", "old", "log", "import", "ok", "other"]), max_size=12), st.booleans())
def test_any_order_of_writing_and_importing_ends_alike(
    another_older: Callable[[], Older], steps: list[str], ids: bool
) -> None:
    """Where some have no id, the older store must have all it is to be given before an import; else it does not matter.

    ``other``: from here on it is given ids, or none any more.
    """
    without_ids = not ids
    older = another_older()
    older.fill("s", [said(0), said(1)])
    waiting: list[tuple[str, dict[str, Any]]] = []

    def relay() -> None:
        for message_id, item in waiting:
            older.store.add_chat_message("s", item, message_id=message_id if ids else None)
        waiting.clear()

    with MemoryManager(config=older.config) as manager:
        for number, step in enumerate(steps, start=10):
            message = {"role": "user", "content": "ok"} if step == "ok" else said(number)
            if step in {"both", "ok", "log"}:
                waiting.append((manager.append("s", message).message_id, message))
            if step == "other":
                relay()
                ids = not ids
                without_ids = True
            if step in {"both", "ok"} or (step == "import" and without_ids):
                relay()
            if step == "old" and not waiting:
                older.store.add_chat_message("s", message)
            if step == "import":
                assert older.backfill("s", batch=2).left is None
        relay()
        assert older.backfill("s", batch=2).left is None
        contains(manager, "s", older.store.get_chat_history("s"))


def test_writers_go_on_while_a_long_history_comes_in(older: Older, manager: MemoryManager) -> None:
    """Every acknowledged message is there once, in its writer's order, behind the older history."""
    older.fill("s", history(1500))
    stop = threading.Event()
    written: Messages = []

    def write() -> None:
        while not stop.is_set() or len(written) < 5:
            message = said(5000 + len(written))
            receipt = manager.append("s", message)
            written.append(message)
            older.store.add_chat_message("s", message, message_id=receipt.message_id)
            time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        before = len(written)
        outcome = older.backfill("s", batch=100)
        during = len(written) - before
    finally:
        stop.set()
        writer.join()
    assert (outcome.imported, outcome.is_whole) == (1500, True)
    assert during >= 2, "nobody wrote while it came in"
    manager.wait_for_folds()
    contains(manager, "s", history(1500) + written)
    assert older.backfill("s").imported == 0
    contains(manager, "s", older.store.get_chat_history("s"))


def test_two_runs_at_once_import_it_once(older: Older, manager: MemoryManager) -> None:
    older.fill("s", history(1200))
    run_threads(3, lambda _: older.backfill("s", batch=100))
    assert older.backfill("s").is_whole
    contains(manager, "s", history(1200))


def test_two_runs_at_once_add_each_summary_once(
    older: Older, manager: MemoryManager, old_redis: redis.Redis, tenant: str
) -> None:
    """All have seen that none of them is there before the first adds one."""
    seal = MessageSerializer().serialize_message
    name = f"{tenant}-summaries"
    texts = [f"Chapter {number}." for number in range(5)]
    old_redis.rpush(f"summary_list:{name}", *(seal({"text": text, "timestamp": 1}) for text in texts))
    runs = 4
    all_have_looked = threading.Barrier(runs)

    class Late(Backfill):
        def _supply(self, *given: Any) -> None:
            looked = self.log.supplied_summaries

            def look(session_id: str) -> Any:
                found = looked(session_id)
                all_have_looked.wait(30)
                return found

            self.log.supplied_summaries = look  # type: ignore[method-assign]  # the point of it
            super()._supply(*given)

    added: list[int] = []

    def run_one(_: int) -> None:
        with LegacyRedis(older.config.redis_url) as source, LogWriter(older.config) as log:
            outcome = Late(log).import_session(redis_history(source, name))
            assert outcome.is_whole
            added.append(outcome.summaries)

    run_threads(runs, run_one)
    assert (len(added), sum(added)) == (runs, len(texts))
    supplied = manager.summary_store.get_summary_history(name, 100)
    assert [(one["text"], one["metadata"]["place"]) for one in supplied] == [
        (text, place) for place, text in enumerate(texts, start=1)
    ]
    assert manager.get_context(name)["current_summary"] == "\n".join(texts)


def test_what_is_imported_can_be_found_and_the_context_knows_it(older: Older, manager: MemoryManager) -> None:
    messages = history(600)
    messages[20]["content"] = "The customer's bicycle is called Rosinante."
    older.fill("s", messages)
    write_both(manager, older, "s", history(50, 600))
    manager.wait_for_folds()
    assert manager.search_messages("s", "order 600")  # indexed before older messages go in front
    older.backfill("s")
    (found,) = manager.search_messages("s", "Rosinante")
    assert (found["seq"], found["message"]) == (21, messages[20])
    context = manager.get_context("s", query="What is the bicycle called?")
    assert messages[20] in [item["message"] for item in context["recalled"]]
    for seq in (21, 22, 580, 620):
        text = said(seq - 1)["content"] if seq != 21 else "Rosinante"
        assert seq in [item["seq"] for item in manager.search_messages("s", text, limit=5)]


def test_summaries_left_out_are_written_by_a_later_run(older: Older, manager: MemoryManager) -> None:
    older.fill("s", history(500))
    older.backfill("s", summarize=False)
    context = manager.get_context("s")
    assert (context["last_seq"], context["current_summary"]) == (500, None)
    assert context["watermark"] >= 470
    assert older.backfill("s").imported == 0
    contains(manager, "s", history(500))
    assert manager.summary_store.get_summary_stats("s")["method"] == "rebuilt"


def test_a_pinned_message_and_the_ranges_of_summaries_move_along(older: Older, manager: MemoryManager) -> None:
    older.fill("s", history(40))
    write_both(manager, older, "s", history(70, 40))
    manager.wait_for_folds()
    pinned = manager.append("s", said(110), message_id="keep")
    older.store.add_chat_message("s", said(110), message_id="keep")
    manager.pin("s", "keep")
    write_both(manager, older, "s", history(40, 111))
    manager.wait_for_folds()
    before = manager.get_context("s")
    assert [item["seq"] for item in before["pinned_messages"]] == [pinned.seq]
    older.backfill("s")
    context = manager.get_context("s")
    assert [(item["seq"], item["message"]) for item in context["pinned_messages"]] == [(111, said(110))]
    contains(manager, "s", history(151))
    versions = manager.summary_store.get_summary_history("s", 100)
    folds = [(item["first_seq"], item["last_seq"]) for item in versions if item["method"] == "extractive"]
    assert folds[0][0] == 1
    assert [first for first, _ in folds[1:]] == [last + 1 for _, last in folds[:-1]]


def set_metadata(older: Older, session_id: str, metadata: Any, *, has_contract: bool = False) -> None:
    older.execute(
        "UPDATE {table} SET session_metadata = %s, has_contract = %s WHERE session_id = %s",
        (json.dumps(metadata), has_contract, session_id),
    )


def test_the_context_object_comes_along_and_never_in_place_of_another(older: Older, manager: MemoryManager) -> None:
    context = SwisperContext(session_id="s", product_query="a bike", extra={"n": 1.5, "odd": "a\x00b\ud800"}).to_dict()
    store = manager.session_store
    older.fill("s", history(3))
    older.store.save_session_context_atomic("s", context)
    older.fill("no messages", [])
    older.store.save_session_context_atomic("no messages", {"a": 1})
    older.fill("its own", history(1))
    older.store.save_session_context_atomic("its own", {"a": "older"})
    store.save_session_context_atomic("its own", {"a": "newer"})
    for dry_run in (True, False):
        assert [older.backfill(name, dry_run=dry_run).context for name in ("s", "no messages", "its own")] == [
            True, True, False,
        ]  # fmt: skip
        found = store.get_session_context_atomic("s")
        assert found == (None if dry_run else context)
    assert store.get_session_context_atomic("no messages") == {"a": 1}
    assert store.get_session_context_atomic("its own") == {"a": "newer"}
    again = [older.backfill(name) for name in ("s", "no messages", "its own")]
    assert [(one.context, one.other_context, one.is_whole) for one in again] == [
        (False, False, True), (False, False, True), (False, True, True),
    ]  # fmt: skip
    contains(manager, "s", history(3))


def test_a_context_that_cannot_be_one_is_told_and_the_messages_come_in(older: Older, manager: MemoryManager) -> None:
    large = {"text": "x" * (older.config.max_message_bytes + 1)}
    for name, value, problem in (("list", [1], "an array"), ("large", large, "bytes")):
        older.fill(name, history(2))
        set_metadata(older, name, {"context": value})
        outcome = older.backfill(name)
        assert problem in str(outcome.refused_context)
        assert (outcome.imported, outcome.is_whole) == (2, False)
        contains(manager, name, history(2))


def test_what_the_log_has_no_place_for_is_said(older: Older, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, metadata, has_contract in (
        ("plain", {}, False),
        ("context", {"context": {"a": 1}}, False),
        ("contract", {}, True),
        ("more", {"context": {"a": 1}, "channel": "web"}, False),
        ("null", None, False),
        ("a null", {"context": None}, False),
        ("a text", "channel: web", False),
    ):
        older.fill(name, history(2))
        set_metadata(older, name, metadata, has_contract=has_contract)
    table = ("--legacy-url", older.url, "--table", older.table)
    code, answer = run(older, *table, "--dry-run", monkeypatch=monkeypatch)
    assert (code, answer["contexts"], answer["more"], answer["other_contexts"]) == (0, 2, 3, 0)
    given = ["--database-url", older.url, "--redis-url", older.config.redis_url, "--tenant", older.config.tenant]
    text = CliRunner().invoke(app, ["backfill", *given, *table, "--dry-run"]).stdout
    assert "Would import 14 messages of 7 sessions with 14 messages, and 2 context objects; 0 sessions needed" in text
    assert "3 sessions with has_contract or other session_metadata than the context object" in text


def test_a_row_that_a_purge_has_not_done_with_is_not_deleted_with_what_comes_in(older: Older) -> None:
    for name in ("messages", "context"):
        older.fill(name, history(3 if name == "messages" else 0))
        set_metadata(older, name, {"context": {"a": 1}} if name == "context" else {})
    older.execute(
        "INSERT INTO memory_sessions (tenant, session_id, epoch, created_at, updated_at)"
        " SELECT %s, name, 7, to_timestamp(0), to_timestamp(0) FROM unnest(ARRAY['messages', 'context']) AS name",
        (older.config.tenant,),
    )
    for name in ("messages", "context"):
        assert older.backfill(name).is_changed
    engine = sa.create_engine(older.url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        end_erased(connection, older.config.tenant, ["messages", "context"])
    engine.dispose()
    assert older.execute("SELECT count(*) FROM memory_sessions WHERE tenant = %s", (older.config.tenant,)) == [(2,)]
    assert older.logged("messages") == history(3)


# -- what cannot be taken


def test_what_cannot_be_taken_is_named_with_its_place_each_time(older: Older, manager: MemoryManager) -> None:
    long_text = {"role": "user", "content": "x" * (older.config.max_message_bytes + 1)}
    odd: list[Any] = [said(0), "a text", said(1), None, long_text, {"n": 0.1}, [1], said(2)]
    older.fill("s", odd)
    older.execute(
        "UPDATE {table} SET chat_history = jsonb_set(chat_history, '{5,n}', '0.12345678901234567890123'::jsonb)"
    )
    expected = {2: "a text", 4: "null", 5: "bytes", 6: "more digits", 7: "an array"}
    for dry_run, imported in ((True, 3), (False, 3), (False, 0)):
        outcome = older.backfill("s", dry_run=dry_run)
        assert outcome.imported == imported
        assert {item.place for item in outcome.refused} == set(expected)
        assert all(expected[item.place] in item.problem for item in outcome.refused), outcome.refused
        assert manager.session_store.get_chat_history("s") == ([] if dry_run else history(3))


def test_a_session_that_cannot_be_one_is_left(older: Older) -> None:
    for session_id, stored, reason in (
        ("line\nbreak", history(1), "control character"),
        ("x" * 300, history(1), "300 characters"),
        ("object", {"a": 1}, "of type object"),
    ):
        older.fill(session_id, stored)
        left = older.backfill(session_id).left
        assert left is not None
        assert reason in left


def test_a_history_that_was_changed_after_its_import_is_left(older: Older, manager: MemoryManager) -> None:
    older.fill("s", history(5))
    older.backfill("s")
    for changed, reason in ((history(3), "3 messages"), ([*history(4), said(77), said(78)], "was changed")):
        older.fill("s", changed)
        left = older.backfill("s").left
        assert left is not None
        assert reason in left
    contains(manager, "s", history(5))


def test_an_outage_ends_the_run_and_not_the_session(older: Older) -> None:
    config = type(older.config)(database_url="postgresql://nobody@127.0.0.1:1/x", database_timeout_seconds=2.0)
    with ExitStack() as stack:
        away = type(older.log)(config)
        stack.callback(away.close)
        older.fill("s", history(3))
        older.log, here = away, older.log
        with pytest.raises(DatabaseUnavailableError):
            older.backfill("s")
        older.log = here
    assert older.backfill("s").imported == 3


def test_times_come_along(older: Older) -> None:
    iso = datetime.fromisoformat("2025-03-01T12:00:00+00:00").timestamp()
    stamped = [{"timestamp": iso}, {"timestamp": iso * 1000}, {"timestamp": "2025-03-01T12:00:00"}, {"x": 1}]
    future = message_time_ms({"timestamp": 99_999_999_999}, default_ms=5, latest_ms=1000)
    assert future == 1000
    assert message_time_ms({"timestamp": "soon"}, default_ms=5, latest_ms=1000) == 5
    assert message_time_ms({"timestamp": 10**400}, default_ms=5, latest_ms=1000) == 1000
    older.fill("s", stamped)
    older.backfill("s")
    rows = older.execute(
        "SELECT extract(epoch FROM created_at)::bigint FROM memory_messages WHERE tenant = %s ORDER BY seq",
        (older.config.tenant,),
    )
    begun = int(datetime.fromisoformat("2025-03-01T10:00:00+00:00").timestamp())
    assert [row[0] for row in rows] == [int(iso), int(iso), int(iso), begun]


def test_a_rate_is_kept(older: Older) -> None:
    older.fill("s", history(40))
    started = time.monotonic()
    assert older.backfill("s", rate=20).imported == 40
    assert time.monotonic() - started >= 1.9


# -- the command, and Redis


def run(older: Older, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Any]:
    for name in ADDRESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    config = older.config
    servers = ["--database-url", older.url, "--redis-url", config.redis_url, "--tenant", config.tenant]
    result = CliRunner().invoke(app, ["backfill", *servers, "--json", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout) if result.stdout else result.stderr


def test_the_command_imports_a_table_tells_what_it_left_and_is_idempotent(
    older: Older, manager: MemoryManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        older.fill(f"s{number}", history(number * 10))
    older.fill("bad", [said(1), "text"])
    older.fill("empty", [], summary="They talked about a bicycle.")
    table = ("--legacy-url", older.url, "--table", older.table)
    for flag, imported in (("--dry-run", 101), ("--summaries", 101), ("--summaries", 0)):
        code, answer = run(older, *table, flag, monkeypatch=monkeypatch)
        assert code == 1
        assert (answer["sessions"], answer["messages"], answer["imported"]) == (7, 102, imported)
        assert answer["dry_run"] == (flag == "--dry-run")
        assert answer["summaries"] == (imported > 0)
        (left,) = answer["not_imported"]
        assert (left["session_id"], left["place"]) == ("bad", "message 2")
        if flag == "--dry-run":
            assert snapshot(older) == []
    for number in range(5):
        contains(manager, f"s{number}", history(number * 10))
    assert manager.get_context("empty")["current_summary"] == "They talked about a bicycle."
    older.execute("DELETE FROM {table} WHERE session_id = 'bad'")
    assert run(older, *table, monkeypatch=monkeypatch)[0] == 0
    assert run(older, *table, "--session", "nobody", monkeypatch=monkeypatch)[0] == 1
    assert run(older, monkeypatch=monkeypatch)[0] == 2
    assert run(older, "--legacy-url", older.url, "--table", "wrong", monkeypatch=monkeypatch)[0] == 2


def test_a_row_without_a_history_is_an_empty_session(
    older: Older, manager: MemoryManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    older.execute("ALTER TABLE {table} ALTER chat_history DROP NOT NULL")
    older.fill("a", history(2))
    older.fill("null", [], summary="They talked about a bicycle.")
    older.fill("z", history(3))
    older.execute("UPDATE {table} SET chat_history = NULL WHERE session_id = 'null'")
    code, answer = run(older, "--legacy-url", older.url, "--table", older.table, monkeypatch=monkeypatch)
    assert (code, answer["sessions"], answer["imported"], answer["summaries"]) == (0, 3, 5, 1), answer
    contains(manager, "z", history(3))
    assert manager.get_context("null")["current_summary"] == "They talked about a bicycle."


def test_a_row_whose_id_is_empty_is_named_and_left(older: Older, monkeypatch: pytest.MonkeyPatch) -> None:
    older.fill("", history(3))
    older.fill("a", history(2))
    table = ("--legacy-url", older.url, "--table", older.table)
    for imported in (2, 0):
        code, answer = run(older, *table, monkeypatch=monkeypatch)
        assert (code, answer["sessions"], answer["imported"]) == (1, 2, imported)
        (left,) = answer["not_imported"]
        assert (left["session_id"], left["place"]) == ("", "session")
        assert "must not be empty" in left["problem"]
    given = ["--database-url", older.url, "--redis-url", older.config.redis_url, "--tenant", older.config.tenant]
    shown = CliRunner().invoke(app, ["backfill", *given, *table, "--session", ""])
    assert (shown.exit_code, "''" in shown.stdout) == (1, True), shown.stdout


def test_keys_of_the_original_come_in_from_redis(
    older: Older, manager: MemoryManager, old_redis: redis.Redis, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = MessageSerializer().serialize_message
    name = f"{tenant}-only-redis"
    old_redis.rpush(f"buffer:{name}", *(seal(message) for message in history(3)), json.dumps(said(3)), "no json", "[1]")
    old_redis.rpush(
        f"summary_list:{name}",
        seal({"text": "First, a bike.", "timestamp": 10**400, "metadata": {}}),
        seal({"no": "text"}),
    )
    in_both = f"{tenant}-both"
    older.fill(in_both, history(50))
    old_redis.rpush(f"buffer:{in_both}", *(seal(message) for message in history(30, 20)))
    more = f"{tenant}-more"
    older.fill(more, history(3))
    old_redis.rpush(f"buffer:{more}", *(seal(message) for message in history(3, 1)))
    wrong = f"{tenant}-wrong"
    old_redis.set(f"buffer:{wrong}", "text")
    sessions = [part for session_id in (name, in_both, more, wrong) for part in ("--session", session_id)]
    sources = ("--legacy-url", older.url, "--table", older.table, "--legacy-redis-url", older.config.redis_url)
    for imported in (57, 0):
        code, answer = run(older, *sources, *sessions, monkeypatch=monkeypatch)
        assert (code, answer["imported"], answer["summaries"]) == (1, imported, imported > 0)
        assert sorted((item["session_id"], item["place"]) for item in answer["not_imported"]) == sorted(
            [(name, "message 5"), (name, "message 6"), (name, "summary 2"), (more, "session"), (wrong, "session")]
        )
    contains(manager, in_both, history(50))
    contains(manager, more, history(3))
    assert manager.session_store.get_chat_history(name) == history(4)
    assert manager.get_context(name)["current_summary"] == "First, a bike."
    old_redis.ltrim(f"buffer:{name}", 2, 3)  # the original drops the oldest
    assert run(older, *sources, "--session", name, monkeypatch=monkeypatch)[1]["imported"] == 0


def test_what_redis_alone_has_comes_into_the_table_too_where_both_are_written(
    older: Older, manager: MemoryManager, old_redis: redis.Redis, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In front of what was written to both since, relayed or not, and only once."""
    seal = MessageSerializer().serialize_message
    quiet, relayed, owed, own, told = (f"{tenant}-{name}" for name in ("quiet", "relayed", "owed", "own", "told"))
    for session_id in (quiet, relayed, owed):
        old_redis.rpush(f"buffer:{session_id}", *(seal(message) for message in history(2)), "no json", seal(said(2)))
        old_redis.rpush(f"summary_list:{session_id}", seal({"text": "First, a bike."}))
    older.fill(told, history(3))  # that row is older history itself, and nobody can tell where the rest belongs
    old_redis.rpush(f"buffer:{told}", *(seal(message) for message in history(3, 1)))
    sessions = [part for session_id in (quiet, relayed, owed, own, told) for part in ("--session", session_id)]
    sources = ("--legacy-url", older.url, "--table", older.table, "--legacy-redis-url", older.config.redis_url)
    with EnhancedSessionStore(manager, older.store, is_relaying=False) as store:
        assert store.add_chat_message(relayed, said(7))
        assert store.add_chat_message(own, said(7))
        assert store.settle()
        assert store.add_chat_message(owed, said(7))
        older.store.save_session_context_atomic(owed, {"current_state": "search"})  # a row without messages
        old_redis.rpush(f"buffer:{own}", seal(said(7)))  # the original goes on beside
        for flag, brought in (("--dry-run", 9), ("--summaries", 9), ("--summaries", 0)):
            before = older.execute("SELECT * FROM {table} ORDER BY session_id")
            code, answer = run(older, *sources, *sessions, flag, monkeypatch=monkeypatch)
            assert (code, answer["imported"], answer["brought"]) == (1, brought + 3 * (brought > 0), brought)
            assert answer["summaries"] == brought / 3
            assert {(item["session_id"], item["place"]) for item in answer["not_imported"]} == {
                (told, "session"),
                *((session_id, "message 3") for session_id in (quiet, relayed, owed)),
            }
            assert (flag == "--summaries" and brought > 0) != (
                older.execute("SELECT * FROM {table} ORDER BY session_id") == before
            )
        assert store.settle()
        for session_id, since in ((quiet, []), (relayed, [said(7)]), (owed, [said(7)])):
            assert older.store.get_chat_history(session_id) == older.logged(session_id) == history(3) + since
            assert store.get_chat_history(session_id) == history(3) + since
        old_redis.rpush(f"buffer:{relayed}", seal(said(3)))  # behind what came from there, as in the log
        assert run(older, *sources, "--session", relayed, monkeypatch=monkeypatch)[1]["brought"] == 1
        assert older.store.get_chat_history(relayed) == older.logged(relayed) == [*history(4), said(7)]
        assert older.store.get_chat_history(own) == [said(7)]
    assert manager.session_store.get_session_context_atomic(owed) == {"current_state": "search"}
    counts = older.execute("SELECT message_count, jsonb_array_length(chat_history) FROM {table} ORDER BY session_id")
    assert counts == [(4, 4), (1, 1), (3, 3), (5, 5), (3, 3)]
    assert older.logged(told) == history(3)


def test_what_was_imported_before_both_were_written_comes_into_the_table_in_its_place(
    older: Older, manager: MemoryManager, old_redis: redis.Redis, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = MessageSerializer().serialize_message
    since = {f"{tenant}-quiet": [], f"{tenant}-relayed": [said(7)], f"{tenant}-owed": [said(7)]}
    for session_id in since:
        old_redis.rpush(f"buffer:{session_id}", *(seal(message) for message in history(3)))
    sessions = [part for session_id in since for part in ("--session", session_id)]
    sources = ("--legacy-url", older.url, "--table", older.table, "--legacy-redis-url", older.config.redis_url)
    code, answer = run(older, *sources, *sessions, monkeypatch=monkeypatch)
    assert (code, answer["imported"], answer["brought"]) == (0, 9, 0)
    assert older.execute("SELECT * FROM {table}") == []
    with EnhancedSessionStore(manager, older.store, is_relaying=False) as store:
        for session_id, messages in since.items():
            for message in messages:
                assert store.add_chat_message(session_id, message)
            if session_id.endswith("relayed"):
                assert store.settle()
        for brought in (9, 0):
            code, answer = run(older, *sources, *sessions, monkeypatch=monkeypatch)
            assert (code, answer["imported"], answer["brought"]) == (0, 0, brought)
        assert store.settle()
        for session_id, messages in since.items():
            assert older.store.get_chat_history(session_id) == older.logged(session_id) == history(3) + messages
            assert store.get_chat_history(session_id) == history(3) + messages


def test_a_row_that_others_write_is_not_put_in_another_order(older: Older, tenant: str) -> None:
    older.store.add_chat_message("s", said(1), message_id="one")
    older.store.add_chat_message("s", said(2))
    assert not older.store.put_messages("s", {"zero": said(0)}, in_log=["zero", "one"])
    assert older.store.get_chat_history("s") == [said(1), said(2)]


def test_the_ids_of_imported_messages_are_told_from_others() -> None:
    assert imported_place("legacy-12-" + "ab" * 16) == (12, b"\xab" * 16)
    for other in ("legacy-12", "legacy-x-" + "ab" * 16, "legacy-1-" + "zz" * 16, "m", "legacy-1-ab"):
        assert imported_place(other) is None
