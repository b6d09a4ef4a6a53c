"""Which failures are never forgiven at a second attempt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lost_messages import NOTES, LostMessageError, nothing_lost

TESTS = """
from lost_messages import nothing_lost

def test_lost():
    with nothing_lost():
        assert [1, 2] == [1, 2, 3]

@nothing_lost()
def test_kept():
    assert [1, 2] == [1, 2]

def test_slow():
    assert 2 < 1

@nothing_lost()
def test_broken():
    raise OSError
"""


def test_a_failure_is_shown_at_once_and_a_lost_message_is_noted(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-n", "2", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / NOTES).read_text() == "test_it.py::test_lost\n"
    at_once, _, _ = done.stdout.partition("= FAILURES =")
    assert "-- failed at call: test_it.py::test_slow\n   assert 2 < 1\n" in at_once


def test_what_was_asserted_is_told() -> None:
    with pytest.raises(LostMessageError, match="of an hour ago"), nothing_lost():
        raise AssertionError("of an hour ago")
