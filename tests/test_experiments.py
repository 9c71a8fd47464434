"""The programs on a tiny run, the benchmark's counts, and the code that docs/ shows."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from tiny import compile_fast  # noqa: F401

from experiments import benchmark
from grpo_jax import algorithms, tasks
from grpo_jax.config import command_line, resolve
from grpo_jax.config.load import load_config_file
from grpo_jax.errors import UsageError
from grpo_jax.learning.state import abstract_state
from grpo_jax.learning.update import update
from grpo_jax.rewards import Rewarder
from grpo_jax.rewards import resolve as resolve_reward
from grpo_jax.sharding import make_mesh, using
from grpo_jax.tokenizers import encode
from grpo_jax.training.costs import size_table
from grpo_jax.training.experiment import build
from grpo_jax.training.rl import train
from grpo_jax.types import Batch, Prompts

ROOT = Path(__file__).resolve().parents[1]
# The code blocks of docs/ that name their file in the first line: {file: code}.
SNIPPETS = {
    name: code
    for page in (ROOT / "docs").glob("*.md")
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", page.read_text(), re.DOTALL)
}


@pytest.fixture(scope="module")
def snippets(tmp_path_factory) -> Iterator[Path]:
    """The files that docs/ shows, by their last names, in a folder to import from."""
    assert SNIPPETS.keys() == {"my_rewards.py", "grpo_jax/tasks/reverse.py", "configs/median.py"}
    folder = tmp_path_factory.mktemp("snippets")
    for path, code in SNIPPETS.items():
        (folder / Path(path).name).write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setitem(algorithms.ADVANTAGES, "group_median", None)  # taken out again at the end
        yield folder


@pytest.fixture(scope="module")
def run(snippets, tmp_path_factory) -> Path:
    """A run of two steps, with the algorithm and a reward of docs/, and its checkpoint."""
    config = load_config_file(str(snippets / "median.py"))
    config.steps, config.compilation_cache = 2, ""
    config.model.update(hidden=16, layers=1, heads=2, kv_heads=1, ff=32)
    config.rollout.update(prompts=2, group=4, max_tokens=12)
    config.eval.update(problems=8, every=0)
    config.rewards = {"accuracy": 1.0, "my_rewards:brief": 0.2}
    folder = tmp_path_factory.mktemp("run")
    train(resolve(config), folder)
    return folder


PROGRAMS = [p.stem for p in (ROOT / "experiments").glob("*.py") if "__main__" in p.read_text()]


def test_every_program_shows_its_flags_and_names_one_that_it_lacks(program):
    assert len(PROGRAMS) == 14
    for name in PROGRAMS:
        done = program(name, "--help")
        defined = re.findall(
            r'DEFINE_\w+\(\s*"(\w+)"', (ROOT / f"experiments/{name}.py").read_text()
        )
        assert done.returncode == 0 and done.stderr == "", (name, done)
        assert [flag for flag in defined if f"--{flag}" not in done.stdout] == [], (name, done)
        done = program(name, "--nonsense=3")
        assert (done.returncode, done.stdout) == (2, ""), (name, done)
        assert re.fullmatch(r"error: .*nonsense.*\n", done.stderr), (name, done)


def test_sample_prints_the_completion_alone(program, run):
    done = program("sample", f"--workdir={run}", "--prompt=347+589=", "--max_tokens=5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n") and done.stdout.count("\n") == 1
    assert set(re.sub(r"</?(think|answer)>", "", done.stdout)) <= set("0123456789+= \n")
    assert "step 2" in done.stderr


def test_sample_prints_a_line_for_each_completion(program, run):
    done = program("sample", f"--workdir={run}", "--prompt=1+2=", "--n=3", "--temperature=1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and len(set(lines)) > 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sample", ["--workdir={nothing}", "--prompt=1+2="], "holds no run"),
        ("sample", ["--workdir={run}", "--prompt=1+x="], "character 'x'"),
        ("sample", ["--workdir={run}"], "--prompt"),
        (
            "sample",
            ["--workdir={run}", "--prompt=1", "--chat_template_kwargs=[1"],
            "--chat_template_kwargs=[1: not JSON",
        ),
        ("evaluate", ["--workdir={nothing}"], "holds no run"),
        ("evaluate", [], "--workdir=DIR is needed"),
        ("evaluate", ["--config=configs/quick.py"], "--config=FILE with a model.path"),
        ("evaluate", ["--workdir={run}", "--samples=-1"], "--samples=-1"),
        ("memory", ["--model=qwen2.5-0.5b", "--device=none"], "--device=none: "),
        (
            "memory",
            ["--model=qwen2.5-0.5b", "--device=no.txtpb"],
            "--device=no.txtpb: No such file",
        ),
        (
            "memory",
            ["--model=qwen2.5-0.5b", "--device={binary}"],
            "bytes.txtpb: not a text file",
        ),
        ("r1", ["--config=configs/quick.py"], "it must have STAGES, STARTS"),
        *(("speculation", [f"--rows={n}"], "multiples of 8 up to 2048") for n in (7, 2056, "²")),
        ("speculation", ["--repeats=99999999999"], "--repeats=99999999999: it must be at most"),
        ("sample", ["--workdir={run}", "--prompt=1", "--seed=4294967296"], "[0, 4294967295]"),
        (
            "sample",
            ["--workdir={run}", "--prompt=1", '--chat_template_kwargs={{"a": 1}}'],
            "--chat_template_kwargs: a text prompt has no template; valid: --chat",
        ),
        ("evaluate", ["--workdir={run}/checkpoints/007"], "is no checkpoint of"),
        ("evaluate", ["--workdir={run}/metrics.jsonl"], "metrics.jsonl holds no run"),
        ("export", ["--workdir={run}"], "--out=... is needed: the directory to write"),
        ("export", ["--workdir={run}", "--out=/proc/out"], "/proc/out: "),
        ("export", ["--workdir=", "--out=out"], "--workdir= is empty"),
        ("rejection", ["--workdir={run}", "--out={binary}"], "bytes.txtpb is a file"),
        ("convert_gguf", ["--gguf={binary}", "--out={nothing}"], "bytes.txtpb: not a whole GGUF"),
        ("benchmark", ["--steps=99999999999999999999"], "--steps=99999999999999999999: must be"),
        ("train", ["--config=configs"], "--config: no Python file, but configs is a folder"),
        ("train", ["--config={binary}"], "bytes.txtpb is of another kind"),
        ("compare", ["--config=configs/quick.py", "--seeds=9999999"], "--seeds=9999999"),
        ("iterate", ["--config="], "--config: no Python file: ''; valid"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(program, run, tmp_path, name, arguments, message):
    (binary := tmp_path / "bytes.txtpb").write_bytes(b"\xff")
    given = [a.format(run=run, nothing=tmp_path / "nothing", binary=binary) for a in arguments]
    done = program(name, *given)
    assert done.returncode == 2, done
    assert done.stdout in ("", "importing JAX ...\n")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done
    assert message in done.stderr


def test_speculation_prints_what_it_measured(program):
    sizes = ("--steps=1", "--hidden=16", "--layers=1", "--rows=8", "--repeats=1")
    done = program("speculation", *sizes)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["rows"] == 8 and 0 <= result["speculative/acceptance_rate"] <= 1
    assert result["speedup"] > 0 and result["mtp/loss"] > 0


def test_evaluate_prints_tables_and_then_json(program, run):
    others = [str(run), f"{run}/checkpoints/2"]
    done = program(
        *("evaluate", f"--workdir={run}", "--problems=4", "--samples=2"),
        f"--against={','.join(others)}",
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert result["n"] == 4 and result["step"] == 2 and result["samples"] == 2
    assert result["accuracy/low"] <= result["accuracy"] <= result["accuracy/high"]
    assert {"pass@1", "pass@2", "pass@2/low"} <= result.keys()
    assert any("pass@2" in line and " to " in line for line in table)
    for measure in ("greedy accuracy", "pass@1"):
        assert any(f"{measure}, problem by problem" in line for line in table)
    same = {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    for name, other in zip(others, result["against"], strict=True):
        assert other["model"] == name and other["accuracy"] == result["accuracy"]
        assert other["lead"] == {"accuracy": same, "pass@1": same}


def test_evaluate_asks_a_run_the_problems_of_another_config(program, run):
    other = ("--config=configs/quick.py", "--config.task.digits=1", "--config.task.heldout_size=8")
    small = ("--config.prompt_length=8", "--problems=3")
    done = program("evaluate", f"--workdir={run}", *other, *small)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["n"], result["step"]) == (3, 2)
    assert "completions/mean_length" in result and "addition" in done.stdout


def test_evaluate_asks_a_run_a_benchmark(program, run, tmp_path):
    records = [{"prompt": f"{a}+{a}=", "answer": str(2 * a)} for a in range(1, 4)]
    path = tmp_path / "benchmark.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    other = ("--config=configs/benchmark.py", f"--config.task.path={path}")
    plain = ("--config.task.template=none", "--config.task.reward=exact_answer")
    small = ("--config.rollout.max_tokens=8", "--samples=4")
    done = program("evaluate", f"--workdir={run}", *other, *plain, *small)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["n"] == 3 and {"pass@1", "maj@4"} <= result.keys()


SMALL = ["--prompts=4", "--group=4", "--prompt_len=32", "--completion_len=16", "--hidden=64"]
SMALL += ["--layers=1", "--heads=2", "--kv_heads=1", "--ff=256", "--vocab=16"]


@pytest.mark.parametrize("extra", [[], ["--prompts=2", "--group=8", "--ff=512", "--layers=2"]])
def test_the_flop_count_of_an_update_is_near_that_of_xla(extra):
    """XLA counts whole squares of attention, element-wise work, and of the head one chunk."""
    a = benchmark.parse(SMALL + extra)
    model, algorithm, optimizer = benchmark.make_learner(a)
    P, G, S, T = a.prompts, a.group, a.prompt_len, a.completion_len
    of = jax.ShapeDtypeStruct
    per_token = of((P, G, T), jnp.float32)
    batch = Batch(
        prompts=Prompts(tokens=of((P, S), jnp.int32), mask=of((P, S), bool)),
        tokens=of((P, G, T), jnp.int32),
        mask=of((P, G, T), bool),
        advantages=of((P, G, 1), jnp.float32),
        logp_rollout=per_token,
    )
    mesh = make_mesh()
    with using(mesh):
        state = abstract_state(model, optimizer, mesh, reference=False)
        lowered = update.lower(state, batch, model=model, optimizer=optimizer, algorithm=algorithm)
    assert benchmark.update_flop(a) == pytest.approx(lowered.cost_analysis()["flops"], rel=0.12)


def test_counts_by_hand():
    sizes = ["--prompts=1", "--group=2", "--prompt_len=2", "--completion_len=2", "--hidden=2"]
    sizes += ["--layers=1", "--heads=1", "--kv_heads=1", "--ff=3", "--vocab=5"]
    a = benchmark.parse(sizes)
    # q, k, v, o of 2 x 2 and three of 2 x 3; head 2 x 5.
    assert benchmark.matmul_parameters(a) == (4 * 4 + 3 * 6, 10)
    pairs = 1 * 2 * 2 / 2 + 4 * (2 + 1)
    assert benchmark.forward_flop(a) == 2 * 34 * (2 + 4) + 2 * 10 * 4 + 4 * 2 * pairs
    assert benchmark.update_flop(a) == 3 * benchmark.forward_flop(a)
    # The second token of each completion is not forwarded; it would have seen 2 + 1.5 keys.
    saved = 2 * (2 * 34 + 4 * 2 * 3.5)
    assert benchmark.generation_flop(a) == benchmark.forward_flop(a) - saved
    # One decode step: the matrices, two keys and values of the prompt, one of each completion.
    assert benchmark.generation_bytes(a) == 4 * (44 + 2 * 2 * (2 + 2))


def test_benchmark_measures_a_step(monkeypatch):
    product = partial(benchmark.matmul_gflops, size=128, repeats=2)
    monkeypatch.setattr(benchmark, "matmul_gflops", product)
    a = benchmark.parse([*SMALL, "--steps=3", "--warmup=1", "--beta=0.1"])
    result = json.loads(json.dumps(benchmark.measure(a)))
    assert result["model_params"] == sum(benchmark.matmul_parameters(a)) + 64 * 16 + 3 * 64
    total = result["generation_s"] + result["update_s"]
    assert result["s_per_step_median"] == pytest.approx(total, abs=2e-4)
    assert len(result["step_s"]) == 3 and result["matmul_gflops"] > 0
    assert set(benchmark.COMPARED) <= result.keys() and set(benchmark.SIZES) <= result.keys()


def test_drivers_take_turns_with_the_same_sizes_and_ratios_are_theirs_to_ours(monkeypatch):
    calls = []

    def fake(command):
        calls.append(command)
        seconds = 3.0 if command[0] == "peer" else 2.0
        return dict.fromkeys(benchmark.COMPARED, seconds)

    monkeypatch.setattr(benchmark, "run_driver", fake)
    options = ["--workload=medium", "--rounds=2", "--dtype=bfloat16", "--beside=peer 'a b.py'"]
    result = benchmark.compare(benchmark.parse(options))
    benchmark.print_comparison(result)
    assert [c[0] == "peer" for c in calls] == [False, True, True, False]
    assert calls[1][:2] == ["peer", "a b.py"] and calls[0][4:] == calls[1][2:]
    assert calls[0][3] == "--dtype=bfloat16"  # ours only: a peer chooses its own
    assert "--hidden=512" in calls[1] and "--beta=0.0" in calls[1]
    assert result["beside"]["peer 'a b.py'"]["ratio"]["update_s"] == [1.5, 1.5, 1.5]


def test_a_driver_that_fails_is_named_in_one_line():
    with pytest.raises(UsageError, match=r"status 1: .*oh no"):
        benchmark.run_driver([sys.executable, "-c", "raise ValueError('oh no')"])
    with pytest.raises(UsageError, match="No such file"):
        benchmark.run_driver(["no-such-program"])
    for line in ("hello", "3", "{}", "[1]", '{"s_per_step_median": null}'):
        with pytest.raises(UsageError, match="no JSON object with the numbers s_per_step_median, "):
            benchmark.run_driver(["echo", line])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        *[("--group=1", "at least 2"), ("--warmup=6", "less than"), ("--heads=3", "must divide")],
        ("--beside='", '--beside: invalid split value: "\'"'),
    ],
)
def test_benchmark_refuses_impossible_sizes(flag, message):
    with pytest.raises(UsageError, match=message):
        benchmark.parse([flag])


def test_the_rewards_of_the_docs_score(snippets):
    names = ("my_rewards:brief", "my_rewards:first_digit")
    with Rewarder({name: resolve_reward(name) for name in names}) as rewarder:
        problem = tasks.Problem("1+2=", {"answer": "3"})
        scores = rewarder([problem], [["3", "4" * 100]])
    assert scores.parts[names[0]].tolist() == [[pytest.approx(0.99), 0.0]]
    assert scores.parts[names[1]].tolist() == [[1.0, 0.0]]


def test_the_task_of_the_docs_works_from_the_default_config(snippets, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(tasks.TASKS, "reverse", importlib.import_module("reverse").reverse)
    argv = ["train", "--config=configs/default.py"]
    argv += ["--config.task.name=reverse", "--config.task.length=5"]
    values = flags.FlagValues()
    command_line.define_flags(argv=argv, flag_values=values)
    command_line.parse_flags(argv, values)
    assert "config.task.digits" in capsys.readouterr().err
    ex = build(resolve(values.config))
    assert ex.task.solve(ex.task.heldout[0]) == ex.task.heldout[0].prompt[-2::-1]
    problem = ex.task.train[0]
    word = problem.prompt[:-1]
    assert len(word) == 5 and encode(ex.tokenizer, problem.prompt)
    completions = [f"<answer>{word[::-1]}</answer>", word + "a"]
    assert ex.task.accuracy([], completions, **{"answer": [problem.columns["answer"]] * 2}) == [
        1,
        0,
    ]
    assert problem.prompt not in {p.prompt for p in ex.task.heldout}


def test_sizes_in_memory_have_units():
    sizes = {"model": "m", "device": "cpu", "count": 1234, "parameters": 1.5, "peak": 2048.0}
    cells = [line.split(maxsplit=1)[1] for line in size_table(sizes)]
    assert cells == ["m", "cpu", "1234 parameters", "1.500 GiB", "2,048.000 GiB"]


def test_the_reward_and_the_algorithm_of_the_readme_train(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(lines[-1])
    assert len(lines) == 2 and metrics["grad_norm"] > 0
    assert 0 < metrics["rewards/my_rewards:brief/mean"] <= 1
    assert json.loads((run / "config.json").read_text())["algorithm"]["advantage"] == "group_median"


def test_the_advantage_of_the_docs_is_the_distance_to_the_median(snippets):
    config = resolve(load_config_file(str(snippets / "median.py")))
    function = algorithms.ADVANTAGES[config.algorithm.advantage]
    advantages = function(np.array([[0.0, 1.0, 5.0]]), np.ones((1, 3, 2), bool))
    assert advantages.shape == (1, 3, 1)
    assert advantages[0, :, 0].tolist() == [-1.0, 0.0, 4.0]
