"""The schema of the database: bring it up to date, take it back, ask where it stands.

The migrations are Alembic's and lie in ``migrations/`` of a checkout, or inside the package where a wheel is
installed. Alembic is imported where it is used: it takes most of a second, which no orchestrator should pay.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from contract_engine.memory.config import psycopg_url

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "memory_schema_version"

# Alembic keeps its state in module globals: one migration per process. Between processes the database's lock decides.
_one_at_a_time = threading.Lock()


class Step(NamedTuple):
    """One migration: its revision, and what it is about."""

    revision: str
    title: str


def upgrade(database_url: str, revision: str = "head", *, advance: Callable[[], object] | None = None) -> None:
    """Apply the migrations up to ``revision``, in one transaction; two processes doing so at once wait for each other.

    ``advance`` is called after each of them.
    """
    from alembic import command  # costs most of a second

    with _one_at_a_time:
        command.upgrade(_config(database_url, advance), revision)


def downgrade(database_url: str, revision: str, *, advance: Callable[[], object] | None = None) -> None:
    """Take the migrations back to ``revision`` (``base`` drops every table with what it holds)."""
    from alembic import command  # costs most of a second

    with _one_at_a_time:
        command.downgrade(_config(database_url, advance), revision)


def steps(current: str | None, revision: str, *, down: bool) -> list[Step]:
    """Return the migrations between ``current`` and ``revision``, in the order they are applied or taken back."""
    from alembic.script import ScriptDirectory  # costs most of a second

    scripts = ScriptDirectory.from_config(_config("postgresql://unused"))
    row = list(scripts.walk_revisions())[::-1]  # each stands on the one before

    def height(end: str) -> int:
        at: Any = scripts.get_revision(end)  # None for base; refuses what this package does not have
        return 0 if at is None else row.index(at) + 1

    now, goal = height(current or "base"), height(revision)
    found = row[goal:now][::-1] if down else row[now:goal]
    return [Step(one.revision, (one.doc or "").rstrip(".")) for one in found]


def head() -> str:
    """Return the revision this version of the package needs."""
    from alembic.script import ScriptDirectory  # costs most of a second

    found = ScriptDirectory.from_config(_config("postgresql://unused")).get_current_head()
    assert found is not None, "the package ships at least one migration"
    return found


def current(connection: sa.Connection) -> str | None:
    """Return the revision the database is at, or None where nothing was ever applied."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.execute(
        sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))
    ).scalar()
    return revision


def migrations_path() -> Path:
    """Return the directory that holds the migrations."""
    installed = Path(str(resources.files("contract_engine"))) / "migrations"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "migrations"


def _config(database_url: str, advance: Callable[[], object] | None = None) -> Config:
    from alembic.config import Config  # costs most of a second

    config = Config()
    config.set_main_option("script_location", str(migrations_path()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["database_url"] = psycopg_url(database_url)
    config.attributes["advance"] = advance
    return config
