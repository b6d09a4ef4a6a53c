"""Clearing a session leaves none of its bytes in Redis or in any table, whatever else is going on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest
import redis
from canaries import Search, canary_of, fill, search_of
from crash_matrix import DATABASE, HANG, KILL_AFTER, KILL_BEFORE, Fault, Interposition
from crash_operations import LIMITS, PATIENT, UNTOUCHED, Errand, Nursery
from many_writers import Commits
from memory_contract import (
    DURABLE,
    EPHEMERAL,
    SYNC,
    TABLES,
    Backend,
    assert_caps,
    assert_context,
    logged,
    redis_values,
    row_counts,
    run_threads,
)
from server_faults import waited_for
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.memory import InvalidInputError, MemoryManager

pytest_plugins = ("memory_fixtures",)

WRITERS = 20
EACH = 12


def everything(raw: redis.Redis, backend: Backend) -> bytes:
    """Return all that is kept of the tenant: names and values of all keys of Redis, and every column of every row."""
    parts = [data for data in redis_values(raw).values() if backend.tenant.encode() in data]
    if backend.database_url is not None:
        with psycopg.connect(backend.database_url) as connection:
            for table in TABLES:
                for row in connection.execute(f"SELECT * FROM {table} WHERE tenant = %s".encode(), (backend.tenant,)):
                    parts += [value if isinstance(value, bytes) else str(value).encode() for value in row]
    return b"\n".join(parts)


@pytest.fixture
def search(backend: Backend, raw: redis.Redis) -> Iterator[Search]:
    with search_of(raw, backend) as found:
        yield found


@pytest.fixture
def search_blocking(blocking: Backend, raw: redis.Redis) -> Iterator[Search]:
    with search_of(raw, blocking) as found:
        yield found


def test_nothing_is_left(backend: Backend, search: Search) -> None:
    """The session's own id is a canary too: it is part of the names of keys and of every row."""
    canary = canary_of(backend.tenant)
    manager, other = backend.open(limits=LIMITS), backend.open(limits=LIMITS)
    fill(manager, canary, canary)
    other.get_context(canary)
    assert len(search.keys(canary)) >= (2 if backend.is_durable else 4)
    if backend.database_url is not None:
        assert search.columns(canary) >= {
            *(f"{table}.session_id" for table in TABLES if table not in ("memory_outbox", "memory_relays")),
            "memory_sessions.context",
            "memory_sessions.pinned",
            "memory_sessions.summary_instructions",
            "memory_messages.message_id",
            "memory_messages.body",
            "memory_summaries.text",
            "memory_summaries.segment",
            "memory_summaries.metadata",
        }
    assert manager.clear_session_memory(canary)
    search.assert_erased(canary)
    for reader in (manager, other):
        context = reader.get_context(canary)
        assert (context["buffer_messages"], context["current_summary"], context["last_seq"]) == ([], None, 0)
        assert context["pinned_messages"] == []
        assert reader.load_context(canary) is None
        assert reader.get_summary_instructions(canary) is None
    search.assert_erased(canary)


@pytest.fixture
def blocking(request: pytest.FixtureRequest, redis_url: str, tenant: str, mode: str) -> Iterator[Backend]:
    url = request.getfixturevalue("database_url") if mode == DURABLE else None
    backend = Backend(SYNC, mode, redis_url, url, tenant)
    yield backend
    backend.close()


def wait_to_be_logged(manager: MemoryManager, backend: Backend, raw: redis.Redis, session_id: str) -> None:
    """Have Redis alone hold two more messages."""
    interposition = Interposition(manager, away=DATABASE)
    for number in range(2):
        message = {"role": "user", "content": f"{canary_of(backend.tenant)} waits, {number}."}
        assert not manager.append(session_id, message).durable
    interposition.remove()
    assert raw.exists(backend.keys(session_id).unlogged) == 1


