"""The commands that write sessions to files, and read them back."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.progress import Progress, TaskID

from contract_engine.cli import display
from contract_engine.cli.options import AsJson, DatabaseUrl, RedisUrl, Tenant
from contract_engine.cli.outcome import NO, say, writing
from contract_engine.cli.servers import Choice, chosen_manager
from contract_engine.cli.wording import counted
from contract_engine.memory import InvalidInputError, MemoryManager, SessionExistsError
from contract_engine.memory.archive import MAX_LINE_BYTES

NAME_CHARS = 150
"""Most file systems take names of 255 bytes."""

DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing: check the files, and count.")]
DryExport = Annotated[bool, typer.Option("--dry-run", help="Write and log nothing: count what the log has.")]


def export(
    *,
    session: Annotated[str | None, typer.Argument(metavar="[SESSION]", help="The session id; or --all.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every session of the tenant.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Instead of standard output.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="A file per session in this folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="With --folder: keep the files that are there.")] = False,
    dry_run: DryExport = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Write sessions as JSON Lines, each as it is at one moment.

    What waits in Redis is logged first. A file gets its name when it is whole, and only its owner may read it; an
    interrupted --folder goes on with --resume. Exit code 0 when done, 1 if there is no such session, 2 if a server is
    away.
    """
    if (session is None) == (not everything):
        raise typer.BadParameter("give a SESSION, or --all")
    if (output is not None and folder is not None) or (resume and folder is None):
        raise typer.BadParameter("--output and --folder exclude each other, and --resume belongs to --folder")
    if as_json and output is None and folder is None and not dry_run:
        raise typer.BadParameter("--json and the archive would mix on standard output: give --output or --folder")
    _check_places(output, folder, dry_run=dry_run)
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with chosen_manager(choice, display.notices()) as manager, display.progress(display.notices()) as bar:
        names = iter([session]) if session is not None else _all_sessions(manager, dry_run=dry_run)
        told, skipped = _Told(bar), list[str]()
        if folder is not None and resume:
            names = _lacking(names, folder, skipped)
        if dry_run:
            done = _total(_count(manager, names, told))
        elif folder is not None:
            done = _total(_export_to_folder(manager, names, folder, told))
        else:
            with new_file(output) as file:
                done = _total(manager.retention.export_session(name, file.write, progress=told) for name in names)
                if session is not None and not done["sessions"]:
                    _no_such_session(manager, session)
        done["skipped"] = len(skipped)
    if session is not None and not done["sessions"] + done["skipped"]:
        _no_such_session(manager, session)
    if as_json:
        display.print_json(done | {"dry_run": dry_run})
    else:
        where = folder or output
        kept = f"; {done['skipped']} were there already" if done["skipped"] else ""
        verb = "Would export" if dry_run else "Exported"
        line = f"{verb} {counted(done['sessions'], 'session')} with {counted(done['messages'], 'message')}"
        say(line + (f" to {where}" if where else "") + kept + ".", display.notices())


def import_(
    *,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="As export wrote them; - is standard input.")],
    session: Annotated[
        str | None, typer.Option("--session", metavar="NEW_ID", help="Another name, for an archive of one session.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace sessions that are there.")] = False,
    skip: Annotated[
        bool, typer.Option("--skip-existing", help="Leave sessions alone that are there: to go on after a break.")
    ] = False,
    relay: Annotated[
        bool, typer.Option("--relay", help="Have the legacy store given them too, where it has nothing of them.")
    ] = False,
    dry_run: DryRun = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Put exported sessions in place, each whole or not at all.

    A file that was cut off or edited is refused, and so is a session that is there already, unless it is to be replaced
    or skipped; the sessions before it stay imported. Times stay those of the archive: what was old is purged as old.
    What is imported is history: it goes to no legacy store, whatever the phase, unless --relay is given, and an archive
    does not hold what a session still owed one. Exit code 0 when done, 2 where something was refused, or a server is
    away.
    """
    if replace and skip:
        raise typer.BadParameter("--replace and --skip-existing exclude each other")
    if session is not None and len(files) > 1:
        raise typer.BadParameter("--session names one session: give one FILE")
    existing = "replace" if replace else "skip" if skip else "refuse"
    choice = Choice(redis_url=redis_url, database_url=database_url, tenant=tenant)
    total: dict[str, Any] = {"sessions": 0, "messages": 0, "summaries": 0, "replaced": [], "skipped": []}
    with chosen_manager(choice, display.notices()) as manager, display.progress(display.notices()) as bar:
        told = _Told(bar)
        for name in files:
            with _opened(name) as file:
                try:
                    done = manager.retention.import_sessions(
                        iter(lambda file=file: file.readline(MAX_LINE_BYTES), b""),  # type: ignore[misc]  # bound above
                        session_id=session,
                        existing=existing,
                        relay=relay,
                        dry_run=dry_run,
                        progress=told,
                    )
                except SessionExistsError as exc:
                    problem = f"there is a session {exc.session_id!r} already, and it was left alone"
                    raise InvalidInputError(name, f"{problem}; give --replace or --skip-existing") from exc
                except InvalidInputError as exc:
                    raise InvalidInputError(f"{name}: {exc.field}", exc.problem) from exc
            total = {key: total[key] + done[key] for key in total}
    if as_json:
        display.print_json({**total, "dry_run": dry_run})
        return
    verb = "Would import" if dry_run else "Imported"
    say(f"{verb} {counted(total['sessions'], 'session')} with {counted(total['messages'], 'message')}.")
    for key, text in (("replaced", "In place of what was there"), ("skipped", "Left alone, being there already")):
        if total[key]:
            say(f"{text}: {len(total[key])}.")


class _Told:
    """A bar of the session at hand; it appears with the first thing it is told."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def __call__(self, session_id: str, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task("")
        name = escape(display.shortened(session_id, 30))
        self._bar.update(self._task, description=name, completed=done, total=total)


