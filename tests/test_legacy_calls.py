"""Calls to a legacy store: coroutines that a blocking adapter awaits, what they raise, and how calls are told of."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dual_stores import HASTY, adapter, contents, open_store, say, talk
from legacy_stores import AsyncListStore, LegacyError, ListStore
from memory_contract import ASYNC, DURABLE, SYNC, Backend
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from server_faults import waited_for

from contract_engine.memory import LegacyUnavailableError
from contract_engine.memory.hooks import LEGACY, Detail, OperationEnded, observers
from contract_engine.memory.tracing import enable_tracing

pytest_plugins = ("memory_fixtures",)

PATIENCE = 30.0


class LoopStore(AsyncListStore):
    """Notes on which loops it was awaited; ``raises``: what to raise, ``waits``: whether a read never comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.loops: set[int] = set()
        self.raises: BaseException | None = None
        self.waits = self.was_cancelled = False

    async def add_chat_message(self, session_id: str, message: dict[str, Any]) -> None:
        self.loops.add(id(asyncio.get_running_loop()))
        await asyncio.sleep(0)
        if self.raises is not None:
            raise self.raises
        await super().add_chat_message(session_id, message)

    async def get_chat_history(self, session_id: str) -> list[dict[str, Any]]:
        self.loops.add(id(asyncio.get_running_loop()))
        if self.waits:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.was_cancelled = True
                raise
        return await super().get_chat_history(session_id)


class HiddenStore(ListStore):
    """Its coroutines are not seen before they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = AsyncListStore()

    def add_chat_message(self, session_id: str, message: dict[str, Any]) -> Any:
        return self.awaited.add_chat_message(session_id, message)

    def get_chat_history(self, session_id: str) -> Any:
        return self.awaited.get_chat_history(session_id)


def test_a_blocking_adapter_takes_coroutines_and_runs_them_on_one_loop(blocking: Backend) -> None:
    legacy, another = LoopStore(), LoopStore()
    with open_store(blocking, legacy, is_relaying=True) as store:
        for number in range(5):
            assert store.add_chat_message("s", say(number))
        assert waited_for(lambda: legacy.contents("s") == talk(*range(5)), PATIENCE), "from a thread beside"
        assert contents(store.get_chat_history("s")) == talk(*range(5))
        assert inspect.iscoroutinefunction(legacy.get_chat_history)
        assert contents(store.await_legacy(lambda: legacy.get_chat_history("s"))) == talk(*range(5))
    with open_store(blocking, another) as store:
        store.add_chat_message("t", say(1))
        assert store.settle()
        assert contents(store.get_chat_history("t")) == talk(1)
    assert len(legacy.loops | another.loops) == 1


async def test_it_may_be_called_from_a_running_loop(blocking: Backend) -> None:
    legacy = LoopStore()
    with open_store(blocking, legacy) as store:
        assert store.add_chat_message("s", say(1))
        assert store.settle()
    assert legacy.loops.isdisjoint({id(asyncio.get_running_loop())})


def test_so_does_what_shows_its_coroutines_when_it_is_called(blocking: Backend) -> None:
    legacy = HiddenStore()
    with open_store(blocking, legacy) as store:
        store.add_chat_message("s", say(1))
        assert store.settle()
        assert contents(store.get_chat_history("s")) == legacy.awaited.contents("s") == talk(1)


@pytest.mark.parametrize("raised", [LegacyError(), asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(3)])
def test_what_coroutines_raise_is_carried_to_the_caller_and_the_loop_goes_on(
    blocking: Backend, raised: BaseException
) -> None:
    legacy = LoopStore()
    with open_store(blocking, legacy) as store:
        store.add_chat_message("s", say(1))
        legacy.raises = raised
        if isinstance(raised, KeyboardInterrupt | SystemExit):
            with pytest.raises(type(raised)):
                store.relay_once()
        else:
            assert store.relay_once() == 0
            (waiting,) = store.waiting_sessions()
            assert waiting.error in ("LegacyError", "CoroutineCancelledError")
            assert store.legacy_breaker.snapshot().failed == 1
        legacy.raises = None
        assert store.settle()
        assert legacy.contents("s") == talk(1)


class Stopping(ListStore):
    """It raises what an iteration ends with."""

    is_failing = True

    def add_chat_message(self, session_id: str, message: dict[str, Any]) -> None:
        if self.is_failing:
            raise StopIteration
        super().add_chat_message(session_id, message)


def test_a_stop_iteration_is_an_error_like_any_other(backend: Backend) -> None:
    legacy = Stopping()
    store = open_store(backend, legacy)
    store.add_chat_message("s", say(1))
    assert store.relay_once() == 0
    (waiting,) = store.waiting_sessions()
    assert waiting.error in ("StopIteration", "RuntimeError")
    legacy.is_failing = False
    assert store.settle()
    assert legacy.contents("s") == talk(1)
    store.close()


def test_a_caller_who_is_interrupted_has_the_coroutine_cancelled(blocking: Backend) -> None:
    legacy = LoopStore()
    legacy.waits = True
    assert threading.current_thread() is threading.main_thread()
    with open_store(blocking, legacy) as store:
        store.add_chat_message("s", say(1))
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            store.get_chat_history("s")
        timer.join()
        assert waited_for(lambda: legacy.was_cancelled, PATIENCE)


FORKS = """
import asyncio, os, sys
sys.path[:0] = [{tests!r}]
from legacy_stores import AsyncListStore
from contract_engine.memory import EnhancedSessionStore, MemoryManager
url, redis_url, tenant = sys.argv[1:]
legacy = AsyncListStore()
with MemoryManager(redis_url=redis_url, database_url=url, tenant=tenant) as manager:
    store = EnhancedSessionStore(manager, legacy, is_relaying=False)
    store.add_chat_message("s", {{"role": "user", "content": "parent"}})
    assert store.relay_once() == 1
    child = os.fork()
    if not child:
        store.add_chat_message("t", {{"role": "user", "content": "child"}})
        assert store.relay_once() == 1
        assert legacy.contents("t") == ["child"]
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    store.add_chat_message("s", {{"role": "user", "content": "parent again"}})
    assert store.relay_once() == 1
    assert legacy.contents("s") == ["parent", "parent again"]
    store.close()
