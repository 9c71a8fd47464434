"""The report of a pipeline's stages, as a table on the screen and as a web page."""

import base64
import datetime
import html
import io
import json
import math
import time
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grpo_jax.config import defaults, resolve
from grpo_jax.config.checks import config_diff
from grpo_jax.files import holds_run
from grpo_jax.runs.curves import panels, picture
from grpo_jax.runs.run import load_config, load_record, write_atomically
from grpo_jax.statistics import seed_interval

Row = dict[str, Any]

COLUMNS = {
    "accuracy": "accuracy",
    "format": "format",
    "language": "language",
    "preference": "preference",
    "mean_length": "tokens",
    "time/seconds": "seconds",
}
DESCRIPTIONS = {
    "base": "A model that has read worked solutions of every kind, in two languages and in all "
    "manners, and imitates them badly: the stand-in for a pretrained model.",
    "student": "A smaller model that has read the same: the one to distill into.",
    "teacher": "A model that has read a few worked solutions.",
    "teacher_rl": "GRPO on the teacher.",
    "student_rl": "GRPO on the smaller model itself, for comparison.",
    "helpfulness": "A reward model of what people like in an answer; it sees only the answer.",
    "harmlessness": "A reward model of what people take ill; it sees the whole response.",
    "cold_start": "Supervised fine-tuning on a few good chains of thought.",
    "reasoning_rl": "GRPO on problems with a right answer: accuracy, format and language.",
    "zero": "GRPO on the base model: accuracy and format, as R1-Zero.",
    "zero_language": "GRPO on the base model: accuracy, format and language.",
    "rejection": "The policy's samples, of which those are kept that are right and readable, and "
    "where there is no right answer the best liked.",
    "rejection_sft": "The base model anew, fine-tuned on what was kept.",
    "all_scenarios_rl": "GRPO on everything: rules where there is a right answer, reward models "
    "where there is none.",
    "distillation": "The smaller model, fine-tuned on what was kept: no reinforcement learning.",
}
PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 1rem 0; white-space: nowrap }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
img { max-width: 100%; height: auto }
figure { margin: 1rem 0 } .curves { display: flex; flex-wrap: wrap; gap: .5rem }
.curves img { width: 18rem } .shares img { width: 28rem }
.scroll { overflow-x: auto }
pre { background: #f6f6f6; padding: .5rem; white-space: pre-wrap; margin: .3rem 0 }
.facts, figcaption { color: #555; font-size: .9rem }
.right { border-left: 4px solid #1a9850 } .wrong { border-left: 4px solid #d6604d }
@media (max-width: 30rem) { body { margin: 1rem auto; padding: 0 .7rem }
  td, th { padding: .2rem .4rem } .curves img, .shares img { width: 100% } }
</style></head><body>
<h1>$title</h1>
<p class="facts">$facts</p>
<p>DeepSeek-R1's pipeline (2501.12948) in small. After each stage the policy answers the same
held-out problems, greedily. Accuracy counts those with a right answer, with 95% Wilson intervals;
format is the share of completions that think between tags and then answer between tags; language
the share of the thoughts' words that are in the target language; preference the probability, by
the reward models, that a completion is preferred to the worked solution (0.5: as good).</p>
<div class="scroll">$table</div>
<div class="curves shares">$pictures</div>
$stages
</body></html>
""")


def print_table(rows: list[Row]) -> None:
    """The results on the screen."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held-out problems, after each stage", title_justify="left")
    for name in ("stage", *COLUMNS.values()):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in rows:
        table.add_row(row["stage"], *_cells(row))
    console = Console()
    console.width = max(console.width, 100)  # a file or a pipe says 80
    console.print(table)


def over_seeds(runs: list[list[Row]], starts: dict[str, str | None]) -> str:
    """A Markdown table of means over seeds, with 95% t intervals, of each stage.

    runs    the rows of each seed
    starts  the stage that each starts from, from which the gain in accuracy is taken, seed by seed
    """
    found = [{row["stage"]: row for row in rows} for rows in runs]

    def cell(stage: str, name: str, less: str | None = None) -> str:
        values: list[Any] = [rows.get(stage, {}).get(name) for rows in found]
        begun: list[Any] = [rows.get(less, {}).get(name) if less else 0 for rows in found]
        if None in (*values, *begun):
            return ""
        values = [v - b for v, b in zip(values, begun, strict=True)]
        mean, low, high = seed_interval(values)
        if name in ("mean_length", "time/seconds"):
            return f"{mean:.0f}"
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]"

    lines = [
        f"| stage | gain | {' | '.join(COLUMNS.values())} |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for stage in found[0]:
        start = starts.get(stage)
        gain = cell(stage, "accuracy", start) if start else ""
        cells = [cell(stage, name) for name in COLUMNS]
        lines.append(f"| {stage} | {gain} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_report(folder: Path, rows: list[Row], samples: list[Row]) -> None:
    """Write folder/report.html, which needs nothing beside it: table, curves, configs, samples."""
    configs = sorted(folder.glob("*/config.json"), key=_written)
    stages = [path.parent for path in configs if holds_run(path.parent)]  # not an export
    records = [load_record(stage) for stage in stages]
    sections = [
        _stage(stage, record, [s for s in samples if s["stage"] == stage.name])
        for stage, record in zip(stages, records, strict=True)
    ]
    alike = {_versions(record) for record in records}
    facts = [f"Written {_date(time.time())}", *(alike if len(alike) == 1 else [])]
    page = PAGE.substitute(
        title=html.escape(f"The making of {folder.name}"),
        facts=html.escape("; ".join(facts)),
        table=_table(rows),
        pictures="\n".join(_image(*shares) for shares in _shares(rows)),
        stages="\n".join(sections),
    )
    write_atomically(folder / "report.html", page.encode())


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _versions(record: Row) -> str:
    """The package versions and the revision that made a stage, from its config.json."""
    packages = [f"{name} {version}" for name, version in record.get("versions", {}).items()]
    return f"{', '.join(packages)}; revision {record.get('git_revision') or 'unknown'}"


def _cells(row: Row) -> list[str]:
    def cell(name: str) -> str:
        value = row.get(name)
        if value is None:
            return ""
        if name == "accuracy":
            return f"{value:.3f} [{row['accuracy/low']:.3f}, {row['accuracy/high']:.3f}]"
        return f"{value:.0f}" if name in ("mean_length", "time/seconds") else f"{value:.3f}"

    return [cell(name) for name in COLUMNS]


def _table(rows: list[Row]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in ("stage", *COLUMNS.values()))
    lines = [
        "".join(f"<td>{html.escape(cell)}</td>" for cell in (row["stage"], *_cells(row)))
        for row in rows
    ]
    return f"<table><tr>{heads}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _shares(rows: list[Row]) -> list[tuple[str, bytes]]:
    """Accuracy of each kind, and the other shares, after each stage: titles and PNGs."""
    kinds = sorted({name for row in rows for name in row if name.endswith("/accuracy")})
    groups = {
        "Accuracy after each stage": ["accuracy", *kinds],
        "Format, language and preference after each stage": ["format", "language", "preference"],
    }
    return [(title, _lines(rows, names)) for title, names in groups.items()]


def _lines(rows: list[Row], names: list[str]) -> bytes:
    figure = Figure(figsize=(4.5, 3.4), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    for name in names:
        values = [math.nan if row.get(name) is None else row[name] for row in rows]
        axes.plot(range(len(rows)), values, "o-", label=name.removesuffix("/accuracy"))
    axes.set_xticks(range(len(rows)), [r["stage"] for r in rows], rotation=30, ha="right")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return content.getvalue()


def _image(title: str, png: bytes) -> str:
    return f'<img alt="{html.escape(title)}" src="{_embedded(png)}">'


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _stage(folder: Path, record: Row, samples: list[Row]) -> str:
    parts = [f"<h2>{html.escape(folder.name)}</h2><p>{DESCRIPTIONS.get(folder.name, '')}</p>"]
    names = ("config.json", "metrics.jsonl", "eval.jsonl", "cold_start/metrics.jsonl")
    last = max(_written(folder / name) for name in names if (folder / name).exists())
    facts = f"Last written {_date(last)}; {_versions(record)}"
    parts.append(f'<p class="facts">{html.escape(facts)}</p>')
    for run, what in ((folder / "cold_start", "Supervised fine-tuning"), (folder, "Training")):
        if found := panels(run):
            images = [_image(title, picture([draw], columns=1)) for title, draw in found.items()]
            caption = f"<figcaption>{what}, by step</figcaption>"
            parts.append(f'<figure><div class="curves">{"".join(images)}</div>{caption}</figure>')
    parts.append(_config(load_config(folder).to_dict()))
    for sample in samples:
        mark = {True: "right", False: "wrong"}.get(sample["right"], "")
        text = html.escape(f"{sample['prompt']}\n{sample['completion']}")
        parts.append(f'<pre class="{mark}">{text}</pre>')
    return "\n".join(parts)


def _config(config: Row) -> str:
    """What a stage's config has other than the defaults, and all of it, folded."""
    changed = "\n".join(config_diff(resolve(defaults()).to_dict(), config))
    whole = json.dumps(config, indent=2)
    return (
        "<details><summary>config</summary><p>Other than the default:</p>"
        f"<pre>{html.escape(changed)}</pre>"
        f"<details><summary>all of it</summary><pre>{html.escape(whole)}</pre></details></details>"
    )
