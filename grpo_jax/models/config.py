"""What a decoder is made of, as data."""

import dataclasses

REMAT_POLICIES = ("none", "full", "dots")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a decoder-only transformer.

    head_dim 0 means hidden / heads. `dtype` is what is computed in, `param_dtype` what is kept.
    `scan_layers` compiles one layer and loops over it; `remat` names what the backward pass
    recomputes: "none" keeps all activations, "dots" keeps matrix products, "full" layer inputs.
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

    def __post_init__(self):
        sizes = ("vocab_size", "hidden", "layers", "heads", "kv_heads", "ff", "rope_theta")
        for field in sizes:
            if not getattr(self, field) > 0:
                raise ValueError(f"model.{field}={getattr(self, field)!r} must be above 0")
        for field in ("head_dim", "norm_eps"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"model.{field}={getattr(self, field)!r} must be 0 or above")
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
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"model.remat={self.remat!r} is not one of {REMAT_POLICIES}")
        for field in ("dtype", "param_dtype"):
            if getattr(self, field) not in DTYPES:
                raise ValueError(f"model.{field}={getattr(self, field)!r} is not one of {DTYPES}")
