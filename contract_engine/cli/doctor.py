"""Is everything there that the promises of this package need? Each answer with what to do next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from contract_engine import schema
from contract_engine.cli.nodes import Node, Nodes, find_nodes
from contract_engine.cli.probes import CALL_SECONDS, DatabaseFacts, RedisFacts, database_facts, redis_facts, within
from contract_engine.cli.servers import database_address, redis_address
from contract_engine.cli.wording import counted
from contract_engine.memory import MemoryConfig, MemoryManager, MemoryServiceError, TokenCounter
from contract_engine.memory._runtime.redis_topology import SLOTS
from contract_engine.memory.encodings import load_encoding
from contract_engine.memory.errors import CorruptDataError, DeadlineExceededError
from contract_engine.memory.health import OUTBOX, UNLOGGED, CheckState, HealthReport

CHECK_SECONDS = 8.0
"""The hard end of each check; a server that does not answer costs two to four seconds of it."""

REDIS_HINT = "start it, or correct --redis-url or REDIS_URL"
OLDEST_REDIS = (6, 2)
OLDEST_POSTGRES = 14


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


EXIT_CODES = {State.OK: 0, State.WARN: 1, State.FAIL: 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check; ``hint`` says what to do next, and is empty where nothing is to be done."""

    check: str
    state: State
    detail: str
    hint: str = ""


def health(config: MemoryConfig) -> HealthReport:
    """Return the report that a manager with these settings gives of itself, within a second."""
    with MemoryManager(config=config) as manager:
        return manager.health()


def examine(config: MemoryConfig) -> Iterator[Finding]:
    """Run every check, one after the other; what a server that is away cannot tell is not reported."""
    yield from redis_findings(config)
    yield from database_findings(config)
    yield from unlogged_findings(config)
    yield token_finding(config)


def outbox_findings(report: HealthReport) -> Iterator[Finding]:
    """Tell how far a legacy store is behind, where the tenant has one."""
    check = report.check(OUTBOX)
    if check is None:
        return
    if check.state is CheckState.OK:
        yield Finding(OUTBOX, State.OK, check.detail)
    else:
        hint = "see what it fails with: `contract-memory relay --list`; when that is cured, `relay --retry`"
        yield Finding(OUTBOX, State.WARN, check.detail, hint)


def worst(findings: Sequence[Finding]) -> State:
    """Return the state that decides the exit code."""
    return max((finding.state for finding in findings), key=EXIT_CODES.__getitem__, default=State.OK)


def redis_findings(config: MemoryConfig) -> Iterator[Finding]:
    """Check every Redis there is: reachable, writable, new enough; eviction and persistence as the mode needs them.

    What is the same of all primaries of a Cluster is told once, anything else under the name of its server.
    """
    address = redis_address(config.redis_url)
    try:
        found = within(CHECK_SECONDS, lambda: find_nodes(config.redis_url, timeout_seconds=CALL_SECONDS))
    except MemoryServiceError as exc:
        yield Finding("redis", State.FAIL, f"{address}: {exc}", REDIS_HINT)
        return
    nodes = found.nodes
    if len(nodes) > 1 or found.unserved_slots:
        yield _slots(found)
    per_node = {node: list(_node_findings(node, node.name or address, config)) for node in nodes}
    for finding in dict.fromkeys(finding for findings in per_node.values() for finding in findings):
        at = [node.name for node, findings in per_node.items() if finding in findings]
        if len(at) == len(nodes) or finding.check == "redis":
            yield finding
        else:
            yield replace(finding, detail=f"{', '.join(at)}: {finding.detail}")


def _node_findings(node: Node, address: str, config: MemoryConfig) -> Iterator[Finding]:
    try:
        facts = within(CHECK_SECONDS, lambda: redis_facts(node.url))
    except MemoryServiceError as exc:
        yield Finding("redis", State.FAIL, f"{address}: {exc}", REDIS_HINT)
        return
    if facts.role == "master":
        yield Finding("redis", State.OK, f"{address} answers and runs scripts")
    else:
        yield Finding(
            "redis", State.FAIL, f"{address} is a replica: it refuses writes", "give the address of its primary"
        )
    yield _redis_version(facts)
    yield _eviction(facts, is_durable=config.is_durable)
    yield _persistence(facts, is_durable=config.is_durable)


def unlogged_findings(config: MemoryConfig) -> Iterator[Finding]:
    """Tell what waits in Redis to be logged, whoever wrote it; nothing where a server is away or there is no log."""
    if not config.is_durable:
        return
    with MemoryManager(config=config) as manager:
        try:
            count = len(within(CHECK_SECONDS, manager.unlogged_sessions))
        except DeadlineExceededError:
            hint = "ask again with more time: `contract-memory drain --dry-run`"
            yield Finding(UNLOGGED, State.WARN, f"Redis was not looked through within {CHECK_SECONDS:g} s", hint)
            return
        except MemoryServiceError:
            return
    if count:
        detail = f"messages of {counted(count, 'session')} of tenant {config.tenant} are in Redis alone"
        yield Finding(UNLOGGED, State.WARN, detail, "when PostgreSQL answers, log them: `contract-memory drain`")
    else:
        yield Finding(UNLOGGED, State.OK, f"nothing of tenant {config.tenant} waits to be logged")


