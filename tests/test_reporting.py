"""How a program ends: input and system faults in one line, bugs with a traceback, Ctrl-C at 130."""

import errno
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import grpo_jax
from grpo_jax.console.reporting import reporting
from grpo_jax.errors import UsageError
from grpo_jax.statistics import pass_at_k

ROOT = Path(__file__).resolve().parents[1]


def ending(capfd, function, *args):
    """(status, standard error) of a program that does `function(*args)`."""
    try:
        reporting(function, *args)
    except SystemExit as left:
        return left.code, capfd.readouterr().err
    return 0, capfd.readouterr().err


def raises(error):
    raise error


PATH = "/data/problems.jsonl"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UsageError("two\nlines"), "two lines"),
        (PermissionError(errno.EACCES, "Permission denied", PATH), f"{PATH}: Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", PATH), f"{PATH}: No such file"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", PATH), f"{PATH}: Is a directory"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", PATH), f"{PATH}: Not a directory"),
        (OSError(errno.ENAMETOOLONG, "File name too long", PATH), f"{PATH}: File name too long"),
        (OSError(errno.EROFS, "Read-only", PATH.encode()), f"{PATH}: Read-only"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (MemoryError(), "out of memory"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capfd, error, message):
    assert ending(capfd, raises, error) == (2, f"error: {message}\n")


def test_what_the_package_raises_itself_is_one_line_and_what_a_call_raised_is_a_bug(capfd):
    assert ending(capfd, pass_at_k, 1, 0, 2)[1].startswith("error: pass@k needs")
    with pytest.raises(TypeError):
        reporting(pass_at_k, "a", 0, 1)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a test is not the package"),
        KeyError("x"),
        RuntimeError("x"),
        FileNotFoundError(errno.ENOENT, "No such file", f"{Path(grpo_jax.__file__).parent}/gone"),
        FileNotFoundError(errno.ENOENT, "No such file", os.__file__),
        ChildProcessError(errno.ECHILD, "No child processes"),
    ],
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        reporting(raises, error)


def test_a_reader_of_the_output_that_has_gone_is_no_error():
    code = "from grpo_jax.console.reporting import reporting; reporting(print, 'x')"
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def press_and_wait():
    signal.raise_signal(signal.SIGINT)
    time.sleep(5)


def as_another_exception():
    try:
        press_and_wait()
    except KeyboardInterrupt as error:
        raise ValueError("a library's") from error


def in_the_garbage_collector():
    def pressed(*_):
        gc.callbacks.remove(pressed)
        signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(pressed)
    gc.collect()
    time.sleep(5)


@pytest.mark.parametrize("how", [press_and_wait, as_another_exception, in_the_garbage_collector])
def test_an_interrupt_is_one_line_and_never_lost(capfd, how):
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert ending(capfd, how) == (130, "interrupted\n")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a shell's &
        assert ending(capfd, signal.raise_signal, signal.SIGINT) == (0, "")
    finally:
        signal.signal(signal.SIGINT, old)


@pytest.mark.parametrize("module", ["ml_collections", "numpy._core.multiarray"])
def test_an_interrupt_while_a_program_imports_is_one_line(tmp_path, module):
    """Extensions of C, such as NumPy's, print an exception and go on, or raise another."""
    command = [sys.executable, "-X", "importtime", "-m", "experiments.evaluate"]
    child = subprocess.Popen(
        [*command, f"--workdir={tmp_path}"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.split("|")[-1].strip() == module:
            break
    child.send_signal(signal.SIGINT)
    message = [line for line in child.stderr if not line.startswith("import time:")]
    assert (child.wait(), message) == (130, ["interrupted\n"])
