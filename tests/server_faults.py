"""What can happen to a server process, done by pid, each with the proof that it happened.

A pair of servers belongs to whoever harms it: ``contract_engine.embedded`` starts it, and its ``start()`` brings back
what was killed, on the same port.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
from memory_contract import Backend

from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import MemoryManager

DEATH_SECONDS = 10.0
REDIS_SECONDS = 0.2
DATABASE_SECONDS = 1.0
RECOVERY_SECONDS = 0.3
SETTINGS: dict[str, Any] = {
    "redis_timeout_seconds": REDIS_SECONDS,
    "database_timeout_seconds": DATABASE_SECONDS,
    "breaker_failure_threshold": 3,
    "breaker_recovery_seconds": RECOVERY_SECONDS,
}
"""Settings of a manager that notices quickly what became of its servers."""


class NoFaultError(AssertionError):
    """A fault was to be caused, and was not."""


class ServerFaults:
    """Kills, stops and starves one Redis and one PostgreSQL; either may be missing or belong to another pair."""

    def __init__(self, *, redis_server: EmbeddedServers | None = None, database: EmbeddedServers | None = None) -> None:
        self._redis_server = redis_server
        self._database = database
        self._stopped: list[psutil.Process] = []

    # -- Redis

    @property
    def redis_server(self) -> EmbeddedServers:
        assert self._redis_server is not None, "no Redis to harm"
        return self._redis_server

    def redis(self, *, timeout: float = 5.0) -> redis.Redis:
        """Return a client of its own; close it."""
        return redis.Redis.from_url(self.redis_server.redis_url, socket_timeout=timeout, socket_connect_timeout=timeout)

    def ping_redis(self) -> None:
        with self.redis(timeout=0.1) as client:
            client.ping()

    def kill_redis(self) -> int:
        """Kill Redis with SIGKILL and return the pid it had."""
        process = psutil.Process(self.redis_server.redis_pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(DEATH_SECONDS)
        self._must_fail(self.ping_redis, redis.ConnectionError)
        return int(process.pid)

    def stop_redis(self) -> None:
        """Stop Redis with SIGSTOP: its port still accepts, and nobody answers."""
        self._stop([psutil.Process(self.redis_server.redis_pid)])
        self._must_fail(self.ping_redis, redis.TimeoutError)

    def redis_directory(self) -> Path:
        """Return where the running Redis keeps its files."""
        return Path(psutil.Process(self.redis_server.redis_pid).cwd())

    @staticmethod
    def lose_files(directory: Path) -> None:
        """Delete what a dead Redis has written, so that the next one starts empty."""
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def restart_redis(self) -> None:
        """Bring back a dead Redis; returns when it answers."""
        self.redis_server.start()

    def write_before_answering(self) -> None:
        """Have Redis write every command to its file before it answers; see ``soak_faults`` for how.

        A process that is killed takes nothing with it that it has written. What ``always`` does besides is for machines
        that lose power, and would have the tests go by the speed of a disk.
        """
        with self.redis() as client:
            client.config_set("appendfsync", "no")

    def fill_redis(self) -> None:
        """Have Redis be at its limit, and evict nothing."""
        with self.redis() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", 1)
            self._must_fail(lambda: client.set("probe", "x"), redis.OutOfMemoryError)

    def make_room(self) -> None:
        """Have Redis be full no longer."""
        with self.redis() as client:
            client.config_set("maxmemory", 0)

    def stats(self, section: str = "stats") -> dict[str, Any]:
        """Return a section of INFO."""
        with self.redis() as client:
            answer = client.info(section)
        assert isinstance(answer, dict)
        return answer

    def calls(self) -> dict[str, int]:
        """Return how often Redis has run each command, those inside scripts included."""
        return {name.removeprefix("cmdstat_"): facts["calls"] for name, facts in self.stats("commandstats").items()}

    # -- PostgreSQL

    @property
    def database(self) -> EmbeddedServers:
        assert self._database is not None, "no PostgreSQL to harm"
        return self._database

    def kill_database(self) -> frozenset[int]:
        """Kill every process of PostgreSQL with SIGKILL and return the pids they had."""
        postmaster = psutil.Process(self.database.postgres_pid)
        # Stopped first: a backend forked between the look and the kill would outlive its postmaster.
        self._stop([postmaster])
        self._stopped.remove(postmaster)
        processes = [*postmaster.children(recursive=True), postmaster]
        for process in processes:
            _signal(process, signal.SIGKILL)
        left = psutil.wait_procs(processes, DEATH_SECONDS)[1]
        if left:
            raise NoFaultError(f"still alive: {left}")
        self._must_fail(self._ping_database, psycopg.OperationalError)
        return frozenset(process.pid for process in processes)

    def stop_database(self) -> int:
        """Stop every process of PostgreSQL with SIGSTOP and return how many there are."""
        postmaster = psutil.Process(self.database.postgres_pid)
        self._stop([postmaster])
        children = postmaster.children(recursive=True)
        self._stop(children)
        return 1 + len(children)

    def restart_database(self) -> None:
        """Bring back a dead PostgreSQL; returns when it answers and its schema is there."""
        self.database.start()

    def terminate_backends(self, application: str = "contract-memory") -> int:
        """End the connections of an application and return how many there were."""
        return len(self._backends("pid, pg_terminate_backend(pid)", application))

    def backends(self, application: str = "contract-memory") -> int:
        """Return how many connections an application has."""
        return len(self.backend_pids(application))

    def backend_pids(self, application: str = "contract-memory") -> frozenset[int]:
        """Return the processes that serve the connections of an application."""
        return self._backends("pid", application)

    def _backends(self, what: str, application: str) -> frozenset[int]:
        query = f"SELECT {what} FROM pg_stat_activity WHERE application_name = %s"
        with psycopg.connect(self.database.database_url) as connection:
            return frozenset(row[0] for row in connection.execute(query.encode(), (application,)))

    def _ping_database(self) -> None:
        with psycopg.connect(self.database.database_url, connect_timeout=2):
            pass

    # -- both

    def go_on(self) -> None:
        """Have everything that was stopped go on."""
        for process in self._stopped:
            _signal(process, signal.SIGCONT)
        self._stopped.clear()

    def _stop(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            if _signal(process, signal.SIGSTOP):
                self._stopped.append(process)
        deadline = time.monotonic() + DEATH_SECONDS
        while any(_status(process) not in (psutil.STATUS_STOPPED, None) for process in processes):
            if time.monotonic() > deadline:
                raise NoFaultError(f"does not stop: {processes}")
            time.sleep(0.01)

    @staticmethod
    def _must_fail(call: Callable[[], object], expected: type[Exception]) -> None:
        try:
            call()
        except expected:
            return
        raise NoFaultError(f"{call.__name__} still succeeds")


class Outage(ServerFaults):
    """Managers on servers of their own, and what happens to them; ``settings`` are those of every manager."""

    def __init__(self, servers: EmbeddedServers, backend: Backend, settings: Mapping[str, Any] = SETTINGS) -> None:
        super().__init__(redis_server=servers, database=servers)
        self.servers = servers
        self.backend = backend
        self._settings = settings

    def open(self, **settings: Any) -> MemoryManager:
        return self.backend.open(**{**self._settings, **settings})

    def close(self) -> None:
        self.go_on()
        self.backend.close()


def _signal(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal; False where the process has ended. ``psutil`` signals no pid that was given to another one."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def _status(process: psutil.Process) -> str | None:
    try:
        status = process.status()
    except psutil.NoSuchProcess:
        return None
    return None if status == psutil.STATUS_ZOMBIE else str(status)


def waited_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait until the condition holds; False if the time was up before."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def blocked_by(holder: psycopg.Connection[Any]) -> list[int]:
    """Return the processes of PostgreSQL that wait for what this connection has locked."""
    with psycopg.connect(holder.info.dsn, password=holder.info.password, autocommit=True) as watcher:
        found = watcher.execute(
            "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", (holder.info.backend_pid,)
        )
        return [row[0] for row in found]
