"""Export: python -m experiments.export --workdir=RUN --out=DIR [--adapters].

Writes a run's newest checkpoint as a Hugging Face directory, adapters merged, that Transformers
loads; or, with --adapters, as PEFT keeps adapters. A reward model is written as a model
ForSequenceClassification. DIR is new, empty, or wholly an earlier export, which is replaced.
"""

from pathlib import Path

from absl import flags

from grpo_jax.config.command_line import run_main
from grpo_jax.console.progress import doing, importing

OUT = flags.DEFINE_string("out", None, "the directory to write", required=True)
ADAPTERS = flags.DEFINE_boolean("adapters", False, "only the adapters, in PEFT's format")


def main(workdir):
    with importing():  # JAX, which --help and bad flags need not
        from grpo_jax.errors import UsageError
        from grpo_jax.files import check_replaceable
        from grpo_jax.models.lora import merge_adapters, save_adapters
        from grpo_jax.models.weights import save_model
        from grpo_jax.training.load_reward_model import scoring_params
        from grpo_jax.training.loading import load_trained

    out = Path(OUT.value)
    check_replaceable(out)  # before the minutes that a large model takes
    ex, params, step = load_trained(workdir, scores=True)
    c = ex.model.config
    if "value" not in params and ADAPTERS.value and not c.lora.rank:
        raise UsageError(f"--adapters: the run in {workdir} has none (config.model.lora.rank=0)")
    with doing(f"writing {out}"):
        if "value" in params:
            save_model(out, *scoring_params(ex.origin, params), ex.source, ex.tokenizer)
        elif ADAPTERS.value:
            save_adapters(out, c, params, str(ex.source))
        else:
            save_model(out, c, merge_adapters(c, params), ex.source, ex.tokenizer)
    print(f"{workdir}, step {step}: written to {out}")


if __name__ == "__main__":
    run_main(main, with_config=False)
