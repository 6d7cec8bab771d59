"""The one place that imports Lightning, because the order of imports decides how long a cold start takes.

torchmetrics, which Lightning imports, loads scipy.signal (1.3 s of a cold start of 6) for one line: it gives that
module a function `hamming` for the sake of an optional speech metric. An empty stand-in that already has the name is
put there during the import and taken away after it; a later `import scipy.signal` gets the real module.
"""

from __future__ import annotations

import importlib.util
import sys
import types


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

__all__ = ["pl"]
