"""Weights to files and back: bit for bit, in the layout that others write, with clear errors."""

import dataclasses
import json

import flax
import jax
import ml_dtypes
import numpy as np
import pytest
from hugging_face import abstract, load
from reference import SPARSE, TINY
from safetensors.numpy import load_file, save_file

from grpo_jax.models import weights
from grpo_jax.models.config_json import read_config_file, write_config
from grpo_jax.models.files import INDEX, SINGLE
from grpo_jax.models.weights import load_weights, save_model


def random(c, dtype=np.float32, seed=0):
    """Parameters of any model; here their values mean nothing."""
    rng = np.random.default_rng(seed)
    draw = lambda x: rng.normal(size=x.shape).astype(dtype)  # noqa: E731
    return jax.tree.map(draw, abstract(c))


def bits(tree):
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    return {k: (str(x.dtype), x.shape, np.asarray(x).tobytes()) for k, x in flat.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("c", [TINY, SPARSE], ids=["dense", "sparse"])
def test_a_sharded_checkpoint_comes_back_bit_for_bit(tmp_path, c, scan, dtype):
    c = dataclasses.replace(c, scan_layers=scan, param_dtype=dtype)
    params = random(c)
    params = jax.tree.map(lambda x, a: x.astype(a.dtype), params, abstract(c))
    save_model(tmp_path / "out", c, params, shard=2000)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3 and not (tmp_path / "out" / SINGLE).exists()
    assert files == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, 1 + len(files))
    ]
    held = {file: load_file(tmp_path / "out" / file) for file in files}
    assert {k: f for f, tensors in held.items() for k in tensors} == index["weight_map"]
    sizes = [[x.nbytes for x in tensors.values()] for tensors in held.values()]
    assert index["metadata"]["total_size"] == sum(map(sum, sizes))
    assert all(sum(size) <= 2000 or len(size) == 1 for size in sizes)
    back, again = load(tmp_path / "out", scan_layers=scan, param_dtype=dtype)
    assert back == c and bits(again) == bits(params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_head_that_differs_from_a_tied_embedding_is_kept_as_transformers_does(tmp_path, dtype):
    """Equal ones stay tied; where there is one only, either name will do."""
    torch = pytest.importorskip("torch", reason="needs torch, in which Transformers computes")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    c = dataclasses.replace(TINY, tied=True, param_dtype=dtype)
    params = jax.tree.map(lambda x, a: x.astype(a.dtype), random(c), abstract(c))
    save_model(tmp_path, c, params)
    written = load_file(tmp_path / SINGLE)
    embedding = written["model.embed_tokens.weight"]
    other = embedding.copy()
    other[-1, -1] += 1
    lone = {k: x for k, x in written.items() if x is not embedding}
    for tensors, head in (
        (written | {"lm_head.weight": embedding}, embedding),
        (written | {"lm_head.weight": other}, other),
        (lone | {"lm_head.weight": other}, other),
    ):
        save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
        back, again = load(tmp_path, param_dtype=dtype)
        assert back.tied == (
            head is embedding or tensors.keys() == lone.keys() | {"lm_head.weight"}
        )
        kept = again["embed"]["embedding"] if back.tied else again["head"]
        np.testing.assert_array_equal(kept, head)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=getattr(torch, dtype)
        )
        theirs = model.lm_head.weight.detach().to(torch.float32).numpy()
        np.testing.assert_array_equal(theirs, head.astype(np.float32))


@pytest.fixture
def saved(tmp_path):
    """A folder with one file, and its tensors."""
    save_model(tmp_path / "model", TINY, random(TINY))
    return tmp_path / "model", load_file(tmp_path / "model" / SINGLE)


def test_names_and_layout_are_those_of_llama(saved):
    _, tensors = saved
    want = random(TINY)
    at = "model.layers.1.self_attn.k_proj.weight"
    np.testing.assert_array_equal(tensors[at], want["layer_1"]["attention"]["k"]["kernel"])
    assert tensors[at].shape == (TINY.kv_heads * TINY.head_dim, TINY.hidden)
    np.testing.assert_array_equal(tensors["lm_head.weight"], want["head"])
    assert len(tensors) == 3 + 9 * TINY.layers


