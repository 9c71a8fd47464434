import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pebble
import pytest

from grpo_jax.rewards import Rewarder, RewardError, evaluate, resolve
from grpo_jax.tasks import Problem

PROBLEMS = [Problem("p0", {"answer": "a"}), Problem("p1", {"answer": "b"})]
COMPLETIONS = [["a", "b", "hang"], ["b", "a", "die"]]


def misbehave(prompts, completions, **columns):
    for completion in completions:
        if completion == "hang":
            while True:
                pass
        if completion in ("SIGKILL", "SIGSEGV"):
            os.kill(os.getpid(), getattr(signal, completion))
        if completion == "die":
            os._exit(0 if prompts[0] == "zero" else 3)
    return [float(len(c)) for c in completions]


def lock_timeout(completions, **columns):
    return [pebble.CONSTS.channel_lock_timeout for _ in completions]


@pytest.fixture(scope="module")
def pool():
    functions = {
        "exact": resolve("exact_answer"),
        "lambda": lambda completions, **_: [len(c) for c in completions],
        "misbehave": misbehave,
        "none": lambda completions, **_: [None if c == "a" else 1 for c in completions],
    }
    with Rewarder(functions, workers=2, timeout_s=0.3) as rewarder:
        yield rewarder


def test_parts_are_scored_and_what_hangs_or_dies_is_nan_alone(pool):
    scores = pool(PROBLEMS, COMPLETIONS)
    assert list(scores.parts) == ["exact", "lambda", "misbehave", "none"]
    assert all(part.shape == (2, 3) and part.dtype == np.float32 for part in scores.parts.values())
    np.testing.assert_array_equal(scores.parts["exact"], [[1, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(scores.parts["lambda"], [[1, 1, 4], [1, 1, 3]])
    np.testing.assert_array_equal(scores.parts["misbehave"], [[1, 1, np.nan], [1, 1, np.nan]])
    np.testing.assert_array_equal(scores.parts["none"], [[np.nan, 1, 1], [1, np.nan, 1]])
    assert scores.timeouts == 2 and not any(scores.failed.values())
    clean = pool(PROBLEMS, [["a", "b"], ["b", "a"]])
    assert clean.timeouts == 0 and np.isfinite(clean.parts["misbehave"]).all()


def test_a_worker_that_exits_cleanly_in_the_middle_is_counted_too(pool, capsys):
    scores = pool([Problem("zero", {"answer": ""})], [["x", "die"]])
    np.testing.assert_array_equal(scores.parts["misbehave"], [[1, np.nan]])
    assert scores.timeouts == 1
    assert "'misbehave' killed its process (exit status 0) and " in capsys.readouterr().err


def test_what_is_lost_is_told_of_in_one_line_a_reward(pool, capsys):
    scores = pool(PROBLEMS, [["ab", "SIGKILL", "c"], ["hang", "SIGSEGV", "c"]])
    np.testing.assert_array_equal(scores.parts["misbehave"], [[2, np.nan, 1], [np.nan, np.nan, 1]])
    np.testing.assert_array_equal(scores.lost, np.isnan(scores.parts["misbehave"]))
    assert scores.timeouts == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "warning: reward 'misbehave' killed its process (exit status -9) and counts as None; "
        "prompt: 'p0'; completion: 'SIGKILL' (2 more completions were lost)"
    )
    pool(PROBLEMS[:1], [["hang"]])
    assert "warning: reward 'misbehave' took more than 0.3 s and" in capsys.readouterr().err


def test_scores_are_computed_before_they_are_waited_for(tmp_path):
    def after(completions):  # ends once the caller has gone on
        while not (tmp_path / "gone on").exists():
            time.sleep(0.01)
        (tmp_path / "done").touch()
        return [1.0] * len(completions)

    with Rewarder({"after": after}, workers=1, timeout_s=30.0) as rewarder:
        wait = rewarder.submit(PROBLEMS[:1], [["a", "b"]])
        (tmp_path / "gone on").touch()
        while not (tmp_path / "done").exists():
            time.sleep(0.01)
        scores = wait()
    assert scores.timeouts == 0 and scores.parts["after"].tolist() == [[1.0, 1.0]]


def raise_on_b(completions, **columns):
    return [1.0 / (c != "b") for c in completions]


def test_what_a_thread_scores_raises_where_it_is_waited_for():
    with Rewarder({"mine": raise_on_b}, workers=1) as rewarder:
        wait = rewarder.submit(PROBLEMS, [["a"], ["b"]])
        with pytest.raises(RewardError, match="'mine' raised ZeroDivisionError"):
            wait()


def test_closing_ends_what_is_being_scored():
    before = set(multiprocessing.active_children())
    rewarder = Rewarder({"slow": lambda completions: time.sleep(60)}, workers=1, timeout_s=60.0)
    wait = rewarder.submit(PROBLEMS[:1], [["a"]])
    rewarder.close()
    with pytest.raises(RuntimeError, match="closed"):
        wait()
    assert set(multiprocessing.active_children()) == before


def test_a_pool_whose_idle_workers_were_killed_starts_again(pool):
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.5)
    scores = pool(PROBLEMS, [["a"], ["a"]])
    np.testing.assert_array_equal(scores.parts["exact"], [[1], [0]])


def test_calls_to_workers_just_killed_are_made_again():
    many = [Problem(f"p{i}", {"text": "x" * 4096}) for i in range(100)]  # more than a pipe holds
    with Rewarder({"length": lambda completions: list(map(len, completions))}, workers=2) as scored:
        scored(many[:2], [["a"]] * 2)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        scores = scored(many, [["a", "bb"]] * 100)
    np.testing.assert_array_equal(scores.parts["length"], [[1, 2]] * 100)
    assert scores.timeouts == 0


def test_a_worker_does_not_wait_long_for_a_lock_that_a_killed_one_held():
    with Rewarder({"seconds": lock_timeout}, workers=1) as rewarder:
        scores = rewarder(PROBLEMS[:1], [["a"]])
    assert scores.parts["seconds"] <= 5  # pebble's own: 60, twice


def noted(path):
    """A reward that writes down what it is asked, and sleeps where asked to."""

    def reward(completions, **columns):
        for completion in completions:
            with path.open("a") as file:
                file.write(f"{completion}\n")
            time.sleep(60 if completion == "hang" else 0.1)
        return [1.0] * len(completions)

    return reward


def test_the_limit_is_for_each_completion_and_none_is_asked_again_without_need(tmp_path):
    path = tmp_path / "asked"
    with Rewarder({"slow": noted(path)}, workers=2, timeout_s=0.3) as rewarder:
        scores = rewarder(PROBLEMS, [list("abcdefgh"), list("ijklmnop")])  # 0.8 s a call
    assert scores.timeouts == 0 and (scores.parts["slow"] == 1).all()
    assert sorted(path.read_text().split()) == list("abcdefghijklmnop")


def test_a_group_of_one_that_hangs_is_asked_once(tmp_path):
    path = tmp_path / "asked"
    with Rewarder({"slow": noted(path)}, workers=1, timeout_s=0.3) as rewarder:
        assert rewarder(PROBLEMS[:1], [["a"]]).timeouts == 0
        scores = rewarder(PROBLEMS, [["b"], ["hang"]])
    assert scores.timeouts == 1 and scores.lost.tolist() == [[False], [True]]
    assert path.read_text().split() == ["a", "b", "hang"]


def loads_lazily(path):
    loaded = []

    def reward(completions, **columns):
        if not loaded:
            time.sleep(1.0)
            loaded.append(path.open("a").write("loaded\n"))
        if "hang" in completions:
            time.sleep(60)
        return [1.0] * len(completions)

    return reward


def test_what_a_reward_loads_at_first_use_is_not_timed(tmp_path):
    path = tmp_path / "loaded"
    with Rewarder({"lazy": loads_lazily(path)}, workers=1, timeout_s=0.2) as rewarder:
        assert rewarder(PROBLEMS, [["a"], ["b"]]).timeouts == 0
        assert rewarder(PROBLEMS, [["a"], ["hang"]]).lost.tolist() == [[False], [True]]
        assert rewarder(PROBLEMS, [["a"], ["b"]]).timeouts == 0  # in the process that came after
    assert path.read_text() == "loaded\n" * 2


def test_a_reward_may_say_what_to_load_at_the_start(tmp_path, monkeypatch):
    def reward(completions):
        return [float((tmp_path / "loaded").exists())] * len(completions)

    reward.at_start = (tmp_path / "loaded").touch
    with Rewarder({"early": reward}, workers=1) as rewarder:
        assert rewarder(PROBLEMS[:1], [["a"]]).parts["early"] == 1

    def broken():
        raise RuntimeError("no model\nin that folder")

    reward.at_start = broken
    with Rewarder({"early": reward}, workers=1) as rewarder:
        message = (
            "reward 'early' cannot be loaded in a worker process: raised RuntimeError: no model at"
        )
        with pytest.raises(RewardError, match=message):
            rewarder(PROBLEMS[:1], [["a"]])
    reward.at_start = functools.partial(os._exit, 3)
    monkeypatch.setattr(evaluate, "RESTARTS", 0)
    match = r"the processes of the rewards 'early' end before .* at_start\Z"
    with (
        pytest.raises(RewardError, match=match),
        Rewarder({"early": reward}, workers=1) as rewarder,
    ):
        rewarder(PROBLEMS[:1], [["a"]])


def test_what_a_reward_failed_on_throughout_is_named(pool):
    problems = [Problem("p", {"rewards": [name]}) for name in ("misbehave", "lambda")]
    scores = pool(problems, [["die"], ["die"]])
    assert scores.failed == {"misbehave": "killed its process (exit status 3)", "lambda": ""}
    assert scores.timeouts == 1 and scores.lost.tolist() == [[True], [False]]


def test_what_cannot_be_shipped_is_named():
    lock = threading.Lock()
    with pytest.raises(RewardError, match="'lock' cannot be sent to worker processes"):
        Rewarder({"lock": lambda completions: [lock.locked() for _ in completions]}, workers=1)


def test_a_problem_that_cannot_be_shipped_is_named(pool):
    with pytest.raises(RewardError, match="'exact': prompt 'p' or its columns cannot be sent"):
        pool([Problem("p", {"answer": threading.Lock()})], [["a"]])


def refuses():
    raise OSError("not\nhere")


@pytest.mark.parametrize(
    ("reduced", "match"),
    [
        (None, "cannot be sent to a worker: ValueError: no"),
        ((refuses, ()), "cannot be read in a worker: raised OSError: not at"),
    ],
)
def test_a_column_that_cannot_be_pickled_or_read_is_named(pool, reduced, match):
    class Column:
        def __reduce__(self):
            if reduced is None:
                raise ValueError("no\nway")
            return reduced

    with pytest.raises(RewardError, match=f"'exact': .*prompt .*{match}"):
        pool([Problem("p", {"answer": Column()})], [["a"]])


class SlowToLoad:
    def __reduce__(self):
        return load_slowly, ()

    def __call__(self, completions):
        return [float("jax" in sys.modules) for _ in completions]


def load_slowly():
    time.sleep(1.2)
    return SlowToLoad()


def test_loading_a_reward_is_not_timed_and_workers_have_no_jax():
    with Rewarder({"slow": SlowToLoad()}, workers=1, timeout_s=1.0) as rewarder:
        scores = rewarder(PROBLEMS, [["a"], ["b"]])
    assert scores.timeouts == 0 and scores.parts["slow"].tolist() == [[0.0], [0.0]]


def test_close_leaves_no_process_and_ends_the_rewarder():
    before = set(multiprocessing.active_children())
    rewarder = Rewarder({"short": lambda completions: [1.0]}, workers=2)
    assert len(set(multiprocessing.active_children()) - before) == 2
    rewarder.close()
    rewarder.close()
    assert set(multiprocessing.active_children()) == before
    with pytest.raises(RuntimeError, match="closed"):
        rewarder(PROBLEMS[:1], [["a"]])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="workers=-1"):
        Rewarder({}, workers=-1)
    with pytest.raises(ValueError, match="timeout_s=0"):
        Rewarder({}, timeout_s=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_leaves_no_process_and_an_unguarded_script_works(tmp_path, number):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, signal, time
            print("main", flush=True)
            for number in (signal.SIGINT, signal.SIGTERM):  # a shell's & leaves one ignored
                signal.signal(number, signal.default_int_handler)
            from grpo_jax.rewards import Rewarder
            from grpo_jax.tasks import Problem
            rewarder = Rewarder({"slow": lambda completions: time.sleep(60)}, workers=1)
            try:
                while not multiprocessing.active_children():
                    time.sleep(0.05)
                print(multiprocessing.active_children()[0].pid, flush=True)
                rewarder([Problem("p")], [["c"]])
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            """
        )
    )
    child = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=os.getcwd(),
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        start_new_session=True,
    )
    assert child.stdout.readline() == "main\n"
    worker = int(child.stdout.readline())
    time.sleep(0.6)
    os.killpg(child.pid, number)  # as a terminal or a job's manager does: to the whole group
    output, _ = child.communicate(timeout=20)
    assert output == "interrupted\n"
    assert child.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
