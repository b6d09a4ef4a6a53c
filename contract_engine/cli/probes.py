"""What the servers say about themselves when they are asked once: for the doctor, and for who migrates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TypeVar

import psycopg
import redis
import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
from redis import exceptions as redis_exc

from contract_engine import schema
from contract_engine.cli.nodes import open_client, redis_failures, redis_info
from contract_engine.memory._runtime.database import Database
from contract_engine.memory._runtime.failures import database_failure
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.daemon import start_daemon
from contract_engine.memory.errors import ConfigurationError, DeadlineExceededError

T = TypeVar("T")

CALL_SECONDS = 2.0
"""What one answer of a server may take."""

DURABILITY_SETTINGS = ("fsync", "synchronous_commit", "full_page_writes")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisFacts:
    """A Redis that answers; None where it does not tell."""

    server: str
    version: str
    role: str
    maxmemory: int
    policy: str
    appendonly: bool
    appendfsync: str | None
    save: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """A PostgreSQL that answers; ``revision`` is None where no migration was ever applied."""

    version: str
    version_number: int
    is_standby: bool
    revision: str | None
    settings: Mapping[str, str]


def redis_facts(url: str) -> RedisFacts:
    """Ask one Redis; raises RedisUnavailableError or StoreMisconfiguredError."""
    with redis_failures(), open_client(url, timeout_seconds=CALL_SECONDS, decode_responses=True) as client:
        client.eval("return 1", 0)  # everything we do there is a script; an ACL may forbid them
        info = redis_info(client, "server", "memory", "persistence", "replication")
        settings = _redis_settings(client)
    return RedisFacts(
        server=str(info.get("server_name", "redis")),
        version=str(info.get("valkey_version", info.get("redis_version", "0"))),
        role=str(info.get("role", "master")),
        maxmemory=int(info.get("maxmemory", 0)),
        policy=str(info.get("maxmemory_policy", "noeviction")),
        appendonly=bool(info.get("aof_enabled")),
        appendfsync=settings.get("appendfsync"),
        save=settings.get("save"),
    )


def database_facts(url: str) -> DatabaseFacts:
    """Ask a PostgreSQL; raises DatabaseUnavailableError or StoreMisconfiguredError."""

    def ask(connection: sa.Connection) -> DatabaseFacts:
        def value(sql: str) -> str:
            return str(connection.execute(sa.text(sql)).scalar_one())

        return DatabaseFacts(
            version=value("SHOW server_version").split(" ", 1)[0],
            version_number=int(value("SHOW server_version_num")),
            is_standby=value("SELECT pg_is_in_recovery()") == "True",
            revision=schema.current(connection),
            settings={name: value(f"SHOW {name}") for name in DURABILITY_SETTINGS},
        )

    return _with_database(url, ask)


def schema_revision(url: str) -> str | None:
    """Return the revision a database is at."""
    return _with_database(url, schema.current)


def planned(current: str | None, revision: str, *, down: bool) -> list[schema.Step]:
    """Return what :func:`migrate` would apply or take back, in that order; an unknown revision is refused."""
    from alembic.util.exc import CommandError  # as below

    try:
        return schema.steps(current, revision, down=down)
    except CommandError as exc:
        known = ", ".join(step.revision for step in schema.steps(None, "head", down=False))
        raise ConfigurationError("revision", f"{exc}; this version of the package has {known}") from exc


def migrate(url: str, revision: str, *, down: bool, advance: Callable[[], object]) -> None:
    """Apply or take back migrations; ``advance`` is called after each. An unknown revision is a ConfigurationError."""
    # Alembic takes most of a second to import, and no other command needs it.
    from alembic.util.exc import CommandError

    try:
        if down:
            schema.downgrade(url, revision, advance=advance)
        else:
            schema.upgrade(url, revision, advance=advance)
    except CommandError as exc:
        raise ConfigurationError("revision", str(exc)) from exc
    except sa_exc.SQLAlchemyError as exc:
        raise database_failure(exc) or exc from exc


def within(seconds: float, action: Callable[[], T]) -> T:
    """Return what ``action`` returns, or raise DeadlineExceededError when the time is up.

    It then goes on in a thread nobody waits for: resolving a name cannot be interrupted.
    """
    asked = start_daemon(action, "contract-memory probe")
    wait((asked,), seconds)
    if not asked.done():
        raise DeadlineExceededError(f"no answer within {seconds:g} s")
    return asked.result()


def _redis_settings(client: redis.Redis) -> dict[str, str]:
    """Read what INFO does not tell; hosted servers often forbid it."""
    try:
        answer = {**client.config_get("appendfsync"), **client.config_get("save")}
    except redis_exc.ResponseError:
        return {}
    return {str(name): str(value) for name, value in answer.items()}


def _with_database(url: str, body: Callable[[sa.Connection], T]) -> T:
    database = Database(url, timeout=CALL_SECONDS, pool_size=1, breaker=CircuitBreaker(name="probe"))
    try:
        return database.transaction(body)
    except psycopg.ProgrammingError as exc:
        # What has no SQLSTATE was never sent: the URL names an option that libpq does not know.
        raise ConfigurationError("database_url", str(exc).partition("\n")[0]) from exc
    finally:
        database.close()
