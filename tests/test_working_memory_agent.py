"""The agent: it really stores, with any model and any manager, and a failing model or store costs a status."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from local_models import Answering, AsyncNotingModel, BlockingAnswering, NotingModel, raising
from server_faults import ServerFaults
from servers import PrivateServers

from contract_engine.memory import InvalidInputError
from contract_engine.working_memory import (
    AsyncInMemoryManager,
    ConversationMemoryType,
    IAgentInput,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
    RichMemory,
    TTLStrategy,
    WorkingMemoryAgent,
)
from contract_engine.working_memory.redis_memory_manager import (
    AsyncRedisWorkingMemoryManager,
    RedisWorkingMemoryManager,
)

CANARY = "canary-in-what-was-said"
MODELS = [NotingModel, AsyncNotingModel]
MANAGERS: list[Callable[[str], Any]] = [
    lambda _: InMemoryManager(),
    lambda _: AsyncInMemoryManager(),
    RedisWorkingMemoryManager,
    AsyncRedisWorkingMemoryManager,
]
NAMES = ["in-memory", "async-in-memory", "redis", "async-redis"]


@pytest.fixture(params=MANAGERS, ids=NAMES)
async def manager(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Any]:
    made = request.param(redis_url)
    yield made
    await closed(made)


@pytest.fixture
def conversation() -> str:
    return f"conv-{uuid.uuid4().hex}"


async def closed(manager: Any) -> None:
    if hasattr(manager, "aclose"):
        await manager.aclose()
    else:
        manager.close()


async def memories(manager: Any, conversation: str) -> list[IWorkingMemory]:
    request = IMemoryInput(conversation, ConversationMemoryType.WORKING_MEMORY)
    found = manager.retrieve(request)
    return list(await found if asyncio.iscoroutine(found) else found)


async def texts(manager: Any, conversation: str) -> list[str]:
    return [memory.working_memory for memory in await memories(manager, conversation)]


# -- what it does


@pytest.mark.parametrize("model", MODELS)
async def test_what_is_said_is_stored_and_what_is_stored_is_told_to_the_model(
    manager: Any, model: type[NotingModel], conversation: str
) -> None:
    asked = model()
    agent = WorkingMemoryAgent(llm_client=asked, memory_manager=manager)
    said = IAgentInput(message="I'm Alice", metadata={"conversation_id": conversation, "user_id": "u"})
    assert await agent.process(said) == "success"
    assert await texts(manager, conversation) == ["- I'm Alice"]
    assert await agent.process("I like tea", conversation) == "success"
    assert await texts(manager, conversation) == ["- I'm Alice\n- I like tea"]
    assert "- I'm Alice" in asked.asked[1].user_message
    assert "### USER CONTEXT" in asked.asked[0].user_message, "a conversation begins with the headings"


async def test_both_ways_to_name_the_conversation_and_the_metadata_come_back(manager: Any, conversation: str) -> None:
    agent = WorkingMemoryAgent(NotingModel(), manager)
    metadata = {"conversation_id": "another", "user_id": "u1"}
    assert await agent.process(IAgentInput("hello", metadata), conversation) == "success"
    (memory,) = await memories(manager, conversation)
    assert memory.metadata["user_id"] == "u1"
    assert await texts(manager, "another") == []


async def test_metadata_of_an_earlier_turn_stay_until_they_are_given_anew(manager: Any, conversation: str) -> None:
    """So a record whose time to live goes by them keeps it, whether or not each message says again whose it is."""
    agent = WorkingMemoryAgent(NotingModel(), manager)
    for metadata in ({"user_type": "premium", "channel": "web"}, None, {"channel": "phone"}):
        assert await agent.process(IAgentInput("hello", metadata), conversation) == "success"
    (memory,) = await memories(manager, conversation)
    assert memory.metadata == {"user_type": "premium", "channel": "phone"}


async def test_metadata_of_one_memory_of_several_do_not_become_those_of_all() -> None:
    manager = InMemoryManager()
    both = [IWorkingMemory("a", {"source": "a", "only": 1}), IWorkingMemory("b", {"source": "b"})]
    working = ConversationMemoryType.WORKING_MEMORY
    manager.store(IMemoryInput("c1", working, both, metadata={"user_type": "guest"}))
    assert await WorkingMemoryAgent(NotingModel(), manager).process("hello", "c1") == "success"
    (memory,) = manager.retrieve(IMemoryInput("c1", working))
    assert memory.metadata == {"user_type": "guest"}


async def test_a_time_to_live_by_metadata_holds_over_all_turns() -> None:
    now = [0.0]
    inner = InMemoryManager(ttl=60, clock=lambda: now[0])
    agent = WorkingMemoryAgent(NotingModel(), TTLStrategy(inner, {"premium": None}))
    assert await agent.process(IAgentInput("hello", {"user_type": "premium"}), "c1") == "success"
    assert await agent.process("hello again", "c1") == "success"
    now[0] += 10**6
    assert len(inner.storage) == 1


async def test_another_agent_goes_on_from_what_is_stored(manager: Any, conversation: str) -> None:
    for word in ("one", "two", "three"):
        assert await WorkingMemoryAgent(NotingModel(), manager).process(word, conversation) == "success"
    assert await texts(manager, conversation) == ["- one\n- two\n- three"]


async def test_many_turns_at_once_on_one_conversation_undo_nothing(manager: Any, conversation: str) -> None:
    agent = WorkingMemoryAgent(AsyncNotingModel(), manager)
    said = [f"fact {number}" for number in range(32)]
    assert await asyncio.gather(*(agent.process(one, conversation) for one in said)) == ["success"] * 32
    (text,) = await texts(manager, conversation)
    assert sorted(text.splitlines()) == sorted(f"- {one}" for one in said)


async def test_conversations_at_once_stay_apart(manager: Any, conversation: str) -> None:
    agent = WorkingMemoryAgent(AsyncNotingModel(), manager)
    names = [f"{conversation}-{number}" for number in range(32)]
    assert await asyncio.gather(*(agent.process(name, name) for name in names)) == ["success"] * 32
    for name in names:
        assert await texts(manager, name) == [f"- {name}"]


async def test_several_memories_become_one_and_none_is_forgotten(manager: Any, conversation: str) -> None:
    several = [IWorkingMemory(f"- old {number}") for number in range(8)]
    stored = manager.store(IMemoryInput(conversation, ConversationMemoryType.WORKING_MEMORY, data=several))
    if asyncio.iscoroutine(stored):
        await stored
    assert await WorkingMemoryAgent(NotingModel(), manager).process("new", conversation) == "success"
    (text,) = await texts(manager, conversation)
    assert text.splitlines() == [*(f"- old {number}" for number in range(8)), "- new"]


async def test_what_blocks_holds_up_no_loop(conversation: str) -> None:
    """A model and a manager that wait for something which only the running loop can bring about."""
    loop, freed = asyncio.get_running_loop(), threading.Event()

    class Waiting(InMemoryManager):
        def store(self, input: IMemoryInput) -> str:  # noqa: A002
            loop.call_soon_threadsafe(freed.set)
            assert freed.wait(60)
            return super().store(input)

    model, manager = NotingModel(), Waiting()
    assert await WorkingMemoryAgent(model, manager).process("said", conversation) == "success"
    assert threading.get_ident() not in model.threads
    assert await texts(manager, conversation) == ["- said"]


def test_one_agent_may_be_used_on_one_loop_after_another(conversation: str) -> None:
    manager = InMemoryManager()
    agent = WorkingMemoryAgent(AsyncNotingModel(), manager)

    async def twice(word: str) -> list[str]:
        return await asyncio.gather(*(agent.process(f"{word}{number}", conversation) for number in range(2)))

    assert asyncio.run(twice("a")) == asyncio.run(twice("b")) == ["success", "success"]
    (text,) = asyncio.run(texts(manager, conversation))
    assert sorted(text.splitlines()) == ["- a0", "- a1", "- b0", "- b1"]


def test_one_agent_may_be_used_on_two_loops_at_once(conversation: str) -> None:
    agent = WorkingMemoryAgent(AsyncNotingModel(), InMemoryManager())
    start, found = threading.Barrier(2), []

    async def many() -> list[str]:
        start.wait(60)
        return await asyncio.gather(*(agent.process(f"{number}", conversation) for number in range(50)))

    threads = [threading.Thread(target=lambda: found.extend(asyncio.run(many()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["success"] * 100


async def test_a_history_is_told_to_the_model_and_can_be_away(conversation: str) -> None:
    class History:
        async def get(self, conversation_id: str) -> list[str]:
            return [f"earlier in {conversation_id}"]

    class NoHistory:
        def get(self, _: str) -> str:
            raise OSError

    for client, is_told in ((History(), True), (NoHistory(), False)):
        model = NotingModel()
        agent = WorkingMemoryAgent(model, InMemoryManager(), chat_history_client=client)
        assert await agent.process("now", conversation) == "success"
        assert (f"earlier in {conversation}" in model.asked[0].user_message) is is_told


async def test_without_a_manager_a_memory_is_made_and_not_kept(conversation: str) -> None:
    model = NotingModel()
    assert await WorkingMemoryAgent(model).process("said", conversation) == "success"
    assert len(model.asked) == 1


# -- statuses


@pytest.mark.parametrize("metadata", [None, {}, {"conversation_id": ""}, {"conversation_id": None}], ids=repr)
async def test_without_a_conversation_nothing_is_asked(metadata: dict[str, Any] | None) -> None:
    model = NotingModel()
    agent = WorkingMemoryAgent(model, InMemoryManager())
    assert await agent.process(IAgentInput("said", metadata)) == "error: no conversation_id provided"
    assert await agent.process("said") == "error: no conversation_id provided"
    assert model.asked == []


async def test_without_a_model_nothing_is_stored(conversation: str) -> None:
    manager = InMemoryManager()
    agent = WorkingMemoryAgent(memory_manager=manager)
    assert await agent.process("said", conversation) == "error: no llm_client provided"
    assert await texts(manager, conversation) == []


KEPT = "- what was known"
SECRET = RuntimeError(f"key sk-sesame refused for {CANARY}")


@pytest.mark.parametrize("kind", [Answering, BlockingAnswering])
@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (None, "error: empty memory response"),
        ("", "error: empty memory response"),
        (" \n", "error: empty memory response"),
        ({}, "error: empty memory response"),
        ({"llm_response": None}, "error: empty memory response"),
        ({"llm_response": ["a"]}, "error: model failed - llm_client: answers list, not a text"),
        (17, "error: model failed - llm_client: answers int, not a text"),
        (b"bytes", "error: model failed - llm_client: answers bytes, not a text"),
        (raising(SECRET), "error: model failed - RuntimeError"),
        (raising(TimeoutError()), "error: model failed - TimeoutError"),
        (raising(asyncio.CancelledError()), "error: model failed - cancelled"),
        (raising(RecursionError()), "error: model failed - RecursionError"),
        (raising(StopIteration()), "error: model failed - RuntimeError"),
        ("x" * 2_000_000, "error: storage failed - data[0]"),
        ("\x00\ud800", "success"),
    ],
    ids=lambda value: repr(value)[:40] if not callable(value) else "raising",
)
async def test_a_failing_model_changes_nothing_and_says_so(
    kind: type[Answering], answer: object, status: str, conversation: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = InMemoryManager()
    known = [IWorkingMemory(KEPT)]
    manager.store(IMemoryInput(conversation, ConversationMemoryType.WORKING_MEMORY, data=known))
    with caplog.at_level(logging.DEBUG):
        found = await WorkingMemoryAgent(kind(answer), manager).process(CANARY, conversation)
    assert found.startswith(status)
    assert await texts(manager, conversation) == ([KEPT] if status != "success" else [answer])
    everything = found + " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert caplog.records
    for secret in (CANARY, "sesame", KEPT):
        assert secret not in everything


@pytest.mark.parametrize("kind", [Answering, BlockingAnswering])
async def test_a_model_that_hangs_costs_the_deadline(
    kind: type[Answering], conversation: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = InMemoryManager()
    freed = threading.Event()
    ended = threading.Event()

    def hang(_: object) -> Any:
        if kind is Answering:
            return forever()
        freed.wait(60)
        ended.set()
        raise SECRET

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
            raise SECRET

    class Hanging(Answering):
        async def chat(self, request: object) -> Any:
            return await forever()

    model = Hanging(None) if kind is Answering else kind(hang)
    started = time.monotonic()
    agent = WorkingMemoryAgent(model, manager, timeout_seconds=0.2)
    assert await agent.process(CANARY, conversation) == "error: model failed - no answer within 0.2 s"
    assert time.monotonic() - started < 30
    assert await texts(manager, conversation) == []
    freed.set()
    while not ended.is_set():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert CANARY not in caplog.text, "what it raises afterwards is logged by nobody"


class LateStore(InMemoryManager):
    """Takes its time for the second memory."""

    def __init__(self, freed: threading.Event) -> None:
        super().__init__()
        self.freed = freed
        self.stores = 0

    def store(self, input: IMemoryInput) -> str:  # noqa: A002
        self.stores += 1
        if self.stores == 2:
            assert self.freed.wait(60)
        return super().store(input)


class AsyncLateStore:
    """:class:`LateStore` for asyncio."""

    def __init__(self, freed: threading.Event) -> None:
        self.inner = LateStore(freed)
        self.freed = freed

    async def store(self, input: IMemoryInput) -> str:  # noqa: A002
        return await asyncio.to_thread(self.inner.store, input)

    async def retrieve(self, input: IMemoryInput) -> list[IWorkingMemory]:  # noqa: A002
        return self.inner.retrieve(input)


LATE = "error: storage failed - no answer within 0.2 s"


@pytest.mark.parametrize("kind", [LateStore, AsyncLateStore])
async def test_a_store_that_comes_late_undoes_no_later_turn(kind: Any, conversation: str) -> None:
    manager = kind(threading.Event())
    agent = WorkingMemoryAgent(NotingModel(), manager, store_timeout_seconds=0.2)
    assert await agent.process("one", conversation) == "success"
    assert await agent.process("two", conversation) == LATE
    waits = "error: storage failed - the store of an earlier turn has not ended"
    assert await agent.process("three", conversation) == waits
    assert await agent.process("one", f"{conversation}-other") == "success"
    manager.freed.set()
    assert await agent.process("three", conversation) == "success"
    (text,) = await texts(manager, conversation)
    assert text.splitlines() == ["- one", "- two", "- three"]
    assert agent._storing == {}


def test_a_store_that_comes_late_is_waited_for_on_another_loop_too(conversation: str) -> None:
    manager = LateStore(threading.Event())
    agent = WorkingMemoryAgent(NotingModel(), manager, store_timeout_seconds=0.2)
    assert asyncio.run(agent.process("one", conversation)) == "success"
    assert asyncio.run(agent.process("two", conversation)) == LATE
    assert asyncio.run(agent.process("three", conversation)).startswith("error: storage failed - the store of")
    manager.freed.set()
    assert asyncio.run(agent.process("three", conversation)) == "success"
    assert asyncio.run(texts(manager, conversation)) == ["- one\n- two\n- three"]


async def test_a_store_goes_on_when_its_turn_is_cancelled(conversation: str) -> None:
    manager: Any = AsyncLateStore(threading.Event())
    agent = WorkingMemoryAgent(NotingModel(), manager, store_timeout_seconds=30.0)
    assert await agent.process("one", conversation) == "success"
    turn = asyncio.create_task(agent.process("two", conversation))
    while manager.inner.stores < 2:
        await asyncio.sleep(0.01)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    following = asyncio.create_task(agent.process("three", conversation))
    await asyncio.sleep(0.1)
    manager.freed.set()
    assert await following == "success"
    assert await texts(manager, conversation) == ["- one\n- two\n- three"]


async def test_cancelling_a_turn_cancels_the_model_and_lets_the_next_one_in(conversation: str) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    class Slow:
        async def chat(self, _: object) -> str:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return ""

    manager = InMemoryManager()
    agent = WorkingMemoryAgent(Slow(), manager)
    turn = asyncio.create_task(agent.process("said", conversation))
    await begun.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    await asyncio.wait_for(cancelled.wait(), 30)
    agent.llm_client = AsyncNotingModel()
    assert await agent.process("again", conversation) == "success"


async def test_a_rich_memory_stays_one_and_leaves_the_record_alone(conversation: str) -> None:
    manager = InMemoryManager()
    manager.store_rich(conversation, RichMemory("wants a window", 9, ["seat"], {"source": "chat"}))
    agent = WorkingMemoryAgent(NotingModel(), manager)
    assert await agent.process(IAgentInput("said", {"user_type": "guest"}), conversation) == "success"
    (memory,) = manager.get_important_memories(conversation)
    assert (memory.importance, memory.tags) == (9, ["seat"])
    record = next(iter(manager.storage.values()))
    assert set(record["metadata"]) == {"source", "user_type"}


class Failing:
    """A store of somebody else's: it fails in the call that it is told to fail in."""

    def __init__(self, call: str, exc: BaseException | None = None) -> None:
        self._call, self._exc = call, exc
        self.stored: list[IMemoryInput] = []
        self.freed = threading.Event()

    def _fail(self, call: str) -> None:
        if call != self._call:
            return
        if self._exc is None:
            self.freed.wait(60)
            return
        raise self._exc

    def retrieve(self, input: IMemoryInput) -> list[IWorkingMemory]:  # noqa: A002
        self._fail("retrieve")
        return []

    def store(self, input: IMemoryInput) -> str:  # noqa: A002
        self._fail("store")
        self.stored.append(input)
        return "key"

    update = delete = store


