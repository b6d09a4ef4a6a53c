"""The legacy stores with which it is tried what others do meanwhile."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from legacy_stores import KnowingStore, ListStore

from contract_engine.memory.legacy_store import LegacySwisperStore


@pytest.fixture(params=["list", "knowing", "original's table"])
def each_legacy(request: pytest.FixtureRequest, database_url: str) -> Iterator[Any]:
    """One that knows no ids, one that does, and the original's table, which takes several sessions at once."""
    if request.param != "original's table":
        yield ListStore() if request.param == "list" else KnowingStore()
        return
    table = f"legacy_{uuid.uuid4().hex[:12]}"
    with LegacySwisperStore(database_url, table=table, timeout_seconds=30.0) as store:
        store.create_table()
        yield store
    with psycopg.connect(database_url) as connection:
        connection.execute(f"DROP TABLE {table}".encode())
