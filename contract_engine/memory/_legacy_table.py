"""The SQL of the older session store: one row per session, with the whole conversation in a column of type ``jsonb``.

Written as text, because it is all operators of ``jsonb``. Whatever changes a row is one statement, so that what is read
and what is written lie under the same row lock: a list that is read, extended and written back loses what others
appended meanwhile.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import sqlalchemy as sa

from contract_engine.memory._effects import Statement
from contract_engine.memory.errors import InvalidInputError
from contract_engine.memory.legacy_messages import MESSAGE_ID_FIELD

TITLE_CHARS = 64
_PART = re.compile(r"[^\W\d]\w{0,62}")

_ARRAY = "CASE WHEN jsonb_typeof(s.chat_history) = 'array' THEN s.chat_history ELSE '[]' END"
# Null is what the original stores where there is no value: nothing can be added to it, nor taken from it.
_METADATA = "COALESCE(NULLIF(s.session_metadata, 'null'), '{}')"
_CONTEXT_TEXT = "NULLIF(s.session_metadata -> 'context', 'null')::text"
# The columns have no time zone, and are read as times of UTC: the zone of whoever writes must not get in.
_NOW = "(now() AT TIME ZONE 'utc')"
# A row that others made may have none at all: the empty history.
_HELD = "COALESCE(s.chat_history, '[]')"
_IDS_OF = "jsonb_path_query_array({history}, 'strict $[*] ? (exists (@.{id_field})).{id_field}', '{{}}', true)"
_COLUMNS = (
    "session_id, created_at, updated_at, title, message_count, last_user_text, last_user_ts, short_summary,"
    " chat_history, session_metadata, has_contract"
)

_CREATE = """
CREATE TABLE IF NOT EXISTS {table} (
    session_id varchar PRIMARY KEY,
    title varchar(64),
    created_at timestamp NOT NULL DEFAULT {now},
    updated_at timestamp NOT NULL DEFAULT {now},
    message_count integer DEFAULT 0,
    last_user_text text,
    last_user_ts timestamp,
    short_summary text,
    chat_history jsonb NOT NULL DEFAULT '[]',
    session_metadata jsonb NOT NULL DEFAULT '{{}}',
    has_contract boolean DEFAULT false
)"""

# Of each session in the order of their ids, so that two who append to the same sessions do not wait for each other. No
# row comes back where all messages are there already. A history that is no list is left alone by the last condition.
# Whoever appends writes the whole history anew, and most of that was spent compressing it: lz4, where the server has
# it and nobody has chosen otherwise, takes a fifth of the time. The setting ends with the statement.
_APPEND = """
INSERT INTO {table} AS s ({columns})
SELECT given.session_id, {now}, {now}, given.title, jsonb_array_length(given.messages), given.user_text,
       CASE WHEN given.user_text IS NOT NULL THEN {now} END, CAST(NULL AS text), given.messages, CAST('{{}}' AS jsonb),
       false
FROM jsonb_to_recordset(CAST(:sessions AS jsonb))
         AS given(session_id text, title text, user_text text, messages jsonb),
     (SELECT CASE WHEN CAST(:has_lz4 AS boolean) THEN set_config('default_toast_compression', 'lz4', true) END)
         AS compression(name)
ORDER BY given.session_id
ON CONFLICT (session_id) DO UPDATE SET
    (chat_history, message_count) = (
        SELECT {held} || new.messages, jsonb_array_length({held}) + jsonb_array_length(new.messages)
        FROM (SELECT CASE
            WHEN NOT CAST(:has_ids AS boolean) OR excluded.message_count = 1 THEN excluded.chat_history
            WHEN NOT {held_ids} ?| ARRAY(SELECT jsonb_array_elements_text({given_ids})) THEN excluded.chat_history
            ELSE (
                SELECT jsonb_agg(e.value ORDER BY e.place)
                FROM jsonb_array_elements(excluded.chat_history) WITH ORDINALITY AS e(value, place)
                WHERE NOT EXISTS (
                    SELECT FROM jsonb_array_elements({held}) AS held(value)
                    WHERE held.value ->> '{id_field}' = e.value ->> '{id_field}'))
            END OFFSET 0) AS new(messages)),
    title = COALESCE(s.title, excluded.title),
    last_user_text = COALESCE(excluded.last_user_text, s.last_user_text),
    last_user_ts = COALESCE(excluded.last_user_ts, s.last_user_ts),
    updated_at = excluded.updated_at
