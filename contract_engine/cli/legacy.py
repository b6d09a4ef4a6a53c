"""Where a command finds the sessions of a legacy store, and what those have in common that read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated

import typer

from contract_engine.cli.legacy_stores import find_legacy_store
from contract_engine.memory.bringing import bring, is_of_log
from contract_engine.memory.errors import ConfigurationError, InvalidInputError
from contract_engine.memory.legacy_messages import readable_text
from contract_engine.memory.legacy_object import LegacyObject
from contract_engine.memory.legacy_redis import LegacyRedis
from contract_engine.memory.legacy_source import History, missing_messages, redis_history, table_history
from contract_engine.memory.legacy_store import LegacySwisperStore
from contract_engine.memory.log_writer import LogWriter

PANEL = "Legacy store"
PATIENCE_SECONDS = 120.0
"""A statement may read or renumber a history of a hundred thousand messages."""

NAMES_AT_ONCE = 1000

Legacy = Annotated[
    str | None,
    typer.Option(
        "--legacy",
        metavar="MODULE:NAME",
        help="The legacy store of the program: an object, or what makes one when it is called. Instead of "
        "LEGACY_STORE.",
        rich_help_panel=PANEL,
    ),
]
LegacyUrl = Annotated[
    str | None,
    typer.Option("--legacy-url", metavar="URL", help="The PostgreSQL with the legacy table.", rich_help_panel=PANEL),
]
LegacyTable = Annotated[str, typer.Option("--table", metavar="NAME", help="Its name.", rich_help_panel=PANEL)]
LegacyRedisUrl = Annotated[
    str | None,
    typer.Option(
        "--legacy-redis-url", metavar="URL", help="The Redis with buffer:* and summary_list:*.", rich_help_panel=PANEL
    ),
]
OnlySessions = Annotated[
    list[str] | None, typer.Option("--session", metavar="ID", help="Only this session; may be given again.")
]


class OlderStore:
    """The table, or the keys in Redis, or both: then Redis is asked for the sessions that the table does not have.

    Or an object of the program, where neither is named.
    """

    def __init__(
        self, table: LegacySwisperStore | None, redis: LegacyRedis | None, named: LegacyObject | None = None
    ) -> None:
        self._table = table
        self._redis = redis
        self._named = named
        self._redis_names = dict.fromkeys(() if redis is None else redis.session_names())

    def totals(self) -> tuple[int, int | None]:
        """Return about how many sessions there are, and how many messages their rows claim; None where nobody knows."""
        if self._named is not None:
            return len(self._named.session_names()), None
        sessions, messages = (0, 0) if self._table is None else self._table.totals()
        return sessions + len(self._redis_names), None if self._redis_names else messages

    def session_names(self) -> Iterator[str]:
        """Give every session id, each once."""
        if self._named is not None:
            yield from self._named.session_names()
        after: str | None = None
        while self._table is not None and (names := self._table.session_names(after=after, most=NAMES_AT_ONCE)):
            yield from names
            after = names[-1]
        for name in self._redis_names:
            if self._table is None or self._row(name) is None:
                yield name

    def history(self, session_id: str) -> History | None:
        """Return a session; None where there is none of this id."""
        if self._named is not None:
            return self._named.history(session_id)
        found = self._row(session_id)
        if found is not None or self._redis is None:
            return found
        return redis_history(self._redis, session_id) if session_id in self._redis_names else None

    def before_both(self, history: History, log: LogWriter) -> History:
        """Return what Redis has of a session instead of its row, where all of that came out of the log."""
        buffer = self._buffer(history)
        if buffer is None or not buffer.length or self._table is None:
            return history
        if not is_of_log(self._table, log, history.session_id, history.length):
            return history
        return buffer._replace(context=history.context, has_more=history.has_more)

    def bring(self, history: History, log: LogWriter, *, dry_run: bool) -> int | None:
        """Have the table get what only Redis had of an imported session, see :func:`bringing.bring`."""
        if not history.is_trimmed or self._table is None:
            return 0
        return bring(self._table, log, history.session_id, dry_run=dry_run)

    def only_in_redis(self, history: History) -> int:
        """Return how many messages the buffer in Redis has that this session of the table has not."""
        buffer = self._buffer(history)
        return 0 if buffer is None else missing_messages(buffer, history)

    def _buffer(self, history: History) -> History | None:
        """Return what Redis has of a session of the table; None where that is nothing."""
        if self._redis is None or history.is_trimmed or history.session_id not in self._redis_names:
            return None
        return redis_history(self._redis, history.session_id)

    def _row(self, session_id: str) -> History | None:
        # Redis takes keys that no text in PostgreSQL can be.
        if self._table is None or readable_text(session_id) != session_id:
            return None
        return table_history(self._table, session_id)


def named_object(place: str | None, *addresses: str | None) -> str | None:
    """Return where the object is that --legacy names, or else LEGACY_STORE; None where there is an address instead."""
    if all(address is None for address in addresses):
        return place or os.environ.get("LEGACY_STORE")
    if place is not None:
        raise InvalidInputError("legacy", "give --legacy or the address of a store, not both")
    return None


@contextmanager
def older_store(
    url: str | None, table: str, redis_url: str | None = None, place: str | None = None
) -> Iterator[OlderStore]:
    """Open what the options name: the object at ``place`` where no address is given; refuses to do without any."""
    place = named_object(place, url, redis_url)
    with ExitStack() as stack:
        store = redis = named = None
        if place is not None:
            named = stack.enter_context(LegacyObject(find_legacy_store(place)))
        if url is not None:
            store = stack.enter_context(LegacySwisperStore(url, table=table, timeout_seconds=PATIENCE_SECONDS))
        if redis_url is not None:
            redis = stack.enter_context(LegacyRedis(redis_url))
        if store is None and redis is None and named is None:
            raise ConfigurationError(
                "legacy",
                "no legacy store is named: give --legacy-url URL for the table of the original (or, to backfill, "
                "--legacy-redis-url URL for its keys), else --legacy package.module:name, or LEGACY_STORE",
            )
        yield OlderStore(store, redis, named)
