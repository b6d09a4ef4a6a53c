"""The shell that the tests are run from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOMEBODYS = {
    "REDIS_URL": "redis://production:6379/0",
    "DATABASE_URL": "postgresql://production/contract",
    "POSTGRES_HOST": "production",
    "CONTRACT_MEMORY_TENANT": "theirs",
    "MEMORY_BACKEND": "sql",
    "OPENAI_API_KEY": "theirs",
}


def test_no_test_goes_to_servers_that_the_shell_names() -> None:
    program = f"import conftest, os; print([name for name in {list(SOMEBODYS)} if name in os.environ])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | SOMEBODYS | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
