"""Writers that go on while servers are harmed: one per session, each message sent again under its id until it is in.

Blocking ones are threads on one manager, the others tasks on one manager in one event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from lost_messages import nothing_lost
from memory_contract import SYNC, Backend, assert_context, logged, say, talk
from redis_topologies import waited_for
from vain_waits import Changes, VainWaits

from contract_engine.memory import AsyncMemoryManager, MemoryConfig, MemoryManager, Receipt, StoreUnavailableError

LIMITS: dict[str, Any] = {
    "summary_trigger_tokens": 900_000,
    "max_buffer_tokens": 1_000_000,
    "max_buffer_messages": 100_000,
}
"""No fold: without a log an id is remembered while its message is in the buffer."""


def is_served(manager: MemoryManager, session_id: str) -> bool:
    """Whether Redis answers a reader of this session, without a fault in sight."""
    context = manager.get_context(session_id)
    return (context["source"], context["degraded"]) == ("redis", False)


class SteadyWriters:
    """Writes message 1, 2, 3 ... to every session until the ``with`` block ends; raises there what a writer raised."""

    def __init__(
        self, colour: str, config: MemoryConfig, sessions: Sequence[str], *, limits: Mapping[str, Any] = LIMITS
    ) -> None:
        self._config = config
        self._limits = limits
        self._ended = threading.Event()
        self._errors: list[BaseException] = []
        self.receipts: dict[str, list[Receipt]] = {session_id: [] for session_id in sessions}
        self.refused = 0
        """Attempts that were answered by an error, and made again."""
        self.attempts: list[int] = []
        """How often each attempt has waited for a server in vain."""
        self._thread = threading.Thread(target=self._run, args=(self._write if colour == SYNC else self._write_tasks,))

    def counts(self) -> dict[str, int]:
        """Return how many messages of each session were acknowledged so far."""
        return {session_id: len(receipts) for session_id, receipts in self.receipts.items()}

    def progress(self, more: int = 5) -> None:
        """Wait until each session has ``more`` further messages; fails where a writer is stuck."""
        wanted = {session_id: count + more for session_id, count in self.counts().items()}

        def is_further() -> bool:
            return bool(self._errors) or all(self.counts()[name] >= count for name, count in wanted.items())

        assert waited_for(is_further), (wanted, self.counts())

    def served_by_redis(self) -> None:
        """Wait until Redis was told of the last message of each session."""

        def is_told() -> bool:
            return bool(self._errors) or not any(receipts[-1].degraded for receipts in self.receipts.values())

        self.progress(1)
        assert waited_for(is_told)

    @nothing_lost()
    def assert_nothing_lost(self, backend: Backend, reader: MemoryManager) -> None:
        """Every message acknowledged is there, once and in order, for a reader of its own."""
        for session_id, receipts in self.receipts.items():
            said = talk(len(receipts))
            # With a log, the number of a message that waited for it is provisional.
            final = [one for one in enumerate(receipts, 1) if one[1].durable or not backend.is_durable]
            assert [receipt.seq for _, receipt in final] == [number for number, _ in final]
            assert_context(reader.get_context(session_id), said)
            if backend.database_url:
                assert logged(backend.database_url, backend.tenant, session_id) == list(enumerate(said, 1))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._errors and kind is None:
            raise self._errors[0]

    def _run(self, write: Any) -> None:
        try:
            write()
        except BaseException as exc:  # noqa: BLE001  # raised again in the thread of the test
            self._errors.append(exc)

    def _watch(self, manager: MemoryManager | AsyncMemoryManager) -> None:
        self.changes = Changes(manager.circuit_breaker)
        self.waits = VainWaits(manager)

    def _write(self) -> None:
        with MemoryManager(config=self._config, **self._limits) as manager:
            self._watch(manager)
            threads = [
                threading.Thread(target=self._run, args=(lambda s=s: self._say(manager, s),)) for s in self.receipts
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _say(self, manager: MemoryManager, session_id: str) -> None:
        receipts = self.receipts[session_id]
        while not self._ended.is_set():
            number, waited = len(receipts) + 1, self.waits.of_caller()
            try:
                receipts.append(manager.append(session_id, say(number), message_id=f"m{number}"))
            except StoreUnavailableError:
                self.refused += 1
                self._ended.wait(0.02)
            self.attempts.append(self.waits.of_caller() - waited)

    def _write_tasks(self) -> None:
        asyncio.run(self._write_async())

    async def _write_async(self) -> None:
        async with AsyncMemoryManager(config=self._config, **self._limits) as manager, asyncio.TaskGroup() as tasks:
            self._watch(manager)
            for session_id in self.receipts:
                tasks.create_task(self._say_async(manager, session_id))

    async def _say_async(self, manager: AsyncMemoryManager, session_id: str) -> None:
        receipts = self.receipts[session_id]
        while not self._ended.is_set():
            number, waited = len(receipts) + 1, self.waits.of_caller()
            try:
                receipts.append(await manager.append(session_id, say(number), message_id=f"m{number}"))
            except StoreUnavailableError:
                self.refused += 1
                await asyncio.sleep(0.02)
            self.attempts.append(self.waits.of_caller() - waited)
