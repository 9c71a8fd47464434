"""An algorithm is a value: names of functions, and the coefficients that they ask for by name."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar, cast

from jaxtyping import Array

from grpo_jax.algorithms.advantages import ADVANTAGES
from grpo_jax.algorithms.aggregation import AGGREGATIONS
from grpo_jax.algorithms.corrections import CORRECTIONS
from grpo_jax.algorithms.kl import KLS
from grpo_jax.algorithms.needs import UNDECLARED_GROUP, needs_of, required, takes
from grpo_jax.algorithms.ratios import RATIOS
from grpo_jax.algorithms.selection import SELECTIONS
from grpo_jax.algorithms.shaping import COMBINATIONS
from grpo_jax.algorithms.surrogates import SURROGATES
from grpo_jax.algorithms.values import CRITICS
from grpo_jax.errors import nearest
from grpo_jax.registry import imported

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A point in the algebra; hashable, so it can be a static argument of jax.jit.

    A coefficient reaches a function by its name: one new function with one new keyword-only
    argument needs one new field here, and nothing else.
    """

    # Rewards
    reward_combination: str = "sum"  # of several reward functions: COMBINATIONS
    overlong_cache: float = 0.0  # share of max_length that soft_overlong penalises; 0 is off
    dynamic_sampling_rounds: int = 0  # resample groups without spread at most so often; 0 is off
    mask_truncated: bool = False  # completions cut at max_length leave the loss

    # Advantages
    advantage: str = "group_norm"  # ADVANTAGES
    std_ddof: int = 1
    std_eps: float = 1e-6
    accept_reward: float = 1.0  # a completion of at least this much is imitated (accepted)
    gamma: float = 1.0
    lam: float = 0.95

    # Policy loss
    ratio: str = "token"  # RATIOS
    surrogate: str = "clip"  # SURROGATES
    clip_low: float = 0.2  # 1 or more: no lower clip (gmpo: of the log-ratio)
    clip_high: float = 0.2
    ratio_cap: float | None = None  # INTELLECT-2's delta
    dual_clip: float | None = None  # c
    sapo_tau_pos: float = 1.0
    sapo_tau_neg: float = 1.05
    aggregation: str = "sequence_mean"  # AGGREGATIONS
    entropy_bonus: float = 0.0

    # KL to the reference
    kl: str = "k3"  # KLS
    beta: float = 0.0  # 0: no reference policy
    kl_in: str = "loss"  # or "reward"
    kl_unbiased: bool = False  # times the importance weight (DeepSeek-V3.2)
    reference_refresh: int = 0  # every n steps the reference moves; 0 is never
    reference_mix: float = 1.0  # alpha: ref = alpha policy + (1 - alpha) ref; 1 replaces it

    # Tokens that the loss treats differently
    token_selection: str = "none"  # SELECTIONS
    entropy_fraction: float = 0.2
    clip_cov_fraction: float = 2e-4
    clip_cov_low: float = 1.0
    clip_cov_high: float = 5.0
    kl_cov_fraction: float = 2e-3
    kl_cov_coef: float = 1.0

    # Rollout against learner
    tis_mode: str = "none"  # CORRECTIONS
    tis_cap: float = 2.0

    # Updates per rollout
    inner_epochs: int = 1
    minibatches: int = 1
    kl_stop: float | None = None  # skip what is left of a rollout once approx_kl exceeds this

    # Critic, for an advantage that needs one
    critic: str = "none"  # CRITICS: a separate network, or a head on the policy
    value_clip: float | None = 0.2
    value_coef: float = 1.0


# Closed intervals; a field that is None is off and passes.
_RANGES: dict[str, tuple[float, float]] = {
    "overlong_cache": (0, 1),
    "dynamic_sampling_rounds": (0, math.inf),
    "std_ddof": (0, 1),
    "std_eps": (0, math.inf),
    "gamma": (0, 1),
    "lam": (0, 1),
    "clip_low": (0, math.inf),
    "clip_high": (0, math.inf),
    "dual_clip": (1, math.inf),
    "sapo_tau_pos": (1e-6, math.inf),
    "sapo_tau_neg": (1e-6, math.inf),
    "entropy_bonus": (0, math.inf),
    "beta": (0, math.inf),
    "reference_refresh": (0, math.inf),
    "reference_mix": (0, 1),
    "entropy_fraction": (0, 1),
    "clip_cov_fraction": (0, 1),
    "kl_cov_fraction": (0, 1),
    "kl_cov_coef": (0, math.inf),
    "tis_cap": (0, math.inf),
    "inner_epochs": (1, math.inf),
    "minibatches": (1, math.inf),
    "kl_stop": (0, math.inf),
    "value_clip": (0, math.inf),
    "value_coef": (0, math.inf),
}