print("done")
"""


def test_parent_and_child_of_a_fork_have_loops_of_their_own(blocking: Backend) -> None:
    code = FORKS.format(tests=str(Path(__file__).parent))
    arguments = [str(blocking.database_url), blocking.redis_url, blocking.tenant]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert not done.stderr


# -- a layer that is told of


@pytest.fixture(params=[SYNC, ASYNC])
def backend(request: pytest.FixtureRequest, redis_url: str, database_url: str, tenant: str) -> Iterator[Backend]:
    found = Backend(request.param, DURABLE, redis_url, database_url, tenant)
    yield found
    found.close()


@contextmanager
def told() -> Iterator[list[tuple[str, str]]]:
    """Name the calls to the legacy store that end meanwhile, and how they do."""
    found: list[tuple[str, str]] = []

    def hook(detail: Detail) -> None:
        if isinstance(detail, OperationEnded) and detail.backend == LEGACY:
            assert detail.seconds >= 0
            found.append((detail.operation, detail.outcome))

    stop = observers.add(hook)
    yield found
    stop()


class Odd:
    """An answer that is neither true nor false."""

    def __bool__(self) -> bool:
        raise ValueError


@pytest.mark.parametrize("kind", [ListStore, AsyncListStore])
def test_calls_to_the_legacy_store_are_a_layer(backend: Backend, kind: type) -> None:
    legacy = kind()
    inner = legacy if isinstance(legacy, ListStore) else legacy.inner
    store = adapter(backend, backend.open(), legacy)
    with told() as calls:
        store.add_chat_message("s", say(1))
        assert calls == [], "nobody waits for it"
        store.relay_once()
        store.get_chat_history("s")
        assert calls == [("add_chat_message", "ok"), ("get_chat_history", "ok")]
        del calls[:]
        inner.fails_reads = True
        for _ in range(5):
            with pytest.raises(LegacyUnavailableError):
                store.get_chat_history("s")
        with pytest.raises(LegacyUnavailableError):
            store.get_chat_history("s")
        assert calls == [("get_chat_history", "unavailable")] * 5 + [("get_chat_history", "rejected")]
    store.close()


@pytest.mark.parametrize(("answer", "outcome"), [(False, "refused"), (None, "ok"), (Odd(), "ok")])
def test_whatever_it_answers(blocking: Backend, answer: Any, outcome: str) -> None:
    class Answering(ListStore):
        def add_chat_message(self, session_id: str, message: dict[str, Any]) -> Any:
            return answer

    with open_store(blocking, Answering()) as store, told() as calls:
        store.add_chat_message("s", say(1))
        assert store.relay_once() == (outcome == "ok")
        assert calls == [("add_chat_message", outcome)]


def test_its_spans_are_below_the_round_that_called_it_and_say_nothing(backend: Backend) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    stop = enable_tracing(provider)
    store = adapter(backend, backend.open(), AsyncListStore(), relay=HASTY)
    store.add_chat_message("a session", say(1))
    store.relay_once()
    store.close()
    stop()
    spans = exporter.get_finished_spans()
    (call,) = [span for span in spans if span.name == "legacy add_chat_message"]
    assert dict(call.attributes or {}) == {
        "contract_memory.operation": "add_chat_message",
        "contract_memory.backend": "legacy",
        "contract_memory.outcome": "ok",
    }
    (parent,) = [span for span in spans if span.context and call.parent and span.context.span_id == call.parent.span_id]
    assert parent.name == "contract_memory relay_once"
    assert "message 1" not in "".join(span.to_json() for span in spans)
