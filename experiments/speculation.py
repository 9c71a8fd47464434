"""Speculation: python -m experiments.speculation [--steps=150 --rows=8,64 --temperature=1.0].

Trains a small model with latent attention and a multi-token prediction layer, as DeepSeek-V3 has,
on the worked two-digit additions of configs/quick.py, then samples completions with and without
speculative decoding, alternating. Prints one JSON line for each number of completions: how many
drafts were accepted, tokens a completion gained by a pass of the decoder, and tokens a second.
"""

import dataclasses
import json
import statistics
import time
from typing import Any

from absl import flags

from grpo_jax.config.command_line import run_main
from grpo_jax.console.progress import checked, doing, importing, result_on_stdout

STEPS = flags.DEFINE_integer("steps", 150, "of supervised fine-tuning", lower_bound=1)
ROWS = flags.DEFINE_list("rows", ["8", "64"], "completions decoded together; multiples of 8")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 is greedy", lower_bound=0.0)
REPEATS = flags.DEFINE_integer("repeats", 7, "of each measurement", lower_bound=1)
HIDDEN = flags.DEFINE_integer("hidden", 256, "width of the model", lower_bound=8)
LAYERS = flags.DEFINE_integer("layers", 4, "of the decoder", lower_bound=1)
GROUP = 8
MOST = 256 * GROUP  # of what configs/quick.py holds out

flags.register_validator(
    "rows",
    lambda rows: bool(rows) and all(r in map(str, range(GROUP, MOST + 1, GROUP)) for r in rows),
    f"multiples of {GROUP} up to {MOST} are needed, such as 8,64",
)


def experiment():
    """The task of configs/quick.py, with the model."""
    import dataclasses

    from configs.quick import get_config
    from grpo_jax.config import resolve
    from grpo_jax.models.config import Latent, ModelConfig
    from grpo_jax.models.decoder import Decoder
    from grpo_jax.training.experiment import build

    config = get_config()
    config.compilation_cache = ""
    config.sft.batch, config.sft.learning_rate = 32, 1e-3
    ex = build(resolve(config))
    h = HIDDEN.value
    model = ModelConfig(
        vocab_size=ex.tokenizer.vocab_size,
        hidden=h,
        layers=LAYERS.value,
        ff=3 * h,
        latent=Latent(kv_rank=h // 2, nope_dim=h // 4, rope_dim=h // 8, v_dim=h // 4),
        mtp=1,
    )
    return dataclasses.replace(ex, model=Decoder(model))


def fine_tune(ex):
    """The parameters after supervised fine-tuning, the drafting layer with the decoder."""
    import jax

    from grpo_jax.learning.optimizer import make_optimizer
    from grpo_jax.learning.state import init_state
    from grpo_jax.learning.update import update
    from grpo_jax.sharding import put_batch
    from grpo_jax.tasks.loader import batches
    from grpo_jax.training.sft import LIKELIHOOD, Solved, optimizer_config, supervised_batch

    c = ex.config
    optimizer = make_optimizer(optimizer_config(c), STEPS.value)
    state = init_state(ex.model, optimizer, jax.random.key(c.seed), ex.mesh, reference=False)
    data = batches(Solved(ex.task.train, 0), c.sft.batch, c.seed, ex.fits)
    for _ in range(STEPS.value):
        batch = put_batch(supervised_batch(ex, next(data)), ex.mesh)
        state, metrics = update(
            state,
            batch,
            model=ex.model,
            optimizer=optimizer,
            algorithm=LIKELIHOOD,
            joint_mtp=True,
        )
    return state.policy.full, {k: round(float(metrics[k]), 3) for k in ("loss", "mtp/loss")}


def measure(ex, params, rows):
    """Acceptance, and the median tokens a second of both ways, which alternate."""
    import jax
    import numpy as np

    from grpo_jax.engines import completion_keys, make_engine
    from grpo_jax.engines.speculative import speculation_metrics
    from grpo_jax.rollout.play import encode, generate

    problems = [ex.task.heldout[i] for i in range(rows // GROUP)]
    prompts = encode(ex.player, problems)
    sampling = ex.sampling(temperature=TEMPERATURE.value)
    rates: dict[str, list[float]] = {"lockstep": [], "speculative": []}
    out: dict[str, Any] = {}
    for number in range(REPEATS.value + 1):
        keys = completion_keys(jax.random.key(number), 0, np.arange(len(problems)), GROUP)
        for name in rates:
            player = dataclasses.replace(ex.player, engine=make_engine(name, ex.model))
            began = time.perf_counter()
            out[name] = generate(player, params, prompts, keys, sampling)
            rate = int(out[name].mask.sum()) / (time.perf_counter() - began)
            if number:  # the first compiles
                rates[name].append(rate)
    plain, speculative = (statistics.median(rates[name]) for name in rates)
    drafted = out["speculative"]
    return {
        "rows": rows,
        "mean_length": round(float(drafted.mask.sum(-1).mean()), 1),
        **{name: round(value, 3) for name, value in speculation_metrics(drafted).items()},
        "plain_tokens_per_second": round(plain),
        "speculative_tokens_per_second": round(speculative),
        "speedup": round(speculative / plain, 3),
    }


def main():
    result_on_stdout()
    checked()
    with importing():
        import jax

        from grpo_jax.sharding import using

    ex = experiment()
    with using(ex.mesh):
        with doing(f"fine-tuning for {STEPS.value} steps"):
            params, losses = fine_tune(ex)
        size = sum(x.size for x in jax.tree.leaves(params))
        for rows in map(int, ROWS.value):
            with doing(f"sampling {rows} completions both ways"):
                found = measure(ex, params, rows)
            print(json.dumps({"model_params": size, **losses, **found}), flush=True)


if __name__ == "__main__":
    run_main(main, with_config=False, with_workdir=False)
