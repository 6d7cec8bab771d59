"""State dicts: read from a file without unpickling anything but tensors and plain data, and loaded into a network."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError

_HOW_TO_SAVE = "save the weights alone, torch.save(model.state_dict(), 'weights.pt'), and give --model module:Class"


def reason(error: BaseException) -> str:
    """The line of an error's message that counts, in brackets: the last one where the message is a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"({lines[-1 if any('Traceback' in line for line in lines) else 0][:200]})"


def load_tensors(content: bytes, where: str) -> Any:
    """Load tensors and plain data, from safetensors or what torch.save wrote.

    Args:
        content: of the file.
        where: its name, for errors.

    Raises:
        InputError: the file is damaged, or holds other objects.
    """
    if content[8:9] == b"{":  # after the length of the header
        try:
            import safetensors.torch
        except ImportError as error:
            raise InputError(f"{where}: needs the package safetensors: pip install safetensors") from error
        try:
            return safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise InputError(f"{where}: cannot be read as safetensors {reason(error)}; save it anew") from error
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in torch's reader
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name is None:
            raise InputError(f"{where}: is no file of torch.save, or damaged; {_HOW_TO_SAVE}") from error
        raise InputError(
            f"{where}: holds a {name[1]}, which is not unpickled because it may run code; {_HOW_TO_SAVE}"
        ) from error


def find_state_dict(loaded: Any, where: str) -> dict[str, Any]:
    """Find the weights in what a file holds: it may be a state dict, or have one under "state_dict".

    Raises:
        InputError: there are none.
    """
    found = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        holds = ", ".join(map(repr, loaded)) if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
        raise InputError(f"{where}: holds {holds[:200] or 'nothing'}, but no weights; {_HOW_TO_SAVE}")
    return {str(name): value for name, value in found.items()}


def load_weights(network: nn.Module, weights: dict[str, Any], where: str) -> None:
    """Load a state dict, under other names where those fit: nn.DataParallel leaves "module" in them, others a prefix.

    Raises:
        InputError: names or shapes differ from the network's.
    """
    steps = os.path.commonprefix(list(weights)).split(".")[:-1]
    prefixes = ["".join(f"{step}." for step in steps[:count]) for count in range(len(steps) + 1)]
    renamed = [{name.removeprefix(prefix): name for name in weights} for prefix in prefixes]
    renamed.append({".".join(step for step in name.split(".") if step != "module"): name for name in weights})
    wanted = _names(network.state_dict())
    best = min(renamed, key=lambda names: len(_names(names) ^ wanted))
    missing, unknown = sorted(wanted - _names(best)), sorted(_names(best) - wanted)
    if missing or unknown:
        what = [f"{verb} {', '.join(some[:3])}" for verb, some in (("miss", missing), ("have also", unknown)) if some]
        raise InputError(f"{where}: its weights {' and '.join(what)}; give the class and arguments they belong to")
    try:
        network.load_state_dict({name: weights[old] for name, old in best.items()})
    except RuntimeError as error:  # a size that differs; its second line names the first
        size = " ".join(str(error).splitlines()[1:2]).strip()
        raise InputError(f"{where}: its weights do not fit ({size}); give the arguments they belong to") from error


def _names(weights: Mapping[str, Any]) -> set[str]:
    """Names without batch norm's counters, which old files do not have and eval mode does not need."""
    return {name for name in weights if not name.endswith("num_batches_tracked")}
