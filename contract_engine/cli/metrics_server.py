"""``contract-memory metrics``: metrics and probes over HTTP, for those whose application shows none itself."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Annotated, Any

import typer

from contract_engine.cli import display
from contract_engine.cli.options import AsJson, DatabaseUrl, Ephemeral, RedisUrl, Tenant
from contract_engine.cli.outcome import say
from contract_engine.cli.outside import OutsideMetrics
from contract_engine.cli.servers import Choice, chosen_manager
from contract_engine.memory import ConfigurationError, MemoryManager
from contract_engine.memory.health import liveness, readiness
from contract_engine.memory.metrics import CONTENT_TYPE

LOOPBACK = "127.0.0.1"


def metrics(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, and says which.")] = 9464,
    host: Annotated[str, typer.Option(help="The address to listen on; the answers are open to all who reach it.")] = (
        LOOPBACK
    ),
    once: Annotated[bool, typer.Option("--once", help="Print the metrics and end.")] = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    ephemeral: Ephemeral = False,
    as_json: AsJson = False,
) -> None:
    """Serve metrics for Prometheus, and probes, over HTTP.

    At /metrics, and /livez, /readyz and /healthz as JSON, until SIGTERM or Ctrl-C.

    Shown is what the servers tell of all tenants: memory, evictions and hits of Redis, sessions, summaries, and what
    waits to be logged. What goes on in an application only itself can show: contract_engine.memory.metrics.
    /livez is 200 while this runs; /readyz and /healthz are 503 only where no path can serve.

    Exit code 0 after SIGTERM and with --once, 2 if it cannot listen there, 130 after Ctrl-C.
    """
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant, ephemeral=ephemeral)
    with chosen_manager(choice, display.notices()) as manager:
        outside = OutsideMetrics(manager)
        if once:
            display.output().file.write(outside.text().decode())
            return
        with serving(manager, outside, host=host, port=port) as url, until_terminated() as ended:
            if as_json:
                display.print_json({"url": url})
                display.output().file.flush()
            else:
                say(f"Serving {url}/metrics, /livez, /readyz and /healthz. Ctrl-C ends it.", display.notices())
            ended.wait()


@contextmanager
def serving(manager: MemoryManager, outside: OutsideMetrics, *, host: str, port: int) -> Iterator[str]:
    """Answer in threads of a server of its own; yields where."""
    handler = type("BoundHandler", (Handler,), {"manager": manager, "outside": outside})
    try:
        server = ThreadingHTTPServer((host, port), handler)
    except OSError as exc:
        raise ConfigurationError("port", f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    with server:
        thread = threading.Thread(target=server.serve_forever, name="contract-memory-metrics", daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def until_terminated() -> Iterator[threading.Event]:
    """Yield what SIGTERM sets, instead of ending the program as a failure."""
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield ended
    finally:
        # Once it has been told to end, being told again changes nothing.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if ended.is_set() else before)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; every answer is whole, and none is to be kept by anybody."""

    manager: MemoryManager
    outside: OutsideMetrics
    server_version, sys_version = "contract-memory", ""
    protocol_version = "HTTP/1.1"
    timeout = 10.0

    def do_GET(self) -> None:
        """Answer one question."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, CONTENT_TYPE, self.outside.text())
        elif path == "/livez":
            self._answer_json(*liveness())
        elif path == "/readyz":
            self._answer_json(*readiness(self.manager.health()))
        elif path == "/healthz":
            report = self.manager.health()
            self._answer_json(200 if report.is_ready else 503, report.as_dict())
        else:
            self._answer_json(404, {"error": "there are /metrics, /livez, /readyz and /healthz"})

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # so in the standard library
        """Log no requests: there is one every few seconds."""

    def _answer_json(self, code: int, body: dict[str, Any]) -> None:
        self._answer(code, "application/json", json.dumps(body).encode())

    def _answer(self, code: int, content_type: str, body: bytes) -> None:
        self.send_response(HTTPStatus(code))
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
