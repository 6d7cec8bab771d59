"""`shiftlab methods`: every method with its equation, source and hyperparameters, read from the code itself."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from jobs.command import command

if TYPE_CHECKING:
    from lightning_modules.domain_generalization.method import Method

EXAMPLES = """
shiftlab methods
shiftlab methods --names IRM Fishr
shiftlab methods --format markdown > docs/methods.md
"""

_HEADER = """# Methods

Written by `shiftlab methods --format markdown` from the methods' own docstrings and hyperparameters. A new file in
`lightning_modules/domain_generalization/` appears here, in `shiftlab sweep --methods` and in the tests that run over
all methods.
"""


@dataclass
class Methods:
    """Show the methods: equation, source, hyperparameters with their defaults and random laws.

    Args:
        names: which ones; all if none is named.
        format: text for a terminal, markdown for docs/methods.md.
    """

    names: list[str] = field(default_factory=list)
    format: Literal["text", "markdown"] = "text"


def run(options: Methods) -> int:
    """Print them; returns 0."""
    from lightning_modules.domain_generalization.catalog import all_methods, find_method

    chosen = {name: find_method(name) for name in options.names} or all_methods()
    if options.format == "markdown":
        print(markdown(chosen), end="")
        return 0
    from rich.console import Console

    console = Console()
    for name, method in chosen.items():
        equation, source = describe(method)
        console.print(f"[bold]{name}[/]  ", end="")
        console.print(equation, markup=False, highlight=False)
        console.print(f"  {source}", style="dim", markup=False, highlight=False)
        for label, default, law in hyperparameters(method):
            console.print(f"  {label} = {default}" + (f"  ~ {law}" if law else ""), markup=False, highlight=False)
    return 0


def describe(method: type[Method]) -> tuple[str, str]:
    """Equation and source of a method: the first line and the "Source:" of its docstring, each as one line."""
    text = inspect.getdoc(method) or ""
    source = text.split("Source:")[1].strip().split("\n\n")[0] if "Source:" in text else ""
    return " ".join(text.split("\n\n")[0].split()), " ".join(source.split())


def hyperparameters(method: type[Method]) -> list[tuple[str, str, str]]:
    """Name, default and random law of each hyperparameter."""
    from lightning_modules.hyperparameters import search_space

    space = search_space(method.Hyperparameters)
    defaults = method.Hyperparameters()
    return [
        (f.name, _number(getattr(defaults, f.name)), _law(space.get(f.name)))
        for f in dataclasses.fields(method.Hyperparameters)
    ]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _law(law: Any) -> str:
    """Write a random law in a few words."""
    if law is None:
        return ""
    if hasattr(law, "values"):
        return "one of " + ", ".join(map(_number, law.values))
    words = {"Uniform": "uniform", "LogUniform": "log-uniform", "IntUniform": "integer, uniform"}
    kind = words.get(type(law).__name__, "integer, log-uniform")
    step = getattr(law, "step", None)
    return f"{kind} on {_number(float(law.low))} to {_number(float(law.high))}" + (
        f" in steps of {step:g}" if step else ""
    )


def markdown(methods: dict[str, type[Method]]) -> str:
    """Write the methods as a page."""
    from lightning_modules.domain_generalization.method import Hyperparameters
    from lightning_modules.networks import NETWORKS

    shared = {f.name for f in dataclasses.fields(Hyperparameters)}
    lines = [_HEADER, "| method | what a step minimises or does | source |", "| --- | --- | --- |"]
    for name, method in methods.items():
        equation, source = (text.replace("|", "\\|") for text in describe(method))
        lines.append(f"| [{name}](#{name.lower()}) | {equation} | {source} |")
    base = next(iter(methods.values()))
    lines += ["", "## Hyperparameters of every method", "", *_table(hyperparameters(base), lambda name: name in shared)]
    for name, method in methods.items():
        lines += ["", f"## {name}", ""]
        networks = "" if set(method.networks) == set(NETWORKS) else f" Networks: {', '.join(method.networks)}."
        least = method.minimum_environments
        lines.append(f"Training environments: {least} or more.{networks}")
        if any(f[0] not in shared for f in hyperparameters(method)):
            lines += ["", *_table(hyperparameters(method), lambda name: name not in shared)]
    return "\n".join(lines) + "\n"


def _table(rows: list[tuple[str, str, str]], keep: Any) -> list[str]:
    body = [f"| `{name}` | {default} | {law} |" for name, default, law in rows if keep(name)]
    return ["| hyperparameter | default | random law |", "| --- | --- | --- |", *body]


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Methods, run, argv, prog="shiftlab methods", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
