"""Tests for a module that runs them on a Cluster: some of their parameters, where all of them take long."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import pytest


def thinned(test: Callable[..., Any], **chosen: Collection[object]) -> Callable[..., Any]:
    """Return a test with the parameters chosen here, which must be some of its own; each by its name."""
    left = dict(chosen)

    @functools.wraps(test)
    def narrowed(**given: Any) -> Any:
        return test(**given)

    marks: list[pytest.Mark] = []
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize" and mark.args[0] in left:
            name, values, *rest = mark.args
            kept = [value for value in values if value in left[name]]
            assert len(kept) == len(left.pop(name)), f"{test.__name__} has no such {name}"
            marks.append(pytest.Mark("parametrize", (name, kept, *rest), mark.kwargs, _ispytest=True))
        else:
            marks.append(mark)
    assert not left, f"{test.__name__} has no parameters {sorted(left)}"
    narrowed.pytestmark = marks  # type: ignore[attr-defined]  # what pytest reads
    return narrowed
