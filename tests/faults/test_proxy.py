"""The fault proxy itself: each fault shown on plain sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from proxy import FaultProxy
from server_faults import waited_for


class Echo:
    """A server that answers each line with the same line, ``copies`` times, and counts the lines."""

    def __init__(self, copies: int = 1) -> None:
        self.copies = copies
        self.heard: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._answer, args=(connection,)))
            self._threads[-1].start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                self.heard.append(line)
                connection.sendall(line * self.copies)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.url) as proxy:
        yield proxy


@contextlib.contextmanager
def client_of(proxy: FaultProxy, *, timeout: float = 10.0) -> Iterator[socket.socket]:
    port = int(proxy.url.rpartition(":")[2].partition("/")[0])
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as client:
        yield client


def ask(client: socket.socket, line: bytes, *, size: int | None = None) -> bytes:
    """Send a line and return ``size`` bytes of what comes back, fewer where the connection ends."""
    client.sendall(line)
    got = bytearray()
    while len(got) < (len(line) if size is None else size):
        data = client.recv(1 << 20)
        if not data:
            break
        got += data
    return bytes(got)


def test_it_passes_everything_on_and_counts_turns(proxy: FaultProxy) -> None:
    with client_of(proxy) as one, client_of(proxy) as two:
        for _ in range(3):
            assert ask(one, b"hello\n") == b"hello\n"
        one.sendall(b"in two ")
        assert ask(one, b"parts\n", size=13) == b"in two parts\n"
        assert ask(two, b"x" * 1_000_000 + b"\n") == b"x" * 1_000_000 + b"\n"
        assert (proxy.connections, proxy.requests, proxy.round_trips) == (2, 5, 5)
        assert proxy.bytes_up == proxy.bytes_down == 3 * 6 + 13 + 1_000_001
        assert proxy.open_connections == 2
    assert waited_for(lambda: proxy.open_connections == 0)
    assert (proxy.resets, proxy.cuts, proxy.swallowed, proxy.abandoned) == (0, 0, 0, 0)


def test_each_direction_has_its_own_delay(proxy: FaultProxy) -> None:
    with client_of(proxy) as client:

        def seconds() -> float:
            started = time.monotonic()
            ask(client, b"hello\n")
            return time.monotonic() - started

        proxy.up.latency = 0.1
        assert seconds() >= 0.1
        proxy.down.latency = 0.2
        assert seconds() >= 0.3
        proxy.heal()
        proxy.delay(0.1, jitter=0.05)
        assert min(seconds() for _ in range(3)) >= 0.1
        proxy.heal()
        assert min(seconds() for _ in range(5)) < 0.1


def test_delayed_bytes_keep_their_order_and_do_not_wait_for_each_other(proxy: FaultProxy) -> None:
    proxy.delay(0.1, jitter=0.05)
    lines = [b"%03d\n" % number for number in range(100)]
    with client_of(proxy) as client:
        started = time.monotonic()
        for line in lines:
            client.sendall(line)
        assert ask(client, b"", size=400) == b"".join(lines)
        assert time.monotonic() - started < 100 * 0.1


def test_a_throttled_reply_takes_its_time(proxy: FaultProxy) -> None:
    proxy.throttle(100_000)
    with client_of(proxy) as client:
        started = time.monotonic()
        assert ask(client, b"x" * 20_000 + b"\n") == b"x" * 20_000 + b"\n"
        assert time.monotonic() - started >= 0.2


def test_a_reset_comes_after_the_request_was_served(proxy: FaultProxy, echo: Echo) -> None:
    with client_of(proxy) as client:
        proxy.reset_replies(to=(b"three", b"four"))
        assert ask(client, b"one\n") == b"one\n"
        assert ask(client, b"two\n") == b"two\n"
        with pytest.raises(ConnectionResetError):
            ask(client, b"three\n")
    assert echo.heard == [b"one\n", b"two\n", b"three\n"]
    assert proxy.resets == 1
    assert proxy.round_trips == 2
    with client_of(proxy) as client:
        assert ask(client, b"three\n") == b"three\n"


@pytest.mark.parametrize("after", [1, 3, 100_000])
def test_a_reply_is_cut_after_its_first_bytes(proxy: FaultProxy, echo: Echo, after: int) -> None:
    echo.copies = 2
    line = b"x" * 70_000 + b"\n"
    with client_of(proxy) as client:
        proxy.cut_replies(after)
        assert ask(client, line, size=140_002) == (line * 2)[:after]
    assert (proxy.cuts, proxy.resets) == (1, 0)
    with client_of(proxy) as client:
        assert ask(client, line, size=140_002) == line * 2


def test_a_reply_stalls_after_its_first_bytes(proxy: FaultProxy, echo: Echo) -> None:
    with client_of(proxy, timeout=0.2) as client:
        proxy.stall_replies(3)
        assert ask(client, b"hello\n", size=3) == b"hel"
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert (proxy.cuts, proxy.swallowed) == (1, 3)
        assert proxy.open_connections == 1
    assert echo.heard == [b"hello\n"]


def test_a_reply_that_is_short_enough_is_not_cut(proxy: FaultProxy) -> None:
    with client_of(proxy) as client:
        proxy.cut_replies(6)
        assert ask(client, b"hello\n") == b"hello\n"
        assert ask(client, b"hello again\n") == b"hello again\n"
    assert proxy.cuts == 0


@pytest.mark.parametrize("is_serving", [True, False], ids=["served", "not served"])
def test_silence_is_not_an_end(proxy: FaultProxy, echo: Echo, *, is_serving: bool) -> None:
    with client_of(proxy, timeout=0.2) as old:
        assert ask(old, b"before\n") == b"before\n"
        proxy.go_silent(is_serving=is_serving)
        with client_of(proxy, timeout=0.2) as new:
            for client in (old, new):
                with pytest.raises(TimeoutError):
                    ask(client, b"hello\n")
            assert waited_for(lambda: proxy.swallowed == 12)
            proxy.heal()
            with pytest.raises(TimeoutError):
                ask(old, b"forgotten\n")
            assert proxy.open_connections == 2
    assert echo.heard == [b"before\n", *([b"hello\n"] * 2 if is_serving else [])]
    assert waited_for(lambda: proxy.open_connections == 0)
    assert proxy.abandoned == 2
    with client_of(proxy) as client:
        assert ask(client, b"hello\n") == b"hello\n"


def test_a_refusing_port_resets_what_was_open(proxy: FaultProxy) -> None:
    with client_of(proxy) as client:
        assert ask(client, b"hello\n") == b"hello\n"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError), client_of(proxy):
        pass
    proxy.heal()
    with client_of(proxy) as client:
        assert ask(client, b"hello\n") == b"hello\n"


def test_a_request_that_is_given_up_is_counted(proxy: FaultProxy, echo: Echo) -> None:
    proxy.delay(0.2)
    with client_of(proxy) as client:
        client.sendall(b"never mind\n")
    assert waited_for(lambda: proxy.abandoned == 1)
    assert waited_for(lambda: proxy.open_connections == 0)
    assert waited_for(lambda: echo.heard == [b"never mind\n"])
