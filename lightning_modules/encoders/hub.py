"""What image and text encoders share that come from a local directory, as Hugging Face's `save_pretrained` writes them.

Nothing is downloaded and no code of the directory runs: the architecture must be one that transformers knows, and
weights are read as tensors alone. `transformers` is an optional dependency, imported when an encoder is loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_modules.encoders.adapter import digest, file_digest
from lightning_modules.errors import InputError

POOLINGS = ("auto", "pooler", "cls", "mean")
"""How an encoder's output becomes one vector an item, see `load_encoder` and `load_text_encoder`."""


def check_encoder(path: str | os.PathLike[str], pooling: str) -> dict[str, Any]:
    """Check what can be checked without loading anything; returns the encoder's config.

    Raises:
        InputError: an unknown pooling; no such directory; no config.json in it, or one that is no JSON object.
    """
    if pooling not in POOLINGS:
        raise InputError(f"pooling: unknown {pooling!r}; choose one of {', '.join(POOLINGS)}")
    if not Path(path).is_dir():
        raise InputError(f"encoder: {path}: no such directory; give one that `save_pretrained` wrote")
    try:
        config = json.loads((Path(path) / "config.json").read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"encoder: {path}: has no config.json; give a directory that `save_pretrained` wrote"
        ) from None
    except ValueError as error:
        raise InputError(f"encoder: {path}/config.json is no JSON ({error}); copy it anew") from error
    if not isinstance(config, dict):
        raise InputError(f"encoder: {path}/config.json holds no settings; copy it anew")
    return config


def load_model(path: Path, config: dict[str, Any]) -> tuple[Any, set[str]]:
    """Load the model that config.json names; also the names of weights that the files lack.

    Raises:
        InputError: transformers is not installed, or the directory holds no model that can be loaded.
    """
    try:
        from safetensors import SafetensorError
        from transformers import AutoModel
    except ImportError as error:
        raise InputError(f"encoder: needs transformers ({error}); run: pip install 'shiftlab[encoders]'") from error
    try:
        with quiet():
            model, loading = AutoModel.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, EOFError) as error:
        if "auto_map" in config:
            what = "brings code of its own, which is not run; give an encoder that transformers itself knows"
            raise InputError(f"encoder: {path}: {what}") from error
        raise InputError(f"encoder: {path}: cannot be loaded ({one_line(error)})") from error
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise InputError(f"encoder: {path}: its weights cannot be read ({one_line(error)}); copy them anew") from error
    return model, set(loading["missing_keys"])


def take_tower(model: Any, missing: set[str], tower: str) -> tuple[Any, set[str]]:
    """Take one tower of a model with two, "vision_model" or "text_model", and what its files lack of it."""
    lacks = {key.removeprefix(f"{tower}.") for key in missing if key.startswith(f"{tower}.")}
    return getattr(model, tower), lacks


def trained_pooler(path: Path, model: Any, missing: set[str]) -> bool:
    """Say whether a pooler, if there is one, has weights; transformers fills in random ones where files have none.

    Raises:
        InputError: other weights are missing.
    """
    others = {key for key in missing if "pooler" not in key.split(".")}
    if others:
        raise InputError(
            f"encoder: {path}: its weights lack {len(others)} tensors of {type(model).__name__}, e.g. "
            f"{min(others)}; save the whole model"
        )
    return others == missing


def hash_files(path: Path, others: Sequence[str]) -> str:
    """SHA-256 of config.json, the weights and other files, where they are there."""
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    files = [path / "config.json", *(path / name for name in others), *weights]
    return digest([(file.name, file_digest(file)) for file in files if file.is_file()])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and reports off stderr: what matters of them becomes an error or a note."""
    import transformers

    logging: Any = transformers.utils.logging  # untyped
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def one_line(error: BaseException) -> str:
    """An error's message on one line, cut to 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
