"""Ctrl-C at any moment: one line, and the exit status 130. Imports nothing of ours."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

STATUS = 128 + signal.SIGINT
AGAIN_S = 0.02  # until an exception that was swallowed is raised once more


def leave_at_once() -> None:
    """Let Ctrl-C end the process with a line, whatever it does: before its work, and after.

    A process that ignores the signal, as a shell's `&` and nohup have it, goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)


@contextlib.contextmanager
def raising() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C was pressed. It raises KeyboardInterrupt, as Python has
    it, so that work can be cleaned up; what a library makes of that may be any exception."""
    arrived = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = True
        if importing(frame):
            _leave(number, frame)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield lambda: arrived
        return
    signal.signal(signal.SIGINT, note)
    try:
        with _never_swallowed():
            yield lambda: arrived
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _never_swallowed() -> Iterator[None]:
    """Send the signal again where its exception came in a place that lets none out.

    Such are __del__ and the callbacks of the garbage collector, of which JAX has one.
    """
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        left = unraisable.exc_value
        status = STATUS if isinstance(left, KeyboardInterrupt) else getattr(left, "code", 0)
        if status in (STATUS, 128 + signal.SIGTERM):
            main = threading.main_thread().ident
            threading.Timer(AGAIN_S, signal.pthread_kill, (main, status - 128)).start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before


def importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported, where an exception may be lost or become another one:
    extensions of C print it and go on."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            return True
        frame = frame.f_back
    return False


def say() -> None:
    """Write the line; on a terminal below the ^C that it shows."""
    os.write(2, b"\ninterrupted\n" if os.isatty(2) else b"interrupted\n")


def end(status: int) -> NoReturn:
    """End the process now: where XLA still compiles, Python's own way out can crash.

    What multiprocessing would do on that way, for which it else warns, is done here.
    """
    if multiprocessing := sys.modules.get("multiprocessing"):
        for child in multiprocessing.active_children():
            child.kill()
        sys.modules["multiprocessing.util"]._run_finalizers(0)  # semaphores are given back
    os._exit(status)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    say()
    end(STATUS)
