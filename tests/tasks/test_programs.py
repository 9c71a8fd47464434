"""Functions in words: the cases are what Python computes, and the sandbox agrees."""

import shutil

import pytest

from grpo_jax.tasks import make_task


def test_cases_are_what_the_worked_program_computes():
    task = make_task("programs", heldout_size=40)
    assert len({p.prompt for p in task.heldout}) == 40
    trained = [task.train[i] for i in range(200)]
    assert not {p.prompt for p in trained} & {p.prompt for p in task.heldout}
    for problem in trained:
        completion = task.solve(problem)
        assert set(completion.replace("<think>", "").replace("answer>", "")) <= {
            *"".join(s for s in task.symbols if len(s) == 1), *"</>think"}  # fmt: skip
        names: dict = {}
        exec(completion.split("<answer>")[1].removesuffix("</answer>"), names)
        for case in problem.columns["cases"]:
            assert names[case["call"]](*case["args"]) == case["expected"]


def test_thoughts_are_in_the_languages_asked_for():
    thoughts = {
        lang: make_task("programs", thinks=(lang,)).solve(make_task("programs").train[5])
        for lang in ("en", "de")
    }
    assert "<think>we take x" in thoughts["en"] and "<think>wir nehmen x" in thoughts["de"]
    assert thoughts["en"].split("</think>")[1] == thoughts["de"].split("</think>")[1]
    with pytest.raises(ValueError, match="valid: en, de"):
        make_task("programs", thinks=("en", "fr"))


def test_steps_apply_from_left_to_right():
    task = make_task("programs", max_steps=3, max_number=3, heldout_size=20)
    problem = next(
        p for p in map(task.train.__getitem__, range(999)) if p.prompt == "f(x): x plus 3, times 2="
    )
    assert [c["expected"] for c in problem.columns["cases"]] == [-2, 26]
    assert task.solve(problem).endswith("<answer>def f(x): return ((x+3)*2)</answer>")


def test_the_sandbox_judges():
    pytest.importorskip("pyseccomp", reason="the extra grpo_jax[code] is not installed")
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    task = make_task("programs")
    problem = task.train[0]
    right, wrong = task.solve(problem), "<answer>def f(x): return x</answer>"
    cases = [problem.columns["cases"]] * 2
    assert task.accuracy([problem.prompt] * 2, [right, wrong], cases=cases) == [1.0, 0.0]


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="max_steps=0: valid: 1 to 5"):
        make_task("programs", max_steps=0)
