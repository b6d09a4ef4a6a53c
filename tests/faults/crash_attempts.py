"""One call with a fault at one of its effects, blocking or in a task, and the wait until it is over for the servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import psycopg
import redis
import sqlalchemy as sa
from crash_matrix import DATABASE, LEGACY, REDIS, AsyncInterposition, Fault, Hang, Interposition
from crash_outcomes import Outcome
from memory_contract import SYNC, Backend, BlockingView
from server_faults import waited_for

from contract_engine.memory import AsyncMemoryManager, MemoryManager
from contract_engine.memory.errors import MemoryServiceError


def attempt(
    manager: MemoryManager,
    fault: Fault,
    call: Callable[[], Any],
    *,
    away: str | None = None,
    hang: Hang | None = None,
) -> Outcome:
    """Make a call that meets a fault, and wait for what it has spawned."""
    outcome = Outcome()
    interposition = Interposition(manager, fault, away=away, hang=hang)
    try:
        outcome.value = call()
    except MemoryServiceError as exc:
        outcome.error = exc
    manager._runtime.background.join()
    interposition.remove()
    outcome.take(interposition)
    return outcome


async def attempt_in_task(
    manager: AsyncMemoryManager, fault: Fault, call: Callable[[], Awaitable[Any]], *, hang: Hang | None = None
) -> Outcome:
    """:func:`attempt` in a task of its own; one that is cancelled tells nobody what became of it."""
    outcome = Outcome()
    interposed = []

    async def make_it() -> Any:
        interposed.append(AsyncInterposition(manager, fault, hang=hang))
        return await call()

    try:
        outcome.value = await asyncio.create_task(make_it())
    except asyncio.CancelledError:
        outcome.is_silent = True
    except MemoryServiceError as exc:
        outcome.error = exc
    await manager._runtime.background.join()
    (interposition,) = interposed
    interposition.remove()
    outcome.take(interposition)
    return outcome


def attempt_in(
    backend: Backend, manager: MemoryManager, fault: Fault, call: Callable[[], Any], *, hang: Hang | None = None
) -> Outcome:
    """Make an attempt in the colour of ``backend``; there ``call`` answers what is to be awaited."""
    if backend.colour == SYNC:
        return attempt(manager, fault, call, hang=hang)
    assert backend.loop is not None
    return backend.loop.run_until_complete(attempt_in_task(bare(manager), fault, call, hang=hang))


def bare(view: Any) -> Any:
    """Return what is behind a blocking view, and anything else as it is."""
    return view._target if isinstance(view, BlockingView) else view


def lend(lender: Any, manager: Any) -> None:
    """Give a manager connections that are open already: to open one to PostgreSQL takes longer than all the rest."""
    lent = lender._runtime
    manager._runtime._redis, manager._runtime._database = lent._redis, lent._database


def named_url(database_url: str, application: str) -> str:
    """Return the address with a name for the connections to it, by which they are told from others."""
    url = sa.make_url(database_url).update_query_dict({"application_name": application})
    return url.render_as_string(hide_password=False)


async def outlast(
    outcome: Outcome,
    lender: AsyncMemoryManager,
    *,
    raw: redis.Redis,
    table: psycopg.Connection[Any] | None,
    application: str,
) -> None:
    """Wait until the servers have done what a task that was cancelled had sent them."""
    for server in outcome.lost:
        if server == DATABASE:
            assert lender._runtime._database is not None
            await lender._runtime._database.close()
        wait_until_done(server, raw=raw, table=table, application=application)


def wait_until_done(server: str, *, raw: redis.Redis, table: psycopg.Connection[Any] | None, application: str) -> None:
    """Wait until a server has done what nobody waits for any more; it then ends what serves a client that has gone.

    A legacy store is not waited for: what it does late is what relays have to be ready for.
    """
    if server == LEGACY:
        return
    if server == REDIS:
        for _ in range(2):  # what lay in its sockets at the first one is done at the second
            raw.ping()
        return
    assert table is not None
    assert waited_for(lambda: not _without_client(table, application))


def _without_client(table: psycopg.Connection[Any], application: str) -> set[int]:
    """Return the ports of an application's connections whose other end is not held in this process any more."""
    query = "SELECT client_port FROM pg_stat_activity WHERE application_name = %s"
    ports = {row[0] for row in table.execute(query, (application,)).fetchall()}
    return ports - {connection.laddr.port for connection in psutil.Process().net_connections("tcp") if connection.laddr}
