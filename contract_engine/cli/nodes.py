"""The servers behind the URL of a Redis, one by one: what INFO tells and SCAN finds is of one of them alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis
from redis import exceptions as redis_exc
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract_engine.memory._runtime.failures import redis_failure
from contract_engine.memory._runtime.redis_steps import Address
from contract_engine.memory._runtime.redis_topology import SLOTS, Deployment, SlotMap, deployment
from contract_engine.memory.errors import MemoryServiceError, RedisUnavailableError, StoreMisconfiguredError


class Node(NamedTuple):
    """One server that takes writes: its name without credentials, and the URL that leads to it alone."""

    name: str
    url: str


class Nodes(NamedTuple):
    """The servers that share the sessions; ``unserved_slots`` of a Cluster belong to none of them."""

    nodes: tuple[Node, ...]
    unserved_slots: int = 0


def open_client(url: str, *, timeout_seconds: float, decode_responses: bool = False) -> redis.Redis:
    """Return a client of one server that gives up at once; it connects when it is first used."""
    # retry: the client's own default would go on for four seconds at a dead port.
    options: dict[str, Any] = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    return redis.Redis.from_url(url, decode_responses=decode_responses, retry=Retry(NoBackoff(), 0), **options)


@contextmanager
def redis_failures() -> Iterator[None]:
    """Turn what redis-py raises into RedisUnavailableError or StoreMisconfiguredError."""
    try:
        yield
    except redis_exc.RedisError as exc:
        failure, _ = redis_failure(exc)
        raise failure from exc


def redis_info(client: redis.Redis, *sections: str) -> dict[str, Any]:
    """Return these sections of what one server says of itself, in one round trip."""
    with client.pipeline(transaction=False) as pipeline:
        for section in sections:
            pipeline.info(section)
        return {name: value for answer in pipeline.execute() for name, value in answer.items()}


def find_nodes(url: str, *, timeout_seconds: float) -> Nodes:
    """Return the server, the primaries of the Cluster, or the primary its Sentinels tell of.

    One server is not asked. Of several the first that answers is believed; each may take ``timeout_seconds``. Raises
    RedisUnavailableError where none answers, or nobody serves a slot, StoreMisconfiguredError where Sentinels know no
    such service.
    """
    target = deployment(url)
    if target is None:
        return Nodes((Node("", url),))
    failure: MemoryServiceError = RedisUnavailableError("nobody answers")
    for seed in target.seeds:
        try:
            with open_client(target.url_of(seed), timeout_seconds=timeout_seconds) as client:
                found = _cluster(client, target, seed) if target.kind == "cluster" else _primary(client, target)
        except redis_exc.RedisError as exc:
            failure, _ = redis_failure(exc)
            failure.__cause__ = exc
        else:
            if found.nodes:
                return found
            # One that was taken out of its Cluster knows nobody; the next seed may.
            failure = RedisUnavailableError(f"{seed} knows of no node that serves a slot")
    raise failure


def _cluster(client: Any, target: Deployment, seed: Address) -> Nodes:
    # In two words, so that redis-py hands the reply on as it came.
    slots = SlotMap(client.execute_command("CLUSTER", "SLOTS"), seed)
    nodes = tuple(Node(str(address), target.url_of(address)) for address in sorted(slots.primaries))
    return Nodes(nodes, sum(slots.owner(slot) is None for slot in range(SLOTS)))


def _primary(client: Any, target: Deployment) -> Nodes:
    reply = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service)
    if reply is None:
        hint = "check the service name in the URL"
        raise StoreMisconfiguredError("redis", f"no Sentinel watches a primary {target.service!r}", hint=hint)
    address = Address(reply[0].decode(), int(reply[1]))
    return Nodes((Node(str(address), target.url_of(address)),))
