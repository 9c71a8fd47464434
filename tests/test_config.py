import copy
import dataclasses
import json
import pickle

import pytest
from ml_collections import FrozenConfigDict

from grpo_jax import algorithms, config
from grpo_jax.config.checks import config_diff
from grpo_jax.config.fields import FrozenFields
from grpo_jax.errors import UsageError, nearest


def with_values(**fields):
    changed = config.defaults()
    changed.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return changed


def test_defaults_are_valid_and_resolve_to_plain_frozen_values():
    resolved = config.resolve(config.defaults())
    assert resolved.model.head_dim == 32
    grpo = dataclasses.asdict(algorithms.PRESETS["grpo"])
    assert resolved.algorithm.to_dict() == {"preset": "grpo", **grpo}
    with pytest.raises(AttributeError):
        resolved.steps = 3
    assert config.resolve(resolved).to_dict() == resolved.to_dict()
    assert json.loads(json.dumps(resolved.to_dict()))["rollout"]["group"] == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__kv_heads": 3}, "config.model.heads: 4 is not divisible by model.kv_heads = 3"),
        ({"model__hidden": 130}, "config.model.hidden: 130 is not divisible .*heads=4"),
        ({"model__head_dim": 7}, "config.model.head_dim: 7 must be even"),
        ({"rollout__group": 0}, "config.rollout.group: 0 must be at least 1"),
        ({"rollout__prompts": 9, "mesh__data": 2}, "config.rollout.prompts: 9 is not divisible"),
        ({"algorithm__minibatches": 5}, "config.rollout.prompts: 32 is not .*minibatches.* = 5"),
        ({"optimizer__accumulation": 3}, "config.rollout.prompts: 32 is not .*accumulation.* = 3"),
        ({"sft__steps": 1, "sft__batch": 3, "mesh__data": 2}, "config.sft.batch: 3 is not div"),
        ({"steps": -1}, "config.steps: -1 must be at least 0"),
        ({"rollout__temperature": 0.0}, "config.rollout.temperature: 0.0 must be above 0"),
        ({"rollout__top_p": 1.5}, "config.rollout.top_p: 1.5 must be at most 1"),
        ({"optimizer__b2": 1.0}, "config.optimizer.b2: 1.0 must be below 1"),
        ({"optimizer__learning_rate": float("nan")}, "learning_rate: nan is not a finite number"),
        ({"optimizer__schedule": "cos"}, "unknown value 'cos'; valid: constant, cosine, linear"),
        ({"model__dtype": "fp32"}, "config.model.dtype: unknown value 'fp32'; valid: float32,"),
        ({"model__remat": "all"}, "config.model.remat: unknown value 'all'"),
        *(
            ({name: value}, rf"config\.{name.replace('__', '.')}=.*valid: whole numbers of at")
            for name in ("model__windows", "model__experts__dense")
            for value in [("a", "b"), (1.5,), (True,), (2**31,)]
        ),
        ({"steps": True}, "config.steps: True is not of type int"),
        ({"rollout__group": 1}, r"config\.algorithm: .*group"),
        ({"algorithm__kl": "k4"}, r"config\.algorithm: kl must be one of"),
        ({"rollout__stop": ("\n", "")}, r"config\.rollout\.stop: ''; valid: texts of whole"),
        ({"rollout__stop": (5,)}, r"config\.rollout\.stop: 5; valid: texts of whole characters"),
        ({"log__trackers": ("jsonl", "jsonl")}, r"log\.trackers: .*; valid: names, each once"),
        ({"log__trackers": ("jsonl", 5)}, r"log\.trackers: .*; valid: names, each once"),
        ({"log__samples_every": 0}, r"config\.log\.samples_every: 0 must be at least 1"),
        (
            {"log__profile_steps": (3,)},
            r"profile_steps: \(3,\); valid: the first and the",
        ),
        ({"log__profile_steps": (3, 2)}, r"profile_steps: \(3, 2\); valid: the first and the last"),
        ({"log__profile_steps": (0, 2)}, r"profile_steps: \(0, 2\); valid: the first and the last"),
        ({"rollout__stop": ("\ud800",)}, r"config\.rollout\.stop: '\\ud800'; valid: texts"),
        (
            {"chat_template_kwargs": {"messages": 1}},
            r"config\.chat_template_kwargs: 'messages' is set by rendering; valid: what",
        ),
        ({"algorithm__preset": "grop"}, "config.algorithm.preset: unknown 'grop'.* 'grpo'"),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message) as raised:
        config.resolve(with_values(**fields))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({"accuracy": "high"}, r"rewards\.accuracy: 'high' is not a number"),
        ({"a.b:c": "0.2"}, r"rewards\.a\.b:c: '0\.2' is not a number"),
        ({"accuracy": True}, r"rewards\.accuracy: True is not a number"),
        ({"accuracy": float("nan")}, r"rewards\.accuracy: nan is not a finite number"),
        ({"accuracy": 1e39}, r"rewards\.accuracy: 1e\+39 must be at most 3\.4028235e\+38"),
        ({"a.b:c": -1e19}, r"rewards\.a\.b:c: -1e\+19 is too large; valid: up to 1e18"),
        ({"a": {"b": 1.0}}, r"rewards\.a: .* is not a number"),
        ({}, "at least one"),
    ],
)
def test_rewards_need_weights(rewards, message):
    changed = config.defaults()
    changed.rewards = rewards
    with pytest.raises(UsageError, match=message):
        config.resolve(changed)


