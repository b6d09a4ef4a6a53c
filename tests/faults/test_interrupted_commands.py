"""Commands that are told to end, once and many times, in the middle of what they do."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dual_stores import open_store
from legacy_stores import ListStore
from legacy_tables import Older, said
from memory_contract import Backend, say, talk
from server_faults import blocked_by, waited_for
from servers import PrivateServers
from test_top_on_servers import own_home, servers_in

from contract_engine.cli.signals import ENDING, end_in_order, end_once
from contract_engine.memory import MemoryManager
from contract_engine.schema import upgrade

pytest_plugins = ("memory_fixtures",)

HERE = Path(__file__).parent

LEGACY = ListStore()
"""What ``relay`` finds under ``test_interrupted_commands:LEGACY``."""

COMMANDS = {
    "purge": ("purge", "--older-than", "1s", "--yes"),
    "erase": ("erase", "s", "--yes"),
    "export": ("export", "--all", "--folder", "{folder}/out"),
    "import": ("import", "{folder}/archive.jsonl", "--session", "copy"),
    "backfill": ("backfill", "--legacy-url", "{url}", "--table", "{table}"),
    "parity": ("parity", "--legacy-url", "{url}", "--table", "{table}"),
    "relay": ("relay", "--legacy", "test_interrupted_commands:LEGACY"),
    "drain": ("drain",),
    "resummarize": ("resummarize", "s"),
    "replay": ("replay", "{folder}/chat.jsonl"),
}
AGAIN_CODES = {"parity": (0, 1)}
"""What a command that is called again may answer, where that is not 0 alone."""

LOGGED = {"s": 12, "relayed": 1}
"""How many messages of each session the log has at first."""
LOGGED_AFTER = {
    "purge": {},
    "erase": {"relayed": 1},
    "export": LOGGED | {"waits": 1},
    "import": LOGGED | {"copy": 12},
    "backfill": LOGGED | {"old": 29},
    "drain": LOGGED | {"waits": 1},
    "replay": LOGGED | {"chat": 4},
}
"""And when a command has done its work, where that changes it."""


@pytest.fixture
def older(redis_url: str, database_url: str, tenant: str) -> Iterator[Older]:
    with ExitStack() as stack:
        yield Older(database_url, redis_url, tenant, stack)


def prepare(backend: Backend, older: Older, folder: Path) -> None:
    """Give every command something to do."""
    manager: MemoryManager = backend.open(max_buffer_messages=6)
    manager.add_messages("s", talk(12, words=40))
    manager.get_context("s")
    manager.wait_for_folds()
    (folder / "archive.jsonl").write_bytes(exported(backend, "s"))
    (folder / "chat.jsonl").write_text(json.dumps({"id": "chat", "messages": talk(4)}) + "\n", "utf-8")
    older.fill("old", [said(number) for number in range(1, 30)])
    open_store(backend, LEGACY).add_chat_message("relayed", say(1))
    away = Backend(backend.colour, backend.mode, backend.redis_url, "postgresql://127.0.0.1:1/x", backend.tenant)
    assert away.open().append("waits", say(1)).durable is False
    away.close()


def logged(watcher: psycopg.Connection[Any], tenant: str) -> dict[str, int]:
    """Return how many messages of each session the log has."""
    query = "SELECT session_id, count(*) FROM memory_messages WHERE tenant = %s GROUP BY session_id"
    return dict(watcher.execute(query, (tenant,)).fetchall())


def assert_archived(backend: Backend, folder: Path) -> None:
    """The files have all that is in the sessions, and there are no others: nothing is left of what was begun."""
    made = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert made == {f"{name}.jsonl": exported(backend, name) for name in LOGGED_AFTER["export"]}
    assert made["s.jsonl"] == (folder / "archive.jsonl").read_bytes()


def assert_copied(backend: Backend, folder: Path) -> None:
    """The session that was imported is the archive, line for line but for its name and the sum of all of it."""
    assert exported(backend, "copy").splitlines()[1:-1] == (folder / "archive.jsonl").read_bytes().splitlines()[1:-1]


def exported(backend: Backend, session_id: str) -> bytes:
    archive = io.BytesIO()
    assert backend.open().retention.export_session(session_id, archive.write) is not None
    return archive.getvalue()


DONE = {"export": assert_archived, "import": assert_copied}
"""What else a command has brought about when it was called again."""


@pytest.mark.parametrize(
    ("name", "number"), list(zip(COMMANDS, itertools.cycle([signal.SIGTERM, signal.SIGINT]), strict=False))
)
def test_a_command_that_is_told_to_end_does_so_and_can_be_called_again(
    blocking: Backend, older: Older, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    """A lock on a table holds the command where it is at work; the signal comes then."""
    prepare(blocking, older, tmp_path)
    assert blocking.database_url is not None
    given = [part.format(folder=tmp_path, url=older.url, table=older.table) for part in COMMANDS[name]]
    servers = ["--redis-url", blocking.redis_url, "--database-url", blocking.database_url, "--tenant", blocking.tenant]
    command = [sys.executable, "-m", "contract_engine.cli", *given, *servers]
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "CONTRACT_MEMORY_DATABASE_TIMEOUT_SECONDS": "60"}
    with psycopg.connect(blocking.database_url, autocommit=True) as watcher:
        with psycopg.connect(blocking.database_url) as holder:
            tables = "memory_sessions, memory_messages, memory_relays"
            holder.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
            assert waited_for(lambda: process.poll() is not None or bool(blocked_by(holder)), 60)
            assert process.poll() is None, process.communicate()
            process.send_signal(number)
            if name == "relay":
                time.sleep(0.5)  # its threads end with the statements they are at
                holder.rollback()
            out, err = process.communicate(timeout=90)
        assert process.returncode == (130 if number == signal.SIGINT else 143), err
        assert "Traceback" not in out + err
        before = logged(watcher, blocking.tenant)
        assert before == LOGGED, "it was held before it had done anything"
        again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
        assert again.returncode in AGAIN_CODES.get(name, (0,)), again.stderr
        assert logged(watcher, blocking.tenant) == LOGGED_AFTER.get(name, LOGGED)
    if name in DONE:
        DONE[name](blocking, tmp_path)


ENDINGS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def command_of(backend: Backend, *arguments: str) -> list[str]:
    servers = ["--redis-url", backend.redis_url, "--database-url", str(backend.database_url)]
    return [sys.executable, "-m", "contract_engine.cli", *arguments, *servers, "--tenant", backend.tenant, "--json"]


def stopped(command: list[str], holder: psycopg.Connection[Any], number: signal.Signals) -> tuple[int, str, str]:
    """End a command when it waits for what ``holder`` has locked."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waited_for(lambda: process.poll() is not None or bool(blocked_by(holder)), 60)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(("number", "code"), ENDINGS)
