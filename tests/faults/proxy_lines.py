"""One way of one connection through the fault proxy, where bytes are late and no faster than the line lets them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

CHUNK_BYTES = 64 * 1024
PIECES_PER_SECOND = 50
"""In how many pieces a throttled line sends what it can in a second."""


@dataclass
class Line:
    """One direction of every connection: seconds of delay, up to so many more by chance, and bytes a second.

    0 bytes a second: no limit. What is under way keeps the delay it has begun with.
    """

    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: int = 0

    def heal(self) -> None:
        self.latency = self.jitter = 0.0
        self.bandwidth = 0


@dataclass
class Passing:
    """What of the bytes that were read may pass, and whether it is the last that does."""

    data: bytes
    is_last: bool


class Direction:
    """One way of one connection. It is read as fast as it comes, so that each piece has its own delay."""

    def __init__(self, line: Line, chance: random.Random) -> None:
        self._line = line
        self._random = chance
        self._pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def read(self, source: asyncio.StreamReader, look: Callable[[bytes], Passing]) -> None:
        """Ask ``look`` about everything that comes, the end included: no bytes."""
        while True:
            try:
                data = await source.read(CHUNK_BYTES)
            except OSError:
                data = b""
            passing = look(data)
            if passing.data:
                self._pieces.put_nowait((self._due(), passing.data))
            if passing.is_last:
                self._pieces.put_nowait((self._due(), b""))
            if passing.is_last or not data:
                return

    def _due(self) -> float:
        return asyncio.get_running_loop().time() + self._line.latency + self._line.jitter * self._random.random()

    async def deliver(self, sink: asyncio.StreamWriter, tell: Callable[[], None]) -> None:
        """Write each piece when it is due, in order, after telling of it; returns at the end of the direction."""
        while True:
            due, data = await self._pieces.get()
            if (seconds := due - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(seconds)
            if not data:
                return
            tell()
            bandwidth = self._line.bandwidth
            size = max(1, bandwidth // PIECES_PER_SECOND) if bandwidth else len(data)
            for start in range(0, len(data), size):
                if bandwidth:
                    await asyncio.sleep(size / bandwidth)
                sink.write(data[start : start + size])
                try:
                    await sink.drain()
                except OSError:
                    return
