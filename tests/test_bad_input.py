"""Bad input: one clear line, status 2, and nothing lost, whichever part of the house notices it."""

import json

import pytest
from absl import flags
from tiny import compile_fast  # noqa: F401

from experiments import train
from grpo_jax.config import command_line, resolve
from grpo_jax.tokenizers import char_tokenizer

CONFIG = """
from grpo_jax.config import defaults

def get_config():
    config = defaults()
    config.steps, config.compilation_cache, config.prompt_length = 4, "", 8
    config.task.update(digits=1, heldout_size=8)
    config.model.update(layers=1, hidden=16, heads=2, kv_heads=1, ff=16)
    config.rollout.update(prompts=4, group=4, max_tokens=6, prompt_bucket=8)
    config.reward_workers, config.eval.every, config.checkpoint.every = 1, 0, 1
"""


@pytest.fixture
def run(tmp_path, capsys):
    """run(more lines of the config, *options) -> status and message of the program."""

    def run(lines="", *options, workdir=None):
        path = tmp_path / "tiny.py"
        indented = "".join(f"    {line}\n" for line in lines.splitlines())
        path.write_text(f"{CONFIG}{indented}    return config\n")
        argv = ["train", f"--config={path}", f"--workdir={workdir or tmp_path / 'run'}", *options]
        values = flags.FlagValues()

        def program():
            command_line.define_flags(argv=argv, flag_values=values)
            command_line.parse_flags(argv, values)
            train.main(resolve(values.config), command_line.Path(values.workdir))

        try:
            command_line.reporting(program)
        except SystemExit as left:
            return left.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


def refuses(result, *parts):
    status, message = result
    assert status == 2
    assert message.count("\n") == 1 and message.startswith("error: ")
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("--config.rollout.gruop=4", ["config.rollout.gruop", "closest", "config.rollout.group"]),
        ("--config.algorithm.preset=grop", ["config.algorithm.preset", "'grop'", "'grpo'"]),
        ("--config.algorithm.surrogate=clop", ["surrogate", "'clop'", "'clip'"]),
        ("--config.rollout.group=four", ["config.rollout.group", "'four'", "int"]),
        ("--config.rollout.group=1", ["group_norm", "at least 2", "1"]),
        ("--config.rollout.group=0", ["config.rollout.group", "0", "at least 1"]),
        ("--config.model.heads=3", ["config.model.hidden", "16", "config.model.heads=3"]),
        ("--config.model.kv_heads=3", ["config.model.heads", "2", "model.kv_heads = 3"]),
        ("--config.optimizer.accumulation=3", ["config.rollout.prompts", "accumulation", "3"]),
        ("--config.mesh.fsdp=4", ["fsdp=4", "needs 4 devices", "there are 1"]),
        ("--config.task.digits=40", ["digits=40", "1 to 18"]),
        ("--config.task.name=additon", ["'additon'", "'addition'"]),
        ("--config.tokenizer=nowhere", ["config.tokenizer", "nowhere", "no such file"]),
    ],
)
def test_an_impossible_option_is_refused(run, tmp_path, option, parts):
    refuses(run("", option), *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ("config.task.digts = 2", ["config.task", "'digts'", "'digits'"]),
        ("config.rewards = {'acuracy': 1.0}", ["reward 'acuracy'", "'accuracy'"]),
        ("config.rewards = {'no_module:f': 1.0}", ["reward 'no_module:f'", "import"]),
        ("config.rewards = {'tiny:sevns': 1.0}", ["reward 'tiny:sevns'", "'sevens'"]),
        ("config.rewards = {'accuracy': 'x'}", ["config.rewards.accuracy", "'x'"]),
        ("config.task = {'name': 'jsonl'}", ["config.task", "'jsonl'", "'path'"]),
        ("config.task = {'name': 'jsonl', 'path': 'gone'}", ["config.task", "gone", "no such"]),
        ("config.rolout.group = 2", ["tiny.py, line 11: ", "rolout", "rollout"]),
        ("config.algorithm.beta = -1.0", ["config.algorithm", "beta", "-1"]),
        (
            "config.algorithm.preset, config.task = 'grpo_process', {'name': 'word_problems'}",
            ["config.algorithm.advantage='process'", "'word_problems'", "addition, countdown, gsm"],
        ),
    ],
)
def test_an_impossible_config_file_is_refused(run, tmp_path, lines, parts):
    refuses(run(lines), *parts)


GOOD = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(9) for b in range(9)]


