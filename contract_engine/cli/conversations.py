"""Conversations as they come in: JSON Lines, one conversation each, checked before anything is stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from contract_engine.memory.errors import InvalidInputError
from contract_engine.memory.keys import check_session_id
from contract_engine.memory.models import Message


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation and the session it becomes."""

    session_id: str
    messages: list[Message]


def read_conversations(path: Path, *, prefix: str = "", limit: int | None = None) -> list[Conversation]:
    """Read the first ``limit`` conversations of a file; empty lines do not count.

    Raises InvalidInputError that names the line: for what is not ``{"id": text, "messages": [object, ...]}``, and for
    an id that comes twice.
    """
    found: dict[str, Conversation] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for place, record in islice(_records(lines, path.name), limit):
                conversation = conversation_of(record, place=place, prefix=prefix)
                if conversation.session_id in found:
                    raise InvalidInputError(place, f"the id {conversation.session_id!r} comes a second time")
                found[conversation.session_id] = conversation
    except UnicodeDecodeError as exc:
        raise InvalidInputError(path.name, "is not a text in UTF-8") from exc
    except OSError as exc:
        raise InvalidInputError(str(path), f"cannot be read: {exc.strerror}") from exc
    if not found:
        raise InvalidInputError(path.name, "holds no conversation")
    return list(found.values())


def conversation_of(record: object, *, place: str, prefix: str = "") -> Conversation:
    """Check one record; ``place`` is named where it is wrong."""
    if not isinstance(record, dict):
        raise InvalidInputError(place, 'expected an object with "id" and "messages"')
    name, messages = record.get("id"), record.get("messages")
    if not isinstance(name, str) or not name:
        raise InvalidInputError(place, '"id" is missing: it becomes the session id')
    if not isinstance(messages, list) or not messages:
        raise InvalidInputError(place, '"messages" is missing, empty or not a list')
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidInputError(place, f"messages[{index}] is not an object")
    try:
        return Conversation(check_session_id(prefix + name), messages)
    except InvalidInputError as exc:
        raise InvalidInputError(place, f'"id": {exc.problem}') from exc


def _records(lines: Iterable[str], name: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError) as exc:
            problem = f"{exc.msg} at character {exc.colno}" if isinstance(exc, json.JSONDecodeError) else str(exc)
            raise InvalidInputError(place, f"is not JSON: {problem}") from exc
