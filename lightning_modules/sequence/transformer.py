"""A small decoder-only transformer: pre-norm, causal, learned, rotary or no positions, tied or untied, with a key-value cache.

Attention is written with plain operators by default, so that forward-mode derivatives, `torch.func.vmap` and double backward
go through it; `fused=True` takes torch's kernels instead, which are faster for long sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lightning_modules.errors import InputError
from lightning_modules.sequence.cache import Cache
from lightning_modules.sequence.taps import CausalTaps

Positions = Literal["learned", "rotary", "none"]
POSITIONS = ("learned", "rotary", "none")
_ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a `Transformer`.

    Args:
        vocabulary: V, tokens 0 to V - 1.
        context: longest sequence.
        layers: blocks of a mixer of positions and a feed-forward network.
        width: W of the residual stream.
        heads: of attention; each has W / heads dimensions.
        hidden: of the feed-forward networks; None: 4 W.
        positions: "learned" vectors added to the embeddings, "rotary", or "none": the causal mask alone tells order then.
        taps: positions that each channel of attention's input is mixed over, its own and those before it; 1: no mixing.
        tie: whether logits use the embeddings.
        dropout: in training, on embeddings and on what each half of a block adds.
        init_std: of all weights at the start; what writes into the residual stream has init_std / sqrt(2 layers).
        embedding_std: of the token embeddings at the start; None: `init_std`.
        freeze_embeddings: whether token embeddings (and what is tied to them, or the head) stay as they were at the start.
        fused: whether attention uses torch's kernels, which have no forward-mode derivative.

    Raises:
        InputError: a size below 1, heads that do not divide the width, an odd head under rotary positions.
    """

    vocabulary: int
    context: int
    layers: int = 2
    width: int = 64
    heads: int = 4
    hidden: int | None = None
    positions: Positions = "learned"
    taps: int = 1
    tie: bool = True
    dropout: float = 0.0
    init_std: float = 0.02
    embedding_std: float | None = None
    freeze_embeddings: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "layers", "width", "heads", "feed_forward", "taps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: is {getattr(self, name)}; give 1 or more")
        if self.width % self.heads:
            raise InputError(f"heads: {self.heads} do not divide the width {self.width}; give a divisor")
        if self.positions not in POSITIONS:
            raise InputError(f"positions: unknown {self.positions!r}; choose from {', '.join(POSITIONS)}")
        if self.positions == "rotary" and self.head_width % 2:
            raise InputError(f"heads: of odd width {self.head_width} cannot be rotated; give another number of heads")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: is {self.dropout}; give 0 or more, and less than 1")

    @property
    def head_width(self) -> int:
        """Dimensions of a head."""
        return self.width // self.heads

    @property
    def feed_forward(self) -> int:
        """Width of the feed-forward networks' hidden layers."""
        return 4 * self.width if self.hidden is None else self.hidden


