"""Traces: who is below whom, in threads and tasks, and that nothing that was said is in any of them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from memory_contract import Backend, say, talk
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from contract_engine.memory import AsyncMemoryManager, MemoryManager
from contract_engine.memory.hooks import observers
from contract_engine.memory.summarizers import ModelSummarizer
from contract_engine.memory.tracing import MEMORY_OPERATIONS, MEMORY_SPAN, enable_tracing

pytest_plugins = ["memory_fixtures"]

CANARY = "canary-51c0"


class Traces:
    """What was exported, and a tracer for spans of a caller."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def of(self, operation: str, backend: str = "manager") -> list[ReadableSpan]:
        wanted = {"contract_memory.operation": operation, "contract_memory.backend": backend}
        return [span for span in self.spans if wanted.items() <= dict(span.attributes or {}).items()]

    def below(self, parent: ReadableSpan) -> list[ReadableSpan]:
        assert parent.context is not None
        return [span for span in self.spans if span.parent and span.parent.span_id == parent.context.span_id]


@pytest.fixture
def traces() -> Iterator[Traces]:
    found = Traces()
    stop = enable_tracing(found.provider)
    yield found
    stop()
    assert not observers.is_active


def backends(spans: list[ReadableSpan]) -> list[object]:
    return [dict(span.attributes or {})["contract_memory.backend"] for span in spans]


def test_operations_have_their_steps_below_them(manager: MemoryManager, backend: Backend, traces: Traces) -> None:
    manager.add_message("s", say(1))  # a first one has to make its buffer
    manager.add_message("s", say(2))
    (_, span) = traces.of("add_message")
    assert span.name == MEMORY_SPAN == "gen_ai.memory.client"
    assert dict(span.attributes or {})["gen_ai.operation.name"] == "create_memory"
    assert span.parent is None
    steps = traces.below(span)
    assert backends(steps) == (["postgres", "redis"] if backend.is_durable else ["redis"])
    assert [step.name for step in steps][-1] == ("redis append" if backend.is_durable else "redis assign")
    for step in steps:
        assert span.start_time is not None
        assert step.start_time is not None
        assert step.end_time is not None
        assert span.end_time is not None
        assert span.start_time <= step.start_time <= step.end_time <= span.end_time


def test_the_four_names_of_the_conventions(manager: MemoryManager, traces: Traces) -> None:
    manager.add_message("s", say(1))
    manager.get_context("s")
    manager.set_session_config("s", {"max_buffer_messages": 20})
    manager.clear_session_memory("s")
    named = [dict(span.attributes or {}).get("gen_ai.operation.name") for span in traces.spans]
    assert [name for name in named if name] == ["create_memory", "search_memory", "upsert_memory", "delete_memory"]


def test_every_operation_that_has_a_name_exists() -> None:
    from contract_engine.memory import BufferStore, PostgresSessionStore, SummaryStore

    flows = {"fold_when_due", "refine"}
    for name in MEMORY_OPERATIONS.keys() - flows:
        owners = (MemoryManager, BufferStore, SummaryStore, PostgresSessionStore)
        assert any(hasattr(owner, name) for owner in owners), name


def test_a_span_of_the_caller_is_the_parent(manager: MemoryManager, traces: Traces) -> None:
    with traces.tracer.start_as_current_span("turn") as turn:
        manager.add_message("s", say(1))
        manager.get_context("s")
    spans = [traces.of("add_message")[0], traces.of("get_context")[0]]
    assert all(span.parent and span.parent.span_id == turn.get_span_context().span_id for span in spans)
    manager.get_context("s")
    assert traces.of("get_context")[1].parent is None, "what was current before is current again"


def test_threads_do_not_mix_their_spans(redis_url: str, tenant: str, traces: Traces) -> None:
    with MemoryManager(redis_url=redis_url, tenant=tenant) as manager:

        def turn(number: int) -> tuple[int, int]:
            with traces.tracer.start_as_current_span(f"turn {number}") as span:
                manager.add_message(f"s{number}", say(1))
                return span.get_span_context().span_id, number

        with ThreadPoolExecutor(8) as pool:
            turns = list(pool.map(turn, range(40)))
    parents = [span.parent.span_id for span in traces.of("add_message") if span.parent]
    assert sorted(parents) == sorted(span_id for span_id, _ in turns), "each has its own"
    for span in traces.of("add_message"):
        assert backends(traces.below(span))[-1] == "redis"


