"""What is particular to working memory in Redis: its commands, its outages, and what others do with its keys."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock, patch

import pytest
import redis
from server_faults import ServerFaults, waited_for
from servers import PrivateServers
from working_memory_contract import (
    ASYNC,
    PATIENCE_SECONDS,
    REDIS,
    STACKS,
    SYNC,
    MemoryBackend,
    ask,
    say,
    texts_of,
)

from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import (
    ConfigurationError,
    RedisUnavailableError,
    StoreMisconfiguredError,
)
from contract_engine.memory.errors import CorruptDataError, PoolExhaustedError
from contract_engine.working_memory import (
    AsyncRedisWorkingMemoryManager,
    RedisMemoryManager,
    RedisWorkingMemoryManager,
    RichMemory,
    WorkingMemoryAgent,
    WorkingMemoryManager,
)
from contract_engine.working_memory.compression import Compressed
from contract_engine.working_memory.patterns import matcher, widened
from contract_engine.working_memory.redis_store import EXCHANGE, RedisStore

DEAD_URL = "redis://someone:sesame@127.0.0.1:1/0"


@pytest.fixture(params=[SYNC, ASYNC])
def colour(request: pytest.FixtureRequest) -> str:
    return cast("str", request.param)


@pytest.fixture
def backend(colour: str, redis_url: str, tenant: str, tmp_path: Path) -> Iterator[MemoryBackend]:
    with closing(MemoryBackend(REDIS, colour, STACKS["bare"], tenant, redis_url, "", tmp_path)) as found:
        yield found


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def private(private_servers: PrivateServers) -> EmbeddedServers:
    """A Redis that belongs to this test."""
    return private_servers(postgres=False)


@pytest.fixture
def harmed(colour: str, private: EmbeddedServers, tenant: str, tmp_path: Path) -> Iterator[MemoryBackend]:
    """Managers on a Redis that this test may harm."""
    found = MemoryBackend(REDIS, colour, STACKS["bare"], tenant, private.redis_url, "", tmp_path)
    with closing(found):
        yield found


# -- what programs written for the originals do


def test_what_a_client_raises_is_not_taken_for_an_end() -> None:
    """A mock that has run out of answers raises StopIteration; nothing was stored then."""
    mock = Mock()
    mock.get.return_value = None
    mock.setex.side_effect = [True]
    with patch("redis.from_url", return_value=mock):
        manager = RedisMemoryManager(ttl=3600)
        assert manager.store(say("c1", "one"))
        with pytest.raises(RuntimeError, match="StopIteration"):
            manager.store(say("c1", "two"))


def test_the_mock_of_the_documents_sees_setex() -> None:
    mock = Mock()
    mock.get.return_value = None
    mock.setex.return_value = True
    mock.delete.return_value = 1
    with patch("redis.from_url", return_value=mock):
        manager = RedisMemoryManager(ttl=3600)
        key = manager.store(say("c1", "text"))
        assert manager.retrieve(ask("c1")) == []
        manager.delete(ask("c1"))
    name, seconds, body = mock.setex.call_args.args
    assert (name, seconds) == (key, 3600) == ("memory:WORKING_MEMORY:c1", 3600)
    assert b'"text"' in body


def test_a_subclass_may_set_the_client_itself(redis_url: str, tenant: str) -> None:
    class Pooled(RedisWorkingMemoryManager):
        def __init__(self, client: redis.Redis) -> None:
            self.redis_client = client
            self.prefix = tenant
            self.ttl = 60

    client = redis.Redis(connection_pool=redis.ConnectionPool.from_url(redis_url, decode_responses=True))
    manager = Pooled(client)
    manager.store(say("c1", "naïve", "two"))
    manager.update(say("c1", "naïve 2", memory_id="1"))
    assert texts_of(manager.retrieve(ask("c1"))) == ["naïve 2", "two"]
    assert 0 < client.ttl(f"{tenant}:WORKING_MEMORY:c1") <= 60
    manager.close()
    assert client.ping(), "what was handed in is not closed"
    manager.delete(ask("c1"))
    client.close()


def test_the_bytes_of_the_originals_are_read_and_expire_as_they_would(backend: MemoryBackend, raw: redis.Redis) -> None:
    manager, name = backend.open(), f"{backend.prefix}:WORKING_MEMORY:conv_123"
    raw.set(
        name, b'{"data": {"working_memory": "Alice"}, "metadata": null, "created_at": "2025-03-01T10:11:12"}', ex=600
    )
    (memory,) = manager.retrieve(ask("conv_123"))
    assert (memory.working_memory, memory.metadata, memory.last_update) == ("Alice", {}, None)
    assert 500 < raw.ttl(name) <= 600


def test_times_to_live_are_those_of_the_keys(backend: MemoryBackend, raw: redis.Redis) -> None:
    manager = backend.open()
    expected = {43_200: (43_000_000, 43_200_000), 0.5: (1, 500), None: (-1, -1)}
    for ttl, (least, most) in expected.items():
        manager.ttl = ttl
        manager.store(say("one", "x"))
        manager.store_many([say("two", "x"), say("three", "x")])
        manager.update(say("one", "y"))
        for name in ("one", "two", "three"):
            left = raw.pttl(f"{backend.prefix}:WORKING_MEMORY:{name}")
            assert least <= left <= most or (ttl == 0.5 and left == -2)


def test_the_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def database(manager: RedisWorkingMemoryManager) -> tuple[str, int | None, int]:
        settings = manager.redis_client.connection_pool.connection_kwargs
        return settings["host"], settings.get("port"), settings["db"]

    monkeypatch.delenv("REDIS_URL", raising=False)
    assert database(RedisWorkingMemoryManager()) == ("localhost", 6379, 1)
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:7000/4")
    assert database(RedisWorkingMemoryManager()) == ("elsewhere", 7000, 4)
    assert database(RedisWorkingMemoryManager("redis://here/2")) == ("here", None, 2)


@pytest.mark.parametrize(
    "url", ["", "http://x:sesame@y", "redis://x:sesame@y:port", 5, "redis://x?nonsense=sesame", "redis://x?retry=1"]
)
def test_a_bad_url_is_refused_without_its_password(url: Any) -> None:
    for kind in (RedisWorkingMemoryManager, AsyncRedisWorkingMemoryManager):
        with pytest.raises(ConfigurationError) as caught:
            kind(url)
        assert "sesame" not in str(caught.value)
        assert caught.value.__cause__ is None


# -- what goes over the wire


def test_a_batch_is_one_round_trip_and_no_call_looks_for_keys(harmed: MemoryBackend, private: EmbeddedServers) -> None:
    faults, manager = ServerFaults(redis_server=private), harmed.open()
    requests = [say(f"c{number}", "x") for number in range(1000)]
    before = faults.calls()
    manager.store_many(requests)
    manager.retrieve_many(requests)
    manager.store(requests[0])
    manager.retrieve(requests[0])
    assert manager.cleanup(f"{harmed.prefix}:*:c*") == 1000
    after = faults.calls()
    grown = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
    assert grown["mset"] == grown["eval"] == grown["mget"] == grown["exists"] == grown["setex"] == grown["get"] == 1
    assert grown["exec"] == 2
    assert "keys" not in grown
    assert grown["scan"] >= 2


@pytest.mark.parametrize("ttls", [(60, 60), (60, None), (None, 60), (None, None), (0.5, 70)])
def test_each_record_of_a_batch_lives_as_long_as_it_is_to(
    backend: MemoryBackend, raw: redis.Redis, ttls: tuple[float | None, float | None]
) -> None:
    bare, names = backend.open_bare(), [f"{backend.prefix}:WORKING_MEMORY:c{number}" for number in (1, 2)]
    store = bare.store_of_records
    backend.run(store.put([(name, b"before", 100) for name in names]))  # whose time to live must not stay
    assert all(0 < raw.pttl(name) <= 100_000 for name in names)
    one, two = ttls
    backend.run(store.put([(names[0], b"1", two), (names[1], b"2", two), (names[0], b"3", one)]))
    assert raw.get(names[0]) == b"3" or one == 0.5  # which may be over by now
    for name, seconds in zip(names, ttls, strict=True):
        left = raw.pttl(name)
        expected = range(-1, 0) if seconds is None else range(-2, int(seconds * 1000) + 1)
        assert left in expected, (name, left)
        assert (left == -1) == (seconds is None)
    backend.close_bare(bare)


def test_scripts_that_are_gone_are_sent_again(harmed: MemoryBackend, private: EmbeddedServers) -> None:
    manager = harmed.open()
    manager.store_many([say("c1", "a"), say("c2", "b")])
    manager.update(say("c1", "A"))
    with ServerFaults(redis_server=private).redis() as client:
        client.script_flush()
        assert client.script_exists(EXCHANGE.sha) == [False]
    manager.update(say("c1", "AA"))
    manager.store_many([say("c2", "BB"), say("c3", "CC")])
    assert [texts_of(found) for found in manager.retrieve_many([ask("c1"), ask("c2"), ask("c3")])] == [
        ["AA"],
        ["BB"],
        ["CC"],
    ]


def test_an_exchange_that_is_sent_again_is_done(redis_url: str, tenant: str) -> None:
    """A connection that breaks before the answer makes the client send it twice."""
    with RedisWorkingMemoryManager(redis_url, timeout_seconds=10) as manager:
        store, name = RedisStore(manager), f"{tenant}:x"
        for old, new in ((None, b"a"), (b"a", b"b"), (b"b", None)):
            assert store.exchange(name, old, new, 60)
            assert store.exchange(name, old, new, 60)
            assert not store.exchange(name, b"other", b"c", 60)
        assert store.get([name]) == [None]


# -- outages


def test_a_dead_redis_is_an_error_that_programs_know(
    harmed: MemoryBackend, private: EmbeddedServers, caplog: pytest.LogCaptureFixture
) -> None:
    faults, manager = ServerFaults(redis_server=private), harmed.open()
    manager.store(say("c1", "text"))
    faults.kill_redis()
    for call in (manager.store, manager.retrieve, manager.update, manager.delete):
        with pytest.raises(RedisUnavailableError) as caught:
            call(say("c1", "secret text"))
        assert isinstance(caught.value, redis.ConnectionError)
        assert isinstance(caught.value, ConnectionError)
        assert "secret text" not in str(caught.value)
    for late in (
        lambda: manager.retrieve_many([ask("c1"), ask("c2")]),
        lambda: manager.store_many([say("c1", "x"), say("c2", "x")]),
        manager.storage_stats,
        lambda: manager.cleanup(f"{harmed.prefix}:*:c1"),
    ):
        with pytest.raises(RedisUnavailableError):
            late()
    with caplog.at_level(logging.WARNING):
        assert manager.retrieve_safe(ask("c1")) == []
    assert "RedisAwayError" in caplog.text
    password = private.redis_url.split("@")[0].rpartition(":")[2]
    assert len(password) > 8
    assert password not in caplog.text
    faults.restart_redis()
    manager.store(say("c1", "back"))
    assert texts_of(manager.retrieve(ask("c1"))) == ["back"]


def test_a_stopped_redis_costs_the_deadline(harmed: MemoryBackend, private: EmbeddedServers) -> None:
    faults, manager = ServerFaults(redis_server=private), harmed.open(timeout_seconds=0.3)
    manager.store(say("c1", "text"))
    faults.stop_redis()
    seconds: list[float] = []
    for _ in range(5):
        started = time.monotonic()
        with pytest.raises(RedisUnavailableError) as caught:
            manager.store(say("c1", "x"))
        seconds.append(time.monotonic() - started)
        assert isinstance(caught.value, redis.ConnectionError)
    assert manager.retrieve_safe(ask("c1")) == []
    # The quickest of them: the machine may stand still for any other.
    assert 0.5 * 0.3 < min(seconds) < 4 * 0.3, seconds
    faults.go_on()
    assert waited_for(lambda: bool(manager.retrieve_safe(ask("c1"))), PATIENCE_SECONDS)


def test_a_connection_that_was_cut_is_opened_again(harmed: MemoryBackend, private: EmbeddedServers) -> None:
    manager = harmed.open()
    manager.store(say("c1", "text"))
    with ServerFaults(redis_server=private).redis() as client:
        cut = client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert cut >= 1
    assert texts_of(manager.retrieve(ask("c1"))) == ["text"]


def test_a_redis_that_is_full_is_an_outage(harmed: MemoryBackend, private: EmbeddedServers) -> None:
    manager = harmed.open()
    manager.store(say("c1", "text"))
    with ServerFaults(redis_server=private).redis() as client:
        client.config_set("maxmemory", 1)
        for call in (
            lambda: manager.store(say("c2", "x")),
            lambda: manager.store_many([say("c2", "x"), say("c3", "x")]),
            lambda: manager.update(say("c1", "x")),
        ):
            with pytest.raises(RedisUnavailableError):
                call()
        client.config_set("maxmemory", 0)
        assert client.dbsize() == 1  # nothing of a batch, in particular nothing without its time to live
    assert texts_of(manager.retrieve(ask("c1"))) == ["text"]


def test_a_key_of_another_type_is_no_record(backend: MemoryBackend, raw: redis.Redis) -> None:
    name = f"{backend.prefix}:WORKING_MEMORY:c1"
    raw.rpush(name, "x")
    manager = backend.open()
    for call in (manager.retrieve, manager.update):
        with pytest.raises(CorruptDataError):
            call(say("c1", "x"))
    manager.store(say("c2", "y"))
    with pytest.raises(CorruptDataError, match="another type"):
        manager.retrieve_many([ask("c2"), ask("c1"), ask("c3")])
    manager.store(say("c1", "x"))
    assert texts_of(manager.retrieve(ask("c1"))) == ["x"]
    twice = manager.retrieve_many([ask("c2"), ask("c1"), ask("c3"), ask("c1")])
    assert [texts_of(found) for found in twice] == [["y"], ["x"], [], ["x"]]


def test_a_client_that_decodes_is_told_of_what_it_cannot(redis_url: str, tenant: str) -> None:
    with RedisWorkingMemoryManager(redis_url, prefix=tenant) as theirs:
        theirs.store(say("c1", "plain"))
        Compressed(theirs).store(say("c2", "long " * 100))
        manager = RedisWorkingMemoryManager(redis_url, prefix=tenant)
        manager.redis_client = redis.Redis.from_url(redis_url, decode_responses=True)
        assert texts_of(manager.retrieve(ask("c1"))) == ["plain"]
        for call in (manager.retrieve, lambda one: manager.retrieve_many([one, ask("c1")]), Compressed(manager).update):
            with pytest.raises(ConfigurationError, match="decode_responses=False"):
                call(say("c2", "x"))
        assert texts_of(manager.retrieve(ask("c1"))) == ["plain"]
        manager.redis_client.close()
        assert theirs.cleanup(f"{tenant}:*", everything=True) == 2


def test_a_wrong_password_is_a_misconfiguration(private: EmbeddedServers, colour: str, tmp_path: Path) -> None:
    wrong = f"redis://:not-it@{private.redis_url.rpartition('@')[2]}"
    assert wrong != private.redis_url
    found = MemoryBackend(REDIS, colour, STACKS["bare"], "t", wrong, "", tmp_path)
    manager = found.open()
    for call in (manager.retrieve, manager.retrieve_safe):
        with pytest.raises(StoreMisconfiguredError):
            call(ask("c1"))
    manager.close()
    found.loop.close()


def test_nothing_is_opened_by_construction_and_no_server_is_an_error() -> None:
    with RedisWorkingMemoryManager(DEAD_URL) as manager:
        with pytest.raises(redis.ConnectionError) as caught:
            manager.store(say("c1", "x"))
        assert "sesame" not in f"{caught.value} {caught.value.__cause__} {manager!r}"


# -- many at once


def test_threads_get_connections_in_turn(redis_url: str, tenant: str) -> None:
    """With the settings of a manager by default: a thread that wants one again does not overtake those that wait."""
    with RedisWorkingMemoryManager(redis_url, prefix=tenant) as manager:

        def work(worker: int) -> None:
            for number in range(80):
                manager.store(say(f"{worker}-{number}", "x"))

        with ThreadPoolExecutor(64) as pool:
            assert list(pool.map(work, range(64))) == [None] * 64
        assert len(manager.redis_client.connection_pool._connections) <= 20
        assert manager.cleanup(f"{tenant}:*", everything=True) == 64 * 80


def test_the_thread_that_waits_longest_for_a_connection_gets_it(redis_url: str) -> None:
    with RedisWorkingMemoryManager(redis_url, pool_size=1, timeout_seconds=PATIENCE_SECONDS) as manager:
        pool, order = manager.redis_client.connection_pool, list[int]()

        def work(worker: int) -> None:
            connection = pool.get_connection()
            order.append(worker)
            pool.release(connection)

        taken = pool.get_connection()
        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        for number, thread in enumerate(threads):
            thread.start()
            assert waited_for(lambda number=number: len(pool.pool._line) == number + 1)  # type: ignore[misc]  # bound as a default
        pool.release(taken)
        work(8)
        for thread in threads:
            thread.join()
        assert order == list(range(9))
        assert pool._connections == [taken]


def test_what_is_left_of_a_call_that_was_broken_off_is_nobody_s_answer(redis_url: str, tenant: str) -> None:
    with RedisWorkingMemoryManager(redis_url, prefix=tenant, pool_size=1) as manager:
        pool = manager.redis_client.connection_pool
        connection = pool.get_connection()
        connection.send_command("ECHO", "somebody else's")
        assert connection.can_read(timeout=PATIENCE_SECONDS)
        pool.release(connection)
        assert manager.retrieve(ask("c1")) == []


def test_tasks_get_connections_in_turn(redis_url: str, tenant: str) -> None:
    """With the settings of a manager by default: a task that wants one again does not overtake those that wait."""

    async def main() -> None:
        async with AsyncRedisWorkingMemoryManager(redis_url, prefix=tenant) as manager:

            async def work(worker: int) -> None:
                for number in range(50):
                    await manager.store(say(f"{worker}-{number}", "x"))
                for number in range(1, 11):
                    await manager.update(say(f"of-{worker % 16}", str(number), memory_id=str(worker // 16 + 1)))

            for number in range(16):
                await manager.store(say(f"of-{number}", *["0"] * 4))
            await asyncio.gather(*[work(worker) for worker in range(64)])
            for number in range(16):
                assert texts_of(await manager.retrieve(ask(f"of-{number}"))) == ["10"] * 4
            assert await manager.cleanup(f"{tenant}:*", everything=True) == 64 * 50 + 16
            assert len(manager.redis_client.connection_pool._available_connections) <= 20

    asyncio.run(main())


def test_who_waits_longest_for_a_connection_gets_it(redis_url: str) -> None:
    async def main() -> None:
        async with AsyncRedisWorkingMemoryManager(redis_url, pool_size=1, timeout_seconds=PATIENCE_SECONDS) as manager:
            pool, order = manager.redis_client.connection_pool, list[int]()

            async def work(worker: int) -> None:
                connection = await pool.get_connection()
                order.append(worker)
                await pool.release(connection)

            taken = await pool.get_connection()
            tasks = [asyncio.ensure_future(work(worker)) for worker in range(8)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            tasks[3].cancel()
            await pool.release(taken)
            tasks[1].cancel()  # it is its turn, and it does not know yet
            await work(8)
            await asyncio.gather(*tasks, return_exceptions=True)
            assert order == [2, 4, 5, 6, 7, 8]
            assert await manager.retrieve(ask("c1")) == []

    asyncio.run(main())


def test_tasks_that_are_cancelled_take_no_connection_along(redis_url: str, tenant: str) -> None:
    async def main() -> None:
        async with AsyncRedisWorkingMemoryManager(
            redis_url, prefix=tenant, pool_size=2, timeout_seconds=PATIENCE_SECONDS
        ) as manager:
            for turn in range(50):
                tasks = [asyncio.ensure_future(manager.store(say(f"{worker}", "x"))) for worker in range(12)]
                for _ in range(turn):
                    await asyncio.sleep(0)
                for task in tasks[::2]:
                    task.cancel()
                answers = await asyncio.gather(*tasks, return_exceptions=True)
                assert {str(answer) for answer in answers[1::2]} == {
                    f"{tenant}:WORKING_MEMORY:{worker}" for worker in range(1, 12, 2)
                }
            pool = manager.redis_client.connection_pool
            assert not pool._in_use_connections
            both = await asyncio.gather(pool.get_connection(), pool.get_connection())
            assert not pool.can_get_connection()
            await asyncio.gather(*[pool.release(connection) for connection in both])
            await manager.cleanup(f"{tenant}:*", everything=True)

    asyncio.run(main())


def test_a_line_is_formed_anew_on_another_loop(redis_url: str, tenant: str) -> None:
    manager = AsyncRedisWorkingMemoryManager(redis_url, prefix=tenant, pool_size=2, timeout_seconds=PATIENCE_SECONDS)

    async def main() -> None:
        await asyncio.gather(*[manager.store(say(f"{worker}", "x")) for worker in range(12)])
        assert await manager.cleanup(f"{tenant}:*", everything=True) == 12
        await manager.aclose()

    asyncio.run(main())
    asyncio.run(main())


def test_a_second_loop_has_connections_of_its_own(redis_url: str, tenant: str) -> None:
    """As in programs that call ``asyncio.run`` for each turn, and close nothing between."""
    manager = AsyncRedisWorkingMemoryManager(redis_url, prefix=tenant, pool_size=3)

    async def turn(number: int) -> list[str]:
        names = [f"{number}-{worker}" for worker in range(12)]
        await asyncio.gather(*[manager.store(say(name, name)) for name in names])
        return [texts_of(await manager.retrieve(ask(name)))[0] for name in names]

    with redis.Redis.from_url(redis_url) as raw:
        before = len(raw.client_list())
        for number in range(4):
            assert asyncio.run(turn(number)) == [f"{number}-{worker}" for worker in range(12)]
            gc.collect()
            assert len(raw.client_list()) <= before + 3, "those of the loop before are closed"
        asyncio.run(manager.aclose())
        assert waited_for(lambda: len(raw.client_list()) == before)


def test_two_loops_at_once_are_refused(redis_url: str, tenant: str) -> None:
    manager = AsyncRedisWorkingMemoryManager(redis_url, prefix=tenant)
    first = asyncio.new_event_loop()
    try:
        first.run_until_complete(manager.store(say("c1", "x")))
        with pytest.raises(ConfigurationError, match="one manager per loop"):
            asyncio.run(manager.retrieve(ask("c1")))
        assert texts_of(first.run_until_complete(manager.retrieve(ask("c1")))) == ["x"]
        first.run_until_complete(manager.aclose())
    finally:
        first.close()


def test_an_agent_may_be_run_turn_by_turn(redis_url: str, tenant: str) -> None:
    class Echo:
        def chat(self, request: Any) -> str:
            return "noted"

    manager = AsyncRedisWorkingMemoryManager(redis_url, prefix=tenant)
    agent = WorkingMemoryAgent(Echo(), manager)
    for _ in range(4):
        assert asyncio.run(agent.process("said", "c1")) == "success"
    asyncio.run(manager.aclose())


def test_no_connection_in_time_is_said_to_tasks_too(redis_url: str) -> None:
    async def main() -> None:
        async with AsyncRedisWorkingMemoryManager(redis_url, pool_size=1, timeout_seconds=0.2) as manager:
            taken = await manager.redis_client.connection_pool.get_connection()
            began = time.monotonic()
            with pytest.raises(PoolExhaustedError):
                await manager.retrieve(ask("c1"))
            assert 0.15 < time.monotonic() - began < PATIENCE_SECONDS
            await manager.redis_client.connection_pool.release(taken)
            assert await manager.retrieve(ask("c1")) == []

    asyncio.run(main())


def test_no_connection_in_time_is_said_to_be_that(private: EmbeddedServers) -> None:
    with RedisWorkingMemoryManager(private.redis_url, pool_size=1, timeout_seconds=0.2) as manager:
        taken = manager.redis_client.connection_pool.get_connection()
        with pytest.raises(PoolExhaustedError):
            manager.retrieve(ask("c1"))
        manager.redis_client.connection_pool.release(taken)
        assert manager.retrieve(ask("c1")) == []


def test_two_managers_change_one_record_without_loss(backend: MemoryBackend) -> None:
    if backend.colour == ASYNC:
        one, two = backend.open_bare(), backend.open_bare()
        backend.run(one.store(say("c1", *["0"] * 8)))
        backend.gather(
            [
                lambda worker=worker: (one, two)[worker % 2].update(say("c1", "1", memory_id=str(worker + 1)))  # type: ignore[misc]
                for worker in range(8)
            ]
        )
        assert texts_of(backend.run(one.retrieve(ask("c1", limit=None)))) == ["1"] * 8
        backend.close_bare(one)
        backend.close_bare(two)
        return
    managers: list[WorkingMemoryManager] = [backend.open(), backend.open()]
    managers[0].store(say("c1", *["0"] * 8))

    def work(worker: int) -> None:
        for number in range(1, 11):
            managers[worker % 2].update(say("c1", str(number), memory_id=str(worker + 1)))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts_of(managers[0].retrieve(ask("c1", limit=None))) == ["10"] * 8


def test_what_a_full_redis_evicts_is_gone_and_nothing_else_is_wrong(
    harmed: MemoryBackend, private: EmbeddedServers
) -> None:
    harmed.stack = STACKS["sealed"]
    manager = harmed.open()
    text = "x" * 2_000
    with redis.Redis.from_url(private.redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 1_000_000)
        requests = [say(f"c{number}", f"{number} {text}{number * 'y'}") for number in range(1000)]
        for start in range(0, 1000, 50):
            manager.store_many(requests[start : start + 50])
            manager.store_rich("growing", RichMemory(f"{start} {text}"))
        assert int(client.info("stats")["evicted_keys"]) > 100
        found = manager.retrieve_many(requests)
        alone = [manager.retrieve(request) for request in requests]
    left = 0
    for request, one, again in zip(requests, found, alone, strict=True):
        assert request.data is not None
        assert texts_of(one) in ([], [request.data[0].working_memory])
        assert texts_of(again) in ([], texts_of(one))
        left += bool(one)
    assert 0 < left < 1000
    assert all(memory.working_memory.endswith(text) for memory in manager.retrieve(ask("growing", limit=None)))


def test_a_scan_brings_all_that_a_glob_means(raw: redis.Redis, tenant: str) -> None:
    """Redis is asked for no less, whatever the characters; the rest is left out here."""
    rng, letters = random.Random(7), "ab*?[]^-\\é日"

    def drawn(most: int) -> str:
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, most)))

    names = {drawn(5) for _ in range(300)}
    raw.mset({f"{tenant}:{name}": "x" for name in names})
    found_any = 0
    for pattern in {drawn(6) for _ in range(400)}:
        meant = {name for name in names if matcher(pattern)(name)}
        found = {key.decode() for key in raw.scan_iter(match=f"{tenant}:{widened(pattern)}", count=1000)}
        assert {f"{tenant}:{name}" for name in meant} <= found, pattern
        found_any += bool(meant)
    assert found_any > 50
