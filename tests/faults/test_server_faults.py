"""Servers harmed under load: what was acknowledged is there once and in order, whatever the server came back with."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import psycopg
import pytest
import redis
from crash_matrix import name_of
from lost_messages import nothing_lost
from many_writers import Background, told
from memory_contract import DURABLE, SYNC, Backend, assert_caps, assert_context, logged, run_threads, say, talk
from network_path import BOTH_COLOURS
from server_faults import REDIS_SECONDS, SETTINGS, Outage, waited_for
from servers import PrivateServers
from vain_waits import Changes, Tally, VainWaits, assert_one_deadline

from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import CircuitState, MemoryManager, StoreUnavailableError
from contract_engine.memory._effects import Pause, Query, RedisCall
from contract_engine.memory.session_cache import INSTALLED, REDIS_TROUBLE
from contract_engine.memory.sessions import FIRST_PAUSE_SECONDS, PAUSES

pytest_plugins = ("memory_fixtures",)

SESSIONS = ("s", "t", "u")
WRITERS = 6
READING = 3
STOPPED_SECONDS = 10.0


class Load(Background):
    """Writers on a few sessions; each message is sent until it is acknowledged, under the same id."""

    def __init__(self, managers: list[MemoryManager], *, writers: int = WRITERS, limit_seconds: float = 60.0) -> None:
        super().__init__(writers, self._send)
        self.acknowledged: list[tuple[str, int, int]] = []
        self.seqs: dict[tuple[str, str], int] = {}
        """What the receipt of each message said, by session and id."""
        self.refused = 0
        self.degraded = 0
        self.undurable = 0
        self.attempts: list[int] = []
        """How often each attempt has waited for a server in vain."""
        self.waits = [VainWaits(manager) for manager in managers]
        self._managers = managers
        self._limit = limit_seconds
        self._sent = [0] * writers
        self._began = [0.0] * writers

    @property
    def under_way(self) -> int:
        """How many writers are within a call."""
        return sum(began > 0 for began in self._began)

    def waited(self) -> int:
        """Return how often the thread at hand has waited in vain."""
        return sum(waits.of_caller() for waits in self.waits)

    def _send(self, writer: int) -> None:
        number = self._sent[writer]
        manager = self._managers[writer % len(self._managers)]
        session = SESSIONS[writer % len(SESSIONS)]
        deadline = time.monotonic() + self._limit
        message_id = f"{writer}-{number}"
        while True:
            self._began[writer] = time.monotonic()
            waited = self.waited()
            try:
                receipt = manager.append(session, told(writer, number), message_id=message_id)
            except StoreUnavailableError:
                self.refused += 1
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
                continue
            finally:
                self._began[writer] = 0.0
                self.attempts.append(self.waited() - waited)
            assert receipt.message_id == message_id
            self.seqs[session, message_id] = receipt.seq
            self.acknowledged.append((session, writer, number))
            self.degraded += receipt.degraded
            self.undurable += not receipt.durable
            self._sent[writer] += 1
            return

    def go(self, more: int) -> None:
        """Wait until ``more`` further messages have been acknowledged."""
        target = len(self.acknowledged) + more
        assert waited_for(lambda: len(self.acknowledged) >= target or bool(self.errors), 60.0), "nobody gets on"
        if self.errors:
            raise self.errors[0]

    def assert_kept(self, database_url: str, backend: Backend) -> None:
        """Every acknowledged message once, each writer's in its order, numbers without a gap, and the context so."""
        assert len(self.acknowledged) > 50
        reader = backend.open(database_timeout_seconds=10.0, redis_timeout_seconds=5.0)
        for session in SESSIONS:
            assert waited_for(lambda session=session: reader.append(session, told(99, 0), message_id="99").durable)  # type: ignore[misc]  # bound as a default
            rows = logged(database_url, backend.tenant, session)
            keys = [(message["writer"], message["n"]) for _, message in rows if message.get("writer", 99) != 99]
            missing = {(writer, n) for where, writer, n in self.acknowledged if where == session} - set(keys)
            with nothing_lost():
                assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
                assert len(set(keys)) == len(keys), "twice"
                assert not missing, "acknowledged and lost"
                for writer in {writer for writer, _ in keys}:
                    assert [n for one, n in keys if one == writer] == sorted(n for one, n in keys if one == writer)
            assert_context(reader.get_context(session), [message for _, message in rows])

    @nothing_lost()
    def assert_numbered(self, database_url: str, backend: Backend) -> None:
        """Each receipt was that of its own message: its number is that in the log, which was there all the time."""
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "SELECT session_id, message_id, seq FROM memory_messages WHERE tenant = %s", (backend.tenant,)
            ).fetchall()
        numbers = {(session, message_id): seq for session, message_id, seq in rows}
        assert len(self.seqs) == len(self.acknowledged)
        assert {key: numbers.get(key) for key in self.seqs} == self.seqs


