"""A run keeps what it depends on, and goes on only with all of it, and with what may change."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from chat_tokenizer import save
from tiny import compile_fast  # noqa: F401

from grpo_jax.config import defaults, resolve
from grpo_jax.errors import UsageError
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.weights import save_model
from grpo_jax.runs.checkpoints import newest_position, restore_params
from grpo_jax.runs.continuing import compare
from grpo_jax.runs.run import load_config, load_record
from grpo_jax.sharding import make_mesh
from grpo_jax.tokenizers import (
    char_tokenizer,
    encode,
    keep_tokenizer,
    load_tokenizer,
    same_tokenizer,
)
from grpo_jax.training import rl as trainer
from grpo_jax.training.experiment import build
from grpo_jax.training.loading import load, load_model, load_trained
from grpo_jax.training.pretrained import abstract_params
from grpo_jax.training.starting import begin_run, check_whole, holding, reopen, start_run

RECORDS = [
    {"prompt": f"{a}+{b}=", "answer": str(a + b), "solution": f"<answer>{a + b}</answer>"}
    for a in range(9)
    for b in range(9)
]


def write(path: Path, records, change=lambda text: text) -> Path:
    path.write_text(change("".join(f"{json.dumps(record)}\n" for record in records)))
    return path


def config_of(path: Path, **changes):
    config = defaults()
    config.compilation_cache, config.reward_workers, config.prompt_length = "", 1, 8
    config.steps, config.task = 2, {"name": "jsonl", "path": str(path)}
    config.model.update(layers=1, hidden=16, heads=2, kv_heads=1, ff=16)
    config.rollout.update(prompts=4, group=4, max_tokens=6, prompt_bucket=8)
    config.sft.update(steps=1, batch=4)
    config.eval.update(every=1, problems=4)
    config.checkpoint.every = 1
    config.update_from_flattened_dict(changes)
    return resolve(config)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A finished run of two steps on characters after a cold start, and the file that it read."""
    folder = tmp_path_factory.mktemp("begun")
    path = write(folder / "data.jsonl", RECORDS)
    trainer.train(config_of(path), folder / "run")
    return folder / "run", path


@pytest.fixture
def run(begun, tmp_path):
    """A copy of that run, whose file is put back at the end."""
    content = begun[1].read_bytes()
    yield shutil.copytree(begun[0], tmp_path / "run"), begun[1]
    begun[1].write_bytes(content)


def everything(folder: Path) -> dict:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def refused(folder: Path, config, message: str) -> None:
    before = everything(folder)
    with pytest.raises(UsageError, match=message) as error:
        trainer.train(config, folder)
    assert "\n" not in str(error.value) and everything(folder) == before


def test_the_tokenizer_is_the_runs_own_whatever_becomes_of_the_data(run):
    folder, path = run
    ids = [
        load_tokenizer(f / "tokenizer").backend.get_vocab() for f in (folder, folder / "cold_start")
    ]
    assert ids[0] == ids[1] and ids[0]["<eos>"] == 1
    for change in (lambda s: s.replace("=", "!"), lambda s: s + s.replace("=", "~")):
        write(path, RECORDS, change)
        ex, params, step = load_trained(folder)
        assert ex.tokenizer.backend.get_vocab() == ids[0] and step == 2
        model = load_model(folder)
        assert encode(model.tokenizer, "1+2=") == [ids[0][c] for c in "1+2="]
        jax.tree.map(np.testing.assert_array_equal, model.params, params)
    path.unlink()
    assert load_model(folder).tokenizer.vocab_size == len(ids[0])
    with pytest.raises(UsageError, match=r"config\.task: .*data\.jsonl: no such file"):
        load(folder)


def test_a_start_hands_its_tokenizer_on(run, tmp_path):
    folder, path = run
    other = write(tmp_path / "other.jsonl", RECORDS, lambda text: text.replace("=", "!"))
    ex = build(config_of(path, **{"start": str(folder), "sft.steps": 0}))
    assert same_tokenizer(ex.tokenizer, load_tokenizer(folder / "tokenizer"))
    refused(tmp_path / "new", config_of(other, start=str(folder)), "character '!' .* vocabulary")
    assert not (tmp_path / "new").exists()
    keep_tokenizer(char_tokenizer("0123456789+!"), tmp_path / "mine")
    config = config_of(path, start=str(folder), tokenizer=str(tmp_path / "mine"))
    with pytest.raises(
        UsageError, match=r"config\.tokenizer=.* another vocabulary than .*config.start"
    ):
        build(config)


