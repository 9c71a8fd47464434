import pytest

from grpo_jax.tasks import make_task


def test_unknown_names_point_to_the_nearest():
    with pytest.raises(ValueError, match="unknown task 'adition'; did you mean 'addition'"):
        make_task("adition")
    with pytest.raises(TypeError, match=r"'addition': unknown option 'digit'.*'digits'"):
        make_task("addition", digit=3)


def test_an_import_path_must_lead_to_a_task():
    with pytest.raises(TypeError, match="task 'os:getcwd': made a str; valid: "):
        make_task("os:getcwd")
    with pytest.raises(ValueError, match=r"task 'os:getcw': unknown name 'getcw'; .*'getcwd'"):
        make_task("os:getcw")


def test_a_missing_option_is_named():
    with pytest.raises(TypeError, match="'jsonl': needs the option 'path'"):
        make_task("jsonl")