def test_an_import_of_several_sessions_that_is_stopped_half_way_goes_on(
    blocking: Backend, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    manager = blocking.open()
    names = [f"s{place}" for place in range(8)]
    archive = io.BytesIO()
    for name in names:
        manager.add_messages(name, talk(5))
        assert manager.retention.export_session(name, archive.write) is not None
    (tmp_path / "all.jsonl").write_bytes(archive.getvalue())
    manager.retention.erase(names)
    command = command_of(blocking, "import", str(tmp_path / "all.jsonl"), "--skip-existing")
    with psycopg.connect(str(blocking.database_url)) as holder:
        holder.execute(
            "INSERT INTO memory_sessions (tenant, session_id, epoch) VALUES (%s, 's5', 1)", (blocking.tenant,)
        )
        ended, out, err = stopped(command, holder, number)
        holder.rollback()
    assert (ended, out) == (code, ""), err
    assert "Traceback" not in err
    with psycopg.connect(str(blocking.database_url), autocommit=True) as watcher:
        assert logged(watcher, blocking.tenant) == dict.fromkeys(names[:5], 5), "those before it, each whole"
        again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert again.returncode == 0, again.stderr
        done = json.loads(again.stdout)
        assert (done["sessions"], done["skipped"]) == (3, names[:5])
        assert logged(watcher, blocking.tenant) == dict.fromkeys(names, 5)


@pytest.mark.parametrize(("number", "code"), ENDINGS)
def test_an_export_of_all_that_is_stopped_half_way_goes_on(
    blocking: Backend, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    manager = blocking.open()
    names = [f"s{place:03d}" for place in range(200)]
    for name in names:
        manager.add_messages(name, talk(2))
    command = command_of(blocking, "export", "--all", "--folder", str(tmp_path), "--resume")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waited_for(lambda: len(list(tmp_path.glob("*.jsonl"))) > 2, 60)
    with psycopg.connect(str(blocking.database_url)) as holder:
        holder.execute("LOCK TABLE memory_summaries IN ACCESS EXCLUSIVE MODE")
        made = {path.name for path in tmp_path.glob("*.jsonl")}
        assert process.poll() is None, "it is held where some of it is done"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), err
    assert "Traceback" not in err
    files = {path.name for path in tmp_path.iterdir()}
    assert made <= files < {f"{name}.jsonl" for name in names}, "each is whole or not there"
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    done = json.loads(again.stdout)
    assert (done["sessions"], done["skipped"]) == (len(names) - len(files), len(files))
    for name in names:
        archive = io.BytesIO()
        manager.retention.export_session(name, archive.write)
        assert (tmp_path / f"{name}.jsonl").read_bytes() == archive.getvalue()


@pytest.mark.parametrize(("number", "code"), ENDINGS)
def test_a_replay_that_is_stopped_half_way_is_started_over(
    blocking: Backend, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """What is there looks like a session of somebody: it is not taken up, nor cleared without being told to."""
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"id": "long", "messages": talk(400)}) + "\n", "utf-8")
    assert blocking.database_url is not None
    servers = ["--redis-url", blocking.redis_url, "--database-url", blocking.database_url, "--tenant", blocking.tenant]
    command = [sys.executable, "-m", "contract_engine.cli", "replay", str(file), *servers]
    with psycopg.connect(blocking.database_url, autocommit=True) as watcher:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert waited_for(lambda: logged(watcher, blocking.tenant).get("long", 0) > 3, 60)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert out == ""
        assert "'long' was stopped half way" in err
        left = logged(watcher, blocking.tenant)["long"]
        assert 3 < left < 400, "it was not stopped on its way"
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 2
        assert "--replace" in refused.stderr
        assert logged(watcher, blocking.tenant)["long"] == left
        over = subprocess.run(
            [*command, "--replace", "--json"], capture_output=True, text=True, timeout=120, check=False
        )
        assert over.returncode == 0, over.stderr
        assert logged(watcher, blocking.tenant) == {"long": 400}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_migration_that_is_stopped_has_changed_nothing(
    private_servers: PrivateServers, number: signal.Signals, code: int
) -> None:
    """A lock on a table of its last revision holds it where all but that one are done."""
    url = private_servers(redis=False, migrate=False).database_url
    upgrade(url)
    command = [sys.executable, "-m", "contract_engine.cli", "migrate", "--database-url", url, "--json"]
    steps = json.loads(
        subprocess.run([*command, "--down", "base", "--dry-run"], capture_output=True, check=True).stdout
    )
    oldest = steps["steps"][-1]["revision"]
    subprocess.run([*command, "--down", oldest, "--yes"], capture_output=True, check=True)
    with psycopg.connect(url, autocommit=True) as watcher:
        tables = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'memory%'"
        before = watcher.execute(tables).fetchall()
        with psycopg.connect(url) as holder:
            # What it notes at each step.
            holder.execute("LOCK TABLE memory_schema_version IN ACCESS EXCLUSIVE MODE")
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert waited_for(lambda: process.poll() is not None or bool(blocked_by(holder)), 60)
            assert process.poll() is None, process.communicate()
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert out == ""
        assert "Traceback" not in err
        assert watcher.execute(tables).fetchall() == before
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["from"] == oldest
    assert len(json.loads(again.stdout)["steps"]) == len(steps["steps"]) - 1


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_no_server_of_the_command_behind(
    first: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers that the command has started for itself take a while to stop, and the others come meanwhile."""
    with own_home(monkeypatch) as home:
        file = Path(home) / "endless.jsonl"
        messages = [{"role": "user", "content": f"number {place}"} for place in range(100_000)]
        file.write_text(json.dumps({"id": "endless", "messages": messages}) + "\n", "utf-8")
        command = [sys.executable, "-m", "contract_engine.cli", "replay", str(file)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert "started here" in process.stderr.readline()
            assert servers_in(home)
            process.send_signal(first)
            sent = 0
            while process.poll() is None and sent < 600:
                time.sleep(0.05)
                process.send_signal(signal.SIGTERM if sent % 2 else signal.SIGINT)
                sent += 1
            err = process.stderr.read()
            assert process.wait(30) in (130, 143), err
        assert sent >= 2, "the further signals came too late to prove anything"
        assert servers_in(home) == []


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_comes_while_further_ones_are_shut_out_is_one_of_them(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    set_handler = signal.signal
    came: list[signal.Signals] = []

    def late(of: signal.Signals, handler: Any) -> object:
        if not came:
            came.append(number)
            signal.raise_signal(number)
        return set_handler(of, handler)

    before = {one: signal.getsignal(one) for one in ENDING}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    try:
        end_in_order()
        monkeypatch.setattr(signal, "signal", late)
        try:
            end_once()
        except KeyboardInterrupt:  # which would end the run of the tests
            pytest.fail("it was raised")
        assert came == [number]
        assert [signal.getsignal(one) for one in ENDING] == [signal.SIG_IGN] * len(ENDING)
    finally:
        monkeypatch.undo()
        for one, handler in before.items():
            signal.signal(one, handler)


def test_a_signal_that_was_ignored_from_the_start_stays_so() -> None:
    """As with nohup, when the terminal is closed."""
    program = """
import os, signal
from contract_engine.cli import app, main

@app.app.command()
def long() -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    print("went on", flush=True)

signal.signal(signal.SIGHUP, signal.SIG_IGN)
main()
"""
    done = subprocess.run([sys.executable, "-c", program, "long"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
