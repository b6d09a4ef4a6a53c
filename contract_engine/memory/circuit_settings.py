"""What a circuit breaker may be set to, and which exceptions it counts."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Mapping
from typing import Any, cast

from contract_engine.memory.errors import CircuitOpenError, ConfigurationError

RANGES: dict[str, tuple[type, float, float]] = {
    "failure_threshold": (int, 1, 1e9),
    "recovery_timeout": (float, 0, 1e9),
    "minimum_calls": (int, 1, 1e9),
    "half_open_permits": (int, 1, 1e9),
    "backoff": (float, 1, 1e9),
    "jitter": (float, 0, 1),
    "failure_rate": (float, 1e-6, 1),
    "window_size": (int, 1, 1e9),
    "window_seconds": (float, 1e-3, 1e9),
    "slow_call_seconds": (float, 0, 1e9),
    "slow_call_rate": (float, 1e-6, 1),
    "half_open_max_seconds": (float, 1e-3, 1e9),
    "max_recovery_timeout": (float, 0, 1e9),
}
"""The kind of each number, and from where to where it goes."""

OPTIONAL = {
    "failure_rate",
    "window_size",
    "window_seconds",
    "slow_call_seconds",
    "slow_call_rate",
    "half_open_max_seconds",
    "max_recovery_timeout",
}

GIVEN_UP = (asyncio.CancelledError, concurrent.futures.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)
NEVER_COUNTED = (*GIVEN_UP, CircuitOpenError)
"""What says nothing about the server, whatever ``counts`` holds: the caller gave up, or the call was never tried."""


def check_settings(**settings: object) -> dict[str, object]:
    """Refuse a number out of its range, with :class:`ConfigurationError`; None will do where it may be left out."""
    for field, value in settings.items():
        if value is None and field in OPTIONAL:
            continue
        kind, least, most = RANGES[field]
        numbers = int if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, numbers) or not least <= value <= most:
            raise ConfigurationError(field, f"expected {kind.__name__} from {least:g} to {most:g}, got {value!r}")
    return settings


def check_together(settings: Mapping[str, Any]) -> None:
    """Refuse numbers that do not go together, each of them in its range."""
    if (settings["slow_call_seconds"] is None) != (settings["slow_call_rate"] is None):
        raise ConfigurationError("slow_call_rate", "goes together with slow_call_seconds")
    has_size, has_seconds = settings["window_size"] is not None, settings["window_seconds"] is not None
    if has_size and has_seconds:
        raise ConfigurationError("window_size", "cannot be combined with window_seconds")
    has_rate = settings["failure_rate"] is not None or settings["slow_call_rate"] is not None
    if (has_size or has_seconds) != has_rate:
        raise ConfigurationError("window_size", "a window goes together with a failure_rate or slow_call_rate")
    first, longest = settings["recovery_timeout"], settings["max_recovery_timeout"]
    if longest is not None and longest < first:
        raise ConfigurationError("max_recovery_timeout", f"expected at least {first:g}")


def classifier(counts: object) -> Callable[[BaseException], bool]:
    """Return the function that says which exceptions are failures; those of :data:`NEVER_COUNTED` are none."""
    types = counts if isinstance(counts, tuple) else (counts,)
    if all(isinstance(item, type) and issubclass(item, BaseException) for item in types):
        return lambda exc: isinstance(exc, types) and not isinstance(exc, NEVER_COUNTED)
    if isinstance(counts, tuple | type) or not callable(counts):
        raise ConfigurationError("counts", "expected exception types or a function of an exception")
    judge = cast("Callable[[BaseException], bool]", counts)
    return lambda exc: not isinstance(exc, NEVER_COUNTED) and judge(exc)
