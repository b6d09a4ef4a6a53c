"""``contract-memory top``: how servers and applications are doing, again and again until somebody ends it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.live import Live

from contract_engine.cli import display
from contract_engine.cli.frame_view import frame_view
from contract_engine.cli.frames import Course, Frame
from contract_engine.cli.options import AsJson, DatabaseUrl, Ephemeral, RedisUrl, Tenant
from contract_engine.cli.readings import LOOK_SECONDS, ApplicationReader, DatabaseReader, RedisReader, Watched
from contract_engine.cli.samples import ApplicationReading, Away
from contract_engine.cli.servers import Choice, chosen_servers, database_address, redis_address
from contract_engine.cli.signals import end_once
from contract_engine.memory import ConfigurationError, MemoryConfig

DEFAULT_METRICS = "http://127.0.0.1:9464/metrics"


class Lookout:
    """Looks at the servers of ``config`` and at applications, all at once, and makes frames of what they say.

    Without ``metrics`` the default address is tried, and passed over while nobody answers there.
    """

    def __init__(self, config: MemoryConfig, metrics: Sequence[str]) -> None:
        has_parser = find_spec("prometheus_client") is not None
        if metrics and not has_parser:
            raise ConfigurationError("metrics", "takes the extra: pip install 'contract-engine[metrics]'")
        self._is_default = not metrics
        urls = dict.fromkeys(metrics or ([DEFAULT_METRICS] if has_parser else []))
        self._applications = {url: Watched(ApplicationReader(url).read) for url in urls}
        self._redis_reader = RedisReader(config)
        self._redis = Watched(self._redis_reader.read)
        self._database_reader = DatabaseReader(config.database_url) if config.database_url else None
        self._database = Watched(self._database_reader.read) if self._database_reader else None
        self._course = Course()

    def look(self) -> Frame:
        """Ask all of them; returns when they have answered, and within three seconds whoever has not."""
        self._redis.ask()
        for application in self._applications.values():
            application.ask()
        if self._database is not None:
            self._database.ask()
        until = time.monotonic() + LOOK_SECONDS
        applications: dict[str, ApplicationReading | Away] = {
            url: one.answer(until) for url, one in self._applications.items()
        }
        if self._is_default:
            applications = {url: found for url, found in applications.items() if not isinstance(found, Away)}
        return self._course.frame(
            datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
            redis=self._redis.answer(until),
            postgres=None if self._database is None else self._database.answer(until),
            applications=applications,
        )

    def close(self) -> None:
        """Close the connections."""
        self._redis_reader.close()
        if self._database_reader is not None:
            self._database_reader.close()


def top(
    *,
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame, with the rates of one interval, and end.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="How long from one look to the next.")
    ] = 1.0,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help=f"Where an application serves its metrics; may be repeated. {DEFAULT_METRICS} is tried without it.",
        ),
    ] = None,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    ephemeral: Ephemeral = False,
    as_json: AsJson = False,
) -> None:
    """Watch operations, breakers, folds and servers as they go.

    Second by second, with percentiles and what waits to be logged. Reads only, and little. A server that is away is
    shown as such, and top goes on. With --json a line a second, or one document with --once. Ctrl-C and SIGTERM end it
    with exit code 0.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant, ephemeral=ephemeral)
    with (
        chosen_servers(choice, display.notices()) as config,
        closing(Lookout(config, metrics or ())) as lookout,
    ):
        if once:
            _print_once(lookout, config, interval=interval, as_json=as_json)
            return
        try:
            if as_json:
                _repeat(lambda: print(json.dumps(lookout.look().as_json()), flush=True), interval=interval)
            else:
                _show(lookout, config, interval=interval)
        except (KeyboardInterrupt, SystemExit):
            end_once()  # that is how it is ended; `timeout` and the impatient say so twice


def _print_once(lookout: Lookout, config: MemoryConfig, *, interval: float, as_json: bool) -> None:
    lookout.look()
    time.sleep(interval)
    frame = lookout.look()
    if as_json:
        display.print_json(frame.as_json())
    else:
        display.output().print(_view(frame, config))


def _show(lookout: Lookout, config: MemoryConfig, *, interval: float) -> None:
    """Keep the screen up to date; where there is none, print frame after frame."""
    console = display.output()
    if not console.is_terminal or console.is_dumb_terminal:
        _repeat(lambda: console.print(_view(lookout.look(), config), ""), interval=interval)
    else:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            _repeat(lambda: live.update(_view(lookout.look(), config), refresh=True), interval=interval)


def _view(frame: Frame, config: MemoryConfig) -> RenderableType:
    database = database_address(config.database_url) if config.database_url else ""
    return frame_view(frame, redis_address=redis_address(config.redis_url), database_address=database)


def _repeat(action: Callable[[], object], *, interval: float) -> None:
    """Act for ever, once an interval; what takes longer than one delays the next and is not caught up with."""
    due = time.monotonic()
    while True:
        action()
        due = max(due + interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
