"""The space of a study: which parameters are suggested, from which ranges, and under which conditions.

A space is written as plain data, the same whether a method's annotations or a person's YAML gave it:

    lr: {low: 1.0e-5, high: 1.0e-2, log: true}
    batch_size: {low: 16, high: 128, step: 16}
    network: {choices: [linear, mlp]}
    width: {low: 16, high: 512, log: true, when: {network: mlp}}      # or when: {network: [mlp, cnn]}
    weight_decay: 0.001                                               # fixed, not searched
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from cluster.errors import InputError
from cluster.trial import Scalar

if TYPE_CHECKING:
    import optuna

_KEYS = ("type", "low", "high", "log", "step", "choices", "when")


@dataclass(frozen=True)
class Parameter:
    """One searched parameter.

    Args:
        name: of the hyperparameter.
        distribution: its range.
        when: by another hyperparameter, the values under which this one matters.
    """

    name: str
    distribution: BaseDistribution
    when: Mapping[str, tuple[Scalar, ...]]

    def __str__(self) -> str:
        """The range as people write it."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            text = f"one of {', '.join(map(str, d.choices))}"
        else:
            assert isinstance(d, FloatDistribution | IntDistribution)
            step = f" in steps of {d.step:g}" if d.step not in (None, 1) else ""
            text = f"{d.low:g} to {d.high:g}{step}{', log' if d.log else ''}"
        return text + "".join(f", when {k} is {' or '.join(map(str, v))}" for k, v in self.when.items())


@dataclass(frozen=True)
class Space:
    """What a study searches.

    Args:
        parameters: those that others' conditions name come before these others.
        fixed: values that are the same in every suggestion.
        defaults: values of everything that is not suggested; conditions may name them.
    """

    parameters: tuple[Parameter, ...]
    fixed: Mapping[str, Scalar]
    defaults: Mapping[str, Scalar]

    def suggest(self, trial: optuna.trial.Trial) -> dict[str, Scalar]:
        """Suggest every parameter whose conditions hold; what a trial holds already stays. Fixed values come with it."""
        known = {**self.defaults, **self.fixed}
        values = dict(self.fixed)
        for parameter in self.parameters:
            if all(known.get(name) in allowed for name, allowed in parameter.when.items()):
                known[parameter.name] = values[parameter.name] = _suggest(trial, parameter)
        return values

    def describe(self) -> dict[str, str]:
        """Every parameter's range in words, by name: what tells two spaces apart, and what a person is shown."""
        return {p.name: str(p) for p in self.parameters} | {k: f"fixed at {v}" for k, v in self.fixed.items()}

    def ends(self) -> dict[str, list[Scalar]]:
        """By parameter, the values that a method should be asked about: both ends of a range, or every choice."""
        found: dict[str, list[Scalar]] = {}
        for p in self.parameters:
            d = p.distribution
            if isinstance(d, CategoricalDistribution):
                found[p.name] = list(d.choices)
            else:
                assert isinstance(d, FloatDistribution | IntDistribution)
                found[p.name] = [d.low, d.high]
        return found

    def within(self, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Those of some values that a suggestion of this space can have."""
        inside: dict[str, Scalar] = {}
        for p in self.parameters:
            if p.name in values:
                value, d = values[p.name], p.distribution
                if isinstance(d, CategoricalDistribution):
                    fits = any(value is choice or value == choice for choice in d.choices)
                else:
                    fits = isinstance(value, int | float) and d._contains(d.to_internal_repr(value))
                if fits:
                    inside[p.name] = value
        return inside

    @property
    def finite(self) -> bool:
        """Whether a suggestion can come twice."""
        return all(not isinstance(p.distribution, FloatDistribution) or p.distribution.step for p in self.parameters)

    @property
    def conditional(self) -> list[str]:
        """Names of the parameters that are not suggested every time."""
        return [p.name for p in self.parameters if p.when]

    def numeric(self) -> list[str]:
        """Names of the parameters with an order and more than one value, suggested every time."""
        return [
            p.name
            for p in self.parameters
            if not p.when and not isinstance(p.distribution, CategoricalDistribution) and not p.distribution.single()
        ]

    def grid(self) -> dict[str, list[Any]]:
        """Every parameter's values.

        Raises:
            InputError: for a parameter without a finite list of values, and for conditions, which no grid has.
        """
        values = {}
        for p in self.parameters:
            d = p.distribution
            if p.when:
                raise InputError(f"sampler: a grid has no conditions, and {p.name} has one; take brute-force")
            if isinstance(d, CategoricalDistribution):
                values[p.name] = list(d.choices)
            elif isinstance(d, IntDistribution) and not d.log:
                values[p.name] = list(range(d.low, d.high + 1, d.step))
            elif isinstance(d, FloatDistribution) and d.step is not None:
                count = round((d.high - d.low) / d.step) + 1
                values[p.name] = [d.low + k * d.step for k in range(count)]
            else:
                raise InputError(
                    f"sampler: a grid needs a finite list of values, and {p.name} goes from {p}; give it `choices` or a "
                    "`step` in --space, or take random, qmc or tpe"
                )
        return values

    def to_json(self, only: Container[str]) -> str:
        """The distributions of some parameters as JSON, as the study's table stores them."""
        return json.dumps(
            {p.name: json.loads(distribution_to_json(p.distribution)) for p in self.parameters if p.name in only}
        )


def build_space(
    laws: Mapping[str, Any],
    overrides: Mapping[str, Any],
    defaults: Mapping[str, Scalar],
    kinds: Mapping[str, type],
    owner: str,
) -> Space:
    """Build a space from the ranges that a method declares and what a person puts over them.

    Args:
        laws: by hyperparameter, its range as plain data (the module's docstring shows the form).
        overrides: the same form, or a plain value, which fixes it.
        defaults: every hyperparameter with its default value.
        kinds: every hyperparameter with its type.
        owner: name of the method, for messages.

    Raises:
        InputError: for a name that is no hyperparameter, an empty range, a malformed one, or one without any choice
            left to search.
    """
    for name in overrides:
        if name not in defaults:
            close = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(defaults)}"
            raise InputError(f"space: {owner} has no hyperparameter {name!r}; {hint}")
    fixed = {name: value for name, value in overrides.items() if not isinstance(value, Mapping)}
    for name, value in fixed.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            raise InputError(f"space: {name} is a list; write {name}: {{choices: {json.dumps(value)}}}")
    ranges = {name: spec for name, spec in {**laws, **overrides}.items() if name not in fixed}
    parameters = [_parameter(name, spec, kinds.get(name, float), defaults) for name, spec in ranges.items()]
    if not parameters:
        raise InputError(f"space: nothing of {owner} is left to search; give at least one range in --space")
    return Space(tuple(_in_order(parameters)), fixed, defaults)