@pytest.fixture
def data(tmp_path):
    """Writes records into a file, one line each; returns the lines of the config that use it."""
    path = tmp_path / "data.jsonl"

    def write(*records, change=lambda lines: lines):
        lines = change([json.dumps(r) for r in (*GOOD, *records)])
        path.write_text("".join(f"{line}\n" for line in lines))
        return f"config.task = {{'name': 'jsonl', 'path': {str(path)!r}}}"

    return write


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"prompt": "1+1=", ', ["not JSON"]),
        ('["1+1="]', ["a list", "an object"]),
        ('{"promt": "1+1=", "answer": "2"}', ["'prompt'", "'promt'"]),
        ('{"prompt": "", "answer": "2"}', ["'prompt'", "not empty"]),
    ],
)
def test_a_malformed_record_is_named_by_file_and_line(run, data, line, parts):
    lines = data(change=lambda lines: [*lines[:6], line, *lines[6:]])
    refuses(run(lines), "data.jsonl:7: ", *parts)


def test_a_prompt_that_is_too_long_is_refused_or_dropped(run, data, tmp_path):
    # So many that the first batch holds one.
    lines = data(*[{"prompt": f"1+1={'1' * n}", "answer": "2"} for n in range(20, 400)])
    message = run(lines)
    refuses(message, "prompt ", "'1+1=1111", "tokens; valid: 1 to 8")
    drop = "--config.overlong_prompts=drop"
    assert run(lines, drop, workdir=tmp_path / "dropping") == (0, "")
    records = [json.loads(line) for line in (tmp_path / "dropping" / "metrics.jsonl").open()]
    assert len(records) == 4 and records[-1]["data/dropped_prompts"] > 0
    none = run(lines, drop, "--config.prompt_length=2", workdir=tmp_path / "none")
    refuses(none, "no problem was kept", "the last dropped")


def test_a_character_outside_the_vocabulary_is_named(run, data, tmp_path):
    char_tokenizer("0123456789+").backend.save(str(tmp_path / "tokenizer.json"))
    option = f"--config.tokenizer={tmp_path / 'tokenizer.json'}"
    refuses(run(data(), option), "character '='", "+", "vocabulary")
    (tmp_path / "tokenizer.json").write_text("{}")
    refuses(run(data(), option), "tokenizer.json", "not a Hugging Face")


def test_a_cold_start_without_solutions_is_refused(run, data):
    refuses(run(data(), "--config.sft.steps=2"), "config.sft.steps=2", "'jsonl'", "no solutions")


@pytest.mark.parametrize("place", ["/proc/run", "{}/file/run"])
def test_a_folder_that_cannot_be_written_is_named(run, tmp_path, place):
    (tmp_path / "file").write_text("")
    place = place.format(tmp_path)
    refuses(run(workdir=place), "cannot write in", place)


@pytest.mark.parametrize(
    ("reward", "parts"),
    [("raises", ["raised KeyError", "no such thing"]), ("too_few", ["returned 1 values", "4"])],
)
def test_a_reward_that_fails_is_named_with_the_record(run, reward, parts):
    name = f"tiny:{reward}"
    result = run("", f"--config.rewards.{name}=1.0")
    refuses(result, f"reward '{name}'", "prompt: '", "completion: ", *parts)


def test_a_reward_that_abstains_is_no_error(run, tmp_path):
    assert run("config.rewards = {'tiny:sometimes': 1.0}", "--config.steps=1") == (0, "")
    (record,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").open())
    assert record["reward"] == 1.0 and record["reward_std"] is None
    assert record["grad_norm"] == 0.0 and record["frac_reward_zero_std"] == 1.0


def test_a_folder_of_another_config_is_refused_and_left_as_it_was(run, tmp_path):
    assert run("", "--config.steps=1") == (0, "")
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    refuses(run("", "--config.steps=1", "--config.seed=3"), str(tmp_path / "run"), "seed: 0 -> 3")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == files
    assert run("", "--config.steps=1") == (0, "")


def test_a_run_that_blows_up_stops_with_a_word(run, tmp_path):
    options = ("--config.optimizer.learning_rate=1e38", "--config.optimizer.max_bad_steps=2")
    result = run("config.rewards = {'tiny:sevens': 1.0}", *options, "--config.steps=9")
    refuses(result, "step ", "2 times in a row", "optimizer.max_bad_steps=2", "metrics.jsonl")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert records[-1]["skipped_updates"] == 2 and len(records) < 9
