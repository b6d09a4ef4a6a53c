"""Calls of asyncio that are cancelled while they wait for a server behind a slow network."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
import sqlalchemy as sa
from lost_messages import nothing_lost
from memory_contract import assert_context, logged, say
from network_path import EITHER_SERVER, POSTGRES, REDIS, ROOM, STEADY
from proxy import FaultProxy

from contract_engine.memory import AsyncMemoryManager, CircuitState

CANCELLED_SESSIONS = tuple(f"s{number}" for number in range(5))
CALLS_EACH = 40
POOL = 4
PATIENCE_SECONDS = (0.02, 0.05, 1.0)
"""How long a call is waited for at most. The last lets most calls end, and new connections come about."""

SEED_VARIABLE = "CANCELLATION_SEED"


class Storm:
    """Calls on a few sessions, one after the other in each, every one of them cancelled at a random moment.

    ``acknowledged``: the texts of the messages of each session that were, in order; ``sent`` holds the others too.
    """

    def __init__(self, manager: AsyncMemoryManager, seed: int) -> None:
        self._manager = manager
        self._seed = seed
        self.acknowledged: dict[str, list[str]] = {session: [] for session in CANCELLED_SESSIONS}
        self.sent: dict[str, list[str]] = {session: [] for session in CANCELLED_SESSIONS}
        self.cancelled = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for session in CANCELLED_SESSIONS:
                tasks.create_task(self._work(session))

    async def _work(self, session: str) -> None:
        chance = random.Random(f"{self._seed} {session}")
        for number in range(CALLS_EACH):
            texts = [f"{session}: call {number}, message {part}" for part in range(chance.choice((0, 1, 1, 1, 3)))]
            task = asyncio.ensure_future(self._call(session, texts, chance.random()))
            self.sent[session] += texts
            await asyncio.wait([task], timeout=chance.uniform(0.0, chance.choice(PATIENCE_SECONDS)))
            task.cancel()
            try:
                context = await task
            except asyncio.CancelledError:
                self.cancelled += 1
                continue
            self.acknowledged[session] += texts
            if context is not None:
                self.assert_answers(session, context)

    async def _call(self, session: str, texts: list[str], choice: float) -> dict[str, Any] | None:
        messages = [{"role": "user", "content": text} for text in texts]
        if not messages:
            return await self._manager.get_context(session)
        if len(messages) > 1:
            await self._manager.add_messages(session, messages)
        elif choice < 0.5:
            await self._manager.append(session, messages[0], message_id=texts[0])
        else:
            return await self._manager.add_and_get_context(session, messages[0])
        return None

    @nothing_lost()
    def assert_answers(self, session: str, context: Mapping[str, Any]) -> None:
        """The context of this session and no other, with all that was acknowledged, once and in order."""
        texts = [message["content"] for message in context["buffer_messages"]]
        assert context["session_id"] == session
        assert len(set(texts)) == len(texts)
        assert set(texts) <= set(self.sent[session]), "of another session"
        known = set(self.acknowledged[session])
        assert [text for text in texts if text in known] == self.acknowledged[session]


@EITHER_SERVER
async def test_calls_cancelled_at_any_moment(redis_url: str, database_url: str, tenant: str, server: str) -> None:
    """No reply reaches another request, no connection and no place in a pool is lost, and the log is what is read.

    A message that was cancelled after its commit may be unseen until the next one is appended: nobody was told of it.
    """
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**32))
    print(f"{SEED_VARIABLE}={seed}")
    urls = {REDIS: redis_url, POSTGRES: with_name(database_url, tenant)}
    with FaultProxy(urls[server], seed=seed) as proxy:
        urls[server] = proxy.url
        settings = STEADY | ROOM | {"redis_pool_size": POOL, "database_pool_size": POOL}
        async with AsyncMemoryManager(
            redis_url=urls[REDIS], database_url=urls[POSTGRES], tenant=tenant, **settings
        ) as manager:
            await asyncio.gather(*[manager.get_context(session) for session in CANCELLED_SESSIONS])
            proxy.delay(0.005, jitter=0.005)
            storm = Storm(manager, seed)
            await storm.run()
            acknowledged = sum(map(len, storm.acknowledged.values()))
            print(f"{storm.cancelled} cancelled, {proxy.abandoned} in flight, {acknowledged} messages acknowledged")
            assert storm.cancelled >= 20
            assert proxy.abandoned >= 10
            assert acknowledged >= 20
            proxy.heal()
            await within(lambda: proxy.open_connections <= POOL)
            # More at once than there are places, with every place still there.
            contexts = await asyncio.gather(*[manager.get_context(session) for session in CANCELLED_SESSIONS * 4])
            for context in contexts:
                storm.assert_answers(context["session_id"], context)
            assert proxy.open_connections <= POOL
            for breaker in (manager.circuit_breaker, manager.database_breaker):
                assert breaker.get_state() == CircuitState.CLOSED
            await manager.aclose()
            await within(lambda: proxy.open_connections == 0)
            # Nobody waits for them any more, but statements under way are still carried out.
            await within(lambda: backends(database_url, tenant) == 0)
            for session in CANCELLED_SESSIONS:
                said = [message for _, message in logged(database_url, tenant, session)]
                context = await manager.get_context(session)
                assert_context(context, said[: context["last_seq"]])
                storm.assert_answers(session, context)
                said.append(say(1))
                receipt = await manager.append(session, say(1))
                assert receipt.seq == len(said)
                rows = logged(database_url, tenant, session)
                assert rows == list(enumerate(said, 1))
                assert_context(await manager.get_context(session), said)
        await within(lambda: proxy.open_connections == 0)


def with_name(database_url: str, name: str) -> str:
    """Return the URL with an application name, by which PostgreSQL then knows the connections."""
    return sa.make_url(database_url).update_query_dict({"application_name": name}).render_as_string(hide_password=False)


def backends(database_url: str, name: str) -> int:
    """Return how many connections PostgreSQL has under an application name."""
    with psycopg.connect(database_url) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        row = connection.execute(query, (name,)).fetchone()
    assert row is not None
    return int(row[0])


async def within(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until the condition holds, without holding up the loop."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)
