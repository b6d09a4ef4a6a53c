"""The facade: what an orchestrator calls on every turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from contract_engine.memory._manager_base import ManagerBase, once
from contract_engine.memory._runtime import Runtime
from contract_engine.memory.buffer_store import BufferStore
from contract_engine.memory.closing import Closing
from contract_engine.memory.models import Message, Receipt
from contract_engine.memory.retention import Retention
from contract_engine.memory.session_store import PostgresSessionStore
from contract_engine.memory.summary_store import SummaryStore
from contract_engine.memory.swisper_context import SwisperContext

if TYPE_CHECKING:
    from contract_engine.memory.health import HealthReport


class MemoryManager(ManagerBase, Closing):
    """Session memory in one object: context = summary of messages 1..W + messages W+1..N, word for word.

    Without arguments everything comes from the environment (see :meth:`MemoryConfig.from_env`), which is read at the
    first call. Settings of :class:`MemoryConfig` may be given by name, or a whole ``config``. One manager serves any
    number of threads and sessions; ``close()`` it, or use it in a ``with`` block.

    With a database every acknowledged message is committed there, and with Redis away everything goes on from it,
    marked ``degraded``. Without one (ephemeral mode) Redis alone holds the session. Bad input raises a ``ValueError``
    that names the field, before anything is written. Where nobody can answer, reads raise
    :class:`StoreUnavailableError`.

    ``facts_writer`` has a language model refine in the background what folds wrote; it needs a database.
    """

    @once
    def _runtime(self) -> Runtime:
        return Runtime(
            self.config,
            breaker=self.circuit_breaker,
            database_breaker=self.database_breaker,
            facts_writer=self._facts_writer,
        )

    @once
    def buffer_store(self) -> BufferStore:
        """The buffer layer of this manager."""
        return BufferStore.within(self._runtime, self._flows.buffer)

    @once
    def summary_store(self) -> SummaryStore:
        """The summary layer of this manager."""
        return SummaryStore.within(self._runtime, self._flows.summary)

    @once
    def session_store(self) -> PostgresSessionStore:
        """The log of this manager; its calls raise :class:`ConfigurationError` where no database is configured."""
        return PostgresSessionStore.within(self._runtime, self._flows.store)

    @once
    def retention(self) -> Retention:
        """What an operator does to sessions: purge old ones, erase some with proof, export and import them."""
        return Retention.within(self._runtime, self._flows.retention)

    def add_message(self, session_id: str, message: Message) -> bool:
        """Append one message; False only if nothing was acknowledged.

        One statement where a database is configured, one round trip to Redis. A fold that becomes due runs in the
        background; one that a hard cap asks for runs first, in milliseconds.
        """
        return self._runtime.run(self._flows.add_message(session_id, message))

    def append(self, session_id: str, message: Message, *, message_id: str | None = None) -> Receipt:
        """Append one message and return its receipt; raises :class:`StoreUnavailableError` where it cannot be kept.

        With a ``message_id`` the call may be repeated: the message is stored once, and the same id with another message
        raises :class:`MessageConflictError`. In ephemeral mode ids are remembered while the message is in the buffer.
        """
        return self._runtime.run(self._flows.append(session_id, message, message_id))

    def add_messages(self, session_id: str, messages: Sequence[Message]) -> list[Receipt]:
        """Append several messages in one statement and one script, and return their receipts in order.

        With a database all or none of them; in ephemeral mode too, unless they are more than a whole buffer.
        """
        return self._runtime.run(self._flows.add_messages(session_id, messages))

    def add_and_get_context(
        self,
        session_id: str,
        message: Message,
        *,
        message_id: str | None = None,
        query: str | None = None,
        recall_tokens: int = 400,
    ) -> dict[str, Any]:
        """Append one message and return the context that follows: a whole turn in one round trip to Redis.

        With a ``query`` it recalls, as :meth:`get_context` does.
        """
        flow = self._flows.add_and_get_context(session_id, message, message_id, query, recall_tokens)
        return self._runtime.run(flow)

    def get_context(self, session_id: str, query: str | None = None, *, recall_tokens: int = 400) -> dict[str, Any]:
        """Return the session's context, in one round trip.

        ``buffer_messages``: the messages W+1..N as they were added, and between them, marked ``"synthetic": True``, the
        results that calls of tools lack and the calls that results lack (``synthetic`` lists where, if there are any);
        ``current_summary``: the text for 1..W or None; ``pinned_messages``: those of 1..W that are pinned, as dicts of
        ``seq``, ``at`` (ISO 8601, UTC) and ``message``; ``buffer_info``: see :meth:`BufferStore.get_buffer_info`;
        ``total_tokens`` of all of these; ``message_count`` of the buffer; ``summary_tokens``, ``pinned_tokens``,
        ``summary_version``, ``watermark`` (W), ``last_seq`` (N); ``source``: ``redis`` or ``postgres``; ``degraded``:
        Redis is away; ``complete``: summary and messages meet (in ephemeral mode Redis can lose a summary). A session
        that was never written is empty. The caps of the session hold for every context.

        With a ``query`` PostgreSQL is asked too, and there is more: ``recalled``, the folded messages that best answer
        it, ``{"seq", "at", "message"}`` word for word and in order of seq, none of which is in ``buffer_messages``;
        ``recalled_tokens``, at most ``recall_tokens``, and in ``total_tokens``; ``recall_available``: False where the
        database could not be asked, or is still indexing a session of thousands of messages. The rest of the context
        is given all the same. Without a database a query raises :class:`ConfigurationError`.
        """
        return self._runtime.run(self._flows.get_context(session_id, query, recall_tokens))

    def search_messages(self, session_id: str, query: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return the messages of the log that have words of ``query``, best first as BM25 ranks them.

        Each is ``{"seq", "at", "message", "score"}``: its number, when the log took it (ISO 8601, UTC), the message
        word for word, and a score that compares with those of the same answer alone. Words of any language match in
        their stems, numbers and ids exactly; of messages that are not folded yet the newest 1,000 are looked through.
        A query of function words alone finds nothing. The log alone is asked: where it is away,
        :class:`DatabaseUnavailableError`; where none is configured, :class:`ConfigurationError`.
        """
        return self._runtime.run(self._flows.search_messages(session_id, query, limit))

    def save_context(self, session_id: str, context: SwisperContext | Mapping[str, Any]) -> bool:
        """Keep the orchestrator's own object beside the conversation; False only if it was not acknowledged."""
        return self._runtime.run(self._flows.save_context(session_id, context))

    def load_context(self, session_id: str) -> SwisperContext | None:
        """Return the object of :meth:`save_context`, or None where none was saved."""
        return self._runtime.run(self._flows.load_context(session_id))

    def set_session_config(self, session_id: str, config: Mapping[str, Any]) -> None:
        """Set any of the three limits of one session, for every process and for good.

        Keys: ``summary_trigger_tokens``, ``max_buffer_tokens``, ``max_buffer_messages``; others are refused. What
        exceeds the new caps is folded before the next context is given.
        """
        self._runtime.run(self._flows.set_session_config(session_id, config))

    def get_session_config(self, session_id: str) -> dict[str, int]:
        """Return the three limits in force for one session."""
        return self._runtime.run(self._flows.get_session_config(session_id))

    def pin(self, session_id: str, message_id: str) -> bool:
        """Have a message survive folds word for word: once folded it stands in ``pinned_messages`` of every context.

        ``message_id``: that of its receipt. Always True; pinning it again changes nothing. An id the session does not
        have (in ephemeral mode: not in the buffer) raises :class:`InvalidInputError`, and so does a message with which
        more than half of the summary's budget would be pinned (``summary_tokens``, as long as it has not grown). Raises
        :class:`StoreUnavailableError` where the log is away.
        """
        return self._runtime.run(self._flows.pins.pin(session_id, message_id))

    def unpin(self, session_id: str, message_id: str) -> bool:
        """Let a message be folded like any other; False where it was not pinned."""
        return self._runtime.run(self._flows.pins.unpin(session_id, message_id))

    def set_summary_instructions(self, session_id: str, text: str | None) -> None:
        """Say what summaries of this session are to keep, in at most 2,000 characters; None: nothing in particular.

        Begins the session if need be. Holds for the folds that follow. The built-in summarizer prefers sentences with
        words of it. Raises :class:`StoreUnavailableError` where it cannot be kept.
        """
        self._runtime.run(self._flows.pins.set_summary_instructions(session_id, text))

    def get_summary_instructions(self, session_id: str) -> str | None:
        """Return the text of :meth:`set_summary_instructions`, or None."""
        return self._runtime.run(self._flows.pins.get_summary_instructions(session_id))

    def get_memory_stats(self, session_id: str) -> dict[str, Any]:
        """Return buffer, summary, redis_memory (None while Redis is away), session_config, is_redis_available."""
        return self._runtime.run(self._flows.get_memory_stats(session_id))

    def clear_session_memory(self, session_id: str) -> bool:
        """Delete the session from every table and from Redis; False if a server was away: then call again.

        A relay that gives it to a legacy store just then is waited for, up to three seconds; False where it goes on.
        """
        return self._runtime.run(self._flows.clear_session_memory(session_id))

    def unlogged_sessions(self) -> list[str]:
        """Name the sessions with messages that wait in Redis to be logged, by looking through all of its keys."""
        return self._runtime.run(self._flows.unlogged_sessions())

    def drain(self, session_id: str) -> int:
        """Log what waits in Redis since PostgreSQL was away, in order and once; answers how many messages.

        What comes to wait meanwhile may go on waiting: processes that do not reach PostgreSQL can be quicker than this.
        Of several that drain a session at once each counts those that it sent to the log, which keeps each once.
        Nobody has to call this: every append and read of the session does it. For sessions nobody touches any more.
        """
        return self._runtime.run(self._flows.drain(session_id))

    def is_available(self) -> bool:
        """Whether at least one server answers, so that calls can be served."""
        return self._runtime.run(self._flows.is_available())

    def health(self) -> HealthReport:
        """Return status, mode and checks of one moment, within a second whatever has become of the servers.

        Redis and PostgreSQL are asked side by side, through their breakers; a report is given again for a second, and
        all who ask meanwhile wait for one round of checks. A server that is away raises nothing here.
        """
        return self._runtime.check(self._health)

    def wait_for_folds(self, timeout_seconds: float | None = None) -> bool:
        """Wait until no background fold and no refinement of one is running; False if the time was up before."""
        return self._runtime.background.join(timeout_seconds)

    def close(self) -> None:
        """Finish background folds and close every connection; a later call opens them again.

        An answer of a language model that is under way is waited for, and no other is asked for.
        """
        if "_runtime" in self.__dict__:
            self._runtime.close()
