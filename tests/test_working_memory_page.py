"""The page about working memory: its example runs, and it names what there is."""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

from test_documents import python_blocks

import contract_engine.working_memory as package
from contract_engine.memory import errors

PAGE = Path(__file__).resolve().parents[1] / "docs" / "working_memory.md"


def test_the_example_runs_as_written() -> None:
    (block,) = python_blocks(PAGE)
    names: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), names)  # the point of the test
    assert names["memory"].working_memory == "prefers long answers"
    assert names["earlier"]["content"] == "prefers short answers"
    assert names["restored"].working_memory == "prefers short answers"


def test_every_name_of_the_page_is_there_and_every_wrapper_is_on_the_page() -> None:
    text = PAGE.read_text("utf-8")
    for name in set(re.findall(r"`(\w+(?:Error|Manager|Strategy))\b", text)):
        assert any(hasattr(place, name) for place in (package, errors, builtins)), name
    for wrapper in ("TTLStrategy", "Compressed", "Encrypted", "Versioned", "Retrying", "Audited"):
        assert f"`{wrapper}(manager" in text
        assert wrapper in package.__all__
        assert f"Async{wrapper}" in package.__all__
    assert len(text.splitlines()) <= 150
