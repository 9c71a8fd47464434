import json
from pathlib import Path

import pytest
from chat_tokenizer import save
from tiny import tiny_config
from transformers import AutoTokenizer

from grpo_jax.config import defaults, resolve
from grpo_jax.errors import UsageError
from grpo_jax.rollout.play import encode_batch
from grpo_jax.tokenizers import decode
from grpo_jax.training.experiment import build
from grpo_jax.training.sft import solution_ids


@pytest.fixture
def config(tmp_path):
    """Chat messages in JSON lines, and the tokenizer of a Hugging Face directory."""
    save(tmp_path)
    question = lambda i: [{"role": "user", "content": f"What is {i} + 34?"}]  # noqa: E731
    lines = [json.dumps({"prompt": question(i), "answer": str(i + 34)}) for i in range(50)]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    config = defaults()
    config.task = {"name": "jsonl", "path": str(tmp_path / "problems.jsonl")}
    config.tokenizer, config.prompt_length = str(tmp_path), 64
    return config


def test_chat_problems_are_laid_out_and_end_as_the_directory_says(config):
    ex = build(resolve(config))
    theirs = AutoTokenizer.from_pretrained(config.tokenizer)
    problems = [ex.task.train[0], ex.task.train[1]]
    prompts = encode_batch(ex.tokenizer, problems, config.prompt_length, 1)
    for problem, tokens, mask in zip(problems, prompts.tokens, prompts.mask, strict=True):
        ids = theirs.apply_chat_template(
            problem.prompt, add_generation_prompt=True, return_dict=False
        )
        assert tokens[mask].tolist() == ids
    assert ex.sampling().stop == (theirs.eos_token_id,)
    assert ex.model.config.vocab_size == len(theirs)


def test_over_long_chats_are_dropped_where_they_are_to_be(config):
    config.overlong_prompts, config.prompt_length = "drop", 8
    ex = build(resolve(config))
    assert not ex.fits(ex.task.train[0])


def test_a_directory_without_a_tokenizer_is_named(config, tmp_path):
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"config\.tokenizer: .*tokenizer\.json: no such file"):
        build(resolve(config))
    config.tokenizer = "char"
    with pytest.raises(ValueError, match="needs a task with known symbols"):
        build(resolve(config))


TEMPLATE = """{% for m in messages %}{{ m.role + '\\n' + m.content + eos_token }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant\\n<think>\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""


def test_a_template_that_opens_the_thought_opens_it_for_all(config):
    """The format, its rewards, and the worked solutions of a cold start."""
    (folder := Path(config.tokenizer)).joinpath("chat_template.jinja").write_text(TEMPLATE)
    lines = (folder / "problems.jsonl").read_text().splitlines()
    solution = {"solution": "<think> 1 + 34 </think> <answer> 35 </answer>"}
    solved = [json.dumps(json.loads(line) | solution) for line in lines]
    (folder / "problems.jsonl").write_text("\n".join(solved))
    config.reward_workers = 1
    said = "1 + 34 </think> <answer> 35 </answer>", "<answer> 35 </answer>"
    for kwargs, right in (({}, 0), ({"enable_thinking": False}, 1)):
        config.chat_template_kwargs = kwargs
        ex = build(resolve(config))
        problem = ex.task.train[0]
        with ex.rewarder(("format",)) as rewarder:
            [scores] = rewarder([problem], [said]).parts["format"]
        assert scores.tolist() == [float(i == right) for i in range(2)]
        *ids, stop = solution_ids(ex, problem)
        assert decode(ex.tokenizer, ids) == said[right] and stop == ex.tokenizer.stop[0]


def test_stop_strings_are_the_samplers_table(config):
    assert build(resolve(config)).player.engine.stops is None
    config.rollout.stop = ("</answer>",)
    ex = build(resolve(config))
    assert ex.player.engine.stops.shape == (len("</answer>") + 2, ex.model.config.vocab_size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "lockste"}, r"unknown engine 'lockste'; did you mean 'lockstep'\?"),
        ({"source": "in_tur"}, r"unknown source 'in_tur'; did you mean 'in_turn'\?"),
        ({"environment": "single"}, r"unknown environment 'single'; .*'single_turn'\?"),
        ({"environment": "nowhere:Game"}, "environment 'nowhere:Game': cannot import 'nowhere'"),
        ({"environment": "os:path"}, "'os:path': is of type module; valid: a callable"),
        ({"environment": "os:getcwd"}, "environment 'os:getcwd' is no environment: it lacks reset"),
        ({"engine": "os:getcwd"}, "engine 'os:getcwd' cannot be made as the others are: "),
        ({"source": "overlapped"}, "'overlapped' .*tis_mode='none'; valid: 'truncate', 'mask'"),
        (
            {"source": "overlapped", "rounds": 10},
            "'overlapped' .*dynamic_sampling_rounds=10; valid: 0",
        ),
    ],
)
def test_an_engine_source_or_environment_that_will_not_do_is_named(fields, message):
    changes = {f"rollout.{name}": value for name, value in fields.items() if name != "rounds"}
    if "rounds" in fields:
        changes |= {"algorithm.tis_mode": "mask", "algorithm.dynamic_sampling_rounds": 10}
    with pytest.raises(UsageError, match=f"^config.rollout: .*{message}") as raised:
        build(tiny_config(**changes))
    assert "\n" not in str(raised.value)
