"""Every config can be built, its problems and solutions fit, and its docstring says how to run."""

import ast
from pathlib import Path

import pytest

from grpo_jax.command_line import load_config_file
from grpo_jax.config import resolve
from grpo_jax.experiment import build
from grpo_jax.tokenizers import encode, prompt_ids

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("[!_]*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_fits_its_problems_and_says_how_it_is_run(path):
    config = load_config_file(str(path))
    config.compilation_cache = ""
    if config.task.name == "reasoning_gym":
        reason = "the extra grpo_jax[reasoning_gym] is not installed"
        pytest.importorskip("reasoning_gym", reason=reason)
    ex = build(resolve(config))
    for problem in map(ex.task.train.__getitem__, range(1000)):
        assert len(prompt_ids(ex.tokenizer, problem.prompt)) <= config.prompt_length
        solution = encode(ex.tokenizer, ex.task.solve(problem))
        assert len(solution) + 1 <= config.rollout.max_tokens  # with its stop token
    command = f"python -m experiments.train --config=configs/{path.name} "
    assert command in ast.get_docstring(ast.parse(path.read_text()))
