"""A rebuild of a buffer that writers overtake between its reading of the log and its installation, step by step."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from memory_contract import Backend, assert_caps, assert_context, say, talk

from contract_engine.memory import DatabaseUnavailableError
from contract_engine.memory._effects import Query, RedisCall
from contract_engine.memory.models import Placed, SessionState
from contract_engine.memory.session_cache import INSTALLED, OVERTAKEN

pytest_plugins = ("memory_fixtures",)

REFUSED = 0


class Rebuild:
    """Takes the steps of one rebuild of session ``s`` whose buffer was lost, while ``writer`` appends between them."""

    def __init__(self, backend: Backend, raw: redis.Redis, **limits: Any) -> None:
        self.backend, self.raw = backend, raw
        self.buffer = backend.keys("s").buffer
        self.reader, self.writer = backend.open(**limits), backend.open(**limits)
        self.said = 0
        self.say(3)
        assert raw.delete(self.buffer) == 1
        self.ticket, is_alone = self.run(self.sessions.cache.claim("s", b""))
        assert is_alone

    @property
    def sessions(self) -> Any:
        return self.reader._flows._sessions

    def run(self, flow: Any) -> Any:
        return self.backend.run(self.reader, flow)

    def say(self, count: int) -> None:
        for number in range(self.said + 1, self.said + count + 1):
            assert not self.writer.append("s", say(number)).degraded
        self.said += count

    def read(self) -> SessionState:
        state: SessionState = self.run(self.sessions.folding.read_within_caps("s"))
        return state

    def install(self, state: SessionState) -> int:
        answer: int = self.run(self.sessions.cache.install("s", state, self.ticket))
        return answer

    def change_limits(self, **changes: int) -> None:
        """In the log alone, as by a process that cannot reach Redis."""
        self.run(self.sessions._log.change_limits("s", changes))

    def elements(self) -> list[Any]:
        found: Any = self.raw.lrange(self.buffer, 0, -1)
        return [json.loads(element) for element in found]

    def behind(self) -> list[int]:
        """Return the numbers of the messages that wait behind the placeholder."""
        placeholder, *elements = self.elements()
        assert placeholder[0] == 0
        return [element[0] for element in elements]

    def overtake(self) -> None:
        """Have an installation refused because of one more message."""
        state = self.read()
        self.say(1)
        assert self.install(state) == OVERTAKEN

    def assert_served(self) -> None:
        """The copy is what a rebuild without a writer would put there, and every reader is answered by Redis."""
        installed = self.elements()
        context = self.backend.open().get_context("s")
        assert (context["source"], context["degraded"]) == ("redis", False)
        assert_context(context, talk(self.said))
        assert_caps(context)
        self.raw.delete(self.buffer)
        assert self.reader.get_context("s")["source"] == "postgres"
        assert self.elements() == installed


@pytest.fixture
def rebuild(durable: Backend, raw: redis.Redis) -> Rebuild:
    return Rebuild(durable, raw)


def test_what_is_appended_after_an_overtaken_installation_is_installed_with_the_next(rebuild: Rebuild) -> None:
    rebuild.overtake()
    assert rebuild.behind() == []
    state = rebuild.read()
    rebuild.say(3)
    assert rebuild.behind() == [5, 6, 7]
    assert rebuild.install(state) == INSTALLED
    rebuild.assert_served()


def test_what_the_reading_has_too_is_installed_once(rebuild: Rebuild) -> None:
    rebuild.overtake()
    rebuild.say(2)
    state = rebuild.read()
    rebuild.say(2)
    assert rebuild.behind() == [5, 6, 7, 8]
    assert rebuild.install(state) == INSTALLED
    rebuild.assert_served()


def test_nothing_stands_behind_a_placeholder_that_was_not_overtaken(rebuild: Rebuild) -> None:
    """Whoever claims it has not read the log yet: a late writer of an erased session would bring its message back."""
    rebuild.say(2)
    assert rebuild.behind() == []
    rebuild.overtake()
    rebuild.say(1)
    assert rebuild.behind() == [7]
    rebuild.writer.clear_session_memory("s")
    rebuild.said = 0
    rebuild.say(2)
    rebuild.assert_served()


def test_a_rebuild_from_before_the_session_was_cleared_is_refused(rebuild: Rebuild) -> None:
    rebuild.overtake()
    state = rebuild.read()
    rebuild.say(1)
    rebuild.writer.clear_session_memory("s")
    rebuild.said = 0
    rebuild.say(1)
    assert rebuild.install(state) == REFUSED
    rebuild.assert_served()


def test_appended_in_another_order_than_they_were_logged(rebuild: Rebuild) -> None:
    rebuild.overtake()
    state = rebuild.read()
    rebuild.say(3)
    _, *elements = rebuild.raw.lrange(rebuild.buffer, 0, -1)
    rebuild.raw.ltrim(rebuild.buffer, 0, 0)
    rebuild.raw.rpush(rebuild.buffer, elements[1], elements[0], elements[2])
    assert rebuild.behind() == [6, 5, 7]
    assert rebuild.install(state) == INSTALLED
    rebuild.assert_served()


@pytest.mark.parametrize("lost", [0, 1, 2], ids=["the first", "one between", "the last"])
def test_with_one_lacking_the_log_is_read_again(rebuild: Rebuild, lost: int) -> None:
    """A writer has died before Redis was told, or is not as fast as another."""
    rebuild.overtake()
    state = rebuild.read()
    rebuild.say(3)
    element = rebuild.raw.lindex(rebuild.buffer, 1 + lost)
    assert rebuild.raw.lrem(rebuild.buffer, 1, str(element, "utf-8")) == 1  # type: ignore[arg-type]  # bytes, not a promise
    assert rebuild.install(state) == OVERTAKEN
    assert len(rebuild.behind()) == 2
    assert rebuild.install(rebuild.read()) == INSTALLED
    rebuild.assert_served()


def test_an_older_reading_takes_nothing_from_a_newer_one_with_the_same_ticket(rebuild: Rebuild) -> None:
    """Two readers hold it: one of them is slow, and would be overtaken again and again together with the other."""
    older = rebuild.read()
    rebuild.say(1)
    assert rebuild.install(older) == OVERTAKEN
    newer = rebuild.read()
    rebuild.say(1)
    for _ in range(3):
        assert rebuild.install(older) == OVERTAKEN
    assert rebuild.behind() == [5]
    assert rebuild.install(newer) == INSTALLED
    assert rebuild.install(older) == REFUSED
    rebuild.assert_served()


@pytest.mark.parametrize("damage", [b"", b"\xff", b"[6", b"[6,1]", b'[6,"1",1]', b"[99999999999999999999,1,1,"])
def test_damage_behind_a_placeholder_is_never_installed(rebuild: Rebuild, damage: bytes) -> None:
    rebuild.overtake()
    state = rebuild.read()
    rebuild.say(2)
    rebuild.raw.lset(rebuild.buffer, 2, damage)  # type: ignore[arg-type]  # bytes are as good
    assert rebuild.install(state) == OVERTAKEN
    assert rebuild.install(rebuild.read()) == INSTALLED
    rebuild.assert_served()


@pytest.mark.parametrize(
    "limits", [{"max_buffer_messages": 6}, {"max_buffer_tokens": 90, "summary_trigger_tokens": 80}]
)
def test_more_than_the_caps_is_folded_by_the_next_reading(
    durable: Backend, raw: redis.Redis, limits: dict[str, int]
) -> None:
    rebuild = Rebuild(durable, raw, **limits)
    rebuild.overtake()
    state = rebuild.read()
    rebuild.say(5)
    assert rebuild.behind() == [5, 6, 7, 8, 9]
    assert rebuild.install(state) == OVERTAKEN
    state = rebuild.read()
    assert state.watermark > 0
    rebuild.say(1)
    assert rebuild.install(state) == INSTALLED
    rebuild.assert_served()


def test_a_message_of_a_newer_revision_is_not_put_behind_an_older_reading(rebuild: Rebuild) -> None:
    """Else a session would be served under limits that were changed before the message was acknowledged."""
    rebuild.overtake()
    state = rebuild.read()
    rebuild.change_limits(max_buffer_messages=40)
    rebuild.say(1)
    assert rebuild.behind() == [5]
    assert rebuild.install(state) == OVERTAKEN
    state = rebuild.read()
    rebuild.say(1)
    assert rebuild.behind() == [5, 6]
    assert rebuild.install(state) == INSTALLED
    assert rebuild.writer.get_context("s")["buffer_info"]["max_messages"] == 40
    rebuild.assert_served()


def test_behind_a_dead_rebuild_only_so_much_is_kept(rebuild: Rebuild) -> None:
    rebuild.overtake()
    rebuild.raw.rpush(rebuild.buffer, *[b"[1,1,1]"] * 1000)
    state = rebuild.read()
    rebuild.say(1)
    assert rebuild.behind() == [1] * 1000
    assert rebuild.install(state) == OVERTAKEN
    assert rebuild.behind() == []
    rebuild.say(1)
    assert rebuild.behind() == [6]
    assert rebuild.install(rebuild.read()) == INSTALLED
    rebuild.assert_served()


def test_what_waits_to_be_logged_is_not_taken_for_said_behind_a_placeholder(rebuild: Rebuild) -> None:
    """PostgreSQL is away for the second of two attempts: nobody could read the first one where it stands."""
    rebuild.overtake()
    rebuild.writer.append("s", say(5), message_id="m5")
    rebuild.said += 1
    assert rebuild.behind() == [5]
    outgoing = rebuild.reader._flows._intake.message(say(5), "m5")
    _, state = rebuild.run(rebuild.sessions.unlogged.append("s", [outgoing], read=True, expected_seq=0))
    assert state.is_unlogged
    assert_context(rebuild.reader.get_context("s"), talk(5))
    assert rebuild.reader.get_context("s")["source"] == "redis"
    rebuild.assert_served()


def test_rows_erased_before_redis_was_told(rebuild: Rebuild) -> None:
    """What stands behind the placeholder goes with the first message of the new session."""
    rebuild.overtake()
    rebuild.say(2)
    assert rebuild.behind() == [5, 6]
    rebuild.run(rebuild.sessions._log.erase("s"))
    rebuild.said = 0
    rebuild.say(1)
    assert rebuild.behind() == []
    assert rebuild.install(rebuild.read()) == INSTALLED
    rebuild.assert_served()


def test_a_session_begun_anew_is_installed_without_what_stands_there_of_the_old_one(rebuild: Rebuild) -> None:
    rebuild.overtake()
    rebuild.say(2)
    rebuild.run(rebuild.sessions._log.erase("s"))
    rebuild.said = 1
    rebuild.writer.session_store.append("s", say(1))
    assert rebuild.behind() == [5, 6]
    assert rebuild.install(rebuild.read()) == INSTALLED
    rebuild.assert_served()


@pytest.mark.parametrize("name", ["claim", "append"])
def test_no_ticket_is_sent_twice(rebuild: Rebuild, name: str) -> None:
    """A connection dies under the call, and the session is erased before it is made again: whoever was given the first
    ticket meanwhile has read what was erased.
    """
    cache = rebuild.sessions.cache
    outgoing = rebuild.reader._flows._intake.message(say(4), "m4")
    placed = Placed((4,), (1,), 7, 0)
    flow = cache.claim("s", b"") if name == "claim" else cache.append("s", placed, [outgoing], read=False)
    call: RedisCall = next(flow)
    assert call.again is not None
    sent, (again,) = call.commands[0].words, call.again()
    assert sum(one != other for one, other in zip(sent, again.words, strict=True)) == 1
    flow.close()


def test_a_second_reading_that_fails_leaves_the_first(blocking: Backend, raw: redis.Redis) -> None:
    rebuild = Rebuild(blocking, raw)
    state, perform = rebuild.read(), rebuild.reader._runtime._perform
    flow = rebuild.sessions._rebuild("s", rebuild.ticket)
    readings = 0

    def drive() -> None:
        nonlocal readings
        effect = next(flow)
        while True:
            readings += isinstance(effect, Query)
            if readings == 2:
                effect = flow.throw(DatabaseUnavailableError("it went away"))
                continue
            if isinstance(effect, RedisCall):
                rebuild.say(1)
            effect = flow.send(perform(effect))

    with pytest.raises(StopIteration) as ended:
        drive()
    assert readings == 2
    assert ended.value.value == state
    assert rebuild.behind() == []


def test_a_reader_that_is_overtaken_reads_again(durable: Backend, raw: redis.Redis) -> None:
    """As it goes in one call: before each installation of a reader somebody appends."""
    reader = durable.open()
    reader.add_messages("s", talk(3))
    sessions: Any = reader._flows._sessions
    install = sessions.cache.install
    answers: list[int] = []

    def overtaken(*arguments: Any) -> Any:
        yield from sessions.append("s", [reader._flows._intake.message(say(4 + len(answers)))])
        answers.append((yield from install(*arguments)))
        return answers[-1]

    sessions.cache.install = overtaken
    raw.delete(durable.keys("s").buffer)
    context = reader.get_context("s")
    assert answers == [OVERTAKEN, INSTALLED]
    assert context["source"] == "postgres"
    assert_context(context, talk(4))
    context = reader.get_context("s")
    assert context["source"] == "redis"
    assert_context(context, talk(5))
