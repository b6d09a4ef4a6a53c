"""One server process each: find its program, start it, ask whether it is the one we mean, end it."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract_engine._server_programs import (
    OURSELVES,
    POSTGRES,
    REDIS,
    Account,
    ServerStartError,
    environment,
    find_program,
    run,
)

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
START_SECONDS = 30.0
START_ATTEMPTS = 6
STOP_SECONDS = 10.0


class Record(msgspec.Struct, frozen=True):
    """What ``state.json`` says about a server; it may be long gone, and its pid another program's."""

    pid: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]


class ServerProcess(ABC):
    """One server process in ``home/<name>``, with its log beside it."""

    name: ClassVar[str]
    stop_signals: ClassVar[tuple[signal.Signals, ...]]

    def __init__(self, home: Path, *, password: str, durable: bool, directories: Sequence[Path]) -> None:
        self.home = home
        self.directory = home / self.name
        self.log = home / f"{self.name}.log"
        self.password = password
        self.directories = directories
        self.durable = durable
        self.record = Record(pid=0, port=0)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where the server listens, password included."""

    @abstractmethod
    def prepare(self, account: Account) -> Path:
        """Make the data directory ready and return the program to run."""

    @abstractmethod
    def command(self, program: Path, port: int) -> tuple[list[str], bytes]:
        """Return the command line and what the program reads from its standard input."""

    @abstractmethod
    def answers(self) -> bool:
        """Ask the server at our address whether it is the recorded process working in our directory."""

    def account(self) -> Account:
        return OURSELVES

    def ensure(self, previous: Record | None) -> None:
        """Use the recorded server when it runs and is ours, else start one, on the recorded port if that is free."""
        if previous is not None:
            self.record = previous
            deadline = time.monotonic() + START_SECONDS
            alive = works_in(previous.pid, self.directory)
            if self.answers() or (alive and self._wait_for_answer(deadline)):
                return
            if works_in(previous.pid, self.directory):
                raise ServerStartError(self.name, f"process {previous.pid} works in {self.directory} but is silent")
        self.stop()
        account = self.account()
        program = self.prepare(account)
        deadline = time.monotonic() + START_SECONDS
        for attempt in range(START_ATTEMPTS):
            port = _free_port(self.record.port if attempt < 2 else 0)
            self._launch(program, port, account)
            if self._wait_for_answer(deadline):
                logger.info("started %s, pid %d, port %d", self.name, self.record.pid, port)
                return
            silent = self.process is not None and self.process.poll() is None
            self.stop()
            if silent:
                raise ServerStartError(self.name, f"no answer within {START_SECONDS:.0f} s", output=_tail(self.log))
            # It exited: the port was taken meanwhile, or backends of a killed postmaster are still leaving.
            time.sleep(0.2 * attempt)
        raise ServerStartError(self.name, "it exits at once", output=_tail(self.log))

    def stop(self) -> None:
        """End our process with ever firmer signals; Popen signals no pid that was reaped and given to another."""
        if self.process is None:
            return
        for number in self.stop_signals:
            self.process.send_signal(number)
            self.process.send_signal(signal.SIGCONT)  # a stopped process would not see the signal before
            try:
                self.process.wait(STOP_SECONDS)
                break
            except subprocess.TimeoutExpired:
                logger.warning("%s (pid %d) ignores %s", self.name, self.process.pid, number.name)
        self.process = None

    def _launch(self, program: Path, port: int, account: Account) -> None:
        command, text = self.command(program, port)
        with self.log.open("ab") as log:
            self.process = process = subprocess.Popen(  # noqa: S603  # no shell
                command,
                cwd=self.directory,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for the application, which then stops us in order
                user=account.user,
                group=account.group,
                extra_groups=account.extra_groups,
            )
        self.record = Record(pid=process.pid, port=port)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(text)

    def _wait_for_answer(self, deadline: float) -> bool:
        while time.monotonic() < deadline and (self.process is None or self.process.poll() is None):
            if self.answers():
                return True
            time.sleep(0.03)
        return False


class RedisProcess(ServerProcess):
    name = "redis"
    stop_signals = (signal.SIGTERM, signal.SIGKILL)

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{LOOPBACK}:{self.record.port}/0"

    def prepare(self, account: Account) -> Path:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        return find_program(REDIS, self.directories, account=account, copies=self.home / "programs")

    def command(self, program: Path, port: int) -> tuple[list[str], bytes]:
        # Through standard input, because any user of the machine may read command lines.
        settings = [
            f"bind {LOOPBACK}",
            f"port {port}",
            f"requirepass {self.password}",
            'save ""',
            f"appendonly {'yes' if self.durable else 'no'}",
        ]
        return [str(program), "-"], "\n".join(settings).encode()

    def answers(self) -> bool:
        try:
            with redis.Redis.from_url(
                self.url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
            ) as client:
                client.ping()  # unlike INFO it is refused while a file is being loaded
                server = client.info("server")
        except redis.RedisError:
            return False
        return isinstance(server, dict) and server.get("process_id") == self.record.pid


class PostgresProcess(ServerProcess):
    name = "postgres"
    stop_signals = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)  # fast, immediate, dead

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{self.password}@{LOOPBACK}:{self.record.port}/postgres"

    def account(self) -> Account:
        if os.geteuid() != 0:
            return OURSELVES
        if self.directory.exists():
            owner = self.directory.stat()
            return Account(owner.st_uid, owner.st_gid, [])
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                user = pwd.getpwnam(name)
                return Account(user.pw_uid, user.pw_gid, [])
        raise ServerStartError(self.name, "it refuses to run as root, and no user postgres or nobody exists")

    def prepare(self, account: Account) -> Path:
        if run(["/bin/sh", "-c", 'cd "$0"', str(self.home)], account).returncode:
            raise ServerStartError(
                self.name,
                f"it refuses to run as root, and user {account.user} cannot enter {self.home}: "
                "choose a data_dir below directories that others may enter, such as /var/lib or /tmp",
            )
        marker = self.directory / "PG_VERSION"
        if not marker.exists():
            initdb = self._find_initdb(account, version="")
            self._initialize(initdb, account)
            return initdb.with_name("postgres")
        # PostgreSQL takes any living process of its user for the owner of this file, and refuses to start.
        lock_pid = self._lock_pid()
        if Path(f"/proc/{lock_pid}").exists() and not works_in(lock_pid, self.directory):
            (self.directory / "postmaster.pid").unlink(missing_ok=True)
        return self._find_initdb(account, version=marker.read_text().strip()).with_name("postgres")

    def command(self, program: Path, port: int) -> tuple[list[str], bytes]:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": port,
            "unix_socket_directories": "",  # the path of a socket may have 107 bytes at most
            "max_connections": 100,
            "shared_buffers": "32MB",
            "fsync": "on" if self.durable else "off",
            "full_page_writes": "on" if self.durable else "off",
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(program), "-D", str(self.directory), *flags], b""

    def answers(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=2, autocommit=True) as connection:
                row = connection.execute("SHOW data_directory").fetchone()
        except psycopg.Error:
            return False
        return row == (str(self.directory),) and self._lock_pid() == self.record.pid

    def _find_initdb(self, account: Account, *, version: str) -> Path:
        return find_program(POSTGRES, self.directories, account=account, version=version, copies=self.home / "programs")

    def _lock_pid(self) -> int:
        try:
            return int((self.directory / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return 0

    def _initialize(self, initdb: Path, account: Account) -> None:
        """Create the cluster beside its place and move it there when complete: a killed initdb leaves half of one."""
        fresh, secret = self.home / "postgres.new", self.home / "postgres.secret"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        secret.unlink(missing_ok=True)
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if account.user is not None and account.group is not None:
            os.chown(fresh, account.user, account.group)
            os.chown(secret, account.user, account.group)
        options = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C"]
        if not self.durable:
            options.append("--no-sync")
        done = run([str(initdb), "-D", str(fresh), *options], account)
        secret.unlink()
        if done.returncode:
            raise ServerStartError(self.name, "initdb failed", output=done.stdout[-2000:])
        fresh.rename(self.directory)


def works_in(pid: int, directory: Path) -> bool:
    """Tell whether a living process has ``directory`` as its working directory; always False without /proc."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(directory)
    except OSError:
        return False


def _free_port(wanted: int) -> int:
    """Return ``wanted`` if nobody listens there, else any free port; someone may still take it before we do."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return int(probe.getsockname()[1])
    raise ServerStartError("socket", f"no free port on {LOOPBACK}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""
