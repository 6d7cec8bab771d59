"""A person's own schema: a small file of arithmetic over the letters' secret digits, read as data and never run as code.

    name: shifted-sum
    maps: {f: letters, g: permutation}     # letters or digits to digits, or a permutation of the digits; all secret
    digit: g(previous + f(letter))         # computed for every letter, taken modulo 10
    start: g(f(letter) + f(last))          # for the first letter, in place of `digit`; may be left out
    spoken: digit < 5                      # left out: every digit is spoken

Names: `letter`, `first`, `last` (0 to 25), `previous` (the digit before, 0 at first), `position` (from 1), `length`, `vowel` (1 for
a, e, i, o, u) and, in `spoken`, `digit`. There are whole numbers, + - * and // and % by a whole number, comparisons, and, or, not,
`x if y else z`, and the maps, whose argument is taken modulo 26 or 10.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.passwords.challenges import Challenge
from lightning_modules.passwords.schemas import Algebra, KeyMap, Schema, Step, Value

_NAMES = ("letter", "first", "last", "previous", "position", "length", "vowel")
_KINDS = {"letters": (26, False), "digits": (10, False), "permutation": (10, True)}
_LONGEST, _LARGEST = 300, 1000
_VOWELS = np.isin(np.arange(26), [0, 4, 8, 14, 20]).astype(np.int64)
_ARITHMETIC: dict[type[ast.operator], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[..., Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class OwnSchema(Schema):
    """A schema written as expressions (see the head of this file).

    Args:
        name: of the schema.
        maps: by name "letters", "digits" or "permutation".
        digit: the expression of a letter's digit.
        start: that of the first letter's; None takes `digit`.
        spoken: whether a digit is spoken; None speaks all.

    Raises:
        InputError: for what is not among the expressions above.
    """

    def __init__(
        self, name: str, maps: Mapping[str, str], digit: str, start: str | None = None, spoken: str | None = None
    ) -> None:
        if not isinstance(name, str) or not name:
            raise InputError(f"name: {name!r} is no name; give a short text")
        if not isinstance(maps, Mapping) or not maps:
            raise InputError("maps: none given; name at least one, e.g. maps: {f: letters}")
        for key, kind in maps.items():
            if not isinstance(key, str) or not key.isidentifier() or key in (*_NAMES, "digit"):
                raise InputError(f"maps: {key!r} cannot be a map's name; take a letter such as f")
            if kind not in _KINDS:
                raise InputError(f"maps: {key} is {kind!r}; write one of {', '.join(_KINDS)}")
        self.name = name
        self.maps = tuple(KeyMap(key, *_KINDS[kind]) for key, kind in maps.items())
        self._sizes = {part.name: part.size for part in self.maps}
        self._digit = self._parse("digit", digit)
        self._start = self._digit if start is None else self._parse("start", start)
        self._spoken = None if spoken is None else self._parse("spoken", spoken)

    def trace(self, algebra: Algebra, key: Mapping[str, Any], challenge: Sequence[Value]) -> Iterator[Step]:
        """Evaluate the expressions letter by letter."""
        names: dict[str, Value] = {
            "first": challenge[0],
            "last": challenge[-1],
            "length": len(challenge),
            "previous": 0,
        }
        for place, letter in enumerate(challenge):
            names |= {"letter": letter, "position": place + 1, "vowel": algebra.look(_VOWELS, letter)}
            expression = self._digit if place else self._start
            digit = algebra.add(_Evaluation(algebra, key, self._sizes, names).terms(expression, 10), 10)
            spoken: Value = True
            if self._spoken is not None:
                said = _Evaluation(algebra, key, self._sizes, {**names, "digit": digit}).value(self._spoken)
                spoken = algebra.apply(lambda value: value != 0, said)
            yield digit, spoken
            names["previous"] = digit

    def human_cost(self, challenge: Challenge) -> int:
        """Operations and look-ups of all expressions; the count is ours."""
        rest = len(self.codes(challenge)) - 1
        spoken = 0 if self._spoken is None else _operations(self._spoken)
        return _operations(self._start) + rest * _operations(self._digit) + (rest + 1) * spoken

    def response_digits(self, challenge: Challenge) -> float:
        """One a letter; where not all are spoken, the mean over 200 keys."""
        if self._spoken is None:
            return super().response_digits(challenge)
        rng = np.random.default_rng(0)
        return math.fsum(len(self.respond(self.keygen(rng), [challenge])[0]) for _ in range(200)) / 200

    def multiplicity(self, challenge: Challenge, response: str) -> float:
        """Not known."""
        return math.nan

    def _parse(self, field: str, text: object) -> ast.expr:
        """Read an expression and check every part of it against the whitelist."""
        if isinstance(text, int) and not isinstance(text, bool):
            text = str(text)
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise InputError(
                f"{field}: is no expression of up to {_LONGEST} characters; write e.g. previous + f(letter)"
            )
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise InputError(f"{field}: {text!r} cannot be read; write e.g. previous + f(letter)") from None
        names = {*_NAMES, "digit"} if field == "spoken" else set(_NAMES)
        for node in _parts(tree):
            if (wrong := self._wrong(node, names)) is not None:
                raise InputError(f"{field}: {text!r} has {wrong}")
        return tree

    def _wrong(self, node: ast.AST, names: set[str]) -> str | None:
        """Say what is not allowed about a node; None: nothing."""
        if isinstance(node, ast.Constant):
            if type(node.value) is not int or node.value > _LARGEST:
                return f"{node.value!r}; use whole numbers up to {_LARGEST}"
        elif isinstance(node, ast.Name):
            if node.id not in names:
                return f"the name {node.id!r}; the names are {', '.join(sorted(names))}"
        elif isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in self._sizes:
                return f"a call of something else than its maps; the maps are {', '.join(self._sizes)}"
            if len(node.args) != 1 or node.keywords or isinstance(node.args[0], ast.Starred):
                return f"{node.func.id} without one argument; write e.g. {node.func.id}(letter)"
        elif isinstance(node, ast.BinOp):
            if type(node.op) not in _ARITHMETIC:
                return f"the operator {type(node.op).__name__}; use + - * // %"
            if isinstance(node.op, ast.FloorDiv | ast.Mod) and not (
                isinstance(node.right, ast.Constant) and type(node.right.value) is int and node.right.value > 0
            ):
                return "// or % by something else than a whole number above 0; write e.g. % 10"
        elif isinstance(node, ast.UnaryOp):
            if not isinstance(node.op, ast.USub | ast.Not):
                return f"the operator {type(node.op).__name__}; use - or not"
        elif isinstance(node, ast.Compare):
            if len(node.ops) != 1 or type(node.ops[0]) not in _COMPARISONS:
                return "a comparison that is none of < <= > >= == !=; write one at a time"
        elif not isinstance(node, ast.BoolOp | ast.IfExp):
            return f"a part that is no arithmetic ({type(node).__name__}); see the guide for what there is"
        return None


def load_schema(path: str | Path) -> OwnSchema:
    """Read an `OwnSchema` from a YAML file.

    Raises:
        InputError: the file cannot be read or has something else in it.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"schema: {path} cannot be read ({getattr(error, 'strerror', None) or 'no text'}); give a YAML file"
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"schema: {path} is no YAML ({' '.join(str(error).split())[:120]}); mend it") from None
    known = ("name", "maps", "digit", "start", "spoken")
    if not isinstance(content, dict) or not {"maps", "digit"} <= set(content):
        raise InputError(
            f"schema: {path} lacks maps or digit; write both, e.g. maps: {{f: letters}} and digit: previous + f(letter)"
        )
    if extra := [name for name in content if name not in known]:
        raise InputError(f"schema: {path} has a field {extra[0]!r}; the fields are {', '.join(known)}")
    try:
        return OwnSchema(**{"name": Path(path).stem, **content})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _parts(node: ast.expr) -> Iterator[ast.AST]:
    """A node and all below it that stand for values."""
    yield node
    children = node.args if isinstance(node, ast.Call) else list(ast.iter_child_nodes(node))
    for child in children:
        if not isinstance(child, ast.operator | ast.unaryop | ast.cmpop | ast.boolop | ast.expr_context):
            yield from _parts(child)  # type: ignore[arg-type]


