import json
import random
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.errors import UsageError
from grpo_jax.learning.policy import Policy
from grpo_jax.learning.state import TrainState
from grpo_jax.runs import checkpoints


def train_state(seed=0, rng=None):
    params = {
        "embed": {"kernel": jax.random.normal(jax.random.key(seed), (5, 4), jnp.bfloat16)},
        "norm": jnp.array([jnp.nan, -0.0, 1e-45]),
    }
    return TrainState(
        step=jnp.int32(seed),
        policy=Policy(trained=params),
        opt_state=optax.adamw(1e-3).init(params),
        reference=None,
        rng=jax.random.key(seed) if rng is None else rng,
    )


def abstract(state):
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("data",)), jax.P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def bits(state):
    def of(leaf):
        typed = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if typed else leaf)
        return str(leaf.dtype), array.shape, array.tobytes()

    return jax.tree.structure(state), [of(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def two_saves(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    for step in (1, 2):
        checkpoints.save(directory, step, train_state(step), {"taken": step})
    return directory


@pytest.mark.parametrize("rng", [jax.random.key(7), jax.random.key(7, impl="rbg"), None, "raw"])
def test_a_restored_state_is_the_same_to_the_bit_and_placed_as_asked(tmp_path, rng):
    state = train_state(3, jax.random.PRNGKey(7) if rng == "raw" else rng)
    position = {"epoch": 1, "order": [2, 0, 1], "rng": None}
    checkpoints.save(tmp_path, 3, state, position)
    restored, where, _ = checkpoints.restore_latest(tmp_path, abstract(state))
    assert bits(restored) == bits(state)
    assert where == position
    wanted = abstract(state).policy.trained["norm"].sharding
    assert all(leaf.sharding == wanted for leaf in jax.tree.leaves(restored.policy.trained))
    assert restored.reference is None


def test_only_the_newest_are_kept(tmp_path):
    assert checkpoints.restore_latest(tmp_path / "none", abstract(train_state())) is None
    for step in (5, 10, 15):
        checkpoints.save(tmp_path, step, train_state(step), {}, keep=2)
    assert checkpoints.steps(tmp_path) == [10, 15]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "15"]
    with pytest.raises(ValueError, match="already holds a checkpoint of step 15"):
        checkpoints.save(tmp_path, 15, train_state(15), {})


def test_a_checkpoint_from_before_a_field_existed_is_restored(tmp_path):
    state = train_state(3)
    older = {k: v for k, v in vars(state).items() if k not in ("critic", "pending")}
    checkpoints.save(tmp_path, 3, older, {})
    assert bits(checkpoints.restore_latest(tmp_path, abstract(state))[0]) == bits(state)
    missing = abstract(state.replace(critic={"x": jnp.zeros(1)}))
    with pytest.raises(ValueError, match="critic"):
        checkpoints.restore_latest(tmp_path, missing)


def damaged_copies(source, scratch):
    """Yield (what, a copy of `source` whose step 2 has one file flipped, cut or removed)."""
    names = sorted(p.relative_to(source) for p in (source / "2").rglob("*") if p.is_file())
    for name in names:
        content = (source / name).read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for what, bad in (("flipped", flipped), ("cut", content[:-1]), ("removed", None)):
            directory = scratch / f"{name.name}-{what}"
            shutil.copytree(source, directory)
            (directory / name).unlink() if bad is None else (directory / name).write_bytes(bad)
            yield f"{name} {what}", directory
            shutil.rmtree(directory)


def test_damage_to_any_file_is_reported_and_the_checkpoint_before_is_used(
    two_saves, tmp_path, capsys
):
    like, expected = abstract(train_state()), bits(train_state(1))
    tried = 0
    for what, directory in damaged_copies(two_saves, tmp_path):
        tried += 1
        assert checkpoints.damage(directory / "2"), what
        if tried % 8:  # every file's damage is found; restoring after it is tried on some
            continue
        state, position, _ = checkpoints.restore_latest(directory, like)
        assert bits(state) == expected and position == {"taken": 1}, what
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and f"{directory}/2 is damaged" in message, what
        checkpoints.save(directory, 2, train_state(2), {"taken": 2})
        assert checkpoints.restore_latest(directory, like)[1] == {"taken": 2}
    assert tried >= 24


def test_a_damaged_checkpoint_stays_beside_an_earlier_one_of_its_step(two_saves, tmp_path):
    shutil.copytree(two_saves, tmp_path / "c")
    (tmp_path / "c/2.damaged").mkdir()
    (tmp_path / "c/2/position.json").write_text("x")
    checkpoints.restore_latest(tmp_path / "c", abstract(train_state()))
    assert (tmp_path / "c/2.damaged-2/position.json").read_text() == "x"
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"1", "2.damaged", "2.damaged-2"}


def test_params_are_read_without_the_optimizer(two_saves, tmp_path, capsys):
    params, step = checkpoints.restore_params(two_saves)
    assert step == 2 and bits(params) == bits(train_state(2).policy.trained)
    params, step = checkpoints.restore_params(two_saves, 1)
    assert step == 1 and bits(params) == bits(train_state(1).policy.trained)
    with pytest.raises(UsageError, match=r"no checkpoint of step 7 in .*; valid: \[1, 2\]"):
        checkpoints.restore_params(two_saves, 7)
    copy = shutil.copytree(two_saves, tmp_path / "copy")
    (copy / "2" / "position.json").unlink()
    assert checkpoints.restore_params(copy)[1] == 1
    assert "position.json is missing" in capsys.readouterr().err
    assert checkpoints.steps(copy) == [1, 2]  # a reader moves nothing
    with pytest.raises(UsageError, match="no checkpoint in"):
        checkpoints.restore_params(tmp_path / "empty")


def test_a_position_that_is_no_json_leaves_no_checkpoint(tmp_path):
    with pytest.raises(TypeError):
        checkpoints.save(tmp_path, 1, train_state(1), {"x": object()})
    assert checkpoints.steps(tmp_path) == []
    checkpoints.save(tmp_path, 1, train_state(1), {})
    assert checkpoints.steps(tmp_path) == [1]


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise ValueError("RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']")

    monkeypatch.setattr(checkpoints.ocp.StandardCheckpointer, "save", full)
    with pytest.raises(UsageError, match=f"^cannot write in {tmp_path}: No space left on device$"):
        checkpoints.save(tmp_path, 1, train_state(1), {})
    assert checkpoints.restore_latest(tmp_path, abstract(train_state())) is None
    assert list(tmp_path.iterdir()) == []


SAVE_FOREVER = """
import sys
import jax.numpy as jnp
from grpo_jax.runs import checkpoints
from grpo_jax.learning.policy import Policy
from grpo_jax.learning.state import TrainState
for step in range(int(sys.argv[2]), 10**6):
    policy = Policy(trained=jnp.full(3, step))
    state = TrainState(step=None, policy=policy, opt_state=None, rng=None)
    checkpoints.save(sys.argv[1], step, state, {"step": step})
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    like = TrainState(
        step=None,
        policy=Policy(trained=jax.ShapeDtypeStruct((3,), jnp.int32)),
        opt_state=None,
        rng=None,
    )
    start, rng = 1, random.Random(0)
    for _ in range(4):
        command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path), str(start)]
        saver = subprocess.Popen(command, stdout=subprocess.PIPE)
        done = int(saver.stdout.readline())
        time.sleep(rng.uniform(0, 0.3))
        saver.kill()
        done = int((saver.stdout.read().split() or [done])[-1])
        saver.wait()
        state, position, _ = checkpoints.restore_latest(tmp_path, like)
        assert position["step"] in (done, done + 1)
        assert state.policy.trained.tolist() == [position["step"]] * 3
        kept = checkpoints.steps(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(map(str, kept))
        assert all(json.loads((tmp_path / str(s) / "position.json").read_text()) for s in kept)
        start = position["step"] + 1
