"""Benchmark: python -m experiments.benchmark --workload=short [--beside="PYTHON DRIVER.py"].

Times one GRPO step: sample P x G completions of exactly T tokens for prompts of exactly S tokens,
a trivial reward, one update; no stop token can be drawn. Weights are fp32: random ones of the
workload's model, with separate head and embedding, or with --model those of a Hugging Face
directory. Prints one JSON line. With --beside, another project's driver and this one alternate,
each in a separate process with the same sizes, and the medians of the rounds' ratios are printed.

P prompts, G group, S prompt length, T completion length.
"""

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time

import numpy as np

from grpo_jax.config.checks import INT_MAX
from grpo_jax.config.command_line import prepare_process
from grpo_jax.console.progress import checked, importing, result_on_stdout, say
from grpo_jax.console.reporting import reporting
from grpo_jax.errors import UsageError
from grpo_jax.files import at_home
from grpo_jax.models import flops
from grpo_jax.models.config import ModelConfig

SIZES: dict[str, float] = {
    "prompts": 8,
    "group": 8,
    "prompt_len": 32,
    "completion_len": 64,
    "hidden": 256,
    "layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "ff": 1024,
    "vocab": 128,
    "beta": 0.0,
    "steps": 6,
    "warmup": 2,
}
# What each workload changes of SIZES.
WORKLOADS: dict[str, dict[str, float]] = {
    "short": {},
    "short_beta": {"beta": 0.04},
    "long_prompt": {"prompts": 4, "group": 16, "prompt_len": 256},
    "medium": {
        **{"prompts": 4, "prompt_len": 64, "completion_len": 128},
        **{"hidden": 512, "layers": 8, "heads": 8, "ff": 2048},
    },
    "real": {"prompt_len": 80, "completion_len": 32},  # for --model
}
MODEL_SIZES = ("hidden", "layers", "heads", "kv_heads", "ff")
COMPARED = ("s_per_step_median", "generation_s", "update_s", "peak_rss_mb")
BYTES = {"float32": 4, "bfloat16": 2}


def model_sizes(a):
    """The workload's model, as its sizes say."""
    return ModelConfig(vocab_size=a.vocab, **{name: getattr(a, name) for name in MODEL_SIZES})


def lengths(a):
    """Tokens of prompts [P] and of completions [P, G], as `models.flops` counts."""
    completions = np.full((a.prompts, a.group), a.completion_len)
    return np.full(a.prompts, a.prompt_len), completions


def matmul_parameters(a):
    """Parameters of the layers' matrices, and of the head."""
    return flops.matmul_parameters(model_sizes(a))


def forward_flop(a):
    """FLOPs of one forward pass over P groups."""
    return flops.forward_flop(model_sizes(a), lengths(a))


def update_flop(a):
    """FLOPs of one update, the reference included where beta > 0."""
    return flops.update_flop(model_sizes(a), lengths(a), before=int(a.beta > 0))


def generation_flop(a):
    """FLOPs of sampling."""
    return flops.generation_flop(model_sizes(a), lengths(a))


