"""The small Redis plugin: its four calls on a real Redis, what it refuses, and who may share it."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from contract_engine.memory import InvalidInputError
from contract_engine.plugins.memory_manager.plugin_interface import MemoryManager

pytest_plugins = ("memory_fixtures",)

DAY = 24 * 3600
CONTEXT = {
    "user_request": "Build an auth system",
    "completed_steps": ["research_providers", "select_oauth2"],
    "nested": {"deep": [None, True, 1.5, 2**70, -0.0, "ß 漢 \U0001f600 \x00 \ud800 \ud83d\ude00"]},
}


@pytest.fixture
def manager(redis_url: str) -> Iterator[MemoryManager]:
    with MemoryManager(redis_url, timeout_seconds=5) as made:
        yield made


@pytest.fixture
def conversation() -> str:
    return f"conv-{uuid.uuid4().hex}"


def key(conversation: str) -> str:
    return f"riker:memory:{conversation}"


def seconds_left(raw: redis.Redis, conversation: str) -> int:
    left = raw.ttl(key(conversation))
    assert isinstance(left, int)
    return left


# -- the four calls


def test_store_and_retrieve(manager: MemoryManager, conversation: str, raw: redis.Redis) -> None:
    assert manager.store_memory(conversation, CONTEXT) is True
    assert manager.retrieve_memory(conversation) == CONTEXT
    stored = raw.get(key(conversation))
    assert isinstance(stored, bytes)
    assert json.loads(stored) == CONTEXT, "anybody's json reads it"
    assert DAY - 60 <= seconds_left(raw, conversation) <= DAY


def test_a_later_store_replaces_and_starts_the_day_again(
    manager: MemoryManager, conversation: str, raw: redis.Redis
) -> None:
    manager.store_memory(conversation, {"n": 1})
    raw.expire(key(conversation), 60)
    assert manager.store_memory(conversation, {"n": 2})
    assert manager.retrieve_memory(conversation) == {"n": 2}
    assert seconds_left(raw, conversation) > DAY - 60


def test_what_is_not_there_is_none(manager: MemoryManager, conversation: str) -> None:
    assert manager.retrieve_memory(conversation) is None
    assert manager.corrupt_records == 0


def test_memory_expiration(manager: MemoryManager, conversation: str, raw: redis.Redis) -> None:
    manager.store_memory(conversation, CONTEXT)
    assert manager.extend_memory_ttl(conversation, hours=48) is True
    assert 2 * DAY - 60 <= seconds_left(raw, conversation) <= 2 * DAY
    raw.expire(key(conversation), 60)
    assert manager.extend_memory_ttl(conversation) is True
    assert DAY - 60 <= seconds_left(raw, conversation) <= DAY


def test_an_extension_neither_shortens_nor_adds_up(manager: MemoryManager, conversation: str, raw: redis.Redis) -> None:
    manager.store_memory(conversation, CONTEXT)
    assert manager.extend_memory_ttl(conversation, 1)
    assert seconds_left(raw, conversation) > DAY - 60
    for _ in range(5):
        assert manager.extend_memory_ttl(conversation, 30)
    assert seconds_left(raw, conversation) <= 30 * 3600


def test_an_extension_gives_no_end_to_what_has_none(
    manager: MemoryManager, conversation: str, raw: redis.Redis
) -> None:
    manager.store_memory(conversation, CONTEXT)
    raw.persist(key(conversation))
    assert manager.extend_memory_ttl(conversation)
    assert seconds_left(raw, conversation) == -1


def test_an_extension_makes_nothing(manager: MemoryManager, conversation: str, raw: redis.Redis) -> None:
    assert manager.extend_memory_ttl(conversation) is False
    assert not raw.exists(key(conversation))


def test_clear_memory(manager: MemoryManager, conversation: str) -> None:
    manager.store_memory(conversation, CONTEXT)
    assert manager.clear_memory(conversation) is True
    assert manager.retrieve_memory(conversation) is None
    assert manager.clear_memory(conversation) is False


def test_another_time_to_live(redis_url: str, conversation: str, raw: redis.Redis) -> None:
    with MemoryManager(redis_url, ttl_seconds=120) as manager:
        manager.store_memory(conversation, CONTEXT)
    assert 60 <= seconds_left(raw, conversation) <= 120


TEXT = st.text(st.characters(exclude_categories=()), max_size=20) | st.just("halves \ud83d\ude00")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def test_any_json_comes_back_equal(manager: MemoryManager, conversation: str) -> None:
    @given(st.dictionaries(TEXT, JSON, max_size=5))
    def round_trip(data: dict[str, Any]) -> None:
        assert manager.store_memory(conversation, data)
        assert manager.retrieve_memory(conversation) == data

    round_trip()


# -- what is refused before anything is written

CIRCLE: dict[str, Any] = {}
CIRCLE["again"] = CIRCLE
DEEP: dict[str, Any] = {}
for _ in range(5_000):
    DEEP = {"d": DEEP}


@pytest.mark.parametrize(
    "data",
    [
        None, [], "text", b"{}", {"n": math.nan}, {"n": math.inf}, {"b": b"bytes"}, {"s": {1}}, {"t": (1, 2)},
        {1: "number"}, {None: 1}, {"o": object()}, {"in": {"side": {2: 3}}}, {"n": 10**5_000}, CIRCLE, DEEP,
        {"large": "x" * 2_000},
    ],
    ids=lambda data: type(data).__name__,
)  # fmt: skip
def test_what_json_cannot_hold_is_refused(redis_url: str, conversation: str, raw: redis.Redis, data: Any) -> None:
    with MemoryManager(redis_url, max_bytes=1_000) as manager:
        manager.store_memory(conversation, {"kept": True})
        with pytest.raises(InvalidInputError) as caught:
            manager.store_memory(conversation, data)
        assert caught.value.field.startswith("memory_data")
        assert manager.retrieve_memory(conversation) == {"kept": True}


@pytest.mark.parametrize("bad", ["", "  ", None, 7, b"id", "x" * 2_000, "\ud800"], ids=repr)
def test_every_call_refuses_a_bad_id(manager: MemoryManager, bad: Any) -> None:
    for call in (
        lambda: manager.store_memory(bad, {}),
        lambda: manager.retrieve_memory(bad),
        lambda: manager.extend_memory_ttl(bad),
        lambda: manager.clear_memory(bad),
    ):
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert caught.value.field == "conversation_id"


@pytest.mark.parametrize("hours", [0, -1, 1.5, "24", None, True, 10**9, math.nan], ids=repr)
def test_an_extension_by_what_is_no_number_of_hours_is_refused(
    manager: MemoryManager, conversation: str, raw: redis.Redis, hours: Any
) -> None:
    manager.store_memory(conversation, CONTEXT)
    raw.expire(key(conversation), 600)
    with pytest.raises(InvalidInputError) as caught:
        manager.extend_memory_ttl(conversation, hours)
    assert caught.value.field == "hours"
    assert 0 < seconds_left(raw, conversation) <= 600


@pytest.mark.parametrize("conversation", ["a:b*", "{x}", "line\nline", "漢字", "a/../b", "a\x00b"], ids=repr)
def test_strange_ids_stay_apart(manager: MemoryManager, raw: redis.Redis, conversation: str) -> None:
    name = f"{uuid.uuid4().hex}{conversation}"
    manager.store_memory(name, {"mine": True})
    assert raw.exists(key(name))
    assert manager.retrieve_memory(f"{name} ") is None


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("redis_url", {"redis_url": "http://user:sesame@host"}),
        ("redis_url", {"redis_url": "redis://user:sesame@host:sesame"}),
        ("redis_url", {"redis_url": "redis://user:sesame@host/0?socket_timeout=sesame"}),
        ("redis_url", {"redis_url": None}),
        ("ttl_seconds", {"ttl_seconds": 0}),
        ("timeout_seconds", {"timeout_seconds": math.nan}),
        ("timeout_seconds", {"timeout_seconds": 0}),
        ("attempts", {"attempts": 0}),
        ("max_connections", {"max_connections": True}),
        ("max_bytes", {"max_bytes": 1.5}),
    ],
)
def test_a_wrong_setting_is_named_and_the_password_is_not(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        MemoryManager(**settings)
    assert caught.value.field == field
    assert "sesame" not in str(caught.value)
    assert caught.value.__cause__ is None


# -- what is found under the keys


@pytest.mark.parametrize(
    "found", [b"", b"{", b"\xff\xfe", b"[1]", b'"text"', b"null", b"[" * 100_000, b'{"n":' + b"9" * 5_000 + b"}"]
)
def test_what_is_no_conversation_is_absent_and_counted(
    manager: MemoryManager,
    conversation: str,
    raw: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    found: bytes,
) -> None:
    raw.set(key(conversation), found, ex=60)
    with caplog.at_level(logging.WARNING):
        assert manager.retrieve_memory(conversation) is None
    assert manager.corrupt_records == 1
    assert conversation in caplog.text
    assert manager.store_memory(conversation, CONTEXT), "and the next store heals it"
    assert manager.retrieve_memory(conversation) == CONTEXT


def test_a_key_of_another_type_is_absent_and_counted(
    manager: MemoryManager, conversation: str, raw: redis.Redis
) -> None:
    raw.rpush(key(conversation), "1")
    raw.expire(key(conversation), 60)
    assert manager.retrieve_memory(conversation) is None
    assert manager.corrupt_records == 1
    assert manager.store_memory(conversation, CONTEXT)
    assert manager.retrieve_memory(conversation) == CONTEXT


def test_nothing_that_was_stored_is_logged(
    manager: MemoryManager, conversation: str, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        manager.store_memory(conversation, {"secret-key": "canary"})
        manager.retrieve_memory(conversation)
        raw.set(key(conversation), b'{"canary', ex=60)
        manager.retrieve_memory(conversation)
        manager.extend_memory_ttl(conversation)
        manager.clear_memory(conversation)
    assert len(caplog.records) >= 5
    assert "canary" not in caplog.text
    assert "secret-key" not in caplog.text


# -- who may share it


def test_threads_share_one_manager(redis_url: str, conversation: str) -> None:
    wrong = []
    with MemoryManager(redis_url, timeout_seconds=20, max_connections=4) as manager:

        def work(number: int) -> None:
            for turn in range(50):
                mine = f"{conversation}-{number}"
                data = {"number": number, "turn": turn}
                if not manager.store_memory(mine, data) or manager.retrieve_memory(mine) != data:
                    wrong.append(data)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_forked_child_and_its_parent_go_on(manager: MemoryManager, conversation: str) -> None:
    manager.store_memory(conversation, {"by": "parent"})
    child = os.fork()
    if child == 0:  # no assertion may leave the child: it would run the rest of the suite
        signal.alarm(60)
        ok = all(
            manager.store_memory(f"{conversation}-child", {"n": n})
            and manager.retrieve_memory(f"{conversation}-child") == {"n": n}
            for n in range(200)
        )
        os._exit(0 if ok else 1)
    for number in range(200):
        assert manager.store_memory(conversation, {"n": number})
        assert manager.retrieve_memory(conversation) == {"n": number}
    assert os.waitpid(child, 0)[1] == 0
    assert manager.retrieve_memory(f"{conversation}-child") == {"n": 199}


def test_a_closed_manager_opens_again(redis_url: str, conversation: str) -> None:
    name = f"plugin-{conversation}"
    separator = "&" if "?" in redis_url else "?"
    manager = MemoryManager(f"{redis_url}{separator}client_name={name}", timeout_seconds=5)

    def connections() -> int:
        with redis.Redis.from_url(redis_url) as client:
            return sum(one["name"] == name for one in client.client_list())

    assert connections() == 0
    manager.store_memory(conversation, CONTEXT)
    assert connections() == 1
    manager.close()
    assert connections() == 0
    assert manager.retrieve_memory(conversation) == CONTEXT
    manager.close()


def test_importing_and_making_one_opens_nothing() -> None:
    code = """
import socket
def refuse(*_):
    raise AssertionError("a connection was opened")
socket.socket.connect = socket.socket.connect_ex = refuse
from contract_engine.plugins.memory_manager.plugin_interface import MemoryManager
with MemoryManager("redis://localhost:1"):
    print("opened nothing")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "opened nothing\n", done.stderr


def test_without_a_redis_every_call_says_so_and_none_raises(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with MemoryManager(f"redis://user:sesame@127.0.0.1:{port}/0") as manager:
            assert manager.store_memory("c", CONTEXT) is False
            assert manager.retrieve_memory("c") is None
            assert manager.extend_memory_ttl("c") is False
            assert manager.clear_memory("c") is False
            assert manager.corrupt_records == 0
    assert len(caplog.records) == 4
    assert "sesame" not in caplog.text
    assert "select_oauth2" not in caplog.text
