"""The orchestrator's own state object, kept beside the conversation and returned as it was saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from contract_engine.memory.errors import InvalidInputError

STATES = frozenset(
    {
        "start",
        "search",
        "refine_constraints",
        "collect_preferences",
        "match_preferences",
        "confirm_purchase",
        "completed",
        "cancelled",
        "failed",
    }
)


def _now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass(kw_only=True)
class SwisperContext:
    """State of one purchase contract.

    Two generations are in use: in the older one ``preferences`` is a dict and ``constraints`` a list, in the newer one
    it is the other way round. Both are kept as they are given. Fields this class does not know are kept in ``extra``,
    can be read as attributes, and are written back by :meth:`to_dict`. Times are ISO 8601 texts in UTC.
    """

    session_id: str
    contract_type: str | None = None
    current_state: str = "start"
    step_log: list[Any] = field(default_factory=list)
    product_query: str | None = None
    enhanced_query: str | None = None
    preferences: dict[str, Any] | list[Any] = field(default_factory=dict)
    constraints: list[Any] | dict[str, Any] = field(default_factory=list)
    search_results: list[Any] = field(default_factory=list)
    selected_product: dict[str, Any] | None = None
    created_at: str = field(default_factory=_now)
    updated_at: str = field(default_factory=_now)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        session_id: object = self.session_id
        if not isinstance(session_id, str) or not session_id:
            raise InvalidInputError("session_id", "a context needs the id of its session")
        state: object = self.current_state
        if not isinstance(state, str) or state not in STATES:
            raise InvalidInputError(
                "current_state", f"unknown state {self.current_state!r}; known are {', '.join(sorted(STATES))}"
            )
        for name in ("created_at", "updated_at"):
            value: object = getattr(self, name)
            if isinstance(value, datetime):
                setattr(self, name, value.isoformat())

    def __getattr__(self, name: str) -> Any:
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SwisperContext:
        """Build a context from what :meth:`to_dict` gave; a missing session id or an unknown state is refused."""
        if not isinstance(data, Mapping):
            raise InvalidInputError("context", f"expected a dict, got {type(data).__name__}")
        if "session_id" not in data:
            raise InvalidInputError("session_id", "a context needs the id of its session")
        known = {item.name for item in fields(cls)} - {"extra"}
        values = {str(key): value for key, value in data.items()}
        extra = {key: value for key, value in values.items() if key not in known}
        return cls(**{key: value for key, value in values.items() if key in known}, extra=extra)

    @classmethod
    def coerce(cls, context: object) -> SwisperContext:
        """Accept a context, a dict, or an object of another class that can turn itself into a dict."""
        if isinstance(context, cls):
            return context
        if isinstance(context, Mapping):
            return cls.from_dict(context)
        for name in ("to_dict", "model_dump"):
            dump = getattr(context, name, None)
            if callable(dump):
                return cls.from_dict(dump())
        raise InvalidInputError("context", f"expected a SwisperContext or a dict, got {type(context).__name__}")

    def to_dict(self) -> dict[str, Any]:
        """Return every field, unknown ones included, as a plain dict."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "extra"}
        return self.extra | own

    def update_state(self, new_state: str) -> None:
        """Move to another known state and note the time."""
        if new_state not in STATES:
            raise InvalidInputError("current_state", f"unknown state {new_state!r}")
        self.current_state = new_state
        self.updated_at = _now()
