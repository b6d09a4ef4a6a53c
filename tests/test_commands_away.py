"""Long commands while a server is away: an error that names it, exit code 2, and nothing done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dual_stores import open_store
from legacy_stores import ListStore
from legacy_tables import Older, said
from memory_contract import Backend, say, talk
from typer.testing import CliRunner, Result

from contract_engine.cli.app import app

pytest_plugins = ("memory_fixtures",)

COMMANDS = {
    "purge": ("purge", "--older-than", "8d", "--yes"),
    "erase": ("erase", "s", "--yes"),
    "export": ("export", "--all", "--folder", "{folder}/out"),
    "export s": ("export", "s", "-o", "{folder}/archive.jsonl"),
    "import": ("import", "{folder}/archive.jsonl", "--session", "copy"),
    "backfill": ("backfill", "--legacy-url", "{url}", "--table", "{table}"),
    "parity": ("parity", "--legacy-url", "{url}", "--table", "{table}"),
    "relay": ("relay", "--legacy-url", "{url}", "--table", "{table}"),
    "relay --list": ("relay", "--list"),
    "phase show": ("phase", "show"),
    "phase set": ("phase", "set", "full"),
    "phase end": ("phase", "end", "--yes"),
    "drain": ("drain",),
    "resummarize": ("resummarize", "s"),
    "replay": ("replay", "{folder}/chat.jsonl"),
    "clear": ("clear", "s", "--yes"),
    "show": ("show", "s"),
    "stats": ("stats", "s"),
}
NEED_NO_LOG = {"show": 0}
NEED_NO_REDIS = {
    "backfill": 0,
    "parity": 1,
    "relay": 0,
    "relay --list": 1,
    "phase show": 0,
    "phase set": 0,
    "phase end": 1,
    "resummarize": 1,
    "replay": 0,
    "show": 0,
    "stats": 0,
}
"""What does its work all the same, and how it ends: with 1 where what it finds is no."""


@pytest.fixture
def older(redis_url: str, database_url: str, tenant: str) -> Iterator[Older]:
    with ExitStack() as stack:
        yield Older(database_url, redis_url, tenant, stack)


@pytest.fixture
def command(blocking: Backend, older: Older, tmp_path: Path) -> Callable[..., Result]:
    """Give every command something to do; answers what runs one, against other servers where that is said."""
    blocking.open().add_messages("s", talk(12))
    older.fill("old", [said(number) for number in range(3)])
    open_store(blocking, ListStore()).add_chat_message("relayed", say(1))
    away = Backend(blocking.colour, blocking.mode, blocking.redis_url, "postgresql://127.0.0.1:1/x", blocking.tenant)
    assert away.open().append("waits", say(1)).durable is False
    away.close()
    (tmp_path / "chat.jsonl").write_text(json.dumps({"id": "chat", "messages": talk(4)}) + "\n", "utf-8")

    def run(name: str, *more: str, **servers: str) -> Result:
        given = {"redis_url": blocking.redis_url, "database_url": str(blocking.database_url)} | servers
        parts = [part.format(folder=tmp_path, url=older.url, table=older.table) for part in COMMANDS[name]]
        where = [
            "--redis-url",
            given["redis_url"],
            "--database-url",
            given["database_url"],
            "--tenant",
            blocking.tenant,
        ]
        done = CliRunner().invoke(app, [*parts, *where, *more])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    assert run("export s").exit_code == 0
    with psycopg.connect(str(blocking.database_url)) as connection:
        connection.execute(
            "UPDATE memory_sessions SET updated_at = now() - interval '9 days' WHERE tenant = %s AND session_id = 's'",
            (blocking.tenant,),
        )
    return run


def counted(backend: Backend) -> list[tuple[Any, ...]]:
    """Return what the log has of the tenant."""
    with psycopg.connect(str(backend.database_url)) as connection:
        query = "SELECT session_id, count(*) FROM memory_messages WHERE tenant = %s GROUP BY session_id ORDER BY 1"
        return connection.execute(query, (backend.tenant,)).fetchall()


@pytest.mark.parametrize("name", COMMANDS)
def test_with_postgresql_away(command: Callable[..., Result], blocking: Backend, name: str) -> None:
    before = counted(blocking)
    done = command(name, database_url="postgresql://127.0.0.1:1/x")
    assert done.exit_code == NEED_NO_LOG.get(name, 2), done.stderr
    if name not in NEED_NO_LOG:
        assert "is not cleared everywhere (clear it again)" in done.stderr or (
            "postgres unavailable: " in done.stderr
            and "DATABASE_URL (contract-memory doctor tells more)" in done.stderr
        )
    assert counted(blocking) == before
    assert blocking.opened[0].unlogged_sessions() == ["waits"]


@pytest.mark.parametrize("name", COMMANDS)
def test_with_redis_away(command: Callable[..., Result], blocking: Backend, name: str) -> None:
    before = counted(blocking)
    done = command(name, redis_url="redis://127.0.0.1:1/0")
    assert done.exit_code == NEED_NO_REDIS.get(name, 2), done.stderr
    if name == "clear":
        assert "is not cleared everywhere (clear it again)" in done.stderr
    elif name not in NEED_NO_REDIS:
        assert "redis unavailable: " in done.stderr
        assert "REDIS_URL (contract-memory doctor tells more)" in done.stderr
        assert counted(blocking) == before
    assert blocking.opened[0].unlogged_sessions() == ["waits"]
