"""Optuna's samplers and pruners by name and arguments, and which space and objectives each can serve."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning

from cluster.errors import InputError
from tuning.search_space import Space

SAMPLERS: dict[str, type[optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
    "cma-es": optuna.samplers.CmaEsSampler,
    "nsga-ii": optuna.samplers.NSGAIISampler,
    "nsga-iii": optuna.samplers.NSGAIIISampler,
    "qmc": optuna.samplers.QMCSampler,
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.GridSampler,
    "brute-force": optuna.samplers.BruteForceSampler,
}
PRUNERS: dict[str, type[optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "successive-halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "patient": optuna.pruners.PatientPruner,
}
INDEPENDENT = ("random", "qmc", "grid", "brute-force")
"""Samplers that learn nothing from results, so that any number of suggestions can be asked at once."""


def build_sampler(
    name: str, arguments: Mapping[str, Any], space: Space, objectives: int, seed: int
) -> optuna.samplers.BaseSampler:
    """Build a sampler.

    Args:
        name: one of SAMPLERS, or the name of Optuna's class.
        arguments: its own arguments by name.
        space: what it will search.
        objectives: how many there are.
        seed: of its random numbers.

    Raises:
        InputError: for an unknown name or argument, and for a space or number of objectives that it cannot serve.
    """
    name, kind = _find("sampler", name, SAMPLERS)
    numeric = space.numeric()
    if name == "cma-es":
        if len(numeric) < 2:
            why = f"has {len(numeric)} of them" + (f" ({numeric[0]})" if numeric else ": categories have no direction")
            raise InputError(f"sampler: cma-es needs two numbers to search, and the space {why}; take tpe or gp")
        if objectives > 1:
            raise InputError("sampler: cma-es serves one objective; take tpe, gp, nsga-ii or nsga-iii")
    if name == "qmc" and not numeric:
        raise InputError("sampler: qmc spreads numbers, and the space has categories only; take random or grid")
    given: dict[str, Any] = {**arguments, "seed": arguments.get("seed", seed)}
    if name == "grid":
        given["search_space"] = space.grid()
    for quiet in ("warn_independent_sampling", "warn_asynchronous_seeding"):
        if quiet in inspect.signature(kind).parameters:
            given.setdefault(quiet, False)
    sampler: optuna.samplers.BaseSampler = _make("sampler", name, kind, given)
    return sampler


def build_pruner(
    name: str, arguments: Mapping[str, Any], objectives: int, seeds: int, steps: int, every: int
) -> optuna.pruners.BasePruner:
    """Build a pruner.

    Args:
        name: one of PRUNERS, or the name of Optuna's class.
        arguments: its own arguments by name; of patient, "wrapped" names the pruner inside (null for none).
        objectives: how many there are.
        seeds: replicates of a suggestion.
        steps: of a replicate.
        every: steps between two evaluations.

    Raises:
        InputError: for an unknown name or argument, and where it cannot serve.
    """
    name, kind = _find("pruner", name, PRUNERS)
    if name != "none" and objectives > 1:
        raise InputError(f"pruner: {name} compares one objective, the study has {objectives}; take --pruner none")
    if name == "wilcoxon" and seeds < 3:
        raise InputError(f"pruner: wilcoxon compares replicates, and there are {seeds}; give --seeds 3 or more")
    given = dict(arguments)
    if name == "hyperband":
        given = {"min_resource": every, "max_resource": seeds * steps, **given}
    if name == "patient":
        wrapped = given.pop("wrapped", None)
        given["wrapped_pruner"] = wrapped and build_pruner(wrapped, {}, objectives, seeds, steps, every)
    pruner: optuna.pruners.BasePruner = _make("pruner", name, kind, given)
    return pruner


def _find(field: str, name: str, known: Mapping[str, type[Any]]) -> tuple[str, type[Any]]:
    for short, kind in known.items():
        if name.lower() == short or name == kind.__name__:
            return short, kind
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
    raise InputError(f"{field}: unknown {field} {name!r}; {hint}")


def _make(field: str, name: str, kind: type[Any], arguments: dict[str, Any]) -> Any:
    accepted = [p for p in inspect.signature(kind).parameters if p != "search_space" or name == "grid"]
    for argument in arguments:
        if argument not in accepted:
            close = difflib.get_close_matches(argument, accepted, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(accepted) or 'none'}"
            raise InputError(f"{field}_args: {name} takes no {argument!r}; {hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return kind(**arguments)
    except ImportError as error:
        raise InputError(f"{field}: {name} needs a package that is missing ({error.name}); pip install it") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{field}_args: {name} refuses them: {' '.join(str(error).split())}") from error
