"""A run that is killed at every kind of moment ends as one that never was, to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from grpo_jax.runs import checkpoints

ROOT = Path(__file__).resolve().parents[1]
STEPS, COLD = 8, 4
CONFIG = f"""
from grpo_jax.config import defaults

def get_config():
    config = defaults()
    config.steps, config.seed, config.compilation_cache = {STEPS}, 5, ""
    config.task.digits, config.task.heldout_size, config.prompt_length = 1, 8, 8
    config.rewards = {{"variety:variety": 1.0, "format": 0.5}}
    config.model.update(layers=1, hidden=16, heads=2, kv_heads=1, ff=16)
    config.rollout.update(prompts=4, group=3, max_tokens=18, prompt_bucket=8)
    config.algorithm.update(beta=0.05, minibatches=2, dynamic_sampling_rounds=1)
    config.optimizer.update(schedule="cosine", warmup_steps=2, learning_rate=3e-3)
    config.sft.update(steps={COLD}, batch=4, examples=32)
    config.eval.update(every=4, problems=8)
    config.checkpoint.every = 2
    return config
"""
# Something that completions of an untrained model differ in.
REWARD = """
def variety(prompts, completions, **columns):
    return [len(set(c)) / max(len(c), 1) for c in completions]
"""
# Imports once, then forks for every command line it is sent: no process shares any more than code.
LAUNCHER = """
import json, os, signal, sys
from experiments import train
from grpo_jax.runs import checkpoints, curves
from grpo_jax.runs.trackers import jsonl
from grpo_jax.rollout import sources
from grpo_jax.training import sft
from grpo_jax.training import rl_step
from grpo_jax.config.command_line import run_main

PLACES = {
    "cold update": (sft, "update"),
    "sample": (sources, "generate"),
    "score": (sources, "_graded"),
    "update": (rl_step, "update"),
    "orbax": (checkpoints.ocp.StandardCheckpointer, "save"),
    "checkpoint": (checkpoints, "_save_arrays"),
    "rename": (checkpoints, "_sync"),
    "line": (jsonl, "append_line"),
}

curves.picture = lambda found, columns: b""  # which the run that nothing interrupts draws


def strike(place, call, number):
    owner, name = PLACES[place]
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def patched(*args, **options):
        if next(calls) != call:
            return original(*args, **options)
        if place == "line":
            with args[0].open("a") as file:
                file.write('{"step": 3, "rew')
        else:
            result = original(*args, **options)
        os.kill(os.getpid(), number)
        return result

    setattr(owner, name, patched)


for order in sys.stdin:
    order = json.loads(order)
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
        os.dup2(1, 2)
        if order["strike"]:
            strike(*order["strike"])
        sys.argv = order["argv"]
        run_main(train.main)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
# What a start of the same command meets, how it must end, and what is saved then: in the cold
# start and in the run.
STARTS = [
    (("cold update", 1, TERM), 128 + TERM, ([1], [])),
    (("orbax", 1, KILL), -KILL, ([1], [])),
    (("cold update", 2, KILL), -KILL, ([1, 2], [])),
    (("checkpoint", 2, KILL), -KILL, ([2, 4], [])),  # of step 2 of the run itself
    (("line", 13, KILL), -KILL, ([2, 4], [2])),
    (("update", 1, INT), 128 + INT, ([2, 4], [2, 3])),
    (("sample", 1, KILL), -KILL, ([2, 4], [2, 3])),
    (("rename", 3, KILL), -KILL, ([2, 4], [2, 3, 4])),  # one too many is not yet deleted
    (("score", 1, KILL), -KILL, ([2, 4], [2, 3, 4])),
    (None, -KILL, None),  # at a random time
    (None, 0, ([2, 4], [6, 8])),
]


def command(folder, workdir):
    return ["experiments.train", f"--config={folder}/tiny.py", f"--workdir={workdir}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    (folder / "tiny.py").write_text(CONFIG)
    (folder / "variety.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="module")
def environment(folder):
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return os.environ | paths | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="module")
def runs(folder, environment):
    """A run that nothing interrupts, and beside it the same one struck down over and over."""
    argv = [sys.executable, "-m", *command(folder, folder / "straight")]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL) as run:
        endings = strike_down(folder, environment)
    assert run.returncode == 0
    return folder / "straight", endings