def generation_bytes(a):
    """Bytes that decoding must read: per token all matrices, each prompt's KV once, the own KV."""
    row = a.layers * 2 * a.kv_heads * (a.hidden // a.heads)
    steps, length = a.completion_len - 1, a.completion_len
    own = a.group * steps * length / 2  # 1 + 2 + ... + (T - 1) keys a completion
    keys = a.prompts * row * (steps * a.prompt_len + own)
    return BYTES[a.dtype] * (steps * sum(matmul_parameters(a)) + keys)


def measure(a):
    """Time `a.steps` steps and return what is printed."""
    import jax

    from grpo_jax.runs.run import environment

    before = matmul_gflops()
    parameters, steps = run_steps(a)
    peak = peak_rss_mb()
    gflops = statistics.median([*before, *matmul_gflops()])
    kept = steps[a.warmup :]
    step, generation = (statistics.median(s[i] for s in kept) for i in range(2))
    update = step - generation
    work = {"update": (update_flop(a), update), "generation": (generation_flop(a), generation)}
    result = {
        "project": "grpo_jax",
        **environment(),
        "device": jax.devices()[0].device_kind,
        "dtype": a.dtype,
        "model_params": parameters,
        **{name: getattr(a, name) for name in SIZES},
        "s_per_step_median": round(step, 4),
        "generation_s": round(generation, 4),
        "update_s": round(update, 4),
        "completion_tokens_per_s": round(a.prompts * a.group * a.completion_len / step, 1),
        "peak_rss_mb": peak,
        "compile_s": round(steps[0][0] - step, 2),
        "matmul_gflops": round(gflops, 1),
    }
    for name, (flop, seconds) in work.items():
        result[f"{name}_gflop"] = round(flop / 1e9, 3)
        result[f"{name}_fraction_of_matmul"] = round(flop / 1e9 / seconds / gflops, 4)
    result["generation_gbyte"] = round(generation_bytes(a) / 1e9, 3)
    result["load1"] = round(os.getloadavg()[0], 2)
    result["step_s"] = [round(total, 4) for total, _ in steps]
    return result


def run_steps(a):
    """Return the number of parameters and, for each step, (seconds, seconds of its sampling)."""
    import jax

    from grpo_jax.learning.state import init_state
    from grpo_jax.models.weights import load_weights
    from grpo_jax.sharding import make_mesh, using
    from grpo_jax.training.pretrained import abstract_params

    mesh = make_mesh()
    model, algorithm, optimizer = make_learner(a)
    rng = np.random.default_rng(0)
    with using(mesh):
        params = (
            load_weights(a.model, model.config, abstract_params(model, mesh)) if a.model else None
        )
        reference = algorithm.beta > 0
        key = jax.random.key(0)
        state = init_state(model, optimizer, key, mesh, reference=reference, params=params)
        del params
        parameters = sum(x.size for x in jax.tree.leaves(state.policy.trained))
        seconds = []
        for number in range(a.steps):
            tokens = rng.integers(0, a.vocab, (a.prompts, a.prompt_len), np.int32)
            began = time.perf_counter()
            rollouts = generate(a, model, state, tokens, number, mesh)
            generated = time.perf_counter()
            state = learn(model, algorithm, optimizer, state, rollouts, mesh)
            ended = time.perf_counter()
            seconds.append((ended - began, generated - began))
    return parameters, seconds


def make_learner(a):
    """The model, the algorithm and the optimizer of a workload."""
    import dataclasses

    from grpo_jax.algorithms import PRESETS
    from grpo_jax.config import defaults
    from grpo_jax.learning.optimizer import make_optimizer
    from grpo_jax.models.config_json import read_config_file
    from grpo_jax.models.decoder import Decoder

    sizes = {name: getattr(a, name) for name in MODEL_SIZES}
    own = ModelConfig(vocab_size=a.vocab, tied=False, **sizes)
    chosen = read_config_file(a.model) if a.model else own
    model = Decoder(dataclasses.replace(chosen, dtype=a.dtype))
    algorithm = dataclasses.replace(PRESETS["grpo"], beta=a.beta)
    config = defaults().optimizer
    config.learning_rate = 1e-5
    return model, algorithm, make_optimizer(config, a.steps)


def generate(a, model, state, tokens, number, mesh):
    """Rollouts on the host, of prompts i32[P, S], as the trainer samples them."""
    import jax.numpy as jnp

    from grpo_jax.engines.base import completion_keys
    from grpo_jax.engines.filters import Sampling
    from grpo_jax.engines.lockstep import sample
    from grpo_jax.hosts import fetch
    from grpo_jax.sharding import put_batch
    from grpo_jax.types import Prompts

    # No token has the id of the stop token, so that every completion has T tokens.
    sampling = Sampling(max_tokens=a.completion_len, stop=(a.vocab,))
    prompts = put_batch(Prompts(tokens=tokens, mask=jnp.ones(tokens.shape, bool)), mesh)
    keys = completion_keys(state.rng, number, np.arange(len(tokens)), a.group)
    rollouts = fetch(sample(model, state.policy.trained, prompts, keys, sampling=sampling))
    assert rollouts.mask.all() and not rollouts.finished.any()
    return rollouts


def learn(model, algorithm, optimizer, state, rollouts, mesh):
    """Reward the rollouts by how many tokens differ, and return the state after one update."""
    import jax

    from grpo_jax.hosts import fetch
    from grpo_jax.learning.prepare import prepare
    from grpo_jax.learning.update import update
    from grpo_jax.sharding import put_batch

    rewards = np.array([[len(set(row)) for row in group] for group in rollouts.tokens.tolist()])
    batch = prepare(
        state,
        put_batch(rollouts, mesh),
        put_batch(rewards.astype(np.float32), mesh),
        model=model,
        algorithm=algorithm,
        temperature=1.0,
    )
    state, metrics = update(state, batch, model=model, optimizer=optimizer, algorithm=algorithm)
    fetch(metrics)
    return jax.block_until_ready(state)


def matmul_gflops(size=2048, repeats=5):
    """GFLOP/s of fp32 products of two [size, size] matrices, `repeats` of them."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(x, x).block_until_ready()
        rates.append(2 * size**3 / (time.perf_counter() - began) / 1e9)
    return rates


def peak_rss_mb():
    """Peak resident memory of this process; Linux counts it in KiB, macOS in bytes."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def compare(a):
    """Alternate ours and every --beside command; return each one's results and the ratios."""
    sizes = [f"--{name}={getattr(a, name)}" for name in SIZES]
    sizes += [f"--model={a.model}"] * bool(a.model)
    ours = [sys.executable, "-m", "experiments.benchmark", f"--dtype={a.dtype}"]
    commands = {"grpo_jax": ours} | {shlex.join(c): c for c in a.beside}
    results: dict[str, list] = {name: [] for name in commands}
    for number in range(a.rounds):
        # Every other round runs backwards, so that a machine that drifts favours nobody.
        for name in list(commands)[:: -1 if number % 2 else 1]:
            results[name].append(run_driver([*commands[name], *sizes]))
            seconds = results[name][-1]["s_per_step_median"]
            print(f"round {number + 1}/{a.rounds}: {name} {seconds} s a step", file=sys.stderr)
    mine = results.pop("grpo_jax")
    peers = {name: ratios(theirs, mine) for name, theirs in results.items()}
    return {
        "rounds": a.rounds,
        **{name: getattr(a, name) for name in SIZES},
        "grpo_jax": medians(mine),
        "beside": {name: {**medians(results[name]), "ratio": peers[name]} for name in results},
        "details": {"grpo_jax": mine, **results},
    }


def run_driver(command):
    """Run a driver and return the JSON of its last line; UsageError where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        return found | {name: float(found[name]) for name in COMPARED}
    except subprocess.CalledProcessError as error:
        why = f"status {error.returncode}: {(error.stderr.splitlines() or [''])[-1]}"
    except OSError as error:
        why = str(error)
    except (IndexError, KeyError, TypeError, ValueError):
        why = f"its last line is no JSON object with the numbers {', '.join(COMPARED)}"
    raise UsageError(f"{shlex.join(command)}: {why}")


def medians(results):
    """The medians of the compared figures."""
    return {name: round(statistics.median(r[name] for r in results), 4) for name in COMPARED}


def ratios(theirs, mine):
    """Per figure, the median, lowest and highest of the rounds' ratios theirs / ours."""
    found = {}
    for name in COMPARED:
        rounds = [b[name] / o[name] for o, b in zip(mine, theirs, strict=True)]
        middle = statistics.median(rounds)
        found[name] = [round(x, 3) for x in (middle, min(rounds), max(rounds))]
    return found


def print_comparison(result):
    """Print a table: ours, then every other driver with its ratios to ours."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"medians of {result['rounds']} rounds; in brackets: times ours")
    table.add_column("driver", overflow="fold")
    for name in ("s / step", "sampling, s", "update, s", "peak RSS, MB"):
        table.add_column(name, justify="right")
    table.add_row("grpo_jax", *[f"{result['grpo_jax'][name]:g}" for name in COMPARED])
    for name, found in result["beside"].items():
        cells = [f"{found[k]:g} ({found['ratio'][k][0]:.2f})" for k in COMPARED]
        said = result["details"][name][0]  # drivers may say who they are
        label = f"{said['peer']} {said.get('version', '')}" if "peer" in said else name
        table.add_row(Text(label), *cells)
    Console().print(table)


class _Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong, as every program here does."""

    def error(self, message):
        raise UsageError(message)


def parse(argv=None):
    """Sizes come from their own flags, else from --workload, else from SIZES."""
    parser = _Parser(
        prog="python -m experiments.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--workload=NAME] [--<size>=N ...] [--beside=COMMAND --rounds=N]",
    )
    parser.add_argument("--workload", choices=WORKLOADS, default="short")
    parser.add_argument("--model", type=at_home, help="a Hugging Face directory, with the sizes")
    parser.add_argument("--dtype", choices=BYTES, default="float32", help="of our computation")
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=type(value), help=f"in 'short': {value}")
    text = "a driver to compare with; repeatable"
    parser.add_argument("--beside", action="append", default=[], type=shlex.split, help=text)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each driver")
    a = parser.parse_args(argv)
    for name, value in (SIZES | WORKLOADS[a.workload]).items():
        if getattr(a, name) is None:
            setattr(a, name, value)
    if a.model:
        read_sizes(a, parser)
    for name in (*SIZES, "rounds"):
        low = 0 if name in ("beta", "warmup") else 2 if name == "group" else 1
        if not low <= getattr(a, name) <= INT_MAX:
            parser.error(
                f"--{name}={getattr(a, name)}: must be at least {low}, and at most {INT_MAX}"
            )
    if a.warmup >= a.steps:
        parser.error(f"--warmup={a.warmup}: must be less than --steps={a.steps}")
    if a.hidden % a.heads or a.heads % a.kv_heads:
        parser.error(
            f"--heads={a.heads} must divide --hidden={a.hidden}, --kv_heads={a.kv_heads} the heads"
        )
    return a


def read_sizes(a, parser):
    """Set the sizes of the model in the directory a.model."""
    from grpo_jax.models.config_json import read_config_file

    try:
        found = read_config_file(a.model)
    except (OSError, ValueError) as error:
        parser.error(f"--model={a.model}: {error}")
    if found.experts.count or found.latent.kv_rank or found.head_dim * found.heads != found.hidden:
        parser.error(f"--model={a.model}: FLOPs are counted only for plain heads and layers")
    for name in MODEL_SIZES:
        setattr(a, name, getattr(found, name))
    a.vocab = found.vocab_size


def main():
    a = parse()
    if not a.beside:
        prepare_process()  # as every program does
        result_on_stdout()
        checked()
        with importing():
            import jax  # noqa: F401
        say(f"measuring {a.steps} steps")
        print(json.dumps(measure(a)))
        return
    result = compare(a)
    print_comparison(result)
    print(json.dumps(result))


if __name__ == "__main__":
    reporting(main)
