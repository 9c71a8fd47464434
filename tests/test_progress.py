"""What programs say while they work: on a pipe, on a terminal, and where stdout is a result."""

import re

import jax
import pytest
from rich.console import Console

from grpo_jax.console import progress
from grpo_jax.console.progress import Screen, doing, importing, result_on_stdout, say


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Every word is said at once, and what a test changes is changed back."""
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    monkeypatch.setattr(progress, "_result_on_stdout", False)
    monkeypatch.setattr(progress, "_checked", True)


def test_a_pipe_gets_one_plain_line_a_phase(capsys, monkeypatch):
    with doing("evaluating", log_after_s=0.0):
        with doing("sampling", log_after_s=0.0):
            say("halfway")
        with doing("judging", log_after_s=60.0):
            pass
    assert capsys.readouterr().out.splitlines() == ["evaluating ...", "sampling ...", "halfway"]


def test_a_terminal_shows_what_holds_and_keeps_what_was_said(tmp_path, monkeypatch):
    with (tmp_path / "screen").open("w") as file:
        shown = Screen(Console(file=file, force_terminal=True, width=60, _environ={}))
        monkeypatch.setattr(progress, "screen", lambda: shown)
        with doing("evaluating"), doing("sampling"):
            say("eval at [step] 0")
        assert shown.console._live_stack == []
    written = (tmp_path / "screen").read_text()
    assert "evaluating ... 0 s" in written and "sampling ... 0 s" in written
    assert "eval at [step] 0\n" in written and written.endswith("\x1b[2K")  # the rest was erased


def test_words_leave_standard_output_to_the_result(capsys):
    result_on_stdout()
    with importing(), doing("reading"):
        pass  # an error may still come, which is to be the only line
    assert capsys.readouterr() == ("", "")
    progress.checked()
    with doing("sampling", log_after_s=0.0):
        pass
    assert capsys.readouterr() == ("", "sampling ...\n")


def test_a_compilation_is_announced_and_timed(capsys):
    @jax.jit
    def sample(x):
        return 3 * x

    progress.announce_compilations()  # once a process, as any program that ran here did
    x = jax.numpy.ones(3)
    capsys.readouterr()
    sample(x)
    jax.eval_shape(lambda x: x + 1, x)  # is traced, but never compiled
    sample(x)
    compiling, compiled, *others = capsys.readouterr().out.splitlines()
    assert compiling == "compiling the sampler ..."
    assert re.fullmatch(r"compiled the sampler in \d+\.\d s", compiled)
    assert others == ["compiling a small program (<lambda>) ..."]