WHERE jsonb_typeof({held}) = 'array'
  AND (NOT CAST(:has_ids AS boolean) OR NOT {held_ids} @> {given_ids})
RETURNING s.session_id"""

# Puts messages among those of a row that has ids for all of its own: where the log has them. What was appended since
# the log was read stays at the end. No row comes back where all of them are there already, or where one has no id.
_PUT = """
INSERT INTO {table} AS s ({columns})
SELECT :session_id, {now}, {now}, CAST(:title AS text), jsonb_array_length(given), CAST(:user_text AS text),
       CASE WHEN CAST(:user_text AS text) IS NOT NULL THEN {now} END, NULL, given, '{{}}', false
FROM CAST(:messages AS jsonb) AS given
ON CONFLICT (session_id) DO UPDATE SET
    (chat_history, message_count) = (
        SELECT jsonb_agg(e.value ORDER BY log.place, e.place), count(*)
        FROM (
            SELECT value, 0 FROM jsonb_array_elements(excluded.chat_history) AS new(value)
            WHERE NOT {held_ids} ? (new.value ->> '{id_field}')
            UNION ALL
            SELECT value, place FROM jsonb_array_elements({held}) WITH ORDINALITY AS held(value, place)
        ) AS e(value, place)
        LEFT JOIN unnest(CAST(:in_log AS text[])) WITH ORDINALITY AS log(message_id, place)
            ON log.message_id = e.value ->> '{id_field}'),
    title = COALESCE(s.title, excluded.title),
    last_user_text = COALESCE(s.last_user_text, excluded.last_user_text),
    last_user_ts = COALESCE(s.last_user_ts, excluded.last_user_ts)
WHERE jsonb_typeof({held}) = 'array' AND jsonb_array_length({held_ids}) = jsonb_array_length({history})
  AND NOT {held_ids} @> {given_ids}
RETURNING s.session_id"""

_HAS_LZ4 = """
SELECT 'lz4' = ANY (enumvals) AND source = 'default' FROM pg_settings WHERE name = 'default_toast_compression'"""

_SAVE = """
INSERT INTO {table} AS s ({columns})
VALUES (:session_id, {now}, {now}, CAST(:title AS text), 0, NULL, NULL, CAST(:short_summary AS text), '[]',
        COALESCE(CAST(:metadata AS jsonb), '{{}}'), COALESCE(CAST(:has_contract AS boolean), false))
ON CONFLICT (session_id) DO UPDATE SET
    title = COALESCE(CAST(:title AS text), s.title),
    short_summary = COALESCE(CAST(:short_summary AS text), s.short_summary),
    session_metadata = {metadata} || COALESCE(CAST(:metadata AS jsonb), '{{}}'),
    has_contract = COALESCE(CAST(:has_contract AS boolean), s.has_contract),
    updated_at = excluded.updated_at
RETURNING s.session_id"""

_HISTORY = """
SELECT e.value::text FROM {table} AS s,
    LATERAL jsonb_path_query({history}, CAST(:path AS jsonpath)) WITH ORDINALITY AS e(value, place)
WHERE s.session_id = :session_id ORDER BY e.place"""

_SEARCH = """
SELECT s.session_id, e.place, e.value::text FROM {table} AS s,
    LATERAL jsonb_array_elements({history}) WITH ORDINALITY AS e(value, place)
WHERE (CAST(:session_id AS text) IS NULL OR s.session_id = CAST(:session_id AS text))
  AND position(lower(CAST(:words AS text)) in lower(e.value ->> 'content')) > 0
ORDER BY s.updated_at DESC, s.session_id, e.place LIMIT :most"""

_SESSIONS = """
SELECT session_id, title, created_at, updated_at, message_count, last_user_text, last_user_ts, short_summary,
       has_contract
