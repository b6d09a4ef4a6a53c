"""Redis in its larger forms, on this machine: a Cluster, and a primary with a replica and Sentinels that watch it.

Real ``redis-server`` processes on loopback, each with a directory and a pid of its own. What is done to them is done by
pid, and each method that harms returns only when the harm is done.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract_engine._server_programs import REDIS, find_program, server_directories

LOOPBACK = "127.0.0.1"
PASSWORD = "topology"
SERVICE = "memory"
SLOTS = 16384
START_SECONDS = 30.0
NODE_TIMEOUT_MS = 1000
DOWN_AFTER_MS = 400


def waited_for(condition: Callable[[], bool], seconds: float = START_SECONDS) -> bool:
    """Wait until the condition holds; False if the time was up before. A server that is busy starting is no answer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return True
        except redis.RedisError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


@dataclass
class Server:
    """One process: a node, or a Sentinel."""

    program: Path
    directory: Path
    port: int
    settings: Sequence[str]
    is_sentinel: bool = False
    process: subprocess.Popen[bytes] | None = None
    _client: redis.Redis | None = field(default=None, repr=False)

    @property
    def client(self) -> redis.Redis:
        if self._client is None:
            self._client = redis.Redis(
                host=LOOPBACK,
                port=self.port,
                password=None if self.is_sentinel else PASSWORD,
                protocol=2,
                socket_timeout=5,
                socket_connect_timeout=5,
                retry=Retry(NoBackoff(), 0),
            )
        return self._client

    def say(self, *words: Any) -> Any:
        """Send one command as it stands: redis-py makes something else of some replies."""
        connection: Any = self.client.connection_pool.get_connection()
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            self.client.connection_pool.release(connection)

    @property
    def pid(self) -> int:
        assert self.process is not None, "it was never started"
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process, with what it has written in its directory; returns when it answers."""
        assert not self.is_alive
        self.directory.mkdir(exist_ok=True)
        file = self.directory / "redis.conf"
        if not file.exists():  # Sentinel writes what it learns into its own
            file.write_text("\n".join((f"port {self.port}", f"bind {LOOPBACK}", *self.settings)))
        command = [str(self.program), str(file), *(["--sentinel"] if self.is_sentinel else [])]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        assert waited_for(lambda: bool(self.client.ping())), (self.directory / "log").read_text()[-2000:]

    def kill(self) -> int:
        """Kill the process with SIGKILL and return the pid it had."""
        return self._end(signal.SIGKILL)

    def stop(self) -> None:
        if self.is_alive:
            self._end(signal.SIGKILL)
        if self._client is not None:
            self._client.close()

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(10)
        assert not self.is_alive
        return self.process.pid

    def info(self, section: str) -> dict[str, Any]:
        answer = self.client.info(section)
        assert isinstance(answer, dict)
        return answer


def _free_ports(count: int) -> list[int]:
    """Return ports nobody listens on, with room for a Cluster's bus 10,000 above."""
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            probe = stack.enter_context(socket.socket())
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
            bus = stack.enter_context(socket.socket())
            if port > 55000:
                continue
            try:
                bus.bind((LOOPBACK, port + 10000))
            except OSError:
                continue
            ports.append(port)
    return ports


def _settings(*more: str) -> list[str]:
    return [f"requirepass {PASSWORD}", f"masterauth {PASSWORD}", 'save ""', "repl-diskless-sync-delay 0", *more]


