"""Fixtures for real servers. A missing server is a failure, not a skip."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, settings
from lost_messages import LostMessageError, note_loss
from servers import PrivateServers, database_server, describe, redis_server

from contract_engine.embedded import EmbeddedServers

# A shell ignores Ctrl-C for what it runs in the background, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The programs that tests start would compile the package anew each time, which takes longer than what most of them do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What the shell names is somebody's: the tests have servers of their own.
for name in list(os.environ):
    is_named = name in ("DATABASE_URL", "ENVIRONMENT", "OPENAI_API_KEY")
    if is_named or name.startswith(("CONTRACT_MEMORY_", "MEMORY_", "POSTGRES_", "REDIS_")):
        del os.environ[name]

# No test goes by the clock of a machine that others may be using, so neither do the examples of one.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

MOST_SHOWN = 1500
"""Characters of a failure that are shown before the run has ended."""


def pytest_report_header() -> list[str]:
    promtool = shutil.which("promtool") or "none: the rules of deploy/ are parsed, and NOT evaluated"
    return [describe(), f"promtool: {promtool}"]


class FailuresAtOnce:
    """Names a failure in a line of its own when it happens: a run of an hour need not end before one reads of it."""

    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._plugins.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = (str(report.longrepr) if crash is None else crash.message)[:MOST_SHOWN]
            terminal.write_line(f"\n-- failed at {report.when}: {report.nodeid}\n   {reason}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(FailuresAtOnce(config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo is not None and call.excinfo.errisinstance(LostMessageError):
        note_loss(item.config.rootpath, item.nodeid)
    return report


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The Redis all tests of this worker share: no FLUSHALL, no settings; use ``tenant`` to stay apart."""
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """The migrated PostgreSQL all tests of this worker share; ``postgresql://``."""
    with database_server() as url:
        yield url


@pytest.fixture
def tenant() -> str:
    """A tenant no other test has."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def private_servers() -> Iterator[PrivateServers]:
    """A factory of servers that belong to this test alone."""
    with ExitStack() as stack:

        def start(*, redis: bool = True, postgres: bool = True, migrate: bool = True) -> EmbeddedServers:
            servers = EmbeddedServers(redis=redis, postgres=postgres, migrate=migrate, durable=False)
            return stack.enter_context(servers)

        yield start
