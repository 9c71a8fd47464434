"""Hugging Face -> GRPO -> Hugging Face: what is trained here is what Transformers and PEFT load."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import compile_fast  # noqa: F401

from grpo_jax import algorithms
from grpo_jax.config import defaults, resolve
from grpo_jax.engines.lockstep import sample
from grpo_jax.learning.optimizer import make_optimizer
from grpo_jax.learning.prepare import prepare
from grpo_jax.learning.state import init_state
from grpo_jax.learning.update import update
from grpo_jax.models.config_json import read_config_file
from grpo_jax.models.lora import ADAPTERS, merge_adapters
from grpo_jax.models.weights import save_model
from grpo_jax.runs import checkpoints
from grpo_jax.tasks.addition import SYMBOLS
from grpo_jax.tokenizers import char_tokenizer, load_tokenizer, save_tokenizer
from grpo_jax.training.experiment import build
from grpo_jax.training.pretrained import pretrained
from grpo_jax.training.rl import train
from grpo_jax.types import Prompts, merged

torch = pytest.importorskip("torch", reason="needs torch, the independent source")
transformers = pytest.importorskip("transformers", reason="needs transformers")
import hugging_face  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
ROWS = np.random.default_rng(0).integers(3, 20, (2, 12)).astype(np.int32)
# Every family learns, is saved and is read again in models/test_families.py.
FAMILIES = ("llama", "deepseek_v3")
GRPO = dataclasses.replace(algorithms.PRESETS["grpo"], beta=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """name of a family -> the folder of a tiny model with a tokenizer."""

    def make(name):
        made = hugging_face.make(name, tmp_path_factory.mktemp(name) / "model").folder
        save_tokenizer(char_tokenizer(SYMBOLS), made)
        return made

    return make


def config_of(folder, **changes):
    config = defaults()
    config.compilation_cache, config.reward_workers = "", 1
    config.model.path = str(folder)
    config.task.update(digits=1, heldout_size=8)
    config.prompt_length, config.steps = 8, 2
    config.rollout.update(prompts=2, group=4, max_tokens=6, prompt_bucket=8)
    config.optimizer.learning_rate = 1e-2
    config.algorithm.beta = 0.0
    config.rewards = {"tiny:sevens": 1.0}
    config.eval.every = 0
    config.update_from_flattened_dict(changes)
    return resolve(config)


def their_logits(folder, load=None):
    load = load or transformers.AutoModelForCausalLM.from_pretrained
    model = load(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor(ROWS, dtype=torch.long)).logits.numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_grpo_then_transformers(name, folder, tmp_path):
    source = folder(name)
    ex = build(config_of(source))
    optimizer = make_optimizer(ex.config.optimizer, 2)
    key, rng = jax.random.key(0), np.random.default_rng(0)
    start = pretrained(ex.origin)
    state = init_state(ex.model, optimizer, key, ex.mesh, reference=False, params=start)
    prompts = Prompts(
        tokens=rng.integers(3, 20, (2, 8)).astype(np.int32), mask=np.ones((2, 8), bool)
    )
    sampling = ex.sampling()
    keys = jax.random.split(key, (2, 4))
    rollouts = sample(ex.model, state.policy.full, prompts, keys, sampling=sampling)
    rewards = jnp.array(rng.normal(size=(2, 4)).astype(np.float32))
    options = {"model": ex.model, "algorithm": GRPO, "temperature": 1.0}
    batch = prepare(state, rollouts, rewards, **options)
    state, _ = update(state, batch, optimizer=optimizer, **options)
    save_model(tmp_path / "out", ex.model.config, state.policy.full, source=source)
    got = their_logits(tmp_path / "out")
    want = hugging_face.our_logits(ex.model.config, state.policy.full, ROWS)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert np.abs(got - their_logits(source)).max() > 0.01  # it has learned something
    assert read_config_file(tmp_path / "out") == read_config_file(source)


@pytest.fixture(scope="module")
def qwen(folder):
    return folder("qwen2")


def test_a_run_is_exported_and_answers_the_same(program, qwen, tmp_path):
    train(config_of(qwen), tmp_path / "run")
    out = tmp_path / "out"
    done = program("export", f"--workdir={tmp_path / 'run'}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    asked = [
        program("sample", f"--model={model}", "--prompt=3+4=", "--max_tokens=20")
        for model in (tmp_path / "run", out)
    ]
    assert asked[0].stdout == asked[1].stdout and asked[0].returncode == 0, asked[0].stderr
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    ids = tokenizer("3+4=", return_tensors="pt", add_special_tokens=True)
    stop = list(load_tokenizer(out).stop)
    theirs = model.generate(**ids, do_sample=False, max_new_tokens=20, eos_token_id=stop)
    new = theirs[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True) + "\n" == asked[1].stdout


def test_adapters_alone_are_trained_saved_and_loaded_by_peft(program, qwen, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft, the independent source")
    config = config_of(
        qwen,
        **{"model.lora.rank": 2, "model.lora.targets": "attention/(q|v)|ff/down"},
        **{"algorithm.beta": 0.1, "optimizer.learning_rate": 0.05},
    )
    run = tmp_path / "run"
    train(config, run)
    params, _ = checkpoints.restore_params(run / "checkpoints")
    names = {str(path[-1].key) for path, _ in jax.tree.leaves_with_path(params)}
    assert names == {"lora_a", "lora_b"}
    done = program("export", f"--workdir={run}", f"--out={tmp_path / 'peft'}", "--adapters")
    assert done.returncode == 0, done.stderr
    assert program("export", f"--workdir={run}", f"--out={tmp_path / 'whole'}").returncode == 0

    def with_adapters(folder, **options):
        base = transformers.AutoModelForCausalLM.from_pretrained(qwen, **options)
        return peft.PeftModel.from_pretrained(base, folder)

    theirs = their_logits(tmp_path / "peft", with_adapters)
    np.testing.assert_allclose(theirs, their_logits(tmp_path / "whole"), atol=1e-4)
    assert np.abs(theirs - their_logits(qwen)).max() > 0.01
    ex = build(config)
    c = ex.model.config
    policy = merged(pretrained(ex.origin), params)
    np.testing.assert_allclose(hugging_face.our_logits(c, policy, ROWS), theirs, atol=1e-4)
    whole = merge_adapters(c, policy)
    np.testing.assert_allclose(hugging_face.our_logits(c, whole, ROWS), theirs, atol=1e-4)
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["r"] == 2


def test_a_run_with_adapters_goes_on_where_it_stopped(qwen, tmp_path):
    options = {"model.lora.rank": 2, "checkpoint.every": 1}
    config = config_of(qwen, **options)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    newest = max((tmp_path / "cut" / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    shutil.rmtree(newest)
    train(config, tmp_path / "cut")
    both = [checkpoints.restore_params(tmp_path / n / "checkpoints")[0] for n in ("whole", "cut")]
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.layers": 7}, r"config.model.layers=7: .*config.json says 3"),
        ({"model.path": "/nowhere"}, "config.model.path: /nowhere/config.json: no such file"),
    ],
)
def test_a_config_at_odds_with_its_model_is_refused(qwen, changes, message):
    with pytest.raises(ValueError, match=message):
        build(config_of(qwen, **changes))


def test_adapters_train_on_a_base_in_eight_bits(qwen, tmp_path):
    pytest.importorskip("qwix", reason="the extra grpo_jax[quantized] is not installed")
    config = config_of(qwen, **{"model.lora.rank": 2, "model.lora.base": "int8", "steps": 1})
    train(config, tmp_path / "run")
    params, _ = checkpoints.restore_params(tmp_path / "run" / "checkpoints")
    assert all(path[-1].key in ADAPTERS for path, _ in jax.tree.leaves_with_path(params))
    base = pretrained(build(config).origin)
    assert base["layer_0"]["ff"]["gate"]["kernel"].qvalue.dtype == jnp.int8
