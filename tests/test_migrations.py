"""The schema: up, down, up again, under load, and no difference from the tables the code uses."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from servers import PrivateServers

from contract_engine import schema
from contract_engine.memory import MemoryManager, StoreMisconfiguredError
from contract_engine.memory._tables import metadata
from contract_engine.memory.config import psycopg_url

TABLES = {
    "memory_sessions",
    "memory_messages",
    "memory_summaries",
    "memory_recall",
    "memory_outbox",
    "memory_relays",
    "memory_phases",
}


@pytest.fixture
def empty_url(private_servers: PrivateServers) -> str:
    """A database to which nothing was ever applied."""
    return private_servers(redis=False, migrate=False).database_url


def tables(url: str) -> set[str]:
    engine = sa.create_engine(psycopg_url(url), poolclass=sa.NullPool)
    return set(sa.inspect(engine).get_table_names())


def revision(url: str) -> str | None:
    engine = sa.create_engine(psycopg_url(url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        return schema.current(connection)


def test_up_down_and_up_again(empty_url: str) -> None:
    assert revision(empty_url) is None
    schema.upgrade(empty_url)
    assert tables(empty_url) >= TABLES
    assert revision(empty_url) == schema.head()
    schema.upgrade(empty_url)  # once more is nothing
    schema.downgrade(empty_url, "base")
    assert not tables(empty_url) & TABLES
    schema.upgrade(empty_url)
    assert tables(empty_url) >= TABLES


def test_autogenerate_finds_no_difference(database_url: str) -> None:
    engine = sa.create_engine(psycopg_url(database_url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_server_default": True,
                "include_name": lambda name, kind, _: kind != "table" or name in TABLES,
            },
        )
        assert compare_metadata(context, metadata) == []


def test_every_key_begins_with_tenant_and_session_so_tables_can_be_distributed() -> None:
    for table in metadata.tables.values():
        if table.name == "memory_phases":  # one row for a tenant: it is copied to every place
            continue
        for constraint in table.constraints:
            if isinstance(constraint, sa.PrimaryKeyConstraint | sa.UniqueConstraint):
                assert [column.name for column in constraint.columns][:2] == ["tenant", "session_id"]
            assert not isinstance(constraint, sa.ForeignKeyConstraint)


def test_threads_and_processes_that_migrate_at_once_wait_for_each_other(empty_url: str) -> None:
    code = "import sys; from contract_engine import schema; schema.upgrade(sys.argv[1])"
    others = [subprocess.Popen([sys.executable, "-c", code, empty_url]) for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: schema.upgrade(empty_url), range(3)))
    assert [other.wait(60) for other in others] == [0, 0]
    assert revision(empty_url) == schema.head()


def test_a_missing_schema_says_what_to_run(private_servers: PrivateServers, tenant: str) -> None:
    servers = private_servers(migrate=False)
    with MemoryManager(redis_url=servers.redis_url, database_url=servers.database_url, tenant=tenant) as manager:
        with pytest.raises(StoreMisconfiguredError, match="contract-memory migrate"):
            manager.append("s", {"role": "user", "content": "hello"})
        schema.upgrade(servers.database_url)
        assert manager.append("s", {"role": "user", "content": "hello"}).seq == 1


def test_migrating_an_up_to_date_schema_disturbs_no_writer(redis_url: str, database_url: str, tenant: str) -> None:
    stop = threading.Event()
    written: list[int] = []
    with MemoryManager(redis_url=redis_url, database_url=database_url, tenant=tenant) as manager:

        def write() -> None:
            while not stop.is_set():
                written.append(manager.append("s", {"role": "user", "content": "on and on"}).seq)

        with ThreadPoolExecutor(2) as pool:
            writers = [pool.submit(write) for _ in range(2)]
            for _ in range(3):
                schema.upgrade(database_url)
            stop.set()
            for writer in writers:
                writer.result()
        assert sorted(written) == list(range(1, len(written) + 1))
        assert len(written) > 3
