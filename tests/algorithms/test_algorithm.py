import dataclasses
import functools
import inspect

import pytest

from grpo_jax.algorithms import (
    ADVANTAGES,
    CORRECTIONS,
    PRESETS,
    SELECTIONS,
    SURROGATES,
    Algorithm,
    needs,
    needs_steps,
    validate,
)
from grpo_jax.algorithms.algorithm import call

FIELDS = {field.name for field in dataclasses.fields(Algorithm)}
ARRAYS = {"token_rewards", "values", "step_rewards", "step_ends"}
ARRAYS |= {"logp_rollout", "advantages", "entropy", "rng"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_hashable(name):
    validate(PRESETS[name], group=8)
    assert hash(PRESETS[name]) == hash(dataclasses.replace(PRESETS[name]))


def test_presets_follow_the_papers():
    expected = {
        "grpo": ("group_norm", "token", "clip", "sequence_mean", "k3", "loss", 0.04),
        "grpo_process": ("process", "token", "clip", "sequence_mean", "k3", "loss", 0.04),
        "grpo_r1": ("group_norm", "token", "clip", "sequence_mean", "k3", "loss", 0.001),
        "dr_grpo": ("group_mean", "token", "clip", "constant", "k3", "loss", 0.0),
        "dapo": ("group_norm", "token", "clip", "token_mean", "k3", "loss", 0.0),
        "gspo": ("group_norm", "sequence", "clip", "sequence_mean", "k3", "loss", 0.0),
        "cispo": ("group_norm", "token", "cispo", "token_mean", "k3", "loss", 0.0),
        "rloo": ("leave_one_out", "token", "reinforce", "sequence_sum", "k1", "reward", 0.05),
        "reinforce_pp": ("global_whiten", "token", "clip", "token_mean", "k1", "reward", 0.01),
        "gmpo": ("group_norm", "token", "gmpo", "sequence_mean", "k3", "loss", 0.0),
        "sapo": ("group_norm", "token", "sapo", "sequence_mean", "k3", "loss", 0.0),
        "ppo": ("gae", "token", "clip", "token_mean", "k1", "reward", 0.05),
        "online_rft": ("accepted", "token", "reinforce", "sequence_mean", "k3", "loss", 0.0),
        "lite_ppo": ("batch_norm", "token", "clip", "token_mean", "k3", "loss", 0.0),
        "opo": ("length_weighted", "token", "reinforce", "token_mean", "k3", "loss", 0.0),
    }
    fields = ("advantage", "ratio", "surrogate", "aggregation", "kl", "kl_in", "beta")
    for name, want in expected.items():
        assert tuple(getattr(PRESETS[name], field) for field in fields) == want, name
    clips = {"grpo": (0.2, 0.2), "grpo_r1": (10, 10), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}
    for name, want in clips.items():
        assert (PRESETS[name].clip_low, PRESETS[name].clip_high) == want, name
    r1 = PRESETS["grpo_r1"]
    assert (r1.minibatches, r1.inner_epochs, r1.reference_refresh) == (16, 1, 400)


def test_every_coefficient_is_a_field():
    for registry in (ADVANTAGES, SURROGATES, SELECTIONS, CORRECTIONS):
        for name, function in registry.items():
            parameters = inspect.signature(function).parameters.values()
            wanted = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
            assert wanted <= FIELDS | ARRAYS, name


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"advantage": "group_nrom"}, "advantage must be one of .*got 'group_nrom'.*'group_norm'"),
        ({"surrogate": "clipp"}, "surrogate .*did you mean 'clip'"),
        ({"ratio": "seq"}, "ratio .*did you mean 'sequence'"),
        ({"kl": "k4"}, "kl must be one of k1, k2, k3; got 'k4'"),
        ({"kl_in": "rewards"}, "kl_in .*did you mean 'reward'"),
        ({"aggregation": "token-mean"}, "aggregation .*did you mean 'token_mean'"),
        ({"token_selection": "entropy"}, "token_selection .*did you mean 'top_entropy'"),
        ({"tis_mode": "trunc"}, "tis_mode .*did you mean 'truncate'"),
        ({"reward_combination": "summ"}, "reward_combination .*did you mean 'sum'"),
        ({"beta": -1.0}, r"beta must be in \[0, inf\], got -1.0"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
        ({"clip_high": float("nan")}, "clip_high must be in .*got nan"),
        ({"inner_epochs": 0}, r"inner_epochs must be in \[1, inf\], got 0"),
        ({"reference_mix": 2.0}, "reference_mix"),
        ({"ratio_cap": 1.1}, "ratio_cap must exceed 1 \\+ clip_high = 1.2, got 1.1"),
        ({"surrogate": "gmpo", "ratio": "sequence"}, "ratio must be 'token' with surrogate 'gmpo'"),
        ({"advantage": "process", "kl_in": "reward", "beta": 0.1}, "kl_in must be 'loss'"),
        ({"kl_in": "reward", "kl_unbiased": True}, "kl_unbiased must be False"),
        ({"token_selection": "kl_cov", "dual_clip": 3.0}, "dual_clip must be None with .*'kl_cov'"),
        ({"reference_refresh": 400}, "reference_refresh must be 0 with beta 0, got 400"),
    ],
)
def test_validate_names_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        validate(Algorithm(**fields), group=4)


ENOUGH = ("accepted", "gae", "global_whiten")  # for which one completion is


