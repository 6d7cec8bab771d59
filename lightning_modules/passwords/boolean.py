"""A schema as clauses, one literal a value of every unknown: the second solver, Glucose in python-sat."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations as pairs_of
from typing import Any

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.passwords.constraint import Outcome, Unknown, combinations
from lightning_modules.passwords.schemas import Value


class BooleanModel:
    """Builds clauses and solves them.

    Raises:
        InputError: python-sat is not installed.
    """

    def __init__(self) -> None:
        try:
            from pysat.solvers import Glucose4
        except ImportError:
            raise InputError("solver: python-sat is not installed; pip install 'shiftlab[passwords]'") from None
        self._solver_class = Glucose4
        self._clauses: list[list[int]] = []
        self._literals = 0

    def _new(self, values: Collection[int]) -> Unknown:
        """An unknown that takes exactly one of its values."""
        kept = tuple(sorted(set(values)))
        literals = list(range(self._literals + 1, self._literals + 1 + len(kept)))
        self._literals += len(kept)
        self._clauses.append(literals)
        self._clauses += [[-one, -other] for one, other in pairs_of(literals, 2)]
        return Unknown(dict(zip(kept, literals, strict=True)), kept)

    def unknown(self, values: int) -> Value:
        """A new unknown from 0 to values - 1."""
        return self._new(range(values))

    def all_different(self, values: Sequence[Value]) -> None:
        """Require unknowns to differ."""
        for one, other in pairs_of(values, 2):
            self._clauses += [[-one.variable[v], -other.variable[v]] for v in one.values if v in other.variable]

    def require(self, value: Value, allowed: Collection[int]) -> None:
        """Require a value to be one of those allowed."""
        if isinstance(value, Unknown):
            self._clauses.append([value.variable[v] for v in value.values if v in allowed])
        elif int(value) not in allowed:
            self._clauses.append([])

    def require_any(self, flags: Sequence[Value]) -> None:
        """Require one of several flags."""
        if not any(int(flag) for flag in flags if not isinstance(flag, Unknown)):
            self._clauses.append([flag.variable[1] for flag in flags if isinstance(flag, Unknown)])

    def add(self, terms: Sequence[Value], modulus: int) -> Value:
        """A sum modulo `modulus`, two terms at a time."""
        open_terms = [term for term in terms if isinstance(term, Unknown)]
        constant = sum(int(term) for term in terms if not isinstance(term, Unknown)) % modulus
        if not open_terms:
            return constant
        total = open_terms[0]
        for term in open_terms[1:]:
            total = self.apply(lambda x, y: (x + y) % modulus, total, term)
        if constant or total.values[-1] >= modulus:
            total = self.apply(lambda x: (x + constant) % modulus, total)
        return total

    def look(self, table: Any, index: Value) -> Value:
        """The entry of a table at an index."""
        if not isinstance(index, Unknown):
            return table[int(index)]
        reached = {i: table[i] for i in index.values}
        if all(not isinstance(entry, Unknown) for entry in reached.values()):
            return self.apply(lambda place: np.asarray(table)[place], index)
        result = self._new({v for e in reached.values() for v in (e.values if isinstance(e, Unknown) else (int(e),))})
        for i, entry in reached.items():
            here = -index.variable[i]
            if isinstance(entry, Unknown):
                self._clauses += [[here, -entry.variable[v], result.variable[v]] for v in entry.values]
            else:
                self._clauses.append([here, result.variable[int(entry)]])
        return result

    def apply(self, function: Callable[..., Any], *values: Value) -> Value:
        """A function of values, a clause a case."""
        domains = [value.values if isinstance(value, Unknown) else (int(value),) for value in values]
        cases, results = combinations(function, domains)
        if results.min() == results.max():
            return int(results[0])
        result = self._new(results.tolist())
        for case, outcome in zip(cases.tolist(), results.tolist(), strict=True):
            given = [-value.variable[v] for value, v in zip(values, case, strict=True) if isinstance(value, Unknown)]
            self._clauses.append([*given, result.variable[outcome]])
        return result

    def solve(self, key: Mapping[str, Sequence[Value]], limit: float) -> Outcome:
        """Search for at most `limit` conflicts."""
        if [] in self._clauses:
            return Outcome(False, {}, 0, math.nan)
        with self._solver_class(bootstrap_with=self._clauses) as solver:
            solver.conf_budget(int(limit))
            found = solver.solve_limited()
            true = set(solver.get_model() or ()) if found else set()
            conflicts = int(solver.accum_stats()["conflicts"])
        values = {
            name: [next((v for v in u.values if u.variable[v] in true), 0) for u in unknowns]
            for name, unknowns in key.items()
        }
        return Outcome(found, values if found else {}, conflicts, math.nan)
