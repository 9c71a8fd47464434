"""DeepSeek-R1's pipeline: its stages one after another, and their results (2501.12948)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from grpo_jax.config import resolve
from grpo_jax.console.progress import doing, say
from grpo_jax.errors import UsageError, nearest
from grpo_jax.files import Json
from grpo_jax.rewards.evaluate import scored_by
from grpo_jax.rollout.reward_models import Scorer
from grpo_jax.runs.run import append_line, read_lines, write_lines
from grpo_jax.sharding import using
from grpo_jax.tasks import Problem, Task
from grpo_jax.tasks.mixture import KIND
from grpo_jax.training import reward_model, rl
from grpo_jax.training.evaluation import Attempts, attempts, first_problems, greedy_metrics
from grpo_jax.training.experiment import Experiment
from grpo_jax.training.load_reward_model import PREFIX, load_reward_model
from grpo_jax.training.loading import Loaded, asked_the_same
from grpo_jax.training.r1_report import print_table, write_report
from grpo_jax.training.rejection import Rule, reject
from grpo_jax.types import Params

NEEDED = ("STAGES", "STARTS", "JUDGES", "MEASURED_ON", "REJECTION", "prepare", "get_config")
SHOWN = 2  # completions of each kind that are kept of each stage


def pipeline(file: ModuleType, names: list[str], folder: Path, seed: int | None) -> None:
    """All stages, and the report of them."""

    folder.mkdir(parents=True, exist_ok=True)
    with doing("preparing what the stages read"):
        file.prepare(folder)
    for number, stage in enumerate(names, 1):
        print(f"\n--- stage {number} of {len(names)}: {stage}", flush=True)
        run_stage(file, stage, names, folder, seed)
        if set(file.JUDGES) <= set(names[:number]):
            evaluate_policies(
                file, [s for s in names[:number] if s not in (*file.JUDGES, "rejection")], folder
            )
    rows = read_lines(folder / "results.jsonl")
    with doing("writing report.html"):
        write_report(folder, rows, read_lines(folder / "samples.jsonl"))
    print_table(rows)
    say(f"{folder / 'report.html'} shows the stages, their curves and configs")


def stages_to_run(path: str, file: ModuleType, without: Sequence[str]) -> list[str]:
    """The file's STAGES without those left out; UsageError for an unknown one, or where it lacks
    what a pipeline needs."""

    for needed in NEEDED:
        if not hasattr(file, needed):
            raise UsageError(f"config file {path}: it must have {', '.join(NEEDED)}")
    names = list(file.STAGES)
    for name in without:
        if name not in names:
            near = nearest(name, names)
            raise UsageError(f"--without={name}: no such stage; the closest is {near!r}")
    return [name for name in names if name not in without]


def start_of(stage: str, starts: dict[str, str], names: list[str]) -> str | None:
    """The stage whose model `stage` starts from: of those before it, the nearest that is run."""
    found = starts.get(stage)
    while found is not None and found not in names:
        found = starts.get(found)
    return found


def run_stage(
    file: ModuleType, stage: str, names: list[str], folder: Path, seed: int | None
) -> None:
    """One stage to its end, or nothing where it is there. seed  None = the config's own"""

    config, start = file.get_config(stage, str(folder)), start_of(stage, file.STARTS, names)
    if seed is not None:
        config.seed = seed
    if start is not None:
        config.start = str(folder / start)
    config = resolve(config)
    if stage == "rejection":
        rejection(file, asked_the_same(folder / str(start), config), folder / stage)
    else:
        train = reward_model.train if stage in file.JUDGES else rl.train
        train(config, folder / stage)


def evaluate_policies(file: ModuleType, policies: list[str], folder: Path) -> None:
    """Evaluate each new policy: lines of results and of samples."""

    asked = resolve(file.get_config(file.MEASURED_ON, str(folder)))
    done = {row["stage"] for row in read_lines(folder / "results.jsonl")}
    for stage in policies:
        if stage in done:
            continue
        with doing(f"judging {stage} on held-out problems"):
            row, samples = judged(*asked_the_same(folder / stage, asked)[:2])
        runs = (folder / stage / "cold_start", folder / stage)
        steps = [record for run in runs for record in read_lines(run / "metrics.jsonl")]
        row["time/seconds"] = sum(record["time/step"] for record in steps)
        kept = [s for s in read_lines(folder / "samples.jsonl") if s["stage"] != stage]
        lines = [*kept, *({"stage": stage, **sample} for sample in samples)]
        write_lines(folder / "samples.jsonl", lines)
        append_line(folder / "results.jsonl", {"stage": stage, **row})


