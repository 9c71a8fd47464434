import dataclasses
import inspect

import pytest

from grpo_jax.algorithms import (
    ADVANTAGES,
    CORRECTIONS,
    GROUP_RELATIVE,
    PRESETS,
    SELECTIONS,
    SURROGATES,
    Algorithm,
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


@pytest.mark.parametrize("name", ADVANTAGES)
def test_validate_a_group_of_one(name):
    algorithm = Algorithm(advantage=name, critic="head" if name == "gae" else "none")
    if name not in GROUP_RELATIVE:
        validate(algorithm, group=1)
        return
    with pytest.raises(ValueError, match="group must be at least 2, got 1"):
        validate(algorithm, group=1)


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