@pytest.mark.parametrize(
    ("call", "exc", "status"),
    [
        ("retrieve", SECRET, "error: retrieval failed - RuntimeError"),
        ("store", SECRET, "error: storage failed - RuntimeError"),
        ("retrieve", StopIteration(), "error: retrieval failed - RuntimeError"),
        ("store", StopIteration(), "error: storage failed - RuntimeError"),
        ("retrieve", None, "error: retrieval failed - no answer within 0.2 s"),
        ("store", None, "error: storage failed - no answer within 0.2 s"),
    ],
)
async def test_a_failing_store_of_anybody_costs_a_status(
    call: str, exc: BaseException | None, status: str, conversation: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, manager = NotingModel(), Failing(call, exc)
    agent = WorkingMemoryAgent(model, manager, store_timeout_seconds=0.2)  # type: ignore[arg-type]
    assert await agent.process(CANARY, conversation) == status
    assert manager.stored == []
    assert len(model.asked) == (call == "store"), "no model is paid for what cannot be stored in the right place"
    assert CANARY not in caplog.text
    manager.freed.set()


async def test_a_store_that_answers_nonsense_costs_a_status(conversation: str) -> None:
    class Nonsense(Failing):
        def retrieve(self, input: IMemoryInput) -> list[IWorkingMemory]:  # noqa: A002
            return [object()]  # type: ignore[list-item]

    agent = WorkingMemoryAgent(NotingModel(), Nonsense(""))  # type: ignore[arg-type]
    assert await agent.process("said", conversation) == "error: retrieval failed - AttributeError"


# -- a Redis that dies


@pytest.fixture
def faults(private_servers: PrivateServers) -> Iterator[ServerFaults]:
    faults = ServerFaults(redis_server=private_servers(postgres=False))
    yield faults
    faults.go_on()


@pytest.mark.parametrize("kind", [RedisWorkingMemoryManager, AsyncRedisWorkingMemoryManager])
async def test_a_redis_that_is_killed_costs_a_status_until_it_is_back(
    kind: type[Any], faults: ServerFaults, conversation: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = kind(faults.redis_server.redis_url)
    try:
        model = NotingModel()
        agent = WorkingMemoryAgent(model, manager)
        assert await agent.process("said before", conversation) == "success"
        await asyncio.to_thread(faults.kill_redis)
        status = await agent.process(CANARY, conversation)
        assert status.startswith("error: retrieval failed - redis unavailable")
        assert len(model.asked) == 1

        dying = functools.partial(_die, faults)
        await asyncio.to_thread(faults.restart_redis)
        assert await agent.process("said again", conversation) == "success"
        agent.llm_client = BlockingAnswering(dying)
        status = await agent.process(CANARY, conversation)
        assert status.startswith("error: storage failed - redis unavailable"), "it died while the model was thinking"

        agent.llm_client = model
        await asyncio.to_thread(faults.restart_redis)
        assert await agent.process("and again", conversation) == "success"
        assert CANARY not in caplog.text
    finally:
        await closed(manager)


def _die(faults: ServerFaults, _: object) -> str:
    faults.kill_redis()
    return "a memory that finds no place"


# -- what is refused


async def test_wrong_arguments_are_named() -> None:
    agent = WorkingMemoryAgent(NotingModel(), InMemoryManager())
    for arguments, field in (
        ((None, "c"), "message"),
        ((IAgentInput(b"x"), "c"), "message"),  # type: ignore[arg-type]
        ((IAgentInput("x", [1]),), "metadata"),  # type: ignore[arg-type]
        (("x", 7), "conversation_id"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            await agent.process(*arguments)
        assert caught.value.field == field
    status = await agent.process("x", "  \n")
    assert status.startswith("error: retrieval failed - conversation_id")


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("llm_client", {"llm_client": object()}),
        ("memory_manager", {"memory_manager": "a prompt in the wrong place"}),
        ("chat_history_client", {"chat_history_client": []}),
        ("system_prompt", {"system_prompt": " "}),
        ("timeout_seconds", {"timeout_seconds": 0}),
        ("store_timeout_seconds", {"store_timeout_seconds": True}),
    ],
)
def test_a_wrong_setting_is_named(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        WorkingMemoryAgent(**settings)
    assert caught.value.field == field
