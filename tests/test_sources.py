"""What a run reads anew at each start is what it began with: data, reward models, bases."""

import json
from pathlib import Path

import pytest
from tiny import tiny_config

from grpo_jax.errors import UsageError
from grpo_jax.files import fingerprint
from grpo_jax.runs.run import check_run, load_config, load_record, open_run
from grpo_jax.training.load_reward_model import reward_model_sources
from grpo_jax.training.pretrained import base_sources


def a_model(folder: Path, kind: str = "ForCausalLM") -> Path:
    """A directory that looks like a Hugging Face model's, and is none that can be loaded."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": [f"Qwen2{kind}"]}))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("model-1.safetensors", "model-2.safetensors", "tokenizer.json", "README.md"):
        (folder / name).write_text(name)
    return folder


def test_a_changed_reward_model_or_base_is_another_source(tmp_path):
    base, scoring = a_model(tmp_path / "base"), a_model(tmp_path / "s", "ForSequenceClassification")
    judge = tmp_path / "judge-v1.0"
    for step in ("2", "10"):
        (judge / "checkpoints" / step).mkdir(parents=True)
        (judge / "checkpoints" / step / "checksums.json").write_text(step)
    record = tiny_config().to_dict()
    record["model"]["path"] = str(base)
    names = ["accuracy", f"reward_model:{judge}", f"reward_model:{scoring}"]
    for rank, more in ((0, []), (2, [str(base)])):
        record["model"]["lora"]["rank"] = rank
        (judge / "config.json").write_text(json.dumps(record))
        found = reward_model_sources(names)
        assert found.keys() == {*names[1:], *more}
        assert found[names[1]] == fingerprint(judge / "checkpoints/10/checksums.json")
    assert base_sources(load_config(judge)) == {str(base): found[str(base)]}
    for file in ("config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors"):
        for folder, name in ((base, str(base)), (scoring, names[2])):
            before = (folder / file).read_bytes()
            (folder / file).write_bytes(before + b" ")
            changed = reward_model_sources(names)
            assert {n for n in found if changed[n] != found[n]} == {name}
            (folder / file).write_bytes(before)
    (base / "README.md").write_text("another")
    assert reward_model_sources(names) == found
    for folder in (base, tmp_path / "nothing", tmp_path):
        with pytest.raises(UsageError, match=f"reward_model:{folder}: no reward model; valid: a"):
            reward_model_sources([f"reward_model:{folder}"])


SOURCES = {"d/train.jsonl": "a", "d/test.jsonl": "b"}


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (SOURCES, None),
        ({"home/train.jsonl": "a", "home/test.jsonl": "b"}, None),  # elsewhere, and as they were
        (SOURCES | {"d/train.jsonl": "b"}, "d/train.jsonl is not what the run in"),
        (SOURCES | {"base": "c"}, "base is not what the run in"),
        ({"d/train": "c", "d/test": "d"}, "d/train is not what the run in"),
        ({"d/train.jsonl": "a"}, "d/test.jsonl is what the run in .* began with, and is not read"),
        ({}, "d/train.jsonl is what the run in .* began with, and is not read now"),
    ],
)
def test_other_files_than_the_run_began_with_are_refused(tmp_path, now, message):
    config = tiny_config()
    open_run(tmp_path / "run", config, SOURCES).close()
    check_run(tmp_path / "run", config, None)
    if message is None:
        check_run(tmp_path / "run", config, now)
        return
    with pytest.raises(UsageError, match=message):
        check_run(tmp_path / "run", config, now)


def test_a_run_from_before_sources_were_kept_takes_them_on(tmp_path):
    config = tiny_config()
    open_run(tmp_path / "run", config, SOURCES).close()
    record = load_record(tmp_path / "run")
    for older in ({}, {"sources": {}}):
        kept = {k: v for k, v in record.items() if k not in ("sources", "changes")} | older
        (tmp_path / "run/config.json").write_text(json.dumps(kept))
        open_run(tmp_path / "run", config, SOURCES).close()
        assert load_record(tmp_path / "run") == record
