"""One process of the soak: threads and tasks that talk, each noting what it asked for and what it was told.

Started by ``soak`` with its orders on standard input, one line of JSON; the next line, or the end of input, ends it.
What it asks and is told goes into a journal, one write per line, so that a SIGKILL costs at most the call at hand.
Once a second it reports its counts and its figures on standard output.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
from soak_journal import digest

from contract_engine.memory import (
    AsyncMemoryManager,
    ContentionError,
    InvalidInputError,
    MemoryConfig,
    MemoryManager,
    Receipt,
    StoreUnavailableError,
)

ATTEMPTS = 3
"""How often a client sends an append before it gives up; it is the same append, by its message id."""

REFUSALS = (StoreUnavailableError, ContentionError)
"""What a server fault may make a caller see. Everything else is a violation."""

CLEARED_SESSIONS = 4
"""How many sessions, beside those that only grow, are erased now and then."""

LIMITS = (
    {"max_buffer_messages": 6},
    {"max_buffer_messages": 9},
    {"max_buffer_tokens": 300},
    {"max_buffer_tokens": 400},
)


class Orders(msgspec.Struct):
    """What a worker is to do. ``name`` is one that no other worker of this run has or had."""

    name: str
    seed: int
    sessions: int
    threads: int
    tasks: int
    warm_seconds: float
    journal: str
    settings: dict[str, Any]


class Figures(msgspec.Struct):
    """What must not grow."""

    rss: int
    blocks: int
    sockets: int
    files: int
    threads: int
    tasks: int


class Status(msgspec.Struct):
    """What a worker says of itself; ``warm`` once it has warmed up, ``final`` when all its clients have ended."""

    acknowledged: int = 0
    unlogged: int = 0
    refused: int = 0
    cleared: int = 0
    reads: int = 0
    degraded: int = 0
    slowest: float = 0.0
    warm: Figures | None = None
    now: Figures | None = None
    final: Figures | None = None
    left_open: list[str] = []


class Complaints(logging.Handler):
    """What the package logs as an error is one: outages are warnings."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.ERROR)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self._journal.write("violation", time.monotonic(), f"logged as an error: {self.format(record)}")


