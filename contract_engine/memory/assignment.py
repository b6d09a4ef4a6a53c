"""Appends that Redis numbers: always where no log is configured, and for the time being where the log is away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from contract_engine.memory._effects import Command, Flow, RedisCall
from contract_engine.memory._layout import element_rest, read_commands
from contract_engine.memory.errors import ContentionError, MessageConflictError
from contract_engine.memory.folding import ATTEMPTS, Folding
from contract_engine.memory.keys import SessionKeys
from contract_engine.memory.models import Outgoing, Placed, SessionState
from contract_engine.memory.serializer import json_text
from contract_engine.memory.session_cache import SessionCache, new_ticket

# What the assign and append_unlogged scripts answer; see there.
_FULL, _APPENDED, _FOLD_DUE, _CONFLICT = 0, 1, 2, 4


class Attempt(NamedTuple):
    """What an append tells its script besides the messages; not every script asks for all of it."""

    ticket: int
    message_id: bytes
    expected_seq: int
    is_relayed: bool


class AppendCommand(Protocol):
    """Makes the call of the script that appends; ``messages`` is tokens, rest of the element, tokens, rest, ..."""

    def __call__(self, keys: SessionKeys, messages: Sequence[Any], attempt: Attempt) -> Command: ...


class Assignment:
    """Appends by one script, after a fold in Redis where a cap is in the way; ``folding`` must be one without a log."""

    def __init__(self, cache: SessionCache, folding: Folding, command: AppendCommand) -> None:
        self._cache = cache
        self._folding = folding
        self._command = command

    def append(
        self, session_id: str, outgoing: Sequence[Outgoing], *, read: bool, expected_seq: int = 0
    ) -> Flow[tuple[Placed, SessionState | None]]:
        """Append all of ``outgoing`` in one script; with ``read`` answer the session too, if it can be read.

        ``expected_seq``: the last message the caller knows of; not every script asks for it.
        """
        keys = self._cache.keys(session_id)
        messages: list[object] = []
        for message in outgoing:
            messages += (message.tokens, element_rest(message))
        reads = read_commands(keys) if read else ()
        was_empty = False
        for attempt in range(ATTEMPTS):
            token = new_ticket()

            def commands(message_id: bytes, token: int = token) -> tuple[Command, ...]:
                about = Attempt(token, message_id, expected_seq, outgoing[0].is_relayed)
                call = self._command(keys, messages, about)
                return (call, *reads)

            # A fresh id cannot be there yet, so the script need not look for it; after a lost reply it may be. They are
            # appended together or not at all: the first one stands for all.
            known_id = json_text(outgoing[0].message_id) if outgoing[0].is_retry_safe else b""
            call = RedisCall(commands(known_id), lambda: commands(json_text(outgoing[0].message_id)))
            replies: list[Any] = yield call
            answer = replies[0]
            status, first, at_ms = (_APPENDED, answer, self._cache.now_ms()) if type(answer) is int else answer
            if status == _FULL:
                # Every tenth time without waiting for whoever makes room: it may have died. A buffer found empty is
                # looked at again at once.
                is_patient = attempt % 10 != 9 and not was_empty
                has_rows = yield from self._folding.make_room(session_id, outgoing, is_patient=is_patient)
                # Empty twice: it is not that somebody has taken the buffer away meanwhile.
                if was_empty and not has_rows and len(outgoing) > 1:
                    return (yield from self._append_halves(session_id, outgoing, read=read, expected_seq=expected_seq))
                was_empty = not has_rows
                continue
            if status == _CONFLICT and not (yield from self._is_same_message(session_id, first, outgoing[0])):
                raise MessageConflictError(outgoing[0].message_id)
            if status == _FOLD_DUE:
                yield from self._folding.spawn(session_id, token)
            seqs = tuple(range(first, first + len(outgoing)))
            placed = Placed(seqs, (at_ms,) * len(outgoing), 0, 0)
            return placed, self._cache.reading(replies[1:], call.run, session_id).state if read else None
        raise ContentionError(session_id, ATTEMPTS)

    def _is_same_message(self, session_id: str, seq: int, outgoing: Outgoing) -> Flow[bool]:
        """Whether an equal message is there: the script compares bytes, in which the order of keys shows."""
        state = yield from self._cache.read_alone(session_id)
        return state is not None and any(row[0] == seq and row[4] == outgoing.message for row in state.rows)

    def _append_halves(
        self, session_id: str, outgoing: Sequence[Outgoing], *, read: bool, expected_seq: int
    ) -> Flow[tuple[Placed, SessionState | None]]:
        """Append a batch that is larger than a whole buffer, half by half."""
        middle = len(outgoing) // 2
        first, _ = yield from self.append(session_id, outgoing[:middle], read=False, expected_seq=expected_seq)
        second, state = yield from self.append(session_id, outgoing[middle:], read=read)
        return Placed(first.seqs + second.seqs, first.at_ms + second.at_ms, 0, 0), state
