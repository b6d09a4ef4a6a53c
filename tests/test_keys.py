"""The names of the keys: one hash tag per session, and no two sessions on one key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from contract_engine.memory import InvalidInputError
from contract_engine.memory.keys import (
    MAX_SESSION_ID_CHARS,
    SessionKeys,
    check_message_id,
    check_session_id,
    session_keys,
    session_of_key,
)

IDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=MAX_SESSION_ID_CHARS)
TRICKY = st.text(st.sampled_from("{}%/:*ab257BD~"), min_size=1, max_size=6)

HOSTILE = [
    "{",
    "}",
    "{}",
    "a{b}c",
    "a}:buffer",
    "{t/a}:buffer",
    "%",
    "%7B",
    "%257B",
    "a/b",
    "a:b",
    "a:buffer",
    "*",
    "?[a-z]*",
    "a b",
    "a\u00a0b",
    "\u202eabc",
    "é",
    "e\u0301",
    "😀" * MAX_SESSION_ID_CHARS,
    "x" * MAX_SESSION_ID_CHARS,
    "../../etc",
    "'; DROP TABLE memory_sessions; --",
    "$1",
    "\\x00",
]


def test_the_names_of_a_session() -> None:
    keys = session_keys("contract", "acme", "s1")
    assert keys._asdict() == {
        "buffer": "contract:{acme/s1}:buffer",
        "summary": "contract:{acme/s1}:summary",
        "history": "contract:{acme/s1}:history",
        "context": "contract:{acme/s1}:context",
        "fold": "contract:{acme/s1}:fold",
        "unlogged": "contract:{acme/s1}:unlogged",
        "drain": "contract:{acme/s1}:drain",
    }


@pytest.mark.parametrize("session_id", HOSTILE)
def test_all_keys_of_a_session_lie_in_one_slot(session_id: str) -> None:
    keys = session_keys("contract", "acme", check_session_id(session_id))
    assert len(set(keys)) == len(keys)
    assert {session_of_key("contract", "acme", key) for key in keys} == {session_id}
    assert {session_of_key("contract", "acm", key) for key in keys} == {None}
    assert len({key_slot(key.encode()) for key in keys}) == 1
    # The tag is the whole of tenant and session, so that sessions spread over the slots.
    assert all(key.count("{") == key.count("}") == 1 and "{acme/" in key for key in keys)


def test_hostile_ids_never_share_a_key() -> None:
    names = [name for session_id in HOSTILE for name in session_keys("contract", "acme", session_id)]
    assert len(set(names)) == len(SessionKeys._fields) * len(HOSTILE)


@given(IDS | TRICKY, IDS | TRICKY)
def test_two_ids_share_keys_only_if_they_are_equal(one: str, other: str) -> None:
    shared = set(session_keys("p", "t", one)) & set(session_keys("p", "t", other))
    assert bool(shared) == (one == other)


@given(TRICKY, TRICKY)
def test_tenants_never_share_a_key(one: str, other: str) -> None:
    assert not set(session_keys("p", "t1", one)) & set(session_keys("p", "t2", other))
    assert not set(session_keys("p", "t", one)) & set(session_keys("q", "t", other))


@given(IDS)
def test_texts_without_control_characters_are_ids(session_id: str) -> None:
    assert check_session_id(session_id) == session_id
    assert check_message_id(session_id) == session_id


@pytest.mark.parametrize(
    "session_id",
    ["", "x" * 257, "a\nb", "a\x00b", "\x7f", "\x85", "\ud800", "a\udfffb", None, 7, b"bytes", ["list"], True],
    ids=repr,
)
def test_other_ids_are_refused_by_name(session_id: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_session_id(session_id)
    assert caught.value.field == "session_id"
    with pytest.raises(InvalidInputError) as caught:
        check_message_id(session_id)
    assert caught.value.field == "message_id"
    assert isinstance(caught.value, ValueError)
