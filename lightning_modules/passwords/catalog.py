"""The schemas by name."""

from __future__ import annotations

import difflib
import re

from lightning_modules.errors import InputError
from lightning_modules.passwords.direct import MentalHash, RunningSum, WordSum
from lightning_modules.passwords.hidden import SkipSum, TwoPass
from lightning_modules.passwords.own import load_schema
from lightning_modules.passwords.pointer import PointerSum
from lightning_modules.passwords.schemas import Schema

_PLAIN: dict[str, type[Schema]] = {kind.name: kind for kind in (WordSum, RunningSum, MentalHash, SkipSum)}
NAMES = (
    *_PLAIN,
    "two-pass-word-sum",
    "two-pass-running-sum",
    "two-pass-mental-hash",
    "pointer-sum-K1-K2-N",
)
"""Names that `make_schema` knows; K1, K2 and N stand for numbers."""


def make_schema(name: str) -> Schema:
    """Make a schema by its name, or from the YAML file of one's own (own.py says what stands there).

    Raises:
        InputError: there is none.
    """
    if name.endswith((".yaml", ".yml")):
        return load_schema(name)
    if name in _PLAIN:
        return _PLAIN[name]()
    if name.startswith("two-pass-") and name.removeprefix("two-pass-") in _PLAIN:
        return TwoPass(_PLAIN[name.removeprefix("two-pass-")]())
    if numbers := re.fullmatch(r"pointer-sum-(\d+)-(\d+)-(\d+)", name):
        return PointerSum(*map(int, numbers.groups()))
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(NAMES)}, or give a .yaml file"
    raise InputError(f"schema: no schema {name!r}; {hint}")
