"""Long commands on a terminal: a bar says how far they are and is gone in the end; the result stands apart from it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from dual_stores import open_store
from legacy_tables import Older, said
from memory_contract import Backend, say, talk
from servers import PrivateServers

pytest_plugins = ("memory_fixtures",)

# Name, arguments, what is counted, and how many of it there are.
COMMANDS = {
    "purge": (("purge", "--older-than", "1h", "--yes"), "sessions", 3),
    "erase": (("erase", "s1", "s2", "s3", "--yes"), "sessions", 3),
    "drain": (("drain",), "sessions", 2),
    "export": (("export", "--all", "--folder", "{folder}/out"), "messages", 12),
    "import": (("import", "{folder}/archive.jsonl", "--replace"), "messages", 12),
    "resummarize": (("resummarize", "s1"), "messages", None),
    "replay": (("replay", "{folder}/chat.jsonl"), "messages", 20),
    "relay": (("relay", "--legacy-url", "{url}", "--table", "{table}"), "messages", 4),
}


@pytest.fixture
def older(redis_url: str, database_url: str, tenant: str) -> Iterator[Older]:
    with ExitStack() as stack:
        yield Older(database_url, redis_url, tenant, stack)


def prepare(backend: Backend, name: str, older: Older, folder: Path) -> None:
    """Give a command something to do, and nothing besides."""
    if name == "replay":
        (folder / "chat.jsonl").write_text(json.dumps({"id": "chat", "messages": talk(20)}) + "\n", "utf-8")
        return
    if name == "relay":
        older.fill("relayed", [])
        store = open_store(backend, older.store)
        for number in range(1, 5):
            store.add_chat_message("relayed", said(number))
        return
    if name == "drain":
        away = Backend(backend.colour, backend.mode, backend.redis_url, "postgresql://127.0.0.1:1/x", backend.tenant)
        for session_id in ("s1", "s2"):
            assert away.open().append(session_id, say(1)).durable is False
        away.close()
        return
    manager = backend.open(max_buffer_messages=6)
    for session_id in ("s1", "s2", "s3"):
        manager.add_messages(session_id, talk(12, words=40))
        manager.get_context(session_id)
    manager.wait_for_folds()
    if name == "import":
        with (folder / "archive.jsonl").open("wb") as file:
            assert manager.retention.export_session("s1", file.write) is not None
    assert backend.database_url is not None
    with psycopg.connect(backend.database_url) as connection:
        ago = "UPDATE memory_sessions SET updated_at = now() - interval '1 day' WHERE tenant = %s"
        connection.execute(ago, (backend.tenant,))


def on_a_terminal(*arguments: str) -> tuple[int, str, str]:
    """Run a command whose standard error is a terminal; answers its exit code, its result, and all that was shown."""
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other side has gone
                return
            if not piece:
                return
            shown.extend(piece)

    process = subprocess.Popen(
        [sys.executable, "-m", "contract_engine.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        text=True,
    )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        out, _ = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
        reader.join()
        os.close(ours)
    return process.returncode, out, shown.decode("utf-8", "replace")


def frames_of(shown: str) -> list[tuple[int, int, str]]:
    """Return how far every frame says it is, of how much, and of what."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    return [(int(done), int(total), unit) for done, total, unit in re.findall(r"(\d+)/(\d+) (\w+)", text)]


def assert_shown(shown: str, unit: str, total: int | None) -> None:
    frames = frames_of(shown)
    assert frames, shown
    assert {frame[2] for frame in frames} == {unit}
    done, of, _ = frames[-1]
    assert done == of > 0, "the last frame is the whole"
    assert total in (None, of)
    counts = [frame[0] for frame in frames]
    assert "━" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") > 0, "the cursor is given back"
    assert shown.rstrip().endswith("\x1b[2K"), "the bar is taken down"
    assert len(counts) > 1


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_long_command_shows_how_far_it_is(blocking: Backend, older: Older, tmp_path: Path, name: str) -> None:
    prepare(blocking, name, older, tmp_path)
    arguments, unit, total = COMMANDS[name]
    given = [part.format(folder=tmp_path, url=older.url, table=older.table) for part in arguments]
    servers = ["--redis-url", blocking.redis_url, "--database-url", str(blocking.database_url)]
    code, out, shown = on_a_terminal(*given, *servers, "--tenant", blocking.tenant, "--json")
    assert code == 0, shown
    assert isinstance(json.loads(out), dict)
    assert_shown(shown, unit, total)


def test_a_migration_shows_how_far_it_is(private_servers: PrivateServers) -> None:
    servers = private_servers(redis=False, migrate=False)
    code, out, shown = on_a_terminal("migrate", "--database-url", servers.database_url, "--json")
    assert code == 0, shown
    assert_shown(shown, "revisions", len(json.loads(out)["steps"]))