def _operations(node: ast.expr) -> int:
    return sum(isinstance(part, ast.BinOp | ast.Call | ast.Compare | ast.BoolOp | ast.IfExp) for part in _parts(node))


class _Evaluation:
    """Evaluates a checked expression in an algebra."""

    def __init__(
        self, algebra: Algebra, key: Mapping[str, Any], sizes: Mapping[str, int], names: Mapping[str, Value]
    ) -> None:
        self._algebra, self._key, self._sizes, self._names = algebra, key, sizes, names

    def terms(self, node: ast.expr, modulus: int) -> list[Value]:
        """Values that sum to the expression modulo `modulus`: a sum needs no values beyond it."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.terms(node.left, modulus) + self.terms(node.right, modulus)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
            less = [self._algebra.apply(lambda x: -x % modulus, term) for term in self.terms(node.right, modulus)]
            return self.terms(node.left, modulus) + less
        return [self._algebra.apply(lambda x: x % modulus, self.value(node))]

    def value(self, node: ast.expr) -> Value:
        """The expression's value."""
        apply = self._algebra.apply
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.Name(id=name):
                return self._names[name]
            case ast.Call(func=ast.Name(id=name), args=[argument]):
                size = self._sizes[name]
                return self._algebra.look(self._key[name], self._algebra.add(self.terms(argument, size), size))
            case ast.BinOp(left=left, op=op, right=right):
                return apply(_ARITHMETIC[type(op)], self.value(left), self.value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return apply(operator.neg, self.value(operand))
            case ast.UnaryOp(operand=operand):
                return apply(lambda x: x == 0, self.value(operand))
            case ast.Compare(left=left, ops=[compare], comparators=[right]):
                return apply(_COMPARISONS[type(compare)], self.value(left), self.value(right))
            case ast.BoolOp(op=op, values=values):
                found = self.value(values[0])
                for other in values[1:]:
                    found = apply(_both if isinstance(op, ast.And) else _either, found, self.value(other))
                return found
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return apply(lambda c, x, y: np.where(c != 0, x, y), *map(self.value, (test, body, orelse)))
        raise AssertionError(f"{ast.dump(node)} passed the whitelist")


def _both(x: Value, y: Value) -> Value:
    return (x != 0) & (y != 0)


def _either(x: Value, y: Value) -> Value:
    return (x != 0) | (y != 0)
