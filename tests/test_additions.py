"""What is added is one file and at most one line: each is written here, and then really used."""

import dataclasses
import importlib
import json
from pathlib import Path

import flax
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import compile_fast, tiny_config  # noqa: F401

from grpo_jax.config.checks import flatten
from grpo_jax.errors import UsageError
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import read_config_file
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.families import FAMILIES
from grpo_jax.models.lora import save_adapters
from grpo_jax.models.weights import load_weights, save_model
from grpo_jax.sharding import make_mesh
from grpo_jax.training.pretrained import abstract_params
from grpo_jax.training.rl import train

# One file for each addition, and the one line that asks for it: a field of a config, or an entry
# of the table that is named in CONTRIBUTING.md.
FILES = {
    "advantage": """
import jax.numpy as jnp
from grpo_jax.algorithms import needs


@needs(group=2)
def to_the_median(rewards, mask):
    return (rewards - jnp.nanmedian(rewards, -1, keepdims=True))[..., None]
""",
    "engine": '''
import jax.numpy as jnp
from grpo_jax.types import Rollouts

LENGTHS = []


class Counting:
    """Completion g of a group is one token, g after that of the digit 0, and the stop token."""

    def __init__(self, model, stops=None): ...

    def generate(self, params, prompts, keys, sampling):
        LENGTHS.append(prompts.mask.sum(-1).tolist())
        (P, G), T = keys.shape, sampling.max_tokens
        tokens = jnp.zeros((P, G, T), jnp.int32).at[:, :, 0].set(FIRST + jnp.arange(G))
        tokens = tokens.at[:, :, 1].set(sampling.stop[0])
        zeros, mask = jnp.zeros((P, G, T)), jnp.broadcast_to(jnp.arange(T) < 2, (P, G, T))
        return Rollouts(
            prompts=prompts, tokens=tokens, mask=mask, logp=zeros, entropy=zeros,
            finished=jnp.ones((P, G), bool), extras={"guesses": jnp.full((P, G), 7)},
        )

    def metrics(self, rollouts):
        return {"counting/guesses": float(rollouts.extras["guesses"].mean())}


FIRST = 2
''',
    "environment": """
from grpo_jax.environments import Turn

ANSWERS = []


class Insisting:
    def reset(self, problem):
        return problem.prompt + "=="

    def step(self, text):
        ANSWERS.append(text)
        return Turn(messages=[], done=True)
""",
    "source": """
from grpo_jax.rollout.sources import InTurn

STEPS = []


class Noting(InTurn):
    def next(self, policy, number):
        STEPS.append(number)
        return super().next(policy, number)
""",
    "tracker": """
from grpo_jax.runs.trackers.base import Tracker

LOGGED = {}


class Keeping(Tracker):
    def log(self, step, metrics):
        LOGGED[step] = dict(metrics)
""",
    "reward": """
def digit(prompts, completions, **columns):
    return [float(c[0]) for c in completions]
""",
    "task": """
from grpo_jax.rewards.text import exact_answer
from grpo_jax.tasks import Problem, Task


def echo(numbers: int = 9):
    problems = [Problem(f"{i}", {"answer": f"{i}"}) for i in range(numbers)]
    return Task("echo", problems[:-1], problems[-1:], accuracy=exact_answer, symbols="0123456789=")
""",
    "family": """
from grpo_jax.models.families.base import EMBEDDING, LAYER, WHOLE, Family
from grpo_jax.models.families.llama import read_llama, write_llama

FAMILY = Family(
    architecture="MineForCausalLM",
    model_type="mine",
    read=read_llama,
    write=write_llama,
    layer=LAYER | {"attention/q/kernel": "attn.query"},
    whole=WHOLE | {EMBEDDING: "words"},
    layers="blocks.{i}.",
)
""",
}
LINES = {
    "advantage": ("algorithm.advantage", "to_the_median"),
    "engine": ("rollout.engine", "Counting"),
    "environment": ("rollout.environment", "Insisting"),
    "source": ("rollout.source", "Noting"),
    "tracker": ("log.trackers", "Keeping"),
    "reward": ("rewards", "digit"),
    "task": ("task.name", "echo"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder on Python's path that is outside of the package, with a file for each addition."""
    made = tmp_path_factory.mktemp("additions")
    for name, code in FILES.items():
        (made / f"an_{name}.py").write_text(code.lstrip())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made)
        yield made


@pytest.fixture
def family(folder, monkeypatch):
    """The entry of FAMILIES."""
    monkeypatch.setitem(FAMILIES, "mine", added("family").FAMILY)


def added(name):
    return importlib.import_module(f"an_{name}")


def configured(**changes):
    """The tiny config, with the line of each addition."""
    lines: dict = {}
    for name, (field, member) in LINES.items():
        path = f"an_{name}:{member}"
        lines[field] = {"log.trackers": ("jsonl", path), "rewards": {path: 1.0}}.get(field, path)
    lines["task"] = {"name": lines.pop("task.name"), "numbers": 7}
    preset = {"algorithm.preset": "dr_grpo", "steps": 1, "rollout.max_tokens": 4}
    return tiny_config(**preset, **lines, **changes)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    """A run of one step with all additions."""
    made = tmp_path_factory.mktemp("run")
    train(configured(), made)
    return made


@pytest.mark.parametrize("name", FILES)
def test_an_addition_is_one_file_and_at_most_one_line(folder, family, name):
    assert len([*folder.glob(f"an_{name}*.py")]) == 1
    fields = flatten(configured().to_dict())
    lines = [k for k, v in fields.items() if f"an_{name}:" in f"{k} {v}"]
    lines += [k for k, v in FAMILIES.items() if v is getattr(added(name), "FAMILY", None)]
    assert len(lines) == 1


def test_contributing_names_the_same_lines():
    page = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    assert not [field for field, _ in LINES.values() if f"config.{field} = " not in page]
    assert "grpo_jax/models/families/<name>.py" in page and "`FAMILIES`" in page


def samples(run):
    return [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]


def test_the_advantage_trains_a_step(run):
    (metrics,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert metrics["step"] == 1 and metrics["grad_norm"] > 0
    assert [one["advantage"] for one in samples(run)] == [-1.5] * 4  # 0 among 0, 1, 2 and 3


def test_the_advantage_is_refused_a_group_of_one(folder):
    with pytest.raises(UsageError, match=r"'an_advantage:to_the_median' compares .* 2, got 1"):
        configured(**{"rollout.group": 1})


def test_the_engine_generates_what_the_environment_asks_and_hears(run):
    assert [one["completion"] for one in samples(run)] == ["0"] * 4
    assert added("engine").LENGTHS == [[3] * 4]  # the digit of the problem and the two signs
    assert added("environment").ANSWERS == ["0", "1", "2", "3"] * 4


def test_the_source_makes_the_batch_and_the_tracker_logs_it(run):
    assert added("source").STEPS == [1]
    logged = added("tracker").LOGGED
    assert logged.keys() == {1} and logged[1]["reward"] == 1.5
    assert logged[1]["counting/guesses"] == 7.0  # what the engine counts of its own


def test_the_reward_and_the_task_are_the_runs(run):
    for one in samples(run):
        right = float(one["prompt"] == "0")
        assert one["prompt"] in "012345" and one["rewards"]["accuracy"] == right
        assert one["rewards"]["an_reward:digit"] == 0.0


def test_the_family_reads_and_writes_its_own_names(family, tmp_path):
    c = ModelConfig(vocab_size=11, layers=2, hidden=8, heads=2, kv_heads=1, ff=8)
    like = tmp_path / "published"
    like.mkdir()
    (like / "config.json").write_text(json.dumps({"model_type": "mine"}))
    abstract = abstract_params(Decoder(c), make_mesh())
    rng, leaves = np.random.default_rng(0), flax.traverse_util.flatten_dict(abstract)
    params = {k: rng.normal(size=x.shape).astype(x.dtype) for k, x in leaves.items()}
    params = flax.traverse_util.unflatten_dict(params)
    save_model(tmp_path / "out", c, params, like)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert (written["architectures"], written["model_type"]) == (["MineForCausalLM"], "mine")
    tensors = load_file(tmp_path / "out/model.safetensors")
    np.testing.assert_array_equal(tensors["words"], params["embed"]["embedding"])
    for i in range(2):
        query = params[f"layer_{i}"]["attention"]["q"]["kernel"]
        np.testing.assert_array_equal(tensors[f"blocks.{i}.attn.query"], query)
        assert f"blocks.{i}.self_attn.k_proj.weight" in tensors
    assert not [name for name in tensors if "q_proj" in name or "layers" in name]
    assert read_config_file(tmp_path / "out") == c
    read = load_weights(tmp_path / "out", c, abstract)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    adapter = {"layer_0": {"attention": {"q": {"lora_a": np.ones((1, 8), np.float32)}}}}
    lora = dataclasses.replace(c, lora=dataclasses.replace(c.lora, rank=1))
    save_adapters(tmp_path / "adapters", lora, adapter, str(tmp_path / "out"))
    (name,) = load_file(tmp_path / "adapters/adapter_model.safetensors")
    assert name == "base_model.model.blocks.0.attn.query.lora_A.weight"
