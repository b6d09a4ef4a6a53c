"""The real Redis and PostgreSQL the tests run on, found once per process.

Order: ``TEST_REDIS_URL`` and ``TEST_DATABASE_URL``, Docker, programs on the PATH, the wheels. Each server is looked for
on its own, so one may come from the environment and the other from a wheel.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import psycopg
import redis

from contract_engine._server_programs import POSTGRES, REDIS, Program, find_program, program_version, server_directories
from contract_engine.embedded import EmbeddedServers, ServersNotFoundError
from contract_engine.memory.config import psycopg_url
from contract_engine.schema import upgrade

REDIS_IMAGE = "redis:7-alpine"
POSTGRES_IMAGE = "postgres:16-alpine"
URL_VARIABLES = {"redis": "TEST_REDIS_URL", "postgres": "TEST_DATABASE_URL"}


class PrivateServers(Protocol):
    """Start a pair for one test, which may kill, stop and flush it; ``start()`` brings back what died."""

    def __call__(self, *, redis: bool = True, postgres: bool = True, migrate: bool = True) -> EmbeddedServers: ...


@contextmanager
def redis_server() -> Iterator[str]:
    """Yield the URL of the Redis of this process."""
    if url := os.environ.get("TEST_REDIS_URL"):
        yield url
    elif docker_version():
        with _container(REDIS_IMAGE, 6379) as address:
            url = f"redis://{address}/0"
            _wait_until(lambda: _redis_version(url))
            yield url
    else:
        with EmbeddedServers(postgres=False) as servers:
            yield servers.redis_url


@contextmanager
def database_server() -> Iterator[str]:
    """Yield the URL of the migrated PostgreSQL of this process."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        url = _libpq_url(url)
        upgrade(url)
        yield url
    elif docker_version():
        with _container(POSTGRES_IMAGE, 5432, POSTGRES_PASSWORD="contract") as address:
            url = f"postgresql://postgres:contract@{address}/postgres"
            _wait_until(lambda: _postgres_version(url))
            upgrade(url)
            yield url
    else:
        with EmbeddedServers(redis=False, durable=False) as servers:
            yield servers.database_url


def redis_client(url: str) -> redis.Redis:
    """Return a client of Redis as anybody else reaches it, be it one server or a Cluster."""
    if not url.startswith("redis+cluster://"):
        return redis.Redis.from_url(url)
    address = url.removeprefix("redis+cluster").partition(",")[0].rstrip("/")  # one node tells of the others
    return cast("redis.Redis", redis.RedisCluster.from_url(f"redis{address}/"))


def describe() -> str:
    """Return one line that names the servers: kind and version."""
    found = _describe(REDIS, _redis_version, REDIS_IMAGE), _describe(POSTGRES, _postgres_version, POSTGRES_IMAGE)
    return f"servers: {'; '.join(found)}"


def _describe(program: Program, ask: Callable[[str], str], image: str) -> str:
    variable = URL_VARIABLES[program.server]
    if url := os.environ.get(variable):
        try:
            return f"{program.server} {ask(url)} ({variable})"
        except (redis.RedisError, psycopg.Error) as exc:
            return f"{program.server} ({variable}) does not answer: {type(exc).__name__}"
    if version := docker_version():
        return f"{program.server} ({image}, Docker {version})"
    try:
        path = find_program(program, server_directories())
    except ServersNotFoundError as exc:
        return str(exc)
    return f"{program_version(path)} ({path})"


@functools.cache
def docker_version() -> str:
    """Return the version of the Docker engine, "" when none answers within three seconds."""
    docker = shutil.which("docker")
    if docker is None:
        return ""
    try:
        done = subprocess.run(
            [docker, "version", "--format", "{{.Server.Version}}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@contextmanager
def _container(image: str, port: int, **environment: str) -> Iterator[str]:
    # Here, because the import reads Docker's configuration and not every machine has one.
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(image).with_exposed_ports(port)
    for name, value in environment.items():
        container.with_env(name, value)
    with container:
        yield f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"


def _wait_until(ask: Callable[[], str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            ask()
            return
        except (redis.RedisError, psycopg.Error):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _redis_version(url: str) -> str:
    with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
        answer = client.info("server")
    assert isinstance(answer, dict)
    return str(answer["redis_version"])


def _postgres_version(url: str) -> str:
    with psycopg.connect(_libpq_url(url), connect_timeout=2) as connection:
        return str(connection.info.server_version // 10000)


def _libpq_url(url: str) -> str:
    """Return ``url`` as psycopg wants it, also when the environment has SQLAlchemy's form."""
    return psycopg_url(url).replace("postgresql+psycopg://", "postgresql://", 1)
