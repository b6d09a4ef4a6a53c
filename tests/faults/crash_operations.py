"""Every public operation with example arguments, for the fault matrix.

Run as a program this is the nursery of processes that die: it has everything imported and nothing open, and forks one
child per line of its input. A child runs one operation and kills itself where it is told to.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from crash_matrix import Fault, Interposition
from memory_contract import say, talk

from contract_engine.memory import InvalidInputError, MemoryConfig, MemoryManager, StoreUnavailableError
from contract_engine.memory.archive import FORMAT, VERSION, ArchiveWriter, Counts
from contract_engine.memory.config import SessionLimits
from contract_engine.memory.token_counter import TokenCounter

LIMITS = SessionLimits(summary_trigger_tokens=120, max_buffer_tokens=400, max_buffer_messages=8)
"""With messages of 20 tokens: a fold is due at the sixth, and the ninth does not fit."""

PATIENT: dict[str, Any] = {"redis_timeout_seconds": 10.0, "database_timeout_seconds": 20.0}
"""For a machine that is busy with other things."""


class Does(StrEnum):
    """What an operation changes, if it is performed."""

    NOTHING = "nothing"
    APPEND = "append"
    CLEAR = "clear"
    CLEAR_BUFFER = "clear the buffer"
    CLEAR_LOG = "clear the log"
    CLEAR_SUMMARIES = "clear the summaries"
    ADD_SUMMARY = "add a summary"
    REBUILD = "write the summary again"
    SAVE_CONTEXT = "save the context object"
    SET_LIMITS = "set limits"
    PIN = "pin the last message"
    UNPIN = "unpin a message"
    SET_INSTRUCTIONS = "set instructions"
    PURGE = "purge"
    ERASE = "erase"
    EXPORT = "export"
    IMPORT = "import"
    REPLACE = "import in its place"


@dataclass(frozen=True)
class Operation:
    """One public method with example arguments, which follow the session id if ``takes_session``.

    ``adds`` are the messages it appends; ``message_id`` names the only one, so that it may be sent again.
    """

    method: str
    arguments: tuple[Any, ...] = ()
    does: Does = Does.NOTHING
    adds: tuple[dict[str, Any], ...] = ()
    message_id: str | None = None
    takes_session: bool = True
    needs_log: bool = False
    note: str = ""
    is_repeat: bool = False
    """Appends the last message of the session once more, under the id it has."""
    archive: io.BytesIO = field(default_factory=io.BytesIO, compare=False)
    """What the last call has exported."""

    @property
    def refers_to_last(self) -> bool:
        """Whether it takes the id of the last message of the session."""
        return self.does is Does.PIN

    @property
    def name(self) -> str:
        return f"{self.method} ({self.note})" if self.note else self.method

    @property
    def store(self) -> str:
        return self.method.rpartition(".")[0]

    def call(self, manager: Any, session_id: str, count: int) -> Any:
        """Call it on a manager of either colour; ``count`` is how many messages the session has."""
        method = self.method.rpartition(".")[2]
        target = getattr(manager, self.store) if self.store else manager
        if method == "close" and not hasattr(target, "close"):
            method = "aclose"
        arguments = (say(count),) if self.is_repeat else self.arguments
        arguments = (f"id{count}",) if self.refers_to_last else arguments
        message_id = f"id{count}" if self.is_repeat else self.message_id
        keywords = {} if message_id is None else {"message_id": message_id}
        if self.does is Does.ERASE:
            return target.erase([session_id])
        if self.does is Does.EXPORT:
            self.archive.seek(0)
            self.archive.truncate()
            arguments = (self.archive.write,)
        if self.does in (Does.IMPORT, Does.REPLACE):
            existing = "replace" if self.does is Does.REPLACE else "refuse"
            return target.import_sessions(ARCHIVE.splitlines(keepends=True), session_id=session_id, existing=existing)
        return getattr(target, method)(*([session_id] if self.takes_session else []), *arguments, **keywords)


NEW = 900
"""The first number of the messages that operations add."""
NEW_LIMITS = {"max_buffer_messages": 4}
NEW_CONTEXT = {"session_id": "s", "note": "new"}
NEW_INSTRUCTIONS = "Keep the numbers."
PINNED = "id2"
"""Pinned in one of the states, where it has been folded."""
NEW_SUMMARY = "The caller adds a fact."

OLD_AGE = timedelta(days=90)
"""What a purge leaves is younger than this."""
ARCHIVED = talk(5, start=NEW + 20)
ARCHIVED_CONTEXT = {"session_id": "s", "note": "archived"}


def _archive() -> bytes:
    """Return a session as an export writes it."""
    out = io.BytesIO()
    writer = ArchiveWriter(out.write)
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    numbers = {"last_seq": len(ARCHIVED), "watermark": 0, "summary_version": 0}
    limits = dict.fromkeys(["summary_trigger_tokens", "max_buffer_tokens", "max_buffer_messages"])
    head = {"kind": "session", "format": FORMAT, "version": VERSION, "session_id": "archived", **numbers, **limits}
    wishes = {"context": ARCHIVED_CONTEXT, "pinned": None, "summary_instructions": None}
    writer.add([{**head, **wishes, "created_at": moment, "updated_at": moment}])
    for seq, message in enumerate(ARCHIVED, 1):
        row = {"seq": seq, "message_id": f"archived{seq}", "tokens": 20, "message": message, "created_at": moment}
        writer.add([{"kind": "message", **row}])
    writer.end(Counts(len(ARCHIVED), 0))
    return out.getvalue()


ARCHIVE = _archive()

_ONE = (say(NEW),)
_BATCH = tuple(talk(3, start=NEW))
_LARGE = tuple(talk(LIMITS.max_buffer_messages + 2, start=NEW))

OPERATIONS = (
    Operation("add_message", _ONE, Does.APPEND, _ONE),
    Operation("append", _ONE, Does.APPEND, _ONE),
    Operation("append", _ONE, Does.APPEND, _ONE, "new", note="with an id"),
    Operation("append", (), Does.APPEND, note="once more", is_repeat=True),
    Operation("add_messages", (_BATCH,), Does.APPEND, _BATCH),
    Operation("add_messages", (_LARGE,), Does.APPEND, _LARGE, note="more than a buffer"),
    Operation("add_and_get_context", _ONE, Does.APPEND, _ONE, "new"),
    Operation("get_context"),
    Operation("get_context", ("message 0002",), note="with a query", needs_log=True),
    Operation("search_messages", ("message 0002",), needs_log=True),
    Operation("save_context", (NEW_CONTEXT,), Does.SAVE_CONTEXT),
    Operation("load_context"),
    Operation("set_session_config", (NEW_LIMITS,), Does.SET_LIMITS),
    Operation("get_session_config"),
    Operation("pin", (), Does.PIN),
    Operation("unpin", (PINNED,), Does.UNPIN),
    Operation("set_summary_instructions", (NEW_INSTRUCTIONS,), Does.SET_INSTRUCTIONS),
    Operation("get_summary_instructions"),
    Operation("get_memory_stats"),
    Operation("clear_session_memory", (), Does.CLEAR),
    Operation("unlogged_sessions", takes_session=False, needs_log=True),
    Operation("drain", needs_log=True),
    Operation("is_available", takes_session=False),
    Operation("health", takes_session=False),
    Operation("wait_for_folds", takes_session=False),
    Operation("close", takes_session=False),
    Operation("buffer_store.add_message", _ONE, Does.APPEND, _ONE),
    Operation("buffer_store.get_messages"),
    Operation("buffer_store.get_buffer_info"),
    Operation("buffer_store.should_trigger_summary"),
    Operation("buffer_store.clear_buffer", (), Does.CLEAR_BUFFER),
    Operation("buffer_store.close", takes_session=False),
    Operation("summary_store.add_summary", (NEW_SUMMARY, {"by": "hand"}), Does.ADD_SUMMARY),
    Operation("summary_store.get_current_summary"),
    Operation("summary_store.get_summary_history"),
    Operation("summary_store.get_summary_stats"),
    Operation("summary_store.readable_texts", (["nobody: said so"],), needs_log=True),
    Operation("summary_store.clear_summaries", (), Does.CLEAR_SUMMARIES),
    Operation("summary_store.quarantine", (1,), Does.REBUILD, needs_log=True),
    Operation("summary_store.resummarize", (), Does.REBUILD, needs_log=True),
    Operation("summary_store.close", takes_session=False),
    Operation("session_store.append", _ONE, Does.APPEND, _ONE, "new", needs_log=True),
    Operation("session_store.add_chat_message", _ONE, Does.APPEND, _ONE, needs_log=True),
    Operation("session_store.get_chat_history", needs_log=True),
    Operation("session_store.save_session_context_atomic", (NEW_CONTEXT,), Does.SAVE_CONTEXT, needs_log=True),
    Operation("session_store.get_session_context_atomic", needs_log=True),
    Operation("session_store.clear_session", (), Does.CLEAR_LOG, needs_log=True),
    Operation("session_store.get_all_sessions", takes_session=False, needs_log=True),
    Operation("session_store.close", takes_session=False),
    Operation("retention.purge", (OLD_AGE,), Does.PURGE, takes_session=False, needs_log=True),
    Operation("retention.erase", does=Does.ERASE),
    Operation("retention.export_session", does=Does.EXPORT, needs_log=True),
    Operation("retention.import_sessions", does=Does.IMPORT, needs_log=True),
    Operation("retention.import_sessions", does=Does.REPLACE, needs_log=True, note="replacing"),
    Operation("retention.session_ids", takes_session=False, needs_log=True),
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}


# -- processes that die


@dataclass(frozen=True)
class Errand:
    """What a child is to do, and where it is to die."""

    settings: dict[str, Any]
    session_id: str
    count: int
    operation: str
    fault: Fault
    away: str | None


UNTOUCHED = 100
"""Exit status of a child that met no fault: this, and how many effects it counted."""


class Nursery:
    """A process that forks children for errands; started fresh, so that they inherit nothing of the tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def send(self, errand: Errand) -> int:
        """Have a child do an errand; answers its exit status, as ``subprocess`` would."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(errand)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the nursery has died"
        return int(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def _be_child(errand: Errand) -> int:
    with MemoryManager(config=MemoryConfig(**errand.settings, limits=LIMITS)) as manager:
        interposition = Interposition(manager, errand.fault, away=errand.away)
        with suppress(StoreUnavailableError, InvalidInputError):
            BY_NAME[errand.operation].call(manager, errand.session_id, errand.count)
        manager.wait_for_folds()
    return UNTOUCHED + len(interposition.effects)


def _be_nursery() -> None:
    # What every child would otherwise load for itself.
    TokenCounter().count_tokens("loads the encoding")
    sa.create_engine("postgresql+psycopg://")
    for line in sys.stdin:
        given = json.loads(line)
        errand = Errand(**(given | {"fault": Fault(**given["fault"])}))
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = _be_child(errand)
            except BaseException:  # noqa: BLE001  # a child never goes on as its parent
                traceback.print_exc()
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _be_nursery()