def test_a_tied_head_is_not_written_and_may_be_there(tmp_path):
    c = dataclasses.replace(TINY, tied=True)
    params = random(c)
    save_model(tmp_path / "model", c, params)
    file = tmp_path / "model" / SINGLE
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, file)
    back, again = load(tmp_path / "model")
    assert back.tied and bits(again) == bits(params)


def test_buffers_of_old_checkpoints_are_passed_over(saved):
    folder, tensors = saved
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(tensors | {name: np.ones(3, np.float32)}, folder / SINGLE)
    assert bits(load(folder)[1]) == bits(random(TINY))


def write_fp8(file, tensors):
    """The file format by hand: a length, a JSON header, bytes; matrices in FP8 blocks.

    Returns what they stand for.
    """
    rng, header, body, meant = np.random.default_rng(0), {}, b"", {}

    def put(name, kind, x):
        nonlocal body
        header[name] = {
            **{"dtype": kind, "shape": list(x.shape)},
            "data_offsets": [len(body), len(body) + x.nbytes],
        }
        body += x.tobytes()

    for name, x in tensors.items():
        if "proj" not in name:
            put(name, "F32", x)
            meant[name] = x
            continue
        blocks = [-(-n // 128) for n in x.shape]
        scale = rng.uniform(0.5, 2.0, blocks).astype(np.float32)
        small = x.astype(ml_dtypes.float8_e4m3fn)
        put(name, "F8_E4M3", small)
        put(f"{name}_scale_inv", "F32", scale)
        spread = np.kron(scale, np.ones((128, 128), np.float32))
        meant[name] = small.astype(np.float32) * spread[: x.shape[0], : x.shape[1]]
    head = json.dumps(header).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + body)
    return meant


@pytest.mark.parametrize("scan", [False, True])
def test_fp8_blocks_are_multiplied_out(tmp_path, scan):
    """Matrices of neither 128 rows nor columns, experts' transposed ones included."""
    c = dataclasses.replace(SPARSE, hidden=136, ff=260, mtp=0, param_dtype="float32")
    save_model(tmp_path / "model", c, random(c))
    file = tmp_path / "model" / SINGLE
    meant = write_fp8(file, load_file(file))
    shapes = {x.shape for k, x in meant.items() if "proj" in k}
    assert {(260, 136), (136, 260), (12, 136)} <= shapes
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    c, params = load(tmp_path / "model", scan_layers=scan)
    save_model(tmp_path / "again", c, params, tmp_path / "model")
    again = load_file(tmp_path / "again" / SINGLE)
    assert again.keys() == meant.keys()
    for name, x in meant.items():
        np.testing.assert_array_equal(again[name], x, err_msg=name)
    assert "quantization_config" not in json.loads((tmp_path / "again/config.json").read_text())


Q = "model.layers.0.self_attn.q_proj.weight"


def broken(folder, tensors, how):
    """Break a folder; return the error's text, but for the folder."""
    file = folder / SINGLE
    if how == "missing":
        save_file({k: x for k, x in tensors.items() if k != Q}, file)
        return f"{folder}: no tensor {Q}, one of 1 missing"
    if how == "extra":
        save_file(tensors | {"score.weight": tensors[Q]}, file)
        return f"{folder}: tensor score.weight, one of 1 too many for this config.json"
    if how == "misshapen":
        save_file(tensors | {Q: np.ascontiguousarray(tensors[Q].T)}, file)
        return f"{file}: tensor {Q}: expected [24, 16], found [16, 24]"
    if how == "cut off":
        file.write_bytes(file.read_bytes()[:-4])
        return f"{file}: cut off, or no safetensors file: "
    if how == "empty":
        file.write_bytes(b"")
        return f"{file}: cut off, or no safetensors file: "
    file.rename(folder / "a.safetensors")
    if how == "no file":
        return f"{file}: no such file; valid: a directory with {SINGLE} or {INDEX}"
    (folder / INDEX).write_text(how)
    if how == "{}" or how == "[":
        return f"{folder / INDEX}: not {'JSON' if how == '[' else 'an index of safetensors'}"
    places = dict.fromkeys(tensors, "a.safetensors") | {Q: "b.safetensors"}
    if how == "wrong file":
        save_file({"x": tensors[Q]}, folder / "b.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    if how == "wrong file":
        return f"{folder / 'b.safetensors'}: no tensor {Q}, which {INDEX} places here"
    return f"{folder / 'b.safetensors'}: no such file; valid: a directory with"


@pytest.mark.parametrize(
    "how",
    [
        *("missing", "extra", "misshapen", "cut off", "empty", "no file", "{}", "["),
        *("wrong file", "no such file"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_one_line(saved, how):
    folder, tensors = saved
    message = broken(folder, tensors, how)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_weights(folder, TINY, abstract(TINY))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; valid: a Hugging Face model directory"),
        ("{", "not JSON: Expecting property name"),
        ("[]", "a list; valid: a JSON object"),
        ('{"architectures": ["GPT2LMHeadModel"]}', "unknown architecture 'GPT2LMHeadModel'"),
        ('{"model_type": "llama"}', "no field 'num_attention_heads', which LlamaForCausalLM"),
    ],
)
def test_what_is_wrong_with_config_json_is_told_in_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_config_file(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: {message}")
    assert "\n" not in str(error.value)


def test_a_save_that_fails_leaves_the_old_folder_and_nothing_else(saved, monkeypatch):
    folder, _ = saved
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    calls = []

    def full(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("no space left on device")
        save_file(*args, **options)

    monkeypatch.setattr(weights, "save_file", full)
    for out in (folder, folder.parent / "new"):
        calls.clear()
        with pytest.raises(OSError, match="no space left"):
            save_model(out, TINY, random(TINY, seed=1), shard=4000)
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_save_replaces_an_earlier_one(saved):
    folder, _ = saved
    save_model(folder, TINY, random(TINY), shard=4000)
    assert len(list(folder.iterdir())) > 3
    save_model(folder, TINY, random(TINY, seed=1))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", SINGLE]
    assert bits(load(folder)[1]) == bits(random(TINY, seed=1))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_tokenizer_and_the_rest_of_config_json_come_along(saved, tmp_path):
    folder, _ = saved
    config = write_config(TINY) | {"eos_token_id": 7, "rope_theta": 50.0, "model_type": "mistral"}
    config |= {"architectures": ["MistralForCausalLM"], "sliding_window": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").write_text("not of the model")
    c, params = load(folder)
    save_model(tmp_path / "out", c, params, folder)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        SINGLE,
        "tokenizer.json",
    }
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["eos_token_id"] == 7 and "rope_theta" not in written
    assert written["architectures"] == ["MistralForCausalLM"]
    assert written["dtype"] == "float32"


@pytest.mark.parametrize("mtp", [0, 1])
def test_a_prediction_layer_may_be_absent_or_left_out(tmp_path, mtp):
    """Transformers names such a layer in config.json, and saves none."""
    c = dataclasses.replace(SPARSE, mtp=mtp)
    params = random(c)
    save_model(tmp_path / "model", c, params)
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text()) | {"num_nextn_predict_layers": 1}
    file.write_text(json.dumps(config))
    assert read_config_file(tmp_path / "model").mtp == mtp
    back = load(tmp_path / "model", mtp=0)[1]
    assert bits(back) == bits({k: x for k, x in params.items() if k != "mtp"})


def test_the_host_holds_one_tensor_at_a_time(tmp_path, monkeypatch):
    """Experts and scanned layers are stacks of tensors, read one by one."""
    c = dataclasses.replace(SPARSE, scan_layers=True)
    save_model(tmp_path / "model", c, random(c), shard=4000)
    sizes, read = [], weights._Reader.read

    def counted(self, *args):
        sizes.append(read(self, *args).nbytes)
        return read(self, *args)

    monkeypatch.setattr(weights._Reader, "read", counted)
    load(tmp_path / "model", scan_layers=True)
    files = (tmp_path / "model").glob("*.safetensors")
    largest = max(x.nbytes for file in files for x in load_file(file).values())
    assert max(sizes) <= largest and len(sizes) > 60
