"""The faults of the soak: a seeded plan, and what carries it out and proves each one.

What Redis alone holds must not be wiped: a message that was acknowledged while PostgreSQL is away lives in the unlogged
list of its session until it is drained, and that is what was promised of it. So a fault that empties Redis looks for
such lists first, in the same step in which it does its damage (a script, or with all writing clients paused), and when
there are any it does not happen: it is counted as withheld. Single keys are damaged except those lists. Eviction is by
``volatile-lru``: those lists have no deadline, so Redis never evicts them under that policy. Redis may be killed with
its file kept at any moment, which is why that file is written with ``appendfsync no``: every command is written before
it is answered. Under ``everysec`` the write itself, not only the fsync, may wait for as long as a disk is busy, and a
message would be acknowledged before it.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
from server_faults import NoFaultError, ServerFaults

PATIENCE = 20.0
"""Seconds that a Redis is given to become full in, on a machine that others use too."""

FLUSH_UNLESS_UNLOGGED = "if #redis.call('KEYS', '*:unlogged') > 0 then return 0 end redis.call('FLUSHALL') return 1"

DAMAGE_UNLESS_UNLOGGED = """
local done = 0
for i = 1, tonumber(ARGV[2]) do
  local key = redis.call('RANDOMKEY')
  if key and not string.find(key, ':unlogged$') then
    redis.call('DEL', key)
    if ARGV[1] == 'type' then redis.call('HSET', key, 'field', 'value') end
    done = done + 1
  end
end
return done
"""


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault to come: after ``pause`` seconds, for ``seconds``; ``within`` happens while it lasts."""

    kind: str
    pause: float
    seconds: float
    within: str = ""


@dataclass(slots=True)
class Happened:
    """A fault that was caused, with the proof."""

    kind: str
    at: float
    evidence: str


BRIEF = (
    "redis flushed",
    "keys deleted",
    "keys of another type",
    "scripts flushed",
    "clients killed",
    "backends terminated",
)
LASTING = (
    "redis killed, file kept",
    "redis killed, file lost",
    "redis stopped",
    "postgres stopped",
    "postgres killed",
    "redis evicting",
    "redis full",
    "postgres away for one worker",
    "redis away for one worker",
)
WORKER_KILLED = "worker killed"
WITHIN_AN_OUTAGE = (
    "",
    "redis killed, file kept",
    "redis stopped",
    "redis away for one worker",
    "keys deleted",
    "clients killed",
    "scripts flushed",
)
KINDS = (*BRIEF, *LASTING, WORKER_KILLED)


def plan(seed: int, *, pace: float = 1.0) -> Iterator[Planned]:
    """Yield faults for ever: all kinds in a random order, then all again in another. ``pace`` stretches the pauses."""
    dice = random.Random(seed)
    while True:
        round_of_all = list(KINDS)
        dice.shuffle(round_of_all)
        for kind in round_of_all:
            within = dice.choice(WITHIN_AN_OUTAGE) if kind.startswith("postgres") else ""
            yield Planned(kind, dice.uniform(0.3, 2.2) * pace, dice.uniform(0.3, 2.5) * pace, within)