@pytest.fixture
def colour() -> str:
    """That of a test which is not for both."""
    return SYNC


@pytest.fixture
def redis_outage(private_servers: PrivateServers, database_url: str, tenant: str, colour: str) -> Iterator[Outage]:
    """A Redis to harm, beside the PostgreSQL that all tests share."""
    servers = private_servers(postgres=False)
    backend = Backend(colour, DURABLE, servers.redis_url, database_url, tenant)
    with closing(Outage(servers, backend)) as outage:
        yield outage


# -- Redis


@pytest.mark.parametrize("persistent", [True, False], ids=["append-only file", "nothing kept"])
def test_redis_killed_under_load(database_url: str, tenant: str, *, persistent: bool) -> None:
    with (
        EmbeddedServers(postgres=False, persist_redis=persistent) as servers,
        closing(Outage(servers, Backend(SYNC, DURABLE, servers.redis_url, database_url, tenant))) as outage,
    ):
        managers = [outage.open(max_buffer_messages=8) for _ in range(2)]
        with Load(managers) as load:
            for _ in range(2):
                load.go(60)
                outage.kill_redis()
                load.go(60)
                assert any(manager.circuit_breaker.get_state() != CircuitState.CLOSED for manager in managers)
                outage.restart_redis()
                with outage.redis() as client:
                    assert (client.info("persistence")["aof_enabled"] == 1) is persistent
                assert waited_for(lambda: all(manager.health().is_well("redis") for manager in managers))
            load.go(60)
        assert load.refused == 0, "the log was there all the time"
        assert load.degraded > 0
        for manager in managers:
            manager.wait_for_folds()
        load.assert_kept(database_url, outage.backend)
        load.assert_numbered(database_url, outage.backend)


def test_redis_stopped_for_ten_seconds_under_load(redis_outage: Outage, database_url: str) -> None:
    """Every call keeps its deadline, and what is answered afterwards is the answer to what was asked."""
    managers = [
        redis_outage.open(max_buffer_messages=8, redis_pool_size=4, database_timeout_seconds=20.0) for _ in range(2)
    ]
    changes = [Changes(manager.circuit_breaker) for manager in managers]
    crossed: list[str] = []
    reads: list[int] = []

    def read(reader: int) -> None:
        session, waited = SESSIONS[reader % len(SESSIONS)], load.waited()
        context = managers[reader % 2].get_context(session)
        reads.append(load.waited() - waited)
        writers = {message["writer"] for message in context["buffer_messages"]}
        if context["session_id"] != session or any(SESSIONS[one % len(SESSIONS)] != session for one in writers):
            crossed.append(f"{session}: {writers}")
        assert_caps(context)

    with Load(managers) as load:
        load.go(60)
        with Background(READING, read):
            before = [Tally.so_far(*pair) for pair in zip(load.waits, changes, strict=True)]
            redis_outage.stop_redis()
            time.sleep(STOPPED_SECONDS)  # the outage itself
            assert all(manager.circuit_breaker.get_state() != CircuitState.CLOSED for manager in managers)
            after = [Tally.so_far(*pair) for pair in zip(load.waits, changes, strict=True)]
            tallies = [now.since(then) for now, then in zip(after, before, strict=True)]
            redis_outage.go_on()
            assert waited_for(lambda: all(manager.health().is_well("redis") for manager in managers))
            load.go(60)
    assert len(reads) > 10
    assert crossed == []
    assert load.refused == 0
    # And those that fold, and tell Redis of what it has missed, in the background.
    for waits, during in zip(load.waits, tallies, strict=True):
        print(during, f"{len(load.attempts)} appends, {len(reads)} reads")
        during.assert_bounded(threshold=SETTINGS["breaker_failure_threshold"], callers=WRITERS + READING + 2)
        assert_one_deadline(waits, [*load.attempts, *reads], REDIS_SECONDS)
    load.assert_kept(database_url, redis_outage.backend)
    load.assert_numbered(database_url, redis_outage.backend)


