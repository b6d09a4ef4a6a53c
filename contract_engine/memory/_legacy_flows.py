"""What the older session store offers, as flows: one statement on its table each, but for what says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from contract_engine.memory._effects import Flow, Statement, query, query_once, transaction
from contract_engine.memory._legacy_table import TITLE_CHARS, LegacyTable, Outline
from contract_engine.memory.errors import InvalidInputError, StoreMisconfiguredError
from contract_engine.memory.keys import check_limit, check_message_id, check_query, check_session_id
from contract_engine.memory.legacy_messages import (
    LegacyBatch,
    id_marks,
    legacy_batch,
    legacy_json,
    legacy_message,
    readable_message,
    readable_text,
)
from contract_engine.memory.models import Message
from contract_engine.memory.swisper_context import SwisperContext

_SAVED = ("title", "short_summary", "session_metadata", "has_contract")
_OF_SESSION = (
    "session_id", "title", "created_at", "updated_at", "message_count", "last_user_text", "last_user_ts",
    "short_summary", "has_contract",
)  # fmt: skip


class LegacyFlows:
    """What the store offers, as flows: arguments are checked here."""

    def __init__(self, table: str) -> None:
        self._table = LegacyTable(table)
        self._has_lz4: bool | None = None

    def _query(
        self, key: str, parameters: Mapping[str, Any], *, is_repeatable: bool = True
    ) -> Flow[Sequence[tuple[Any, ...]]]:
        statement: Statement = self._table[key]
        try:
            return (yield from (query if is_repeatable else query_once)(statement, parameters))
        except StoreMisconfiguredError as exc:
            if "tables are missing" not in exc.reason:
                raise
            reason = f"there is no table {self._table.name!r} with the columns of the older session store"
            raise StoreMisconfiguredError("postgres", reason, hint="name the right one, or create it") from exc

    def create_table(self) -> Flow[None]:
        yield from transaction(self._table.create)

    def add_chat_message(self, session_id: str, message: object, message_id: str | None) -> Flow[bool]:
        return self.add_chat_messages(session_id, [message], None if message_id is None else [message_id])

    def add_chat_messages(self, session_id: str, messages: object, message_ids: object) -> Flow[bool]:
        check_session_id(session_id)
        batch = legacy_batch(messages, message_ids)
        if not batch.number:
            return False
        if (yield from self._append({session_id: batch}, has_ids=batch.marks is not None)):
            return True
        if batch.marks is not None and (yield from self._has(session_id, batch.marks)):
            return False
        raise StoreMisconfiguredError(
            "postgres", f"the history of session {session_id!r} is no list", hint="mend that row, then send it again"
        )

    def add_to_sessions(self, sessions: object) -> Flow[list[str]]:
        if not isinstance(sessions, Mapping):
            raise InvalidInputError("sessions", f"expected a dict, got {type(sessions).__name__}")
        batches = {}
        for session_id, messages in sessions.items():
            if not isinstance(messages, Mapping) or not messages:
                raise InvalidInputError("sessions", "expected for each session its messages by their ids")
            batches[check_session_id(session_id)] = legacy_batch(list(messages.values()), list(messages))
        appended = (yield from self._append(batches, has_ids=True)) if batches else set()
        held = []
        for session_id, batch in batches.items():
            assert batch.marks is not None
            if session_id in appended or (yield from self._has(session_id, batch.marks)):
                held.append(session_id)
        return held

    def _append(self, batches: Mapping[str, LegacyBatch], *, has_ids: bool) -> Flow[set[str]]:
        """Append to several sessions in one statement; answers those to which anything was appended."""
        if self._has_lz4 is None:
            self._has_lz4 = bool((yield from self._query("has_lz4", {})) == [(True,)])
        given = ",".join(_as_given(session_id, batch) for session_id, batch in batches.items())
        parameters = {"sessions": f"[{given}]", "has_ids": has_ids, "has_lz4": self._has_lz4}
        rows = yield from self._query("append", parameters, is_repeatable=has_ids)
        return {name for (name,) in rows}

    def put_messages(self, session_id: str, messages: Mapping[str, Message], in_log: Sequence[str]) -> Flow[bool]:
        check_session_id(session_id)
        batch = legacy_batch(list(messages.values()), list(messages))
        assert batch.marks is not None
        rows = yield from self._query(
            "put",
            {
                "session_id": session_id,
                "title": _title(batch),
                "user_text": batch.last_user_text,
                "messages": batch.messages,
                "in_log": list(in_log),
            },
        )
        return bool(rows) or (yield from self._has(session_id, batch.marks))

    def get_chat_history(self, session_id: str, limit: object) -> Flow[list[Message]]:
        check_session_id(session_id)
        path = "$[*]"
        if limit is not None:
            most = check_limit(limit)
            if not most:
                return []
            path = f"$[last - {most - 1} to last]"
        rows = yield from self._query("history", {"session_id": session_id, "path": path})
        return [readable_message(text) for (text,) in rows]

    def read_page(self, session_id: str, after: int, count: int) -> Flow[list[str]]:
        path = f"$[{after} to {after + count - 1}]"
        rows = yield from self._query("history", {"session_id": session_id, "path": path})
        return [text for (text,) in rows]

    def outline(self, session_id: str) -> Flow[Outline | None]:
        rows = yield from self._query("outline", {"session_id": session_id})
        return Outline(*rows[0]) if rows else None

    def totals(self) -> Flow[tuple[int, int]]:
        ((sessions, messages),) = yield from self._query("totals", {})
        return sessions, messages

    def session_names(self, after: str | None, most: int) -> Flow[list[str]]:
        behind = {} if after is None else {"after": after}
        rows = yield from self._query("names" if behind else "first_names", {**behind, "most": most})
        return [name for (name,) in rows]

    def save_session(self, session_id: str, session: object) -> Flow[bool]:
        check_session_id(session_id)
        if not isinstance(session, Mapping):
            raise InvalidInputError("session", f"expected a dict, got {type(session).__name__}")
        for name in session:
            if name not in _SAVED:
                raise InvalidInputError(f"session.{name}", f"cannot be saved; known are {', '.join(_SAVED)}")
        texts = {name: session.get(name) for name in ("title", "short_summary")}
        for name, text in texts.items():
            if text is not None and not isinstance(text, str):
                raise InvalidInputError(f"session.{name}", f"expected a text, got {type(text).__name__}")
        has_contract, fields = session.get("has_contract"), session.get("session_metadata")
        if has_contract is not None and not isinstance(has_contract, bool):
            raise InvalidInputError("session.has_contract", f"expected a bool, got {type(has_contract).__name__}")
        title = texts["title"]
        yield from self._query(
            "save",
            {
                "session_id": session_id,
                "title": None if title is None else readable_text(title)[:TITLE_CHARS],
                "short_summary": None if texts["short_summary"] is None else readable_text(texts["short_summary"]),
                "has_contract": has_contract,
                "metadata": None if fields is None else legacy_json(fields),
            },
        )
        return True

    def search_chat_history(self, words: object, session_id: str | None, limit: object) -> Flow[list[dict[str, Any]]]:
        rows = yield from self._query(
            "search",
            {
                "words": readable_text(check_query(words)),
                "session_id": None if session_id is None else check_session_id(session_id),
                "most": check_limit(limit, least=1),
            },
        )
        return [{"session_id": name, "place": place, "message": readable_message(text)} for name, place, text in rows]

    def get_all_sessions(self, limit: object) -> Flow[list[dict[str, Any]]]:
        rows = yield from self._query("sessions", {"most": check_limit(limit)})
        return [dict(zip(_OF_SESSION, row, strict=True)) for row in rows]

    def save_session_context_atomic(self, session_id: str, context: object) -> Flow[bool]:
        fields = context.to_dict() if isinstance(context, SwisperContext) else context
        if not isinstance(fields, Mapping):
            raise InvalidInputError("context", f"expected a dict, got {type(context).__name__}")
        body = legacy_json(dict(fields))
        check_session_id(session_id)
        yield from self._query(
            "save",
            {
                "session_id": session_id,
                "title": None,
                "short_summary": None,
                "has_contract": None,
                "metadata": f'{{"context": {body}}}',
            },
        )
        return True

    def get_session_context_atomic(self, session_id: str) -> Flow[dict[str, Any] | None]:
        check_session_id(session_id)
        rows = yield from self._query("context", {"session_id": session_id})
        if not rows or rows[0][0] is None:
            return None
        return legacy_message(json.loads(rows[0][0])).message

    def message_ids(self, session_id: str) -> Flow[list[str]]:
        check_session_id(session_id)
        return [name for (name,) in (yield from self._query("ids", {"session_id": session_id}))]

    def has_message(self, session_id: str, message_id: str) -> Flow[bool]:
        return self._has(check_session_id(session_id), id_marks([check_message_id(message_id)]))

    def _has(self, session_id: str, marks: str) -> Flow[bool]:
        return bool((yield from self._query("has_ids", {"session_id": session_id, "marks": marks})))


def _as_given(session_id: str, batch: LegacyBatch) -> str:
    """Return a session as JSON with what is to be appended to it."""
    fields = json.dumps({"session_id": session_id, "title": _title(batch), "user_text": batch.last_user_text})
    return f'{fields[:-1]}, "messages": {batch.messages}}}'


def _title(batch: LegacyBatch) -> str | None:
    return None if batch.first_user_text is None else batch.first_user_text[:TITLE_CHARS]
