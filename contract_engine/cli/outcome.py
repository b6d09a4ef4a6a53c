"""How a command ends: its exit code, and the one line that says why."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm
from rich.text import Text
from typer.core import TyperGroup

from contract_engine.cli.display import notices, output, printable
from contract_engine.cli.signals import Terminated, end_once, mute
from contract_engine.memory import (
    DatabaseUnavailableError,
    InvalidInputError,
    MemoryManager,
    MemoryServiceError,
    RedisUnavailableError,
    StoreUnavailableError,
)

NO, ERROR, INTERRUPTED, UNREAD = 1, 2, 130, 141
"""Exit codes beside 0: the answer is no; an error; Ctrl-C; nobody reads the output any more."""

EXIT_CODES = (
    "Exit codes: 0 done. 1 the answer is no: no such session, not confirmed, verification failed, warnings of the "
    "doctor. 2 an error: wrong usage, a server that is away, failures found by the doctor. 130 ended by Ctrl-C, 143 by "
    "SIGTERM, 141 because nobody reads its output any more, as after `| head`."
)

INTERRUPTED_CODES = (
    "Exit code 130 after Ctrl-C, 143 after SIGTERM: what is done stays done, and calling it again does the rest."
)
UNDONE_CODES = "Exit code 130 after Ctrl-C, 143 after SIGTERM: then nothing was changed."
IMPORT_CODES = (
    "Exit code 130 after Ctrl-C, 143 after SIGTERM: sessions that are done stay, and with --skip-existing it goes on."
)
REPLAY_CODES = (
    "Exit code 130 after Ctrl-C, 143 after SIGTERM: a conversation stays as far as it came, and --replace starts over."
)
"""What stands at the end of the help of a command that may take long: one of these."""


class CommandGroup(TyperGroup):
    """Turns what this package raises on purpose into one line on standard error, and endings into their exit codes."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        _join_lines(self)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except SystemExit as exc:
            # Help and wrong usage are printed outside of any command: there typer and rich end the program as failed.
            if not isinstance(exc.__context__, BrokenPipeError):
                raise
            mute()
            raise SystemExit(UNREAD) from exc

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _endings():  # what reads the options is imported here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _endings():
                return super().invoke(ctx)
        except MemoryServiceError as exc:
            line = Text.assemble(("Error: ", "bold red"), printable(f"{str(exc).rstrip('.')}{self._advice(ctx, exc)}"))
            notices().print(line, soft_wrap=True)
            raise typer.Exit(ERROR) from exc
        except BrokenPipeError as exc:
            mute()
            raise typer.Exit(UNREAD) from exc

    def _advice(self, ctx: Any, exc: MemoryServiceError) -> str:
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        options = {parameter.name for parameter in command.params} if command else set()
        if isinstance(exc, RedisUnavailableError):
            legacy = "--legacy-redis-url, " if "legacy_redis_url" in options else ""
            return f". Start it, or correct {legacy}--redis-url or REDIS_URL (contract-memory doctor tells more)"
        if isinstance(exc, DatabaseUnavailableError):
            legacy = "--legacy-url, " if "legacy_url" in options else ""
            return f". Start it, or correct {legacy}--database-url or DATABASE_URL (contract-memory doctor tells more)"
        return ""


@contextmanager
def _endings() -> Iterator[None]:
    try:
        yield
    except Terminated as exc:
        end_once()  # all is taken down, and the code to exit with is known
        raise typer.Exit(128 + exc.number) from exc
    except KeyboardInterrupt as exc:
        end_once()
        notices().print("Interrupted.")
        raise typer.Exit(INTERRUPTED) from exc


def _join_lines(command: Any) -> None:
    """Have the help of a command and those below it fill the lines of the terminal, not keep those of the source."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for one in getattr(command, "commands", {}).values():
        _join_lines(one)


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless ``yes``; ends the command where the answer is not yes."""
    if yes:
        return
    console = notices()
    try:
        if Confirm.ask(escape(printable(question)), console=console, default=False):
            return
        console.print("Nothing was changed.")
    except EOFError:
        console.print("\nNothing was changed: nobody there to ask, give --yes.")
    raise typer.Exit(NO)


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Turn what the system says against writing a file into an error of the option that names it."""
    try:
        yield
    except MemoryServiceError:  # a server that is away is an OSError too
        raise
    except OSError as exc:
        raise InvalidInputError(option, f"{path} cannot be written: {exc.strerror}") from exc


def say(text: str, console: Console | None = None) -> None:
    """Print one line that is not cut or wrapped, on standard output where no console is given."""
    (console or output()).print(Text(printable(text)), soft_wrap=True)


def known_context(manager: MemoryManager, session: str) -> dict[str, Any]:
    """Return the context of a session that has messages; where it has none, say so and end the command."""
    context = manager.get_context(session)
    if context["last_seq"]:
        return context
    known = ""
    if manager.config.is_durable:
        try:
            recent = [str(item["session_id"]) for item in manager.session_store.get_all_sessions(5)]
        except StoreUnavailableError:
            recent = []
        known = f" The latest are: {', '.join(recent)}." if recent else ""
    say(f"There is no session {session!r} of tenant {manager.config.tenant}.{known}", notices())
    raise typer.Exit(NO)
