"""What every error of the drivers means; one that a new version brings fails here until somebody decides."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import psycopg.errors
import pytest
import redis
import redis.exceptions

from contract_engine.memory import DatabaseUnavailableError, StoreMisconfiguredError, StoreUnavailableError
from contract_engine.memory._runtime.failures import (
    AlreadyStoredError,
    database_failure,
    database_failure_counts,
    redis_failure,
)
from contract_engine.memory.errors import (
    DatabaseCircuitOpenError,
    DeadlineExceededError,
    PoolExhaustedError,
    RedisUnavailableError,
)

OUTAGE = "the server cannot serve: counted by the breaker"
BUSY = "says nothing about the server: not counted"
REFUSED = "waiting does not cure it: not counted"
FOREIGN = "not raised by what this package does"

CLASSES = {
    "AskError": REFUSED,
    "AuthenticationError": REFUSED,
    "AuthenticationWrongNumberOfArgsError": REFUSED,
    "AuthorizationError": REFUSED,
    "BusyLoadingError": OUTAGE,
    "ChildDeadlockedError": FOREIGN,
    "ClusterCrossSlotError": REFUSED,
    "ClusterDownError": OUTAGE,
    "ClusterError": REFUSED,
    "ConnectionError": OUTAGE,
    "CrossSlotTransactionError": FOREIGN,
    "DataError": REFUSED,
    "EventException": FOREIGN,
    "ExecAbortError": REFUSED,
    "ExternalAuthProviderError": REFUSED,
    "HttpError": FOREIGN,
    "IncorrectPolicyType": FOREIGN,
    "InitialHealthCheckFailedError": FOREIGN,
    "InvalidPipelineStack": FOREIGN,
    "InvalidResponse": OUTAGE,
    "InvalidTokenSchemaErr": FOREIGN,
    "LockError": REFUSED,
    "LockNotOwnedError": REFUSED,
    "MasterDownError": OUTAGE,
    "MasterNotFoundError": OUTAGE,
    "MaxConnectionsError": BUSY,
    "ModuleError": REFUSED,
    "MovedError": REFUSED,
    "NoPermissionError": REFUSED,
    "NoScriptError": REFUSED,
    "NoSuchFieldsetError": REFUSED,
    "NoValidDatabaseException": FOREIGN,
    "OutOfMemoryError": OUTAGE,
    "PubSubError": REFUSED,
    "ReadOnlyError": OUTAGE,
    "RedisClusterException": OUTAGE,
    "RedisError": REFUSED,
    "ReplicaNotFoundError": OUTAGE,
    "RequestTokenErr": FOREIGN,
    "ResponseError": REFUSED,
    "SlaveNotFoundError": OUTAGE,
    "SlotNotCoveredError": OUTAGE,
    "TemporaryUnavailableException": FOREIGN,
    "TimeoutError": OUTAGE,
    "TokenRenewalErr": FOREIGN,
    "TryAgainError": OUTAGE,
    "UnhealthyDatabaseException": FOREIGN,
    "WatchError": REFUSED,
}

BESIDE_REDIS_ERROR = ("RedisClusterException", "SlotNotCoveredError")
"""Those that redis-py's own Cluster client raises, and that are translated although they are no ``RedisError``."""


def classes() -> dict[str, type[Exception]]:
    """Return the errors of every module of redis-py that can be imported, by module and name."""
    found: dict[str, type[Exception]] = {}
    for info in pkgutil.walk_packages(redis.__path__, "redis."):
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError:  # it needs a package that redis-py does not depend on
            continue
        for _, item in inspect.getmembers(module, inspect.isclass):
            if issubclass(item, Exception) and item.__module__.startswith("redis."):
                found[f"{item.__module__}.{item.__name__}"] = item
    return found


def instance(kind: type[Exception]) -> Exception:
    for arguments in (("boom",), ("1 127.0.0.1:1",), ("boom", 1), ("boom", None, ValueError())):
        try:
            return kind(*arguments)
        except (TypeError, ValueError):
            continue
    raise AssertionError(f"{kind.__name__}: say here how one is made")


CLASSES_OF_REDIS = classes()


@pytest.mark.parametrize("name", sorted(CLASSES_OF_REDIS))
def test_each_class_of_redis(name: str) -> None:
    kind = CLASSES_OF_REDIS[name]
    bare = kind.__name__
    assert bare in CLASSES, f"redis-py has a new error, {name}: decide in failures.py what it means, and say so here"
    error: Any = instance(kind)
    meaning = CLASSES[bare]
    if meaning is FOREIGN:
        assert not isinstance(error, redis.exceptions.RedisError)
        return
    assert isinstance(error, redis.exceptions.RedisError) == (bare not in BESIDE_REDIS_ERROR)
    ours, counted = redis_failure(error)
    assert counted == (meaning is OUTAGE)
    kinds = {OUTAGE: RedisUnavailableError, BUSY: PoolExhaustedError, REFUSED: StoreMisconfiguredError}
    assert type(ours) is kinds[meaning]
    assert isinstance(ours, StoreUnavailableError) == (meaning is not REFUSED)


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("ERR Error running script: @user_script: 1: -OOM command not allowed when used memory > 'maxmemory'.", True),
        ("MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk.", True),
        ("LOADING Redis is loading the dataset in memory", True),
        ("READONLY You can't write against a read only replica.", True),
        ("BUSY Redis is busy running a script.", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("CLUSTERDOWN Hash slot not served", True),
        ("NOPERM this user has no permissions", False),
        ("ERR unknown command", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
    ],
)
def test_a_script_passes_the_servers_words_on(text: str, *, counted: bool) -> None:
    assert redis_failure(redis.exceptions.ResponseError(text))[1] is counted


STATES = {
    "08006": OUTAGE,
    "25006": OUTAGE,
    "26000": None,
    "28P01": REFUSED,
    "3D000": REFUSED,
    "40001": BUSY,
    "40P01": BUSY,
    "42501": REFUSED,
    "42703": REFUSED,
    "42P01": REFUSED,
    "53100": OUTAGE,
    "53200": OUTAGE,
    "53300": OUTAGE,
    "55006": OUTAGE,
    "57014": OUTAGE,
    "57P01": OUTAGE,
    "57P03": OUTAGE,
    "58030": OUTAGE,
    "XX000": OUTAGE,
    "22021": None,
    "42601": None,
}


@pytest.mark.parametrize("state", STATES)
def test_each_kind_of_sqlstate(state: str) -> None:
    ours = database_failure(psycopg.errors.lookup(state)("boom"))
    meaning = STATES[state]
    if meaning is None:
        assert ours is None, "a fault in this package is seen as it is"
    elif meaning is REFUSED:
        assert type(ours) is StoreMisconfiguredError
        assert not database_failure_counts(ours)
    else:
        assert isinstance(ours, DatabaseUnavailableError)
        assert database_failure_counts(ours) == (meaning is OUTAGE)


def test_what_the_breaker_of_the_database_does_not_count() -> None:
    assert database_failure_counts(DeadlineExceededError("no answer within 1 s"))
    assert not database_failure_counts(PoolExhaustedError("no free database connection"))
    assert not database_failure_counts(AlreadyStoredError("message id already stored"))
    assert str(DatabaseCircuitOpenError("postgres", 1.25)).endswith("(retry in 1.2 s)")
