"""A schema in OR-Tools CP-SAT: whole numbers, one carry a sum, `element` for what is looked up at an unknown place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.passwords.schemas import Value


@dataclass(frozen=True)
class Unknown:
    """An unknown of a solver: its variable (or literals), and the values that it can take, sorted."""

    variable: Any
    values: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """What a solver said.

    Args:
        found: True: a solution; False: there is none; None: not decided within the limit.
        key: by map the values of the solution; empty without one.
        conflicts: of the search.
        deterministic_time: CP-SAT's count of its work, in its own seconds; NaN where a solver has none.
    """

    found: bool | None
    key: dict[str, list[int]]
    conflicts: int
    deterministic_time: float


def combinations(function: Callable[..., Any], domains: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """All combinations [n, k] of values, and the function's values [n].

    Raises:
        InputError: there are too many for a model.
    """
    total = int(np.prod([len(domain) for domain in domains]))
    if total > 100_000:
        raise InputError(f"schema: an expression has {total:,} cases, too many to solve; take % 10 of its parts")
    grids = [grid.ravel() for grid in np.meshgrid(*map(np.array, domains), indexing="ij")]
    return np.stack(grids, 1), np.asarray(function(*grids)).astype(np.int64)


def as_number(value: Value) -> int | None:
    """A constant as int; None for an unknown."""
    return None if isinstance(value, Unknown) else int(value)


class ConstraintModel:
    """Builds and solves a CP-SAT model.

    Raises:
        InputError: OR-Tools is not installed.
    """

    def __init__(self) -> None:
        try:
            from ortools.sat.python import cp_model
        except ImportError:
            raise InputError("solver: OR-Tools is not installed; pip install 'shiftlab[passwords]'") from None
        self._library, self._model = cp_model, cp_model.CpModel()

    def _new(self, values: Collection[int]) -> Unknown:
        kept = tuple(sorted(set(values)))
        domain = self._library.Domain.from_values(list(kept))
        return Unknown(self._model.new_int_var_from_domain(domain, ""), kept)

    def unknown(self, values: int) -> Value:
        """A new unknown from 0 to values - 1."""
        return self._new(range(values))

    def all_different(self, values: Sequence[Value]) -> None:
        """Require unknowns to differ."""
        self._model.add_all_different([value.variable for value in values])

    def require(self, value: Value, allowed: Collection[int]) -> None:
        """Require a value to be one of those allowed."""
        if isinstance(value, Unknown):
            self._model.add_linear_expression_in_domain(value.variable, self._library.Domain.from_values(list(allowed)))
        elif int(value) not in allowed:
            self._model.add_bool_or([])

    def require_any(self, flags: Sequence[Value]) -> None:
        """Require one of several flags."""
        constants = [value for value in map(as_number, flags) if value is not None]
        if not any(constants):
            self._model.add(sum(flag.variable for flag in flags if isinstance(flag, Unknown)) >= 1)

    def add(self, terms: Sequence[Value], modulus: int) -> Value:
        """A sum of numbers from 0 on, modulo `modulus`: sum = modulus * carry + result."""
        open_terms = [term for term in terms if isinstance(term, Unknown)]
        constant = sum(int(term) for term in terms if not isinstance(term, Unknown)) % modulus
        if not open_terms:
            return constant
        most = constant + sum(term.values[-1] for term in open_terms)
        if len(open_terms) == 1 and not constant and most < modulus:
            return open_terms[0]
        result, carry = self._new(range(modulus)), self._new(range(most // modulus + 1))
        self._model.add(
            sum(term.variable for term in open_terms) + constant == modulus * carry.variable + result.variable
        )
        return result

    def look(self, table: Any, index: Value) -> Value:
        """The entry of a table at an index."""
        if not isinstance(index, Unknown):
            return table[int(index)]
        if all(not isinstance(entry, Unknown) for entry in table):
            return self.apply(lambda place: np.asarray(table)[place], index)
        reached = [table[i] for i in index.values]
        result = self._new({v for e in reached for v in (e.values if isinstance(e, Unknown) else (int(e),))})
        entries = [entry.variable if isinstance(entry, Unknown) else int(entry) for entry in table]
        self._model.add_element(index.variable, entries, result.variable)
        return result

    def apply(self, function: Callable[..., Any], *values: Value) -> Value:
        """A function of values, as the table of its cases."""
        open_values = [value for value in values if isinstance(value, Unknown)]
        domains = [value.values if isinstance(value, Unknown) else (int(value),) for value in values]
        cases, results = combinations(function, domains)
        if results.min() == results.max():
            return int(results[0])
        result = self._new(results.tolist())
        chosen = [i for i, value in enumerate(values) if isinstance(value, Unknown)]
        rows = np.column_stack([cases[:, chosen], results]).tolist()
        self._model.add_allowed_assignments([*(value.variable for value in open_values), result.variable], rows)
        return result

    def solve(self, key: Mapping[str, Sequence[Value]], limit: float) -> Outcome:
        """Search with one worker for at most `limit` of CP-SAT's deterministic seconds."""
        solver = self._library.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.max_deterministic_time = limit
        solver.parameters.random_seed = 0
        # Sums modulo 10 have no linear relaxation worth its time: clauses alone search about twice as fast.
        solver.parameters.linearization_level = 0
        status = solver.solve(self._model)
        found = {self._library.OPTIMAL: True, self._library.FEASIBLE: True, self._library.INFEASIBLE: False}.get(status)
        if status == self._library.MODEL_INVALID:
            raise AssertionError(f"CP-SAT refuses the model: {self._model.validate()}")
        values = {m: [solver.value(u.variable) for u in unknowns] for m, unknowns in key.items()} if found else {}
        proto = solver.response_proto
        return Outcome(found, values, solver.num_conflicts, proto.deterministic_time)