@pytest.mark.parametrize("number", [40, 10, 81, 82])
def test_changed_data_are_refused_and_named(run, number, capsys):
    folder, path = run
    write(path, (RECORDS + RECORDS[:1])[:number][::-1])
    refused(folder, config_of(path), rf"{path} is not what the run in {folder} began with")
    load(folder)
    assert f"warning: {path} has changed since {folder} began" in capsys.readouterr().err


def test_a_start_that_was_cut_off_in_the_cold_start_keeps_to_its_data(run):
    folder, path = run
    for name in ("metrics.jsonl", "eval.jsonl", "completions.jsonl"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").mkdir()
    check_whole(folder, None)
    write(path, RECORDS[:50])
    refused(folder, config_of(path), "data.jsonl is not what the run in")


MISSING = ["config.json", "metrics.jsonl", "eval.jsonl", "completions.jsonl", "tokenizer"]


@pytest.mark.parametrize("name", [*MISSING, "checkpoints"])
@pytest.mark.parametrize("changes", [{}, {"seed": 7}])
def test_a_run_that_lost_a_part_is_refused(run, name, changes):
    folder, path = run
    lost = folder / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    other = "of another config: seed: 0 -> 7" if changes and name != "config.json" else None
    message = other and ".*choose another --workdir, or undo: seed: 0 -> 7"
    refused(folder, config_of(path, **changes), message or rf"{name} is missing.*put it back")
    assert not lost.exists()


def test_a_run_that_lost_lines_or_its_checkpoints_is_refused(run):
    folder, path = run
    for name, message in (
        ("metrics.jsonl", "a part of metrics.jsonl is missing, beside the checkpoint of step 2"),
        ("eval.jsonl", "a part of eval.jsonl is missing"),
        ("completions.jsonl", "a part of completions.jsonl is missing"),
    ):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
        refused(folder, config_of(path), message)
        (folder / name).write_bytes(whole)
    first, last = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(first.replace(b'"step": 1', b'"step": 3') + last)
    refused(folder, config_of(path), "step 1 is missing in metrics.jsonl")
    (folder / "metrics.jsonl").write_bytes(first + last)
    for step in ("1", "2"):
        (folder / "checkpoints" / step / "position.json").write_text("{}")
    refused(folder, config_of(path), "a whole checkpoint is missing in checkpoints/")
    for step in ("1", "2"):
        shutil.rmtree(folder / "checkpoints" / step)
    refused(folder, config_of(path), "metrics.jsonl, which goes to step 2")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_tokenizer_that_lost_a_file_or_was_changed_is_refused(run, name):
    folder, path = run
    file = folder / "tokenizer" / name
    file.write_text(json.dumps(json.loads(file.read_text())))  # laid out otherwise
    refused(folder, config_of(path), "tokenizer/ is not what the run began with")
    file.unlink()
    refused(folder, config_of(path), "tokenizer/ is not what the run began with")
    with pytest.raises(UsageError, match=f"--workdir={path} is a file; valid: a folder of its own"):
        reopen(config_of(path), path)
    for read in (load_trained, load_model):
        with pytest.raises(ValueError, match=f"tokenizer: {name} is missing, a part of the run's"):
            read(folder)


def test_checkpoints_whose_arrays_are_damaged_are_not_begun_over(run):
    folder, path = run
    for step in (1, 2):
        (folder / f"checkpoints/{step}/state/manifest.ocdbt").write_bytes(b"")
    lines = {name: (folder / name).read_bytes() for name in MISSING[:4]}
    for _ in range(2):  # they are set aside by the first, and missed by the second
        with pytest.raises(UsageError, match="a whole checkpoint is missing"):
            trainer.train(config_of(path), folder)
    assert lines == {name: (folder / name).read_bytes() for name in lines}


def test_a_start_that_was_killed_anywhere_goes_on(run, tmp_path):
    _, path = run
    ex = build(config_of(path))
    for kept in (0, 1, 2):
        folder = tmp_path / str(kept)
        begin_run(ex, folder, ex.sources()).close()
        names = [folder / "config.json", folder / "tokenizer", folder / "checkpoints"]
        for later in names[kept:]:
            shutil.rmtree(later) if later.is_dir() else later.unlink()
        start_run(reopen(ex.config, folder), folder).close()
        assert all(name.exists() for name in names)


@pytest.fixture(scope="module")
def straight(begun, tmp_path_factory):
    """The same run, asked for three steps from the first."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    trainer.train(config_of(begun[1], steps=3), folder)
    return folder


def test_a_finished_run_is_given_more_steps_and_says_so(run, straight):
    folder, path = run
    changes = {"steps": 3, "eval.every": 0, "overlong_prompts": "drop", "checkpoint.keep": 3}
    trainer.train(config_of(path, **changes), folder)
    assert load_config(folder).steps == 3
    recorded = sorted(load_record(folder)["changes"], key=lambda change: change["field"])
    assert recorded == [
        {"step": 2, "field": "checkpoint.keep", "old": 2, "new": 3},
        {"step": 2, "field": "eval.every", "old": 1, "new": 0},
        {"step": 2, "field": "overlong_prompts", "old": "refuse", "new": "drop"},
        {"step": 2, "field": "steps", "old": 2, "new": 3},
    ]
    two = [restore_params(f / "checkpoints") for f in (folder, straight)]
    assert two[0][1] == two[1][1] == 3
    jax.tree.map(np.testing.assert_array_equal, two[0][0], two[1][0])
    lines = [
        [{k: v for k, v in json.loads(x).items() if "time/" not in k} for x in f.open()]
        for f in (folder / "metrics.jsonl", straight / "metrics.jsonl")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 3
    refused(folder, config_of(path, **changes | {"steps": 2}), r"steps: 3 -> 2 \(3 are done\)")
    refused(folder, config_of(path, **changes | {"seed": 1}), "undo: seed: 0 -> 1$")


POSITION = {"step": 50, "dropped": 0}
MAY = [
    ("steps", 100, 200, {}, POSITION, True),
    ("steps", 100, 50, {}, POSITION, True),
    ("steps", 100, 49, {}, POSITION, "50 are done"),
    ("steps", 100, 200, {"optimizer.schedule": "linear"}, POSITION, "the linear schedule"),
    ("steps", 100, 200, {"optimizer.schedule": "cosine"}, None, "the cosine schedule"),
    ("steps", 100, 200, {"rollout.source": "overlapped"}, POSITION, True),
    ("steps", 50, 200, {}, POSITION | {"final": True}, "with rollout.source"),
    ("steps", 3, 2, {}, {"step": 4, "stage": "sft"}, True),
    ("overlong_prompts", "refuse", "drop", {}, POSITION, True),
    ("overlong_prompts", "drop", "refuse", {}, POSITION, True),
    ("overlong_prompts", "drop", "refuse", {}, POSITION | {"dropped": 3}, "3 prompts were dropped"),
    *((name, 1, 2, {}, POSITION, True) for name in ("reward_workers", "log.samples", "mesh.data")),
    *((name, 1, 2, {}, POSITION, True) for name in ("eval.problems", "checkpoint.every")),
    ("reward_timeout", 5.0, 9.0, {}, POSITION, True),
    *((name, 1, 2, {}, POSITION, "") for name in ("seed", "prompt_length", "sft.steps")),
    ("optimizer.learning_rate", 0.1, 0.2, {}, POSITION, ""),
    ("task.path", "a", "b", {}, POSITION, ""),
]


@pytest.mark.parametrize(("field", "before", "after", "other", "position", "allowed"), MAY)
def test_a_field_may_change_where_nothing_computed_depends_on_it(
    field, before, after, other, position, allowed
):
    def config(value):
        flat = {"steps": 100, "optimizer.schedule": "constant", **other, field: value}
        nested: dict = {}
        for name, x in flat.items():
            *groups, leaf = name.split(".")
            part = nested
            for group in groups:
                part = part.setdefault(group, {})
            part[leaf] = x
        return nested

    changes, refusals = compare(config(before), config(after), position)
    if allowed is True:
        step = position["step"]
        assert changes == [{"step": step, "field": field, "old": before, "new": after}]
        assert not refusals
    else:
        assert not changes and refusals[0].startswith(f"{field}: {before!r} -> {after!r}")
        assert allowed in refusals[0] and ("(" in refusals[0]) == bool(allowed)


def test_a_position_says_what_the_files_held(begun):
    position = newest_position(begun[0] / "checkpoints")
    assert position["step"] == 2
    assert position["files"] == {n: (begun[0] / n).stat().st_size for n in MISSING[1:4]}


def test_a_tokenizer_comes_back_as_it_was(tmp_path):
    save(tmp_path / "chat" if (tmp_path / "chat").mkdir() is None else tmp_path)
    chat = load_tokenizer(tmp_path / "chat")
    settings = tmp_path / "chat/tokenizer_config.json"
    named = json.loads(settings.read_text())
    settings.write_text(json.dumps({k: v for k, v in named.items() if k != "eos_token"}))
    more = {"eos_token_id": [3, 2], "pad_token_id": 0}
    (tmp_path / "chat/generation_config.json").write_text(json.dumps(more))
    nameless = load_tokenizer(tmp_path / "chat")
    assert nameless.stop == (3, 2) and "eos_token" not in nameless.special_tokens
    characters = char_tokenizer(["<think>", "</think>", *'0123456789+= \n"\\日🙂'])
    for number, tokenizer in enumerate((chat, nameless, characters)):
        folder = tmp_path / str(number)
        for _ in range(2):
            keep_tokenizer(tokenizer, folder)
            assert same_tokenizer(load_tokenizer(folder), tokenizer)
        with pytest.raises(ValueError, match="holds another tokenizer"):
            keep_tokenizer(char_tokenizer("abc"), folder)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    "changes",
    [
        {"rewards": {"acuracy": 1.0}},
        {"rewards": {"tiny:raises": 1.0}, "sft.steps": 0, "eval.every": 0},
        {"rewards": {"reward_model:RUN": 1.0}},
        {"rewards": {"reward_model:nowhere": 1.0}},
        {"start": "RUN", "model.hidden": 32},
        {"start": "RUN", "model.hidden": 32, "sft.steps": 0},
        {"start": "RUN/checkpoints"},
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_start_that_fails_leaves_no_run_of_another_config(begun, tmp_path, changes, there):
    text = json.dumps(changes).replace("RUN", str(begun[0]))
    new = tmp_path / "new"
    if there:
        new.mkdir()
        (new / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match=r"acuracy|raised KeyError|score|no reward|config\.start"):
        trainer.train(config_of(begun[1], **json.loads(text)), new)
    assert new.exists() == there
    assert not there or [p.name for p in new.iterdir()] == ["notes.md"]


def test_what_was_computed_or_was_there_before_an_error_stays(begun, tmp_path):
    ex = build(config_of(begun[1]))
    for name, line in (("empty", ""), ("a line", '{"step": 0}\n'), ("resumed", "")):
        folder = tmp_path / name
        if name == "resumed":
            begin_run(ex, folder, {}).close()
        run = begin_run(ex, folder, {})
        run.eval.write_text(line)
        with pytest.raises(ValueError, match="broken"), holding(run):
            raise ValueError("broken")
        assert folder.exists() == (name != "empty")
        assert run.lock.closed


def test_an_export_has_the_runs_tokenizer_and_not_another(tmp_path):
    for name in ("model", "chat"):
        (tmp_path / name).mkdir()
        save(tmp_path / name)
        (tmp_path / name / "LICENSE").touch()
        (tmp_path / name / "config.json").write_text("{}")
    c = ModelConfig(vocab_size=400, layers=1, hidden=4, heads=1, kv_heads=1, head_dim=4, ff=4)
    like = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), abstract_params(Decoder(c), make_mesh())
    )
    chat, own = load_tokenizer(tmp_path / "chat"), char_tokenizer("abc")
    for number, (tokenizer, copied) in enumerate(((chat, True), (own, False), (None, True))):
        save_model(out := tmp_path / str(number), c, like, tmp_path / "model", tokenizer)
        assert (out / "LICENSE").exists() == copied
        assert same_tokenizer(load_tokenizer(out), own if tokenizer is own else chat)


def test_a_runs_own_folders_are_no_workdirs(begun):
    folder, path = begun
    for name in ("cold_start", "checkpoints/1", "tokenizer"):
        with pytest.raises(UsageError, match=r"lies in, .* of the run in"):
            trainer.train(config_of(path), folder / name)