@BOTH_COLOURS
def test_a_full_redis_that_evicts_nothing(redis_outage: Outage) -> None:
    """Scripts apply whole or not at all; writes are in the log, which the receipts and the state of health say."""
    manager = redis_outage.open(max_buffer_messages=6)
    said = talk(5)
    manager.add_messages("s", said)
    assert manager.get_context("s")["source"] == "redis"
    redis_outage.fill_redis()
    with redis_outage.redis() as client:
        degraded = 0
        for number in range(6, 30):
            said.append(say(number))
            receipt = manager.append("s", say(number))
            assert (receipt.seq, receipt.durable) == (number, True)
            degraded += receipt.degraded
            assert_whole(client, redis_outage.backend.keys("s").buffer)
            assert_context(manager.get_context("s"), said)
        assert degraded >= 3, "the receipts say so"
        assert manager.circuit_breaker.snapshot().failed >= 3, "errors are counted"
        said.append(say(30))
        assert_context(manager.add_and_get_context("s", say(30)), said)
    redis_outage.make_room()
    assert waited_for(lambda: not manager.get_context("s")["degraded"])
    assert_context(manager.get_context("s"), said)
    assert manager.append("s", say(31)).degraded is False
    assert_context(manager.get_context("s"), [*said, say(31)])
    assert manager.get_context("s")["source"] == "redis"


@BOTH_COLOURS
def test_a_full_redis_takes_no_new_session(redis_outage: Outage, database_url: str) -> None:
    """Not one message of it: else it would grow past its limit by something of each session that begins."""
    manager = redis_outage.open(breaker_failure_threshold=100)
    backend = redis_outage.backend
    alone = backend.open(database_url=None, tenant="alone")
    alone.append("s", say(1))
    redis_outage.fill_redis()
    with redis_outage.redis() as client:
        before = client.dbsize()
        for number in range(3):
            receipt = manager.append(f"s{number}", say(1))
            assert (receipt.seq, receipt.durable, receipt.degraded) == (1, True, True)
            assert_context(manager.get_context(f"s{number}"), talk(1))
            assert alone.add_message(f"s{number}", say(1)) is False
        assert client.dbsize() == before
    redis_outage.make_room()
    for number in range(3):
        assert waited_for(lambda number=number: not manager.get_context(f"s{number}")["degraded"])  # type: ignore[misc]  # bound as a default
        assert manager.append(f"s{number}", say(2)).degraded is False
        assert_context(manager.get_context(f"s{number}"), talk(2))
        assert waited_for(lambda number=number: alone.append(f"s{number}", say(1)).seq == 1)  # type: ignore[misc]
        assert logged(database_url, backend.tenant, f"s{number}") == list(enumerate(talk(2), 1))