class Journal:
    """Lines appended to one file by any number of threads."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *fields: object) -> None:
        os.write(self._descriptor, json.dumps(fields).encode() + b"\n")


Call = Callable[[Any], Any]
Talk = Generator[Call, Any, None]
"""What a client does, without a colour: it yields calls on its manager, and is sent their answers or their refusals."""


class Client:
    """One writer and reader of all sessions."""

    def __init__(self, orders: Orders, number: int, journal: Journal, status: Status) -> None:
        self.name = f"{orders.name}.{number}"
        self._dice = random.Random(f"{orders.seed} {self.name}")
        self._sessions = orders.sessions
        self._journal = journal
        self._status = status
        self._said = 0
        self._logged: dict[str, int] = {}

    def talk(self) -> Talk:
        """Do one thing."""
        if self._dice.random() < 0.1:
            session = f"c{self._dice.randrange(CLEARED_SESSIONS)}"
            kinds, weights = (self._append, self._batch, self._read, self._clear), (60, 10, 20, 10)
            return self._dice.choices(kinds, weights=weights)[0](session)
        session = f"s{0 if self._dice.random() < 0.1 else self._dice.randrange(self._sessions)}"
        kind = self._dice.choices(
            (self._append, self._turn, self._batch, self._read, self._limit, self._bad),
            weights=(45, 20, 8, 24, 2, 1),
        )[0]
        return kind(session)

    def rest(self) -> float:
        """Return how long to wait before the next thing, in seconds: a load, not a flood."""
        return self._dice.uniform(0.0, 0.03)

    def _message(self, session: str, lengths: Sequence[int] = (0, 0, 2, 5, 30)) -> dict[str, Any]:
        self._said += 1
        words = " and more" * self._dice.choice(lengths)
        role = "user" if self._said % 2 else "assistant"
        content = f"Order {self._said} of {self.name} goes to Paris by 3 May{words}."
        return {"role": role, "writer": self.name, "n": self._said, "session": session, "content": content}

    def _begin(self, session: str, messages: Sequence[Mapping[str, Any]]) -> str:
        call = f"{self.name}-{messages[0]['n']}"
        numbers, digests = [one["n"] for one in messages], [digest(one) for one in messages]
        self._journal.write("begin", time.monotonic(), session, call, self.name, numbers, digests)
        return call

    def _append(self, session: str) -> Talk:
        message = self._message(session)
        call = self._begin(session, [message])
        receipt = yield from self._insist(lambda manager: manager.append(session, message, message_id=call), call)
        if receipt is None:
            return
        self._acknowledge(session, call, [receipt])
        if self._dice.random() < 0.05:
            # Sent again although it was acknowledged: the answer must be the same, and is one effect.
            again = yield from self._insist(lambda manager: manager.append(session, message, message_id=call), call)
            is_final = receipt.durable and not receipt.degraded
            is_kept = not session.startswith("c")  # in one that was erased meanwhile it is a new message
            if again is not None and is_kept and is_final and again.durable and again.seq != receipt.seq:
                self._violation(f"{session}: {call} was number {receipt.seq}, and {again.seq} when sent again")

    def _turn(self, session: str) -> Talk:
        message = self._message(session)
        begun = time.monotonic()
        call = self._begin(session, [message])
        context = yield from self._insist(
            lambda manager: manager.add_and_get_context(session, message, message_id=call), call
        )
        if context is None:
            return
        # No receipt, so whether the log has it is unknown here: it counts as any other acknowledged message.
        self._journal.write("ok", time.monotonic(), call, None, None, context["degraded"])
        self._status.acknowledged += 1
        self._check(session, begun, context, newest=message)

    def _batch(self, session: str) -> Talk:
        # Short enough for every limit here: a batch that no buffer can hold is appended in parts where Redis is alone.
        messages = [self._message(session, (0, 1, 2)) for _ in range(self._dice.randint(2, 4))]
        call = self._begin(session, messages)
        # Without ids a batch must not be sent again: once, and what became of a refused one is not known.
        receipts = yield from self._insist(lambda manager: manager.add_messages(session, messages), call, attempts=1)
        if receipts is not None:
            self._acknowledge(session, call, receipts)

    def _read(self, session: str) -> Talk:
        begun = time.monotonic()
        context = yield lambda manager: manager.get_context(session)
        if isinstance(context, Mapping):
            self._check(session, begun, context)

    def _limit(self, session: str) -> Talk:
        changes = self._dice.choice(LIMITS)
        yield lambda manager: manager.set_session_config(session, changes)

    def _bad(self, session: str) -> Talk:
        """Append what no store can give back as it was: it is refused, and nothing of it is anywhere."""
        message = self._message(session)
        call = self._begin(session, [message])
        bad = [message, message | {"content": {1, 2}}]
        answer = yield lambda manager: manager.add_messages(session, bad)
        if isinstance(answer, InvalidInputError):
            self._journal.write("fail", time.monotonic(), call)
        else:
            self._violation(f"{session}: a message that is none was answered with {type(answer).__name__}")

    def _clear(self, session: str) -> Talk:
        """Erase a session: what was acknowledged before is gone, and what comes later stays."""
        self._said += 1
        call = f"{self.name}-{self._said}"
        self._journal.write("clear", time.monotonic(), session, call)
        if (yield lambda manager: manager.clear_session_memory(session)) is True:
            self._journal.write("cleared", time.monotonic(), call)
            self._status.cleared += 1

    def _insist(self, call: Call, name: str, attempts: int = ATTEMPTS) -> Generator[Call, Any, Any]:
        for _ in range(attempts):
            answer = yield call
            if isinstance(answer, InvalidInputError):
                self._violation(f"{name} was refused: {answer}")
            elif not isinstance(answer, REFUSALS):
                return answer
        self._journal.write("unknown", time.monotonic(), name)
        return None

    def _acknowledge(self, session: str, call: str, receipts: Sequence[Receipt]) -> None:
        durable = all(receipt.durable for receipt in receipts)
        seqs = [receipt.seq for receipt in receipts]
        degraded = any(receipt.degraded for receipt in receipts)
        self._journal.write("ok", time.monotonic(), call, seqs, durable, degraded)
        self._status.acknowledged += len(receipts)
        self._status.unlogged += 0 if durable else len(receipts)
        self._status.degraded += degraded
        if durable and not session.startswith("c"):
            self._logged[session] = max(seqs[-1], self._logged.get(session, 0))

    def _check(
        self, session: str, begun: float, context: Mapping[str, Any], newest: Mapping[str, Any] | None = None
    ) -> None:
        """Hold one read against what must hold for every read, and note it for what others know."""
        self._status.reads += 1
        self._status.degraded += context["degraded"]
        kept, info = context["buffer_messages"], context["buffer_info"]
        keys = [(message["writer"], message["n"]) for message in kept]
        told = [context[name] for name in ("last_seq", "complete", "degraded", "watermark")]
        self._journal.write("read", time.monotonic(), session, self.name, begun, *told, keys, context["source"])
        wrong = []
        if context["watermark"] + len(kept) != context["last_seq"]:
            wrong.append(f"{context['watermark']} + {len(kept)} messages do not end at {context['last_seq']}")
        if len(kept) > 1 and (len(kept) > info["max_messages"] or info["total_tokens"] > info["max_tokens"]):
            wrong.append(f"{len(kept)} messages, {info['total_tokens']} tokens exceed the caps {info}")
        if context["complete"] and bool(context["current_summary"]) != (context["watermark"] > 0):
            wrong.append("summary and watermark do not go together")
        if context["complete"] and context["last_seq"] < self._logged.get(session, 0):
            wrong.append(f"ends at {context['last_seq']}, and {self._logged[session]} was acknowledged here before")
        if context["complete"] and newest is not None and newest not in kept and context["watermark"] == 0:
            wrong.append("the message of this turn is in neither part")
        astray = (message for message in kept if message["session"] != session)
        wrong += [f"{message['writer']} said number {message['n']} in {message['session']}" for message in astray]
        facts = ", ".join(f"{name} {context[name]}" for name in ("source", "degraded", "complete"))
        for one in wrong:
            self._violation(f"{session}: read with {facts}: {one}")

    def _violation(self, text: str) -> None:
        self._journal.write("violation", time.monotonic(), f"{self.name}: {text}")

    def note_call(self, started: float, outcome: object) -> None:
        """Keep count of one call; an error that no server fault explains is a violation."""
        self._status.slowest = max(self._status.slowest, time.monotonic() - started)
        if isinstance(outcome, REFUSALS):
            self._status.refused += 1
        elif isinstance(outcome, Exception) and not isinstance(outcome, InvalidInputError):
            self._violation(f"unexpected {type(outcome).__name__}: {outcome}")


def blocking_client(client: Client, manager: MemoryManager, end: threading.Event) -> None:
    """Talk until the end, in a thread."""
    while not end.wait(client.rest()):
        talk = client.talk()
        try:
            call = next(talk)
            while True:
                started = time.monotonic()
                try:
                    answer = call(manager)
                except Exception as exc:  # noqa: BLE001  # noted, and judged in note_call
                    answer = exc
                client.note_call(started, answer)
                if isinstance(answer, Exception) and not isinstance(answer, (*REFUSALS, InvalidInputError)):
                    break
                call = talk.send(answer)
        except StopIteration:
            pass


async def asyncio_client(client: Client, manager: AsyncMemoryManager, end: asyncio.Event) -> None:
    """Talk until the end, in a task."""
    while not end.is_set():
        await asyncio.sleep(client.rest())
        talk = client.talk()
        try:
            call = next(talk)
            while True:
                started = time.monotonic()
                try:
                    answer = await call(manager)
                except Exception as exc:  # noqa: BLE001  # noted, and judged in note_call
                    answer = exc
                client.note_call(started, answer)
                if isinstance(answer, Exception) and not isinstance(answer, (*REFUSALS, InvalidInputError)):
                    break
                call = talk.send(answer)
        except StopIteration:
            pass


def figures(*, collect: bool) -> Figures:
    """Measure this process; ``collect`` before a comparison, so that only what is held counts, and no bounded cache.

    How full those of summarizers are by then is up to the machine: full they are some 200,000 blocks.
    """
    if collect:
        for one in gc.get_objects():
            if isinstance(one, functools._lru_cache_wrapper):
                one.cache_clear()
        gc.collect()
    process = psutil.Process()
    return Figures(
        rss=process.memory_info().rss,
        blocks=sys.getallocatedblocks(),
        sockets=len(process.net_connections("tcp")),
        files=process.num_fds(),
        threads=threading.active_count(),
        tasks=len(asyncio.all_tasks()),
    )


async def work(orders: Orders) -> None:
    """Run all clients until the next line of standard input, or its end."""
    status, journal = Status(), Journal(orders.journal)
    logging.getLogger().addHandler(Complaints(journal))
    config = MemoryConfig(**orders.settings)
    limits = {"summary_trigger_tokens": 250, "max_buffer_tokens": 400, "max_buffer_messages": 8}
    end, end_of_threads = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def listen() -> None:
        sys.stdin.readline()
        end_of_threads.set()
        loop.call_soon_threadsafe(end.set)

    threading.Thread(target=listen, name="orders", daemon=True).start()
    clients = [Client(orders, number, journal, status) for number in range(orders.threads + orders.tasks)]
    with MemoryManager(config=config, **limits) as blocking:  # type: ignore[arg-type]  # its three limits, by name
        async with AsyncMemoryManager(config=config, **limits) as manager:  # type: ignore[arg-type]  # as above
            threads = [
                threading.Thread(target=blocking_client, args=(client, blocking, end_of_threads))
                for client in clients[: orders.threads]
            ]
            for thread in threads:
                thread.start()
            tasks = [asyncio.create_task(asyncio_client(one, manager, end)) for one in clients[orders.threads :]]
            warm_at = time.monotonic() + orders.warm_seconds
            while not end.is_set():
                await asyncio.sleep(0.5)
                if status.warm is None and time.monotonic() >= warm_at:
                    status.warm = figures(collect=True)
                status.now = figures(collect=False)
                report(status)
            await asyncio.gather(*tasks)
            for thread in threads:
                await asyncio.to_thread(thread.join)
            await manager.wait_for_folds(30)
            await asyncio.to_thread(blocking.wait_for_folds, 30)
            status.final = figures(collect=True)
    await asyncio.sleep(0)  # what a loop has been told to close it closes in its next round
    status.left_open = [f"{one.status} to {one.raddr}" for one in psutil.Process().net_connections("tcp")]
    status.left_open += [f"thread {one.name}" for one in threading.enumerate() if one.name.startswith("contract-")]
    status.left_open += [f"task {one.get_name()}" for one in asyncio.all_tasks() if one is not asyncio.current_task()]
    report(status)


def report(status: Status) -> None:
    sys.stdout.write(msgspec.json.encode(status).decode() + "\n")
    sys.stdout.flush()


def command() -> list[str]:
    """Return the command line of a worker."""
    return [sys.executable, str(Path(__file__))]


if __name__ == "__main__":
    asyncio.run(work(msgspec.json.decode(sys.stdin.readline(), type=Orders)))
