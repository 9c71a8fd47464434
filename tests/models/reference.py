"""A decoder in NumPy float64, row by row and head by head, and tiny models to compare with it."""

import flax
import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.rollout.filters import Sampling
from grpo_jax.types import Prompts

# head_dim is not hidden / heads, and theta is small: every size and position matters.
TINY = ModelConfig(
    vocab_size=23, hidden=16, layers=2, heads=4, kv_heads=2, head_dim=6, ff=20, rope_theta=50.0
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
    fill = {
        "scale": lambda shape: 1 + 0.3 * rng.normal(size=shape),
        "kernel": lambda shape: 1.5 * rng.normal(size=shape) / shape[-1] ** 0.5,
        "head": lambda shape: 1.5 * rng.normal(size=shape) / shape[-1] ** 0.5,
        "embedding": lambda shape: 0.5 * rng.normal(size=shape),
    }
    flat = {k: fill[k.split("/")[-1]](x.shape).astype(np.float32) for k, x in shapes.items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def stack_layers(params):
    """The same parameters as `scan_layers` keeps them."""
    layers = [params[k] for k in sorted(params) if k.startswith("layer_")]
    rest = {k: x for k, x in params.items() if not k.startswith("layer_")}
    return rest | {"layers": jax.tree.map(lambda *x: np.stack(x), *layers)}


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


def row_logits(params, c, tokens):
    """Logits [L, V] of one unpadded row of L tokens; `params` not stacked."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = p["embed"]["embedding"][np.asarray(tokens)]
    for i in range(c.layers):
        layer = p[f"layer_{i}"]
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
        x = x + (gate / (1 + np.exp(-gate)) * up) @ ff["down"]["kernel"].T
    head = p["embed"]["embedding"] if c.tied else p["head"]
    return rms_norm(x, p["norm"]["scale"], c.norm_eps) @ head.T


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
