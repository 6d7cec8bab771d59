"""The one place that imports Lightning, because the order of imports decides how long a cold start takes.

torchmetrics, which Lightning imports, loads scipy.signal (1.3 s of a cold start of 6) for one line: it gives that
module a function `hamming` for the sake of an optional speech metric. An empty stand-in that already has the name is
put there during the import and taken away after it; a later `import scipy.signal` gets the real module.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import types
import warnings
from typing import Any


def _import_quickly() -> None:
    if {"torchmetrics", "scipy.signal"} & set(sys.modules) or importlib.util.find_spec("scipy") is None:
        return
    import scipy

    stand_in = types.ModuleType("scipy.signal")
    stand_in.hamming = None  # type: ignore[attr-defined]
    sys.modules["scipy.signal"] = stand_in
    try:
        import torchmetrics  # noqa: F401
    finally:
        del sys.modules["scipy.signal"]
        vars(scipy).pop("signal", None)


_import_quickly()

import lightning.pytorch as pl  # noqa: E402

_LOGGER = logging.getLogger("lightning.pytorch")


class quiet_lightning(warnings.catch_warnings):  # noqa: N801 - a context manager, used like a function
    """Silence what Lightning says about hardware and loaders for each of thousands of fits."""

    def __enter__(self) -> Any:
        self._level = _LOGGER.level
        _LOGGER.setLevel(logging.ERROR)
        result = super().__enter__()
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        return result

    def __exit__(self, *info: Any) -> None:
        _LOGGER.setLevel(self._level)
        super().__exit__(*info)


__all__ = ["pl", "quiet_lightning"]
