"""A decoder in NumPy float64, row by row and head by head, and tiny models to compare with it."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.engines.filters import Sampling
from grpo_jax.models.config import Experts, Latent, ModelConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.types import Prompts

# head_dim is not hidden / heads, and theta is small: every size and position matters.
TINY = ModelConfig(
    vocab_size=23, hidden=16, layers=2, heads=4, kv_heads=2, head_dim=6, ff=20, rope_theta=50.0
)
# DeepSeek-V3 in small, with one dense layer; the routers' bias decides much.
SPARSE = dataclasses.replace(
    TINY,
    layers=3,
    kv_heads=4,
    head_dim=4,
    rope_interleaved=True,
    latent=Latent(kv_rank=10, q_rank=8, nope_dim=6, rope_dim=4, v_dim=5),
    experts=Experts(
        count=4,
        active=2,
        ff=12,
        shared=12,
        dense=(0,),
        score="sigmoid",
        groups=2,
        group_score="top2",
        normalise=True,
        bias=True,
    ),
    mtp=1,
)
# Shared by the tests of both floors, so that the sampler compiles once for most of them.
P, S, G, T = 3, 8, 4, 7
SAMPLING = Sampling(max_tokens=T, stop=(2, 5, 7, 11, 13, 17))


def boxed_params(config):
    """The parameters' shapes with their logical axes; nothing is computed."""
    tokens = jnp.zeros((1, 1, 2), jnp.int32)
    init = lambda key: Decoder(config).init(key, tokens, method=Decoder.initialise)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))["params"]


def random_params(config, seed=0):
    """float32 parameters without a special value: no norm scale is 1, no logit tiny."""
    rng = np.random.default_rng(seed)
    shapes = flax.traverse_util.flatten_dict(flax.linen.unbox(boxed_params(config)), sep="/")
    matrix = lambda shape: 1.5 * rng.normal(size=shape) / shape[-1] ** 0.5  # noqa: E731
    fill = {
        "scale": lambda shape: 1 + 0.3 * rng.normal(size=shape),
        "embedding": lambda shape: 0.5 * rng.normal(size=shape),
        "router_bias": lambda shape: 0.3 * rng.normal(size=shape),
    }
    flat = {
        k: fill.get(k.split("/")[-1], matrix)(x.shape).astype(np.float32) for k, x in shapes.items()
    }
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def stack_layers(params, c=TINY):
    """The same parameters as `scan_layers` keeps them."""
    rest = {k: x for k, x in params.items() if not k.startswith("layer_")}
    for segment in c.segments():
        layers = [params[f"layer_{i}"] for i in range(segment.start, segment.stop)]
        rest[segment.name] = jax.tree.map(lambda *x: np.stack(x), *layers)
    return rest


def make_prompts(lengths, width, vocab, seed=0):
    """Left-padded random prompts; 0 is the padding and appears nowhere else."""
    tokens = np.random.default_rng(seed).integers(1, vocab, (len(lengths), width))
    mask = np.arange(width) >= width - np.array(lengths)[:, None]
    return Prompts(tokens=np.where(mask, tokens, 0).astype(np.int32), mask=mask)


def rms_norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def rope(x, theta):
    """Row t of x [L, D]: component i and component i + D/2 are one complex number, turned."""
    length, width = x.shape
    out = np.zeros_like(x)
    for t in range(length):
        for i in range(width // 2):
            z = complex(x[t, i], x[t, i + width // 2]) * np.exp(1j * t * theta ** (-2 * i / width))
            out[t, i], out[t, i + width // 2] = z.real, z.imag
    return out


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def row_block(x, layer, c):
    """One layer on one row [L, C]."""
    a, ff = layer["attention"], layer["ff"]
    h = rms_norm(x, layer["attention_norm"]["scale"], c.norm_eps)
    q, k, v = (h @ a[name]["kernel"].T for name in "qkv")
    out = np.zeros((len(x), c.heads * c.head_dim))
    for head in range(c.heads):
        kv_head = head * c.kv_heads // c.heads
        own = slice(head * c.head_dim, (head + 1) * c.head_dim)
        shared = slice(kv_head * c.head_dim, (kv_head + 1) * c.head_dim)
        score = rope(q[:, own], c.rope_theta) @ rope(k[:, shared], c.rope_theta).T
        for t in range(len(x)):
            weight = softmax(score[t, : t + 1] / np.sqrt(c.head_dim))
            out[t, own] = weight @ v[: t + 1, shared]
    x = x + out @ a["o"]["kernel"].T
    h = rms_norm(x, layer["ff_norm"]["scale"], c.norm_eps)
    gate, up = h @ ff["gate"]["kernel"].T, h @ ff["up"]["kernel"].T
    return x + (gate / (1 + np.exp(-gate)) * up) @ ff["down"]["kernel"].T


def float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def head_of(p, c):
    return p["embed"]["embedding"] if c.tied else p["head"]


def row_hidden(p, c, tokens):
    """Normalised hidden states [L, C] of one unpadded row; `p` in float64, not stacked."""
    x = p["embed"]["embedding"][np.asarray(tokens)]
    for i in range(c.layers):
        x = row_block(x, p[f"layer_{i}"], c)
    return rms_norm(x, p["norm"]["scale"], c.norm_eps)


def row_logits(params, c, tokens):
    """Logits [L, V] of one unpadded row of L tokens; `params` not stacked."""
    p = float64(params)
    return row_hidden(p, c, tokens) @ head_of(p, c).T


def completion_logits(params, c, prompts, tokens, mask):
    """Logits [P, G, T, V] that predict each completion token; 0 after a completion's end."""
    out = np.zeros((*tokens.shape, c.vocab_size))
    for p, g in np.ndindex(tokens.shape[:2]):
        prompt = np.asarray(prompts.tokens)[p][np.asarray(prompts.mask)[p]]
        own = np.asarray(tokens)[p, g][np.asarray(mask)[p, g]]
        logits = row_logits(params, c, np.concatenate([prompt, own]))
        out[p, g, : len(own)] = logits[len(prompt) - 1 : -1]
    return out


def stats(logits, tokens, temperature=1.0):
    """Log-prob of `tokens` and entropy, in nats, of softmax(logits / temperature)."""
    p = softmax(logits / temperature)
    logp = np.log(np.take_along_axis(p, np.asarray(tokens)[..., None], -1)[..., 0])
    return logp, -(p * np.log(p)).sum(-1)
