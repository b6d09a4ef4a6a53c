"""A kill while an append is on its way, or done and not answered: nobody was told so, and its id has one effect."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import memory_contract
import pytest
import redis
from memory_contract import DURABLE, EPHEMERAL, SYNC, Backend, assert_context, logged, say, talk
from network_path import BOTH_COLOURS
from proxy import FaultProxy
from server_faults import ServerFaults, waited_for
from servers import PrivateServers

from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import MemoryManager, StoreUnavailableError

pytest_plugins = ("memory_fixtures",)

TESTS = Path(memory_contract.__file__).parent

IS_DONE = pytest.mark.parametrize("is_done", [False, True], ids=["on its way", "done"])


@contextmanager
def in_flight(manager: MemoryManager, proxy: FaultProxy, *, is_done: Callable[[], bool] | None) -> Iterator[None]:
    """Append a second message, whose answer does not come, while the block lasts: there a server is killed.

    ``is_done``: tells that the server has done it; without it, the server never hears of it.
    """
    ends: list[object] = []

    def append() -> None:
        try:
            ends.append(manager.append("s", say(2), message_id="id2"))
        except StoreUnavailableError as exc:
            ends.append(exc)

    requests, swallowed = proxy.requests, proxy.swallowed
    proxy.go_silent(is_serving=is_done is not None)
    thread = threading.Thread(target=append)
    thread.start()
    try:
        assert waited_for(lambda: proxy.requests > requests and proxy.swallowed > swallowed), "nothing is in flight"
        assert is_done is None or waited_for(is_done)
        yield
    finally:
        proxy.refuse()
        thread.join()
    assert isinstance(ends[0], StoreUnavailableError), "it was acknowledged"


def assert_one_effect(manager: MemoryManager, *, is_done: bool) -> None:
    """What was not acknowledged is there or not; sent again it is there, once, and the session goes on."""
    assert waited_for(lambda: not manager.get_context("s")["degraded"])
    assert_context(manager.get_context("s"), talk(1 + is_done))
    for _ in range(2):
        assert manager.append("s", say(2), message_id="id2").seq == 2
    assert manager.append("s", say(3)).seq == 3
    assert_context(manager.get_context("s"), talk(3))


@BOTH_COLOURS
@IS_DONE
def test_redis_is_killed_with_the_append_of_an_ephemeral_session(tenant: str, colour: str, *, is_done: bool) -> None:
    with (
        EmbeddedServers(postgres=False, persist_redis=True) as servers,
        FaultProxy(servers.redis_url) as proxy,
        closing(Backend(colour, EPHEMERAL, proxy.url, None, tenant)) as backend,
    ):
        faults = ServerFaults(redis_server=servers)
        faults.write_before_answering()
        manager = backend.open(redis_timeout_seconds=30.0)
        assert manager.append("s", say(1), message_id="id1").seq == 1
        buffer = backend.keys("s").buffer
        with (
            faults.redis() as client,
            in_flight(manager, proxy, is_done=(lambda: client.llen(buffer) == 3) if is_done else None),
        ):
            faults.kill_redis()
        faults.restart_redis()
        proxy.heal()
        assert_one_effect(manager, is_done=is_done)


@BOTH_COLOURS
def test_both_servers_are_killed_with_an_append(private_servers: PrivateServers, tenant: str, colour: str) -> None:
    """PostgreSQL has committed it and not answered; Redis is killed so that it does not acknowledge it instead."""
    servers = private_servers()
    faults = ServerFaults(redis_server=servers, database=servers)

    def is_logged() -> bool:
        return len(logged(servers.database_url, tenant, "s")) == 2

    with (
        FaultProxy(servers.database_url) as proxy,
        closing(Backend(colour, DURABLE, servers.redis_url, proxy.url, tenant)) as backend,
    ):
        manager = backend.open(database_timeout_seconds=30.0, database_breaker_recovery_seconds=0.1)
        assert manager.append("s", say(1), message_id="id1").seq == 1
        with in_flight(manager, proxy, is_done=is_logged):
            faults.kill_redis()
            faults.kill_database()
        servers.start()
        proxy.heal()
        assert_one_effect(manager, is_done=True)
        assert logged(servers.database_url, tenant, "s") == list(enumerate(talk(3), 1))


CALLER = """
import sys
from contract_engine.memory import MemoryManager
from memory_contract import say
redis_url, database_url, tenant = sys.argv[1:]
manager = MemoryManager(redis_url=redis_url, database_url=database_url or None, tenant=tenant)
manager.append("s", say(1), message_id="id1")
print("ready", flush=True)
sys.stdin.readline()
manager.append("s", say(2), message_id="id2")
print("acknowledged", flush=True)
"""


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
@IS_DONE
def test_the_caller_is_killed_with_an_append(
    redis_url: str, database_url: str, raw: redis.Redis, tenant: str, mode: str, *, is_done: bool
) -> None:
    """Of the server that acknowledges: PostgreSQL, or Redis where there is no log."""
    with FaultProxy(database_url if mode == DURABLE else redis_url) as proxy:
        urls = (redis_url, proxy.url) if mode == DURABLE else (proxy.url, "")
        program = [sys.executable, "-c", CALLER, *urls, tenant]
        with (
            closing(Backend(SYNC, mode, redis_url, database_url if mode == DURABLE else None, tenant)) as backend,
            subprocess.Popen(program, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as caller,
        ):
            assert caller.stdin is not None
            assert caller.stdout is not None
            assert caller.stdout.readline() == "ready\n"
            requests = proxy.requests
            proxy.go_silent(is_serving=is_done)
            caller.stdin.write("go\n")
            caller.stdin.flush()
            assert waited_for(lambda: proxy.requests > requests and proxy.swallowed > 0), "nothing is in flight"
            buffer = backend.keys("s").buffer
            assert not is_done or waited_for(
                lambda: len(logged(database_url, tenant, "s")) == 2 if mode == DURABLE else raw.llen(buffer) == 3
            )
            caller.kill()
            assert caller.stdout.read() == "", "it was acknowledged"
            caller.wait()
            assert waited_for(lambda: proxy.abandoned > 0 or proxy.open_connections == 0)
            survivor = backend.open()
            if mode == DURABLE and is_done:  # Redis was not told of it: the next append does
                assert survivor.append("s", say(2), message_id="id2").seq == 2
            assert_one_effect(survivor, is_done=is_done)
