"""Every config can be built, its problems and solutions fit, and its docstring says how to run."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest

from grpo_jax.config import resolve
from grpo_jax.config.load import load_config_file, load_module
from grpo_jax.models.config_json import write_config
from grpo_jax.models.sizes import size
from grpo_jax.tokenizers import char_tokenizer, encode, prompt_ids, save_tokenizer
from grpo_jax.training.experiment import build

FOLDER = Path(__file__).resolve().parents[1] / "configs"
CONFIGS = sorted(set(FOLDER.glob("[!_]*.py")) - set(FOLDER.glob("r1_*.py")))  # these: test_r1.py
EXTRAS = {"reasoning_gym": "reasoning_gym", "gsm8k": "math", "jsonl": "math"}


# What pretrained models and published files look like, in small: no config can bring them along.
SIZES_OF = {"SmolLM2-135M-Instruct": "smollm2-135m", "Qwen2.5-0.5B": "qwen2.5-0.5b"}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
GSM8K = {"question": "How much is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}
SVAMP = {"Body": "Jo has 5 eggs.", "Question": "How many?", "Equation": "5", "Answer": 5.0}


@pytest.fixture
def stand_in(tmp_path):
    """Gives a config a model's folder without weights, and files of a few records."""

    def change(config):
        if config.task.name == "jsonl":  # a benchmark, for any model
            config.model.path = "SmolLM2-135M-Instruct"
            config.task.path = str(tmp_path / "benchmark.jsonl")
            Path(config.task.path).write_text(json.dumps({"prompt": "2 + 3?", "answer": "5"}))
        if config.model.path:
            folder = tmp_path / "model"
            folder.mkdir()
            hf = write_config(size(SIZES_OF[Path(config.model.path).name]))
            (folder / "config.json").write_text(json.dumps(hf))
            symbols = map(chr, range(32, 127))
            tokenizer = char_tokenizer(["\n", *symbols])
            save_tokenizer(dataclasses.replace(tokenizer, chat_template=TEMPLATE), folder)
            config.model.path = str(folder)
        if config.task.name == "gsm8k":
            for name, question in (("train", "How much is 2 + 3?"), ("test", "And 3 + 2?")):
                record = json.dumps(GSM8K | {"question": question})
                (tmp_path / f"{name}.jsonl").write_text(record + "\n")
            config.task.path = str(tmp_path)
        if config.task.name == "svamp":
            ids = ("chal-1", "chal-701")
            records = [SVAMP | {"ID": i, "Type": "Addition", "Body": i} for i in ids]
            config.task.path = str(tmp_path / "SVAMP.json")
            Path(config.task.path).write_text(json.dumps(records))

    return change


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_fits_its_problems_and_says_how_it_is_run(path, stand_in):
    config = load_config_file(str(path))
    config.compilation_cache = ""
    for name, extra in EXTRAS.items():
        if config.task.name == name:
            reason = f"the extra grpo_jax[{extra}] is not installed"
            pytest.importorskip(extra.replace("math", "math_verify"), reason=reason)
    if config.task.get("template", "none") in ("chat", "boxed"):
        pytest.importorskip("transformers", reason="the extra grpo_jax[hf] is not installed")
    pretrained = config.model.path
    stand_in(config)
    ex = build(resolve(config))
    for problem in map(ex.task.train.__getitem__, range(min(1000, len(ex.task.train)))):
        prompt, solution = prompt_ids(ex.tokenizer, problem.prompt), ex.task.solve(problem)
        assert prompt and solution
        if not pretrained:  # lengths are in the tokens of the config's own tokenizer
            assert len(prompt) <= config.prompt_length
            assert len(encode(ex.tokenizer, solution)) < config.rollout.max_tokens  # and a stop
    documented = ast.get_docstring(ast.parse(path.read_text()))
    program = "train" if len(ex.task.train) else "evaluate"
    assert f"python -m experiments.{program} --config=configs/{path.name} " in documented


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_variant_of_a_config_can_be_built_and_differs(path):
    names = getattr(load_module(str(path)), "VARIANTS", ())
    chosen = [resolve(load_config_file(f"{path}:{name}")) for name in names]
    assert len({str(config) for config in chosen}) == len(names)
    for config in chosen:
        build(config)
