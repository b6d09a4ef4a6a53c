"""What is written down runs: the code of the API documentation, of the README, and the names both promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contract_engine.memory import MemoryManager, PostgresSessionStore, memory_manager

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "docs" / "api.md"
README = ROOT / "README.md"
SUMMARIES = ROOT / "docs" / "summaries.md"


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, redis_url: str, database_url: str, tenant: str) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("CONTRACT_MEMORY_TENANT", tenant)


def test_the_page_about_summaries_shows_what_is_written_now() -> None:
    """Where it fails, ``python benchmarks/summaries_page.py`` brings the page up to date."""
    script = ROOT / "benchmarks" / "summaries_page.py"
    assert subprocess.run([sys.executable, str(script), "--check"], check=False).returncode == 0
    page = SUMMARIES.read_text("utf-8")
    assert page.count("```text") == 7
    assert not re.search(r"^[A-Z]{4,}$", page, re.MULTILINE), "something is still to be filled in"


@pytest.mark.usefixtures("environment")
def test_the_python_of_the_api_documentation_runs_as_written() -> None:
    """In one namespace, top to bottom, as a reader would; the few settings written as a bare dict are checked too."""
    blocks = python_blocks(API)
    assert len(blocks) >= 12
    names: dict[str, Any] = {}
    made: list[Any] = []
    try:
        for block in blocks:
            exec(compile(block, str(API), "exec"), names)  # the point of the test
            made += names.values()
        assert names["result"] is True
        assert names["stats"]["is_redis_available"] is True
        assert names["context"]["buffer_messages"]
        names["handle_user_message"]("session_456", "hello")
        assert names["memory_manager"].get_context("session_456")["message_count"] >= 1
        enhanced = names["enhanced"] = names["EnhancedSessionStore"]()
        enhanced.add_chat_message("session_789", {"role": "user", "content": "both"})
        assert enhanced.legacy_store.get_chat_history("session_789")
        names["redis_operation"]()
    finally:
        for value in [*made, *vars(names.get("enhanced", object)).values()]:
            if isinstance(value, MemoryManager | PostgresSessionStore):
                value.close()
        # The manager of the process has read this test's environment: let the next one read its own.
        memory_manager.__dict__.clear()
        memory_manager.__init__()  # type: ignore[misc]  # as if imported afresh


@pytest.mark.usefixtures("environment")
def test_the_python_of_the_readme_runs_as_written() -> None:
    blocks = python_blocks(README)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-W", "error", "-c", block], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_api_documentation_names_only_what_exists() -> None:
    from contract_engine import memory

    text = API.read_text("utf-8")
    owners = {
        "MemoryManager": memory.MemoryManager,
        "BufferStore": memory.BufferStore,
        "SummaryStore": memory.SummaryStore,
        "TokenCounter": memory.TokenCounter,
    }
    found = 0
    for section in re.split(r"^### ", text, flags=re.MULTILINE):
        owner = owners.get(section.partition("\n")[0].strip())
        for method in re.findall(r"^#### `(\w+)\(", section, re.MULTILINE):
            assert owner is not None
            assert callable(getattr(owner, method)), f"{owner.__name__}.{method}"
            found += 1
    assert found >= 22


def test_the_page_of_guarantees_names_tests_that_are_there() -> None:
    named = set(re.findall(r"`((?:faults/)?test_\w+\.py)`", (ROOT / "docs" / "guarantees.md").read_text("utf-8")))
    assert len(named) > 25
    assert not [name for name in named if not (ROOT / "tests" / name).is_file()]