@pytest.mark.parametrize("name", ADVANTAGES)
def test_validate_a_group_of_one(name):
    algorithm = Algorithm(advantage=name, critic="head" if name == "gae" else "none")
    if name in ENOUGH:
        validate(algorithm, group=1)
        return
    valid = "with 1 valid: global_whiten, accepted, gae"
    with pytest.raises(ValueError, match=f"group must be at least 2, got 1; {valid}$"):
        validate(algorithm, group=1)


def plain(rewards, mask):
    return rewards[..., None]


@pytest.mark.parametrize(
    ("declared", "function", "fields", "group", "message"),
    [
        (None, plain, {}, 2, None),
        (None, plain, {}, 1, r"'mine' does not declare needs\(group=1\), .*2, got 1; .*, gae$"),
        ({"group": 1}, plain, {}, 1, None),
        (None, lambda r: r, {}, 2, r"'mine' is called as f\(rewards, mask, \*, \.\.\.\): too many"),
        (None, lambda r, m, v: r, {}, 2, r"'mine' is called as f\(rewards, mask, .*argument: 'v'"),
        ({"group": 2}, plain, {}, 1, "'mine' compares .*: group must be at least 2, got 1;"),
        ({"group": 4}, plain, {}, 3, "group must be at least 4, got 3;"),
        (
            {"group": 1, "critic": True},
            plain,
            {},
            1,
            "critic must be network or head with .*'mine'",
        ),
        ({"group": 1, "critic": True}, plain, {"critic": "head"}, 1, None),
        (None, lambda r, m, *, values: values, {}, 2, "critic must be network or head with"),
        (None, lambda r, m, *, values: values, {"critic": "head"}, 2, None),
        (None, lambda r, m, *, values=None: r, {}, 2, None),
        (None, lambda r, m, *, values=None: r, {"critic": "head"}, 2, None),
        (None, plain, {"critic": "head"}, 2, "critic must be 'none' with advantage 'mine'"),
        ({"minibatches": 2}, plain, {}, 2, "minibatches must be 2 with advantage 'mine', got 1"),
        ({"minibatches": 2}, plain, {"minibatches": 2}, 2, None),
        ({"gama": 1.0}, plain, {}, 2, "'mine' needs 'gama', which is neither .*'gamma'"),
        (None, lambda r, m, *, valeus: r, {}, 2, "'mine' needs 'valeus', .* closest .*'values'"),
    ],
)
def test_what_an_advantage_declares_is_held(
    monkeypatch, declared, function, fields, group, message
):
    function = functools.wraps(function)(lambda *a, **b: function(*a, **b))
    function = needs(**declared)(function) if declared is not None else function
    monkeypatch.setitem(ADVANTAGES, "mine", function)
    algorithm = Algorithm(advantage="mine", **fields)
    if message is None:
        validate(algorithm, group)
        return
    with pytest.raises(ValueError, match=message) as raised:
        validate(algorithm, group)
    assert "\n" not in str(raised.value)


def test_an_advantage_may_be_anyones_by_its_import_path(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_mine.py").write_text("def median(rewards, mask): ...\nLIMIT = 2\n")
    validate(Algorithm(advantage="of_mine:median"), group=2)
    with pytest.raises(ValueError, match="'of_mine:median' does not declare"):
        validate(Algorithm(advantage="of_mine:median"), group=1)
    for name, message in (
        ("of_mine:medain", "unknown name 'medain'; did you mean 'median'"),
        ("of_mine:LIMIT", "is of type int; valid: a callable"),
        ("of_mien:median", "cannot import 'of_mien'"),
        (":median", "cannot import ''"),
    ):
        with pytest.raises(ValueError, match=f"advantage '{name}': {message}"):
            validate(Algorithm(advantage=name), group=2)


def test_other_components_declare_too(monkeypatch):
    for field, table, name in (
        ("surrogate", SURROGATES, "clip"),
        ("token_selection", SELECTIONS, "top_entropy"),
        ("tis_mode", CORRECTIONS, "mask"),
    ):
        mine = functools.wraps(table[name])(lambda *a, **b: None)
        monkeypatch.setitem(table, "mine", needs(group=3, gamma=0.5)(mine))
        with pytest.raises(ValueError, match=f"{field} 'mine' compares .* at least 3, got 2"):
            validate(Algorithm(**{field: "mine"}), group=2)
        with pytest.raises(ValueError, match=f"gamma must be 0.5 with {field} 'mine', got 1.0"):
            validate(Algorithm(**{field: "mine"}), group=3)
    assert needs_steps(Algorithm(surrogate="mine")) is False
    monkeypatch.setitem(SURROGATES, "mine", needs(steps=True)(lambda *a: None))
    assert needs_steps(Algorithm(surrogate="mine"))
    with pytest.raises(ValueError, match="reward_combination 'normalize_each' compares"):
        validate(Algorithm(advantage="accepted", reward_combination="normalize_each"), group=1)


def test_validate_the_group_itself():
    with pytest.raises(ValueError, match="group must be at least 1, got 0"):
        validate(Algorithm(), group=0)
    resampling = Algorithm(advantage="gae", critic="head", dynamic_sampling_rounds=2)
    with pytest.raises(ValueError, match="dynamic_sampling_rounds must be 0 with group 1"):
        validate(resampling, group=1)


def test_call_picks_by_name_and_arrays_win():
    def function(x, *, beta, entropy, extra=7):
        return x, beta, entropy, extra

    algorithm = Algorithm(beta=0.5)
    assert call(function, algorithm, 1, arrays={"entropy": 2, "extra": None}) == (1, 0.5, 2, 7)
    with pytest.raises(ValueError, match="'function' needs entropy, which was not given"):
        call(function, algorithm, 1)
