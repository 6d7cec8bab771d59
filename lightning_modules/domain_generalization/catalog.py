"""Finds methods by name: GroupDRO is the class of that name in group_dro.py; a user's own is named "module:Class"."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING

import lightning_modules.domain_generalization as family
from lightning_modules.errors import InputError
from lightning_modules.imports import find_class, import_folder, is_import_path

if TYPE_CHECKING:
    from lightning_modules.domain_generalization.method import Method


def check_method_name(name: str) -> None:
    """Raise InputError for a name no method can have; fast, because it imports a method only to explain the error."""
    if name.lower() not in {stem.replace("_", "") for stem in _files()}:
        find_method(name)


def find_method(name: str) -> type[Method]:
    """Return the method's class; imports its file only.

    Args:
        name: of a method here, or the import path "package.module:Class" of a user's own.

    Raises:
        InputError: for an unknown name; it suggests the nearest. For an import path to something that is no method.
    """
    if is_import_path(name):
        return _import_method(name)
    for stem in _files():
        if stem.replace("_", "") == name.lower() and (method := _load(stem)) is not None and method.__name__ == name:
            return method
    names = list(all_methods())
    close = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1)
    nearest = next((n for n in names if close and n.lower() == close[0]), None)
    hint = f"did you mean {nearest!r}?" if nearest else f"choose from {', '.join(names)}"
    raise InputError(f"methods: unknown method {name!r}; {hint}")


def check_method_network(method: type[Method], network: str) -> None:
    """Raise InputError for a network that the method cannot train."""
    if network not in method.networks:
        raise InputError(
            f"network: {method.__name__} cannot train {network!r}; give it one of {', '.join(method.networks)} "
            "(--hyperparameters.network)"
        )


def all_methods() -> dict[str, type[Method]]:
    """Every method by name, ERM first, the others in alphabetical order."""
    methods = [method for stem in _files() if (method := _load(stem)) is not None]
    return {m.__name__: m for m in sorted(methods, key=lambda m: (m.__name__ != "ERM", m.__name__.lower()))}


def _import_method(path: str) -> type[Method]:
    from lightning_modules.domain_generalization.method import Hyperparameters, Method

    found = find_class(path, import_folder(path))
    home = Method.__module__
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise InputError(f"methods: {path} is no method; derive its class from {home}.Method")
    if not (found.gives("objective") or found.gives("update")):
        raise InputError(f"methods: {path} has neither objective nor update; give it one of them")
    kind: object = found.Hyperparameters
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    missing = [field.name for field in dataclasses.fields(Hyperparameters) if field.name not in fields]
    if missing:
        raise InputError(
            f"methods: the Hyperparameters of {path} have no {', '.join(missing)}; derive them, a frozen dataclass, from "
            f"{home}.Hyperparameters"
        )
    return found


def _files() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(family.__path__)]


def _load(stem: str) -> type[Method] | None:
    """The class in a file whose name is the file's without underscores, if it is a method."""
    from lightning_modules.domain_generalization.method import Method

    module = importlib.import_module(f"{family.__name__}.{stem}")
    for name, value in vars(module).items():
        if name.lower() == stem.replace("_", "") and isinstance(value, type) and issubclass(value, Method):
            return value if value is not Method else None
    return None
