"""`shiftlab certify`: what perturbation, or how many flipped training labels, each prediction provably survives.

`smoothing.py` certifies any classifier against l2 perturbations, `labels.py` a linear classifier against flipped training
labels, `train.py` trains a classifier that certifies well, `log.py` reads and writes the field's per-example log. What
they store stands in `tables.py`; `jobs/report/certificates.py` shows it. The certificates themselves are computed in
`lightning_modules/certification`.
"""

from __future__ import annotations

import difflib
import importlib
import sys

COMMANDS = {
    "smoothing": ("smoothing", "l2 radii of any classifier, by randomized smoothing"),
    "labels": ("labels", "how many training labels may be flipped, for a linear classifier on features"),
    "train": ("train", "train a classifier on noisy examples, and save it for `certify smoothing`"),
    "export": ("log", "write a run's radii as the field's tab-separated log"),
    "import": ("log", "read such a log, e.g. a published one, into a run"),
}
"""Module and summary of each subcommand."""


def main(argv: list[str] | None = None) -> int:
    """Run `shiftlab certify SUBCOMMAND ...`; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        close = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(COMMANDS)}"
        print(f"shiftlab certify: error: unknown command {argv[0]!r}; {hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"jobs.certify.{COMMANDS[argv[0]][0]}")
    entry = {"export": "main_export", "import": "main_import"}.get(argv[0], "main")
    return int(getattr(module, entry)(argv[1:]))


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    return f"""usage: shiftlab certify COMMAND [options]

What perturbation, or how many flipped training labels, each prediction provably survives.

commands:
{commands}

`shiftlab certify COMMAND --help` shows a command's options and examples.

example:
  shiftlab certify train --data MNIST --sigma 0.5 --out runs/digits.ckpt
  shiftlab certify smoothing --model runs/digits.ckpt --data MNIST --sigma 0.5 --limit 200 --adaptive --run runs/certified"""
