"""Numbers that fit nowhere: refused where they are read, in one line, by their field or flag."""

import sys

import pytest
from absl import flags

from grpo_jax.config import command_line, defaults, resolve
from grpo_jax.errors import UsageError
from grpo_jax.tasks import TASKS, make_task
from grpo_jax.tasks.problem import Problem, split

HUGE = 10**20


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("seed", 2**32, "valid: 0 to 4294967295"),
        ("seed", -1, "valid: 0 to 4294967295"),
        ("steps", HUGE, "at most 2147483647"),
        ("steps", 2**31, "at most 2147483647"),
        ("rollout.group", HUGE, "at most 2147483647"),
        ("algorithm.inner_epochs", HUGE, "at most 2147483647"),
        ("eval.problems", 2**31, "at most 2147483647"),
        ("rollout.group", 10**9, "2048000000000 tokens a step; valid: at most 2147483647"),
        ("model.layers", 10**9, "at most 10000"),
        ("model.ff", 2**30, "at most 4194304"),
        ("reward_workers", 10**6, "at most 4096"),
        ("task.train_size", 2**63, f"at most {sys.maxsize}"),
        ("rewards.accuracy", 1e39, "float32"),
        ("optimizer.learning_rate", 1e39, "float32"),
        ("optimizer.learning_rate", float("inf"), "finite"),
        ("algorithm.beta", float("nan"), "finite"),
        ("rollout.temperature", 1e-50, "at least 1.17549435e-38"),
        ("optimizer.eps", 1e-46, "at least 1.17549435e-38"),
    ],
)
def test_a_number_that_does_not_fit_is_named_by_its_field(field, value, valid):
    config = defaults()
    config.task.train_size = 1
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError, match=rf"config\.({field}|rollout\.prompts).*: .*{valid}"):
        resolve(config)


def test_the_largest_that_fit_are_taken():
    config = defaults()
    config.seed, config.steps, config.task.seed = 2**32 - 1, 2**31 - 1, HUGE
    assert resolve(config).seed == 2**32 - 1
    config.algorithm.minibatches = 2
    with pytest.raises(UsageError, match=r"config\.steps: .*4294967294 updates; valid: at most"):
        resolve(config)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (f"--n={HUGE}", f"--n={HUGE}: it must be at most 2147483647"),
        (f"--n=-{HUGE}", "--n=-"),
        ("--seed=4294967296", "--seed=4294967296.* in the range"),
        ("--seed=4294967295", None),
        ("--temperature=nan", "--temperature=nan: it must be a finite number"),
        ("--temperature=1e400", "--temperature=inf: it must be a finite number"),
        ("--out=", "--out= is empty; valid: the folder to write"),
        ("--note=", None),
        ("--against=", "--against= is empty; valid: others"),
        ("--against=a,,b", "--against=a,,b has an empty name in it; valid: others"),
        ("--against=a,", "has an empty name in it"),
        ("--against=a,b", None),
        ("--n=3", None),
    ],
)
def test_flags_of_any_program_are_held_to_it(option, message):
    values = flags.FlagValues()
    flags.DEFINE_integer("n", 1, "how many", flag_values=values)
    flags.DEFINE_integer("seed", 0, "", 0, 2**32 - 1, flag_values=values)
    flags.DEFINE_float("temperature", 1.0, "", lower_bound=0.0, flag_values=values)
    flags.DEFINE_string("out", None, "the folder to write", flag_values=values)
    flags.DEFINE_string("note", "", "", flag_values=values)
    flags.DEFINE_list("against", [], "others", flag_values=values)
    if message is None:
        assert command_line.parse_flags(["program", option], values) == ["program"]
        return
    with pytest.raises(UsageError, match=message):
        command_line.parse_flags(["program", option], values)


def test_a_flag_that_is_needed_says_what_it_is():
    values = flags.FlagValues()
    flags.DEFINE_string("prompt", None, "the question", flag_values=values, required=True)
    with pytest.raises(UsageError, match=r"^--prompt=\.\.\. is needed: the question$"):
        command_line.parse_flags(["program"], values)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_an_option_of_a_task_has_its_type(name):
    if name != "reasoning_gym":  # which knows the options of its data sets
        with pytest.raises(TypeError, match=rf"'{name}': unknown option 'nonsense'.*valid: \w+"):
            make_task(name, nonsense=3)
    path = {"path": "x"} if name not in ("addition", "countdown", "manners", "programs") else {}
    bad = {"path": 3} if path else {"seed": "x"}
    bad = {"of": 3} if name in ("framed", "solved") else bad
    bad = {"parts": 3} if name == "mixture" else bad
    bad = {"dataset": 3} if name == "reasoning_gym" else bad
    bad = {"heldout_size": True} if name == "word_problems" else bad
    with pytest.raises(TypeError, match=rf"'{name}': \w+=.* is not of type \w+"):
        make_task(name, **bad)
    with pytest.raises(TypeError, match="a task needs a 'name'"):
        make_task(**bad)


def test_more_held_out_problems_than_there_are_end_soon():
    draws = 0

    def draw(rng):
        nonlocal draws
        draws += 1
        return str(rng.randrange(50))

    kinds = {"key": str, "problem": lambda x: Problem(x), "train_size": 1, "seed": 0}
    with pytest.raises(ValueError, match=r"only \d+ distinct held-out problems"):
        split(draw, heldout_size=99_999, **kinds)
    assert draws < 10_000
    for sizes in ({"heldout_size": 10**9}, {"heldout_size": 1, "train_size": 10**13}):
        with pytest.raises(ValueError, match="valid: at most 1000000000000 and 100000"):
            split(draw, **(kinds | sizes))
