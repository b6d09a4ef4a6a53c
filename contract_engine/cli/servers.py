"""Which servers a command works on: those of the options, of the environment, or a pair of its own.

Where neither options nor environment name a server, Redis and PostgreSQL are started from the machine's programs or the
wheels, on a data directory that stays, so that one command finds what another stored.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from rich.console import Console

from contract_engine.cli.signals import unbroken
from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import MemoryManager
from contract_engine.memory._runtime.redis_topology import deployment
from contract_engine.memory.config import MemoryConfig, psycopg_url
from contract_engine.memory.errors import ConfigurationError
from contract_engine.memory.summarizers import FactsWriter

HOME_VARIABLE = "CONTRACT_MEMORY_HOME"
ADDRESS_VARIABLES = ("REDIS_URL", "REDIS_HOST", "DATABASE_URL", "POSTGRES_HOST")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the options of a command say about servers; None and False leave it to the environment."""

    redis_url: str | None = None
    database_url: str | None = None
    tenant: str | None = None
    ephemeral: bool = False

    def names_a_server(self) -> bool:
        """Whether an option gives an address."""
        return bool(self.redis_url or self.database_url)


@contextmanager
def chosen_servers(
    choice: Choice,
    console: Console,
    *,
    temporary: bool = False,
    only_database: bool = False,
    migrate: bool = True,
    **settings: Any,
) -> Iterator[MemoryConfig]:
    """Yield the settings to work with, and tell ``console`` which servers they mean.

    ``temporary``: a pair that is removed afterwards, whatever the environment says; ``only_database``: no Redis is
    started; ``migrate`` is for started servers alone. ``settings`` are of :class:`MemoryConfig`.
    """
    # The library knows no setting of that name, and refuses names it does not know.
    environ = {name: value for name, value in os.environ.items() if name != HOME_VARIABLE}
    if choice.tenant is not None:
        settings["tenant"] = choice.tenant
    with ExitStack() as stack:
        if choice.names_a_server() or (not temporary and any(environ.get(name) for name in ADDRESS_VARIABLES)):
            if choice.redis_url:
                settings["redis_url"] = choice.redis_url
            if choice.database_url:
                settings["database_url"] = choice.database_url
            origin = "from the options" if choice.names_a_server() else "from the environment"
        else:
            data_dir = None if temporary else data_directory(os.environ, ephemeral=choice.ephemeral)
            origin = "started for this command alone" if data_dir is None else f"started here, data in {data_dir}"
            servers = EmbeddedServers(
                data_dir,
                redis=not only_database,
                postgres=not choice.ephemeral,
                migrate=migrate,
                persist_redis=data_dir is not None,
                durable=data_dir is not None,
            )
            # Whoever is told to end twice would otherwise leave a server behind that was about to be stopped.
            stack.callback(_stop, servers)
            with console.status("starting servers …"):
                servers.start()
            if not only_database:
                settings["redis_url"] = servers.redis_url
            if not choice.ephemeral:
                settings["database_url"] = servers.database_url
        if choice.ephemeral:
            settings["database_url"] = None
        config = MemoryConfig.from_env(environ, **settings)
        console.print(describe(config, origin, only_database=only_database), style="dim", soft_wrap=True)
        yield config


def _stop(servers: EmbeddedServers) -> None:
    with unbroken():
        servers.stop()


@contextmanager
def chosen_manager(
    choice: Choice,
    console: Console,
    *,
    temporary: bool = False,
    facts_writer: FactsWriter | None = None,
    **settings: Any,
) -> Iterator[MemoryManager]:
    """Yield a manager on the :func:`chosen_servers`; it is closed before they are stopped."""
    with (
        chosen_servers(choice, console, temporary=temporary, **settings) as config,
        MemoryManager(config=config, facts_writer=facts_writer) as manager,
    ):
        yield manager


def describe(config: MemoryConfig, origin: str, *, only_database: bool = False) -> str:
    """Say in one line which servers these settings mean."""
    redis = "" if only_database else f"Redis {redis_address(config.redis_url)}"
    database = (
        f"PostgreSQL {database_address(config.database_url)}" if config.database_url else "no database: ephemeral"
    )
    return f"{', '.join(filter(None, (redis, database)))} ({origin}); tenant {config.tenant}"


def redis_address(url: str) -> str:
    """Return host, port and database number, or who leads to them, without credentials; refuse what is no address."""
    if (target := deployment(url)) is not None:
        seeds = ",".join(map(str, target.seeds))
        return f"cluster {seeds}" if target.kind == "cluster" else f"{target.service}{target.path} of sentinels {seeds}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigurationError("redis_url", "is not a URL; expected redis://host:port/0") from exc
    if parts.scheme == "unix":
        return parts.path
    if parts.scheme not in ("redis", "rediss"):
        raise ConfigurationError("redis_url", f"scheme {parts.scheme!r} is not supported; use redis://host:port/0")
    return f"{host or 'localhost'}:{port or 6379}{parts.path.rstrip('/') or '/0'}"


def database_address(url: str) -> str:
    """Return host, port and name of the database, without credentials; refuse what is no address of one."""
    try:
        parts = sa.make_url(psycopg_url(url))
    except (sa.exc.ArgumentError, ValueError) as exc:
        raise ConfigurationError("database_url", "is not a URL; expected postgresql://user:password@host/name") from exc
    return f"{parts.host or 'localhost'}:{parts.port or 5432}/{parts.database or ''}"


def data_directory(environ: Mapping[str, str], *, ephemeral: bool) -> Path:
    """Return where started servers keep their data.

    ``$CONTRACT_MEMORY_HOME``, else ``contract-memory`` in ``$XDG_DATA_HOME`` or ``~/.local/share``. Root's own
    directories are mostly closed to others, and PostgreSQL runs as another user then: ``/var/lib/contract-memory``.
    Where there is no home to write to: ``contract-memory-<uid>`` in the temporary directory. Ephemeral sessions lie
    apart, so that a session of one mode is never taken for one of the other.
    """
    home = _home(environ)
    return home / "ephemeral" if ephemeral else home


def _home(environ: Mapping[str, str]) -> Path:
    if chosen := environ.get(HOME_VARIABLE):
        return Path(os.path.expanduser(chosen))
    places = [Path(os.path.expanduser(environ.get("XDG_DATA_HOME") or "~/.local/share"))]
    if os.geteuid() == 0:
        places.append(Path("/var/lib"))
    for place in places:
        if _is_usable(place):
            return place / "contract-memory"
    return own_directory(Path(tempfile.gettempdir()) / f"contract-memory-{os.getuid()}")


def own_directory(path: Path) -> Path:
    """Make a directory where anyone may have made something of that name; refuse what is not ours alone."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o711)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise ConfigurationError(HOME_VARIABLE, f"is not set, and {path} is not ours to use")
    return path


def _is_usable(place: Path) -> bool:
    """Tell whether we may write below ``place`` and, as root, whether PostgreSQL's user may enter it."""
    if not place.is_absolute():  # no home is known, or a variable is set to what no specification allows
        return False
    existing = next(path for path in (place, *place.parents) if os.path.exists(path))
    if not os.access(existing, os.W_OK | os.X_OK):
        return False
    return os.geteuid() != 0 or all(path.stat().st_mode & 0o001 for path in (existing, *existing.parents))
