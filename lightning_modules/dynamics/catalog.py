"""Probes by the names that `shiftlab train --probe` takes, and a person's own by import path."""

from __future__ import annotations

import inspect
from difflib import get_close_matches

from lightning_modules.dynamics.probe import Probe
from lightning_modules.errors import InputError
from lightning_modules.imports import find_class, import_folder, is_import_path

_HERE = "lightning_modules.dynamics"
PROBES = {
    "breakthroughs": f"{_HERE}.breakthroughs_probe:BreakthroughsProbe",
    "edge-recall": f"{_HERE}.geometry.probes:EdgeRecall",
    "geometry": f"{_HERE}.geometry.probes:GeometryProbe",
    "opposing-signals": f"{_HERE}.opposing_probe:OpposingSignalsProbe",
    "sharpness": f"{_HERE}.sharpness_probe:SharpnessProbe",
}
"""Import path by name."""


def make_probe(words: str) -> Probe:
    """Make a probe from its name and options.

    Args:
        words: NAME or module:Class of a `Probe`, then perhaps :option=value,option=value, e.g. "sharpness:every=50".

    Raises:
        InputError: an unknown name or option, or a value of the wrong kind; names the nearest.
    """
    name, _, options = words.rpartition(":") if "=" in words else (words, "", "")
    path = PROBES.get(name, name)
    if not is_import_path(path):
        near = get_close_matches(name, PROBES, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(PROBES)}, or give module:Class"
        raise InputError(f"probe: unknown {name!r}; {hint}")
    found = find_class(path, import_folder(path))
    if not (isinstance(found, type) and issubclass(found, Probe)):
        raise InputError(f"probe: {name} is no probe; derive its class from {Probe.__module__}.Probe")
    defaults = {p.name: p.default for p in inspect.signature(found).parameters.values()}
    given = {}
    for pair in filter(None, options.split(",")):
        key, _, text = pair.partition("=")
        if key not in defaults:
            raise InputError(f"probe {name}: has no option {key!r}; choose from {', '.join(defaults)}")
        try:
            given[key] = type(defaults[key])(text)
        except ValueError:
            raise InputError(f"probe {name}: {key} is {text!r}; give a value like {defaults[key]}") from None
    return found(**given)
