"""Memory: python -m experiments.memory --model=qwen2.5-0.5b --group=16 --max_tokens=1024.

What GRPO on a model takes on one device, from the compiler's own analysis: nothing is loaded and
nothing runs. --model is a published checkpoint's name (grpo_jax/models/sizes.py) or a Hugging Face
directory. Prints a table and one JSON line of the same names, whose sizes are in GiB. XLA's CPU
compiler holds float32 copies of bfloat16 matrices; with --device, XLA compiles for an accelerator
that need not be there: a GPU that a file describes (experiments/gpus; pip install "jax[cuda12]") or
a TPU (pip install libtpu).
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from grpo_jax.config.command_line import run_main
from grpo_jax.console.progress import checked, doing, importing, result_on_stdout

MODEL = flags.DEFINE_string("model", None, "a name, or a Hugging Face directory", required=True)
PROMPTS = flags.DEFINE_integer("prompts", 1, "P, prompts a step", lower_bound=1)
GROUP = flags.DEFINE_integer("group", 16, "G, completions a prompt", lower_bound=1)
PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 512, "S, tokens", lower_bound=1)
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 1024, "T, tokens", lower_bound=1)
PARTS = flags.DEFINE_integer("accumulation", 1, "micro-batches an update", lower_bound=1)
BASE = flags.DEFINE_enum("base", "none", ["none", "int8", "int4", "nf4"], "what adapters lie on")
LORA = flags.DEFINE_integer("lora", 0, "rank of adapters; 0 = train all", lower_bound=0)
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "of the computation")
PARAM_DTYPE = flags.DEFINE_string("param_dtype", "bfloat16", "of the parameters and Adam's moments")
DEVICE = flags.DEFINE_string("device", "", "to compile for: a GPU's file, or a TPU as v5p:2x2x1")
REMAT = flags.DEFINE_string("remat", "full", "what the backward pass recomputes")
GIB = 2**30


def main():
    result_on_stdout()
    with importing():
        import jax

        from grpo_jax.models.decoder import Decoder
        from grpo_jax.training.costs import analysis, size_table, tree_bytes

    c = _config()
    model = Decoder(c)
    mesh = _mesh()
    checked()
    with doing(f"compiling for {MODEL.value}"):
        sampled, updated, state = _compiled(model, mesh)
    sizes = {
        "parameters": tree_bytes(state.policy.full),
        "optimizer": tree_bytes(state.opt_state),
        **{f"sample/{k}": v for k, v in analysis(sampled).items()},
        **{f"update/{k}": v for k, v in analysis(updated).items()},
    }
    # The optimizer's state stays while completions are sampled.
    sizes["peak"] = max(sizes["update/total"], sizes["sample/total"] + sizes["optimizer"])
    count = sum(x.size for x in jax.tree.leaves(state.policy.full))
    result = {"model": MODEL.value, "device": mesh.devices.flat[0].device_kind, "count": count}
    result |= {name: round(value / GIB, 3) for name, value in sizes.items()}
    print("\n".join(size_table(result)))
    print(json.dumps(result))


def _config():
    from grpo_jax.models.config import Lora
    from grpo_jax.models.config_json import read_config_file
    from grpo_jax.models.sizes import size

    path = Path(MODEL.value)
    found = read_config_file(path) if path.is_dir() else size(MODEL.value)
    return dataclasses.replace(
        found,
        dtype=DTYPE.value,
        param_dtype=PARAM_DTYPE.value,
        remat=REMAT.value,
        scan_layers=True,
        lora=Lora(rank=LORA.value, base=BASE.value),
    )


def _mesh():
    """One device: of this machine, or the one to compile for."""
    import jax
    from jax.experimental import topologies

    from grpo_jax.errors import UsageError
    from grpo_jax.sharding import make_mesh

    name = DEVICE.value
    if not name:
        return make_mesh()
    jax.config.update("jax_platforms", "cpu")  # only the compiler, no device
    wanted: dict[str, str] = {"platform": "tpu", "topology_name": name}
    if name.endswith(".txtpb"):
        try:
            spec = Path(name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", "not a text file")
            raise UsageError(f"--device={name}: {reason}") from error
        wanted = {"platform": "cuda", "topology": "1x1x1", "target_config": spec}
    try:
        found = topologies.get_topology_desc(**wanted)
    except RuntimeError as error:  # no compiler, or no such device
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"--device={name}: {reason}; valid: experiments/gpus/h200.txtpb with jax[cuda12], "
            "v5p:2x2x1 with libtpu"
        ) from error
    return make_mesh(devices=found.devices)


def _compiled(model, mesh):
    """The compiled sampler and update, and the state's shapes."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from grpo_jax import algorithms
    from grpo_jax.config import defaults
    from grpo_jax.engines.filters import Sampling
    from grpo_jax.engines.lockstep import sample
    from grpo_jax.learning.optimizer import make_optimizer
    from grpo_jax.learning.state import abstract_state
    from grpo_jax.learning.update import update
    from grpo_jax.models.quantized import quantize_kernels
    from grpo_jax.types import Batch, Prompts

    P, G, S, T = PROMPTS.value, GROUP.value, PROMPT_LENGTH.value, MAX_TOKENS.value
    whole = NamedSharding(mesh, PartitionSpec())
    shape: Any = partial(jax.ShapeDtypeStruct, sharding=whole)
    prompts = Prompts(tokens=shape((P, S), jnp.int32), mask=shape((P, S), bool))
    batch = Batch(
        prompts=prompts,
        tokens=shape((P, G, T), jnp.int32),
        mask=shape((P, G, T), bool),
        advantages=shape((P, G, 1), jnp.float32),
        logp_rollout=shape((P, G, T), jnp.float32),
    )
    optimizer = make_optimizer(defaults().optimizer, 100)
    state = abstract_state(model, optimizer, mesh, reference=False)
    if BASE.value != "none":
        quantize = partial(quantize_kernels, kind=BASE.value)
        base = jax.eval_shape(quantize, state.policy.base)
        state = state.replace(policy=state.policy.replace(base=base))
    sampling = Sampling(T, stop=(0,))
    keys = jax.eval_shape(lambda rng: jax.random.split(rng, (P, G)), state.rng)
    keys = keys.update(sharding=whole)
    sampled = sample.lower(model, state.policy.full, prompts, keys, sampling=sampling).compile()
    updated = update.lower(
        state,
        batch,
        model=model,
        optimizer=optimizer,
        algorithm=algorithms.PRESETS["dr_grpo"],
        accumulation=PARTS.value,
    ).compile()
    return sampled, updated, state


if __name__ == "__main__":
    run_main(main, with_config=False, with_workdir=False)
