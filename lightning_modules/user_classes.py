"""A class of a user's own: what its constructor takes, with types, defaults, random laws and conditions."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping, Sequence
from types import NoneType
from typing import Any

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import annotations_of, build, conditions, search_space, typed
from lightning_modules.imports import Arguments, arguments_of, find_class
from lightning_modules.state_dicts import reason

REQUIRED = inspect.Parameter.empty
"""The default of a hyperparameter that has none."""


class UserClass:
    """A class found by import path. Its hyperparameters are plain values that its constructor takes by name.

    A dataclass `Hyperparameters` in the class, where it has one, gives their annotations and defaults; otherwise the
    constructor itself does.

    Args:
        path: package.module:Class.
        folder: where it is imported from; None: Python finds it by itself.
        base: what it must derive from: LightningModule or LightningDataModule.

    Attributes:
        defaults: by hyperparameter; `REQUIRED` for those that must be given.
        laws: random laws of those that have one.
        conditions: by hyperparameter, another one and its values under which the first matters.
        any_name: whether the constructor takes names that are not known (**kwargs).

    Raises:
        InputError: there is no such class, it is of another kind, or its hyperparameters contradict each other.
    """

    def __init__(self, path: str, folder: str | None, base: type[Any]) -> None:
        found = find_class(path, folder)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise InputError(f"{path}: is no {base.__name__}; derive its class from lightning.pytorch.{base.__name__}")
        self.path = path
        self._found: type[Any] = found
        self._base = base
        declared: Any = getattr(found, "Hyperparameters", None)
        known = isinstance(declared, type) and dataclasses.is_dataclass(declared)
        self._declared: type[Any] | None = declared if known else None
        inherited = self._found.__init__ is base.__init__  # takes anything, and does nothing with it
        arguments = Arguments({}, False) if inherited else arguments_of(found, path)
        source: type[Any] = self._declared or found
        try:
            self._annotations = annotations_of(found) | annotations_of(source)
            self.laws, self.conditions = search_space(source), conditions(source)
        except (NameError, TypeError) as error:
            raise InputError(f"{path}: its annotations cannot be read {reason(error)}; correct them") from error
        self.any_name = arguments.any_name and self._declared is None
        defaults = dict(arguments.defaults)
        for field in dataclasses.fields(source) if self._declared is not None else ():
            if not arguments.takes(field.name):
                raise InputError(
                    f"{path}: its __init__ does not take {field.name} of its Hyperparameters; add it there"
                )
            defaults[field.name] = REQUIRED if field.default is dataclasses.MISSING else field.default
        plain = (bool, int, float, str, NoneType)
        self.defaults = {k: v for k, v in defaults.items() if v is REQUIRED or isinstance(v, plain)}
        for name in self.laws:
            if name not in self.defaults:
                raise InputError(f"{path}: {name} has a random law, but its default is no plain value; give it another")

    def kind(self, name: str) -> type:
        """The type of a hyperparameter: the first of those annotated, or that of its default."""
        kind: Any = self._annotations.get(name, Any)
        while not isinstance(kind, type) and getattr(kind, "__args__", None):  # Annotated, a union, Literal
            parts = [kind.__origin__] if hasattr(kind, "__metadata__") else kind.__args__
            kind = next((part for part in parts if part is not NoneType), NoneType)
        if kind is Any:
            default = self.defaults[name]
            return float if default is REQUIRED or default is None else type(default)
        return kind if isinstance(kind, type) else type(kind)  # of a choice

    def typed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of some values that are hyperparameters of the class, as the types that they are annotated with.

        Raises:
            InputError: for a value of the wrong type, or that `Hyperparameters` refuses.
        """
        own = {}
        for name, value in values.items():
            if name in self.defaults:
                kind, default = self._annotations.get(name, Any), self.defaults[name]
                if kind is Any and default is not REQUIRED and default is not None:
                    number = isinstance(default, int | float) and not isinstance(default, bool)
                    kind = int | float if number else type(default)  # lr=1 may well mean a float
                unset = value is None and default is None  # width: int = None is wrong, and often written
                own[name] = None if unset else typed(name, value, kind, self.path)
        if self._declared is not None:
            fields = {field.name for field in dataclasses.fields(self._declared)}
            if all(name in own for name in fields if self.defaults.get(name) is REQUIRED):
                build(self._declared, {name: own[name] for name in fields & set(own)}, self.path)
        return own

    def arguments_among(self, values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
        """Those of some values that the constructor takes; of those that no class knows by name, all for its **kwargs."""
        return {k: v for k, v in values.items() if k in self.defaults or (self.any_name and k not in known)}

    def make(self, arguments: Mapping[str, Any]) -> Any:
        """Make an object.

        Raises:
            InputError: the constructor fails.
        """
        try:
            return self._found(**arguments)
        except Exception as error:  # the user's class can raise anything
            raise InputError(f"{self.path}: making it fails with {type(error).__name__} {reason(error)}") from error

    def require(self, hooks: Sequence[str], mend: str) -> None:
        """Check that the class gives some of its base class's hooks.

        Raises:
            InputError: naming the first that it does not.
        """
        for name in hooks:
            if getattr(self._found, name) is getattr(self._base, name):
                raise InputError(f"{self.path}: has no {name}; {mend}")