# The components that an algorithm names, by field; "none" is none.
COMPONENTS: dict[str, Mapping[str, Callable]] = {
    "reward_combination": COMBINATIONS,
    "advantage": ADVANTAGES,
    "ratio": RATIOS,
    "surrogate": SURROGATES,
    "aggregation": AGGREGATIONS,
    "kl": KLS,
    "token_selection": SELECTIONS,
    "tis_mode": CORRECTIONS,
}
OPTIONAL = ("token_selection", "tis_mode")
# What each is called with, before the keyword-only arguments that it names.
ARGUMENTS = {
    "reward_combination": ("parts", "weights"),
    "advantage": ("rewards", "mask"),
    "ratio": ("logp", "logp_old", "mask"),
    "surrogate": ("log_ratio", "advantages", "logp", "mask"),
    "aggregation": ("mask", "max_length"),
    "kl": ("logp", "logp_ref", "mask"),
    "token_selection": ("mask",),
    "tis_mode": ("logp_old", "logp_rollout", "mask"),
}
# The arrays that components may ask for by name.
ARRAYS = {
    "advantage": ("token_rewards", "values", "step_rewards", "step_ends"),
    "token_selection": ("advantages", "logp_rollout", "entropy", "rng"),
}


def component(algorithm: Algorithm, field: str) -> Callable[..., Array]:
    """The function that a field of COMPONENTS names, by its table or by its import path.

    ValueError names the field, what is not there and what would be valid.
    """
    name, table = getattr(algorithm, field), COMPONENTS[field]
    if name in table:
        return table[name]
    if ":" in str(name):
        return cast(Callable[..., Array], imported(field, name))
    raise ValueError(_unknown(field, name, (*table, *(("none",) if field in OPTIONAL else ()))))


def components(algorithm: Algorithm) -> dict[str, Callable[..., Array]]:
    """All its functions by field; ValueError as `component`."""
    used = [f for f in COMPONENTS if f not in OPTIONAL or getattr(algorithm, f) != "none"]
    return {field: component(algorithm, field) for field in used}


def validate(algorithm: Algorithm, group: int) -> None:
    """Raises ValueError, naming the field and what would be valid, unless the algorithm can run.

    `group` is G, the number of completions a prompt.
    """
    if group < 1:
        raise ValueError(f"group must be at least 1, got {group}")
    used = components(algorithm)
    choices = {"kl_in": ("loss", "reward"), "critic": ("none", *CRITICS)}
    for field, names in choices.items():
        if (value := getattr(algorithm, field)) not in names:
            raise ValueError(_unknown(field, value, names))
    for field, (low, high) in _RANGES.items():
        value = getattr(algorithm, field)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{field} must be in [{low:g}, {high:g}], got {value}")
    for field in used:
        _check_needs(algorithm, field, used[field], group)
    _check_pairs(algorithm, group)


def needs_steps(algorithm: Algorithm) -> bool:
    """Whether a component asks for the rewards of single steps."""
    try:
        return any(needs_of(f).steps for f in components(algorithm).values())
    except ValueError:  # a config file's, unknown to programs that only ask the run's policy
        return False


def squares_parts(algorithm: Algorithm) -> bool:
    """Whether the rewards' combination takes the squares of its parts."""
    return getattr(component(algorithm, "reward_combination"), "squares_parts", False)


