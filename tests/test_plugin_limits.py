"""What the plugin promises of many at once: extensions that race, a pool with a limit, retries with an end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import redis
from servers import PrivateServers

from contract_engine.plugins.memory_manager.plugin_interface import MemoryManager

HOUR = 3600


@pytest.fixture
def own_redis(private_servers: PrivateServers) -> Iterator[tuple[str, redis.Redis]]:
    """A Redis that nobody else talks to, and a client that has its connection already."""
    url = private_servers(postgres=False).redis_url
    with closing(redis.Redis.from_url(url)) as raw:
        raw.ping()
        yield url, raw


def test_of_extensions_at_once_the_longest_holds(own_redis: tuple[str, redis.Redis]) -> None:
    """Looking and setting are one step: in two a shorter one that looked earlier would set its time last."""
    url, raw = own_redis
    hours = [1, 2, 3, 40, 5, 6, 7, 8]
    with MemoryManager(url, timeout_seconds=30) as manager, ThreadPoolExecutor(len(hours)) as threads:
        for _ in range(100):
            manager.store_memory("c", {})
            raw.expire("riker:memory:c", 60)
            together = threading.Barrier(len(hours))

            def extend(count: int, together: threading.Barrier = together) -> bool:
                together.wait(30)
                return manager.extend_memory_ttl("c", count)

            assert all(threads.map(extend, hours))
            left = raw.ttl("riker:memory:c")
            assert isinstance(left, int)
            assert left > 39 * HOUR


def test_an_extension_and_an_end_at_once_agree(own_redis: tuple[str, redis.Redis]) -> None:
    """True is only said of what is there from now on, however close its end was."""
    url, raw = own_redis
    said = set()
    with MemoryManager(url, timeout_seconds=30) as manager:
        for number in range(2000):
            manager.store_memory("c", {})
            raw.pexpire("riker:memory:c", 1)
            time.sleep(number % 20 / 10_000)  # around its end, sooner and later
            answer = manager.extend_memory_ttl("c", 1 + number % 3)
            said.add(answer)
            assert (manager.retrieve_memory("c") is not None) == answer
            manager.clear_memory("c")
            if said == {True, False} and number >= 200:
                break
    assert said == {True, False}, "the race was never close"


def test_a_pool_has_no_more_connections_than_it_may(own_redis: tuple[str, redis.Redis]) -> None:
    """Sixteen threads get along with two; who finds none free waits for one."""
    url, raw = own_redis

    def connections() -> int:
        stats = raw.info("stats")
        assert isinstance(stats, dict)
        return int(stats["total_connections_received"])

    before = connections()
    together = threading.Barrier(16)
    with MemoryManager(url, timeout_seconds=30, max_connections=2) as manager, ThreadPoolExecutor(16) as threads:

        def work(number: int) -> bool:
            together.wait(30)
            name = f"c{number}"
            return all(manager.store_memory(name, {"n": n}) for n in range(50)) and manager.clear_memory(name)

        assert all(threads.map(work, range(16)))
    assert 1 <= connections() - before <= 2


def test_no_attempt_begins_after_the_deadline() -> None:
    """Ten may be made, and the pauses before the fifth are longer, each at its shortest, than all the time there is."""
    accepted = 0
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def hang_up() -> None:
            nonlocal accepted
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed
                    return
                accepted += 1
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        with MemoryManager(url, attempts=10, timeout_seconds=0.1) as manager:
            assert manager.store_memory("c", {}) is False
        with MemoryManager(url, attempts=3, timeout_seconds=30) as patient:
            made = accepted
            assert patient.store_memory("c", {}) is False
            assert accepted - made == 3, "with the time they need all are made"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
    assert 1 <= made <= 4
