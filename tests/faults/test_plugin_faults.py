"""The small Redis plugin while its Redis is killed, stopped, full or refusing: False or None, then well again."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from proxy import FaultProxy
from redis_topologies import cluster, watched_primary
from server_faults import ServerFaults, waited_for
from servers import PrivateServers

from contract_engine.plugins.memory_manager.plugin_interface import MemoryManager

SECONDS = 0.3
STALL_SECONDS = 5.0
"""What a shared machine may add to a deadline; a call without a deadline would wait for ever."""

DATA = {"text": "canary-in-the-content", "list": [1, 2, 3]}


@pytest.fixture
def faults(private_servers: PrivateServers) -> Iterator[ServerFaults]:
    faults = ServerFaults(redis_server=private_servers(postgres=False))
    yield faults
    faults.go_on()


@pytest.fixture
def manager(faults: ServerFaults) -> Iterator[MemoryManager]:
    with MemoryManager(faults.redis_server.redis_url, timeout_seconds=SECONDS) as made:
        yield made


def assert_away(manager: MemoryManager, conversation: str = "c") -> None:
    assert manager.store_memory(conversation, DATA) is False
    assert manager.retrieve_memory(conversation) is None
    assert manager.extend_memory_ttl(conversation) is False
    assert manager.clear_memory(conversation) is False


def assert_well(manager: MemoryManager, conversation: str = "c") -> None:
    assert waited_for(lambda: manager.store_memory(conversation, DATA), 30)
    assert waited_for(lambda: manager.retrieve_memory(conversation) == DATA, 30)
    assert waited_for(lambda: manager.extend_memory_ttl(conversation), 30)
    assert waited_for(lambda: manager.clear_memory(conversation), 30)


def test_a_redis_that_is_killed_and_comes_back(faults: ServerFaults, manager: MemoryManager) -> None:
    for _ in range(2):
        assert_well(manager)
        faults.kill_redis()
        assert_away(manager)
        faults.restart_redis()
    assert_well(manager)


def test_a_redis_that_is_away_when_the_manager_is_made(faults: ServerFaults) -> None:
    url = faults.redis_server.redis_url
    faults.kill_redis()
    with MemoryManager(url, timeout_seconds=SECONDS) as manager:
        assert_away(manager)
        faults.restart_redis()
        assert_well(manager)


def test_a_restart_between_two_calls_is_not_noticed(faults: ServerFaults) -> None:
    with MemoryManager(faults.redis_server.redis_url, timeout_seconds=5) as manager:
        assert manager.store_memory("c", DATA)
        before = faults.kill_redis()
        faults.restart_redis()
        assert faults.redis_server.redis_pid != before
        assert manager.store_memory("c", DATA) is True, "the kept connection is dead, and another one is opened"


def test_killed_connections_cost_nobody_an_answer(faults: ServerFaults) -> None:
    killed = 0
    with MemoryManager(faults.redis_server.redis_url, timeout_seconds=5) as manager, faults.redis() as client:
        for number in range(30):
            assert manager.store_memory("c", {"n": number})
            killed += int(client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
            assert manager.retrieve_memory("c") == {"n": number}
    assert killed >= 30


def test_a_stopped_redis_costs_each_call_its_deadline(faults: ServerFaults, manager: MemoryManager) -> None:
    assert_well(manager)
    faults.stop_redis()
    for _ in range(3):
        for call in (
            lambda: manager.store_memory("c", DATA),
            lambda: manager.retrieve_memory("c"),
            lambda: manager.extend_memory_ttl("c"),
            lambda: manager.clear_memory("c"),
        ):
            started = time.monotonic()
            assert not call()
            assert time.monotonic() - started < 3 * SECONDS + STALL_SECONDS
    faults.go_on()
    assert_well(manager)


def test_an_answer_that_comes_too_late_reaches_nobody(faults: ServerFaults) -> None:
    with MemoryManager(faults.redis_server.redis_url, timeout_seconds=SECONDS, max_connections=1) as manager:
        for name in "abcdef":
            assert waited_for(lambda name=name: manager.store_memory(name, {"name": name}), 30)  # type: ignore[misc]
        for name in "abc":
            faults.stop_redis()
            assert manager.retrieve_memory(name) is None
            faults.go_on()
            for other in "fed":
                found = manager.retrieve_memory(other)
                assert found in ({"name": other}, None)
        assert waited_for(lambda: manager.retrieve_memory("d") == {"name": "d"}, 30)


def test_a_full_redis_refuses_and_keeps_what_it_had(faults: ServerFaults, manager: MemoryManager) -> None:
    assert waited_for(lambda: manager.store_memory("c", {"n": 1}), 30)
    with faults.redis() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1mb")
        client.config_resetstat()
        assert manager.store_memory("c", {"text": "x" * 1_000_000}) is False
        errors = client.info("errorstats")
        assert isinstance(errors, dict)
        assert errors["errorstat_OOM"]["count"] >= 1
        assert waited_for(lambda: manager.retrieve_memory("c") == {"n": 1}, 30)
        client.config_set("maxmemory", "0")
    assert_well(manager)


def test_a_wrong_password_is_not_tried_again_and_never_logged(
    faults: ServerFaults, caplog: pytest.LogCaptureFixture
) -> None:
    url = faults.redis_server.redis_url
    right, address = str(urlsplit(url).password), url.rpartition("@")[2]
    assert len(right) > 8
    with caplog.at_level(logging.DEBUG):
        with MemoryManager(f"redis://:sesame@{address}", timeout_seconds=5) as manager:
            assert_away(manager)
        with MemoryManager(f"redis://{address}", timeout_seconds=5) as manager:
            assert_away(manager)
        with MemoryManager(url, timeout_seconds=5) as manager:
            assert_well(manager)
    with faults.redis() as client:
        failed = client.info("commandstats")["cmdstat_auth"]["failed_calls"]
    assert failed == 4, "one per call"
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 8
    everything = " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    for secret in ("sesame", right, "canary"):
        assert secret not in everything
    assert "check user, password" in errors[0].getMessage()


def test_a_name_that_does_not_resolve_is_an_outage() -> None:
    with MemoryManager("redis://no-such-host.invalid:6379", timeout_seconds=SECONDS) as manager:
        assert_away(manager)


def test_what_answers_and_is_no_redis_is_an_outage() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(0.1)
        asked = 0
        stop = threading.Event()

        def answer() -> None:
            nonlocal asked
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                asked += 1
                with connection:
                    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with MemoryManager(f"redis://127.0.0.1:{server.getsockname()[1]}", timeout_seconds=SECONDS) as manager:
                assert_away(manager)
        finally:
            stop.set()
            thread.join()
    assert asked >= 4


def test_a_writer_killed_in_the_middle_leaves_a_whole_conversation(
    faults: ServerFaults, manager: MemoryManager
) -> None:
    """A process is killed while it stores over and over: what is there is one of its conversations, never a part."""
    for seconds in (0.0, 0.011, 0.037):
        child = os.fork()
        if child == 0:
            try:
                for number in itertools.count():
                    manager.store_memory("c", {"n": number, "text": str(number % 10) * 50_000})
            finally:
                os._exit(1)  # a child never goes on as its parent
        with faults.redis() as client:
            assert waited_for(lambda client=client: bool(client.exists("riker:memory:c")), 30)  # type: ignore[misc]
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            found: Any = json.loads(client.get("riker:memory:c") or b"")
            assert found["text"] == str(found["n"] % 10) * 50_000
            client.delete("riker:memory:c")
    assert_well(manager)


# -- answers that are lost on the way


@pytest.fixture
def path(redis_url: str) -> Iterator[tuple[FaultProxy, MemoryManager]]:
    with FaultProxy(redis_url) as proxy, MemoryManager(proxy.url, timeout_seconds=20) as manager:
        yield proxy, manager


@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_answer_is_asked_for_again(path: tuple[FaultProxy, MemoryManager], tenant: str, lost: int) -> None:
    proxy, manager = path
    resets = 0
    for call, expected in (
        (lambda: manager.store_memory(tenant, DATA), True),
        (lambda: manager.retrieve_memory(tenant), DATA),
        (lambda: manager.extend_memory_ttl(tenant, 48), True),
        (lambda: manager.clear_memory(tenant), True),
    ):
        proxy.reset_replies(lost, to=(tenant.encode(),))
        assert call() == expected
        resets += lost
        assert proxy.resets == resets
    assert manager.retrieve_memory(tenant) is None


def test_an_extension_whose_answer_is_lost_counts_once(
    path: tuple[FaultProxy, MemoryManager], redis_url: str, tenant: str
) -> None:
    proxy, manager = path
    manager.store_memory(tenant, DATA)
    proxy.reset_replies(2, to=(tenant.encode(),))
    assert manager.extend_memory_ttl(tenant, 48)
    assert proxy.resets == 2
    with redis.Redis.from_url(redis_url) as client:
        left = client.ttl(f"riker:memory:{tenant}")
    assert 47 * 3600 < left <= 48 * 3600


def test_retries_have_an_end(path: tuple[FaultProxy, MemoryManager], tenant: str) -> None:
    """Three attempts, the first on a kept connection that may have died while idle, which has one more."""
    proxy, manager = path
    manager.store_memory(tenant, DATA)
    proxy.reset_replies(100, to=(tenant.encode(),))
    assert manager.retrieve_memory(tenant) is None
    assert 3 <= proxy.resets <= 4
    proxy.heal()
    assert manager.retrieve_memory(tenant) == DATA


def test_an_answer_that_is_cut_off_is_never_half_an_answer(path: tuple[FaultProxy, MemoryManager], tenant: str) -> None:
    proxy, manager = path
    long = {"text": "x" * 100_000}
    manager.store_memory(tenant, long)
    for after in (1, 10, 1_000, 90_000):
        proxy.cut_replies(after, 1, to=(tenant.encode(),))
        assert manager.retrieve_memory(tenant) == long
    assert proxy.cuts == 4
    assert manager.corrupt_records == 0


def test_a_call_is_one_round_trip(redis_url: str, tenant: str) -> None:
    """By a way so slow that nothing else counts, against one bare command on the same way."""
    with (
        FaultProxy(redis_url) as proxy,
        MemoryManager(proxy.url, timeout_seconds=20) as manager,
        redis.Redis.from_url(proxy.url, socket_timeout=20) as client,
    ):
        manager.store_memory(tenant, DATA)
        manager.extend_memory_ttl(tenant)  # from here on the script is known
        client.ping()
        proxy.delay(0.2)

        def fastest(call: Callable[[], object]) -> float:
            times = []
            for _ in range(3):
                started = time.monotonic()
                assert call()
                times.append(time.monotonic() - started)
            return min(times)

        trip = fastest(client.ping)
        for call in (
            lambda: manager.store_memory(tenant, DATA),
            lambda: manager.retrieve_memory(tenant),
            lambda: manager.extend_memory_ttl(tenant),
        ):
            assert fastest(call) < 1.6 * trip


# -- several servers


def test_on_a_cluster_and_behind_sentinels() -> None:
    """The URLs that the memory service takes lead the plugin there too, whatever slot a conversation is in."""
    with cluster() as nodes, MemoryManager(nodes.url, timeout_seconds=20) as manager:
        for number in range(30):
            assert manager.store_memory(f"c{number}", {"n": number})
            assert manager.extend_memory_ttl(f"c{number}", 48)
            assert manager.retrieve_memory(f"c{number}") == {"n": number}
        assert all(int(server.say("DBSIZE")) > 0 for server in nodes.servers)
        assert all(manager.clear_memory(f"c{number}") for number in range(30))
    with watched_primary() as watched, MemoryManager(watched.url, timeout_seconds=20) as manager:
        assert_well(manager)
