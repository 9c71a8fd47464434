"""What may be written over what: exports over exports, and nothing over anything else."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from safetensors.numpy import save_file

from experiments import stages
from grpo_jax.errors import UsageError
from grpo_jax.files import METADATA, RUN_NAMES, check_replaceable, inside_run, replacing
from grpo_jax.tasks.manners import preferences
from grpo_jax.training.rejection import Rule, _begin

TENSORS = {"w": np.zeros(2, np.float32)}


def export(out: Path, name="model.safetensors", source=None) -> None:
    with replacing(out, source) as made:
        (made / "config.json").write_text("{}")
        (made / "tokenizer.json").write_text("{}")
        save_file(TENSORS, made / name, metadata=METADATA)


def everything(folder: Path) -> dict:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def a_run(folder: Path) -> Path:
    for name in ("checkpoints/2", "tensorboard"):
        (folder / name).mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", ".lock"):
        (folder / name).write_text("{}")
    return folder


def published(folder: Path, *more: str) -> Path:
    """A model that somebody else wrote, in files that are named as an export's."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "generation_config.json", *more):
        (folder / name).write_text("{}")
    save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_export_replaces_an_export_whole_or_in_shards_and_an_empty_folder(tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("model-00001-of-00002.safetensors", "adapter_model.safetensors"):
        export(tmp_path / "out", name)
        names = {"config.json", "tokenizer.json", name}
        assert {p.name for p in (tmp_path / "out").iterdir()} == names
    (tmp_path / "link").symlink_to("out")
    export(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "out/model.safetensors").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"out", "link"}


def test_an_export_has_the_permissions_of_ordinary_files(tmp_path):
    before = os.umask(0o027)
    try:
        export(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o640}


OCCUPIED = {
    "a run": (a_run, "holds a run"),
    "its own files": (lambda f: a_run(f) / "checkpoints", "lies in, checkpoints of the run"),
    "a name of its own": (lambda f: a_run(f) / "eval.jsonl", "lies in, eval.jsonl of the run"),
    "below a checkpoint": (lambda f: a_run(f) / "checkpoints/2/new", "lies in, checkpoints of"),
    "above a run": (lambda f: a_run(f / "run").parent, "holds run, which no export writes"),
    "a config.json": (lambda f: published(f, "notes.md"), "holds notes.md, which no export writes"),
    "a card": (lambda f: published(f, "README.md"), "holds README.md, which no export writes"),
    "a model": (published, "holds a model that is no export of a run"),
}


@pytest.mark.parametrize("what", OCCUPIED)
def test_nothing_else_is_replaced(what, tmp_path):
    make, why = OCCUPIED[what]
    out = make(tmp_path / "there")
    (tmp_path / "link").symlink_to(out)
    before = everything(tmp_path)
    for path in (out, tmp_path / "link"):
        with pytest.raises(ValueError, match=rf"{path.name} .*{why}.*valid: a new or empty") as e:
            export(path)
        assert "\n" not in str(e.value)
    assert everything(tmp_path) == before


def test_an_export_that_something_was_added_to_is_left_alone(tmp_path):
    for number, add in enumerate(
        (
            lambda out: (out / "notes.txt").touch(),
            lambda out: (out / "fine").mkdir(),
            lambda out: (out / "LICENSE").symlink_to(__file__),
            lambda out: (out / "LICENSE").mkdir(),
            lambda out: (out / "model-00001-of-00002.safetensors").write_bytes(b"mine"),
            lambda out: (out / "model.safetensors").unlink(),
        )
    ):
        export(out := tmp_path / str(number))
        add(out)
        before = everything(tmp_path)
        with pytest.raises(ValueError, match="valid: a new or empty folder"):
            export(out)
        assert everything(tmp_path) == before


def test_the_models_own_directory_and_the_current_one_are_kept(tmp_path, monkeypatch):
    export(tmp_path / "out")
    (tmp_path / "link").symlink_to("out")
    for out in (tmp_path / "out", tmp_path / "link"):
        with pytest.raises(ValueError, match="is the model's own directory"):
            export(out, source=tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    for out in (".", "../out"):
        with pytest.raises(ValueError, match="is the current directory"):
            export(Path(out))


def test_links_in_a_loop_are_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for out in (tmp_path / "loop", tmp_path / "loop/out"):
        with pytest.raises((ValueError, OSError), match="loop"):
            export(out)


def test_what_comes_to_the_folder_meanwhile_stays(tmp_path):
    export(out := tmp_path / "out")
    with pytest.raises(ValueError, match="no export writes"), replacing(out) as made:
        (made / "config.json").touch()
        (out / "thesis.tex").write_text("text")
    assert (out / "thesis.tex").read_text() == "text" and (out / "model.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_run_may_hold_an_export_beside_its_own_files(tmp_path):
    run = a_run(tmp_path / "run")
    check_replaceable(run / "export")
    assert inside_run(run / "export") is inside_run(run) is None
    for name in RUN_NAMES:
        assert name in inside_run(run / name / "deep")


def test_rejection_sampling_begins_in_an_empty_folder_only(tmp_path):
    rule = {"origin": "run", **Rule(1, 1, 1, 1.0)._asdict()}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/pairs.jsonl").write_text("{}")
    run = a_run(tmp_path / "run")
    before = everything(tmp_path)
    for out, why in (
        (tmp_path / "data", "holds pairs.jsonl, and no rule.json"),
        (run, "holds .lock, checkpoints, config.json and 2 more, and no rule.json"),
        (run / "tokenizer", "lies in, tokenizer of the run"),
        (run / "config.json", "lies in, config.json of the run"),
    ):
        with pytest.raises(UsageError, match=why):
            _begin(out, rule, {})
    assert everything(tmp_path) == before
    sources = {"data.jsonl": "a"}
    for _ in range(2):
        _begin(tmp_path / "new", rule, sources)
    with pytest.raises(UsageError, match=r"was begun when data\.jsonl had other content"):
        _begin(tmp_path / "new", rule, {"data.jsonl": "b"})
    assert json.loads((tmp_path / "new/rule.json").read_bytes())["origin"] == "run"


def test_other_preferences_are_not_written_over(tmp_path):
    path = tmp_path / "pairs.jsonl"
    for _ in range(2):
        preferences(path, "helpfulness", 3)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=r"pairs\.jsonl holds other records"):
        preferences(path, "harmlessness", 3)
    assert everything(tmp_path) == before


def test_programs_of_several_runs_stay_out_of_a_runs_folder(tmp_path):
    flags.FLAGS.mark_as_parsed()
    run = a_run(tmp_path / "run")
    for folder, why in ((run, "holds a config.json"), (run / "tensorboard", "tensorboard of")):
        with (
            flagsaver.flagsaver(config="x.py", workdir=str(folder)),
            pytest.raises(UsageError, match=f"--workdir={folder} .*{why}"),
        ):
            stages.config_and_folder()
