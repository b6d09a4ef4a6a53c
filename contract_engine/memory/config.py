"""Settings: validated when they are made, frozen afterwards, read from the environment in one place."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from contract_engine.memory.errors import ConfigurationError

HOUR = 3600

GROWTH_MESSAGES = 100
"""From so many folded messages on, the budget of a summary grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """What one session's buffer may hold; the three keys of ``set_session_config``.

    ``summary_trigger_tokens``: a fold is due from here on. ``max_buffer_tokens`` and ``max_buffer_messages``: what
    no context ever exceeds (a single message larger than the token cap stands alone).
    Defaults: 3,000, 4,000 and 30.
    """

    summary_trigger_tokens: int = 3000
    max_buffer_tokens: int = 4000
    max_buffer_messages: int = 30

    def __post_init__(self) -> None:
        for item in fields(self):
            _positive(item.name, getattr(self, item.name))
        if self.summary_trigger_tokens > self.max_buffer_tokens:
            raise ConfigurationError(
                "summary_trigger_tokens",
                f"{self.summary_trigger_tokens} is above max_buffer_tokens ({self.max_buffer_tokens})",
            )

    def with_changes(self, changes: Mapping[str, object]) -> SessionLimits:
        """Return these limits with ``changes`` applied; unknown keys and values out of range are refused.

        A token cap that is lowered below the trigger takes the trigger with it; a trigger that is *set* above the cap
        is refused.
        """
        check_limit_changes(changes)
        values: dict[str, Any] = self.as_dict() | dict(changes)
        if "summary_trigger_tokens" not in changes:
            values["summary_trigger_tokens"] = min(values["summary_trigger_tokens"], values["max_buffer_tokens"])
        return SessionLimits(**values)

    def as_dict(self) -> dict[str, int]:
        """Return the three settings by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def check_limit_changes(changes: object) -> dict[str, int]:
    """Return ``changes`` if they are limits that exist, each in its range; how they fit together is not looked at."""
    if not isinstance(changes, Mapping):
        raise ConfigurationError("config", f"expected a dict, got {type(changes).__name__}")
    for key, value in changes.items():
        if key not in SessionLimits.__dataclass_fields__:
            known = ", ".join(sorted(SessionLimits.__dataclass_fields__))
            raise ConfigurationError(str(key), f"unknown setting; known are {known}")
        _positive(key, value)
    return dict(changes)


@lru_cache(maxsize=1024)
def session_limits(trigger: int, max_tokens: int, max_messages: int) -> SessionLimits:
    """Return the limits with these values; most sessions share theirs, and each read needs them."""
    return SessionLimits(summary_trigger_tokens=trigger, max_buffer_tokens=max_tokens, max_buffer_messages=max_messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """Everything that can be set. Units are in the names; URLs never appear in ``repr``.

    ``database_url=None`` is ephemeral mode: Redis alone keeps the messages, and what Redis loses is lost.
    Then a session expires as a whole, ``buffer_ttl_seconds`` after its last write.

    ``summary_tokens`` is what a summary may have at first, ``max_summary_tokens`` what that grows to
    (:meth:`summary_budget`); a cap below the start is the budget throughout. ``readable_summaries``: whole phrases, for
    summaries that people read too; else notes, of which a budget holds more.

    The breakers of Redis and PostgreSQL open after the same number of failures. The one of PostgreSQL asks again
    sooner: until then acknowledged messages are in Redis alone.
    """

    redis_url: str = field(default="redis://localhost:6379/0", repr=False)
    database_url: str | None = field(default=None, repr=False)
    tenant: str = "default"
    key_prefix: str = "contract"
    limits: SessionLimits = field(default_factory=SessionLimits)
    summary_tokens: int = 800
    max_summary_tokens: int = 1600
    readable_summaries: bool = False
    buffer_ttl_seconds: int = 6 * HOUR
    summary_ttl_seconds: int = 24 * HOUR
    max_message_bytes: int = 1024 * 1024
    model: str = "gpt-4o"
    redis_timeout_seconds: float = 0.5
    redis_pool_size: int = 20
    database_timeout_seconds: float = 5.0
    database_pool_size: int = 20
    breaker_failure_threshold: int = 5
    breaker_recovery_seconds: float = 60.0
    database_breaker_recovery_seconds: float = 5.0
    fold_lease_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in (
            "summary_tokens",
            "max_summary_tokens",
            "buffer_ttl_seconds",
            "summary_ttl_seconds",
            "max_message_bytes",
            "redis_pool_size",
            "database_pool_size",
            "breaker_failure_threshold",
        ):
            _positive(name, getattr(self, name))
        for name in (
            "redis_timeout_seconds",
            "database_timeout_seconds",
            "breaker_recovery_seconds",
            "database_breaker_recovery_seconds",
            "fold_lease_seconds",
        ):
            _positive_seconds(name, getattr(self, name))
        for name in ("redis_url", "tenant", "key_prefix", "model"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ConfigurationError(name, "expected a text that is not empty")
        for name in ("tenant", "key_prefix"):
            _plain(name, getattr(self, name))
        if not isinstance(self.readable_summaries, bool):
            raise ConfigurationError("readable_summaries", f"expected True or False, got {self.readable_summaries!r}")
        if not isinstance(self.limits, SessionLimits):
            raise ConfigurationError("limits", f"expected SessionLimits, got {type(self.limits).__name__}")
        if self.database_url is not None:
            object.__setattr__(self, "database_url", psycopg_url(self.database_url))

    @property
    def is_durable(self) -> bool:
        """Whether a database keeps every message; otherwise Redis alone does (ephemeral mode)."""
        return self.database_url is not None

    def summary_budget(self, folded: int) -> int:
        """Return the tokens that the summary of ``folded`` messages may have.

        ``summary_tokens`` up to 100 messages, from there on ``summary_tokens * sqrt(folded / 100)``, and never above
        ``max_summary_tokens``. By the root, because what is said later repeats more and more of what was said before.
        """
        growth = math.sqrt(max(1, folded / GROWTH_MESSAGES))
        return min(int(self.summary_tokens * growth), self.max_summary_tokens)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: object) -> MemoryConfig:
        """Read the settings from the environment; keyword arguments win over it.

        Addresses: ``REDIS_URL``, else ``REDIS_HOST``/``REDIS_PORT``/``REDIS_DB``/``REDIS_PASSWORD``;
        ``DATABASE_URL``, else ``POSTGRES_HOST``/``_PORT``/``_DB``/``_USER``/``_PASSWORD``, else ephemeral mode.
        Every other setting: its name in capitals after ``CONTRACT_MEMORY_`` (``CONTRACT_MEMORY_TENANT``). An unknown
        name with that prefix raises, so that a typing error does not pass for a setting.
        """
        env = os.environ if environ is None else environ
        values: dict[str, object] = {"redis_url": _redis_url(env), "database_url": _database_url(env)}
        limits: dict[str, object] = {}
        converters = _converters()
        for name, raw in env.items():
            if not name.startswith(ENV_PREFIX) or name == HOME_VARIABLE:
                continue
            key = name.removeprefix(ENV_PREFIX).lower()
            if key not in converters:
                raise ConfigurationError(name, f"unknown setting; known are {', '.join(sorted(converters))}")
            try:
                value = converters[key](raw)
            except ValueError as exc:
                raise ConfigurationError(name, f"expected {converters[key].__name__}, got {raw!r}") from exc
            (limits if key in SessionLimits.__dataclass_fields__ else values)[key] = value
        if limits:
            values["limits"] = SessionLimits().with_changes(limits)
        check_settings(overrides)
        return cls(**(values | overrides))  # type: ignore[arg-type]  # checked on construction


ENV_PREFIX = "CONTRACT_MEMORY_"
HOME_VARIABLE = "CONTRACT_MEMORY_HOME"
"""Where the command line keeps the data of its embedded servers; no setting of the library."""


def check_settings(settings: Mapping[str, object]) -> None:
    """Refuse names that are no settings."""
    known = {item.name for item in fields(MemoryConfig)}
    for key in settings:
        if key not in known:
            names = sorted(known | set(SessionLimits.__dataclass_fields__))
            raise ConfigurationError(key, f"unknown setting; known are {', '.join(names)}")


def yes_or_no(text: str) -> bool:
    """Return what a variable that is a switch says."""
    if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(text)
    return text.lower() in ("1", "true", "yes", "on")


def _converters() -> dict[str, Callable[[str], Any]]:
    """Return the settings that have a variable of their own, with the type of each."""
    kinds: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str, "bool": yes_or_no}
    found: dict[str, Callable[[str], Any]] = {}
    for owner in (MemoryConfig, SessionLimits):
        for item in fields(owner):
            if item.name not in ("redis_url", "database_url", "limits"):
                found[item.name] = kinds[str(item.type)]
    return found


def _redis_url(env: Mapping[str, str]) -> str:
    if url := env.get("REDIS_URL"):
        return url
    password = env.get("REDIS_PASSWORD")
    login = f":{quote(password, safe='')}@" if password else ""
    host, port = env.get("REDIS_HOST", "localhost"), env.get("REDIS_PORT", "6379")
    return f"redis://{login}{host}:{port}/{env.get('REDIS_DB', '0')}"


def _database_url(env: Mapping[str, str]) -> str | None:
    if url := env.get("DATABASE_URL"):
        return url
    host = env.get("POSTGRES_HOST")
    if not host:
        return None
    user = quote(env.get("POSTGRES_USER", "postgres"), safe="")
    password = env.get("POSTGRES_PASSWORD")
    login = f"{user}:{quote(password, safe='')}" if password else user
    return f"postgresql://{login}@{host}:{env.get('POSTGRES_PORT', '5432')}/{env.get('POSTGRES_DB', 'postgres')}"


def psycopg_url(url: str) -> str:
    """Return ``url`` in SQLAlchemy's form for psycopg 3; ``postgres://`` and ``postgresql://`` are accepted."""
    if not isinstance(url, str):
        raise ConfigurationError("database_url", f"expected a URL, got {type(url).__name__}")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise ConfigurationError("database_url", f"scheme {scheme!r} is not supported; use postgresql://")
    url = f"postgresql+psycopg://{rest}"
    try:
        make_url(url)
    except (ValueError, ArgumentError) as exc:
        raise ConfigurationError(
            "database_url", "not a URL of the form postgresql://user:password@host:port/name"
        ) from exc
    return url


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ConfigurationError(name, f"expected a whole number from 1 to 2,147,483,647, got {value!r}")


def _positive_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**9:
        raise ConfigurationError(name, f"expected a number of seconds above 0, got {value!r}")


def _plain(name: str, value: str) -> None:
    """Refuse what would break a key: braces (the hash tag), slashes, colons, spaces, control characters."""
    if len(value) > 64 or not all(ch.isascii() and (ch.isalnum() or ch in "._-") for ch in value):
        raise ConfigurationError(name, "expected at most 64 letters, digits, dots, dashes or underscores")
