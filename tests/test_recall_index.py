"""The index that folded messages are found by: making it costs what the messages do, however many are to be made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from memory_contract import Backend
from test_retention import many_messages

from contract_engine.memory._log_recall import UNINDEXED

pytest_plugins = ("memory_fixtures",)


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give every node of a plan that reads the messages."""
    if plan.get("Relation Name") == "memory_messages":
        yield plan
    for inner in plan.get("Plans", ()):
        yield from scans(inner)


@pytest.mark.parametrize("is_analyzed", [False, True], ids=["without statistics", "with statistics"])
def test_a_batch_of_the_index_reads_no_more_than_it_takes(blocking: Backend, is_analyzed: bool) -> None:
    """Reading all that is left for each batch made the index of a long import take a time that grew with its square."""
    many_messages(blocking, "s", 5000)
    with psycopg.connect(str(blocking.database_url), autocommit=True) as connection:
        connection.execute("UPDATE memory_sessions SET watermark = 4000 WHERE tenant = %s", (blocking.tenant,))
        if is_analyzed:
            connection.execute("ANALYZE memory_messages, memory_sessions")
        given = {"of_tenant": blocking.tenant, "of_session": "s", "count": 50}
        rows = connection.execute(UNINDEXED.sql.encode(), given).fetchall()
        assert [row[4] for row in rows] == list(range(1, 51))
        answer = connection.execute(b"EXPLAIN (ANALYZE, FORMAT JSON) " + UNINDEXED.sql.encode(), given).fetchone()
    assert answer is not None
    plan = answer[0] if isinstance(answer[0], list) else json.loads(answer[0])
    found = list(scans(plan[0]["Plan"]))
    assert found
    read = sum(node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) for node in found)
    assert read <= 100, plan