@BOTH_COLOURS
def test_a_full_redis_takes_no_rebuilt_copy(redis_outage: Outage) -> None:
    """Where there was room for the placeholder of it when the rebuild began."""
    backend = redis_outage.backend
    manager: Any = redis_outage.open()
    manager.add_messages("s", talk(5))
    cache, buffer = manager._flows._sessions.cache, backend.keys("s").buffer
    state = backend.run(manager, manager._flows._sessions.folding.read_truth("s"))
    with redis_outage.redis() as client:
        assert client.delete(buffer) == 1
        ticket, _ = backend.run(manager, cache.claim("s", b""))
        placeholder = client.lrange(buffer, 0, -1)
        redis_outage.fill_redis()
        with pytest.raises(REDIS_TROUBLE):
            backend.run(manager, cache.install("s", state, ticket))
        assert client.lrange(buffer, 0, -1) == placeholder
        redis_outage.make_room()
        assert backend.run(manager, cache.install("s", state, ticket)) == INSTALLED
    context = manager.get_context("s")
    assert (context["source"], context["degraded"]) == ("redis", False)
    assert_context(context, talk(5))


@BOTH_COLOURS
def test_an_older_copy_is_not_believed(database_url: str, tenant: str, colour: str) -> None:
    """Redis comes back with what it had written down a while ago, and who reads it next was not there before."""
    with (
        EmbeddedServers(postgres=False, persist_redis=True) as servers,
        closing(Outage(servers, Backend(colour, DURABLE, servers.redis_url, database_url, tenant))) as outage,
    ):
        manager = outage.open()
        key = outage.backend.keys("s").buffer
        manager.add_messages("s", talk(5))
        with outage.redis() as client:
            client.config_set("appendonly", "no")
        for number in range(6, 9):
            assert manager.append("s", say(number)).degraded is False
        assert manager.get_context("s")["source"] == "redis"
        outage.kill_redis()
        outage.restart_redis()
        with outage.redis() as client:
            assert client.llen(key) == 1 + 5, "not the older copy"
            context = outage.open().get_context("s")
            assert_context(context, talk(8))
            assert (context["source"], context["degraded"], context["complete"]) == ("postgres", False, True)
            assert client.llen(key) == 1 + 8
        assert outage.open().get_context("s")["source"] == "redis"
        assert outage.open().append("s", say(9)).degraded is False
        assert_context(manager.get_context("s"), talk(9))


@BOTH_COLOURS
def test_a_copy_nobody_can_vouch_for_is_not_called_complete(tenant: str, colour: str) -> None:
    """Redis was restarted and PostgreSQL is away: the copy is all there is, and its answer says what it is worth."""
    with (
        EmbeddedServers(persist_redis=True) as servers,
        closing(Outage(servers, Backend(colour, DURABLE, servers.redis_url, servers.database_url, tenant))) as outage,
    ):
        outage.write_before_answering()
        first = outage.open()
        first.add_messages("s", talk(5))
        assert waited_for(lambda: first.get_context("s")["source"] == "redis"), "there is a copy to speak of"
        outage.kill_redis()
        outage.restart_redis()
        outage.kill_database()
        manager = outage.open(redis_timeout_seconds=5.0)
        context = manager.get_context("s")
        assert (context["source"], context["degraded"], context["complete"]) == ("redis", True, False)
        assert context["buffer_messages"] == talk(5)
        assert manager.append("s", say(6)).durable is False
        context = manager.get_context("s")
        assert (context["degraded"], context["complete"]) == (True, False)
        assert context["buffer_messages"] == talk(6)
        outage.restart_database()
        assert waited_for(lambda: not manager.get_context("s")["degraded"])
        assert_context(manager.get_context("s"), talk(6))
        assert manager.get_context("s")["complete"] is True


def assert_whole(client: redis.Redis, key: str) -> None:
    """A buffer has the messages its header counts, or is a placeholder, or is not there; what was appended while one
    rebuilt stands behind the placeholder of a rebuild that was overtaken alone.
    """
    elements = client.lrange(key, 0, -1)
    assert isinstance(elements, list)
    header = json.loads(elements[0]) if elements else [0]
    if header[0] == 1:
        assert len(elements) - 1 == header[9] - header[5], "from the watermark to the last message"
    else:
        assert len(elements) <= 1 or len(header) == 6