@dataclass
class Injector:
    """Carries out a plan on two servers of its own.

    ``kill_worker`` ends one of the processes under load; ``cut_off`` takes a server from one of them alone, and
    returns what gives it back and answers how many of its calls had to do without.
    """

    faults: ServerFaults
    kill_worker: Callable[[], str]
    cut_off: Callable[[str], Callable[[], int]]
    sleep: Callable[[float], None] = time.sleep
    happened: list[Happened] = field(default_factory=list)
    withheld: Counter[str] = field(default_factory=Counter)

    def cause(self, planned: Planned) -> None:
        """Let one fault happen, last and end; servers are well again when this returns."""
        brief: dict[str, Callable[[], str]] = {
            "redis flushed": self._flush,
            "keys deleted": lambda: self._damage("delete"),
            "keys of another type": lambda: self._damage("type"),
            "scripts flushed": self._flush_scripts,
            "clients killed": self._kill_clients,
            "backends terminated": lambda: self._counted(self.faults.terminate_backends(), "backends"),
            WORKER_KILLED: self.kill_worker,
        }
        lasting: dict[str, Callable[[Planned], str]] = {
            "redis killed, file kept": self._kill_redis,
            "redis killed, file lost": self._kill_redis_for_good,
            "redis stopped": self._stop_redis,
            "postgres stopped": self._stop_database,
            "postgres killed": self._kill_database,
            "redis evicting": lambda fault: self._starve(fault, "volatile-lru"),
            "redis full": lambda fault: self._starve(fault, "noeviction"),
            "postgres away for one worker": lambda fault: self._cut_off(fault, "postgres"),
            "redis away for one worker": lambda fault: self._cut_off(fault, "redis"),
        }
        at = time.monotonic()
        do = brief.get(planned.kind)
        evidence = do() if do is not None else lasting[planned.kind](planned)
        if evidence:
            self.happened.append(Happened(planned.kind, at, evidence))
        else:
            self.withheld[planned.kind] += 1

    def heal(self) -> None:
        """Have everything running and unlimited, whatever happened."""
        self.faults.go_on()
        self.faults.restart_redis()
        self.faults.restart_database()
        self.faults.write_before_answering()
        self._limit(0, "noeviction")

    def unlogged(self) -> int:
        """Return how many sessions have messages that Redis alone holds."""
        with self.faults.redis() as client:
            return len(list(client.scan_iter(match="*:unlogged", count=1000)))

    # -- brief

    def _flush(self) -> str:
        with self.faults.redis() as client:
            keys = client.dbsize()
            done = client.eval(FLUSH_UNLESS_UNLOGGED, 0)
        return f"{keys} keys" if done else ""

    def _damage(self, how: str) -> str:
        with self.faults.redis() as client:
            done = client.eval(DAMAGE_UNLESS_UNLOGGED, 0, how, 12)
        return f"{done} keys" if done else ""

    def _flush_scripts(self) -> str:
        with self.faults.redis() as client:
            known = client.info("memory")["number_of_cached_scripts"]
            client.script_flush()
        return self._counted(known, "scripts")

    def _kill_clients(self) -> str:
        with self.faults.redis() as client:
            return self._counted(client.client_kill_filter(_type="normal", skipme=True), "clients")

    @staticmethod
    def _counted(count: Any, what: str) -> str:
        return f"{count} {what}" if count else ""

    # -- lasting

    def _kill_redis(self, fault: Planned) -> str:
        pid = self.faults.kill_redis()
        self.sleep(fault.seconds)
        self.faults.restart_redis()
        self.faults.write_before_answering()
        with self.faults.redis() as client:
            return f"pid {pid}; {client.dbsize()} keys came back"

    def _kill_redis_for_good(self, fault: Planned) -> str:
        directory = self.faults.redis_directory()
        with self.faults.redis() as client:
            client.execute_command("CLIENT", "PAUSE", 10_000, "WRITE")
            if self.unlogged():
                client.execute_command("CLIENT", "UNPAUSE")
                return ""
            pid = self.faults.kill_redis()
        self.faults.lose_files(directory)
        self.sleep(fault.seconds)
        self.faults.restart_redis()
        self.faults.write_before_answering()
        return f"pid {pid}; its files deleted"

    def _stop_redis(self, fault: Planned) -> str:
        self.faults.stop_redis()
        self.sleep(fault.seconds)
        self.faults.go_on()
        return f"{fault.seconds:.1f} s"

    def _stop_database(self, fault: Planned) -> str:
        count = self.faults.stop_database()
        return f"{count} processes" + self._meanwhile(fault, self.faults.go_on)

    def _kill_database(self, fault: Planned) -> str:
        count = len(self.faults.kill_database())
        return f"{count} processes" + self._meanwhile(fault, self.faults.restart_database)

    def _cut_off(self, fault: Planned, server: str) -> str:
        give_back = self.cut_off(server)
        calls: list[int] = []
        while_away = self._meanwhile(fault, lambda: calls.append(give_back()))
        if not calls[0]:
            raise NoFaultError(f"nobody missed {server}")
        return f"{calls[0]} calls without it{while_away}"

    def _meanwhile(self, fault: Planned, end: Callable[[], None]) -> str:
        """Let the outage of PostgreSQL last, with another fault in its middle."""
        self.sleep(fault.seconds / 2)
        if fault.within == "redis stopped":
            # Ended together with the outage: what was stopped goes on at once.
            self.faults.stop_redis()
            self.sleep(fault.seconds / 2)
            self.faults.go_on()
        elif fault.within:
            self.cause(Planned(fault.within, 0.0, fault.seconds / 4))
            self.sleep(fault.seconds / 2)
        end()
        return f", with {fault.within}" if fault.within else ""

    def _starve(self, fault: Planned, policy: str) -> str:
        """Leave Redis less memory than it uses; proven by what it evicted, or refused to a client of our own."""
        what = "refusals" if policy == "noeviction" else "keys evicted"
        evicted, refused, count = self._evicted(), 0, 0
        end = time.monotonic() + fault.seconds
        missing = 50_000
        try:
            while time.monotonic() < end or (not count and time.monotonic() < end + PATIENCE):
                used = self.faults.stats("memory")["used_memory"]
                self._limit(max(used - missing, 500_000), policy)
                is_full = self._is_full()
                refused += is_full
                self.sleep(0.2)
                count = refused if policy == "noeviction" else self._evicted() - evicted
                if not count:
                    missing *= 2  # part of what it uses, as the buffer of its file, does not count for the limit
                if not count and is_full:  # and has nothing to evict: let it have something first
                    self._limit(0, policy)
                    self.sleep(0.2)
        finally:
            self._limit(0, "noeviction")
        if not count:
            raise NoFaultError(f"{policy}: no {what}")
        return f"{count} {what}"

    def _evicted(self) -> int:
        return int(self.faults.stats()["evicted_keys"])

    def _is_full(self) -> bool:
        with self.faults.redis() as client:
            try:
                client.set("probe", "x", ex=1)
            except redis.OutOfMemoryError:
                return True
        return False

    def _limit(self, size: int, policy: str) -> None:
        with self.faults.redis() as client:
            client.config_set("maxmemory-policy", policy)
            client.config_set("maxmemory", size)


def counts_of(happened: Sequence[Happened]) -> dict[str, int]:
    """Return how often each kind happened, in the order of the kinds."""
    counts = Counter(one.kind for one in happened)
    return {kind: counts[kind] for kind in KINDS}
