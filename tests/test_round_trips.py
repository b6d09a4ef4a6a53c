"""One network round trip per call, counted by a proxy between the client and Redis."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from working_memory_contract import ASYNC, REDIS, STACKS, SYNC, MemoryBackend, ask, say, texts_of

from contract_engine.memory import MemoryManager


@dataclass
class Direction:
    """Which way bytes went last on a connection, and when a client last asked for something there."""

    is_asking: bool = False
    asked_at: float = 0.0


class CountingProxy:
    """Passes bytes on to Redis and counts how often the direction turns from request to reply.

    Redis answers the first commands of a long request before it has all of it. A reply waits until nothing has been
    asked for ``quiet_seconds``, so that what a client sends without having seen any reply counts as one request.
    """

    quiet_seconds = 0.0

    def __init__(self, redis_url: str) -> None:
        parts = urlsplit(redis_url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._listener = socket.create_server(("127.0.0.1", 0))
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{port}"))
        self.round_trips = 0
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, server]
            self.connections += 1
            state = Direction()
            for source, sink, asks in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._pump, args=(source, sink, asks, state))
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, asks: bool, state: Direction) -> None:
        while True:
            try:
                data = source.recv(1 << 20)
                if not data:
                    return
                if asks:
                    state.asked_at = time.monotonic()
                    self.round_trips += not state.is_asking
                else:
                    while (left := state.asked_at + self.quiet_seconds - time.monotonic()) > 0:
                        time.sleep(left)
                state.is_asking = asks
                sink.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def proxy(redis_url: str) -> Iterator[CountingProxy]:
    proxy = CountingProxy(redis_url)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("mode", ["durable", "ephemeral"])
def test_each_call_is_one_round_trip_to_redis(
    proxy: CountingProxy, redis_url: str, database_url: str, tenant: str, mode: str
) -> None:
    url = database_url if mode == "durable" else None
    with MemoryManager(redis_url=redis_url, database_url=url, tenant=tenant) as teacher:
        # The scripts are known to the server and the session exists.
        teacher.add_messages("s", [{"role": "user", "content": f"message {number}"} for number in range(5)])
        teacher.add_message("s", {"role": "user", "content": "one more"})
    with MemoryManager(redis_url=proxy.url, database_url=url, tenant=tenant) as manager:
        manager.get_context("s")  # connects

        def cost(call: object) -> int:
            before = proxy.round_trips
            call()  # type: ignore[operator]
            return proxy.round_trips - before

        assert cost(lambda: manager.add_message("s", {"role": "user", "content": "hello"})) == 1
        assert cost(lambda: manager.get_context("s")) == 1
        assert cost(lambda: manager.add_and_get_context("s", {"role": "user", "content": "and now?"})) == 1
        assert cost(lambda: manager.add_messages("s", [{"role": "user", "content": "a"}] * 3)) == 1
        assert cost(lambda: manager.append("s", {"role": "user", "content": "b"}, message_id="known")) == 1
        assert cost(lambda: manager.append("s", {"role": "user", "content": "b"}, message_id="known")) == 1
        assert cost(lambda: manager.buffer_store.get_messages("s")) == 1
        assert manager.get_context("s")["message_count"] == 12
        # The pinned messages come with the summary.
        manager.pin("s", "known")
        manager.set_session_config("s", {"max_buffer_messages": 4})
        manager.add_messages("s", [{"role": "user", "content": "c"}] * 4)
        manager.wait_for_folds()
        manager.get_context("s")  # rebuilds the copy where there is a log
        assert cost(lambda: manager.get_context("s")) == 1
        assert len(manager.get_context("s")["pinned_messages"]) == 1
        assert proxy.connections == 1


def test_an_unknown_script_costs_one_more_round_trip_once(proxy: CountingProxy, redis_url: str, tenant: str) -> None:
    import redis

    with MemoryManager(redis_url=proxy.url, tenant=tenant) as manager, redis.Redis.from_url(redis_url) as server:
        manager.add_message("s", {"role": "user", "content": "hello"})
        server.script_flush()
        before = proxy.round_trips
        manager.add_message("s", {"role": "user", "content": "hello"})
        assert proxy.round_trips - before == 2
        manager.add_message("s", {"role": "user", "content": "hello"})
        assert proxy.round_trips - before == 3
        assert manager.get_context("s")["last_seq"] == 3


@pytest.mark.parametrize("colour", [SYNC, ASYNC])
def test_a_batch_of_working_memories_is_one_round_trip_to_redis(
    proxy: CountingProxy, tenant: str, tmp_path: Path, colour: str
) -> None:
    """Each way, however many records it has; so many calls are as many round trips."""
    with closing(MemoryBackend(REDIS, colour, STACKS["bare"], tenant, proxy.url, "", tmp_path)) as backend:
        manager = backend.open()
        requests = [say(f"c{number}", f"text {number} " * 20) for number in range(200)]
        manager.store(requests[0])  # connects
        proxy.quiet_seconds = 0.25

        def cost(call: Callable[[], object]) -> int:
            before = proxy.round_trips
            call()
            return proxy.round_trips - before

        assert cost(lambda: manager.store_many(requests)) == 1
        assert cost(lambda: manager.retrieve_many(requests)) == 1
        assert cost(lambda: [manager.store(request) for request in requests[:3]]) == 3
        proxy.quiet_seconds = 0.0
        found = manager.retrieve_many([ask(request.conversation_id) for request in requests])
        assert [texts_of(memories) for memories in found] == [[f"text {number} " * 20] for number in range(200)]
        assert proxy.connections == 1