@BOTH_COLOURS
@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_a_redis_that_is_back_is_used_after_the_open_wait(redis_outage: Outage, fault: str) -> None:
    """Each call after the wait is a probe, so the first one finds Redis: no second outage of a minute."""
    wait, seconds = 2.0, 5.0 if fault == "killed" else 1.0
    manager = redis_outage.open(breaker_recovery_seconds=wait, redis_timeout_seconds=seconds)
    manager.add_messages("s", talk(3))
    if fault == "killed":
        redis_outage.kill_redis()
    else:
        redis_outage.stop_redis()
    assert waited_for(lambda: manager.get_context("s")["degraded"] and _is_open(manager))
    if fault == "killed":
        redis_outage.restart_redis()
    else:
        redis_outage.go_on()
    back = time.monotonic()
    assert manager.circuit_breaker.snapshot().retry_after <= wait
    assert waited_for(lambda: manager.circuit_breaker.snapshot().retry_after == 0)
    first, second = manager.get_context("s"), manager.get_context("s")
    print(f"{fault}: served by Redis {time.monotonic() - back:.2f} s after it was back; the open wait is {wait} s")
    assert first["degraded"] is False, "the first call after the wait did not find it"
    assert second["source"] == "redis"
    for context in (first, second):
        assert_context(context, talk(3))


@BOTH_COLOURS
def test_connections_may_be_lost_any_number_of_times(redis_outage: Outage) -> None:
    """A manager lives for months: whatever counts its connections must not count those that are gone."""
    manager = redis_outage.open(redis_timeout_seconds=5.0)
    manager.add_messages("s", talk(3))
    killed = 0
    with redis_outage.redis() as client:
        for _ in range(150):
            killed += int(client.client_kill_filter(_type="normal", skipme=True))
            context = manager.get_context("s")
            assert_context(context, talk(3))
            assert (context["source"], context["degraded"]) == ("redis", False), f"after {killed} connections"
    assert killed >= 140


def _is_open(manager: MemoryManager) -> bool:
    return manager.circuit_breaker.get_state() == CircuitState.OPEN


READERS = 64


LOSSES = pytest.mark.parametrize("loss", ["evicted", "restarted empty"])
INSTALL = "install"


class Stampede:
    """One manager whose readers have lost their session: all of them read it at once, and what that costs is counted.

    ``passes`` performs each effect in place of the runtime: a test says with it who waits for whom.
    """

    def __init__(self, outage: Outage, loss: str) -> None:
        self.outage = outage
        self.manager = outage.open(redis_timeout_seconds=5.0, redis_pool_size=READERS, database_pool_size=READERS)
        self.said = talk(20)
        self.perform = self.manager._runtime._perform
        self.manager.add_messages("s", self.said)
        self.read_all()  # every place of the pool is filled
        if loss == "evicted":
            with outage.redis() as client:
                assert client.delete(outage.backend.keys("s").buffer) == 1
        else:
            outage.kill_redis()
            outage.restart_redis()
            assert waited_for(lambda: self.manager.health().is_well("redis"))

    def interpose(self, passes: Callable[[Any], Any]) -> None:
        runtime: Any = self.manager._runtime
        runtime._perform = passes

    def read_all(self) -> Counter[str]:
        """Read by all at once, each of whom is right, and none of whom is degraded; answers who told them."""
        sources: list[str] = []

        def read(_: int) -> None:
            context = self.manager.get_context("s")
            assert_context(context, self.said)
            assert context["degraded"] is False, self.manager.circuit_breaker.snapshot()
            sources.append(context["source"])

        run_threads(READERS, read)
        return Counter(sources)

    def assert_installed_once(self, before: Mapping[str, int]) -> None:
        """An installation is the only script here that pushes more than a placeholder: 20 messages each."""
        after = self.outage.calls()
        assert (after["rpush"] - before.get("rpush", 0)) // len(self.said) == 1
        assert self.read_all() == {"redis": READERS}
        assert self.outage.calls()["rpush"] == after["rpush"]


def is_installation(effect: Any) -> bool:
    return isinstance(effect, RedisCall) and name_of(effect) == INSTALL


