"""The orchestrator's context object, in both generations."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from contract_engine.memory import InvalidInputError, SwisperContext
from contract_engine.memory.swisper_context import STATES


def test_the_documented_defaults() -> None:
    context = SwisperContext(session_id="s")
    assert context.current_state == "start"
    assert context.contract_type is None
    assert context.product_query is None
    assert (context.step_log, context.preferences, context.constraints) == ([], {}, [])
    created = datetime.fromisoformat(context.created_at)
    assert abs((datetime.now(UTC) - created).total_seconds()) < 60
    assert SwisperContext(session_id="t").step_log is not context.step_log


def test_the_documented_states() -> None:
    assert set(STATES) == {
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
    for state in STATES:
        assert SwisperContext(session_id="s", current_state=state).current_state == state


OLDER: dict[str, Any] = {
    "session_id": "s",
    "contract_type": "purchase_item",
    "current_state": "collect_preferences",
    "step_log": ["start", {"step": "search"}],
    "product_query": "laptop",
    "preferences": {"brand": "any"},
    "constraints": ["price < 1000"],
    "created_at": "2024-01-01T00:00:00+00:00",
    "updated_at": "2024-01-02T00:00:00+00:00",
}
NEWER: dict[str, Any] = OLDER | {"preferences": ["quiet", "light"], "constraints": {"price": {"max": 1000}}}


@pytest.mark.parametrize("data", [OLDER, NEWER], ids=["older", "newer"])
def test_both_generations_are_kept_as_they_are(data: dict[str, Any]) -> None:
    context = SwisperContext.from_dict(data)
    assert context.preferences == data["preferences"]
    assert context.constraints == data["constraints"]
    assert context.to_dict().items() >= data.items()
    assert SwisperContext.from_dict(context.to_dict()) == context


def test_unknown_fields_are_kept_and_readable() -> None:
    data = OLDER | {"colour": "red", "extra": {"deep": [1]}, "class": 7}
    context = SwisperContext.from_dict(data)
    assert context.colour == "red"
    assert context.to_dict().items() >= data.items()
    assert SwisperContext.from_dict(context.to_dict()).to_dict() == context.to_dict()
    with pytest.raises(AttributeError):
        _ = context.shape


def test_copies_keep_everything() -> None:
    context = SwisperContext.from_dict(OLDER | {"colour": "red"})
    for again in (copy.copy(context), copy.deepcopy(context), pickle.loads(pickle.dumps(context))):
        assert again == context
        assert again.colour == "red"


def test_from_dict_does_not_touch_what_it_is_given() -> None:
    data = OLDER | {"colour": "red"}
    before = copy.deepcopy(data)
    SwisperContext.from_dict(data)
    assert data == before


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "session_id"),
        ({"current_state": "start"}, "session_id"),
        ({"session_id": ""}, "session_id"),
        ({"session_id": None}, "session_id"),
        ({"session_id": 7}, "session_id"),
        ({"session_id": "s", "current_state": "unknown"}, "current_state"),
        ({"session_id": "s", "current_state": None}, "current_state"),
        ({"session_id": "s", "current_state": ["start"]}, "current_state"),
        ([], "context"),
        (None, "context"),
        ("text", "context"),
    ],
    ids=repr,
)
def test_what_is_refused(data: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SwisperContext.from_dict(data)
    assert caught.value.field == field


def test_datetimes_become_texts() -> None:
    moment = datetime(2024, 1, 2, 3, 4, tzinfo=UTC)
    context = SwisperContext.from_dict({"session_id": "s", "created_at": moment, "updated_at": moment})
    assert context.created_at == context.updated_at == "2024-01-02T03:04:00+00:00"


def test_moving_to_another_state() -> None:
    context = SwisperContext.from_dict(OLDER)
    context.update_state("completed")
    assert context.current_state == "completed"
    assert context.updated_at > OLDER["updated_at"]
    assert context.created_at == OLDER["created_at"]
    with pytest.raises(InvalidInputError):
        context.update_state("nowhere")
    assert context.current_state == "completed"


class Dumps:
    """Stands for the pydantic model of the orchestrator."""

    def model_dump(self) -> dict[str, Any]:
        return NEWER


class TurnsIntoDict:
    def to_dict(self) -> dict[str, Any]:
        return OLDER


def test_contexts_of_other_classes_are_taken() -> None:
    assert SwisperContext.coerce(Dumps()).preferences == ["quiet", "light"]
    assert SwisperContext.coerce(TurnsIntoDict()).preferences == {"brand": "any"}
    assert SwisperContext.coerce(OLDER).session_id == "s"
    own = SwisperContext(session_id="s")
    assert SwisperContext.coerce(own) is own
    for other in (None, 7, "text", object()):
        with pytest.raises(InvalidInputError) as caught:
            SwisperContext.coerce(other)
        assert caught.value.field == "context"
