"""What a driver's error means: which of our errors it becomes, and whether the breaker counts it.

Messages name the kind of failure and where it happened, never the statement, its parameters or the server's detail,
which can carry message content.
"""

from __future__ import annotations

import re

import psycopg
import sqlalchemy.exc as sa_exc
from redis import exceptions as redis_exc

from contract_engine.memory.errors import (
    CorruptDataError,
    DatabaseCircuitOpenError,
    DatabaseUnavailableError,
    DeadlineExceededError,
    MemoryServiceError,
    PoolExhaustedError,
    RedisUnavailableError,
    StoreMisconfiguredError,
)

# In the order they are looked at: MaxConnectionsError and AuthenticationError are ConnectionErrors too.
_REDIS_REFUSALS: tuple[type[Exception], ...] = (
    redis_exc.AuthenticationError,
    redis_exc.AuthenticationWrongNumberOfArgsError,
    redis_exc.AuthorizationError,
    redis_exc.NoPermissionError,
    *([redis_exc.ExternalAuthProviderError] if hasattr(redis_exc, "ExternalAuthProviderError") else []),
)
_REDIS_OUTAGES = (
    redis_exc.ConnectionError,
    redis_exc.TimeoutError,
    redis_exc.BusyLoadingError,
    redis_exc.ClusterDownError,
    redis_exc.MasterDownError,
    redis_exc.ReadOnlyError,
    redis_exc.OutOfMemoryError,
    redis_exc.TryAgainError,
    redis_exc.InvalidResponse,
    redis_exc.RedisClusterException,
    redis_exc.SlotNotCoveredError,
)
# Error codes that a script passes on as a plain ResponseError.
_REDIS_OUTAGE_CODES = frozenset(
    {"OOM", "READONLY", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "BUSY", "MISCONF", "TRYAGAIN", "NOREPLICAS"}
)

# Redis 6.2 puts the error of a command in a script behind a sentence: "Error running script (..): ..: -OOM command ..".
_CODE_IN_SCRIPT = re.compile(r"running script.*?-([A-Z]+) ")

# While connecting there is no SQLSTATE, only the server's words.
_ACCESS_REFUSED = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")
_DATABASE_HINT = "check user, password, database and grants in the URL"


class AlreadyStoredError(MemoryServiceError):
    """A message id is in the log already; the flow finds out whether it is the same message."""


def redis_failure(exc: redis_exc.RedisError) -> tuple[MemoryServiceError, bool]:
    """Return our error and whether the breaker counts it."""
    if isinstance(exc, redis_exc.MaxConnectionsError):
        return PoolExhaustedError("no free Redis connection"), False
    if isinstance(exc, _REDIS_REFUSALS):
        return StoreMisconfiguredError(
            "redis", type(exc).__name__, hint="check user, password and ACL in the URL"
        ), False
    if isinstance(exc, _REDIS_OUTAGES):
        return RedisUnavailableError(_kind(exc)), True
    code = str(exc).split(" ", 1)[0]
    if found := _CODE_IN_SCRIPT.search(str(exc)):
        code = found[1]
    if code in _REDIS_OUTAGE_CODES:
        return RedisUnavailableError(code), True
    if code in ("NOAUTH", "WRONGPASS", "NOPERM"):
        return StoreMisconfiguredError("redis", code, hint="check user, password and ACL in the URL"), False
    if code == "WRONGTYPE" or "WRONGTYPE" in str(exc)[:200]:
        return CorruptDataError("a key of ours holds another type"), False
    return StoreMisconfiguredError("redis", f"{type(exc).__name__} {code}", hint="Redis 6.2 or newer is needed"), False


def database_failure(exc: Exception) -> MemoryServiceError | None:
    """Return our error, or None where the failure is a fault in this package and should be seen as it is."""
    if isinstance(exc, sa_exc.TimeoutError):
        return PoolExhaustedError("no free database connection")
    if isinstance(exc, sa_exc.DBAPIError) and isinstance(exc.orig, Exception):
        exc = exc.orig
    if not isinstance(exc, psycopg.Error):
        return None
    state = exc.sqlstate
    if state is None:
        if isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError):
            if any(words in str(exc) for words in _ACCESS_REFUSED):
                return StoreMisconfiguredError("postgres", "access refused", hint=_DATABASE_HINT)
            return DatabaseUnavailableError(_kind(exc))
        return None
    if state == "23505" and exc.diag.constraint_name == "memory_messages_message_id":
        return AlreadyStoredError("message id already stored")
    if state == "57014":
        return DeadlineExceededError("statement cancelled")
    if state in ("42P01", "42703"):
        return StoreMisconfiguredError("postgres", "tables are missing or old", hint="run `contract-memory migrate`")
    if state.startswith("28") or state in ("42501", "3D000"):
        return StoreMisconfiguredError("postgres", f"access refused ({state})", hint=_DATABASE_HINT)
    if state[:2] in ("08", "53", "57", "40", "55", "58", "25", "XX"):
        return DatabaseUnavailableError(f"SQLSTATE {state}")
    return None


def database_failure_counts(error: MemoryServiceError) -> bool:
    """Whether the breaker in front of PostgreSQL counts one of our errors.

    A deadlock or a failed serialization (class 40) is between two sessions: the server is well.
    """
    if not isinstance(error, DatabaseUnavailableError) or isinstance(error, DatabaseCircuitOpenError):
        return False
    return not error.reason.startswith("SQLSTATE 40")


def _kind(exc: BaseException) -> str:
    """Return the class and the first line of a connection error, which names host and reason and nothing else."""
    first_line = str(exc).partition("\n")[0].strip()
    return f"{type(exc).__name__}: {first_line}"[:200] if first_line else type(exc).__name__
