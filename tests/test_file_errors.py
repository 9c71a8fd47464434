"""Files and folders that are another kind of thing, hold something else, or may not be touched."""

import ctypes
import errno
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import save_file
from tiny import tiny_config

from grpo_jax.console.reporting import reporting
from grpo_jax.errors import UsageError
from grpo_jax.files import METADATA, read_object, replacing, system_errors
from grpo_jax.learning.policy import Policy
from grpo_jax.learning.state import TrainState
from grpo_jax.models.config_json import read_config_file
from grpo_jax.models.files import INDEX, SINGLE, opened, tensor_files
from grpo_jax.runs import checkpoints
from grpo_jax.runs import run as runs
from grpo_jax.tasks.records import read_folder, read_table
from grpo_jax.tokenizers import char_tokenizer, load_tokenizer, save_tokenizer
from grpo_jax.training import experiment, starting
from grpo_jax.training.loading import has_checkpoints, run_and_step

PASS_OVER_MODES = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, linux/capability.h


@pytest.fixture
def modes_hold():
    """Files' modes hold for root too, as for anyone: this thread lays its capabilities down."""
    libc = ctypes.CDLL(None)
    if os.geteuid() and not hasattr(libc, "capset"):
        yield
        return
    if not hasattr(libc, "capset"):
        pytest.skip("root passes over the modes of files, and this system has no capset(2)")
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    held, sets[0] = sets[0], sets[0] & ~PASS_OVER_MODES
    assert libc.capset(header, sets) == 0
    yield
    sets[0] = held
    assert libc.capset(header, sets) == 0


