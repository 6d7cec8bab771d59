"""Turns a dataclass of options into a command: parsing by jsonargparse, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.machinery
import json
import os
import re
import shlex
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jsonargparse

import cluster.errors
import lightning_modules.errors

INPUT_ERRORS = (cluster.errors.InputError, lightning_modules.errors.InputError)
"""What a person can cause and mend: shown as one line, exit code 2."""

Options = TypeVar("Options")

_OWN_PACKAGES = ("cluster", "jobs", "lightning_modules", "tuning")
_CLASS_PATH = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):[^\W\d]\w*(?:\.[^\W\d]\w*)*(?::.*)?")  # perhaps with options


def command(
    options: type[Options],
    run: Callable[[Options], int],
    argv: list[str] | None,
    *,
    prog: str,
    examples: str,
    positional: bool = False,
) -> int:
    """Parse a command line into `options`, run the job and return the exit code.

    Args:
        options: dataclass; its docstring's `Args:` become the help, its fields the options and the YAML keys.
        run: the job; returns 0 only if all that was asked for was done.
        argv: words after the command's name; None takes the process's own.
        prog: name shown in help and errors, e.g. "shiftlab sweep".
        examples: shown under the help.
        positional: whether required fields are positional arguments.

    Returns:
        The job's exit code; 2 for a wrong input, 130 after Ctrl-C, 1 for an unexpected error.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    try:
        return run(_parse(options, argv, prog, examples, positional))
    except INPUT_ERRORS as error:
        if debug:
            raise
        return _fail(prog, str(error), 2)
    except KeyboardInterrupt:
        return _fail(prog, "interrupted", 130)
    except Exception as error:
        if debug:
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(str(error).split())[:500]
        place = f"{where.filename.rsplit('/', 2)[-1]}:{where.lineno}"
        return _fail(prog, f"{type(error).__name__}: {reason} (at {place}; --debug shows the traceback)", 1)


def _fail(prog: str, message: str, code: int) -> int:
    print(f"{prog}: error: {message}", file=sys.stderr)
    return code


def _parse(options: type[Options], argv: list[str], prog: str, examples: str, positional: bool) -> Options:
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=(options.__doc__ or "").split("\n\n")[0],
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
        formatter_class=_Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    parser.add_argument(
        "--trust",
        type=list[str],
        default=[],
        help="Modules that a class path in --config may import, or all; shiftlab's own always may.",
    )
    parser.add_class_arguments(options, None, as_positional=positional)
    try:
        words = _gather_lists(options, argv)
        values = parser.parse_args(words)
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        raise cluster.errors.InputError(_explain(str(error), options)) from None
    names = {field.name for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    if values.config:
        refuse_imports([str(path) for path in values.config], argv, values.trust)
    return options(**{name: value for name, value in vars(values).items() if name in names})


def refuse_imports(files: Sequence[str], argv: Sequence[str], trusted: Sequence[str]) -> None:
    """Refuse class paths in YAML files: a file that somebody sent is data, and importing a module runs its code.

    Args:
        files: read already, so that they are known to be sound.
        argv: what was typed; a class path that stands there too is wanted.
        trusted: modules that may be imported, or "all".

    Raises:
        InputError: for a class path "module:Class" whose module exists and is neither shiftlab's nor trusted.
    """
    import yaml

    if "all" in trusted:
        return
    typed = {word.rpartition("=")[2] for word in argv}
    for file in files:
        with open(file) as stream:
            content = yaml.safe_load(stream)
        for field, value in _strings(content):
            found = _CLASS_PATH.fullmatch(value)
            if found is None or value in typed:
                continue
            top = found[1].split(".")[0]
            if top in _OWN_PACKAGES or {top, found[1]} & set(trusted):
                continue
            if importlib.machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path]) is not None:
                raise cluster.errors.InputError(
                    f"{field}: {value} in {file} would import the module {found[1]}; if you trust the file, add --trust {top}"
                )


def _strings(content: Any, field: str = "config") -> Iterator[tuple[str, str]]:
    """Every string in YAML, with the name of the field that it stands in."""
    if isinstance(content, str):
        yield field, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _strings(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value, field)


