"""What every command that may take long has: options, and documented exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_contract import Backend, say, talk
from typer.main import get_command
from typer.testing import CliRunner

from contract_engine.cli.app import app

pytest_plugins = ("memory_fixtures",)

WRITING = (
    "purge",
    "erase",
    "import",
    "backfill",
    "relay",
    "drain",
    "resummarize",
    "migrate",
    "replay",
    "clear",
    "export",
)
READING = ("parity",)
QUICK_READING = ("show", "stats", "summaries", "top", "doctor", "metrics", "phase show")
MADE_TO_WRITE = ("demo",)
"""Writes a session of its own, that is gone with it."""


def flat(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("name", [*WRITING, *READING])
def test_the_help_of_a_long_command_tells_how_it_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = CliRunner().invoke(app, [name, "--help"])
    text = flat(shown.output)
    assert "--json" in text
    assert ("--dry-run" in text) == (name in WRITING)
    codes = re.search(r"Exit codes? 0 (.*)", text)
    assert codes, text
    assert re.search(r"\b2 \w+", codes[1])
    assert re.search(r"130 after Ctrl-C, 143 after SIGTERM", text)


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} ")
        else:
            yield prefix + name, command


@pytest.mark.parametrize(("name", "command"), list(commands(get_command(app))))
def test_every_command_is_for_machines_too_and_has_a_dry_run_where_it_writes(name: str, command: Any) -> None:
    options = {parameter.name for parameter in command.params}
    assert "as_json" in options
    assert ("dry_run" in options) == (name not in (*READING, *QUICK_READING, *MADE_TO_WRITE))
    assert name in MADE_TO_WRITE or "xit code" in f"{command.help} {command.epilog}"


def test_a_dry_drain_names_what_waits_and_logs_nothing(blocking: Backend) -> None:
    away = Backend(blocking.colour, blocking.mode, blocking.redis_url, "postgresql://127.0.0.1:1/x", blocking.tenant)
    assert away.open().append("waits", say(1)).durable is False
    away.close()
    assert blocking.database_url is not None
    servers = ["--redis-url", blocking.redis_url, "--database-url", blocking.database_url, "--tenant", blocking.tenant]
    for _ in range(2):
        shown = CliRunner().invoke(app, ["drain", "--dry-run", "--json", *servers])
        assert json.loads(shown.stdout) == {"waiting": ["waits"], "dry_run": True}
    assert "Would log the messages of 1 session." in CliRunner().invoke(app, ["drain", "--dry-run", *servers]).stdout
    done = CliRunner().invoke(app, ["drain", "--json", *servers])
    assert json.loads(done.stdout)["sessions"] == {"waits": 1}


def test_a_dry_replay_checks_what_a_replay_would_and_sends_nothing(blocking: Backend, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps({"id": name, "messages": talk(4)}) + "\n" for name in ("a", "b")), "utf-8")
    assert blocking.database_url is not None
    servers = ["--redis-url", blocking.redis_url, "--database-url", blocking.database_url, "--tenant", blocking.tenant]
    command = ["replay", str(file), "--dry-run", *servers]
    manager = blocking.open()
    for _ in range(2):
        shown = CliRunner().invoke(app, [*command, "--json"])
        assert json.loads(shown.stdout) == {"conversations": 2, "messages": 8, "cleared": [], "dry_run": True}
    assert "Would replay 8 messages of 2 conversations." in CliRunner().invoke(app, command).stdout
    assert manager.retention.session_ids() == []
    manager.add_message("b", say(1))
    refused = CliRunner().invoke(app, command)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "'b' already hold messages: give --replace" in refused.stderr
    shown = CliRunner().invoke(app, [*command, "--replace"])
    assert shown.stdout == "Would replay 8 messages of 2 conversations, and clear 1 session first.\n"
    assert manager.get_context("b")["buffer_messages"] == [say(1)]
    file.write_text("no JSON\n", "utf-8")
    assert CliRunner().invoke(app, command).exit_code == 2
