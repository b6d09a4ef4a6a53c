"""The bars of an import and a comparison, on a terminal: they count what is done, and leave standard output alone."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest
from legacy_tables import Older, said

pytest_plugins = ("legacy_fixtures",)

SESSIONS, EACH = 5, 30


def watched(older: Older, *arguments: str) -> tuple[int, Any, str]:
    """Run a command with standard error on a terminal; answers its exit code, its JSON, and what the terminal got."""
    given = ["--legacy-url", older.url, "--table", older.table, "--database-url", older.url, "--json"]
    given += ["--redis-url", older.config.redis_url, "--tenant", older.config.tenant]
    terminal, other_end = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "contract_engine.cli", *arguments, *given],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=other_end, env=environment,
    ) as process:  # fmt: skip
        os.close(other_end)
        shown = b""
        while True:
            try:
                part = os.read(terminal, 65536)
            except OSError as exc:  # Linux says so where nobody holds the other end any more
                if exc.errno != errno.EIO:
                    raise
                break
            if not part:
                break
            shown += part
        os.close(terminal)
        assert process.stdout is not None
        out = process.stdout.read()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode("utf-8"))
    return process.returncode, json.loads(out), plain


def counts(shown: str, total: int, counted: str) -> list[int]:
    """Return the different figures of a bar, as they came."""
    return list(dict.fromkeys(int(done) for done in re.findall(rf"(\d+)/{total} {counted}", shown)))


@pytest.fixture
def filled(older: Older) -> Older:
    for number in range(SESSIONS):
        older.fill(f"order-{number}", [said(place) for place in range(EACH)])
    return older


def test_an_import_and_a_comparison_show_how_far_they_are(filled: Older) -> None:
    total = SESSIONS * EACH
    # Both differ in each session, so that it takes its time: it looks again before it tells.
    code, answer, shown = watched(filled, "parity")
    assert (code, len(answer["differences"])) == (1, SESSIONS)
    seen = counts(shown, SESSIONS, "sessions")
    assert seen == sorted(seen)
    assert len(seen) >= 3, shown
    assert "order-1" in shown
    code, answer, shown = watched(filled, "backfill", "--rate", str(EACH))
    assert (code, answer["imported"]) == (0, total)
    seen = counts(shown, total, "messages")
    assert seen == sorted(seen)
    assert len(set(seen) - {0, total}) >= 2, shown
    assert set(seen) <= set(range(0, total + 1, EACH))
    assert all(f"order-{number}" in shown for number in (1, 2, 3))


def test_nobody_watches_no_bar(filled: Older) -> None:
    given = ["--legacy-url", filled.url, "--table", filled.table, "--database-url", filled.url]
    given += ["--redis-url", filled.config.redis_url, "--tenant", filled.config.tenant]
    for name, code in (("parity", 1), ("backfill", 0)):
        done = subprocess.run(
            [sys.executable, "-m", "contract_engine.cli", name, *given],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        (notice,) = done.stderr.splitlines()  # which servers these are
        assert "\x1b" not in notice