FROM {table} ORDER BY updated_at DESC, session_id LIMIT :most"""

_CONTEXT = "SELECT {context} FROM {table} AS s WHERE s.session_id = :session_id"

_IDS = """
SELECT e.value ->> '{id_field}' FROM {table} AS s,
    LATERAL jsonb_array_elements({history}) WITH ORDINALITY AS e(value, place)
WHERE s.session_id = :session_id AND e.value ->> '{id_field}' IS NOT NULL ORDER BY e.place"""

_HAS_IDS = """
SELECT 1 FROM {table} WHERE session_id = :session_id AND chat_history @> CAST(:marks AS jsonb)"""

_TOTALS = "SELECT count(*), COALESCE(sum(message_count), 0)::bigint FROM {table}"

# From the very first, which may be the empty text.
_FIRST_NAMES = "SELECT session_id FROM {table} ORDER BY session_id LIMIT :most"
_NAMES = "SELECT session_id FROM {table} WHERE session_id > :after ORDER BY session_id LIMIT :most"

# Seconds are taken as those of UTC, for a column without time zone does not say.
_OUTLINE = """
SELECT jsonb_typeof({held}), jsonb_array_length({history}), octet_length({held}::text),
       jsonb_path_exists({history}, '$[*].{id_field}'),
       (extract(epoch FROM s.created_at) * 1000)::bigint, (extract(epoch FROM s.updated_at) * 1000)::bigint,
       s.short_summary, {context},
       COALESCE(s.has_contract, false)
           OR CASE jsonb_typeof({metadata}) WHEN 'object' THEN {metadata} - 'context' <> '{{}}' ELSE true END
FROM {table} AS s WHERE s.session_id = :session_id"""

_TEMPLATES = {
    "append": _APPEND,
    "put": _PUT,
    "has_lz4": _HAS_LZ4,
    "save": _SAVE,
    "history": _HISTORY,
    "search": _SEARCH,
    "sessions": _SESSIONS,
    "context": _CONTEXT,
    "ids": _IDS,
    "has_ids": _HAS_IDS,
    "totals": _TOTALS,
    "first_names": _FIRST_NAMES,
    "names": _NAMES,
    "outline": _OUTLINE,
}


class Outline(NamedTuple):
    """What is known of a session before its messages are read.

    ``kind``: the JSON type of its history, ``array`` where it is in order. ``length`` messages of ``size_bytes`` in
    all; ``has_ids``: some of them carry the id they have in the new log. ``context``: the context object as JSON text.
    ``has_more``: it has a contract flag, or metadata beside the context object.
    """

    kind: str
    length: int
    size_bytes: int
    has_ids: bool
    created_ms: int
    updated_ms: int
    short_summary: str | None
    context: str | None
    has_more: bool


class LegacyTable:
    """The statements for one table, by their names; ``schema.table`` is a name too."""

    def __init__(self, name: str) -> None:
        parts = name.split(".")
        if not 1 <= len(parts) <= 2 or not all(_PART.fullmatch(part) for part in parts):
            raise InvalidInputError("table", "expected the name of a table, or of a schema and a table with a dot")
        self.name = name
        self._quoted = ".".join(f'"{part}"' for part in parts)
        self._statements = {key: self._statement(key, text) for key, text in _TEMPLATES.items()}

    def _statement(self, key: str, template: str) -> Statement:
        sql = template.format(
            table=self._quoted,
            columns=_COLUMNS,
            history=_ARRAY,
            metadata=_METADATA,
            context=_CONTEXT_TEXT,
            id_field=MESSAGE_ID_FIELD,
            now=_NOW,
            held=_HELD,
            held_ids=_IDS_OF.format(history=_HELD, id_field=MESSAGE_ID_FIELD),
            given_ids=_IDS_OF.format(history="excluded.chat_history", id_field=MESSAGE_ID_FIELD),
        )
        return Statement(f"legacy_{key}", lambda: sa.text(sql))

    def __getitem__(self, key: str) -> Statement:
        return self._statements[key]

    def create(self, connection: sa.Connection) -> None:
        """Create the table as the original declares it, unless it is there."""
        connection.execute(sa.text(_CREATE.format(table=self._quoted, now=_NOW)))
