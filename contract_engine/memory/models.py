"""What the layers hand to each other and to callers; all of it immutable.

Structs of msgspec where they are made on every call: a frozen dataclass takes ten times as long to make.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from contract_engine.memory.config import SessionLimits

Message = dict[str, Any]

# How a version of a summary came about; plain texts, as they stand in the database.
EXTRACTIVE = "extractive"
"""Written by a fold, with the built-in summarizer."""
MODEL = "model"
"""Written by a language model."""
SUPPLIED = "supplied"
"""A caller has added a text."""
REBUILT = "rebuilt"
"""Written by the built-in summarizer from the messages, and not from the version before."""
IMPORTED = "imported"
"""Covers messages of an older store until their summary is written from them; the text is that of the one before."""
CLEARED = "cleared"
"""Empty: it goes on covering what was folded away, after the summaries were cleared."""


def iso_time(at_ms: int) -> str:
    """Return milliseconds since 1970 as ISO 8601, in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()


class Receipt(msgspec.Struct, frozen=True):
    """Proof that a message was acknowledged.

    ``seq``: its place in the session, counted from 1. ``durable``: a PostgreSQL commit stands behind it (otherwise
    Redis alone does). ``degraded``: one of the servers is away. If it is Redis, the message is safe in the log and
    reads find it there. If it is PostgreSQL, the message waits in Redis to be logged, and ``durable`` is False. Either
    way ``seq`` may still change: what waits in Redis goes before what was acknowledged later.
    """

    seq: int
    message_id: str
    durable: bool
    degraded: bool


class Entry(NamedTuple):
    """One message as the stores keep it; ``at_ms`` is when the store took it, in milliseconds since 1970.

    ``is_relayed`` is known of those alone that wait to be logged: whether the legacy store is to be given it too, None
    where that was not noted.
    """

    seq: int
    tokens: int
    at_ms: int
    message_id: str
    message: Message
    is_relayed: bool | None = None


class Outgoing(NamedTuple):
    """A message on its way in: checked, encoded and counted, without a number yet."""

    message_id: str
    tokens: int
    body: bytes
    message: Message
    is_retry_safe: bool
    """Whether the caller named the message id, so that an earlier attempt may already have stored it."""
    is_relayed: bool = False
    """Whether it is to reach the legacy store too: then a row of the outbox is written with it."""


class Placed(NamedTuple):
    """What the log answers to an append: the numbers the buffer needs to follow, and one time per message."""

    seqs: tuple[int, ...]
    at_ms: tuple[int, ...]
    epoch: int
    revision: int


