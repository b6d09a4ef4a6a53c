"""How Alembic reaches the database: always online, one migrator at a time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from contract_engine.memory._tables import metadata
from contract_engine.memory.config import MemoryConfig
from contract_engine.schema import VERSION_TABLE

# Any number will do that nobody else takes an advisory lock on; this one spells "cemem".
MIGRATION_LOCK = 0x63656D656D


def database_url() -> str:
    """Return the address given by the caller, else the one of the environment."""
    url = context.config.attributes.get("database_url") or MemoryConfig.from_env().database_url
    if url is None:
        raise SystemExit("No database: set DATABASE_URL, for example postgresql://user:password@localhost/memory")
    return str(url)


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    """Leave other people's tables in the same database alone."""
    return kind != "table" or (name or "").startswith("memory_")


def told_of(*_: object, **__: object) -> None:
    """Tell whoever called that one more migration is applied or taken back."""
    if (advance := context.config.attributes.get("advance")) is not None:
        advance()


def run() -> None:
    """Migrate in one transaction, after any other migrator, and giving up rather than queueing before the writers."""
    engine = sa.create_engine(database_url(), poolclass=sa.pool.NullPool, connect_args={"connect_timeout": 10})
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        connection.execute(sa.text("SET lock_timeout = '10s'"))
        connection.commit()
        try:
            context.configure(
                connection=connection,
                target_metadata=metadata,
                version_table=VERSION_TABLE,
                include_name=include_name,
                compare_server_default=True,
                on_version_apply=told_of,
            )
            with context.begin_transaction():
                context.run_migrations()
        finally:
            connection.rollback()
            connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
            connection.commit()
    engine.dispose()


if context.is_offline_mode():
    raise SystemExit("Offline migrations are not supported: these run against a live database.")
run()
