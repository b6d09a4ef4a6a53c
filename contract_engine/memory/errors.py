"""What can go wrong, one class per thing a caller may want to handle differently.

Bad input is a ``ValueError`` too; an unreachable server is a ``ConnectionError`` too: code that knows nothing
of this package still catches what it expects. No message text ever carries message content or credentials.
"""

from __future__ import annotations

from typing import Any


class MemoryServiceError(Exception):
    """Root of everything this package raises on purpose. It goes from one process to another as what it is."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Have pickle put it in place as it stands: it would call a class with the text alone."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[MemoryServiceError], args: tuple[Any, ...], state: dict[str, Any]) -> MemoryServiceError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidInputError(MemoryServiceError, ValueError):
    """An argument was refused before anything was written; ``field`` names it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class SerializationError(InvalidInputError):
    """A value cannot be stored and come back equal."""


class ConfigurationError(InvalidInputError):
    """A setting is missing, unknown or out of range."""


class MessageConflictError(InvalidInputError):
    """A message id was sent again with other content: a retry must repeat the message exactly."""

    def __init__(self, message_id: str) -> None:
        super().__init__("message_id", f"{message_id!r} is already used in this session for another message")
        self.message_id = message_id


class SessionExistsError(InvalidInputError):
    """An archive holds a session of which there is one already: it was left alone. ``session_id`` names it."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            "existing", f"there is a session {session_id!r} already, and it was left alone; give 'replace' or 'skip'"
        )
        self.session_id = session_id


class PackageTooLargeError(InvalidInputError):
    """What a package must hold costs ``needed`` tokens, and ``max_tokens`` is less."""

    def __init__(self, needed: int, max_tokens: int) -> None:
        super().__init__("max_tokens", f"{max_tokens} is too little: {needed} are needed for what has to stay")
        self.needed = needed
        self.max_tokens = max_tokens


class StoreUnavailableError(MemoryServiceError, ConnectionError):
    """A server could not do the work now. Nothing was acknowledged; the same call may be sent again."""

    store = "store"

    def __init__(self, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{self.store} unavailable: {reason}" + (f" ({hint})" if hint else ""))
        self.reason = reason


class RedisUnavailableError(StoreUnavailableError):
    """Redis did not answer, or answered that it cannot serve."""

    store = "redis"


class DatabaseUnavailableError(StoreUnavailableError):
    """PostgreSQL did not answer, or answered that it cannot serve."""

    store = "postgres"


class LegacyUnavailableError(StoreUnavailableError):
    """The legacy store raised, or is not asked because it keeps raising; ``is_tried``: whether it was asked at all.

    ``reason`` is the class of what it raised: its text may hold anything, and stands in ``__cause__`` alone.
    """

    store = "legacy store"

    def __init__(self, reason: str, *, is_tried: bool, hint: str = "") -> None:
        super().__init__(reason, hint=hint)
        self.is_tried = is_tried


class LegacyCircuitOpenError(LegacyUnavailableError):
    """The circuit breaker in front of the legacy store rejected the call; ``retry_after`` is in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("circuit breaker open", is_tried=False, hint=f"retry in {retry_after:.1f} s")
        self.retry_after = retry_after


class PoolExhaustedError(StoreUnavailableError):
    """Every pooled connection stayed busy for as long as the caller may wait; says nothing about the server."""

    store = "connection pool"


class DeadlineExceededError(DatabaseUnavailableError):
    """The database did not answer within the deadline; whether the statement took effect is unknown."""


class CircuitOpenError(RedisUnavailableError):
    """The circuit breaker rejected the call without trying it."""

    reason = "circuit breaker open"

    # Of a name and the seconds. It is made on every call while a server is away, and reads them when somebody asks.
    __init__ = Exception.__init__

    @property
    def name(self) -> str:
        """The breaker."""
        return str(self.args[0])

    @property
    def retry_after(self) -> float:
        """Seconds until it is worth asking again."""
        return float(self.args[1])

    def __str__(self) -> str:
        return f"Circuit breaker is OPEN for {self.name!r}: retry in {self.retry_after:.1f} s"


class DatabaseCircuitOpenError(DatabaseUnavailableError):
    """The circuit breaker in front of PostgreSQL rejected the call without trying it; ``retry_after`` is in seconds."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__("circuit breaker open", hint=f"retry in {retry_after:.1f} s")
        self.name = name
        self.retry_after = retry_after


class StoreMisconfiguredError(MemoryServiceError):
    """A server answered, but refuses us for a reason that waiting does not cure (password, permission, schema)."""

    def __init__(self, store: str, reason: str, *, hint: str) -> None:
        super().__init__(f"{store}: {reason}; {hint}")
        self.store = store
        self.reason = reason


class ModelUnavailableError(MemoryServiceError, ConnectionError):
    """A language model gave no answer that could be looked at.

    ``kind``: ``timeout`` of a request, ``deadline`` of all of them, ``connection``, ``rate_limited``, ``server_error``,
    ``cut_stream``, ``invalid_answer``, ``too_large``, ``content`` (a filter refuses these messages, or they are more
    than the model reads: fewer may pass), or ``configuration`` (key, address, name of the model, a parameter: waiting
    does not cure it).
    ``retry_after``: the seconds the server asks to wait, None where it does not say.
    """

    def __init__(self, kind: str, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"model: {kind}: {reason}")
        self.kind = kind
        self.reason = reason
        self.retry_after = retry_after

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed a moment later."""
        return self.kind not in ("configuration", "content", "too_large")


class CorruptDataError(MemoryServiceError):
    """Bytes under our own keys are not ours; readers treat them as absent and rebuild them."""


class ContentionError(MemoryServiceError):
    """A session changed, or was held by somebody, under every attempt; send the call again."""

    def __init__(self, session_id: str, attempts: int, happened: str = "changed") -> None:
        super().__init__(f"session {session_id!r} {happened} during each of {attempts} attempts; send the call again")
        self.session_id = session_id
