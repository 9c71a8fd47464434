"""How a program ends: with one line for what the user can mend, with a traceback for a bug."""

import dis
import errno
import os
import re
import signal
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from grpo_jax.console import interrupts
from grpo_jax.errors import UsageError, described

T = TypeVar("T")

_PACKAGE = Path(__file__).parents[1]
_OURS = (_PACKAGE, _PACKAGE.parent / "experiments")
_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
# What the system refuses without naming a file: no space, limits, a broken disk, no memory.
_LIMITS = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ENOMEM", "EMFILE", "ENFILE", "EAGAIN")
_EXHAUSTED = tuple(getattr(errno, name) for name in _LIMITS)


def reporting(function: Callable[..., T], *args: object) -> T:
    """What `function` returns, its output flushed; or the process's end, by SystemExit.

    Bad input, and what the system refuses, end in one line 'error: ...' and status 2; Ctrl-C in
    one line and status 130; a reader of the output that has gone, in silence and status 141. An
    unexpected exception is raised, for its traceback.
    """
    with interrupts.raising() as interrupted:
        try:
            result = function(*args)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more as it leaves
            status = 128 + signal.SIGPIPE
        except (Exception, KeyboardInterrupt) as error:
            if interrupted() or isinstance(error, KeyboardInterrupt):
                interrupts.say()
                status = interrupts.STATUS
            elif (message := _message(error)) is not None:
                sys.stderr.write(f"error: {' '.join(message.split())}\n")
                status = 2
            else:
                raise
    sys.exit(status)


def _message(error: BaseException) -> str | None:
    """What to say of an error that is no bug; None of one that is.

    No bug are UsageErrors, what this package itself raises about its input, and what the system
    says of a file that is not of the installation, or of its own limits.
    """
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None:
            return described(error) if error.errno in _EXHAUSTED else None
        return None if _installed(error.filename) else described(error)
    if isinstance(error, MemoryError) or _out_of_memory(error):
        return f"out of memory: {error}".removesuffix(": ")
    if number := re.search(
        r"\(os error (\d+)\)$", str(error)
    ):  # so do libraries in Rust end theirs
        return os.strerror(int(number[1]))
    raised_here = isinstance(error, ValueError | TypeError | OSError | ImportError) and _ours(error)
    return str(error) if raised_here else None


def _ours(error: BaseException) -> bool:
    """Whether a `raise` of this package made the error, rather than a call that went wrong.

    Read from the compiled code, which, unlike the source, is what ran.
    """
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    code = last.tb_frame.f_code
    raised = dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return raised and any(Path(code.co_filename).is_relative_to(folder) for folder in _OURS)


def _installed(filename: object) -> bool:
    """Whether a file is the package's own, or the environment's."""
    if not isinstance(filename, str | bytes):
        return False
    path = Path(os.fsdecode(filename)).absolute()
    return any(path.is_relative_to(p) for p in (*_OURS, *_INSTALLED))


def _out_of_memory(error: BaseException) -> bool:
    """Whether XLA's allocator refused; the class is JAX's, which need not be imported for this."""
    return type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
