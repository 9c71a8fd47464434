"""Iterative GRPO, Algorithm 1 of DeepSeekMath (2402.03300), as programs run one after another."""

from pathlib import Path

from grpo_jax.config.load import load_config_file
from grpo_jax.console.programs import run_program
from grpo_jax.files import JsonMapping
from grpo_jax.runs.run import read_steps


def path_of(folder: Path, number: int, name: str) -> Path:
    """The folder of a stage of an iteration."""
    return folder / f"iteration{number}" / name


def iterate(file: str, folder: Path, number: int, problems: int, samples: int) -> None:
    """Run the stages of an iteration; of 0, the first policy. UsageError where one fails.

    file      a config file with `policy` and `reward_model`, see experiments.iterate
    problems  new ones that its pairs are of
    samples   completions of each
    """
    config, policy = load_config_file(f"{file}:policy"), path_of(folder, number, "policy")
    given = {"seed": (config.seed + number) % 2**32}  # so that problems come in another order
    if number == 0:
        train_stage("experiments.train", f"{file}:policy", policy, given | {"steps": 0})
        return
    before, judge = (
        path_of(folder, number - 1, "policy"),
        path_of(folder, number, "reward_model"),
    )
    run_program(
        *(
            "experiments.rejection",
            f"--workdir={before}",
            f"--out={path_of(folder, number, 'pairs')}",
        ),
        *(f"--problems={problems}", f"--first={(number - 1) * problems}"),
        *(f"--samples={samples}", f"--keep={samples}"),
        f"--temperature={config.rollout.temperature}",
    )
    train_reward_model(f"{file}:reward_model:{before}", folder, number, given)
    given |= {"start": before, "sft.steps": 0}
    train_stage("experiments.train", f"{file}:policy:{judge}", policy, given)


def train_reward_model(config: str, folder: Path, number: int, fields: JsonMapping) -> None:
    """Train on the iteration's pairs and earlier ones, from where the iteration before ended."""
    new, *earlier = [path_of(folder, i, "pairs") for i in range(number, 0, -1)]
    replay = tuple(str(pairs / "pairs.jsonl") for pairs in earlier)
    given = {**fields, "task.path": new / "pairs.jsonl", "task.replay": replay}
    if earlier:
        given["start"] = path_of(folder, number - 1, "reward_model")
    loaded = load_config_file(config)
    if loaded.tokenizer == "char" and not loaded.model.path:
        given["tokenizer"] = new / "tokenizer"  # the policy's, the same in all iterations
    train_stage("experiments.reward_model", config, path_of(folder, number, "reward_model"), given)


def train_stage(program: str, config: str, folder: Path, fields: JsonMapping) -> None:
    """Run a training program with a config and changes of its fields."""
    given = [f"--config.{field}={value}" for field, value in fields.items()]
    run_program(program, f"--config={config}", f"--workdir={folder}", *given)


def table(folder: Path, iterations: int) -> list[str]:
    """A Markdown table of held-out accuracy after each iteration, 95% intervals."""
    rows = ["| iteration | reward model | policy |", "|---|---|---|"]
    for number in range(iterations + 1):
        both = [last_accuracy(path_of(folder, number, name)) for name in ("reward_model", "policy")]
        rows.append(f"| {number} | {' | '.join(both)} |")
    return rows


def last_accuracy(run: Path) -> str:
    """The last evaluation's accuracy of a run, if there is one."""
    evals = read_steps(run / "eval.jsonl")
    if not evals:
        return ""
    last = evals[-1]
    if last["accuracy"] is None:  # the task's abstains on all problems
        return ""
    return f"{last['accuracy']:.3f} [{last['accuracy/low']:.3f}, {last['accuracy/high']:.3f}]"
