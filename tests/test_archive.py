"""Archives: what goes out comes back the same, and what was cut off or edited never does."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from memory_contract import DURABLE, SYNC, Backend, logged, row_counts, same, say, talk
from test_rebuilding import poisoned
from test_retention import many_messages, run, without
from tool_traffic import tool_calls, tool_result
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.cli.archive import file_name
from contract_engine.memory import (
    ConfigurationError,
    InvalidInputError,
    MemoryManager,
    RedisUnavailableError,
    SessionExistsError,
)
from contract_engine.memory._log_archive import PAGE_BYTES
from contract_engine.memory._log_retention import erase_untouched
from contract_engine.memory._tables import messages, sessions, summaries
from contract_engine.memory.archive import ArchiveReader, line_of

pytest_plugins = ("memory_fixtures",)


def exported(manager: MemoryManager, session_id: str = "s") -> bytes:
    out = io.BytesIO()
    answer = manager.retention.export_session(session_id, out.write)
    assert answer is not None
    lines = out.getvalue().splitlines()
    assert len(lines) == answer["messages"] + answer["summaries"] + 2
    return out.getvalue()


def lines_of(archive: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in archive.splitlines()]


def imported(manager: MemoryManager, archive: bytes, **given_: Any) -> dict[str, Any]:
    return manager.retention.import_sessions(io.BytesIO(archive), **given_)


def assert_same_context(left: dict[str, Any], right: dict[str, Any]) -> None:
    """But for the name, where each was read from, and how long Redis keeps it."""
    for context in (left, right):
        for name in ("session_id", "source"):
            del context[name]
        for name in ("ttl_remaining", "last_updated"):
            del context["buffer_info"][name]
    assert same(left, right)


@pytest.fixture
def elsewhere(blocking: Backend) -> Iterator[Backend]:
    """Another tenant, as another installation is one."""
    other = Backend(SYNC, DURABLE, blocking.redis_url, blocking.database_url, f"{blocking.tenant}x")
    with closing(other) as found:
        yield found


@pytest.fixture
def unreachable(tenant: str) -> Iterator[Backend]:
    """Servers that are not there."""
    with closing(Backend(SYNC, DURABLE, "redis://127.0.0.1:1/0", "postgresql://127.0.0.1:1/x", tenant)) as found:
        yield found


def assert_round_trip(manager: MemoryManager, other: MemoryManager, session_id: str = "s") -> bytes:
    """Export, import as another tenant, export there: the same bytes, and the same context."""
    context = manager.get_context(session_id)  # first of all: a read folds what exceeds the caps
    manager.wait_for_folds()
    archive = exported(manager, session_id)
    answer = imported(other, archive)
    counts = lines_of(archive)[-1]
    assert (answer["sessions"], answer["messages"], answer["summaries"]) == (
        1,
        counts["messages"],
        counts["summaries"],
    )
    assert exported(other, session_id) == archive
    assert_same_context(context, other.get_context(session_id))
    assert same(
        manager.summary_store.get_summary_history(session_id, 1000),
        other.summary_store.get_summary_history(session_id, 1000),
    )
    assert manager.get_session_config(session_id) == other.get_session_config(session_id)
    return archive


def test_an_archive_has_every_column() -> None:
    """Fails where a column is added that neither an archive has, nor is left out of it on purpose."""
    from contract_engine.memory import archive

    left_out = {"tenant", "epoch", "revision", "indexed_seq"}
    of_line = {"kind", "format"}
    header = set(archive.Header.__struct_fields__) - of_line - {"version"}
    assert header == {column.name for column in sessions.c} - left_out
    message = set(archive.ArchivedMessage.__struct_fields__) - of_line - {"message"} | {"body"}
    assert message == {column.name for column in messages.c} - left_out - {"session_id"}
    summary = set(archive.ArchivedSummary.__struct_fields__) - of_line
    assert summary == {column.name for column in summaries.c} - left_out - {"session_id"}


def test_a_session_with_everything(durable: Backend) -> None:
    manager = durable.open(max_buffer_messages=8)
    manager.set_session_config("s", {"max_buffer_messages": 6, "max_buffer_tokens": 900})
    for number, message in enumerate([*talk(8), tool_calls("c1", "c2"), tool_result("c1"), say(99)]):
        manager.append("s", message, message_id=f"id {number}")
        manager.wait_for_folds()
        if number in (1, 3):
            manager.pin("s", f"id {number}")
    manager.set_summary_instructions("s", "Keep \x00 and \ud800.")
    manager.summary_store.add_summary("s", "A fact \udfff.", {"source": "\ud800", "n": 10**30})
    manager.save_context("s", {"session_id": "s", "note": "x", "n": 0.1})
    other = durable.open(max_buffer_messages=8, tenant=f"{durable.tenant}x")
    archive = assert_round_trip(manager, other)
    header, *_, trailer = lines_of(archive)
    assert header["pinned"] == ["id 1", "id 3"]
    assert header["max_buffer_messages"] == 6
    assert trailer["summaries"] >= 3
    assert durable.tenant.encode() not in archive, "the tenant is left out"
    assert other.get_context("s")["pinned_messages"]
    assert other.load_context("s") is not None
    assert other.get_summary_instructions("s") == "Keep \x00 and \ud800."
    archive.decode("utf-8")  # is valid, though what it holds is not
    found = [hit["seq"] for hit in manager.search_messages("s", "message 0002")]
    assert [hit["seq"] for hit in other.search_messages("s", "message 0002")] == found != []
    # The session goes on there, as it does here.
    assert other.append("s", say(100)).seq == manager.append("s", say(100)).seq == header["last_seq"] + 1
    assert other.append("s", say(99), message_id=f"id {header['last_seq'] - 1}").seq == header["last_seq"]


def test_summaries_of_a_model_and_quarantined_ones(blocking: Backend, elsewhere: Backend) -> None:
    manager, _, bad = poisoned(blocking)
    manager.summary_store.quarantine("s", bad)
    archive = assert_round_trip(manager, elsewhere.open(max_buffer_messages=4))
    versions = [line for line in lines_of(archive) if line["kind"] == "summary"]
    assert {"model", "extractive", "rebuilt"} <= {version["method"] for version in versions}
    assert {version["model"] for version in versions} == {None, "little-1"}
    assert any(version["quarantined_at"] for version in versions)


def test_sessions_that_are_empty_cleared_and_begun_again(blocking: Backend, elsewhere: Backend) -> None:
    manager, other = blocking.open(max_buffer_messages=4), elsewhere.open(max_buffer_messages=4)
    manager.save_context("context alone", {"session_id": "context alone"})
    manager.set_session_config("limits alone", {"max_buffer_messages": 3})
    for name in ("summaries cleared", "begun again", "unpinned"):
        for number in range(1, 10):
            manager.append(name, say(number), message_id=f"m{number}")
            manager.wait_for_folds()
    manager.summary_store.clear_summaries("summaries cleared")
    manager.clear_session_memory("begun again")
    manager.append("begun again", say(1))
    manager.pin("unpinned", "m1")
    manager.unpin("unpinned", "m1")
    counts = {}
    for name in manager.retention.session_ids():
        counts[name] = lines_of(assert_round_trip(manager, other, name))[-1]["messages"]
    assert counts == {
        "context alone": 0,
        "limits alone": 0,
        "summaries cleared": 9,
        "begun again": 1,
        "unpinned": 9,
    }
    assert manager.retention.export_session("never", io.BytesIO().write) is None


# Two halves side by side are no character, though their escapes are read as one; hardly ever are they drawn by chance.
TEXTS = st.text(st.characters(codec=None), max_size=30) | st.just("halves \ud83d\ude00")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.builds(
    lambda name, arguments: {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}},
    TEXTS,
    TEXTS,
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXTS | st.none()},
    optional={"tool_calls": st.lists(CALLS, min_size=1, max_size=2), "tool_call_id": TEXTS, "extra": VALUES},
)
NUMBERS = itertools.count()


@settings(max_examples=40, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(said=st.lists(MESSAGES, min_size=1, max_size=12), wishes=TEXTS, fact=TEXTS.filter(str.strip))
def test_any_text_comes_back(
    blocking: Backend, elsewhere: Backend, said: list[dict[str, Any]], wishes: str, fact: str
) -> None:
    if not blocking.opened:
        blocking.open(max_buffer_messages=4), elsewhere.open(max_buffer_messages=4)
    (manager,), (other,) = blocking.opened, elsewhere.opened
    name = f"s{next(NUMBERS)}"
    receipts = manager.add_messages(name, said)
    manager.wait_for_folds()
    manager.pin(name, receipts[0].message_id)
    manager.set_summary_instructions(name, wishes)
    manager.summary_store.add_summary(name, fact, {"fact": fact})
    assert_round_trip(manager, other, name)
    history = other.session_store.get_chat_history(name)
    assert all(same(*pair) for pair in zip(history, said, strict=True))


# -- one moment


def test_an_export_is_of_one_moment(blocking: Backend) -> None:
    """While it runs the session grows, is folded and at last erased."""
    manager, other = blocking.open(), blocking.open(max_buffer_messages=4)
    many_messages(blocking, "s", 2500)
    before = exported(manager)
    pieces: list[bytes] = []

    def write(data: bytes) -> None:
        pieces.append(data)
        if len(pieces) == 2:
            other.append("s", say(1))
            other.get_context("s")
        if len(pieces) == 3:
            assert other.get_context("s")["watermark"] > 2490
            assert other.clear_session_memory("s")

    assert manager.retention.export_session("s", write) == {"session_id": "s", "messages": 2500, "summaries": 0}
    assert len(pieces) >= 4
    assert b"".join(pieces) == before


def test_what_waits_in_redis_is_in_it(blocking: Backend) -> None:
    manager, other = blocking.open(), blocking.open()
    manager.append("s", say(1))
    with without(other, database=True):
        assert not other.append("s", say(2)).durable
    assert [line["message"] for line in lines_of(exported(manager)) if line["kind"] == "message"] == talk(2)


def test_where_redis_cannot_be_asked_nothing_is_exported_or_imported(blocking: Backend) -> None:
    manager = blocking.open()
    manager.append("s", say(1))
    archive = exported(manager)
    out = io.BytesIO()
    with without(manager, redis_too=True):
        with pytest.raises(RedisUnavailableError, match="messages may wait there"):
            manager.retention.export_session("s", out.write)
        with pytest.raises(RedisUnavailableError, match="messages may wait there"):
            imported(manager, archive, session_id="t")
    assert out.getvalue() == b""
    assert manager.retention.session_ids() == ["s"]


def test_without_a_database_there_are_no_archives(ephemeral: Backend) -> None:
    manager = ephemeral.open()
    with pytest.raises(ConfigurationError):
        manager.retention.export_session("s", io.BytesIO().write)
    with pytest.raises(ConfigurationError):
        imported(manager, b"")


def test_the_memory_it_takes_is_bounded(blocking: Backend, tmp_path: Path) -> None:
    """60 messages of a megabyte go out and come back in a fraction of that."""
    manager = blocking.open()
    for number in range(60):
        body = {"role": "user", "content": f"{number:04d}" + "x" * 1_000_000}
        manager.append("s", body, message_id=f"m{number}")
    path = tmp_path / "s.jsonl"
    tracemalloc.start()
    try:
        with path.open("wb") as file:
            manager.retention.export_session("s", file.write)
        with path.open("rb") as file:
            manager.retention.import_sessions(file, session_id="t")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 60_000_000
    assert peak < 10 * PAGE_BYTES, f"{peak:,} bytes"
    assert exported(manager, "t").splitlines()[1:-1] == path.read_bytes().splitlines()[1:-1]


# -- refused


def assert_nothing_there(backend: Backend) -> None:
    assert not any(row_counts(str(backend.database_url), backend.tenant).values())


@pytest.fixture
def archive(blocking: Backend) -> bytes:
    """Of a session with eleven messages that say a secret, and some summaries."""
    manager = blocking.open(max_buffer_messages=4)
    for number in range(11):
        manager.append("s", {"role": "user", "content": f"The secret is {number}, hunter2."}, message_id=f"m{number}")
        manager.wait_for_folds()
    return exported(manager)


def refusal(manager: MemoryManager, data: bytes, **given_: Any) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        imported(manager, data, **given_)
    assert "hunter2" not in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:  # what a log file would show of it
        assert "hunter2" not in str(error)
        error = error.__cause__
    return caught.value


def test_a_file_that_was_cut_off_is_refused_wherever(archive: bytes, elsewhere: Backend) -> None:
    manager = elsewhere.open()
    lines = archive.splitlines(keepends=True)
    for count in range(len(lines)):
        assert refusal(manager, b"".join(lines[:count])).field == "archive"
    for cut in (1, 2, 30, 200, len(lines[-1]) + 1):
        refusal(manager, archive[:-cut])
    assert_nothing_there(elsewhere)
    assert imported(manager, archive)["sessions"] == 1


def test_a_file_that_was_edited_is_refused_wherever(archive: bytes, elsewhere: Backend) -> None:
    manager = elsewhere.open()
    lines = archive.splitlines(keepends=True)
    edits: dict[str, Callable[[list[bytes]], object]] = {
        "a word": lambda found: found.__setitem__(3, found[3].replace(b"secret", b"hidden")),
        "a time": lambda found: found.__setitem__(3, found[3].replace(b"+00:00", b"+01:00")),
        "a message missing": lambda found: found.pop(3),
        "the last message missing": lambda found: found.pop(11),
        "a message twice": lambda found: found.insert(3, found[3]),
        "two in another order": lambda found: found.insert(3, found.pop(4)),
        "a summary missing": lambda found: found.pop(-2),
        "an empty line": lambda found: found.insert(3, b"\n"),
        "no JSON": lambda found: found.__setitem__(3, b'{"kind":"message","hunter2\n'),
        "no object": lambda found: found.__setitem__(3, b'["hunter2"]\n'),
        "another kind": lambda found: found.__setitem__(3, found[3].replace(b'"message"', b'"hunter2"', 1)),
        "another field": lambda found: found.__setitem__(3, found[3].replace(b'"tokens"', b'"hunter2"', 1)),
        "another type": lambda found: found.__setitem__(3, found[3].replace(b'"m2"', b"2", 1)),
        "an id of control characters": lambda found: found.__setitem__(3, found[3].replace(b'"m2"', b'"\\u0000"', 1)),
        "the header": lambda found: found.__setitem__(0, found[0].replace(b'"pinned":null', b'"pinned":["m1"]')),
        "another counter": lambda found: found.__setitem__(-1, found[-1].replace(b'"messages":11', b'"messages":10')),
        "bytes": lambda found: found.__setitem__(3, b"\xff\xfe\x00\n"),
        "text behind it": lambda found: found.append(b"{}\n"),
    }
    for name, edit in edits.items():
        changed = list(lines)
        edit(changed)
        assert changed != lines, name
        given_ = {"session_id": "t"} if name == "text behind it" else {}
        refusal(manager, b"".join(changed), **given_)
        refusal(manager, b"".join(changed), dry_run=True, **given_)
    assert_nothing_there(elsewhere)


@settings(max_examples=60)
@given(st.data())
def test_no_changed_byte_passes(data: st.DataObject) -> None:
    """The reader alone: whatever byte of an archive is another one, it is not read to the end."""
    head = {"kind": "session", "format": "contract-memory", "version": 1, "session_id": "s", "last_seq": 1}
    head |= dict.fromkeys(("watermark", "summary_version"), 0)
    head |= dict.fromkeys(("summary_trigger_tokens", "max_buffer_tokens", "max_buffer_messages", "context"))
    head |= {"pinned": None, "summary_instructions": None}
    head |= dict.fromkeys(("created_at", "updated_at"), "2026-01-31T00:00:00.000000+00:00")
    row = {"kind": "message", "seq": 1, "message_id": "m", "tokens": 3, "message": {"role": "user"}}
    from contract_engine.memory.archive import ArchiveWriter, Counts

    out = io.BytesIO()
    writer = ArchiveWriter(out.write)
    writer.add([head, row | {"created_at": "2026-01-31T00:00:00.000000+00:00"}])
    writer.end(Counts(1, 0))
    whole = out.getvalue()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))

    def read(archive: bytes) -> None:
        reader = ArchiveReader(io.BytesIO(archive))
        while not reader.is_at_end:
            list(reader.rows(reader.header()))

    read(whole)
    try:
        read(bytes(changed))
    except InvalidInputError:
        return
    # White space and the case of hexadecimal digits mean nothing in the trailer; nothing else may be different.
    assert place > whole.index(b'{"kind":"end"')
    assert json.loads(bytes(changed).splitlines()[-1]) == json.loads(whole.splitlines()[-1])


def test_a_newer_format_is_refused_by_name(archive: bytes, elsewhere: Backend) -> None:
    newer = archive.replace(b'"version":1', b'"version":2', 1)
    error = refusal(elsewhere.open(), newer)
    assert "format version 2, this program reads up to 1" in str(error)
    assert "line 1" in str(error)
    assert_nothing_there(elsewhere)


def test_a_session_that_is_there_is_left_alone(archive: bytes, blocking: Backend) -> None:
    manager = blocking.open(max_buffer_messages=4)
    manager.append("t", say(1))
    before = exported(manager, "t")
    for given_ in ({}, {"session_id": "t"}, {"session_id": "t", "dry_run": True}):
        error = refusal(manager, archive, **given_)
        assert isinstance(error, SessionExistsError)
        assert (error.field, error.session_id) == ("existing", given_.get("session_id", "s"))
    skipped = imported(manager, archive, session_id="t", existing="skip")
    assert (skipped["sessions"], skipped["skipped"]) == (0, ["t"])
    assert imported(manager, archive, session_id="t", existing="replace", dry_run=True)["replaced"] == ["t"]
    assert exported(manager, "t") == before
    # Cut off in the middle, it does not replace anything either.
    refusal(manager, archive[: len(archive) // 2], session_id="t", existing="replace")
    assert exported(manager, "t") == before
    assert manager.get_context("t")["last_seq"] == 1
    assert imported(manager, archive, session_id="t", existing="replace")["replaced"] == ["t"]
    assert exported(manager, "t").splitlines()[1:-1] == archive.splitlines()[1:-1]
    for reader in (manager, blocking.open(max_buffer_messages=4)):
        assert_same_context(reader.get_context("t"), reader.get_context("s"))
    with pytest.raises(InvalidInputError):
        imported(manager, archive, existing="perhaps")


def test_several_sessions_in_one_stream(archive: bytes, blocking: Backend, elsewhere: Backend) -> None:
    manager, other = blocking.open(), elsewhere.open()
    manager.append("t", say(1))
    stream = archive + exported(manager, "t")
    assert "several sessions" in str(refusal(other, stream, session_id="u"))
    assert_nothing_there(elsewhere)
    refusal(other, stream + archive[:-5], existing="replace")
    assert other.retention.session_ids() == ["s", "t"], "those before it stay"
    again = imported(other, stream, existing="skip")
    assert (again["sessions"], again["skipped"]) == (0, ["s", "t"])
    refusal(other, b"")


def test_line_of_is_lossless_and_valid() -> None:
    for value in ("\x00\n\u2028\ud800", 10**40, -0.0, 1e308, 1.0, True, None, ["ü", {"a": "\udfff"}]):
        line = line_of({"value": value})
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert same(json.loads(line.decode("utf-8")), {"value": value})


# -- the command line


def test_the_commands(blocking: Backend, elsewhere: Backend, tmp_path: Path) -> None:
    manager, other = blocking.open(max_buffer_messages=4), elsewhere.open(max_buffer_messages=4)
    names = ["a", "b/c", "..", "long" * 60]
    for name in names:
        manager.add_messages(name, talk(7))
    path = tmp_path / "a.jsonl"
    code, out, err = run(blocking, "export", "a", "-o", str(path))
    assert (code, out) == (0, "")
    assert "Exported 1 session with 7 messages" in err
    assert path.read_bytes() == exported(manager, "a")
    assert path.stat().st_mode & 0o077 == 0
    code, out, _ = run(blocking, "export", "a")
    assert (code, out.encode()) == (0, path.read_bytes())
    code, out, _ = run(elsewhere, "import", str(path), "--dry-run", "--json")
    assert (code, json.loads(out)["sessions"]) == (0, 1)
    assert_nothing_there(elsewhere)
    code, out, _ = run(elsewhere, "import", str(path))
    assert (code, out) == (0, "Imported 1 session with 7 messages.\n")
    code, out, err = run(elsewhere, "import", str(path))
    assert code == 2
    assert "there is a session 'a' already" in err
    assert "give --replace or --skip-existing" in err
    assert run(elsewhere, "import", str(path), "--replace")[0] == 0
    code, out, _ = run(elsewhere, "import", str(path), "--session", "new", "--json")
    assert (code, json.loads(out)["messages"]) == (0, 7)
    folder = tmp_path / "all"
    code, out, _ = run(blocking, "export", "--all", "--folder", str(folder), "--json")
    assert (code, json.loads(out)["sessions"]) == (0, 4)
    files = sorted(folder.iterdir())
    assert {file.name for file in files} == {file_name(name) for name in names}
    files[0].unlink()
    code, out, _ = run(blocking, "export", "--all", "--folder", str(folder), "--resume", "--json")
    assert (code, json.loads(out)["sessions"], json.loads(out)["skipped"]) == (0, 1, 3)
    code, out, _ = run(elsewhere, "import", *map(str, files), "--skip-existing", "--json")
    assert (code, json.loads(out)["sessions"], json.loads(out)["skipped"]) == (0, 3, ["a"])
    assert sorted(other.retention.session_ids()) == sorted([*names, "new"])
    code, out, _ = run(blocking, "export", "--all")
    where = ["--redis-url", elsewhere.redis_url, "--database-url", str(elsewhere.database_url)]
    done = CliRunner().invoke(
        app, ["import", "-", "--replace", *where, "--tenant", elsewhere.tenant], input=out.encode()
    )
    assert done.exit_code == 0, done.output
    for name in names:
        assert exported(other, name) == exported(manager, name)


def test_a_session_of_which_all_waits_in_redis_is_one_of_all(blocking: Backend, tmp_path: Path) -> None:
    blocking.open().append("logged", say(1))
    away = Backend(blocking.colour, blocking.mode, blocking.redis_url, "postgresql://127.0.0.1:1/x", blocking.tenant)
    assert away.open().append("waits", say(2)).durable is False
    away.close()
    code, out, _ = run(blocking, "export", "--all", "--folder", str(tmp_path), "--json")
    assert (code, json.loads(out)["sessions"]) == (0, 2)
    assert {file.name for file in tmp_path.iterdir()} == {"logged.jsonl", "waits.jsonl"}
    assert logged(str(blocking.database_url), blocking.tenant, "waits") == [(1, say(2))]


def test_a_dry_export_writes_and_logs_nothing(blocking: Backend, tmp_path: Path) -> None:
    manager = blocking.open()
    for name in ("a", "b"):
        manager.add_messages(name, talk(3))
    away = Backend(blocking.colour, blocking.mode, blocking.redis_url, "postgresql://127.0.0.1:1/x", blocking.tenant)
    assert away.open().append("waits", say(2)).durable is False
    away.close()
    folder = tmp_path / "out"
    everything = ("export", "--all", "--folder", str(folder), "--dry-run")
    counts = {"sessions": 2, "messages": 6, "summaries": 0, "skipped": 0, "dry_run": True}
    code, out, _ = run(blocking, *everything, "--json")
    assert (code, json.loads(out)) == (0, counts)
    code, out, err = run(blocking, *everything)
    assert (code, out) == (0, "")
    assert "Would export 2 sessions with 6 messages to " in err
    for where in ((), ("-o", str(tmp_path / "file"))):
        code, out, err = run(blocking, "export", "a", "--dry-run", *where)
        assert (code, out) == (0, "")
        assert "Would export 1 session with 3 messages" in err
    assert run(blocking, "export", "never", "--dry-run")[0] == 1
    assert list(tmp_path.iterdir()) == []
    assert manager.unlogged_sessions() == ["waits"]
    folder.mkdir()
    (folder / file_name("a")).write_bytes(b"")
    code, out, _ = run(blocking, *everything, "--resume", "--json")
    assert (code, json.loads(out)) == (0, counts | {"sessions": 1, "messages": 3, "skipped": 1})


def test_what_the_commands_refuse(blocking: Backend, tmp_path: Path) -> None:
    code, out, err = run(blocking, "export", "never", "-o", str(tmp_path / "f"))
    assert (code, out) == (1, "")
    assert "There is no session 'never'" in err
    assert run(blocking, "export", "never", "--folder", str(tmp_path / "d"))[0] == 1
    assert run(blocking, "export")[0] == 2
    assert run(blocking, "export", "s", "--all")[0] == 2
    assert run(blocking, "export", "s", "--json")[0] == 2
    assert run(blocking, "export", "s", "--resume")[0] == 2
    assert run(blocking, "import", str(tmp_path / "missing"))[0] == 2
    (tmp_path / "bad").write_bytes(b"hunter2\n")
    code, _, err = run(blocking, "import", str(tmp_path / "bad"))
    assert code == 2
    assert "line 1: not JSON" in err
    assert "hunter2" not in err
    assert run(blocking, "import", str(tmp_path / "bad"), "--replace", "--skip-existing")[0] == 2
    assert run(blocking, "import", "a", "b", "--session", "s")[0] == 2
    blocking.open().append("s", say(1))
    code, _, err = run(blocking, "export", "s", "-o", str(tmp_path / "no" / "folder"))
    assert code == 2
    assert "cannot be written to" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "d"]
    assert logged(str(blocking.database_url), blocking.tenant, "s") == [(1, say(1))]


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_read(
    tmp_path: Path, unreachable: Backend
) -> None:
    """No server is there: whoever asked one first would say so."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for given_, says in (
        (("--output", str(tmp_path / "folder")), "is a folder"),
        (("--output", str(tmp_path / "pipe")), "is no ordinary file"),
        (("--folder", str(tmp_path / "file")), "cannot be made"),
        (("--folder", str(tmp_path / "file" / "below")), "cannot be made"),
    ):
        code, out, err = run(unreachable, "export", "--all", *given_)
        assert (code, out) == (2, "")
        assert says in err
        assert "Error: " in err
    assert (tmp_path / "pipe").is_fifo()
    code, _, err = run(unreachable, "export", "--all", "--output", str(tmp_path / "new"))
    assert (code, "unavailable" in err) == (2, True), "so it would have said"


