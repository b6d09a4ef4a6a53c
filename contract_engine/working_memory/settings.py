"""Settings of managers and wrappers, checked when they are made."""

from __future__ import annotations

import math
from typing import TypeVar

from contract_engine.memory.errors import ConfigurationError

T = TypeVar("T")


def check_count(name: str, value: object, *, least: int, most: int) -> int:
    """Return a whole number within its bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigurationError(name, f"expected a whole number from {least:,} to {most:,}, got {value!r}")
    return value


def check_seconds(name: str, value: object) -> float:
    """Return a number of seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigurationError(name, f"expected a number of seconds, 0 or more, got {value!r}")
    return value


def check_timeout(name: str, value: object) -> float:
    """Return how many seconds to wait: more than 0, and less than a day, which no socket or lock refuses."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 86_400:
        raise ConfigurationError(name, f"expected a number of seconds above 0 and below 86,400, got {value!r}")
    return value


def check_function(name: str, value: T) -> T:
    """Return what can be called."""
    if not callable(value):
        raise ConfigurationError(name, f"expected a function, got {type(value).__name__}")
    return value
