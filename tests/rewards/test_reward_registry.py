import subprocess
import sys

import pytest

from grpo_jax.rewards import resolve
from grpo_jax.rewards.form import format_tags
from grpo_jax.rewards.text import exact_answer


def test_names_resolve():
    assert resolve("format") is format_tags
    assert resolve("exact_answer") is exact_answer
    assert resolve("accuracy", accuracy=exact_answer) is exact_answer
    assert resolve("grpo_jax.rewards.form:format_tags") is format_tags


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("formt", "unknown reward 'formt'; did you mean 'format'"),
        ("math_verfy", "unknown reward 'math_verfy'; did you mean 'math_verify'"),
        ("accuracy", "the task's own, and no task"),
        ("no.such.module:f", "cannot import 'no.such.module'"),
        ("grpo_jax.rewards.form:format_tag", "did you mean 'format_tags'"),
        ("grpo_jax.rewards.text:TAGS", "is of type tuple; valid: a callable"),
    ],
)
def test_what_does_not_resolve_is_named(name, match):
    with pytest.raises(ValueError, match=match):
        resolve(name)


def test_rewards_and_tasks_import_no_jax():
    code = (
        "import sys, grpo_jax.rewards, grpo_jax.tasks, grpo_jax.tokenizers;"
        "print([m for m in ('jax', 'grain', 'flax', 'torch', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
