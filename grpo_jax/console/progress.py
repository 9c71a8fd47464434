"""What a program is doing, in words: a line that stays, and on a terminal one that counts seconds.

Words go to standard output, or to stderr in a program whose standard output is its result.
"""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

PATIENCE_S = 0.5  # what takes less time is not announced
UNCHECKED_S = 10.0  # while an error may still come, which is to be the only line of stderr

# What the package compiles that takes longest, by the name of the jitted function.
PROGRAMS = {
    "sample": "the sampler",
    "prepare": "the advantages",
    "update": "the update",
    "_update": "the reward model's update",
    "rewards_of": "the reward model",
    "init": "the training state",
    "first_state": "the training state",
}
_STAGES = ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
EVENTS = tuple(f"/jax/core/compile/{stage}_duration" for stage in _STAGES)  # as JAX calls them
COMPILED = EVENTS[-1]  # the last of the three; look-ups in the cache included

_result_on_stdout = False
_checked = True
_announcing = False


class Screen:
    """A console, and what it shows at the bottom while that holds, where it is a terminal."""

    def __init__(self, console: Console):
        """Write to `console`."""
        self.console = console
        self.live = console.is_terminal and not console.is_dumb_terminal
        self._lock = threading.RLock()
        self._items: list[RenderableType] = []
        self._display: Live | None = None

    def say(self, text: str) -> None:
        """Print a line."""
        if self.live:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.console.file, flush=True)

    @contextlib.contextmanager
    def showing(self, item: RenderableType) -> Iterator[None]:
        """Show a renderable below all lines; only on a terminal."""
        if not self.live:
            yield
            return
        self._show(item)
        try:
            yield
        finally:
            self._hide(item)

    def _show(self, item: RenderableType) -> None:
        with self._lock:
            self._items.append(item)
            if self._display is None:
                self._display = Live(
                    get_renderable=lambda: Group(*self._items), console=self.console, transient=True
                )
                self._display.start()
            self._display.refresh()

    def _hide(self, item: RenderableType) -> None:
        with self._lock:
            if self._display is not None and self._items == [item]:
                self._display.stop()  # draws once more, and then clears
                self._display = None
            self._items.remove(item)


@functools.lru_cache(maxsize=4)
def _screen_on(file: TextIO) -> Screen:
    return Screen(Console(file=file, force_terminal=file.isatty()))  # whatever FORCE_COLOR says


def screen() -> Screen:
    """Where words go now."""
    file = sys.stderr if _result_on_stdout else sys.stdout
    return _screen_on(getattr(file, "rich_proxied_file", file))  # rich's own, while it is live


def say(text: str) -> None:
    """Print a line for people, at once."""
    screen().say(text)


def result_on_stdout() -> None:
    """Send words to stderr from now on, and, unless that is a terminal, few until `checked`.

    For programs whose standard output is read by others, and whose stderr is one line where they
    refuse what they are given.
    """
    global _result_on_stdout, _checked
    _result_on_stdout, _checked = True, False


def checked() -> None:
    """All that the program was given is known to be good."""
    global _checked
    _checked = True


class _Elapsed:
    """A line with the seconds since it was made, each time that it is drawn."""

    def __init__(self, what: str, began: float):
        self.what, self.began = what, began

    def __rich__(self) -> Text:
        return Text(f"{self.what} ... {time.monotonic() - self.began:.0f} s", overflow="ellipsis")


class Phase:
    """Something that is being done: announced once it has taken `after_s`, shown while it lasts.

    A class, because JAX says where a compilation begins and ends by two calls.
    """

    def __init__(self, what: str, after_s: float, began: float | None = None, quiet: bool = False):
        """Begin. quiet  it has been said already"""
        self.what, self.said, self._quiet = what, quiet, quiet
        self.began = time.monotonic() if began is None else began
        self._screen, self._line = screen(), _Elapsed(what, self.began)
        self._shown = contextlib.ExitStack()
        left = after_s - (time.monotonic() - self.began)
        self._timer = threading.Timer(left, self._speak_later)
        self._timer.daemon = True
        self._timer.start() if left > 0 else self._speak()

    def _speak(self) -> None:
        if self._screen.live:
            self._shown.enter_context(self._screen.showing(self._line))
        elif not self._quiet:
            self._screen.say(f"{self.what} ...")
        self.said = True

    def _speak_later(self) -> None:
        with contextlib.suppress(OSError):  # the main thread's next line meets it too, and says so
            self._speak()

    def end(self) -> None:
        """It is done."""
        self._timer.cancel()
        if self._timer.ident is not None:
            self._timer.join()  # lest its line comes after the next
        self._shown.close()


@contextlib.contextmanager
def doing(what: str, log_after_s: float | None = None) -> Iterator[None]:
    """Announce what the block does once it has taken half a second; in a log, `log_after_s`."""
    patience = PATIENCE_S if log_after_s is None or screen().live else log_after_s
    if not _checked and not screen().live:
        patience = max(patience, UNCHECKED_S)
    phase = Phase(what, patience)
    try:
        yield
    finally:
        phase.end()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Say that JAX is being imported, in the block; and from then on what is compiled."""
    if _checked or screen().live:
        with doing("importing JAX", log_after_s=0):
            yield
    else:
        yield
    announce_compilations()


def announce_compilations() -> None:
    """Say what JAX compiles, and what took seconds: from now on, in this process."""
    global _announcing
    if _announcing:
        return
    import jax

    compiler = Compilations()
    jax.monitoring.register_scalar_listener(compiler.begin)
    jax.monitoring.register_event_duration_secs_listener(compiler.end)
    _announcing = True


class Compilations:
    """Hears JAX trace, lower and compile a program, one after the other, and says so.

    What is traced meanwhile (an operation on constants) is part of it.
    """

    def __init__(self) -> None:
        """Nothing is being compiled."""
        self._depth = 0
        self._name, self._began, self._said = "", 0.0, False
        self._phase: Phase | None = None

    def begin(self, event: str, value: float, **details: str | int) -> None:
        """One of the three begins; JAX's event of that name is a scalar, its time."""
        if event not in EVENTS or threading.current_thread() is not threading.main_thread():
            return
        self._depth += 1
        if self._depth > 1:
            return
        name = (
            str(details.get("fun_name", ""))
            .removeprefix("jit_")
            .removeprefix("jit(")
            .removesuffix(")")
        )
        if event == EVENTS[0] or name != self._name:
            self._name, self._began, self._said = name, time.monotonic(), False
        what = f"compiling {_program(name)}"
        patience = PATIENCE_S if _checked or screen().live else UNCHECKED_S
        self._phase = Phase(what, patience, self._began, quiet=self._said)

    def end(self, event: str, duration_secs: float, **_: str | int) -> None:
        """The one that began last ends."""
        if event not in EVENTS or threading.current_thread() is not threading.main_thread():
            return
        self._depth = max(self._depth - 1, 0)
        if self._depth or self._phase is None:
            return
        self._phase.end()
        self._said, self._phase = self._said or self._phase.said, None
        if event == COMPILED and self._said:
            passed = time.monotonic() - self._began
            say(f"compiled {_program(self._name)} in {passed:.1f} s")


def _program(name: str) -> str:
    return PROGRAMS.get(name, f"a small program ({name})")