@pytest.mark.parametrize("option", ["--output", "--folder"])
def test_a_disk_that_is_full_is_an_error_and_no_traceback(blocking: Backend, tmp_path: Path, option: str) -> None:
    """A limit on the size of files stands for it: it too is met while the archive is being written."""
    many_messages(blocking, "s", 2000)
    place = tmp_path / "place"
    given_ = ["export", "s", option, str(place), "--tenant", blocking.tenant]
    given_ += ["--redis-url", blocking.redis_url, "--database-url", str(blocking.database_url)]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", sys.executable, "-B", "-m", "contract_engine.cli", *given_],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"Error: {option[2:]}: {place}" in done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_dry_import_writes_nothing_at_all(blocking: Backend, elsewhere: Backend) -> None:
    """What waits in Redis to be logged goes on waiting."""
    blocking.open().append("s", say(1))
    archive = exported(blocking.open())
    away = Backend(SYNC, DURABLE, elsewhere.redis_url, "postgresql://127.0.0.1:1/x", elsewhere.tenant)
    with closing(away):
        assert away.open().append("s", say(2)).durable is False
    before = row_counts(str(elsewhere.database_url), elsewhere.tenant)
    assert imported(elsewhere.open(), archive, dry_run=True)["sessions"] == 1
    assert row_counts(str(elsewhere.database_url), elsewhere.tenant) == before
    with pytest.raises(SessionExistsError):
        imported(elsewhere.open(), archive)
    assert logged(str(elsewhere.database_url), elsewhere.tenant, "s") == [(1, say(2))]


