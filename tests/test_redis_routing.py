"""What of a call is sent again to another node, and the addresses of Clusters and Sentinels: no server is asked."""

from __future__ import annotations

import pytest
import redis
from memory_contract import Backend

from contract_engine.memory._effects import Command, RedisCall
from contract_engine.memory._runtime.redis_routing import Talk
from contract_engine.memory._runtime.redis_steps import Address, Outcome
from contract_engine.memory._runtime.redis_topology import deployment
from contract_engine.memory._scripts import RELEASE
from contract_engine.memory.errors import ConfigurationError

pytest_plugins = ("memory_fixtures",)

# -- what may be sent again


def call(*commands: Command, again: bool = True) -> Talk:
    return Talk(RedisCall(commands, (lambda: commands) if again else None))


WRITE = Command((1, "k", 1), RELEASE)
READ = Command(("GET", "k"))
MOVED = redis.exceptions.MovedError("1 h:1")
ASK = redis.exceptions.AskError("1 h:1")


def test_an_answered_write_is_not_sent_again() -> None:
    talk_ = call(READ, WRITE, READ)
    assert talk_.take([ASK, b"written", b"read"], 7) is ASK
    assert talk_.commands == (READ,)
    assert talk_.take([b"at last"], 7) is None
    assert talk_.is_done
    assert talk_.replies == [b"at last", b"written", b"read"]


def test_a_read_behind_a_refused_write_waits_for_it() -> None:
    talk_ = call(WRITE, READ, WRITE, READ)
    assert talk_.take([redis.exceptions.TryAgainError("later"), b"too early", b"written", MOVED], 7) is not None
    assert list(talk_.commands) == [WRITE]
    assert talk_.take([MOVED], 7) is MOVED
    assert talk_.take([1], 7) is None
    assert list(talk_.commands) == [READ, READ]
    assert talk_.take([b"a", b"b"], 7) is None
    assert talk_.is_done
    assert talk_.replies == [1, b"a", b"written", b"b"]


def test_what_a_replica_refuses_to_a_script_is_a_refusal() -> None:
    in_script = "Error running script (call to f_1): @user_script:1: -READONLY You can't write against a replica."
    for refusal in (redis.exceptions.ReadOnlyError("no"), redis.exceptions.ResponseError(in_script)):
        assert call(WRITE).take([refusal], 7) is refusal
    other = redis.exceptions.ResponseError("wrong number of arguments")
    assert call(WRITE).take([other], 7) is None


@pytest.mark.parametrize(
    ("was_sent", "again", "goes_on"), [(False, False, True), (True, False, False), (True, True, True)]
)
def test_after_a_lost_connection_the_rule_of_the_call_holds(*, was_sent: bool, again: bool, goes_on: bool) -> None:
    lost = Outcome([], redis.ConnectionError("gone"), was_idle=True, was_sent=was_sent)
    assert call(WRITE, again=again).survives(lost) is goes_on
    hung = Outcome([], redis.TimeoutError("silence"), was_idle=True, was_sent=True)
    assert call(WRITE, again=again).survives(hung) is False


# -- the address


def test_the_parts_of_an_address() -> None:
    found = deployment("rediss+cluster://user:p%40ss@one:7000,[::1]:7001,three/?ssl_cert_reqs=none")
    assert found is not None
    assert found.seeds == (Address("one", 7000), Address("::1", 7001), Address("three", 6379))
    assert found.url_of(found.seeds[1]) == "rediss://user:p%40ss@[::1]:7001/0?ssl_cert_reqs=none"
    watched = deployment("redis+sentinel://:secret@a:1,b/mine/3?sentinel_password=other&socket_keepalive=no")
    assert watched is not None
    assert watched.service == "mine"
    assert watched.seeds == (Address("a", 1, True), Address("b", 26379, True))
    assert watched.url_of(watched.seeds[0]) == "redis://:other@a:1?socket_keepalive=no"
    assert watched.url_of(Address("p", 6379)) == "redis://:secret@p:6379/3?socket_keepalive=no"
    for url in ("redis://h:1/0", "rediss://h", "unix:///tmp/x", "anything"):
        assert deployment(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "redis+ring://:hunter2@h:1/",
        "unix+cluster://:hunter2@h:1/",
        "redis+cluster://:hunter2@h:1/3",
        "redis+cluster://:hunter2@h:port/",
        "redis+cluster://:hunter2@/",
        "redis+cluster://:hunter2@h:1,,h:2/",
        "redis+cluster://:hunter2@h:1/?unknown_option=1",
        "redis+sentinel://:hunter2@h:1/",
        "redis+sentinel://:hunter2@h:1/mine/x",
        "redis+sentinel://:hunter2@h:1/mine/0/more",
    ],
)
def test_a_wrong_address_is_refused_without_being_quoted(ephemeral: Backend, url: str) -> None:
    manager = ephemeral.open(redis_url=url)
    with pytest.raises(ConfigurationError) as caught:
        manager.get_context("s")
    assert caught.value.field == "redis_url"
    assert "hunter2" not in str(caught.value)
