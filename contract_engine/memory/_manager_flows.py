"""What the facade does, as flows; every argument is checked here, before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from contract_engine.memory._effects import Command, Flow, query, redis_call
from contract_engine.memory._log import PING
from contract_engine.memory._runtime.redis_topology import deployment
from contract_engine.memory.buffer_store import BufferFlows
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.config import MemoryConfig, check_limit_changes
from contract_engine.memory.contexts import Contexts
from contract_engine.memory.errors import (
    ConfigurationError,
    ContentionError,
    CorruptDataError,
    InvalidInputError,
    MemoryServiceError,
    StoreUnavailableError,
)
from contract_engine.memory.hooks import BufferRead, observers
from contract_engine.memory.intake import Intake
from contract_engine.memory.keys import check_limit, check_query, check_session_id
from contract_engine.memory.mending import mend
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.models import Loaded, Receipt
from contract_engine.memory.pins import PinFlows
from contract_engine.memory.recall import Recall
from contract_engine.memory.retention import RetentionFlows
from contract_engine.memory.serializer import decode_value, encode_value
from contract_engine.memory.session_cache import REDIS_TROUBLE
from contract_engine.memory.session_store import StoreFlows
from contract_engine.memory.sessions import Sessions
from contract_engine.memory.summarizers import CountedWriter, FactsWriter, ModelStats
from contract_engine.memory.summary_store import SummaryFlows
from contract_engine.memory.swisper_context import SwisperContext
from contract_engine.memory.token_counter import TokenCounter
from contract_engine.memory.unlogged import Unlogged

logger = logging.getLogger(__name__)


class _Asked(NamedTuple):
    """What a context is to recall, checked."""

    recall: Recall
    question: str
    most_tokens: int


class ManagerFlows:
    """What a manager offers; its shells add nothing but a colour."""

    def __init__(
        self,
        config: MemoryConfig,
        breaker: CircuitBreaker,
        facts_writer: FactsWriter | None = None,
    ) -> None:
        if facts_writer is not None and not callable(getattr(facts_writer, "write", None)):
            raise ConfigurationError("facts_writer", f"{type(facts_writer).__name__} has no method write(request)")
        if facts_writer is not None and not config.is_durable:
            raise ConfigurationError("facts_writer", "a model reads messages from the log; set DATABASE_URL")
        self.config = config
        self._facts_writer = facts_writer
        self.counter = TokenCounter(config.model)
        self._log = LogFlows(config) if config.is_durable else None
        # Of several servers others may be there, or may have taken over.
        is_away = breaker.turns_away if deployment(config.redis_url) is None else None
        self._sessions = Sessions(
            config, self.counter, log=self._log, is_away=is_away, refines=facts_writer is not None
        )
        self._contexts = Contexts(self._sessions, self.counter)
        self._intake = Intake(self.counter, max_message_bytes=config.max_message_bytes)
        self.buffer = BufferFlows(self._sessions, self._intake)
        self.summary = SummaryFlows(config, self.counter, self._sessions, log=self._log)
        self.pins = PinFlows(config, self.counter, self._sessions, log=self._log)
        self.store = StoreFlows(config, self._intake)
        self.retention = RetentionFlows(config, self._sessions)

    def append(
        self, session_id: object, message: object, message_id: str | None, *, is_relayed: bool = False
    ) -> Flow[Receipt]:
        checked = check_session_id(session_id)
        outgoing = self._intake.message(message, message_id)
        if is_relayed:
            outgoing = outgoing._replace(is_relayed=True)
        return (yield from self._sessions.append(checked, (outgoing,))).receipts[0]

    def add_message(self, session_id: object, message: object) -> Flow[bool]:
        checked, outgoing = check_session_id(session_id), self._intake.message(message)
        try:
            yield from self._sessions.append(checked, (outgoing,))
        except (StoreUnavailableError, ContentionError) as exc:
            logger.warning("session %s: a message was not acknowledged: %s", session_id, exc)
            return False
        return True

    def add_messages(self, session_id: object, messages: object) -> Flow[list[Receipt]]:
        checked = check_session_id(session_id)
        outgoing = self._intake.batch(messages)
        if not outgoing:
            return []
        return (yield from self._sessions.append(checked, outgoing)).receipts

    def add_and_get_context(
        self, session_id: object, message: object, message_id: str | None, query: object = None, tokens: object = 0
    ) -> Flow[dict[str, Any]]:
        checked = check_session_id(session_id)
        asked = self._check_recall(query, tokens)
        outgoing = self._intake.message(message, message_id)
        loaded = (yield from self._sessions.append(checked, (outgoing,), read=True)).loaded
        assert loaded is not None, "the session was asked for"
        return (yield from self._context(checked, loaded, asked))

    def get_context(self, session_id: object, query: object = None, tokens: object = 0) -> Flow[dict[str, Any]]:
        checked = check_session_id(session_id)
        asked = self._check_recall(query, tokens)
        loaded = yield from self._sessions.load(checked)
        return (yield from self._context(checked, loaded, asked))

    def _context(self, session_id: str, loaded: Loaded, asked: _Asked | None) -> Flow[dict[str, Any]]:
        """Return the context, and what it recalls where that was asked: bound by the watermark of that context."""
        context, state = loaded.as_context(session_id), loaded.state
        if mend(context["buffer_messages"]) is not None:  # most show nothing but what is stored, and need no flow
            context, state = yield from self._contexts.context(session_id, loaded)
        if observers.is_active:
            observers.tell(BufferRead(len(state.rows), state.buffer_tokens, state.ttl_seconds))
        if asked is None:
            return context
        recalled = yield from asked.recall.recall(session_id, state, asked.question, asked.most_tokens)
        return context | {
            "recalled": recalled.messages,
            "recalled_tokens": recalled.tokens,
            "recall_available": recalled.is_available,
            "total_tokens": context["total_tokens"] + recalled.tokens,
        }

    def _check_recall(self, query: object, tokens: object) -> _Asked | None:
        if query is None:
            return None
        question, most = check_query(query), check_limit(tokens, least=1, field="recall_tokens")
        if self._sessions.recall is None:
            raise ConfigurationError("query", "folded messages are kept in a database alone; set DATABASE_URL")
        return _Asked(self._sessions.recall, question, most)

    def search_messages(self, session_id: object, query: object, limit: object) -> Flow[list[dict[str, Any]]]:
        checked = check_session_id(session_id)
        question, most = check_query(query), check_limit(limit, least=1)
        if self._sessions.recall is None:
            raise ConfigurationError("database_url", "messages are searched in a database; set DATABASE_URL")
        return (yield from self._sessions.recall.search(checked, question, most))

    def save_context(self, session_id: object, context: object) -> Flow[bool]:
        checked = check_session_id(session_id)
        fields = SwisperContext.coerce(context).to_dict()
        body = encode_value(fields, field="context", max_bytes=self.config.max_message_bytes)
        try:
            if self._log is not None:
                yield from self._log.save_context(checked, body)
            else:
                keys, ttl = self._sessions.cache.keys(checked), self.config.buffer_ttl_seconds
                others = [Command(("EXPIRE", key, ttl)) for key in (keys.buffer, keys.summary, keys.history)]
                yield from redis_call(Command(("SET", keys.context, body, "EX", ttl)), *others)
        except StoreUnavailableError:
            return False
        return True

    def load_context(self, session_id: object) -> Flow[SwisperContext | None]:
        checked = check_session_id(session_id)
        if self._log is not None:
            body = yield from self._log.load_context(checked)
            return None if body is None else SwisperContext.from_dict(decode_value(body))
        (cached,) = yield from redis_call(Command(("GET", self._sessions.cache.keys(checked).context)))
        if cached is None:
            return None
        try:
            return SwisperContext.from_dict(decode_value(cached) if isinstance(cached, bytes) else cached)
        except (CorruptDataError, InvalidInputError):
            logger.warning("session %s: bytes under our context key that are no context of ours", checked)
            self._sessions.cache.damaged += 1
            return None

    def set_session_config(self, session_id: object, config: Mapping[str, Any]) -> Flow[None]:
        checked = check_session_id(session_id)
        yield from self._sessions.change_limits(checked, check_limit_changes(config))

    def get_session_config(self, session_id: object) -> Flow[dict[str, int]]:
        return (yield from self._sessions.load(check_session_id(session_id))).state.limits.as_dict()

    def get_memory_stats(self, session_id: object) -> Flow[dict[str, Any]]:
        checked = check_session_id(session_id)
        loaded = yield from self._sessions.load(checked)
        summary = yield from self.summary.stats_with(checked, loaded)
        memory = None if loaded.is_without_redis else (yield from self._redis_memory())
        return {
            "buffer": loaded.state.buffer_info(),
            "summary": summary,
            "redis_memory": memory,
            "session_config": loaded.state.limits.as_dict(),
            "is_redis_available": memory is not None,
            "source": loaded.source,
            "degraded": loaded.degraded,
        }

    def _redis_memory(self) -> Flow[dict[str, Any] | None]:
        try:
            text, stats = yield from redis_call(Command(("INFO", "memory")), Command(("INFO", "stats")))
        except REDIS_TROUBLE:
            return None
        facts = dict(line.split(":", 1) for line in (text + stats).decode().splitlines() if ":" in line)
        names = ("used_memory", "maxmemory", "evicted_keys", "expired_keys", "keyspace_hits", "keyspace_misses")
        found: dict[str, Any] = {name: int(facts[name]) for name in names if name in facts}
        return found | {"maxmemory_policy": facts.get("maxmemory_policy")}

    def clear_session_memory(self, session_id: object) -> Flow[bool]:
        checked = check_session_id(session_id)
        try:
            yield from self._sessions.erase(checked)
        except (StoreUnavailableError, ContentionError) as exc:
            logger.warning("session %s: not all of it is erased: %s", checked, exc)
            return False
        return True

    def unlogged_sessions(self) -> Flow[list[str]]:
        return (yield from self.waiting().sessions())

    def unlogged_backlog(self) -> tuple[int, float | None]:
        unlogged = self._sessions.unlogged
        return (0, None) if unlogged is None else unlogged.backlog()

    def drain(self, session_id: object) -> Flow[int]:
        return (yield from self.waiting().drain(check_session_id(session_id))).count

    def waiting(self) -> Unlogged:
        """Return what keeps messages while the database is away."""
        if self._sessions.unlogged is None:
            raise ConfigurationError("database_url", "nothing waits to be logged without a database; set DATABASE_URL")
        return self._sessions.unlogged

    def is_available(self) -> Flow[bool]:
        return (yield from self._redis_answers()) or (yield from self._database_answers())

    def _redis_answers(self) -> Flow[bool]:
        try:
            yield from redis_call(Command(("PING",)))
        except MemoryServiceError:
            return False
        return True

    def _database_answers(self) -> Flow[bool]:
        if self._log is None:
            return False
        try:
            yield from query(PING, {})
        except MemoryServiceError:
            return False
        return True

    @property
    def has_model(self) -> bool:
        return self._facts_writer is not None

    @property
    def damaged(self) -> int:
        return self._sessions.cache.damaged

    def model_stats(self) -> ModelStats | None:
        return self._facts_writer.stats() if isinstance(self._facts_writer, CountedWriter) else None
