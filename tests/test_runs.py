import json
import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.config import defaults, resolve
from grpo_jax.errors import UsageError
from grpo_jax.runs import run as runs


def config(**changes):
    """A resolved config; changes as {"model.layers": 2}."""
    made = defaults()
    made.task.sizes = (1, 2)
    made.update_from_flattened_dict({"seed": 3, "steps": 5, "model.layers": 2} | changes)
    return resolve(made)


CONFIG = config()


def as_json(config):
    """A config as JSON has it, without tuples."""
    return json.loads(json.dumps(config.to_dict()))


def test_config_json_holds_the_config_and_what_made_it(tmp_path):
    run = runs.open_run(tmp_path / "a" / "b", CONFIG)
    record = json.loads((run.folder / "config.json").read_text())
    assert record["seed"] == 3 and record["model"]["layers"] == 2
    assert record["versions"]["numpy"] == np.__version__
    assert set(record["versions"]) >= {"jax", "jaxlib", "flax", "optax", "python"}
    assert "git_revision" in record
    assert not run.resumed
    assert as_json(runs.load_config(run.folder)) == as_json(CONFIG)


def test_the_same_config_resumes_and_another_is_refused(tmp_path):
    runs.open_run(tmp_path, CONFIG).close()
    again = runs.open_run(tmp_path, CONFIG)
    assert again.resumed
    again.close()
    other = config(**{"seed": 4, "model.layers": 4})
    with pytest.raises(UsageError, match=r"model\.layers: 2 -> 4; seed: 3 -> 4$"):
        runs.open_run(tmp_path, other)
    assert runs.load_config(tmp_path).steps == 5
    runs.open_run(tmp_path, CONFIG).close()  # the refusal gave the lock back


def test_a_run_whose_rewards_have_dots_resumes(tmp_path):
    config = defaults()
    config.rewards = {"pkg.module:function": 1.0, "reward_model:runs/judge-v1.0": 0.5}
    config = resolve(config)
    runs.open_run(tmp_path, config).close()
    loaded = runs.load_config(tmp_path)
    assert loaded.rewards.to_dict() == config.rewards.to_dict()
    again = runs.open_run(tmp_path, resolve(loaded))
    assert again.resumed
    again.close()


def test_a_run_from_before_a_field_goes_on_with_its_default(tmp_path):
    config = resolve(defaults())
    runs.open_run(tmp_path, config).close()
    record = json.loads((tmp_path / "config.json").read_text())
    del record["algorithm"]["critic"], record["optimizer"]["max_grad_norm"], record["start"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    loaded = runs.load_config(tmp_path).to_dict()
    assert json.dumps(loaded, sort_keys=True) == json.dumps(config.to_dict(), sort_keys=True)
    runs.open_run(tmp_path, config).close()


def test_other_code_is_warned_of(tmp_path, monkeypatch, capsys):
    runs.open_run(tmp_path, CONFIG).close()
    other = {"versions": {"jax": "0.0.1"}, "git_revision": None}
    monkeypatch.setattr(runs, "environment", lambda: other)
    assert runs.open_run(tmp_path, CONFIG).resumed
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "versions.jax" in warning and "'0.0.1'" in warning


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=f"^cannot write in {tmp_path}/file/run: Not a directory"):
        runs.open_run(tmp_path / "file" / "run", CONFIG)


def test_a_full_disk_is_told_in_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UsageError, match=f"^cannot write in {tmp_path}: No space left on device$"):
        runs.write_atomically(tmp_path / "x", b"") or runs.append_line(
            tmp_path / "metrics.jsonl", {"step": 1}
        )