@LOSSES
def test_one_of_64_readers_of_a_lost_buffer_reads_the_log(redis_outage: Outage, loss: str) -> None:
    """64 readers at once: one is told by the log and installs it, the others wait for that one, however long it takes.

    A wait here ends with the installation, and not by a clock: how many would have waited in vain is no matter of luck.
    """
    stampede = Stampede(redis_outage, loss)
    installed = threading.Event()
    waited: list[float] = []

    def passes(effect: Any) -> Any:
        if isinstance(effect, Pause):
            waited.append(effect.seconds)
            assert installed.wait(30)
            return None
        answer = stampede.perform(effect)
        if is_installation(effect):
            installed.set()
        return answer

    stampede.interpose(passes)
    before = redis_outage.calls()
    assert stampede.read_all() == {"postgres": 1, "redis": READERS - 1}
    assert set(waited) <= {FIRST_PAUSE_SECONDS}, "nobody waited twice"
    stampede.assert_installed_once(before)


@LOSSES
def test_readers_do_not_wait_for_ever_for_the_one_who_installs(redis_outage: Outage, loss: str) -> None:
    """It hangs: after 30 ms the others are told by the log, and one of them installs what it has read."""
    stampede = Stampede(redis_outage, loss)
    waited: dict[int, list[float]] = defaultdict(list)
    answered = threading.Semaphore(0)
    first: list[int] = []
    lock = threading.Lock()

    def passes(effect: Any) -> Any:
        me = threading.get_ident()
        if isinstance(effect, Pause):
            waited[me].append(effect.seconds)
        elif isinstance(effect, Query):
            with lock:
                first.append(me)
            if first[0] == me:
                assert answered.acquire(timeout=30)  # another has installed it
        answer = stampede.perform(effect)
        if is_installation(effect):
            answered.release()
        return answer

    stampede.interpose(passes)
    before = redis_outage.calls()
    sources = stampede.read_all()
    assert sources["postgres"] >= 2, "the one that hung, and the one that would not wait for it"
    assert sources["postgres"] == len(first)
    patient = [FIRST_PAUSE_SECONDS * 2**attempt for attempt in range(PAUSES)]
    assert all(pauses == patient[: len(pauses)] for pauses in waited.values())
    assert sum(waited[reader] != patient for reader in first) == 1, "only one of them has not waited first"
    assert sum(patient) == pytest.approx(0.030)
    stampede.assert_installed_once(before)


@LOSSES
def test_buffers_heal_without_a_stampede(redis_outage: Outage, loss: str) -> None:
    """By the clock, as in earnest: it is one that reads the log, unless the machine stands still for 30 ms."""
    stampede = Stampede(redis_outage, loss)
    before = redis_outage.calls()
    sources = stampede.read_all()
    print(f"{loss}: {sources['postgres']} of {READERS} read the log")
    assert 1 <= sources["postgres"] <= READERS // 4
    stampede.assert_installed_once(before)


# -- PostgreSQL


@pytest.fixture
def database_outage(private_servers: PrivateServers, redis_url: str, tenant: str) -> Iterator[Outage]:
    """A PostgreSQL to harm, beside the Redis that all tests share."""
    servers = private_servers(redis=False)
    with closing(Outage(servers, Backend(SYNC, DURABLE, redis_url, servers.database_url, tenant))) as outage:
        yield outage


def under_load(outage: Outage, harm: Callable[[Load], None], **settings: Any) -> Load:
    managers = [outage.open(max_buffer_messages=8, **settings) for _ in range(2)]
    with Load(managers) as load:
        load.go(60)
        harm(load)
        load.go(60)
    for manager in managers:
        manager.wait_for_folds()
    load.assert_kept(outage.servers.database_url, outage.backend)
    return load


def test_postgres_killed_under_load(database_outage: Outage) -> None:
    def harm(load: Load) -> None:
        for _ in range(2):
            serving = database_outage.backend_pids()
            killed = database_outage.kill_database()
            assert serving & killed, "no backend of the writers was among them"
            undurable = load.undurable
            load.go(60)
            assert load.undurable > undurable, "no writer has noticed"
            database_outage.restart_database()
            load.go(60)
            assert waited_for(lambda: len(database_outage.backend_pids()) > 0), "nobody has returned to the log"

    under_load(database_outage, harm)


