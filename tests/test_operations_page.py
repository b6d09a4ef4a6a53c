"""Every command that docs/operations.md names runs as it stands there, on real servers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from legacy_tables import Older, said
from test_migration_runbook import environment, older  # noqa: F401
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.memory import MemoryManager
from contract_engine.memory.migration import EnhancedSessionStore

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operations.md"

# What the page says is shown until somebody ends it is shown once.
ONCE = {"top": ["--once", "--interval", "0.1"], "metrics": ["--once"]}


def commands() -> list[list[str]]:
    """Return the commands in code spans, those broken over two lines too, each once and in the order of the page."""
    found = re.findall(r"`contract-memory ([^`]+)`", PAGE.read_text("utf-8"))
    return [shlex.split(text) for text in dict.fromkeys(" ".join(text.split()) for text in found)]


@pytest.fixture
def manager(redis_url: str, database_url: str, tenant: str) -> Iterator[MemoryManager]:
    with MemoryManager(redis_url=redis_url, database_url=database_url, tenant=tenant) as made:
        yield made


def test_the_page_names_what_operators_need() -> None:
    named = {words[0] for words in commands()}
    assert named >= {"doctor", "metrics", "top", "purge", "erase", "export", "import", "migrate", "drain", "relay"}
    assert len(commands()) >= 14


@pytest.mark.usefixtures("environment")
def test_every_command_of_the_page_runs_as_written(
    manager: MemoryManager,
    older: Older,  # noqa: F811  # the fixture above
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    # A session for each, so that one command may erase what another has exported; the legacy store has them too.
    older.execute("DELETE FROM {table}")
    given = [
        [{"SESSION": f"s{number}", "URL": older.url}.get(word, word) for word in words]
        for number, words in enumerate(commands())
    ]
    with EnhancedSessionStore(manager, older.store) as store:
        for number in range(len(given)):
            for place in range(3):
                assert store.add_chat_message(f"s{number}", said(place))
        assert store.settle()
    ran: list[str] = []
    for words in given:
        if words[0] == "import":
            manager.retention.erase([_exported(given)])
        line: list[str] = [*words, *ONCE.get(words[0], ())]
        result: Any = CliRunner().invoke(app, line, input="y\n")
        # The test's own PostgreSQL may lose what was committed, and doctor says so.
        allowed = {0, 1} if words[0] == "doctor" else {0}
        assert result.exit_code in allowed, f"{' '.join(line)}\n{result.output}\n{result.exception!r}"
        assert result.stdout.strip() or words[0] == "export", line
        if words[0] == "erase":  # from here only, says the page: in the legacy store it is to be erased there
            older.execute("DELETE FROM {table} WHERE session_id = %s", (words[1],))
        ran.append(words[0])
    assert len(ran) == len(commands())
    assert (tmp_path / "FILE").stat().st_size > 0
    assert manager.get_context(_exported(given))["message_count"] == 3, "what was exported is there again"


def _exported(given: list[list[str]]) -> str:
    (export,) = [words for words in given if words[0] == "export"]
    return export[1]