def _parameter(name: str, spec: Mapping[str, Any], kind: type, defaults: Mapping[str, Scalar]) -> Parameter:
    for key in spec:
        if key not in _KEYS:
            raise InputError(f"space: {name} has no key {key!r}; a range has {', '.join(_KEYS)}")
    when = {}
    for field, allowed in dict(spec.get("when") or {}).items():
        if field not in defaults or field == name:
            raise InputError(f"space: {name} depends on {field!r}, which is no other hyperparameter")
        when[field] = tuple(allowed) if isinstance(allowed, list | tuple) else (allowed,)
    if "choices" in spec:
        choices = spec["choices"]
        if not isinstance(choices, list | tuple) or not choices:
            raise InputError(f"space: {name} has no choices; list at least one")
        if not all(isinstance(choice, bool | int | float | str | None) for choice in choices):
            raise InputError(f"space: the choices of {name} are not all plain values; give numbers, text or true/false")
        return Parameter(name, CategoricalDistribution(list(choices)), when)
    low, high = _bound(name, spec, "low"), _bound(name, spec, "high")
    log, step = bool(spec.get("log", False)), spec.get("step")
    if low > high:
        raise InputError(f"space: the range of {name} is empty: low {low:g} is above high {high:g}; swap them")
    if log and low <= 0:
        raise InputError(f"space: {name} is searched in logarithm from {low:g}; give a low above 0, or log: false")
    if log and step is not None:
        raise InputError(f"space: {name} has log and step; give one of them")
    if step is not None and not (isinstance(step, int | float) and 0 < step <= max(high - low, 0)):
        raise InputError(
            f"space: step {step} of {name} does not fit into {low:g} to {high:g}; give a smaller one above 0"
        )
    if spec.get("type", "int" if kind is int else "float") == "int":
        if not all(float(value).is_integer() for value in (low, high, step or 1)):
            raise InputError(f"space: {name} is a whole number; give whole low, high and step")
        return Parameter(name, IntDistribution(int(low), int(high), log=log, step=int(step or 1)), when)
    return Parameter(name, FloatDistribution(float(low), float(high), log=log, step=step), when)


def _bound(name: str, spec: Mapping[str, Any], key: str) -> float:
    value = spec.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"space: {name} needs a number as {key}, or choices; {value!r} is none")
    return value


def _in_order(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Put parameters behind those that their conditions name, otherwise as they are."""
    left, placed = list(parameters), list[Parameter]()
    while left:
        waiting = {p.name for p in left}
        ready = [p for p in left if not waiting & set(p.when)]
        if not ready:
            raise InputError(f"space: the conditions of {', '.join(sorted(waiting))} go in a circle; drop one")
        placed += ready
        left = [p for p in left if p not in ready]
    return placed


def _suggest(trial: optuna.trial.Trial, parameter: Parameter) -> Scalar:
    d = parameter.distribution
    if isinstance(d, CategoricalDistribution):
        chosen: Scalar = trial.suggest_categorical(parameter.name, d.choices)
        return chosen
    if isinstance(d, IntDistribution):
        return trial.suggest_int(parameter.name, d.low, d.high, step=d.step, log=d.log)
    assert isinstance(d, FloatDistribution)
    return trial.suggest_float(parameter.name, d.low, d.high, step=d.step, log=d.log)
