"""A run's summary in a few lines: its result, the time it took and where to look."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_jax.files import JsonMapping
from grpo_jax.rewards.turn import Prompt
from grpo_jax.runs.run import read_steps

Records = Sequence[JsonMapping]

COLD = "cold_start"  # the folder of the supervised run that came first
ENDS = 10  # steps at each end whose mean reward is reported where nothing was evaluated
_LONGEST = 60  # characters of a prompt that are shown


def summary(folder: Path, seconds: float | None = None, prompt: Prompt | None = None) -> str:
    """The result, time and files of the run in `folder`, a line each, from its own records.

    seconds  how long this session was; None where it did nothing
    prompt   a problem's, for the command that asks the model; None where it does not write
    """
    metrics, evals = read_steps(folder / "metrics.jsonl"), read_steps(folder / "eval.jsonl")
    result = _result(metrics, evals) or _result(read_steps(folder / COLD / "metrics.jsonl"), [])
    lines = [("result", result), ("time", _time(folder, seconds))]
    curves = "curves.png" if metrics or evals else f"{COLD}/curves.png"
    files = [name for name in (curves, "eval.jsonl") if (folder / name).is_file()]
    lines += [(Path(name).stem, str(folder / name)) for name in files]
    if prompt is not None:
        lines.append(("sample", _command(folder, prompt)))
    return "\n".join(f"  {name:7} {text}" for name, text in lines if text)


def _result(metrics: Records, evals: Records) -> str:
    judged = [e for e in evals if e.get("accuracy") is not None]
    if judged:
        ends = judged[:1] if len(judged) == 1 else [judged[0], judged[-1]]
        shown = " -> ".join(_accuracy(e) for e in ends)
        at = "step " + " and ".join(str(e["step"]) for e in ends)
        of = f" on {ends[-1]['n']} problems" if "n" in ends[-1] else ""
        return f"held-out accuracy {shown}{of}, at {at} (95% intervals)"
    for name in ("reward", "loss"):
        values = [m[name] for m in metrics if m.get(name) is not None]
        if values:
            n = min(ENDS, (len(values) + 1) // 2)
            first, last = (sum(part) / n for part in (values[:n], values[-n:]))
            shown = f"{first:.3f} -> {last:.3f} (means of the first and last {n} steps)"
            return f"{name} {shown if n > 1 else f'{first:.3f} -> {last:.3f}'}"
    return ""


def _accuracy(record: JsonMapping) -> str:
    low, high = record.get("accuracy/low"), record.get("accuracy/high")
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{record['accuracy']:.3f}{interval}"


def _time(folder: Path, seconds: float | None) -> str:
    """This session's seconds, and those of all sessions, by what they were spent on."""
    metrics, evals = read_steps(folder / "metrics.jsonl"), read_steps(folder / "eval.jsonl")
    cold = read_steps(folder / COLD / "metrics.jsonl")
    kinds = {
        "cold start": _sum(cold, "time/step"),
        "sampling and judging": _sum(metrics, "time/rollout"),
        "updates": _sum(metrics, "time/update"),
        "evaluations": _sum(evals, "time/evaluation"),
    }
    if not kinds["updates"]:  # where a step is an update and no more
        kinds["updates"] = _sum(metrics, "time/step")
    parts = ", ".join(f"{name} {duration(spent)}" for name, spent in kinds.items() if spent)
    if compiled := _sum([*cold, *metrics], "time/compile"):
        parts += f" (compiling {duration(compiled)} of these)"
    return "; ".join(
        ([f"{duration(seconds)} since this start"] if seconds is not None else [])
        + ([f"all sessions: {parts}"] if parts else [])
    )


def ending(record: JsonMapping) -> str:
    """The result of the last step of a supervised run."""
    shown = f"step {record['step']}: loss {record['loss']:.3f}"
    if record.get("accuracy") is None:
        return shown
    return f"{shown}, accuracy {record['accuracy']:.3f} on training problems"


def _sum(records: Records, name: str) -> float:
    return sum(record.get(name) or 0.0 for record in records)


def duration(seconds: float) -> str:
    """Seconds as '7.2 s', '45 s', '3 min 25 s' or '2 h 5 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _command(folder: Path, prompt: Prompt) -> str:
    """What asks the run's model: a short prompt is the problem's own."""
    chat = not isinstance(prompt, str)
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    text = text if len(text) <= _LONGEST and "\n" not in text else "..."
    here = Path(sys.executable)
    python = os.path.relpath(here) if here.is_relative_to(Path.cwd()) else "python"
    given = [f"--model={folder}", *["--chat"] * chat, f"--prompt={text}"]
    return f"{python} -m experiments.sample {shlex.join(given)}"
