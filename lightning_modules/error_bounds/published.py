"""Reads the features that the paper's authors publish: one folder a dataset, method and shift.

`ROOT/<dataset>/<method>_<shift>_100.0/` holds model_feats.npy and ytrue.npy (pickled dicts with the keys source and target) and
linear.pth (weight and bias of the last layer). Pickles can run code, so only numpy's arrays are unpickled from them.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.error_bounds.evidence import Array, Evidence, error_rate
from lightning_modules.error_bounds.head_files import read_head
from lightning_modules.errors import InputError

FILES = ("model_feats.npy", "ytrue.npy", "linear.pth")

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise InputError(f"holds a {module}.{name}, which is not unpickled because it may run code")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_published(folder: str | Path) -> tuple[Evidence, float]:
    """Read one shift: what may be used of it, and the classifier's true error in the target.

    Raises:
        InputError: naming the file and the mend.
    """
    folder = Path(folder)
    features, labels = (_two_arrays(folder / name) for name in FILES[:2])
    head = read_head(str(folder / FILES[2]), features[0].shape[1])
    logits = [head(np.asarray(x, np.float32)) for x in features]
    evidence = Evidence(features[0], logits[0], labels[0].astype(np.int64), features[1], logits[1])
    return evidence, error_rate(logits[1], labels[1])


def _two_arrays(path: Path) -> tuple[Array, Array]:
    """Read a numpy file that holds one dict of arrays, for source and target."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; unpack the published features there")
    content = path.read_bytes()
    try:
        stream = io.BytesIO(content)
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read_header(stream)
        if shape != () or kind != np.dtype(object):
            raise ValueError(f"an array of {kind}, not a dict")
        found = _ArraysOnly(stream).load().item()
        return np.asarray(found["source"]), np.asarray(found["target"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, KeyError, EOFError, AttributeError, pickle.UnpicklingError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: is no dict of the arrays source and target ({reason}); download it anew") from error
