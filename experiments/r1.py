"""DeepSeek-R1's pipeline: python -m experiments.r1 --config=configs/r1_tiny.py --workdir=DIR.

Runs the config file's STAGES one after another, each in a folder DIR/<stage>: cold start,
reasoning RL, rejection sampling and supervised fine-tuning, RL for all scenarios, distillation
(2501.12948, 2.3 and 2.4), and what they need. The same command resumes.
--without=cold_start leaves a stage out: reasoning RL then starts where that would have, as
R1-Zero does. DIR is runs/<config name> by default. --seeds=3 runs all with the seeds 0, 1
and 2, in DIR/seed<n>, and writes DIR/results.md, means over them; else the config's own is taken.

After each stage that trains a policy, the policy is evaluated greedily on the same held-out
problems: a line of DIR/results.jsonl, and samples in DIR/samples.jsonl. DIR/report.html shows all.
"""

from absl import flags

from experiments import seeds, stages
from grpo_jax.config.command_line import run_main
from grpo_jax.config.load import load_module
from grpo_jax.console.progress import importing

flags.adopt_module_key_flags(stages)
flags.adopt_module_key_flags(seeds)
WITHOUT = flags.DEFINE_list("without", [], "stages to leave out")

WRITTEN = ("results.jsonl", "samples.jsonl", "report.html", "results.md")  # in --workdir


def main():
    path, folder = stages.config_and_folder()
    with importing():
        from grpo_jax.runs.run import read_lines, write_atomically
        from grpo_jax.training.r1 import pipeline, stages_to_run, start_of
        from grpo_jax.training.r1_report import over_seeds

    file = load_module(path)
    names = stages_to_run(path, file, WITHOUT.value)
    folders = {seed: folder / f"seed{seed}" for seed in range(seeds.SEEDS.value or 0)}
    runs = [each / name for each in folders.values() or [folder] for name in names]
    stages.check_free(folder, WRITTEN, runs)
    if not seeds.SEEDS.value:
        pipeline(file, names, folder, None)
        return
    for seed, own in folders.items():
        pipeline(file, names, own, seed)
    starts = {name: start_of(name, file.STARTS, names) for name in names}
    text = over_seeds([read_lines(own / "results.jsonl") for own in folders.values()], starts)
    print(text)
    write_atomically(folder / "results.md", (text + "\n").encode())


if __name__ == "__main__":
    run_main(main, with_config=False, with_workdir=False)
