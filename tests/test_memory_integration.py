"""Whole lives of sessions, the way an orchestrator leads them."""

from __future__ import annotations

import socket
from typing import Any, NoReturn

import pytest
import redis
from memory_contract import DURABLE, SYNC, Backend, assert_context, logged, redis_values, row_counts, say, talk
from servers import PrivateServers

from contract_engine.memory import (
    AsyncMemoryManager,
    CircuitState,
    MemoryManager,
    PostgresSessionStore,
    SwisperContext,
    memory_manager,
    redis_circuit_breaker,
)

pytest_plugins = ("memory_fixtures",)

ENVIRONMENT = [
    "REDIS_URL",
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_DB",
    "REDIS_PASSWORD",
    "DATABASE_URL",
    "POSTGRES_HOST",
    "POSTGRES_PORT",
    "POSTGRES_DB",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, redis_url: str, database_url: str, tenant: str) -> None:
    """What a deployment sets."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("CONTRACT_MEMORY_TENANT", tenant)


def exchange(turn: int) -> list[dict[str, Any]]:
    """Return the four messages of a turn that uses a tool."""
    call = {
        "id": f"call-{turn}",
        "type": "function",
        "function": {"name": "search", "arguments": f'{{"turn": {turn}}}'},
    }
    return [
        say(turn),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"call-{turn}", "content": f"Found {turn} laptops. 😀 \x00"},
        {"role": "assistant", "content": f"I found {turn} laptops for you."},
    ]


def test_a_long_conversation(manager: MemoryManager, backend: Backend, raw: redis.Redis) -> None:
    """Turns with tools, in two processes by turns, with a state object; with a log also with losses in Redis."""
    other = backend.open()
    said: list[dict[str, Any]] = []
    summaries = set()
    for turn in range(60):
        process = (manager, other)[turn % 2]
        for message in exchange(turn):
            said.append(message)
            process.append("s", message, message_id=f"m{len(said)}")
        context = (other, manager)[turn % 2].get_context("s")
        assert_context(context, said)
        summaries.add(context["summary_version"])
        assert process.save_context("s", SwisperContext(session_id="s", current_state="search", step_log=[turn]))
        found = other.load_context("s")
        assert found is not None
        assert found.step_log == [turn]
        if backend.is_durable and turn % 10 == 9:
            assert raw.delete(*backend.keys("s")) >= 1
        if turn == 30:
            process.set_session_config("s", {"max_buffer_messages": 12, "summary_trigger_tokens": 200})
    for process in (manager, other):
        process.wait_for_folds()
    context = manager.get_context("s")
    assert_context(context, said)
    assert len(summaries) > 3
    assert context["summary_tokens"] <= manager.config.summary_budget(context["watermark"])
    assert "laptops" in context["current_summary"]
    if backend.database_url:
        assert [message for _, message in logged(backend.database_url, backend.tenant, "s")] == said
        assert manager.session_store.get_chat_history("s", 4) == said[-4:]


def test_a_thousand_sessions_stay_apart(redis_url: str, database_url: str, tenant: str) -> None:
    backend = Backend(SYNC, DURABLE, redis_url, database_url, tenant)
    try:
        manager = backend.open()
        for number in range(1000):
            manager.add_message(f"s{number}", say(number))
        assert row_counts(database_url, tenant)["memory_sessions"] == 1000
        for number in range(0, 1000, 7):
            assert_context(manager.get_context(f"s{number}"), [say(number)])
    finally:
        backend.close()


@pytest.mark.usefixtures("environment")
def test_the_documented_orchestrator(tenant: str) -> None:
    def handle_user_message(session_id: str, message: str) -> dict[str, Any]:
        manager.add_message(session_id, {"role": "user", "content": message, "timestamp": 1_700_000_000})
        return manager.get_context(session_id)

    with MemoryManager() as manager:
        assert manager.config.tenant == tenant
        context = handle_user_message("session_123", "I want to buy a laptop")
        assert [message["content"] for message in context["buffer_messages"]] == ["I want to buy a laptop"]
        assert manager.save_context("session_123", SwisperContext(session_id="session_123", current_state="search"))
        manager.set_session_config("session_123", {"summary_trigger_tokens": 2500, "max_buffer_tokens": 3500})
        stats = manager.get_memory_stats("session_123")
        assert stats["session_config"]["summary_trigger_tokens"] == 2500
        assert manager.buffer_store.get_buffer_info("session_123")["message_count"] == 1
        assert len(manager.buffer_store.get_messages("session_123")) == 1
        assert manager.is_available()
        assert manager.circuit_breaker is redis_circuit_breaker
        assert redis_circuit_breaker.get_state() == CircuitState.CLOSED
        assert manager.clear_session_memory("session_123") is True


@pytest.mark.usefixtures("environment")
def test_the_documented_coexistence_of_two_stores() -> None:
    class EnhancedSessionStore:
        def __init__(self) -> None:
            self.memory_manager = MemoryManager(tenant="coexistence")
            self.legacy_store = PostgresSessionStore()

        def add_chat_message(self, session_id: str, message: dict[str, Any]) -> None:
            self.memory_manager.add_message(session_id, message)
            self.legacy_store.add_chat_message(session_id, message)

    store = EnhancedSessionStore()
    try:
        store.memory_manager.clear_session_memory("s")
        for message in talk(3):
            store.add_chat_message("s", message)
        assert store.legacy_store.get_chat_history("s") == talk(3)
        assert_context(store.memory_manager.get_context("s"), talk(3))
    finally:
        store.memory_manager.close()
        store.legacy_store.close()


def test_constructing_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> NoReturn:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket.socket, "connect_ex", refused)
    for made in (
        MemoryManager(redis_url="redis://127.0.0.1:1/0", database_url="postgresql://127.0.0.1:1/d"),
        MemoryManager(),
        AsyncMemoryManager(),
    ):
        _ = made.circuit_breaker
    with MemoryManager():
        pass
    assert isinstance(memory_manager, MemoryManager)
    assert "_runtime" not in vars(memory_manager)


def test_the_two_colours_and_two_processes_read_what_the_other_wrote(
    redis_url: str, database_url: str, tenant: str
) -> None:
    backends = [Backend(colour, DURABLE, redis_url, database_url, tenant) for colour in ("sync", "async")]
    try:
        blocking, tasks = (backend.open(max_buffer_messages=6) for backend in backends)
        for number in range(1, 31):
            (blocking, tasks)[number % 2].append("s", say(number))
            for manager in (blocking, tasks):
                assert_context(manager.get_context("s"), talk(number))
    finally:
        for backend in backends:
            backend.close()


def test_evicted_sessions_come_back_whole(private_servers: PrivateServers, database_url: str, tenant: str) -> None:
    servers = private_servers(postgres=False)
    backend = Backend(SYNC, DURABLE, servers.redis_url, database_url, tenant)
    try:
        with redis.Redis.from_url(servers.redis_url) as client:
            used = int(client.info("memory")["used_memory"])
            client.config_set("maxmemory", str(used + 250_000))
            client.config_set("maxmemory-policy", "allkeys-lru")
            manager = backend.open(max_buffer_messages=5, redis_timeout_seconds=5.0)
            for number in range(1, 9):
                for session in range(60):
                    receipt = manager.append(f"s{session}", say(number, words=250))
                    assert receipt.seq == number
            manager.wait_for_folds()
            for session in range(60):
                assert_context(manager.get_context(f"s{session}"), talk(8, words=250))
            assert int(client.info("stats")["evicted_keys"]) > 0
    finally:
        backend.close()


def test_an_evicted_summary_does_not_stop_a_session_without_a_log(ephemeral: Backend, raw: redis.Redis) -> None:
    """What allkeys-lru does: the key goes that was not used for longest, and that is the summary."""
    manager = ephemeral.open(max_buffer_messages=5)
    for number in range(1, 11):
        assert manager.add_message("s", say(number))
    manager.wait_for_folds()
    assert raw.delete(ephemeral.keys("s").summary) == 1
    for number in range(11, 31):
        assert manager.add_message("s", say(number)) is True
    manager.wait_for_folds()
    context = manager.get_context("s")
    assert context["last_seq"] == 30
    assert context["buffer_messages"] == talk(30 - context["watermark"], start=context["watermark"] + 1)
    assert context["message_count"] <= 5
    assert context["current_summary"]


def test_nothing_of_a_message_is_logged(
    manager: MemoryManager, backend: Backend, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    canary = f"canary{backend.tenant}"
    manager.set_session_config("s", {"max_buffer_messages": 3})
    for number in range(10):
        manager.append("s", {"role": "user", "content": f"{canary} {number}."})
    manager.wait_for_folds()
    manager.get_context("s")  # puts the copy in place, where a fold had it given up
    raw.lset(backend.keys("s").buffer, 1, canary)
    manager.get_context("s")
    manager.wait_for_folds()
    assert caplog.records, "the damage was noted"
    assert canary not in caplog.text
    assert redis_values(raw, f"*{backend.tenant}/*")
