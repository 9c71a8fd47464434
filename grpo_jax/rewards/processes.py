"""The processes that rewards run in: spawned, deaf to Ctrl-C, and without the parent's main."""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from multiprocessing import spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from pebble import CONSTS

# Of the pool, in this process and in the workers, which import this module too; seconds.
CONSTS.term_timeout = 0  # until SIGKILL: workers do not hear SIGTERM
CONSTS.channel_lock_timeout = 5  # until a lock of a killed worker is given up, and the pool with it

_lock = threading.Lock()


CLEAN = 256  # no status of Linux: in place of 0, which pebble takes for an end that it ordered


class _Process(SpawnProcess):
    """A spawned process that does not import the parent's __main__ again.

    cloudpickle ships what is defined in __main__ by value, so nothing is missed; a notebook or an
    unguarded script works, and a worker starts without the trainer's imports.
    """

    @property
    def exitcode(self) -> int | None:
        """As ever, but CLEAN for 0: no worker ends before it is killed, unless a reward ends it."""
        status = super().exitcode
        return CLEAN if status == 0 else status

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _lock, _main_left_out(), _interrupts_blocked():
            return SpawnProcess._Popen(process_obj)


class Context(SpawnContext):
    """multiprocessing's spawn context, starting such processes."""

    Process = _Process


def context() -> multiprocessing.context.BaseContext:
    """The context for reward workers; never fork, for the parent runs JAX's threads."""
    return Context()


@contextlib.contextmanager
def _main_left_out() -> Iterator[None]:
    original, thread = spawn.get_preparation_data, threading.get_ident()

    def preparation(name: str) -> dict[str, Any]:
        data = original(name)
        if threading.get_ident() == thread:  # another thread's processes keep their main
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = preparation
    try:
        yield
    finally:
        spawn.get_preparation_data = original


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal; a child inherits this thread's blocked mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