def error_line(capsys, function, *args):
    """The one line that a program which does this ends in."""
    with pytest.raises(SystemExit) as left:
        reporting(function, *args)
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "a list; valid: a JSON object"),
        (b"3", "a number; valid"),
        (b'"x"', "a string; valid"),
        (b"null", "null; valid"),
        (b'{"a": ', "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe\x00\x01\x93", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_file_of_one_object_that_holds_another_thing_is_named(tmp_path, content, message):
    for name in ("config.json", INDEX, "tokenizer_config.json"):
        (tmp_path / name).write_bytes(content)
    save_file({}, tmp_path / SINGLE)
    char_tokenizer("ab").backend.save(str(tmp_path / "tokenizer.json"))
    for read, name in (
        (lambda: read_object(tmp_path / "config.json"), "config.json"),
        (lambda: read_config_file(tmp_path), "config.json"),
        (lambda: tensor_files(tmp_path), INDEX),
        (lambda: load_tokenizer(tmp_path), "tokenizer_config.json"),
    ):
        with pytest.raises(ValueError, match=rf"{tmp_path}/{name}.* {message}"):
            read()


def small(path: Path) -> None:
    """A directory with a model's and a tokenizer's files, and data."""
    save_file({"x": jnp.ones(1).__array__()}, path / SINGLE)
    save_tokenizer(char_tokenizer("ab"), path)
    (path / "config.json").write_text("{}")
    (path / "d.jsonl").write_text('{"prompt": "a"}\n')
    (path / "part").mkdir()
    (path / "part" / "1.json").write_text("{}")


READERS = {
    SINGLE: lambda folder: opened(folder / SINGLE),
    "config.json": read_config_file,
    "tokenizer.json": load_tokenizer,
    "tokenizer_config.json": load_tokenizer,
    "d.jsonl": lambda folder: read_table(folder / "d.jsonl", dict),
    "part": lambda folder: read_folder(folder, dict),
    "part/1.json": lambda folder: read_folder(folder / "part", dict),
}


@pytest.mark.parametrize("name", READERS)
def test_what_may_not_be_read_is_named_and_nothing_is_left_out(tmp_path, capsys, modes_hold, name):
    small(tmp_path)
    (tmp_path / name).chmod(0)
    line = error_line(capsys, READERS[name], tmp_path)
    (tmp_path / name).chmod(0o700)
    assert line == f"error: {tmp_path / name}: Permission denied"


def test_a_folder_that_may_not_be_written_is_named(tmp_path, capsys, modes_hold):
    (closed := tmp_path / "closed").mkdir(mode=0o555)
    out = closed / "out"

    def export():
        with replacing(out):
            raise AssertionError

    assert error_line(capsys, export) == f"error: {out}: Permission denied"
    with replacing(earlier := tmp_path / "earlier") as made:
        save_file({}, made / SINGLE, metadata=METADATA)
    earlier.chmod(0o555)
    out = earlier
    assert error_line(capsys, export) == f"error: {out}: Permission denied"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["closed", "earlier"]
    options = tiny_config(compilation_cache=str(closed / "cache"))
    line = error_line(capsys, runs.open_run, closed / "run", options)
    assert line == f"error: cannot write in {closed / 'run'}: Permission denied"
    ex = experiment.build(options)  # goes on without
    starting.begin_run(ex, tmp_path / "run", {}).close()
    (tmp_path / "run/checkpoints").chmod(0o555)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "compilation_cache=" in warning and "denied" in warning
    assert jax.config.jax_compilation_cache_dir != str(closed / "cache")
    line = error_line(capsys, starting.begin_run, ex, tmp_path / "run", {})
    assert line.startswith(f"error: cannot write in {tmp_path}/run/checkpoints: Permission denied")


STATE = TrainState(step=None, policy=Policy(trained=jnp.arange(3)), opt_state=None, rng=None)
LIKE = TrainState(
    step=None,
    policy=Policy(trained=jax.ShapeDtypeStruct((3,), jnp.int32)),
    opt_state=None,
    rng=None,
)


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_a_damaged_one(
    tmp_path, capsys, modes_hold
):
    checkpoints.save(tmp_path, 1, STATE, {})
    for path in (tmp_path, tmp_path / "1", tmp_path / "1" / "checksums.json"):
        path.chmod(0)
        for read in (
            lambda: checkpoints.restore_latest(tmp_path, LIKE),
            lambda: checkpoints.restore_params(tmp_path),
            lambda: checkpoints.newest_position(tmp_path),
        ):
            line = error_line(capsys, read)
            assert line.startswith(f"error: {tmp_path}") and line.endswith(": Permission denied")
        path.chmod(0o700)
    (tmp_path / "1" / "position.json").chmod(0)
    line = error_line(capsys, checkpoints.newest_position, tmp_path)
    assert line.endswith("1/position.json: Permission denied")
    (tmp_path / "1" / "position.json").chmod(0o600)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    assert checkpoints.restore_latest(tmp_path, LIKE) is not None


def test_other_names_among_checkpoints_are_no_steps(tmp_path):
    directory = tmp_path / "checkpoints"
    checkpoints.save(directory, 1, STATE, {})
    for name in ("007", "abc", "1²", "-3", "1.5", "٣"):
        (directory / name).mkdir()
    assert checkpoints.steps(directory) == [1]
    assert checkpoints.restore_latest(directory, LIKE)[1] == {}
    assert run_and_step(directory / "1") == (tmp_path, 1)
    with pytest.raises(UsageError, match=r"007 is no checkpoint of .*; valid: \[1\]"):
        run_and_step(directory / "007")


def test_a_file_in_place_of_a_checkpoint_or_of_all_of_them(tmp_path, capsys):
    directory = tmp_path / "checkpoints"
    checkpoints.save(directory, 1, STATE, {})
    (directory / "2").write_text("")
    assert checkpoints.restore_latest(directory, LIKE) is not None
    assert "2 is damaged" in capsys.readouterr().err and (directory / "2.damaged").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoints").write_text("")
    assert has_checkpoints(tmp_path / "other")
    line = error_line(capsys, checkpoints.restore_latest, tmp_path / "other" / "checkpoints", LIKE)
    assert line.endswith("/other/checkpoints: Not a directory")


@pytest.mark.parametrize("sums", [[], 3, None, {"position.json": 1}, {"position.json": None}])
def test_checksums_that_hold_something_else_are_damage(tmp_path, sums):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, STATE, {"step": step})
    (tmp_path / "2" / "checksums.json").write_text(json.dumps(sums))
    assert checkpoints.damage(tmp_path / "2")
    assert checkpoints.newest_position(tmp_path) == {"step": 1}


def test_what_a_library_says_of_a_full_disk_is_an_error_of_the_system(tmp_path):
    class SafetensorError(Exception):
        pass

    for error in (
        SafetensorError("I/O error: No space left on device (os error 28)"),
        OSError(28, "x"),
    ):
        with pytest.raises(OSError) as raised, system_errors(tmp_path):
            raise error
        assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path))
    with pytest.raises(SafetensorError), system_errors(tmp_path):
        raise SafetensorError("another")


def test_writes_that_end_after_a_failed_one_are_not_told(monkeypatch):
    seen = []
    hook = checkpoints._but_for_late_writes(seen.append)
    for error in (RuntimeError("Event loop is closed"), RuntimeError("x"), ValueError()):
        hook(type("Unraisable", (), {"exc_value": error}))
    assert [type(u.exc_value) for u in seen] == [RuntimeError, ValueError]
    assert str(seen[0].exc_value) == "x" and sys.unraisablehook is not hook