@dataclass
class Cluster:
    """Three primaries, and behind each as many replicas as were asked for."""

    primaries: list[Server]
    replicas: list[Server]

    @property
    def servers(self) -> list[Server]:
        return [*self.primaries, *self.replicas]

    @property
    def url(self) -> str:
        """Every node as a seed: one of them may be down when a manager first looks."""
        hosts = ",".join(f"{LOOPBACK}:{server.port}" for server in self.servers)
        return f"redis+cluster://:{PASSWORD}@{hosts}/"

    def server_at(self, port: int) -> Server:
        return next(server for server in self.servers if server.port == port)

    def owner(self, slot: int, *, asked: Server | None = None) -> Server:
        """Return who serves a slot, as a node that is alive knows it."""
        teller = asked or next(server for server in self.servers if server.is_alive)
        for first, last, primary, *_ in teller.say("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self.server_at(primary[1])
        raise AssertionError(f"nobody serves slot {slot}")

    def node_id(self, server: Server) -> str:
        return bytes(server.say("CLUSTER", "MYID")).decode()

    def is_ok(self) -> bool:
        """Whether every node that is alive sees the Cluster as a whole at work."""
        alive = [server for server in self.servers if server.is_alive]
        return all(b"cluster_state:ok" in server.say("CLUSTER", "INFO") for server in alive)

    def move_slot(self, slot: int, to: Server, *, meanwhile: Callable[[], object] = lambda: None) -> int:
        """Move a slot with all of its keys as ``redis-cli --cluster reshard`` does; answers how many keys there were.

        ``meanwhile`` is called after every key.
        """
        source = self.owner(slot)
        assert source is not to
        to.say("CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        source.say("CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(to))
        moved = 0
        while keys := source.say("CLUSTER", "GETKEYSINSLOT", slot, 1):
            source.say("MIGRATE", LOOPBACK, to.port, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *keys)
            moved += len(keys)
            meanwhile()
        for server in (to, source, *(other for other in self.primaries if other not in (to, source))):
            server.say("CLUSTER", "SETSLOT", slot, "NODE", self.node_id(to))
        return moved

    def redirections(self) -> dict[str, int]:
        """Return how many commands were sent elsewhere, by kind, on all nodes alive."""
        found = {"MOVED": 0, "ASK": 0, "TRYAGAIN": 0, "CLUSTERDOWN": 0}
        for server in self.servers:
            if server.is_alive:
                for name, count in server.info("errorstats").items():
                    kind = name.removeprefix("errorstat_")
                    if kind in found:
                        found[kind] += count["count"] if isinstance(count, dict) else int(str(count).split("=")[1])
        return found


@contextmanager
def cluster(*, replicas: int = 0, full_coverage: bool = False) -> Iterator[Cluster]:
    """Start a Cluster of three primaries; all of it is gone in the end."""
    with _cluster_nodes(3 * (1 + replicas), full_coverage=full_coverage) as servers:
        made = Cluster(servers[:3], servers[3:])
        _join(made)
        yield made


@contextmanager
def lone_node() -> Iterator[Cluster]:
    """Start a node that has met nobody, and serves no slot."""
    with _cluster_nodes(1) as servers:
        yield Cluster(servers, [])


@contextmanager
def _cluster_nodes(count: int, *, full_coverage: bool = False) -> Iterator[list[Server]]:
    program = find_program(REDIS, server_directories())
    with tempfile.TemporaryDirectory(prefix="cluster-") as home, ExitStack() as stack:
        settings = _settings(
            "cluster-enabled yes",
            f"cluster-node-timeout {NODE_TIMEOUT_MS}",
            f"cluster-require-full-coverage {'yes' if full_coverage else 'no'}",
            "cluster-replica-validity-factor 0",
            "appendonly no",
        )
        servers = []
        for port in _free_ports(count):
            server = Server(program, Path(home) / str(port), port, settings)
            stack.callback(server.stop)
            server.start()
            servers.append(server)
        yield servers


def _join(made: Cluster) -> None:
    for number, server in enumerate(made.primaries):
        first, behind = number * SLOTS // 3, (number + 1) * SLOTS // 3
        server.say("CLUSTER", "ADDSLOTS", *range(first, behind))
    for number, server in enumerate(made.servers):
        server.say("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for server in made.servers[1:]:
        server.say("CLUSTER", "MEET", LOOPBACK, made.servers[0].port)
    count = len(made.servers)

    def all_known(server: Server) -> bool:
        return f"cluster_known_nodes:{count}".encode() in server.say("CLUSTER", "INFO")

    assert waited_for(lambda: all(map(all_known, made.servers)))
    for number, server in enumerate(made.replicas):
        primary = made.node_id(made.primaries[number % 3])
        # It does so as soon as it has heard of the primary from somebody it trusts.
        assert waited_for(lambda server=server, primary=primary: server.say("CLUSTER", "REPLICATE", primary) == b"OK")  # type: ignore[misc]
    assert waited_for(
        lambda: all(replica.info("replication").get("master_link_status") == "up" for replica in made.replicas)
    )
    assert waited_for(made.is_ok)
    ports = {server.port for server in made.primaries}
    for server in made.servers:  # each of them tells the whole map
        assert waited_for(lambda server=server: {entry[2][1] for entry in server.say("CLUSTER", "SLOTS")} == ports)  # type: ignore[misc]


@dataclass
class Watched:
    """A primary and its replicas, and the Sentinels that watch them."""

    nodes: list[Server]
    sentinels: list[Server]

    @property
    def url(self) -> str:
        hosts = ",".join(f"{LOOPBACK}:{server.port}" for server in self.sentinels)
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}"

    @property
    def primary(self) -> Server:
        """Who is the primary, as the Sentinels that are alive tell it."""
        teller = next(server for server in self.sentinels if server.is_alive)
        _, port = teller.say("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.nodes if server.port == int(port))

    def is_settled(self) -> bool:
        """Whether every node that is alive agrees with the Sentinels on who is the primary, and follows it."""
        primary = self.primary
        for server in self.nodes:
            if server.is_alive:
                facts = server.info("replication")
                if server is primary:
                    if facts["role"] != "master":
                        return False
                elif (
                    facts["role"] != "slave"
                    or facts["master_link_status"] != "up"
                    or facts["master_port"] != primary.port
                ):
                    return False
        return True

    def is_ready(self) -> bool:
        """Whether every Sentinel sees all nodes and all Sentinels at work: only then can there be a failover."""
        for server in self.sentinels:
            for question, count in (("REPLICAS", len(self.nodes) - 1), ("SENTINELS", len(self.sentinels) - 1)):
                found = [_facts(entry) for entry in server.say("SENTINEL", question, SERVICE)]
                if len(found) != count or any("down" in facts["flags"] for facts in found):
                    return False
                if question == "REPLICAS" and any(facts["master-link-status"] != "ok" for facts in found):
                    return False
            (primary,) = (_facts(entry) for entry in server.say("SENTINEL", "MASTERS"))
            if primary["flags"] != "master" or int(primary["port"]) != self.primary.port:
                return False
        return True


def _facts(entry: Sequence[bytes]) -> dict[str, str]:
    words = [word.decode() for word in entry]
    return dict(zip(words[::2], words[1::2], strict=True))


@contextmanager
def watched_primary(*, sentinels: int = 3) -> Iterator[Watched]:
    """Start a primary, a replica and Sentinels; all of it is gone in the end."""
    program = find_program(REDIS, server_directories())
    with tempfile.TemporaryDirectory(prefix="sentinel-") as home, ExitStack() as stack:
        ports = _free_ports(2 + sentinels)
        primary = Server(program, Path(home) / "primary", ports[0], _settings("appendonly no"))
        replica = Server(
            program, Path(home) / "replica", ports[1], _settings("appendonly no", f"replicaof {LOOPBACK} {ports[0]}")
        )
        watch = [
            f"sentinel monitor {SERVICE} {LOOPBACK} {ports[0]} {sentinels // 2 + 1}",
            f"sentinel auth-pass {SERVICE} {PASSWORD}",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        watchers = [
            Server(program, Path(home) / f"sentinel{port}", port, watch, is_sentinel=True) for port in ports[2:]
        ]
        made = Watched([primary, replica], watchers)
        for server in (primary, replica, *watchers):
            stack.callback(server.stop)
            server.start()
        assert waited_for(made.is_ready)
        assert waited_for(made.is_settled)
        yield made
