"""Classes of a user's own by import path, "package.module:Class": found in the working directory first."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_modules.errors import InputError

_NAME = r"[^\W\d]\w*(\.[^\W\d]\w*)*"


def is_import_path(name: str) -> bool:
    """Whether a name has the form package.module:Class."""
    return re.fullmatch(f"{_NAME}:{_NAME}", name) is not None


def import_folder(path: str) -> str | None:
    """The working directory if an import path's module lies in it; None: Python finds the module by itself."""
    here = os.getcwd()
    found = importlib.machinery.PathFinder.find_spec(re.split("[.:]", path)[0], [here])
    return None if found is None else here


def use_folder(folder: str) -> None:
    """Let Python find modules in a folder first and for good, as `python -m` does; a worker that runs elsewhere needs it."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


def find_class(path: str, folder: str | None) -> Callable[..., Any]:
    """Import a class, or a function that makes an object.

    Args:
        path: package.module:Class.
        folder: where its module lies, put into Python's search path; None: Python finds it by itself.

    Raises:
        InputError: there is no such module or class, or importing it fails.
    """
    if folder is not None:
        use_folder(folder)
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # the user's module can raise anything
        from lightning_modules.state_dicts import reason

        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            stem = module.removesuffix(".py")
            mend = f"write {stem}:{name}" if stem != module else "run from the folder that holds it"
            raise InputError(f"{path}: there is no module {error.name}; {mend}") from error
        raise InputError(f"{path}: importing {module} fails with {type(error).__name__} {reason(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), n=1)
            meant = f"; did you mean {close[0]!r}?" if close else "; give the name of a class or function in it"
            raise InputError(f"{path}: {module} has no {name!r}{meant}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{path}: is a {type(found).__name__}; give a class or a function that makes one")
    make: Callable[..., Any] = found
    return make


@dataclass(frozen=True)
class Arguments:
    """What a class or function takes by name.

    Args:
        defaults: by name; `inspect.Parameter.empty` for those that must be given.
        any_name: whether it takes other names too (**kwargs).
    """

    defaults: Mapping[str, Any]
    any_name: bool

    def takes(self, name: str) -> bool:
        """Whether it can be called with this name."""
        return name in self.defaults or self.any_name

    def needed(self, given: Iterable[str]) -> list[str]:
        """Names without a default that are not given."""
        return [n for n, default in self.defaults.items() if default is inspect.Parameter.empty and n not in given]


def arguments_of(make: Callable[..., Any], path: str) -> Arguments:
    """Read what a class or function takes.

    Raises:
        InputError: it does not tell, as some that are written in C.
    """
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError as error:
        raise InputError(f"{path}: does not tell its arguments; give a class or function written in Python") from error
    by_name = {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return Arguments(by_name, any(p.kind is p.VAR_KEYWORD for p in parameters))


def unknown_name(name: str, known: Iterable[str], owner: str, field: str) -> InputError:
    """The error for an argument that a class does not take; it suggests the nearest of those known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known) or 'none'}"
    return InputError(f"{field}: {owner} takes no {name!r}; {meant}")


def source_fingerprint(paths: Iterable[str], folder: str | None) -> str:
    """16 hexadecimal digits that change with the code of classes.

    Args:
        paths: their import paths.
        folder: where their modules lie. The code is that of these modules and of all that they import from this folder;
            of a class that Python finds elsewhere it is its own module.
    """
    digest = hashlib.sha256()
    for path in paths:
        module = path.partition(":")[0]
        sources = _sources(module, Path(folder)) if folder is not None else {}
        if module not in sources:
            file = importlib.import_module(module).__file__
            sources[module] = Path(file).read_bytes() if file is not None else b""
        for name in sorted(sources):
            digest.update(f"{path}\0{name}\0".encode() + hashlib.sha256(sources[name]).digest())
    return digest.hexdigest()[:16]


def _sources(module: str, folder: Path) -> dict[str, bytes]:
    """Source code of a module in a folder and of all that it imports from there, by module name."""
    found: dict[str, bytes] = {}
    names = [module]
    while names:
        parts = names.pop().split(".")
        for end in range(1, len(parts) + 1):  # importing a module imports the packages around it
            name, place = ".".join(parts[:end]), folder.joinpath(*parts[:end])
            package = place / "__init__.py"
            file = package if package.is_file() else place.with_name(f"{place.name}.py")
            if name not in found and file.is_file():
                found[name] = file.read_bytes()
                names += _imported(found[name], name if file == package else name.rpartition(".")[0])
    return found


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Names that a module's code imports, some of them perhaps not of modules but of what is in them."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:  # of a module that nobody has imported, or it would have been told
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            if node.level:
                base = importlib.util.resolve_name(base, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