def test_what_a_purge_has_erased_and_not_yet_done_with_is_not_exported(blocking: Backend) -> None:
    manager = blocking.open()
    names = [f"s{number}" for number in range(6)]
    for name in names:
        manager.append(name, say(1))
    key = {"of_tenant": blocking.tenant}
    engine = sa.create_engine(str(blocking.database_url).replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        erased = erase_untouched(connection, key["of_tenant"], names[:4], datetime(2100, 1, 1, tzinfo=UTC))
    engine.dispose()
    assert sorted(erased) == names[:4]
    assert manager.retention.session_ids() == names[4:]
    assert manager.retention.session_ids(limit=2) == names[4:], "an empty page is the end, and this is none"
    assert manager.retention.session_ids(after=names[-1]) == []
    assert manager.retention.export_session(names[0], lambda _: pytest.fail("something was written")) is None


def test_an_export_that_fails_in_the_middle_leaves_no_file(
    blocking: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database ends the connection after the first page; what stood there before stays."""
    many_messages(blocking, "s", 5000)
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"before")
    pieces = 0
    from contract_engine.cli import archive as command

    class Ending(command._Told):
        def __call__(self, session_id: str, done: int, total: int) -> None:
            nonlocal pieces
            pieces += 1
            with psycopg.connect(str(blocking.database_url), autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'contract-memory' AND state = 'idle in transaction'"
                )

    monkeypatch.setattr(command, "_Told", Ending)
    code, _, err = run(blocking, "export", "s", "-o", str(path))
    assert code == 2
    assert pieces == 1
    assert "export again" in err
    assert [found.name for found in tmp_path.iterdir()] == ["s.jsonl"]
    assert path.read_bytes() == b"before"
