"""Traces (extra ``otel``): a span around every operation and every step of it. What was said is in none of them.

Names follow the conventions of OpenTelemetry for databases and for generative models (development state, 1.45): a whole
operation is a span ``gen_ai.memory.client`` whose ``gen_ai.operation.name`` is ``create_memory``, ``search_memory``,
``upsert_memory`` or ``delete_memory``, where it is one of these. Only names that stand in this package's code are
recorded, and the classes of errors: no content, no session, no tenant, no address, no message of an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from contract_engine.memory.errors import ConfigurationError
from contract_engine.memory.hooks import LEGACY, MANAGER, MODEL, OK, POSTGRES, REDIS, SpanEnd, observers

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer, TracerProvider

SCOPE = "contract_engine.memory"
MEMORY_SPAN = "gen_ai.memory.client"

_CREATE = ("add_message", "append", "add_messages", "add_and_get_context", "add_chat_message")
_SEARCH = (
    "get_context", "search_messages", "load_context", "get_messages", "get_current_summary", "get_summary_history",
    "readable_texts", "get_chat_history", "get_session_context_atomic",
)  # fmt: skip
_UPSERT = (
    "save_context", "set_session_config", "pin", "unpin", "set_summary_instructions", "add_summary", "resummarize",
    "quarantine", "save_session_context_atomic", "fold_when_due", "refine",
)  # fmt: skip
_DELETE = ("clear_session_memory", "clear_summaries", "clear_buffer", "clear_session")

MEMORY_OPERATIONS = (
    dict.fromkeys(_CREATE, "create_memory")
    | dict.fromkeys(_SEARCH, "search_memory")
    | dict.fromkeys(_UPSERT, "upsert_memory")
    | dict.fromkeys(_DELETE, "delete_memory")
)
"""What our operations are called in the conventions; what only looks after the memory is called nothing there."""


def enable_tracing(provider: TracerProvider | None = None) -> Callable[[], None]:
    """Have every operation of this process traced from now on; returns what ends that.

    ``provider``: by default the global one. Without an SDK the spans go nowhere. Raises :class:`ConfigurationError`
    where the extra is missing.
    """
    try:
        # Imported here because it is an extra.
        from opentelemetry import trace
    except ImportError as exc:
        raise ConfigurationError("tracing", "opentelemetry-api is missing; install contract-engine[otel]") from exc
    return observers.add_spans(MemorySpans(trace.get_tracer(SCOPE, tracer_provider=provider)))


class MemorySpans:
    """Begins and ends the spans, each in the thread or task of its operation."""

    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry import context, trace  # an extra; whoever has a tracer has it

        self._tracer = tracer
        self._context: Any = context
        self._trace: Any = trace

    def begin(self, operation: str, backend: str) -> SpanEnd:
        """Begin a span below the one that is current here, and make it the current one."""
        kinds = self._trace.SpanKind
        kind = kinds.CLIENT if backend in (MANAGER, REDIS, POSTGRES, MODEL, LEGACY) else kinds.INTERNAL
        name, attributes = span_of(operation, backend)
        span = self._tracer.start_span(name, kind=kind, attributes=attributes)
        token = self._context.attach(self._trace.set_span_in_context(span))

        def end(outcome: str, error: BaseException | None) -> None:
            self._context.detach(token)
            span.set_attribute("contract_memory.outcome", outcome)
            if error is not None:
                span.set_attribute("error.type", type(error).__qualname__)
            if outcome not in (OK, "nothing"):
                # No description: the message of an error may say too much.
                span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
            span.end()

        return end


def span_of(operation: str, backend: str) -> tuple[str, dict[str, str]]:
    """Return name and attributes of a span."""
    attributes = {"contract_memory.operation": operation, "contract_memory.backend": backend}
    if backend == MANAGER:
        named = MEMORY_OPERATIONS.get(operation)
        if named is None:
            return f"contract_memory {operation}", attributes
        return MEMORY_SPAN, attributes | {"gen_ai.operation.name": named, "gen_ai.provider.name": "contract_engine"}
    if backend == REDIS:
        return f"redis {operation}", attributes | {"db.system.name": "redis", "db.operation.name": operation}
    if backend == POSTGRES:
        return f"postgresql {operation}", attributes | {
            "db.system.name": "postgresql",
            "db.query.summary": operation,
        }
    if backend == LEGACY:
        return f"legacy {operation}", attributes
    if backend == MODEL:
        return "chat", attributes | {"gen_ai.operation.name": "chat"}
    return operation, attributes
