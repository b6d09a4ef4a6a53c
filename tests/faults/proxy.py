"""A network to harm: a TCP proxy in front of Redis or PostgreSQL that delays, resets, cuts, swallows and refuses.

It runs on an event loop in a thread of its own, so that blocking and asyncio clients both can use it, and is controlled
from any thread while it runs. Both protocols take turns: a *request* begins where the client speaks after the server,
and a *round trip* is complete where the server speaks after the client.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from proxy_lines import CHUNK_BYTES, Direction, Line, Passing

CONTROL_SECONDS = 10.0

_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass
class _Ambush:
    """What the next replies meet: the first ``keep`` bytes pass, then the connection ends; with 0 by a reset.

    ``is_stall``: it does not end, but nothing more comes.
    """

    markers: tuple[bytes, ...] = ()
    keep: int = 0
    left: int = 0
    is_stall: bool = False


class FaultProxy:
    """Stands in front of the server of ``url``; clients use :attr:`url`. It harms nobody until told so.

    Every count is of what happened since the start, ``open_connections`` apart.
    """

    def __init__(self, url: str, *, seed: int = 0) -> None:
        parts = urlsplit(url)
        self.target = (parts.hostname or "127.0.0.1", parts.port or {"redis": 6379}.get(parts.scheme, 5432))
        self.up, self.down = Line(), Line()
        self.random = random.Random(seed)
        self.is_silent = self.is_serving = False
        self.connections = 0
        self.requests = 0
        self.round_trips = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.resets = 0
        """Replies that met a reset in place of their first byte."""
        self.cuts = 0
        """Replies that ended, or stalled, before their last byte."""
        self.swallowed = 0
        """Bytes of either side that were read and given to nobody."""
        self.abandoned = 0
        """Connections that the client closed with a request under way."""
        self._ambush = _Ambush()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._server: asyncio.Server | None = None
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy")
        self._thread.start()
        self._on_loop(self._listen)
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        self.url = urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{self._port}"))

    @property
    def open_connections(self) -> int:
        """How many connections there are now, on either side."""
        return len(self._links)

    def delay(self, round_trip: float, *, jitter: float = 0.0) -> None:
        """Have each round trip take so much longer, one half on either way."""
        for line in (self.up, self.down):
            line.latency, line.jitter = round_trip / 2, jitter / 2

    def throttle(self, bytes_per_second: int) -> None:
        """Have replies come no faster."""
        self.down.bandwidth = bytes_per_second

    def reset_replies(self, times: int = 1, *, to: tuple[bytes, ...] = (b"",)) -> None:
        """Reset the connections of the next requests that hold any of ``to``, when the server has begun to answer.

        Not a byte of the answer reaches the client.
        """
        self._ambush = _Ambush(to, 0, times)

    def cut_replies(self, after: int, times: int = 1, *, to: tuple[bytes, ...] = (b"",)) -> None:
        """Close the connections of the next requests that hold any of ``to`` after so many bytes of the reply.

        A reply that is no longer than that passes whole, and is no cut.
        """
        assert after > 0, "that would be a reset"
        self._ambush = _Ambush(to, after, times)

    def stall_replies(self, after: int, times: int = 1, *, to: tuple[bytes, ...] = (b"",)) -> None:
        """Have nothing more come, and no FIN, where :meth:`cut_replies` would close the connection."""
        assert after > 0, "that would be silence"
        self._ambush = _Ambush(to, after, times, is_stall=True)

    def go_silent(self, *, is_serving: bool = False) -> None:
        """Accept and read, and answer nothing: no reply, no FIN. ``is_serving``: requests still reach the server.

        A connection that lost bytes this way never speaks again, as if a router had forgotten it; new ones do.
        """
        self.is_serving = is_serving
        self.is_silent = True

    def refuse(self) -> None:
        """Listen no more, and reset every connection there is."""

        async def work() -> None:
            self._refuse()

        self._on_loop(work)

    def heal(self) -> None:
        """End every fault."""
        self.up.heal()
        self.down.heal()
        self.is_silent = self.is_serving = False
        self._ambush = _Ambush()
        if self._server is None:
            self._on_loop(self._listen)

    def close(self) -> None:
        """End every connection, and the thread; raises what went wrong in the proxy itself."""

        async def work() -> None:
            self._refuse()
            if self._tasks:
                await asyncio.wait(self._tasks)

        self._on_loop(work)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CONTROL_SECONDS)
        self._loop.close()
        if self._errors:
            raise self._errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def ambushed(self, request: bytes | bytearray) -> _Ambush | None:
        """Return what the reply to this request is to meet."""
        ambush = self._ambush
        if ambush.left == 0 or not any(marker in request for marker in ambush.markers):
            return None
        ambush.left -= 1
        return ambush

    def _on_loop(self, work: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(CONTROL_SECONDS)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self._port, limit=CHUNK_BYTES, reuse_address=True
        )
        self._port = self._server.sockets[0].getsockname()[1]

    def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for link in self._links:
            link.reset()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link(self, reader, writer)
        self._links.add(link)
        task = self._loop.create_task(link.run())
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._links.discard(link)
            if not task.cancelled() and (error := task.exception()):
                self._errors.append(error)

        task.add_done_callback(ended)


class _Link:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writers = [writer]
        self._is_asking = self._is_lost = False
        self._request = bytearray()
        self._ambush: _Ambush | None = None
        self._keep = 0

    async def run(self) -> None:
        """Carry bytes until one side has ended and the other one has got everything from before that."""
        proxy, client = self._proxy, self._writers[0]
        try:
            reader, server = await asyncio.open_connection(*proxy.target, limit=CHUNK_BYTES)
        except OSError:
            self.reset()
            return
        self._writers.append(server)
        if client.is_closing():  # reset meanwhile
            self.reset()
            return
        up, down = Direction(proxy.up, proxy.random), Direction(proxy.down, proxy.random)
        deliveries = [
            asyncio.ensure_future(up.deliver(server, lambda: None)),
            asyncio.ensure_future(down.deliver(client, self._delivered)),
        ]
        readings = [
            asyncio.ensure_future(up.read(self._reader, self._asked)),
            asyncio.ensure_future(down.read(reader, self._answered)),
        ]
        try:
            await asyncio.wait(deliveries, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*deliveries, *readings):
                task.cancel()
            results = await asyncio.gather(*deliveries, *readings, return_exceptions=True)
            for writer in self._writers:
                writer.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def reset(self) -> None:
        """End both sides at once, with RST and not with FIN."""
        for writer in self._writers:
            if not writer.is_closing():
                connection: socket.socket = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            writer.transport.abort()

    def _asked(self, data: bytes) -> Passing:
        proxy = self._proxy
        if not data:
            proxy.abandoned += self._is_asking
            return Passing(b"", True)
        if not self._is_asking:
            self._is_asking = True
            proxy.requests += 1
            self._request.clear()
            self._ambush = None
        self._is_lost |= proxy.is_silent and not proxy.is_serving
        if self._is_lost and not proxy.is_serving:
            proxy.swallowed += len(data)
            return Passing(b"", False)
        self._request += data
        if self._ambush is None and (ambush := proxy.ambushed(self._request)):
            self._ambush, self._keep = ambush, ambush.keep
        proxy.bytes_up += len(data)
        return Passing(data, False)

    def _answered(self, data: bytes) -> Passing:
        proxy = self._proxy
        self._is_lost |= proxy.is_silent
        if self._is_lost:
            proxy.swallowed += len(data)
            return Passing(b"", False)
        if not data:
            return Passing(b"", True)
        if self._ambush is None:
            proxy.bytes_down += len(data)
            return Passing(data, False)
        if self._ambush.keep == 0:
            proxy.resets += 1
            self.reset()
            return Passing(b"", True)
        is_cut = len(data) > self._keep
        passing = data[: self._keep]
        self._keep -= len(passing)
        proxy.cuts += is_cut
        proxy.bytes_down += len(passing)
        if is_cut and self._ambush.is_stall:
            self._is_lost = True
            proxy.swallowed += len(data) - len(passing)
        return Passing(passing, is_cut and not self._ambush.is_stall)

    def _delivered(self) -> None:
        if self._is_asking:
            self._is_asking = False
            self._proxy.round_trips += 1