def test_backends_terminated_under_load(database_outage: Outage) -> None:
    ended: list[int] = []

    def harm(load: Load) -> None:
        for _ in range(10):
            ended.append(database_outage.terminate_backends())
            load.go(10)

    under_load(database_outage, harm)
    assert sum(ended) >= 20


CONNECTIONS = 2


@pytest.fixture
def starved(database_outage: Outage) -> Iterator[psycopg.Connection]:
    """Managers of ``database_outage`` log in as somebody who may have two connections; for those who may have more."""
    with psycopg.connect(database_outage.servers.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT {CONNECTIONS}".encode())
        for grant in (
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO few",
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO few",
        ):
            connection.execute(grant.encode())
        address = database_outage.servers.database_url.partition("@")[2]
        database_outage.backend.database_url = f"postgresql://few:few@{address}"
        yield connection


def test_no_connection_to_be_had(database_outage: Outage, starved: psycopg.Connection) -> None:
    """Others have them all: what the server refuses is an outage of it, and ends with the shortage."""
    url = database_outage.backend.database_url
    assert url is not None
    manager = database_outage.open()
    with psycopg.connect(url), psycopg.connect(url):
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            psycopg.connect(url)
        receipt = manager.append("s", say(1), message_id="first")
        assert (receipt.seq, receipt.durable, receipt.degraded) == (1, False, True)
    assert waited_for(lambda: manager.append("s", say(2), message_id="second").durable)
    rows = logged(database_outage.servers.database_url, database_outage.backend.tenant, "s")
    assert rows == list(enumerate(talk(2), 1))


def test_more_connections_wanted_than_allowed(database_outage: Outage, starved: psycopg.Connection) -> None:
    """Pools that are larger than what the server allows: some calls are refused there, and nothing is lost."""
    managers = [database_outage.open(max_buffer_messages=8, database_timeout_seconds=5.0) for _ in range(2)]
    with Load(managers) as load:
        load.go(120)
        assert waited_for(lambda: load.undurable > 0), "nobody was refused"
        starved.execute("ALTER ROLE few CONNECTION LIMIT -1")
        load.go(60)
    assert load.refused == 0
    load.assert_kept(database_outage.servers.database_url, database_outage.backend)


def test_too_few_connections(database_outage: Outage, starved: psycopg.Connection) -> None:
    """Six writers on two connections queue in their pools, and each is served by the log."""
    tenant = database_outage.backend.tenant
    managers = [
        database_outage.open(max_buffer_messages=8, database_timeout_seconds=20.0, database_pool_size=1)
        for _ in range(CONNECTIONS)
    ]

    def in_the_server(state: str = "") -> int:
        row = starved.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'few' AND (%s IN ('', wait_event_type))", (state,)
        ).fetchone()
        assert row is not None
        return int(row[0])

    with Load(managers) as load:
        load.go(60)
        assert waited_for(lambda: in_the_server() == CONNECTIONS)
        for _ in range(3):
            with starved.transaction():
                starved.execute("SELECT FROM memory_sessions WHERE tenant = %s FOR UPDATE", (tenant,))
                assert waited_for(lambda: in_the_server("Lock") == CONNECTIONS)
                # Those two hold every connection there is: the other writers come to wait in the queue of a pool.
                assert waited_for(lambda: load.under_way == WRITERS)
                assert in_the_server() == in_the_server("Lock") == CONNECTIONS
            load.go(30)
        starved.execute("ALTER ROLE few CONNECTION LIMIT -1")  # for who looks at it in the end
    assert (load.refused, load.undurable, load.degraded) == (0, 0, 0)
    load.assert_kept(database_outage.servers.database_url, database_outage.backend)
    load.assert_numbered(database_outage.servers.database_url, database_outage.backend)