async def test_tasks_do_not_mix_their_spans(redis_url: str, tenant: str, traces: Traces) -> None:
    async with AsyncMemoryManager(redis_url=redis_url, tenant=tenant) as manager:

        async def turn(number: int) -> int:
            with traces.tracer.start_as_current_span(f"turn {number}") as span:
                await manager.add_message(f"s{number}", say(1))
                return span.get_span_context().span_id

        turns = await asyncio.gather(*(turn(number) for number in range(40)))
    parents = [span.parent.span_id for span in traces.of("add_message") if span.parent]
    assert sorted(parents) == sorted(turns)
    for span in traces.of("add_message"):
        steps = traces.below(span)
        assert steps
        assert {step.context.trace_id for step in steps if step.context} == {
            span.context.trace_id if span.context else 0
        }


def test_what_an_operation_begins_in_the_background_belongs_to_it(durable: Backend, traces: Traces) -> None:
    writer = ModelSummarizer(lambda messages, max_tokens: "NONE", name="none")
    manager = durable.open(max_buffer_messages=6, facts_writer=writer)
    for number in range(1, 7):
        manager.append("s", say(number))
    manager.wait_for_folds()
    (fold,) = traces.of("fold_when_due")
    assert fold.parent is not None
    assert fold.parent.span_id in {span.context.span_id for span in traces.of("append") if span.context}
    (refine,) = traces.of("refine")
    assert fold.context is not None
    assert refine.parent is not None
    assert refine.context is not None
    assert refine.context.trace_id == fold.context.trace_id
    (model,) = traces.of("write_facts", "model")
    assert (model.name, model.parent.span_id if model.parent else 0) == ("chat", refine.context.span_id)


def test_spans_begun_inside_a_model_are_below_it(durable: Backend, traces: Traces) -> None:
    def model(messages: object, max_tokens: int) -> str:
        with traces.tracer.start_as_current_span("the vendor's own span"):
            return "NONE"

    manager = durable.open(max_buffer_messages=4, facts_writer=ModelSummarizer(model, name="traced"))
    manager.add_messages("s", talk(8))
    manager.get_context("s")
    manager.wait_for_folds()
    inner = next(span for span in traces.spans if span.name == "the vendor's own span")
    outer = traces.of("write_facts", "model")
    assert inner.parent is not None
    assert inner.parent.span_id in {span.context.span_id for span in outer if span.context}


def test_errors_are_told_by_their_class_alone(backend: Backend, traces: Traces) -> None:
    manager = backend.open(
        redis_url="redis://127.0.0.1:1/0", database_url="postgresql://127.0.0.1:1/x" if backend.is_durable else None
    )
    assert manager.add_message("s", say(1)) is False
    (step, *_) = [span for span in traces.spans if "error.type" in dict(span.attributes or {})]
    assert str(dict(step.attributes or {})["error.type"]).endswith("UnavailableError")
    assert step.status.description is None
    assert not step.status.is_ok
    assert not step.events
    (span,) = traces.of("add_message")
    assert dict(span.attributes or {})["contract_memory.outcome"] == "refused"
    assert not span.status.is_ok


def test_what_was_said_is_in_no_span(durable: Backend, traces: Traces) -> None:
    durable.tenant = f"{CANARY}-tenant"
    written: list[object] = []

    def model(messages: Any, max_tokens: int) -> str:
        written.append(messages)
        return f"user: {CANARY}"

    manager = durable.open(max_buffer_messages=4, facts_writer=ModelSummarizer(model, name="told"))
    session = f"{CANARY}-session"
    for number in range(12):
        manager.append(session, {"role": "user", "content": f"{CANARY} {number}"}, message_id=f"{CANARY}-{number}")
    manager.get_context(session, f"what of {CANARY}?")
    manager.search_messages(session, CANARY)
    manager.save_context(session, {"session_id": session, "note": CANARY})
    manager.set_summary_instructions(session, CANARY)
    with pytest.raises(ValueError, match="message_id"):
        manager.pin(session, f"{CANARY}-of-nobody")
    manager.wait_for_folds()
    manager.clear_session_memory(session)
    assert written, "the model was asked"
    assert len(traces.spans) > 40
    for span in traces.spans:
        shown = json.dumps(json.loads(span.to_json())) + repr(dict(span.attributes or {})) + repr(span.events)
        assert CANARY not in shown, span.name


def test_without_the_extra_the_error_names_it() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from contract_engine.memory import ConfigurationError\n"
        "from contract_engine.memory.tracing import enable_tracing\n"
        "try:\n    enable_tracing()\nexcept ConfigurationError as exc:\n    print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "contract-engine[otel]" in done.stdout
