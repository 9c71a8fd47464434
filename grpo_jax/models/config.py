"""The sizes and options of a decoder, as data."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

REMAT_POLICIES = ("none", "full", "dots", "dots_no_batch")
DTYPES = ("float32", "bfloat16")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")
ACTIVATIONS = ("silu", "gelu")
SCORES = ("softmax", "sigmoid")
GROUP_SCORES = ("max", "top2")
LORA_BASES = ("none", "int8", "int4", "nf4")


def _one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{name}={value!r} is not one of {valid}")


def _not_negative(name: str, part: Any) -> None:
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not number >= 0:
                raise ValueError(f"{name}.{field.name}={value!r} must be 0 or above")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to longer texts; see `models.rope`.

    kind              none | linear | llama3 | yarn
    factor            how much longer
    original_length   tokens before the stretch (llama3, yarn)
    low_frequency, high_frequency   llama3's bounds, in rotations over the original length
    beta_fast, beta_slow            yarn's bounds, in rotations over the original length
    mscale, mscale_all_dim          yarn's temperature, as DeepSeek sets it; 0 = not set
    attention_factor  factor of cos and sin; 0 = yarn's own
    """

    kind: str = "none"
    factor: float = 1.0
    original_length: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float = 0.0

    def __post_init__(self):
        _one_of("model.rope_scaling.kind", self.kind, ROPE_SCALINGS)
        if self.kind != "none" and not self.factor >= 1:
            raise ValueError(f"model.rope_scaling.factor={self.factor} must be at least 1")
        if self.kind in ("llama3", "yarn") and self.original_length < 1:
            raise ValueError(
                f"model.rope_scaling.original_length={self.original_length} must be at least 1 "
                f"for {self.kind}"
            )


@dataclasses.dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, 2405.04434); kv_rank 0 = ordinary attention.

    kv_rank, q_rank     widths of the latents that keys and values, and queries, come from;
                        q_rank 0 = queries straight from the hidden state
    nope_dim, rope_dim  widths of a head without and with rotary positions
    v_dim               width of a head's values
    """

    kv_rank: int = 0
    q_rank: int = 0
    nope_dim: int = 0
    rope_dim: int = 0
    v_dim: int = 0

    def __post_init__(self):
        _not_negative("model.latent", self)
        if self.kv_rank:
            for field in ("nope_dim", "rope_dim", "v_dim"):
                if not getattr(self, field):
                    raise ValueError(f"model.latent.{field}=0 must be above 0 with kv_rank")
            if self.rope_dim % 2:
                raise ValueError(f"model.latent.rope_dim={self.rope_dim} must be even")


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the feed-forward layer; count 0 = none.

    count, active, ff   experts, how many serve a token, and their width
    shared              width of the experts that serve every token, together
    dense               layers that keep the ordinary feed-forward
    score               softmax | sigmoid: a router's logits -> scores
    groups, top_groups  experts lie in groups, of which a token may use the best few
    group_score         max | top2: a group is as good as its best expert, or its best two
    normalise           the chosen scores sum to 1
    scale               factor of the routed experts' output
    bias                the auxiliary-loss-free bias (DeepSeek-V3, 2412.19437, eq. 16)
    bias_rate           gamma, how far the bias moves a step
    balance             alpha, the factor of the sequence-wise balance loss (eq. 17)
    """

    count: int = 0
    active: int = 0
    ff: int = 0
    shared: int = 0
    dense: tuple[int, ...] = ()
    score: str = "softmax"
    groups: int = 1
    top_groups: int = 1
    group_score: str = "max"
    normalise: bool = False
    scale: float = 1.0
    bias: bool = False
    bias_rate: float = 0.0
    balance: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "dense", tuple(self.dense))
        _not_negative("model.experts", self)
        _one_of("model.experts.score", self.score, SCORES)
        _one_of("model.experts.group_score", self.group_score, GROUP_SCORES)
        if not self.count:
            return
        if self.ff < 1:
            raise ValueError(f"model.experts.ff={self.ff} must be at least 1")
        if self.groups < 1 or self.count % self.groups:
            raise ValueError(
                f"model.experts.count={self.count} is not divisible by groups={self.groups}"
            )
        if not 1 <= self.top_groups <= self.groups:
            raise ValueError(f"model.experts.top_groups={self.top_groups} of {self.groups} groups")
        reachable = self.count // self.groups * self.top_groups
        if not 1 <= self.active <= reachable:
            raise ValueError(f"model.experts.active={self.active}: valid: 1 to {reachable}")
        if self.group_score == "top2" and self.count // self.groups < 2:
            raise ValueError("model.experts.group_score='top2' needs two experts a group")


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters (2106.09685): W x + alpha / rank B A x; rank 0 = none.

    `targets` is a regular expression, searched for in a layer's path, such as
    "layer_0/attention/q" or "layers/ff/gate"; it selects among all linear layers except the head.
    `base` keeps the frozen kernels under them in few bits (QLoRA): none | int8 | int4 | nf4.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = "attention/|ff/"
    base: str = "none"

    def __post_init__(self):
        _not_negative("model.lora", self)
        _one_of("model.lora.base", self.base, LORA_BASES)
        if self.base != "none" and not self.rank:
            raise ValueError(f"model.lora.base={self.base!r} needs adapters: model.lora.rank")
        if self.rank and not self.alpha > 0:
            raise ValueError(f"model.lora.alpha={self.alpha} must be above 0")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(
                f"model.lora.targets={self.targets!r} is no regular expression: {error}"
            ) from error


