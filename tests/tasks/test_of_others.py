"""Tasks made of others: solved from a file, and framed in a template."""

import json

import pytest

from grpo_jax.tasks import make_task

ADDITION = {"name": "addition", "digits": 1, "heldout_size": 6, "train_size": 50}


def test_a_task_is_learnt_from_solutions_in_a_file(tmp_path, capsys):
    addition = make_task(**ADDITION)
    path = tmp_path / "kept.jsonl"
    mine = [{"prompt": "1+1=", "answer": "2", "solution": "<answer>2</answer>"}]
    asked = [{"prompt": addition.heldout[2].prompt, "answer": "0", "solution": "x"}]
    path.write_text("".join(json.dumps(r) + "\n" for r in mine + asked))
    task = make_task("solved", path=str(path), of=ADDITION)
    assert [(p.prompt, task.solve(p)) for p in task.train] == [("1+1=", "<answer>2</answer>")]
    assert task.overlap == 1 and task.symbols == addition.symbols
    assert list(task.heldout) == list(addition.heldout)
    assert task.accuracy(["1+1="], ["<answer>2</answer>"], **{"answer": ["2"]}) == [1.0]
    path.write_text(json.dumps(mine[0]) + "\n" + json.dumps({"prompt": "2+2="}) + "\n")
    with pytest.raises(ValueError, match=r"kept\.jsonl:2: .*solution"):
        make_task("solved", path=str(path), of=ADDITION)
    path.write_text(json.dumps(mine[0]) + "\n" + json.dumps({"prompt": "2+2=", "solution": ""}))
    assert len(make_task("solved", path=str(path), of=ADDITION).train) == 1
    assert "warning: 1 of 2 records" in (warning := capsys.readouterr().err)
    assert "kept.jsonl:2: column 'solution' is" in warning
    path.write_text(json.dumps(asked[0]) + "\n")
    with pytest.raises(ValueError, match="no problem of 1 records is one to train on"):
        make_task("solved", path=str(path), of=ADDITION)


def test_a_framed_task_asks_in_a_chat_and_solves_as_before():
    addition, says = make_task(**ADDITION), "What is {prompt} Think."
    task = make_task("framed", of=ADDITION, says=says, system="Be brief.")
    for side, i in (("train", 3), ("heldout", 1)):
        bare, problem = getattr(addition, side)[i], getattr(task, side)[i]
        system, user = problem.prompt
        assert system == {"role": "system", "content": "Be brief."}
        assert user == {"role": "user", "content": f"What is {bare.prompt} Think."}
        assert task.solve(problem) == addition.solve(bare)
        text = addition.solve(bare)
        assert task.steps(problem, text) == addition.steps(bare, text) != []
        assert problem.columns["answer"] == bare.columns["answer"]
    with pytest.raises(ValueError, match="says='2': valid"):
        make_task("framed", of=ADDITION, says="2")


@pytest.mark.parametrize("side", ["path", "heldout_path"])
def test_chat_messages_are_not_framed(tmp_path, side):
    """Nor is what Python writes of them a prompt."""
    chat = {"prompt": [{"role": "user", "content": "hi"}], "answer": "1"}
    of = {"name": "jsonl"}
    for name, line in (("path", {"prompt": "p", "answer": "1"}), ("heldout_path", {"prompt": "q"})):
        lines = [line | {"answer": "1"}, *[chat, chat] * (name == side)]
        (tmp_path / name).write_text("".join(f"{json.dumps(record)}\n" for record in lines))
        of[name] = str(tmp_path / name)
    with pytest.raises(ValueError, match=rf"/{side}:2: the prompt is chat .*first of 2 among 4 "):
        make_task("framed", of=of)
    drawn = {"name": "word_problems", "template": "chat"}
    with pytest.raises(ValueError, match="the prompt is chat messages; valid: text"):
        make_task("framed", of=drawn)
