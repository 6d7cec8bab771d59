"""The `shiftlab` command: finds the job and hands it the rest of the line. Imports nothing heavy, so help is instant."""

from __future__ import annotations

import difflib
import importlib
import sys

COMMANDS = {
    "sweep": "compare methods across environments: methods x held-out environments x draws x seeds",
    "tune": "an Optuna study of a method's hyperparameters, its trials on the cluster",
    "train": "one training run, measured on every environment, with its weights kept",
    "reproduce": "a paper's experiments, each claim beside the figure measured now",
    "certify": "what perturbation, or how many flipped training labels, each prediction provably survives",
    "bound": "how wrong a classifier can be on unlabelled data of another distribution",
    "shifts": "feature tables of shifted digits, to try `bound` on",
    "heads": "last layers on frozen features: are the features already good enough?",
    "featurize": "turn images, and captions beside them, into a feature table with pretrained encoders",
    "import-domainbed": "read finished DomainBed folders into a run",
    "passwords": "how many passwords of a schema that people run in the head may leak before the others are known",
    "methods": "the methods, their equations and hyperparameters",
    "report": "tables, CSV, LaTeX and report.html of a run",
    "query": "SQL on a run's tables",
    "submit": "run any of these commands as a job of a Ray cluster",
    "doctor": "check this machine and say what to mend",
}


def main(argv: list[str] | None = None) -> int:
    """Run `shiftlab COMMAND ...`; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("shiftlab"))
        return 0
    name = argv[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(COMMANDS)}"
        print(f"shiftlab: unknown command {name!r}; {hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"jobs.{name.replace('-', '_')}")
    return int(module.main(argv[1:]))


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    return f"""usage: shiftlab COMMAND [options]

Learning that must hold up: methods, sweeps and tables for distribution shift, on one laptop or a Ray cluster.

commands:
{commands}

`shiftlab COMMAND --help` shows a command's options and examples.

example:
  shiftlab sweep --dataset ColoredMNIST --methods ERM IRM --held_out each --steps 300 --run runs/first
  shiftlab report runs/first"""


if __name__ == "__main__":
    sys.exit(main())