def database_findings(config: MemoryConfig) -> Iterator[Finding]:
    """Check PostgreSQL: reachable, writable, new enough, migrated, and keeping what it has committed."""
    url = config.database_url
    if url is None:
        yield Finding("postgres", State.OK, "not configured: ephemeral mode, Redis alone keeps the messages")
        return
    address = database_address(url)
    try:
        facts = within(CHECK_SECONDS, lambda: database_facts(url))
    except MemoryServiceError as exc:
        hint = "start it, or correct --database-url or DATABASE_URL"
        yield Finding("postgres", State.FAIL, f"{address}: {exc}", hint)
        return
    if facts.is_standby:
        yield Finding(
            "postgres", State.FAIL, f"{address} is a standby: it refuses writes", "give the primary's address"
        )
    else:
        yield Finding("postgres", State.OK, f"{address} answers")
    yield _database_version(facts)
    yield _schema(facts)
    yield _commits(facts)


def token_finding(config: MemoryConfig) -> Finding:
    """Check that tokens are counted exactly, with no network: the shipped encoding loads and is the published one."""
    name = TokenCounter(config.model).encoding_name
    started = time.monotonic()
    try:
        load_encoding(name)
    except (ImportError, OSError, CorruptDataError) as exc:
        hint = "install the package again; until then token counts are estimates"
        return Finding("tokens", State.WARN, f"{name} does not load: {exc}", hint)
    seconds = time.monotonic() - started
    return Finding("tokens", State.OK, f"{name} for {config.model}: loaded offline in {seconds:.1f} s, hash verified")


def _slots(found: Nodes) -> Finding:
    if not found.unserved_slots:
        return Finding("redis cluster", State.OK, f"{len(found.nodes)} primaries serve all slots")
    detail = f"{found.unserved_slots:,} of {SLOTS:,} slots are served by nobody, nor are the sessions in them"
    return Finding("redis cluster", State.FAIL, detail, "bring the missing nodes back, or `redis-cli --cluster fix`")


def _redis_version(facts: RedisFacts) -> Finding:
    # Valkey began at 7.2, so its own numbers pass the same test.
    numbers = tuple(int(part) for part in facts.version.split(".")[:2] if part.isdecimal())
    if numbers >= OLDEST_REDIS:
        return Finding("redis version", State.OK, f"{facts.server} {facts.version}")
    return Finding("redis version", State.FAIL, f"{facts.server} {facts.version}", "upgrade to Redis 6.2 or newer")


def _eviction(facts: RedisFacts, *, is_durable: bool) -> Finding:
    """Every key of ours has a time to live, so the volatile policies evict it just as the allkeys ones do."""
    check, policy = "redis memory", facts.policy
    if not facts.maxmemory:
        return Finding(check, State.OK, f"no limit set, so nothing is evicted (policy {policy})")
    limit = f"limit {facts.maxmemory / 2**20:,.1f} MiB, policy {policy}"
    if policy == "noeviction":
        if is_durable:
            detail = f"{limit}: when it is full, calls go on from PostgreSQL, slower and marked degraded"
            return Finding(
                check, State.WARN, detail, "CONFIG SET maxmemory-policy allkeys-lru: the log keeps everything"
            )
        return Finding(check, State.OK, f"{limit}: when it is full, new messages are refused, none is lost")
    if is_durable:
        return Finding(check, State.OK, f"{limit}: what it evicts is read again from PostgreSQL")
    detail = f"{limit}: acknowledged messages can be evicted, and nothing else keeps them"
    return Finding(check, State.WARN, detail, "CONFIG SET maxmemory-policy noeviction, or configure a database")


def _persistence(facts: RedisFacts, *, is_durable: bool) -> Finding:
    check = "redis persistence"
    if is_durable:
        return Finding(check, State.OK, "not needed: PostgreSQL keeps every acknowledged message")
    if facts.appendonly and facts.appendfsync != "no":
        window = {"always": "nothing", "everysec": "at most a second"}.get(facts.appendfsync or "", "little")
        return Finding(check, State.OK, f"append-only file, a crash loses {window}")
    hint = "CONFIG SET appendonly yes, or configure a database"
    if facts.appendonly:
        return Finding(check, State.WARN, "append-only file with appendfsync no: a crash loses half a minute", hint)
    if facts.save:
        return Finding(
            check, State.WARN, f"snapshots alone ({facts.save}): a crash loses what came after the last", hint
        )
    if facts.save is None:
        return Finding(check, State.WARN, "no append-only file, and the server does not tell of snapshots", hint)
    return Finding(check, State.WARN, "none: a restart of Redis loses every session", hint)


def _database_version(facts: DatabaseFacts) -> Finding:
    detail = f"PostgreSQL {facts.version}"
    if facts.version_number >= OLDEST_POSTGRES * 10000:
        return Finding("postgres version", State.OK, detail)
    hint = f"upgrade: this package is tested from PostgreSQL {OLDEST_POSTGRES} on"
    return Finding("postgres version", State.WARN, detail, hint)


def _schema(facts: DatabaseFacts) -> Finding:
    needed = schema.head()
    if facts.revision == needed:
        return Finding("schema", State.OK, f"at {needed}, as this version needs")
    if facts.revision is None:
        return Finding("schema", State.FAIL, "the tables are missing", "run `contract-memory migrate`")
    detail = f"at {facts.revision}, this version needs {needed}"
    return Finding(
        "schema", State.FAIL, detail, "run `contract-memory migrate`; if that is unknown here, upgrade the package"
    )


def _commits(facts: DatabaseFacts) -> Finding:
    detail = ", ".join(f"{name} {value}" for name, value in facts.settings.items())
    off = [name for name, value in facts.settings.items() if value == "off"]
    if not off:
        return Finding("postgres commits", State.OK, detail)
    hint = f"set {' and '.join(off)} to on: a power cut or crash may lose acknowledged messages"
    return Finding("postgres commits", State.WARN, detail, hint)