@pytest.fixture(scope="module")
def straight(runs):
    return runs[0]


@pytest.fixture(scope="module")
def broken(runs):
    return runs[1]


def strike_down(folder, environment):
    """The folder of a run that met STARTS; what each of them ended with, said and left."""
    workdir, endings = folder / "broken", []
    launcher = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", LAUNCHER],
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment},
    )
    with launcher:
        for number, (strike, *_) in enumerate(STARTS):
            log = folder / f"{number}.log"
            order = {"argv": command(folder, workdir), "log": str(log), "strike": strike}
            launcher.stdin.write(json.dumps(order) + "\n")
            launcher.stdin.flush()
            pid = int(launcher.stdout.readline())
            if strike is None and number < len(STARTS) - 1:
                time.sleep(random.uniform(0.2, 1.5))
                os.kill(pid, KILL)
            status = int(launcher.stdout.readline())
            saved = [
                checkpoints.steps(f / "checkpoints") for f in (workdir / "cold_start", workdir)
            ]
            endings.append((status, log.read_text(), tuple(saved)))
        launcher.stdin.close()
    return workdir, endings


def lines(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [json.dumps({k: v for k, v in r.items() if not k.startswith("time/")}) for r in records]


def test_every_start_ends_as_it_was_struck_and_keeps_what_was_saved(broken):
    for (strike, status, saved), (ended, said, left) in zip(STARTS, broken[1], strict=True):
        assert ended == status, (strike, said[-2000:])
        assert saved in (None, left), strike
        assert "Traceback" not in said and "damaged" not in said, said


def test_signals_leave_with_a_word_on_how_to_go_on(broken):
    for (strike, *_), (_, said, left) in zip(STARTS, broken[1], strict=True):
        if strike and strike[2] != KILL:
            step = left[1][-1] if left[1] else left[0][-1]
            assert f"interrupted after step {step}, which is saved in" in said
            assert "run the same command again to go on" in said


@pytest.mark.parametrize("part", ["", "cold_start"])
def test_the_parameters_are_the_same_to_the_bit(straight, broken, part):
    found = []
    for workdir in (straight, broken[0]):
        params, step = checkpoints.restore_params(workdir / part / "checkpoints")
        flat = jax.tree_util.tree_leaves_with_path(params)
        found.append((step, {jax.tree_util.keystr(k): np.asarray(x).tobytes() for k, x in flat}))
    assert found[0][0] == (COLD if part else STEPS)
    assert found[0] == found[1]


@pytest.mark.parametrize("part", ["", "cold_start"])
def test_the_files_are_the_same_line_by_line(straight, broken, part):
    for name in ("metrics", "completions", "eval"):
        expected = straight / part / f"{name}.jsonl"
        if part and not expected.exists():
            continue
        assert lines(broken[0] / part / f"{name}.jsonl") == lines(expected)
    steps = [json.loads(line) for line in (straight / part / "metrics.jsonl").open()]
    assert [r["step"] for r in steps] == list(range(1, (COLD if part else STEPS) + 1))
    assert all(r["grad_norm"] > 0 for r in steps)  # a run that stands still would prove nothing


def warnings(done):
    """What was said, but for a commit that was made meanwhile."""
    return [x for x in done.stderr.splitlines() if "was started with other code" not in x]


def test_a_finished_run_says_so_and_a_damaged_checkpoint_is_told_and_gone_behind(
    folder, environment, straight, broken
):
    workdir = broken[0]
    argv = [sys.executable, "-m", *command(folder, workdir)]
    options = {"env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run(argv, **options)
    assert (done.returncode, warnings(done)) == (0, [])
    assert f"{workdir} is finished: all {STEPS} steps are done" in done.stdout
    (workdir / "checkpoints" / str(STEPS) / "position.json").write_text("{}")
    again = subprocess.run(argv, **options)
    assert again.returncode == 0, again.stderr
    (warning,) = warnings(again)
    assert f"checkpoints/{STEPS} is damaged (position.json has changed)" in warning
    assert f"step 7/{STEPS}" in again.stdout and f"step 6/{STEPS}" not in again.stdout
    assert lines(workdir / "metrics.jsonl") == lines(straight / "metrics.jsonl")