class _Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the examples' line breaks."""


def _gather_lists(options: type[Any], argv: list[str]) -> list[str]:
    """Turn `--methods ERM IRM` into `--methods ["ERM","IRM"]`, for every option that is a list.

    The words of a list may begin with one dash (an environment is called "-90%"); the next `--option` ends them. Given
    again it takes the place of the first list, or adds to it where the field's metadata say `repeatable`. A yes-or-no option without a
    value means yes.
    """
    hints = typing.get_type_hints(options) | {"trust": list[str]}
    flags = {f"--{name}" for name, hint in hints.items() if hint is bool}
    lists = {f"--{name}": found for name, hint in hints.items() if (found := _list_of(hint)) is not None}
    repeatable = {f"--{f.name}" for f in dataclasses.fields(options) if f.metadata.get("repeatable")}
    gathered: list[str] = []
    plain: dict[str, list[str]] = {}
    position = 0
    while position < len(argv):
        word, *inline = argv[position].split("=", 1) if argv[position].startswith("--") else [argv[position]]
        if word.startswith("--"):
            word = f"--{word[2:].replace('-', '_')}"  # --fail-above is --fail_above
        position += 1
        if word in flags and not inline and argv[position : position + 1] not in (["true"], ["false"]):
            inline = ["true"]
        if word not in lists:
            gathered.append("=".join([word, *inline]))
            continue
        words = list(inline)
        while position < len(argv) and not argv[position].startswith("--"):
            words.append(argv[position])
            position += 1
        if words == ["null"] and hints[word.removeprefix("--")] != lists[word]:
            value = "null"
        elif len(words) == 1 and words[0].startswith("["):
            value = words[0]
        else:
            words = plain[word] = [*(plain.get(word, []) if word in repeatable else []), *words]
            value = json.dumps(words) if typing.get_args(lists[word]) == (str,) else f"[{','.join(words)}]"
        gathered.append(f"{word}={value}")
    return gathered


def _list_of(hint: Any) -> Any:
    """The list among a type and None, or the type if it is a list; None otherwise."""
    parts = (hint, *typing.get_args(hint)) if type(None) in typing.get_args(hint) else (hint,)
    return next((part for part in parts if typing.get_origin(part) is list), None)


def _explain(message: str, options: type[Any]) -> str:
    """Make jsonargparse's message one line that names the field and the mend."""
    text = " ".join(message.split())
    names = [field.name for field in dataclasses.fields(options)]
    if unknown := re.search(r"Option '([^']+)' is not accepted|unrecognized arguments?: (\S+)", text, re.IGNORECASE):
        name = (unknown[1] or unknown[2]).lstrip("-").split("=")[0]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the options are {', '.join(names)}"
        return f"unknown option {name!r}; {hint}"
    if field := re.search(r'Parser key "([^"]+)": (.*)', text):
        return f"{field[1]}: {field[2]}"
    return text


def command_line(prog: str, options: Any) -> str:
    """Write options back as the command line that gives them: fields at their default left out, passwords of URLs too."""
    words = prog.split()
    # What every job can be told (keyword-only) comes last, as in the help.
    for field in sorted(dataclasses.fields(options), key=lambda field: bool(field.kw_only)):
        value = getattr(options, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if value == default:
            continue
        words.append(f"--{field.name}")
        if isinstance(value, list):
            words += [str(item) for item in value]
        elif isinstance(value, dict | bool) or value is None:
            words.append(json.dumps(value))
        else:
            words.append(re.sub(r"(://[^:/@\s]*):[^/@\s]*@", r"\1:PASSWORD@", str(value)))
    return shlex.join(words)


def versions() -> str:
    """Versions of what computes a result, as canonical JSON; nothing is imported to learn them."""
    import platform
    from importlib.metadata import version

    names = ("shiftlab", "torch", "lightning", "ray", "numpy", "optuna")
    found = {name: version(name) for name in names} | {"python": platform.python_version()}
    return json.dumps(found, sort_keys=True, separators=(",", ":"))
