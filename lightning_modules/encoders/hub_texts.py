"""Pretrained text encoders from a local directory, as Hugging Face's `save_pretrained` or sentence-transformers write them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.encoders.adapter import digest, file_digest
from lightning_modules.encoders.hub import (
    check_encoder,
    hash_files,
    load_model,
    one_line,
    quiet,
    take_tower,
    trained_pooler,
)
from lightning_modules.encoders.texts import TextEncoder, pad
from lightning_modules.errors import InputError

_LONGEST = 512
_POOLING, _MODULES, _SENTENCES = "1_Pooling/config.json", "modules.json", "sentence_bert_config.json"
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_FILES = (
    *_VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "merges.txt",
    _POOLING,
    _MODULES,
    _SENTENCES,
)


class HubTextEncoder(TextEncoder):
    """A frozen text encoder of transformers.

    Args:
        model: transformers' text model.
        tokenizer: transformers' tokenizer.
        path: their directory.
        pooling: "pooler", "cls" or "mean" (over tokens that are no padding).
        normalise: whether vectors are scaled to length 1.
        longest: tokens of a text; the rest is cut off.
        dimension: d, numbers in a feature vector.
        notes: what a person should know, a sentence each.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        path: Path,
        pooling: str,
        normalise: bool,
        longest: int,
        dimension: int,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.tokenizer, self.pooling, self.normalise, self.longest = tokenizer, pooling, normalise, longest
        self.padding = tokenizer.pad_token_id or 0
        settings = {"pooling": pooling + (", normalised" if normalise else ""), "tokens": longest}
        settings["encoder_config_sha256"] = file_digest(path / "config.json")
        sha256 = digest(hash_files(path, _FILES), pooling, normalise, longest)
        super().__init__(model, path.name, dimension, sha256, settings, ("transformers",), notes)

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn texts into tokens."""
        return _tokenise(self.tokenizer, texts, self.longest)

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Compute features [B, d]."""
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        features = _pool(_outputs(self.model, tokens, mask), mask, self.pooling)
        return functional.normalize(features, dim=1) if self.normalise else features


def load_text_encoder(path: str | os.PathLike[str], pooling: str = "auto") -> HubTextEncoder:
    """Load a text encoder from a directory with config.json, weights and a tokenizer.

    Of a model with a vision and a text tower the text tower is taken. Where sentence-transformers wrote the directory, its
    pooling, longest text and scaling to length 1 are taken over.

    Args:
        path: the directory.
        pooling: "pooler" takes the model's pooler_output; "cls" its first token; "mean" the mean over tokens that are no
            padding; "auto" what the directory says, else the pooler of a text tower, else the mean.

    Returns:
        The encoder on the CPU, float32, in eval mode.

    Raises:
        InputError: transformers is not installed; the directory holds no encoder or tokenizer that can be loaded; the model
            takes no texts; it lacks what `pooling` asks for.
    """
    config = check_encoder(path, pooling)
    path = Path(os.path.abspath(path))
    model, missing = load_model(path, config)
    tower = getattr(model, "text_model", None) is not None
    if tower:
        model, missing = take_tower(model, missing, "text_model")
    elif model.main_input_name != "input_ids":
        raise InputError(f"encoder: {path}: {type(model).__name__} takes no texts; give a text encoder")
    trained = trained_pooler(path, model, missing)
    tokenizer = _tokenizer(path)
    model = model.eval().requires_grad_(False)
    longest = _longest(path, tokenizer, model)
    tokens, mask = pad(_tokenise(tokenizer, ["a text"], longest), tokenizer.pad_token_id or 0)
    try:
        outputs = _outputs(model, tokens, mask)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        what = f"{type(model).__name__} does not turn its tokenizer's tokens into features ({one_line(error)})"
        raise InputError(f"encoder: {path}: {what}; give an encoder of texts") from error
    has_pooler = outputs.get("pooler_output") is not None and trained
    notes: list[str] = []
    if pooling == "auto":
        pooling = _stated_pooling(path) or ("pooler" if tower and has_pooler else "mean")
    if pooling == "pooler" and not has_pooler:
        what = "pooler" if trained else "trained pooler"
        raise InputError(f"pooling: {path.name} ({type(model).__name__}) has no {what}; choose auto or mean")
    modules = _read_json(path / _MODULES, [])
    normalise = any(str(module.get("type", "")).endswith(".Normalize") for module in modules)
    if any(str(module.get("type", "")).endswith(".Dense") for module in modules):
        notes.append(f"{path.name} has a dense layer after pooling, which is left out")
    dimension = _pool(outputs, mask, pooling).shape[1]
    return HubTextEncoder(model, tokenizer, path, pooling, normalise, longest, dimension, tuple(notes))


def _tokenizer(path: Path) -> Any:
    import transformers

    # Without these transformers may make a tokenizer that knows no word.
    if not any((path / name).is_file() for name in _VOCABULARIES):
        raise InputError(f"encoder: {path}: has no tokenizer ({', '.join(_VOCABULARIES[:3])}, ...); copy it too")
    tokenizers: Any = transformers.AutoTokenizer  # untyped
    try:
        with quiet():
            return tokenizers.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(f"encoder: {path}: its tokenizer cannot be loaded ({one_line(error)}); copy it too") from error


def _longest(path: Path, tokenizer: Any, model: Any) -> int:
    """Tokens that the model can read: the least of all limits that are stated."""
    limits = [
        tokenizer.model_max_length,
        getattr(model.config, "max_position_embeddings", None),
        _read_json(path / _SENTENCES, {}).get("max_seq_length"),
    ]
    # Tokenizers without a limit state a number beyond all use.
    stated = [int(limit) for limit in limits if limit and 0 < limit < 1_000_000]
    return min(stated, default=_LONGEST)


def _stated_pooling(path: Path) -> str | None:
    """Read the pooling that sentence-transformers wrote, if it did."""
    about = _read_json(path / _POOLING, {})
    chosen = [name for name, on in about.items() if name.startswith("pooling_mode_") and on is True]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if chosen and chosen[0] in known and len(chosen) == 1:
        return known[chosen[0]]
    if chosen:
        raise InputError(f"pooling: {path.name} asks for {', '.join(chosen)}, which is not there; choose mean or cls")
    return None


def _read_json(file: Path, default: Any) -> Any:
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise InputError(f"encoder: {file}: cannot be read ({one_line(error)}); copy it anew") from error
    if not isinstance(found, type(default)):
        raise InputError(f"encoder: {file}: holds no {type(default).__name__}; copy it anew")
    return found


def _tokenise(tokenizer: Any, texts: Sequence[str], longest: int) -> list[list[int]]:
    found: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
    return found


@torch.inference_mode()
def _outputs(model: nn.Module, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return dict(model(input_ids=tokens, attention_mask=mask.long()).items())


def _pool(outputs: dict[str, Tensor], mask: Tensor, pooling: str) -> Tensor:
    """Turn outputs into [B, d]."""
    if pooling == "pooler":
        return outputs["pooler_output"]
    states_BTd = outputs["last_hidden_state"]
    if pooling == "cls":
        return states_BTd[:, 0]
    seen_BT1 = mask[..., None].to(states_BTd.dtype)
    return (states_BTd * seen_BT1).sum(1) / seen_BT1.sum(1)