class Attention(nn.Module):
    """Causal multi-head attention: softmax(Q K^T / sqrt(D) + mask) V, heads joined by a linear map.

    With `config.taps` above 1 its input goes through `CausalTaps` first.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self._config = config
        self.taps = CausalTaps(config.width, config.taps) if config.taps > 1 else None
        self.qkv = linear(config.width, 3 * config.width)
        self.out = linear(config.width, config.width)

    def forward(self, x: Tensor, layer: int = 0, cache: Cache | None = None) -> Tensor:
        """Mix positions: [B, T, W] -> [B, T, W]."""
        batch, time, width = x.shape
        heads = self._config.heads
        if self.taps is not None:
            x = self.taps(x, layer, cache)
        q, k, v = self.qkv(x).view(batch, time, 3, heads, self._config.head_width).permute(2, 0, 3, 1, 4)
        start = 0 if cache is None else cache.length
        if self._config.positions == "rotary":
            q, k = rotate(q, start), rotate(k, start)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        mixed = _fused(q, k, v) if self._config.fused else attend(q, k, v)
        found: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return found


class FeedForward(nn.Module):
    """W -> hidden -> W with GELU, the same at every position."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = linear(config.width, config.feed_forward)
        self.out = linear(config.feed_forward, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        found: Tensor = self.out(nn.functional.gelu(self.up(x)))
        return found


class Block(nn.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x)).

    Args:
        config: of the transformer.
        mixer: of positions; None: `Attention`.
        feed_forward: None: `FeedForward`.
    """

    def __init__(
        self, config: TransformerConfig, mixer: nn.Module | None = None, feed_forward: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.mixer = mixer if mixer is not None else Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = feed_forward if feed_forward is not None else FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layer: int = 0, cache: Cache | None = None) -> Tensor:
        """[B, T, W] -> [B, T, W]."""
        x = x + self.dropout(self.mixer(self.norm(x), layer, cache))
        found: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return found


class Transformer(nn.Module):
    """Tokens [B, T] -> logits [B, T, V] of each next token.

    Args:
        config: sizes and choices.
        generator: of the first weights; None: torch's global one.
        blocks: other blocks than the usual ones, `config.layers` of them.
    """

    def __init__(
        self,
        config: TransformerConfig,
        generator: torch.Generator | None = None,
        blocks: list[Block] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(
            config.vocabulary, config.width, _weight=torch.empty(config.vocabulary, config.width)
        )
        learned = config.positions == "learned"
        self.positions = nn.Parameter(torch.empty(config.context, config.width)) if learned else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(blocks or [Block(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        self.head = None if config.tie else linear(config.width, config.vocabulary, bias=False)
        self._start(generator)
        if config.freeze_embeddings:
            self.embedding.requires_grad_(False)
            if self.head is not None:
                self.head.requires_grad_(False)

    @torch.no_grad()
    def _start(self, generator: torch.Generator | None) -> None:
        config = self.config
        residual = config.init_std / math.sqrt(2 * config.layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                std = residual if name.endswith(".out") else config.init_std
                module.weight.normal_(0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
        embedding_std = config.init_std if config.embedding_std is None else config.embedding_std
        self.embedding.weight.normal_(0, embedding_std, generator=generator)
        if self.head is not None and config.embedding_std is not None:
            self.head.weight.normal_(0, embedding_std, generator=generator)
        if self.positions is not None:
            self.positions.normal_(0, config.init_std, generator=generator)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, V] of tokens [B, T], which follow those in the cache if there is one.

        Raises:
            InputError: sequences longer than the context.
        """
        return self.logits(self.features(tokens, cache))

    def features(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """What the logits are read from: the normed residual stream [B, T, W] after the last block."""
        return self.features_of(self.embedding(tokens), cache)

    def features_of(self, inputs: Tensor, cache: Cache | None = None) -> Tensor:
        """`features` of embedded inputs [B, T, W], of tokens or of anything else."""
        start = 0 if cache is None else cache.length
        end = start + inputs.shape[1]
        if end > self.config.context:
            raise InputError(f"context: {end} positions do not fit into {self.config.context}; give a longer context")
        x = inputs if self.positions is None else inputs + self.positions[start:end]
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, cache)
        if cache is not None:
            cache.length = end
        found: Tensor = self.norm(x)
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Logits [..., V] of features [..., W]."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return nn.functional.linear(features, weight)


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer whose first weights its owner sets; torch's global random numbers are not drawn for it."""
    layer: nn.Linear = skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]
    return layer


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the last positions: q [B, H, T, D], k and v [B, H, S, D] with S >= T -> [B, H, T, D]."""
    time, seen = q.shape[-2], k.shape[-2]
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if time > 1:
        hidden = torch.ones(time, seen, dtype=torch.bool, device=q.device).triu(1 + seen - time)
        scores = scores.masked_fill(hidden, -math.inf)
    return scores.softmax(-1) @ v


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    time, seen = q.shape[-2], k.shape[-2]
    if time == seen or time == 1:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=time > 1)
    shown = torch.ones(time, seen, dtype=torch.bool, device=q.device).tril(seen - time)
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=shown)


def rotate(x: Tensor, start: int) -> Tensor:
    """Rotary position embedding of x [B, H, T, D] at positions start, start + 1, ...

    Dimensions i and i + D / 2 turn together by position * 10000^(-2 i / D).

    Source: arXiv 2104.09864, equation 34.
    """
    half = x.shape[-1] // 2
    at = torch.arange(start, start + x.shape[-2], device=x.device, dtype=torch.float32)
    speed = _ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = at[:, None] * speed
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
