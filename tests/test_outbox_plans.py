"""What the statements of the outbox read: as much as they are asked for, however long the backlog is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from servers import PrivateServers

from contract_engine.memory._effects import Statement
from contract_engine.memory._log_outbox import BACKLOG, CLAIM, FINISH_MANY, FINISH_ONE, OUTBOX_FIGURES, OUTBOX_HEALTH

SESSIONS, EACH = 5000, 10
FEW, CLAIMED = 100, 25

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """One transaction, which is taken back: the figures of all tenants are nobody else's business."""
    with psycopg.connect(database_url) as opened:
        yield opened
        opened.rollback()


def gather(connection: Connection, tenant: str, *, sessions: int = SESSIONS, age_seconds: float = 0.0) -> None:
    """Have a backlog gather, of messages that are not in the log."""
    given = {"tenant": tenant, "sessions": sessions, "each": EACH, "age": age_seconds}
    connection.execute(
        "INSERT INTO memory_outbox (tenant, session_id, message_id, seq, created_at) "
        "SELECT %(tenant)s, 's' || session, 'm' || seq, seq, clock_timestamp() - make_interval(secs => %(age)s) "
        "FROM generate_series(1, %(each)s) AS seq, generate_series(1, %(sessions)s) AS session",
        given,
    )
    connection.execute(
        "INSERT INTO memory_relays (tenant, session_id, pending, due_at) "
        "SELECT %(tenant)s, 's' || session, %(each)s, clock_timestamp() "
        "FROM generate_series(1, %(sessions)s) AS session",
        given,
    )


def read(connection: Connection, statement: Statement, given: dict[str, Any], table: str) -> int:
    """Run a statement and answer how many rows of a table it looked at."""
    sql = b"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + statement.sql.encode()
    answer = connection.execute(sql, given).fetchone()
    assert answer is not None
    plan = answer[0] if isinstance(answer[0], list) else json.loads(answer[0])
    found = [
        node for node in nodes(plan[0]["Plan"]) if node.get("Relation Name") == table and "Scan" in node["Node Type"]
    ]
    assert found, plan
    return sum(
        int(node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))) for node in found
    )


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@pytest.mark.parametrize("analyzed", ["never", "before", "after"])
def test_the_age_of_a_backlog_is_looked_up(connection: Connection, tenant: str, analyzed: str) -> None:
    """It took a tenth of a second at 200,000 messages, whenever somebody looked."""
    if analyzed == "before":  # when there was little, and nothing of this tenant
        gather(connection, "other", sessions=10)
        connection.execute("ANALYZE memory_outbox, memory_relays")
    gather(connection, tenant)
    if analyzed == "after":
        connection.execute("ANALYZE memory_outbox, memory_relays")
    for statement in (BACKLOG, OUTBOX_HEALTH):
        assert read(connection, statement, {"of_tenant": tenant}, "memory_outbox") == 1
    row = connection.execute("SELECT count(DISTINCT tenant) FROM memory_outbox").fetchone()
    assert row is not None
    # What a node has read in each of its loops is told as a rounded mean.
    assert read(connection, OUTBOX_FIGURES, {}, "memory_outbox") <= 2 * row[0]


def test_the_age_is_that_of_the_oldest_message_of_one_tenant_and_of_all(connection: Connection, tenant: str) -> None:
    for number, days in enumerate((4000, 2000, 6000, 1000)):  # the oldest neither begins the index nor ends it
        gather(connection, f"{tenant}-{number}", sessions=2, age_seconds=days * 86_400)
    for number, days in enumerate((4000, 2000, 6000, 1000)):
        (found,) = connection.execute(BACKLOG.sql.encode(), {"of_tenant": f"{tenant}-{number}"}).fetchall()
        assert found[:2] == (2 * EACH, 2)
        assert found[4] == pytest.approx(days * 86_400, abs=60)
    (found,) = connection.execute(OUTBOX_FIGURES.sql.encode()).fetchall()
    assert found[0] >= 4 * 2 * EACH
    assert found[2] == pytest.approx(6000 * 86_400, abs=60)
    (found,) = connection.execute(BACKLOG.sql.encode(), {"of_tenant": f"{tenant}-none"}).fetchall()
    assert found == (0, 0, 0, 0, None, 0)


def test_what_is_put_off_is_not_looked_through(connection: Connection, tenant: str) -> None:
    """While a legacy store is away all of the backlog is, and each look for something due went through all of it."""
    gather(connection, tenant)
    connection.execute(
        "UPDATE memory_relays SET due_at = now() + make_interval(hours => 1) WHERE tenant = %s AND session_id <> 's7'",
        (tenant,),
    )
    connection.execute("ANALYZE memory_relays")
    given = {"of_tenant": tenant, "lease": "l", "sessions": CLAIMED, "lease_seconds": 30.0}
    assert read(connection, CLAIM, given, "memory_relays") <= 2  # once to find it, once to take it


@pytest.mark.parametrize("is_analyzed", [False, True], ids=["without statistics", "with statistics"])
def test_what_was_relayed_is_noted_without_a_look_at_the_backlog(
    private_servers: PrivateServers, tenant: str, is_analyzed: bool
) -> None:
    """Each round went through all of the outbox, removed rows too, as long as there were no statistics."""
    url = private_servers(redis=False).database_url  # where nobody else's rows tell the planner anything
    with psycopg.connect(url) as connection:
        gather(connection, "few", sessions=FEW)
        if is_analyzed:
            connection.execute("ANALYZE memory_outbox, memory_relays")
        ids = [f"m{number}" for number in range(1, EACH + 1)]
        claimed = {"of_tenant": "few", "lease": "l", "sessions": CLAIMED, "lease_seconds": 30.0}
        assert read(connection, CLAIM, claimed, "memory_relays") <= 2 * FEW  # once to sort them, once to find them
        two = {"of_tenant": "few", "sessions": ["s1", "s2"], "lease": "l", "ids": ids[:2], "kept": []}
        found = read(connection, FINISH_MANY, two, "memory_relays")
        # To lock each of them and to change them; so few are read at once where their number is known.
        assert found <= (3 * FEW if is_analyzed else 4)
        one = {"of_tenant": "few", "of_session": "s3", "lease": "l", "ids": ids, "kept": []}
        assert read(connection, FINISH_ONE, one, "memory_outbox") == EACH
        gather(connection, tenant)
        if is_analyzed:
            connection.execute("ANALYZE memory_outbox, memory_relays")
        names = [f"s{number}" for number in range(1, 11) for _ in ids]
        several = {"of_tenant": tenant, "sessions": names, "lease": "l", "ids": ids * 10, "kept": []}
        assert read(connection, FINISH_MANY, several, "memory_outbox") == len(names)