def rejection(file: ModuleType, loaded: Loaded, out: Path) -> None:
    """Sample a policy on its config's problems, and keep by the file's REJECTION."""

    ex, params, step = loaded
    rule = Rule(**file.REJECTION)
    rule = rule._replace(judges=tuple(str(out.parent / name) for name in rule.judges))
    with ex.rewarder(("accuracy",)) as rewarder, using(ex.mesh):
        counts = reject(ex, params, rewarder, rule, out, f"step {step}")
    print(", ".join(f"{name} {n}" for name, n in sorted(counts.items())))


class Measured(NamedTuple):
    """A line of results, and completions to read."""

    row: Json
    samples: list[Json]


def judged(ex: Experiment, params: Params) -> Measured:
    """R1's measures of greedy completions of the held-out problems, and some of these.

    accuracy    share that is right, with its 95% interval; <kind>/accuracy of each kind
    format      share of completions in R1's format
    language    mean share of the thought's words that are in the target language
    preference  of problems without a right answer: the reward models' mean probability that a
                completion is preferred to the worked solution (Bradley-Terry)
    """

    source = ex.task.heldout
    problems = first_problems(source, range(len(source)), ex.config.eval.problems, ex.fits)
    names = ("accuracy", "format", "language")
    with ex.rewarder(names) as rewarder, using(ex.mesh):
        greedy = attempts(params, rewarder, problems, 1, ex.answering(0.0))
        folders = [name.removeprefix(PREFIX) for name in ex.config.rewards if PREFIX in name]
        scorers = {
            Path(f).name: load_reward_model(Path(f), ex.reader, ex.model.config) for f in folders
        }
        general = [i for i, counts in enumerate(greedy.judged[:, 0]) if not counts]
        liked = preference(ex.task, scorers, problems, greedy.completions, general)
    row: Json = {**greedy_metrics(problems, greedy)}
    row["mean_length"] = row.pop("completions/mean_length")
    row |= {name: mean(greedy.parts[name], problems, name) for name in names[1:]} | liked
    return Measured(row, shown(problems, greedy))


def mean(
    values: Float[np.ndarray, "P 1"], problems: Sequence[Problem], reward: str
) -> float | None:
    """The mean over the problems that a reward applies to; None where it abstains on all."""

    asked = values[[scored_by(problem, reward) for problem in problems]]
    known = asked[~np.isnan(asked)]
    return float(known.mean()) if known.size else None


def preference(
    task: Task,
    scorers: Mapping[str, Scorer],
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str]],
    general: Sequence[int],
) -> dict[str, float | None]:
    """The probability that completions of the problems `general` beat their worked solutions."""

    if not (scorers and general and task.solve):
        return {"preference": None}
    asked = [problems[i] for i in general]
    pairs = [[completions[i][0], task.solve(problems[i])] for i in general]
    found = {}
    for name, scorer in scorers.items():
        rewards = scorer(asked, pairs)
        found[f"preference/{name}"] = float(jax.nn.sigmoid(rewards[:, 0] - rewards[:, 1]).mean())
    return {"preference": float(np.mean(list(found.values()))), **found}


def shown(problems: Sequence[Problem], greedy: Attempts) -> list[Json]:
    """The first completions of each kind, for people to read."""

    found: dict[str, list[Json]] = {}
    for problem, group, right, counts in zip(
        problems, greedy.completions, greedy.right[:, 0], greedy.judged[:, 0], strict=True
    ):
        kind = str(problem.columns.get(KIND, ""))
        mark = bool(right) if counts else None
        sample = {"kind": kind, "prompt": str(problem.prompt), "completion": group[0]}
        found.setdefault(kind, []).append({**sample, "right": mark})
    return [sample for samples in found.values() for sample in samples[:SHOWN]]
