"""The clock of the circuit breaker's tests, for the modules that name this one in ``pytest_plugins``."""

from __future__ import annotations

import pytest
from breaker_states import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
