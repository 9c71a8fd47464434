"""Iterative GRPO: python -m experiments.iterate --config=configs/iterative.py --iterations=2.

Algorithm 1 of DeepSeekMath (2402.03300). An iteration samples pairs of right and wrong completions
from the policy, trains the reward model on them and a share of earlier ones (replay), and trains
the policy on that model's scores. Its reference is the policy that the iteration starts
from, or under adapters the model without them.

The config file's get_config(name) gives 'policy', 'policy:RUN', rewarded by `reward_model:RUN`, and
'reward_model:RUN', whose task is `pairs`, with a `path` and a `replay`, and which may start from
the policy in RUN; later ones start from the reward model before.

    DIR/iteration0/policy           the policy before: a cold start, or what its config starts from
    DIR/iteration<n>/pairs          as experiments.rejection leaves it
    DIR/iteration<n>/reward_model   a run
    DIR/iteration<n>/policy         a run

Each is made in a separate process, and one that is there is resumed: the same command continues
where it was cut off, or adds iterations. DIR is --workdir, runs/<config name> by default.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments import stages
from grpo_jax.config.command_line import run_main
from grpo_jax.config.load import load_config_file

flags.adopt_module_key_flags(stages)
ITERATIONS = flags.DEFINE_integer("iterations", 2, "how many", lower_bound=1)
PROBLEMS = flags.DEFINE_integer(
    "problems", 256, "new problems that an iteration's pairs are of", lower_bound=1
)
SAMPLES = flags.DEFINE_integer(
    "samples", 8, "completions of each", lower_bound=2, upper_bound=2**16
)


def main():
    file, folder = stages.config_and_folder()
    for number in range(ITERATIONS.value + 1):
        iterate(file, folder, number)
    print("\n".join(table(folder, ITERATIONS.value)))


def part(folder: Path, number: int, name: str) -> Path:
    """The folder of a stage of an iteration."""
    return folder / f"iteration{number}" / name


def iterate(file: str, folder: Path, number: int) -> None:
    """Run the stages of an iteration; of 0, the first policy. UsageError where one fails."""
    config, policy = load_config_file(f"{file}:policy"), part(folder, number, "policy")
    given = {"seed": (config.seed + number) % 2**32}  # so that problems come in another order
    if number == 0:
        train("experiments.train", f"{file}:policy", policy, given | {"steps": 0})
        return
    before, judge = part(folder, number - 1, "policy"), part(folder, number, "reward_model")
    stages.run(
        *("experiments.rejection", f"--workdir={before}", f"--out={part(folder, number, 'pairs')}"),
        *(f"--problems={PROBLEMS.value}", f"--first={(number - 1) * PROBLEMS.value}"),
        *(f"--samples={SAMPLES.value}", f"--keep={SAMPLES.value}"),
        f"--temperature={config.rollout.temperature}",
    )
    train_reward_model(f"{file}:reward_model:{before}", folder, number, given)
    given |= {"start": before, "sft.steps": 0}
    train("experiments.train", f"{file}:policy:{judge}", policy, given)


def train_reward_model(config: str, folder: Path, number: int, fields: Mapping[str, Any]) -> None:
    """Train on the iteration's pairs and earlier ones, from where the iteration before ended."""
    new, *earlier = [part(folder, i, "pairs") for i in range(number, 0, -1)]
    replay = tuple(str(pairs / "pairs.jsonl") for pairs in earlier)
    given = {**fields, "task.path": new / "pairs.jsonl", "task.replay": replay}
    if earlier:
        given["start"] = part(folder, number - 1, "reward_model")
    loaded = load_config_file(config)
    if loaded.tokenizer == "char" and not loaded.model.path:
        given["tokenizer"] = new / "tokenizer"  # the policy's, the same in all iterations
    train("experiments.reward_model", config, part(folder, number, "reward_model"), given)


def train(program: str, config: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """Run a training program with a config and changes of its fields."""
    given = [f"--config.{field}={value}" for field, value in fields.items()]
    stages.run(program, f"--config={config}", f"--workdir={folder}", *given)


def table(folder: Path, iterations: int) -> list[str]:
    """A Markdown table of held-out accuracy after each iteration, 95% intervals."""
    rows = ["| iteration | reward model | policy |", "|---|---|---|"]
    for number in range(iterations + 1):
        both = [last_accuracy(part(folder, number, name)) for name in ("reward_model", "policy")]
        rows.append(f"| {number} | {' | '.join(both)} |")
    return rows


def last_accuracy(run: Path) -> str:
    """The last evaluation's accuracy of a run, if there is one."""
    from grpo_jax.runs.run import read_steps

    evals = read_steps(run / "eval.jsonl")
    if not evals:
        return ""
    last = evals[-1]
    if last["accuracy"] is None:  # the task's abstains on all problems
        return ""
    return f"{last['accuracy']:.3f} [{last['accuracy/low']:.3f}, {last['accuracy/high']:.3f}]"


if __name__ == "__main__":
    run_main(main, with_config=False, with_workdir=False)
