"""How a signal ends a command: in order, so that servers started here are stopped and bars are taken down."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

AGAIN_SECONDS = 0.01
"""When an ending that was lost is tried again."""


def leave_at_once() -> None:
    """Have a signal end the process where it is, for as long as it has put up nothing that is to be taken down."""
    _handle(dict.fromkeys(ENDING, _leave))


def end_in_order() -> None:
    """Have SIGTERM and SIGHUP raise :class:`Terminated` where the program is, as SIGINT raises its own."""
    _handle({signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _end, signal.SIGHUP: _end})
    sys.unraisablehook = _tell_unraisable


def end_once() -> None:
    """Ignore further signals: for a command that has been told to end and takes down what it has put up."""
    is_done = False
    while not is_done:
        # One that comes right now raises here, and is one of those that are ignored.
        with suppress(KeyboardInterrupt, SystemExit):
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)
            is_done = True


def mute() -> None:
    """Send what is still to be printed nowhere: who has read it until now has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def unbroken() -> Iterator[None]:
    """Pass over signals meanwhile: for what must not be left half done, and does not take long."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM and SIGHUP. As Ctrl-C does it has a driver cancel the statement it is waiting for."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _handle(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], object]]) -> None:
    """Set handlers, but for signals that were ignored by whoever started the process, as by nohup."""
    for number, handler in handlers.items():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    # Nothing is raised: what is imported meanwhile may take that for a failure of its own.
    if number == signal.SIGINT:
        with suppress(OSError):
            os.write(2, b"Interrupted.\n")
    os._exit(128 + number)


def _end(number: int, _frame: FrameType | None) -> None:
    raise Terminated(number)


def _tell_unraisable(told: sys.UnraisableHookArgs) -> None:
    """Raise an ending again that came while an object was being destroyed: Python drops what is raised there."""
    lost = told.exc_value
    is_ending = isinstance(lost, SystemExit | KeyboardInterrupt)
    if not is_ending or threading.current_thread() is not threading.main_thread():
        sys.__unraisablehook__(told)
        return

    def end_again(_number: int, _frame: FrameType | None) -> None:
        if isinstance(lost, Terminated):
            raise Terminated(lost.number)
        raise SystemExit(lost.code) if isinstance(lost, SystemExit) else KeyboardInterrupt

    # Not here, where it would be lost once more.
    signal.signal(signal.SIGALRM, end_again)
    signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