class Summary(NamedTuple):
    """The summary a session stands on: version 0 with no text covers nothing.

    ``last_seq`` is the watermark: the text covers messages 1 to ``last_seq``. ``pinned_ids`` are the messages that
    survive folds, in the order of pinning; ``pinned_rows`` those of them that the text covers, in the shape of
    :class:`Entry` and in order of their numbers. ``instructions`` are the session's own wishes for its summaries.
    """

    version: int
    last_seq: int
    tokens: int
    at_ms: int
    text: str
    pinned_ids: Sequence[str] = ()
    pinned_rows: Sequence[Sequence[Any]] = ()
    instructions: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but the text: no message is pinned and nothing is asked of summaries."""
        return not (self.pinned_ids or self.instructions)

    @property
    def pinned_tokens(self) -> int:
        """The tokens of the pinned messages that the text covers."""
        return sum(row[1] for row in self.pinned_rows)


NO_SUMMARY = Summary(0, 0, 0, 0, "")


class Origin(NamedTuple):
    """Where a summary version comes from.

    ``parent``: the version whose text it goes on from, None for none; ``first_seq``: the first message it adds to that.
    ``tokens_in`` were read to write it. Of a language model besides: its name, which prompt it was asked with, and the
    tokens it wrote.
    """

    parent: int | None
    first_seq: int
    model: str | None = None
    prompt_hash: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


class SessionState(msgspec.Struct, frozen=True):
    """One consistent view of a session: the summary of 1..W and the messages W+1..N, word for word.

    ``epoch`` names the life of the session between two clearings. ``revision`` counts every change that is not an
    append (a fold, a new summary, other limits); a cached copy with an older revision is out of date. ``rows`` are the
    messages in the shape of :class:`Entry`, as they were decoded: most readers want nothing of them but the messages.
    ``summary`` has another version than ``summary_version`` where Redis has lost it. ``is_unlogged``: some of it waits
    in Redis to be logged, and its numbers are provisional; with epoch 0 nobody knows what came before. ``is_doubtful``:
    another run of the server has written this copy. After a restart or a failover Redis may hold an older one than was
    there before, so only the log can tell whether it is up to date.
    """

    epoch: int
    revision: int
    last_seq: int
    watermark: int
    summary_version: int
    summary: Summary
    limits: SessionLimits
    rows: Sequence[Sequence[Any]]
    buffer_tokens: int
    updated_at_ms: int
    ttl_seconds: int | None = None
    is_unlogged: bool = False
    is_doubtful: bool = False

    @property
    def messages(self) -> list[Message]:
        """The messages W+1..N, oldest first."""
        return [row[4] for row in self.rows]

    @property
    def entries(self) -> list[Entry]:
        """The messages with their numbers, tokens, times and ids."""
        return [Entry(*row) for row in self.rows]

    @property
    def is_complete(self) -> bool:
        """Whether it is known to be all there is: Redis alone may not be able to tell.

        Summary and messages meet at the watermark, and at message 1.
        """
        if self.is_doubtful or (self.is_unlogged and not self.epoch):
            return False
        return self.summary.version == self.summary_version and self.summary.last_seq == self.watermark

    @property
    def summary_instructions(self) -> str:
        """What the session wants its summaries to keep, empty where it has said nothing."""
        return self.summary.instructions

    def rows_pinned(self, up_to: int) -> list[Sequence[Any]]:
        """Return the pinned messages 1 to ``up_to``, those behind the watermark included."""
        ids = self.summary.pinned_ids
        return [*self.summary.pinned_rows, *(row for row in self.rows if row[0] <= up_to and row[3] in ids)]

    @property
    def exceeds_caps(self) -> bool:
        """Whether the messages are more than a context may hold; the newest one alone never is."""
        if len(self.rows) <= 1:
            return False
        return len(self.rows) > self.limits.max_buffer_messages or self.buffer_tokens > self.limits.max_buffer_tokens

    @property
    def is_begun(self) -> bool:
        """Whether there is a session to commit to, and not just a summary that outlived its buffer."""
        return self.epoch != 0

    def origin(self, *, tokens_in: int | None = None) -> Origin:
        """Return the origin of a version that goes on from the current one."""
        return Origin(self.summary.version or None, self.watermark + 1, tokens_in=tokens_in)

    @property
    def is_fold_due(self) -> bool:
        """Whether enough has gathered for a fold in the background."""
        limits = self.limits
        return len(self.rows) > 1 and (
            len(self.rows) >= limits.max_buffer_messages or self.buffer_tokens >= limits.summary_trigger_tokens
        )

    def as_context(self, session_id: str, *, source: str, degraded: bool) -> dict[str, Any]:
        """Return the dict that ``get_context`` answers; its keys are described there."""
        messages, summary = self.messages, self.summary
        pinned = summary.pinned_rows
        pinned_tokens = summary.pinned_tokens if pinned else 0
        return {
            "session_id": session_id,
            "buffer_messages": messages,
            "current_summary": summary.text or None,
            "pinned_messages": [{"seq": row[0], "at": iso_time(row[2]), "message": row[4]} for row in pinned],
            "buffer_info": self.buffer_info(),
            "total_tokens": self.buffer_tokens + summary.tokens + pinned_tokens,
            "message_count": len(messages),
            "summary_tokens": summary.tokens,
            "pinned_tokens": pinned_tokens,
            "summary_version": self.summary_version,
            "watermark": self.watermark,
            "last_seq": self.last_seq,
            "complete": self.is_complete,
            "source": source,
            "degraded": degraded,
        }

    def buffer_info(self) -> dict[str, Any]:
        """Return the facts about the buffer; ``last_updated`` in unix seconds, ``ttl_remaining`` None where unknown."""
        return {
            "message_count": len(self.rows),
            "total_tokens": self.buffer_tokens,
            "last_updated": self.updated_at_ms / 1000 if self.updated_at_ms else None,
            "ttl_remaining": self.ttl_seconds,
            "max_messages": self.limits.max_buffer_messages,
            "max_tokens": self.limits.max_buffer_tokens,
        }


def empty_session(limits: SessionLimits, summary: Summary = NO_SUMMARY) -> SessionState:
    """Return the state of a session that has no message, or none but those its summary covers."""
    return SessionState(0, 0, summary.last_seq, summary.last_seq, summary.version, summary, limits, (), 0, 0)


class Loaded(NamedTuple):
    """A session that was read, where from, and whether a server is away for all that is known."""

    state: SessionState
    source: str
    degraded: bool

    @property
    def is_without_redis(self) -> bool:
        """Whether Redis was found away: nobody need wait for it again to say more about this session."""
        return self.degraded and self.source == "postgres"

    def as_context(self, session_id: str) -> dict[str, Any]:
        """Return the dict that ``get_context`` answers."""
        return self.state.as_context(session_id, source=self.source, degraded=self.degraded)


class Source(NamedTuple):
    """What the next version of a summary can be written from.

    ``state`` is where the session stands, without messages and without the text of its summary. ``base`` is the version
    to go on from, 0 for none, with its text of messages 1 to ``base_last_seq``; ``added`` are the versions and texts
    that callers have added since.
    """

    state: SessionState
    base: int
    base_last_seq: int
    base_text: str
    added: tuple[tuple[int, str], ...]
