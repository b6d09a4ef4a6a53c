"""Session ids made to reach into other sessions, to end a key early or to mean something to a server."""

from __future__ import annotations

import pytest
import redis
from crash_matrix import DATABASE, Interposition
from crash_operations import LIMITS, PATIENT
from memory_contract import Backend, assert_context, logged, redis_values, say
from redis.crc import key_slot

from contract_engine.memory import InvalidInputError

pytest_plugins = ("memory_fixtures",)

HOSTILE = (
    "a",
    "{a}",
    "a}",
    "a}:buffer",
    "a}:unlogged",
    "{",
    "}",
    "{}",
    "%7B",
    "%7Ba%7D",
    "a%7D",
    "%",
    "%25",
    "*",
    "a*",
    "?",
    "[a]",
    "a/b",
    "../a",
    "a:b",
    "a:buffer",
    ":",
    " a",
    "a ",
    "'; DROP TABLE memory_messages; --",
    '"',
    "\\",
    "$1",
    "%s",
    "ä",
    "a\u0308",
    "\u202eabc",
    "😀",
    "a" * 256,
)
REFUSED = ("", "a\nb", "a\r", "a\tb", "\x00", "a\x7f", "\x85", "\ud800", "a" * 257, "a" * 10_000)


def test_no_id_reaches_into_another_session(backend: Backend, raw: redis.Redis) -> None:
    manager = backend.open(limits=LIMITS, **PATIENT)
    for place, session_id in enumerate(HOSTILE):
        for number in range(7):
            manager.append(session_id, say(100 * place + number))
        assert manager.save_context(session_id, {"session_id": session_id})
        manager.wait_for_folds()
    contexts = {}
    for place, session_id in enumerate(HOSTILE):
        keys = backend.keys(session_id)
        assert len({key_slot(key.encode()) for key in keys}) == 1
        contexts[session_id] = manager.get_context(session_id)
        assert_context(contexts[session_id], [say(100 * place + number) for number in range(7)])
        loaded = manager.load_context(session_id)
        assert loaded is not None
        assert loaded.session_id == session_id
    every = [key for session_id in HOSTILE for key in backend.keys(session_id)]
    assert len(set(every)) == len(every)
    left = list(HOSTILE)
    while left:
        gone = left.pop(len(left) // 2)
        assert manager.clear_session_memory(gone)
        assert raw.exists(*backend.keys(gone)) == 0
        for session_id in left:
            context = manager.get_context(session_id)
            assert context["buffer_messages"] == contexts[session_id]["buffer_messages"]
            assert context["current_summary"] == contexts[session_id]["current_summary"]
        assert manager.get_context(gone)["last_seq"] == 0


def test_ids_that_are_refused_leave_nothing(backend: Backend, raw: redis.Redis) -> None:
    manager = backend.open(limits=LIMITS, **PATIENT)
    for session_id in REFUSED:
        for call in (
            lambda session_id=session_id: manager.append(session_id, say(1)),
            lambda session_id=session_id: manager.add_message(session_id, say(1)),
            lambda session_id=session_id: manager.get_context(session_id),
            lambda session_id=session_id: manager.clear_session_memory(session_id),
            lambda session_id=session_id: manager.save_context(session_id, {"session_id": "s"}),
            lambda session_id=session_id: manager.buffer_store.get_messages(session_id),
            lambda session_id=session_id: manager.summary_store.add_summary(session_id, "Text."),
        ):
            with pytest.raises(InvalidInputError, match="session_id"):
                call()
    assert redis_values(raw, f"*{backend.tenant}*") == {}


def test_waiting_sessions_are_named_and_logged_whatever_their_id(blocking: Backend) -> None:
    manager = blocking.open(limits=LIMITS, **PATIENT)
    interposition = Interposition(manager, away=DATABASE)
    for place, session_id in enumerate(HOSTILE):
        assert not manager.append(session_id, say(place)).durable
    interposition.remove()
    other = blocking.open(limits=LIMITS, **PATIENT)
    assert other.unlogged_sessions() == sorted(HOSTILE)
    for place, session_id in enumerate(HOSTILE):
        assert other.drain(session_id) == 1
        assert logged(str(blocking.database_url), blocking.tenant, session_id) == [(1, say(place))]
    assert other.unlogged_sessions() == []
