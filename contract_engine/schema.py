"""The schema of the database: bring it up to date, take it back, ask where it stands.

The migrations are Alembic's and lie in ``migrations/`` of a checkout, or inside the package where a wheel is
installed. Alembic is imported where it is used: it takes most of a second, which no orchestrator should pay.
"""

from __future__ import annotations

import threading
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from contract_engine.memory.config import psycopg_url

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "memory_schema_version"

# Alembic keeps its state in module globals: one migration per process. Between processes the database's lock decides.
_one_at_a_time = threading.Lock()


def upgrade(database_url: str, revision: str = "head") -> None:
    """Apply the migrations up to ``revision``; two processes doing so at once wait for each other."""
    from alembic import command  # costs most of a second

    with _one_at_a_time:
        command.upgrade(_config(database_url), revision)


def downgrade(database_url: str, revision: str) -> None:
    """Take the migrations back to ``revision`` (``base`` drops every table with what it holds)."""
    from alembic import command  # costs most of a second

    with _one_at_a_time:
        command.downgrade(_config(database_url), revision)


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


def _config(database_url: str) -> Config:
    from alembic.config import Config  # costs most of a second

    config = Config()
    config.set_main_option("script_location", str(migrations_path()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["database_url"] = psycopg_url(database_url)
    return config
