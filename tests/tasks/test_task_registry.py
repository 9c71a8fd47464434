import pytest

from grpo_jax.tasks import make_task


def test_unknown_names_point_to_the_nearest():
    with pytest.raises(ValueError, match="unknown task 'adition'; did you mean 'addition'"):
        make_task("adition")
    with pytest.raises(TypeError, match=r"'addition': unknown option 'digit'.*'digits'"):
        make_task("addition", digit=3)


def test_a_missing_option_is_named():
    with pytest.raises(TypeError, match="'jsonl': needs the option 'path'"):
        make_task("jsonl")