class Segment(NamedTuple):
    """Consecutive layers start .. stop - 1 of one kind, and what their parameters are called."""

    name: str
    start: int
    stop: int
    sparse: bool


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a decoder-only transformer.

    head_dim 0 means hidden / heads. `dtype` is what is computed in, `param_dtype` what is kept.
    `scan_layers` compiles one layer and loops over it; `remat` names what the backward pass
    recomputes: "none" keeps all activations, "dots" keeps matrix products, "dots_no_batch" those
    with weights only, "full" layer inputs.

    qkv_bias, out_bias  biases in attention's projections
    qk_norm             RMS norms of each head's queries and keys
    query_scale         factor of queries; 0 = head_dim**-0.5
    windows             per layer, how many tokens back it sees, itself included; 0 = all; () = all
    rope_theta          base of the rotary frequencies; rope_local_theta, that of layers with a
                        window, 0 = the same, unscaled
    rope_interleaved    pairs are neighbours (DeepSeek), not halves
    *_softcap           c tanh(x / c) of attention's, or the output's, logits; 0 = off
    activation          silu | gelu (its tanh form)
    norm_offset         norms scale by 1 + weight
    post_norms          norms after attention and feed-forward too
    scale_embedding     embeddings times sqrt(hidden)
    mtp, mtp_weight     multi-token prediction layers (DeepSeek-V3), 0 or 1, and lambda, the factor
                        of their loss (2412.19437, eq. 25)
    """

    vocab_size: int
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 0
    ff: int = 384
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tied: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    query_scale: float = 0.0
    windows: tuple[int, ...] = ()
    rope_local_theta: float = 0.0
    rope_interleaved: bool = False
    rope_scaling: RopeScaling = RopeScaling()
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    activation: str = "silu"
    norm_offset: bool = False
    post_norms: bool = False
    scale_embedding: bool = False
    latent: Latent = Latent()
    experts: Experts = Experts()
    mtp: int = 0
    mtp_weight: float = 0.1
    lora: Lora = Lora()

    def __post_init__(self):
        sizes = ("vocab_size", "hidden", "layers", "heads", "kv_heads", "ff", "rope_theta")
        for field in sizes:
            if not getattr(self, field) > 0:
                raise ValueError(f"model.{field}={getattr(self, field)!r} must be above 0")
        _not_negative("model", self)
        self._check_heads()
        object.__setattr__(self, "windows", tuple(self.windows))
        for field, numbers in (("windows", self.windows), ("experts.dense", self.experts.dense)):
            if not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
                raise ValueError(f"model.{field}={numbers!r}; valid: whole numbers of at least 0")
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(
                f"model.windows has {len(self.windows)} entries; valid: one for each of "
                f"{self.layers} layers, or none"
            )
        _one_of("model.remat", self.remat, REMAT_POLICIES)
        _one_of("model.activation", self.activation, ACTIVATIONS)
        for field in ("dtype", "param_dtype"):
            _one_of(f"model.{field}", getattr(self, field), DTYPES)
        if self.mtp not in (0, 1):
            raise ValueError(f"model.mtp={self.mtp}: valid: 0 or 1")
        outside = [i for i in self.experts.dense if i >= self.layers]
        if self.experts.count and outside:
            raise ValueError(f"model.experts.dense has {outside[0]}, of {self.layers} layers")

    def _check_heads(self) -> None:
        if self.head_dim == 0:
            if self.hidden % self.heads:
                raise ValueError(
                    f"model.hidden={self.hidden} is not divisible by model.heads={self.heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads={self.heads} is not divisible by model.kv_heads={self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim} is odd; rotary embeddings need pairs")

    def window(self, layer: int) -> int:
        """How many tokens back a layer sees, itself included; 0 = all."""
        return self.windows[layer] if self.windows else 0

    def sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return self.experts.count > 0 and layer not in self.experts.dense

    def segments(self) -> tuple[Segment, ...]:
        """The runs of layers whose parameters are alike, which `scan_layers` stacks."""
        starts = [i for i in range(self.layers) if i == 0 or self.sparse(i) != self.sparse(i - 1)]
        names = ["layers"] if len(starts) == 1 else [f"layers_{i}" for i in starts]
        stops = [*starts[1:], self.layers]
        return tuple(
            Segment(n, a, b, self.sparse(a)) for n, a, b in zip(names, starts, stops, strict=True)
        )


PARTS: dict[str, Any] = {
    "rope_scaling": RopeScaling,
    "latent": Latent,
    "experts": Experts,
    "lora": Lora,
}


def model_config(fields: Mapping[str, object]) -> ModelConfig:
    """A ModelConfig of plain nested fields; ValueError names the field that is wrong."""
    made: dict[str, Any] = {
        k: PARTS[k](**v) if k in PARTS and isinstance(v, dict) else v for k, v in fields.items()
    }
    return ModelConfig(**made)
