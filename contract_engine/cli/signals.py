"""How a signal ends a command: in order, so that servers started here are stopped and bars are taken down."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

AGAIN_SECONDS = 0.01
"""When an ending that was lost is tried again."""


def end_in_order() -> None:
    """Have SIGTERM and SIGHUP raise :class:`Terminated` where the program is, as SIGINT raises its own."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    sys.unraisablehook = _tell_unraisable


def end_once() -> None:
    """Ignore further signals: for a command that has been told to end and takes down what it has put up."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


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
