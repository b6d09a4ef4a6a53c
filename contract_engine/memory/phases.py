"""How far a tenant has moved from a legacy store, and which of the two stores answers for a session."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import NamedTuple

from contract_engine.memory.errors import InvalidInputError


class Phase(StrEnum):
    """In each of them both stores are written; they differ in who answers reads.

    COEXISTENCE: the legacy store. GRADUAL: the new one for a percentage of the sessions, the legacy store for the rest.
    FULL: the new one; the legacy store is a backup.
    """

    COEXISTENCE = "coexistence"
    GRADUAL = "gradual"
    FULL = "full"


class PhaseSetting(NamedTuple):
    """A phase, and the percentage of sessions that the new store serves while it is GRADUAL: 0 to 100."""

    phase: Phase
    percentage: float

    def serves_new(self, session_id: str) -> bool:
        """Whether the new store answers for this session: stable, and kept by every larger percentage."""
        if self.phase is Phase.GRADUAL:
            return bucket(session_id) < self.percentage
        return self.phase is Phase.FULL


def bucket(session_id: str) -> float:
    """Return where a session stands between 0 and 100: always the same, and evenly spread."""
    digest = hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100


def check_phase(phase: object, percentage: object = None) -> PhaseSetting:
    """Return a phase given by name or value; GRADUAL needs a percentage, and the others take none."""
    try:
        checked = Phase(str(phase).lower())
    except ValueError:
        known = ", ".join(Phase)
        raise InvalidInputError("phase", f"{phase!r} is none; known are {known}") from None
    if checked is not Phase.GRADUAL:
        if percentage is not None:
            raise InvalidInputError("percentage", f"goes with phase gradual, not with {checked}")
        return PhaseSetting(checked, 100.0 if checked is Phase.FULL else 0.0)
    if isinstance(percentage, bool) or not isinstance(percentage, int | float) or not 0 <= percentage <= 100:
        raise InvalidInputError("percentage", f"expected a number from 0 to 100 with phase gradual, got {percentage!r}")
    return PhaseSetting(checked, float(percentage))