def check_group(field: str, name: str, function: Callable, group: int) -> None:
    """Raises ValueError where a component that compares completions has too few of a prompt's."""
    undeclared = UNDECLARED_GROUP if field == "advantage" else 1
    why = "compares a prompt's completions with each other"
    if needs_of(function).group is None:
        why = "does not declare needs(group=1), so it may compare a prompt's completions"
    least = needs_of(function).group or undeclared
    if group < least:
        known = COMPONENTS[field].items()
        able = [k for k, f in known if (needs_of(f).group or undeclared) <= group]
        raise ValueError(
            f"{field} {name!r} {why}: group must be at least {least}, got {group}; with {group} "
            f"valid: {', '.join(able)}"
        )


def unclipped(algorithm: Algorithm) -> Algorithm:
    """The algorithm without any clip of its ratios, which ratios.LOG_RATIO_MAX keeps below 1e9."""
    return dataclasses.replace(
        algorithm, clip_low=1e9, clip_high=1e9, ratio_cap=None, dual_clip=None
    )


def call(
    function: Callable[..., T],
    algorithm: Algorithm,
    *args: Array | int,
    arrays: Mapping[str, Array | None] | None = None,
) -> T:
    """Calls function(*args) with the keyword-only arguments that its signature names.

    Each comes from `arrays`, where it is given and not None, or else from the algorithm's fields.
    """
    given = {**vars(algorithm), **{k: v for k, v in (arrays or {}).items() if v is not None}}
    wanted = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if name in given:
            wanted[name] = given[name]
        elif parameter.default is inspect.Parameter.empty:
            raise ValueError(f"{function.__name__!r} needs {name}, which was not given")
    return function(*args, **wanted)


def _unknown(field: str, value: object, names: Collection[str]) -> str:
    near, listed = nearest(str(value), names), ", ".join(sorted(names))
    return f"{field} must be one of {listed}; got {value!r}, did you mean {near!r}?"


def _check_needs(algorithm: Algorithm, field: str, function: Callable, group: int) -> None:
    """Raises ValueError unless what a component needs is there."""
    name, needed = getattr(algorithm, field), needs_of(function)
    given = dict.fromkeys(required(function))
    try:
        inspect.signature(function).bind(*ARGUMENTS[field], **given)
    except TypeError as error:
        called = ", ".join((*ARGUMENTS[field], "*", "..."))
        raise ValueError(f"{field} {name!r} is called as f({called}): {error}") from error
    known = [*ARRAYS.get(field, ()), *vars(algorithm)]
    for lacking in sorted({*required(function), *needed.fields} - {*known}):
        raise ValueError(
            f"{field} {name!r} needs {lacking!r}, which is neither a field of an algorithm nor an "
            f"array that it can have; the closest valid one is {nearest(lacking, known)!r}"
        )
    check_group(field, name, function, group)
    for other, wanted in needed.fields.items():
        moot = other == "kl_in" and algorithm.beta == 0
        if (value := getattr(algorithm, other)) != wanted and not moot:
            raise ValueError(f"{other} must be {wanted!r} with {field} {name!r}, got {value!r}")
    if needed.critic and algorithm.critic == "none":
        raise ValueError(
            f"critic must be {' or '.join(CRITICS)} with {field} {name!r}, which needs one; got "
            f"{algorithm.critic!r}"
        )
    reads_values = needed.critic or takes(function, "values")
    if field == "advantage" and algorithm.critic != "none" and not reads_values:
        raise ValueError(
            f"critic must be 'none' with advantage {name!r}, which reads no values; got "
            f"{algorithm.critic!r}"
        )


def _check_pairs(algorithm: Algorithm, group: int) -> None:
    """Raises ValueError on fields that are valid by themselves but not together."""
    a = algorithm
    if a.ratio_cap is not None and a.ratio_cap <= 1 + a.clip_high:
        raise ValueError(
            f"ratio_cap must exceed 1 + clip_high = {1 + a.clip_high:g}, got {a.ratio_cap}"
        )
    if a.kl_in == "reward" and a.kl_unbiased:
        raise ValueError("kl_unbiased must be False with kl_in 'reward': no gradient passes there")
    if a.reference_refresh > 0 and a.beta == 0:
        raise ValueError(f"reference_refresh must be 0 with beta 0, got {a.reference_refresh}")
    if a.dynamic_sampling_rounds > 0 and group < 2:
        raise ValueError(
            f"dynamic_sampling_rounds must be 0 with group {group}: no group has spread"
        )