@pytest.mark.parametrize(("mode", "is_waiting"), [(DURABLE, False), (DURABLE, True), (EPHEMERAL, False)])
def test_the_command_line_leaves_nothing(
    blocking: Backend, raw: redis.Redis, search_blocking: Search, is_waiting: bool
) -> None:
    canary = canary_of(blocking.tenant)
    manager = blocking.open(limits=LIMITS, **PATIENT)
    fill(manager, canary, canary)
    if is_waiting:
        wait_to_be_logged(manager, blocking, raw, canary)
    where = ["--redis-url", blocking.redis_url, "--tenant", blocking.tenant]
    where += ["--ephemeral"] if blocking.database_url is None else ["--database-url", blocking.database_url]
    done = CliRunner().invoke(app, ["clear", canary, "--yes", *where])
    assert done.exit_code == 0, done.output
    search_blocking.assert_erased(canary)
    assert manager.get_context(canary)["last_seq"] == 0


# -- while others are at work


class Life:
    """Messages that say when they were said: each carries a mark of its own."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._lock = threading.Lock()
        self._now = 0
        self.said: dict[str, tuple[int, int]] = {}
        """By mark: when the append began and when it was acknowledged."""
        self.seqs: dict[str, int] = {}
        self.written = threading.Semaphore(0)

    def tick(self) -> int:
        with self._lock:
            self._now += 1
            return self._now

    def say(self, manager: MemoryManager, writer: int, number: int) -> None:
        mark = f"mark-{self._tenant}-{writer:02d}-{number:02d}-"
        begun = self.tick()
        receipt = manager.append("s", {"role": "user", "content": f"I said {mark} and meant it."}, message_id=mark)
        self.said[mark] = (begun, self.tick())
        self.seqs[mark] = receipt.seq
        self.written.release()

    def before(self, moment: int) -> list[str]:
        return [mark for mark, (_, answered) in self.said.items() if answered < moment]

    def since(self, moment: int) -> list[str]:
        return [mark for mark, (begun, _) in self.said.items() if begun > moment]


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
def test_twenty_writers_and_a_fold(blocking: Backend, raw: redis.Redis, search_blocking: Search) -> None:
    """What was acknowledged before the clearing is gone, what was begun after it is all there."""
    managers = [blocking.open(limits=LIMITS, **PATIENT) for _ in range(2)]
    life = Life(blocking.tenant)
    begun = cleared = 0
    done = threading.Event()
    writers_left = threading.Semaphore(0)
    # A third of it all is said before the clearing, the last of each writer after it, and the rest whenever it comes.
    is_clearing, is_cleared = threading.Event(), threading.Event()
    commits = Commits(life.tick)

    def write(writer: int) -> None:
        for number in range(EACH):
            if number in (EACH // 3, EACH - 1):
                assert (is_cleared if number == EACH - 1 else is_clearing).wait(30)
            life.say(managers[writer % 2], writer, number)
        writers_left.release()

    def clear() -> None:
        nonlocal begun, cleared
        for _ in range(WRITERS * EACH // 3):
            life.written.acquire()
        assert waited_for(lambda: bool(commits.found)), "there was nothing to fold"
        begun = life.tick()
        is_clearing.set()
        assert managers[0].clear_session_memory("s")
        cleared = life.tick()
        is_cleared.set()
        for _ in range(WRITERS):
            writers_left.acquire()
        done.set()

    def fold() -> None:
        while not done.is_set():
            managers[1]._runtime.run(managers[1]._flows._sessions.folding.fold_when_due("s"))

    def work(number: int) -> None:
        if number < WRITERS:
            write(number)
        else:
            (clear, fold)[number - WRITERS]()

    with commits:
        run_threads(WRITERS + 2, work)
        for manager in managers:
            manager.wait_for_folds()
    gone, kept = life.before(begun), life.since(cleared)
    assert len(gone) >= WRITERS, "the clearing came too early"
    assert len(kept) >= WRITERS, "the clearing came too late"
    moments = commits.found
    print(f"{len(moments)} folds, {sum(moment < begun for moment in moments)} of them before the clearing")
    assert min(moments) < begun, "nothing was folded before it was cleared"
    assert max(moments) > cleared, "nothing was folded after it was cleared"
    there = everything(raw, blocking)
    assert [mark for mark in gone if mark.encode() in there] == []
    contexts = [manager.get_context("s") for manager in managers]
    assert contexts[0]["last_seq"] == contexts[1]["last_seq"]
    for context in contexts:
        assert_caps(context)
        assert context["last_seq"] == context["watermark"] + len(context["buffer_messages"])
        seqs = {f"{life.seqs[mark]}": mark for mark in kept}
        assert len(seqs) == len(kept)
        for place, message in enumerate(context["buffer_messages"], context["watermark"] + 1):
            if mark := seqs.get(f"{place}"):
                assert mark in message["content"]
    # Those that were under way while it was cleared may belong to either life.
    between = len(life.said) - len(gone) - len(kept)
    assert len(kept) <= contexts[0]["last_seq"] <= len(kept) + between
    if blocking.database_url is not None:
        rows = logged(blocking.database_url, blocking.tenant, "s")
        assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
        assert [message for _, message in rows].count(rows[0][1]) == 1
        for mark in kept:
            assert mark in rows[life.seqs[mark] - 1][1]["content"]
        for manager in managers:
            assert_context(manager.get_context("s"), [message for _, message in rows])
    assert managers[1].clear_session_memory("s")
    search_blocking.assert_erased(f"mark-{blocking.tenant}")
    if blocking.database_url is not None:
        assert not any(row_counts(blocking.database_url, blocking.tenant).values())


# -- one step at a time: what the clearing of another process does to something half done, and the other way round


Action = Callable[[MemoryManager, str], object]


def pin(manager: MemoryManager, _new: str) -> None:
    with suppress(InvalidInputError):  # the message is gone
        manager.pin("s", manager.append("s", {"role": "user", "content": "Later, too."}).message_id)


WORK: dict[str, Action] = {
    "rebuild": lambda manager, new: manager.get_context("s"),
    "append": lambda manager, new: manager.append("s", {"role": "user", "content": new}, message_id="new"),
    "batch": lambda manager, new: manager.add_messages("s", [{"role": "user", "content": new}] * 3),
    "turn": lambda manager, new: manager.add_and_get_context("s", {"role": "user", "content": new}),
    "fold": lambda manager, new: manager._runtime.run(manager._flows._sessions.folding.fold_when_due("s")),
    "summary": lambda manager, new: manager.summary_store.add_summary("s", new),
    "pin": pin,
    "instructions": lambda manager, new: manager.set_summary_instructions("s", new),
    "limits": lambda manager, new: manager.set_session_config("s", {"max_buffer_messages": 4}),
}
UNLOGGED = ("unlogged", "unlogged and evicted")
STATES = ("copied", "evicted", *UNLOGGED)


def clear(manager: MemoryManager, _new: str) -> None:
    assert manager.clear_session_memory("s")


def begin(manager: MemoryManager, backend: Backend, raw: redis.Redis, state: str) -> None:
    """Give session ``s`` a past, with a fold due; some of it may wait to be logged."""
    canary = canary_of(backend.tenant)
    fill(manager, "s", canary)
    raw.set(backend.keys("s").fold, "1", px=60_000)  # as if somebody else were folding
    for number in range(5):
        manager.append("s", {"role": "user", "content": f"{canary}, {number}."})
    raw.delete(backend.keys("s").fold)
    if state in UNLOGGED:
        wait_to_be_logged(manager, backend, raw, "s")
    if state in ("evicted", "unlogged and evicted"):
        assert raw.delete(backend.keys("s").buffer) == 1


def at_each_step(
    backend: Backend, raw: redis.Redis, search: Search, state: str, *, work: Action, meanwhile: Action
) -> int:
    """Do something, and ``meanwhile`` elsewhere before its first effect, its second, ...; one of them is a clearing.

    Each time nothing may be left of what was there before, and the session goes on. Answers how many steps there were.
    """
    canary, new = canary_of(backend.tenant), f"new-{backend.tenant}"
    maker, manager, other = (backend.open(limits=LIMITS, **PATIENT) for _ in range(3))
    for number in range(1, 60):
        begin(maker, backend, raw, state)
        done: list[str] = []

        @contextmanager
        def held_up(server: str, done: list[str] = done) -> Iterator[None]:
            meanwhile(other, new)
            done.append(server)
            yield

        interposition = Interposition(manager, Fault(HANG, number), hang=held_up)
        work(manager, new)
        for each in (manager, other):
            each.wait_for_folds()
        interposition.remove()
        if interposition.fired is None:
            clear(other, new)
            return number - 1
        assert len(done) == 1
        search.assert_erased(canary)
        receipt = other.append("s", {"role": "user", "content": "Later."})
        for reader in (manager, other):
            context = reader.get_context("s")
            assert context["last_seq"] == receipt.seq
            assert context["last_seq"] == context["watermark"] + len(context["buffer_messages"])
            assert context["complete"]
            assert canary not in str(context)
        search.assert_erased(canary)
        clear(other, new)
    raise AssertionError("it does not end")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("mode", [DURABLE])
def test_cleared_in_the_middle(
    blocking: Backend, raw: redis.Redis, search_blocking: Search, work: str, state: str
) -> None:
    """Another process clears the session while this one rebuilds, appends, drains, folds."""
    assert at_each_step(blocking, raw, search_blocking, state, work=WORK[work], meanwhile=clear) >= 1


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("mode", [EPHEMERAL])
def test_cleared_in_the_middle_without_a_log(
    blocking: Backend, raw: redis.Redis, search_blocking: Search, work: str
) -> None:
    assert at_each_step(blocking, raw, search_blocking, "copied", work=WORK[work], meanwhile=clear) >= 1


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("mode", [DURABLE])
def test_others_in_the_middle_of_a_clearing(
    blocking: Backend, raw: redis.Redis, search_blocking: Search, work: str, state: str
) -> None:
    """Another process rebuilds, appends, drains, folds between the steps of a clearing."""
    steps = at_each_step(blocking, raw, search_blocking, state, work=clear, meanwhile=WORK[work])
    assert steps >= (5 if state in UNLOGGED else 3)


# -- and where it dies


@pytest.mark.parametrize("state", ["copied", "unlogged"])
@pytest.mark.parametrize("mode", [DURABLE])
def test_a_clearing_that_was_killed_is_finished_by_the_next_one(
    blocking: Backend, raw: redis.Redis, search_blocking: Search, state: str
) -> None:
    canary = canary_of(blocking.tenant)
    settings = {
        "redis_url": blocking.redis_url,
        "database_url": blocking.database_url,
        "tenant": blocking.tenant,
    } | PATIENT
    maker, other = (blocking.open(limits=LIMITS, **PATIENT) for _ in range(2))
    with Nursery() as nursery:

        def dies(fault: Fault) -> int:
            begin(maker, blocking, raw, state)
            status = nursery.send(Errand(settings, "s", 0, "clear_session_memory", fault, None))
            other.get_context("s")
            other.wait_for_folds()
            assert other.clear_session_memory("s")
            search_blocking.assert_erased(canary)
            return status

        steps = 0
        while (status := dies(Fault(KILL_BEFORE, steps + 1))) == -signal.SIGKILL:
            steps += 1
        assert status == UNTOUCHED + steps
        assert dies(Fault(KILL_AFTER, steps)) == -signal.SIGKILL
    assert steps >= (5 if state in UNLOGGED else 3)
