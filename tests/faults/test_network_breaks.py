"""A network that breaks off, stalls or hardly moves in the middle of a long reply; and one that loses everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
from memory_contract import ASYNC, DURABLE, SYNC, Backend, assert_context, logged, say, talk
from network_path import BOTH_COLOURS, POSTGRES, REDIS, ROOM, STEADY, WIDE_SECONDS, Paths, paths_of
from server_faults import RECOVERY_SECONDS, REDIS_SECONDS, Outage, waited_for
from servers import PrivateServers

from contract_engine.memory import DatabaseUnavailableError

pytest_plugins = ("memory_fixtures",)


@pytest.fixture
def paths(redis_url: str, database_url: str, tenant: str) -> Iterator[Paths]:
    with paths_of(redis_url, database_url, tenant) as found:
        yield found


LONG: list[dict[str, Any]] = talk(30, words=800)


@BOTH_COLOURS
@pytest.mark.parametrize("after", [1, 100, 10_000, 120_000])
@pytest.mark.parametrize("cuts", [1, 2])
def test_a_long_reply_of_redis_is_cut(paths: Paths, colour: str, after: int, cuts: int) -> None:
    path = paths(REDIS, colour)
    manager = path.open(**ROOM)
    manager.add_messages("s", LONG)
    manager.get_context("s")
    path.proxy.cut_replies(after, cuts, to=(path.backend.keys("s").buffer.encode(),))
    context = manager.get_context("s")
    assert path.proxy.cuts == cuts
    assert_context(context, LONG)
    assert (context["source"], context["degraded"]) == (("redis", False) if cuts == 1 else ("postgres", True))
    context = manager.get_context("s")
    assert_context(context, LONG)
    assert (context["source"], context["degraded"]) == ("redis", False)


@BOTH_COLOURS
@pytest.mark.parametrize("after", [1, 100, 10_000, 120_000])
def test_a_long_reply_of_the_log_is_cut(paths: Paths, raw: redis.Redis, colour: str, after: int) -> None:
    """The session is not in Redis, so its reader depends on the log."""
    path = paths(POSTGRES, colour)
    manager = path.open(**ROOM)
    manager.add_messages("s", LONG)
    assert raw.delete(path.backend.keys("s").buffer) == 1
    path.proxy.cut_replies(after, 2, to=(b"array_agg",))
    with pytest.raises(DatabaseUnavailableError):
        manager.get_context("s")
    assert path.proxy.cuts == 2
    manager.health()  # a connection that has been in use
    path.proxy.cut_replies(after, to=(b"array_agg",))
    context = manager.get_context("s")
    assert path.proxy.cuts == 3
    assert_context(context, LONG)
    assert (context["source"], context["degraded"]) == ("postgres", False)
    context = manager.get_context("s")
    assert_context(context, LONG)
    assert (context["source"], context["degraded"]) == ("redis", False)


@BOTH_COLOURS
@pytest.mark.parametrize("after", [1, 10_000])
def test_a_long_reply_of_redis_stalls(paths: Paths, colour: str, after: int) -> None:
    """Half an answer and no end of it: the deadline holds, and the log answers."""
    path = paths(REDIS, colour)
    manager = path.open(**ROOM, redis_timeout_seconds=REDIS_SECONDS)
    manager.add_messages("s", LONG)
    manager.get_context("s")
    path.proxy.stall_replies(after, to=(path.backend.keys("s").buffer.encode(),))
    started = time.monotonic()
    context = manager.get_context("s")
    seconds = time.monotonic() - started
    assert path.proxy.cuts == 1
    assert path.proxy.swallowed > 100_000
    assert REDIS_SECONDS <= seconds < REDIS_SECONDS + WIDE_SECONDS
    assert_context(context, LONG)
    assert (context["source"], context["degraded"]) == ("postgres", True)
    assert_context(manager.get_context("s"), LONG)
    assert manager.get_context("s")["source"] == "redis"


@BOTH_COLOURS
def test_a_long_reply_on_a_thin_line(paths: Paths, colour: str) -> None:
    """Within the deadline it is waited for; a deadline that passes makes it an outage, and the log answers."""
    path = paths(REDIS, colour)
    patient, hasty = path.open(**ROOM), path.open(**ROOM, redis_timeout_seconds=REDIS_SECONDS)
    patient.add_messages("s", LONG)
    hasty.get_context("s")
    path.proxy.throttle(sum(len(message["content"]) for message in LONG))  # about a second for the session
    started = time.monotonic()
    context = patient.get_context("s")
    assert time.monotonic() - started >= 0.5
    assert_context(context, LONG)
    assert (context["source"], context["degraded"]) == ("redis", False)
    context = hasty.get_context("s")
    assert_context(context, LONG)
    # A blocking connection has its deadline for each wait, and a thin line moves all the time.
    late = ("postgres", True)
    assert (context["source"], context["degraded"]) in ([late] if colour == ASYNC else [late, ("redis", False)])
    path.proxy.heal()
    context = hasty.get_context("s")
    assert_context(context, LONG)
    assert context["source"] == "redis"


def test_every_client_killed_ten_times_a_second(
    private_servers: PrivateServers, database_url: str, tenant: str
) -> None:
    """Eight threads do not notice: no error, each context right, each message once."""
    threads, seconds = 8, 3.0
    servers = private_servers(postgres=False)
    backend = Backend(SYNC, DURABLE, servers.redis_url, database_url, tenant)
    with closing(Outage(servers, backend)) as outage:
        managers = [
            backend.open(**STEADY, max_buffer_messages=12, breaker_recovery_seconds=RECOVERY_SECONDS) for _ in range(2)
        ]
        written = [0] * threads
        errors: list[BaseException] = []
        ended = threading.Event()

        def check(context: dict[str, Any], said: list[dict[str, Any]]) -> None:
            facts = {name: context[name] for name in ("session_id", "last_seq", "watermark", "source", "degraded")}
            assert context["last_seq"] == len(said), facts
            assert_context(context, said)

        def work(worker: int) -> None:
            manager, session = managers[worker % 2], f"s{worker}"
            said: list[dict[str, Any]] = []
            try:
                while not ended.is_set():
                    said.append(say(len(said) + 1))
                    assert manager.append(session, said[-1]).seq == len(said)
                    check(manager.get_context(session), said)
                    said.append(say(len(said) + 1))
                    check(manager.add_and_get_context(session, said[-1]), said)
                    manager.append("shared", say(len(said), role=f"user{worker}"))
                    written[worker] = len(said)
            except BaseException as exc:  # noqa: BLE001  # raised again in the thread of the test
                errors.append(exc)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        kills = killed = 0
        try:
            for thread in workers:
                thread.start()
            with outage.redis() as client:
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    time.sleep(0.1)  # the rate of the fault
                    killed += int(client.client_kill_filter(_type="normal", skipme=True))
                    kills += 1
        finally:
            ended.set()
            for thread in workers:
                thread.join()
        if errors:
            raise errors[0]
        assert kills >= 10
        assert killed >= kills, "there was somebody to kill"
        assert min(written) >= 10
        for manager in managers:
            manager.wait_for_folds()
        for worker, count in enumerate(written):
            rows = logged(database_url, tenant, f"s{worker}")
            assert [message for _, message in rows] == talk(count)
        rows = logged(database_url, tenant, "shared")
        assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
        expected = [
            (f"user{worker}", number) for worker in range(threads) for number in range(2, written[worker] + 1, 2)
        ]
        assert sorted((message["role"], int(message["content"].split()[3])) for _, message in rows) == sorted(expected)
        shared = [message for _, message in rows]
        for manager in managers:
            # A breaker may have opened: a fresh connection can be killed like any other.
            assert waited_for(lambda manager=manager: manager.get_context("shared")["source"] == "redis")  # type: ignore[misc]  # bound as a default
            assert_context(manager.get_context("shared"), shared)
