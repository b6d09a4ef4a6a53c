"""What a user installs: the wheel holds everything, and works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place / "site"


def run(installed: Path, code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_scripts_encodings_migrations_demo_and_type_marker(installed: Path) -> None:
    package = installed / "contract_engine"
    for name in (
        "memory/lua/append.lua",
        "memory/lua/_header.lua",
        "working_memory/lua/exchange.lua",
        "working_memory/lua/expire.lua",
        "memory/encodings/o200k_base.tiktoken.xz",
        "memory/encodings/cl100k_base.tiktoken.xz",
        "memory/summarizers/common_words.json",
        "migrations/env.py",
        "migrations/versions/0001_memory_tables.py",
        "demo/conversations.jsonl",
        "py.typed",
    ):
        assert (package / name).stat().st_size >= 0, name
    (facts,) = installed.glob("*.dist-info")
    assert list((facts / "licenses").rglob("LICENSE*"))


def test_the_installed_package_migrates_counts_and_remembers(
    installed: Path, redis_url: str, database_url: str, tenant: str
) -> None:
    code = """
import contract_engine
from contract_engine import schema
from contract_engine.memory import MemoryManager
print(contract_engine.__file__)
print(schema.migrations_path())
import os
schema.upgrade(os.environ["DATABASE_URL"])
with MemoryManager() as memory:
    print(memory.add_message("s", {"role": "user", "content": "hello"}), memory.get_context("s")["total_tokens"])
"""
    answer = run(
        installed, code, REDIS_URL=redis_url, DATABASE_URL=database_url, CONTRACT_MEMORY_TENANT=tenant
    ).splitlines()
    assert answer[0] == str(installed / "contract_engine" / "__init__.py")
    assert answer[1] == str(installed / "contract_engine" / "migrations")
    assert answer[2] == "True 5"


def test_the_console_script_is_declared_and_runs(installed: Path) -> None:
    (facts,) = installed.glob("*.dist-info")
    assert "contract-memory = contract_engine.cli:main" in (facts / "entry_points.txt").read_text()
    assert "doctor" in run(
        installed, "import sys; sys.argv = ['contract-memory', '--help']; from contract_engine.cli import main; main()"
    )