def _all_sessions(manager: MemoryManager, *, dry_run: bool) -> Iterator[str]:
    """Yield the sessions of the tenant, having logged what waits: the log does not name one of which all waits."""
    for waiting in [] if dry_run else manager.unlogged_sessions():
        manager.drain(waiting)
    names = manager.retention.session_ids()
    while names:
        yield from names
        names = manager.retention.session_ids(after=names[-1])


def _total(answers: Iterator[dict[str, Any] | None]) -> dict[str, int]:
    total = {"sessions": 0, "messages": 0, "summaries": 0}
    for answer in answers:
        if answer is not None:  # it may have been erased since it was listed
            total["sessions"] += 1
            total["messages"] += answer["messages"]
            total["summaries"] += answer["summaries"]
    return total


def _lacking(names: Iterator[str], folder: Path, skipped: list[str]) -> Iterator[str]:
    """Yield the sessions that have no file in the folder; the others are noted as skipped."""
    for name in names:
        if (folder / file_name(name)).exists():
            skipped.append(name)
        else:
            yield name


def _count(
    manager: MemoryManager, names: Iterator[str], told: Callable[[str, int, int], None]
) -> Iterator[dict[str, Any] | None]:
    for name in names:
        yield manager.retention.export_session(name, _nowhere, progress=told, dry_run=True)


def _nowhere(_: bytes) -> None:
    """Write nothing."""


def _export_to_folder(
    manager: MemoryManager, names: Iterator[str], folder: Path, told: Callable[[str, int, int], None]
) -> Iterator[dict[str, Any] | None]:
    for name in names:
        with suppress(_NothingError), new_file(folder / file_name(name), "folder") as file:
            answer = manager.retention.export_session(name, file.write, progress=told)
            if answer is None:
                raise _NothingError
            yield answer


def _check_places(output: Path | None, folder: Path | None, *, dry_run: bool) -> None:
    """Refuse what cannot be written to before anything is read, and make the folder, but for a dry run."""
    if output is not None and output.is_dir():
        raise InvalidInputError("output", f"{output} is a folder; name a file, or give --folder")
    if output is not None and output.exists() and not output.is_file():  # the new file would take its place
        raise InvalidInputError("output", f"{output} is no ordinary file; without --output it goes to standard output")
    if folder is not None and not dry_run:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InvalidInputError("folder", f"{folder} cannot be made: {exc.strerror}") from exc


class _NothingError(Exception):
    """There is nothing to be written, and so no file."""


def file_name(session_id: str) -> str:
    """Return a name for the file of a session: its id as in a URL, cut to what a file system takes."""
    name = quote(session_id, safe=" ")
    if len(name) > NAME_CHARS:
        name = f"{name[:NAME_CHARS]}~{hashlib.sha256(session_id.encode()).hexdigest()[:32]}"
    return f"{name}.jsonl"


@contextmanager
def new_file(path: Path | None, option: str = "output") -> Iterator[IO[bytes]]:
    """Yield a file that gets its name when all is written, and is gone otherwise; None: standard output.

    ``option`` names the one that is at fault where it cannot be written.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        number, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
    except OSError as exc:
        raise InvalidInputError(option, f"{path.parent} cannot be written to: {exc.strerror}") from exc
    try:
        with writing(option, path):
            with open(number, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb")  # noqa: SIM115  # closed below; only the opening may raise here
    except OSError as exc:
        raise InvalidInputError("file", f"{name} cannot be read: {exc.strerror}") from exc
    with file:
        yield file


def _no_such_session(manager: MemoryManager, session: str) -> None:
    say(f"There is no session {session!r} of tenant {manager.config.tenant}.", display.notices())
    raise typer.Exit(NO)