def test_the_rewards_of_a_part_are_names():
    changed = config.defaults()
    changed.task = {"name": "mixture", "parts": {"a": {"rewards": "format"}, "b": {}}}
    with pytest.raises(UsageError, match=r"parts.a.rewards='format': valid: a tuple of names"):
        config.resolve(changed)


def test_names_with_dots_go_everywhere_that_others_go():
    weights = {"pkg.module:function": 1, "reward_model:runs/v1.0": 0.5}
    changed = config.defaults()
    changed.rewards = weights
    changed.rewards["a.b:c"] = 2.0
    weights = {**weights, "a.b:c": 2.0}
    changed.update({"rewards": {"a.b:c": 3.0}})
    copied = copy.deepcopy(changed)
    copied.rewards["d.e:f"] = 4.0
    assert changed.rewards.to_dict() == weights | {"a.b:c": 3.0}
    assert copied.rewards.to_dict() == weights | {"a.b:c": 3.0, "d.e:f": 4.0}
    resolved = config.resolve(changed)
    assert resolved.rewards["pkg.module:function"] == 1 and "a.b:c" in resolved.rewards
    assert sorted(resolved.rewards) == sorted(weights)
    assert config.resolve(resolved) == resolved == pickle.loads(pickle.dumps(resolved))
    assert hash(config.resolve(resolved)) == hash(resolved) and resolved != config.resolve(copied)
    with pytest.raises(AttributeError):
        resolved.rewards["a.b:c"] = 1.0
    saved = json.loads(json.dumps(resolved.to_dict()))
    assert config.fill_missing_fields(saved)["rewards"] == dict(resolved.rewards)
    diff = config_diff(resolved.to_dict(), config.resolve(copied).to_dict())
    assert diff == ["rewards.d.e:f: (absent) -> 4.0"]


def test_a_frozen_config_is_as_ml_collections_has_it():
    plain = {"a": {"list": [1, (2, [3])], "set": {4}}, "none": None}
    ours, theirs = FrozenFields(plain), FrozenConfigDict(plain)
    assert ours == theirs and theirs == ours and hash(ours) == hash(theirs)
    assert ours.to_dict() == theirs.to_dict() and repr(ours) == repr(theirs)
    assert ours != FrozenFields(plain | {"none": 1}) and ours != plain


def test_config_diff_names_dotted_fields():
    old = {"a": {"b": 1, "t": [1, [2]]}, "c": "x", "gone": 0}
    new = {"a": {"b": 1.0, "t": (1, (2,))}, "c": "y", "new": None}
    assert config_diff(old, new) == [
        "a.b: 1 -> 1.0",
        "c: 'x' -> 'y'",
        "gone: 0 -> (absent)",
        "new: (absent) -> None",
    ]
    assert config_diff(new, new) == []


def test_the_closest_field_is_by_its_last_part():
    valid = ["model.layers", "rollout.group", "algorithm.group_norm"]
    assert nearest("model.group", valid) == "rollout.group"
    assert nearest("layer", valid) == "model.layers"


def test_a_run_saved_before_a_field_was_there_has_its_default():
    saved = config.resolve(with_values(rollout__group=4)).to_dict()
    del saved["chat_template_kwargs"], saved["rollout"]["stop"]
    whole = config.fill_missing_fields(saved)
    assert whole["chat_template_kwargs"] == {} and whole["rollout"]["stop"] == ()
    assert whole == config.resolve(with_values(rollout__group=4)).to_dict()
