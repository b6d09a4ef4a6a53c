"""The page about working memory: its examples run, and it names what there is."""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

import pytest
from test_documents import python_blocks

import contract_engine.working_memory as package
from contract_engine.memory import errors
from contract_engine.plugins.memory_manager import plugin_interface
from contract_engine.plugins.memory_manager.plugin_interface import MemoryManager
from contract_engine.working_memory.agent import SUCCESS
from contract_engine.working_memory.stored_records import MAX_ATTEMPTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "working_memory.md"


def test_the_examples_run_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    stack, rich, agent = (_run(block) for block in python_blocks(PAGE))
    assert stack["memory"].working_memory == "prefers long answers"
    assert stack["earlier"]["content"] == "prefers short answers"
    assert stack["restored"].working_memory == "prefers short answers"
    assert rich["urgent"].tags == ["health"]
    assert (rich["removed"], rich["left"]) == (100, 1)
    assert capsys.readouterr().out.endswith("100 removed\n")
    assert (agent["status"], agent["memory"]) == ("success", "The user is called Ada.")


def _run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block, str(PAGE), "exec"), names)  # the point of the test
    return names


def test_the_page_says_of_agent_and_plugin_what_they_are() -> None:
    text = PAGE.read_text("utf-8")
    for name in ("store_memory", "retrieve_memory", "extend_memory_ttl", "clear_memory"):
        assert f"`{name}`" in text
        assert callable(getattr(MemoryManager, name))
    assert plugin_interface.__name__ in text
    assert f"`{plugin_interface.KEY_PREFIX}{{conversation_id}}`" in text
    assert f"`{SUCCESS}`" in text


def test_the_page_says_how_often_a_change_is_tried() -> None:
    assert f"each of {MAX_ATTEMPTS} attempts" in PAGE.read_text("utf-8")


def test_every_name_of_the_page_is_there_and_every_wrapper_is_on_the_page() -> None:
    text = PAGE.read_text("utf-8")
    for name in set(re.findall(r"`(\w+(?:Error|Manager|Strategy))\b", text)):
        assert any(hasattr(place, name) for place in (package, errors, builtins, plugin_interface)), name
    for wrapper in ("TTLStrategy", "Compressed", "Encrypted", "Versioned", "Retrying", "Audited"):
        assert f"`{wrapper}(manager" in text
        assert wrapper in package.__all__
        assert f"Async{wrapper}" in package.__all__
    assert len(text.splitlines()) <= 210