def test_a_broken_config_json_is_named(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        runs.load_config(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UsageError, match=r"config\.json: not JSON"):
        runs.open_run(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: {"algorithm": 3}, "task is 'missing'; valid: a group of fields"),
        (lambda r: r | {"algorithm": 3}, "algorithm is 3; valid: a group of fields"),
        (lambda r: r | {"algorithm": {}}, "algorithm.preset is 'missing'; valid: a name"),
        (lambda r: r | {"algorithm": {"preset": "grop"}}, "algorithm.preset: unknown 'grop'"),
        (lambda r: r | {"task": {}}, "task.name is 'missing'; valid: a name"),
        (lambda r: r | {"seed": "3"}, "seed is '3'; valid: a value of type int"),
        (lambda r: r | {"steps": 1.5}, "steps is 1.5; valid: a value of type int"),
        (lambda r: r | {"steps": True}, "steps is True; valid: a value of type int"),
        (lambda r: r | {"eval": [1]}, "eval is .1.; valid: a group of fields"),
        (lambda r: r | {"sft": None}, "sft is None; valid: a group of fields"),
        (lambda r: r | {"model": r["model"] | {"hidden": None}}, "model.hidden is None; valid"),
        (lambda r: r | {"algorithm": r["algorithm"] | {"beta": "x"}}, "algorithm.beta is 'x'"),
        (lambda r: r | {"algorithm": r["algorithm"] | {"dual_clip": None}}, None),
        (lambda r: r | {"optimizer": r["optimizer"] | {"eps": 1}}, None),
        (lambda r: {k: v for k, v in r.items() if k != "start"}, None),
        (lambda r: [], "a list; valid: a JSON object"),
    ],
)
def test_a_config_json_that_no_run_wrote_is_named(tmp_path, change, named):
    runs.open_run(tmp_path, CONFIG).close()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    before = path.read_bytes()
    if named is None:  # what an older run may hold
        assert runs.load_config(tmp_path).steps == 5
        return
    for use in (lambda: runs.load_config(tmp_path), lambda: runs.open_run(tmp_path, CONFIG)):
        with pytest.raises(ValueError, match=rf"^{tmp_path}/config\.json.*{named}") as raised:
            use()
        assert "\n" not in str(raised.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["3", "[]", "null", '"x"', '"' + "é" * 40 + '"'])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    (path := tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(UsageError, match=r"metrics\.jsonl, line 2 is .*; valid: a JSON object"):
        runs.read_lines(path)


@pytest.mark.parametrize("line", ["{}", '{"step": "1"}', '{"step": 1.5}', '{"step": null}'])
def test_a_line_without_its_step_is_named_and_nothing_is_dropped(tmp_path, line):
    (path := tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r'metrics\.jsonl, line 2: "step" is .*; valid'):
        runs.truncate_after(path, 2)
    assert path.read_bytes() == before


HOLD = """
import os, sys, time
from grpo_jax.runs import run as runs
from grpo_jax.config import defaults, resolve
run = runs.open_run(sys.argv[1], resolve(defaults()))
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""


def test_two_processes_cannot_share_a_folder_and_a_killed_one_leaves_it(tmp_path):
    config = resolve(defaults())
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(UsageError, match=rf"in use by another process \(pid {holder.pid}\)"):
            runs.open_run(tmp_path, config)
        holder.kill()
        holder.wait()
        runs.open_run(tmp_path, config).close()  # though the forked child lives on
    finally:
        subprocess.run(["kill", "-9", str(child)], check=True)
        holder.kill()


def test_lines_are_valid_json_in_a_fixed_order(tmp_path):
    path = tmp_path / "m.jsonl"
    record = {
        "time/step": 1.5,
        "reward": np.float32(0.5),
        "kl": math.nan,
        "step": jnp.int32(1),
        "parts": {"a": [-math.inf, jnp.ones(2)]},
    }
    runs.append_line(path, record)
    assert path.read_text() == (
        '{"step": 1, "kl": null, "parts": {"a": [null, [1.0, 1.0]]}, "reward": 0.5,'
        ' "time/step": 1.5}\n'
    )


def test_resuming_drops_torn_and_later_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    runs.truncate_after(path, 2)
    assert not path.exists() and runs.read_lines(path) == []
    for step in range(1, 5):
        runs.append_line(path, {"step": step, "x": 0.1 * step})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "x"')
    assert [r["step"] for r in runs.read_lines(path)] == [1, 2, 3, 4]
    runs.truncate_after(path, 2)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_broken_line_inside_a_file_is_not_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UsageError, match=r"m\.jsonl, line 2 is not JSON"):
        runs.truncate_after(path, 5)
