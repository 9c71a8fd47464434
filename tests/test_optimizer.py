"""The optimizer against optax's own with constants in it, and as a program of numbers."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from grpo_jax.learning.optimizer import make_optimizer

FIELDS = {
    **{"learning_rate": 0.01, "schedule": "constant", "warmup_steps": 4, "end_factor": 0.1},
    **{"weight_decay": 0.2, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "max_grad_norm": 0.1},
}
# Every number another.
OTHER = {
    **{"learning_rate": 0.3, "warmup_steps": 0, "end_factor": 0.5, "weight_decay": 0.0},
    **{"b1": 0.8, "b2": 0.99, "eps": 1e-3, "max_grad_norm": 7.0},
}
PARAMS = {"kernel": jnp.array([1.0, -2.0]), "scale": jnp.array([0.5])}
GRADIENT = {"kernel": jnp.array([0.3, 1.0]), "scale": jnp.array([-2.0])}
SCHEDULES = ("constant", "linear", "cosine")


def made(updates=10, **changes):
    return make_optimizer(ml_collections.ConfigDict(FIELDS | changes), updates)


def shown(state):
    return optax.tree.get(state, "hyperparams")


def constant_adamw(schedule, updates):
    """The transformation of FIELDS as optax itself writes it, which older checkpoints are of."""
    peak, warmup, last = FIELDS["learning_rate"], FIELDS["warmup_steps"], FIELDS["end_factor"]
    rest = updates - warmup
    decay = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * last, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, last),
    }[schedule]
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    adamw = optax.inject_hyperparams(optax.adamw, static_args=("mask",))(
        optax.join_schedules([rise, decay], [warmup]),
        **{name: FIELDS[name] for name in ("b1", "b2", "eps", "weight_decay")},
        mask={"kernel": True, "scale": False},
    )
    clipped = optax.chain(optax.clip_by_global_norm(FIELDS["max_grad_norm"]), adamw)
    return optax.apply_if_finite(clipped, 9)


@pytest.mark.parametrize(
    ("schedule", "rest"),
    [
        ("constant", lambda x: 1.0),
        ("linear", lambda x: 1 - 0.9 * x),
        ("cosine", lambda x: 0.1 + 0.9 * (1 + np.cos(np.pi * x)) / 2),
    ],
)
def test_schedules_are_optaxs_and_the_formula_and_states_of_optax_go_on(schedule, rest):
    ours, plain = made(schedule=schedule), constant_adamw(schedule, 10)
    state, expected, rates = ours.init(PARAMS), plain.init(PARAMS), []
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    step, plain_step = jax.jit(ours.update), jax.jit(plain.update)
    for number in range(12):
        bad = number in (0, 2)  # a skipped update does not advance the schedule
        gradient = jax.tree.map(lambda g, bad=bad: g * (np.nan if bad else 1.0), GRADIENT)
        state = expected if number == 5 else state  # as from an older checkpoint
        found, state = step(gradient, state, PARAMS)
        wanted, expected = plain_step(gradient, expected, PARAMS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted)
        if not bad:
            rates.append(float(shown(state)["learning_rate"]))
            assert rates[-1] == pytest.approx(float(shown(expected)["learning_rate"]), rel=1e-6)
    formula = [0.01 * (i + 1) / 5 for i in range(4)] + [0.01 * rest(i / 6) for i in range(6)]
    np.testing.assert_allclose(rates, formula, rtol=1e-5)
    assert int(state.total_notfinite) == 2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_number_is_in_the_program(schedule):
    """Neither the update nor the first state of one run is compiled anew for another's numbers."""
    one, other = made(schedule=schedule), made(33, schedule=schedule, **OTHER)
    state = one.init(PARAMS)

    def update(optimizer, *arguments):
        return optimizer.update(*arguments)

    lowered = [jax.jit(update).lower(x, GRADIENT, state, PARAMS).as_text() for x in (one, other)]
    assert lowered[0] == lowered[1]
    jax.tree.map(np.testing.assert_array_equal, one.init(PARAMS), other.init(PARAMS))
    assert jax.tree.leaves(one) != jax.tree.leaves(other)


def test_a_restored_states_numbers_are_not_the_configs():
    """A run that goes on with other numbers uses, and shows, its own."""
    first, second = made(), made(20, **OTHER)
    state = first.update(GRADIENT, first.init(PARAMS), PARAMS)[1]
    found, after = second.update(GRADIENT, state, PARAMS)
    numbers = {k: OTHER[k] for k in ("learning_rate", "b1", "b2", "eps", "weight_decay")}
    for name, number in numbers.items():
        assert float(shown(after)[name]) == pytest.approx(number), name
    moments = state.inner_state[1].inner_state
    wanted, _ = optax.adamw(**numbers).update(GRADIENT, moments, PARAMS)  # the norm is below 7
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted)


def test_bfloat16_parameters_stay_bfloat16():
    params, gradient = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (PARAMS, GRADIENT))
    optimizer = made()
    state = optimizer.init(params)
    found, after = jax.jit(optimizer.update)(gradient, state, params)
    kinds = lambda tree: jax.tree.map(lambda x: x.dtype, tree)  # noqa: E731
    assert kinds(found) == kinds(params) and kinds(after) == kinds(state)
