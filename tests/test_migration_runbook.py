"""The runbook runs as it stands: its commands on real servers, and they print what the page shows."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from legacy_tables import Older, said
from typer.testing import CliRunner

from contract_engine.cli.app import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "migration.md"
SESSIONS = 40
EACH = 25
LONG = 300
"""What the first session has instead."""


class Block(NamedTuple):
    """A block of code under a heading, and what the page shows as its output."""

    heading: str
    language: str
    code: str
    shown: str


def blocks() -> list[Block]:
    found: list[Block] = []
    for section in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE):
        heading = section.partition("\n")[0]
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
            if language == "text":
                assert not found[-1].shown, "two outputs of one block"
                found[-1] = found[-1]._replace(shown=code)
            else:
                found.append(Block(heading, language, code, ""))
    return found


def figures(text: str) -> list[str]:
    """Return the lines of an output without how long a message waits, and how wide a table is."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [re.sub(r"for [\d,]+ s\b", "for some s", line) for line in lines if line]


@pytest.fixture
def older(database_url: str, redis_url: str, tenant: str) -> Iterator[Older]:
    """A database of its own with the original's table, filled."""
    name = f"legacy_{tenant}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    try:
        with ExitStack() as stack:
            url = urlunsplit(urlsplit(database_url)._replace(path=f"/{name}"))
            older = Older(url, redis_url, tenant, stack, table="swisper_sessions")
            for number in range(1, SESSIONS + 1):
                older.fill(f"order-{number}", [said(place) for place in range(LONG if number == 1 else EACH)])
            yield older
    finally:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def environment(older: Older, monkeypatch: pytest.MonkeyPatch, database_url: str, redis_url: str, tenant: str) -> None:
    """What the page supposes."""
    for name, value in {
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "LEGACY_URL": older.url,
        "CONTRACT_MEMORY_TENANT": tenant,
        "COLUMNS": "200",
    }.items():
        monkeypatch.setenv(name, value)


class Program:
    """The program that moves: it writes before each step, and reads what it has written."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._store = names["store"]
        self._number = 0

    def write(self, session_id: str, number: int) -> None:
        for _ in range(number):
            self._number += 1
            before = len(self._store.get_chat_history(session_id))
            assert self._store.add_chat_message(session_id, {"role": "user", "content": f"again {self._number}"})
            assert len(self._store.get_chat_history(session_id)) == before + 1

    def settle(self) -> None:
        assert self._store.settle()

    def wait_until_parked(self) -> None:
        until = time.monotonic() + 60
        while not self._store.backlog().parked:
            assert time.monotonic() < until, "not in time"
            time.sleep(0.05)

    def stop(self) -> None:
        self._store.close()
        self._store.memory_manager.close()
        self._store.legacy_store.close()


def run(block: Block) -> str:
    """Run the commands of a block one after the other; answers what they print. A comment names another code than 0."""
    printed = ""
    for line in block.code.splitlines():
        program, *arguments = shlex.split(os.path.expandvars(line), comments=True)
        assert program == "contract-memory", line
        result = CliRunner().invoke(app, arguments)
        code = re.search(r"# exit code (\d)", line)
        assert result.exit_code == (int(code[1]) if code else 0), (
            f"{block.heading}: {line}\n{result.output}\n{result.exception!r}"
        )
        printed += result.stdout
    return printed


@pytest.mark.usefixtures("environment")
def test_the_runbook_runs_as_written_and_prints_what_it_shows(
    older: Older, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    ran: list[str] = []
    with ExitStack() as stack, ExitStack() as outage:
        for block in blocks():
            if block.language == "python":
                exec(compile(block.code, str(PAGE), "exec"), names)  # the point of the test
                assert len(names["history"]) == EACH + 1
                program = Program(names)
                stack.callback(program.stop)
                program.settle()
                continue
            assert block.language == "sh"
            if block.heading.startswith(("4.", "5.")):
                program.write("order-17", 4)
                program.settle()
            elif block.heading.startswith("When"):
                if ran[-1] != block.heading:
                    outage.enter_context(older.read_only())
                    program.write("order-18", 3)
                    program.wait_until_parked()
                else:
                    outage.close()
                    stack.close()  # no program runs, so that it is the command that relays
            output = figures(run(block))
            shown = figures(block.shown)
            assert block.shown
            assert output[-len(shown) :] == shown, block.heading
            ran.append(block.heading)
    assert len(ran) == 9
    assert (tmp_path / "differences.jsonl").read_text() == ""
    assert len(older.store.get_chat_history("order-17")) == EACH + 1 + 8


def test_the_page_is_short_and_leads_to_the_others() -> None:
    text = PAGE.read_text("utf-8")
    assert len(text.splitlines()) <= 150
    for name, anchor in re.findall(r"\]\(([\w.]+)(?:#([\w-]+))?\)", text):
        other = PAGE.with_name(name).read_text("utf-8")
        assert not anchor or f"## {anchor}" in other.lower()
    assert "migration.md" in PAGE.with_name("backfill.md").read_text("utf-8")
