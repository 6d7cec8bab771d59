"""The attack by a maintained solver: any schema, any key that is consistent, and proofs that a response is determined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_modules.errors import InputError
from lightning_modules.passwords.boolean import BooleanModel
from lightning_modules.passwords.challenges import Challenge, IntArray
from lightning_modules.passwords.constraint import ConstraintModel, Outcome
from lightning_modules.passwords.matching import part, tie
from lightning_modules.passwords.pairs import InconsistentPairs, Pair
from lightning_modules.passwords.schemas import Schema, check_response

Status = Literal["solved", "unsolved"]
_MODELS: dict[str, tuple[Callable[[], Any], float, str]] = {
    "cp-sat": (ConstraintModel, 10.0, "deterministic seconds"),
    "glucose": (BooleanModel, 50_000, "conflicts"),
}
SOLVERS = tuple(_MODELS)


@dataclass(frozen=True)
class AttackResult:
    """What a solver made of pairs.

    Args:
        status: "solved": `key` gives every response; "unsolved": the limit was reached, which does not mean secure.
        key: consistent with all pairs, one of possibly many; None if unsolved.
        conflicts: of the search.
        deterministic_time: CP-SAT's measure of its work; NaN for Glucose.
        limit: that the search had, in `unit`.
        unit: "deterministic seconds" or "conflicts".
    """

    status: Status
    key: dict[str, IntArray] | None
    conflicts: int
    deterministic_time: float
    limit: float
    unit: str


class ConstraintAttack:
    """Finds a key that is consistent with the pairs; its responses are the guess.

    Args:
        schema: any schema.
        limit: of one search: deterministic seconds of CP-SAT, conflicts of Glucose; None takes 10 or 50,000. Wall-clock limits would make results depend on what else the
            machine does.
        solver: "cp-sat" (OR-Tools) or "glucose" (python-sat).

    Attributes:
        history: results of the searches for what was asked so far, in order.

    Raises:
        InputError: for a limit that is not above 0, an unknown solver, or one that is not installed.
    """

    def __init__(self, schema: Schema, limit: float | None = None, solver: str = "cp-sat") -> None:
        if solver not in _MODELS:
            raise InputError(f"solver: {solver!r} is unknown; choose from {', '.join(SOLVERS)}")
        self._make, default, self.unit = _MODELS[solver]
        self.limit = default if limit is None else limit
        if not self.limit > 0:
            raise InputError(f"limit: {self.limit} is not above 0; give more {self.unit}")
        self.schema = schema
        self._pairs: list[Pair] = []
        self._latest: AttackResult | None = None
        self.history: list[AttackResult] = []
        self._make()  # says at once that a solver is missing

    def observe(self, challenge: Challenge, response: str) -> None:
        """Take in a leaked pair; it is solved for when something is asked."""
        self.schema.codes(challenge)
        check_response(response, challenge)
        self._pairs.append((challenge, response))
        self._latest = None

    @property
    def result(self) -> AttackResult:
        """What the solver makes of the pairs seen."""
        if self._latest is None:
            self._latest = self.solve(self._pairs)
            self.history.append(self._latest)
        return self._latest

    def predict_many(self, challenges: Sequence[Challenge]) -> list[str | None]:
        """Answer with a consistent key's responses, which may be wrong; None if it was not found within the limit."""
        if self.result.key is None:
            return [None] * len(challenges)
        return list(self.schema.respond(self.result.key, challenges))

    def solve(self, pairs: Sequence[Pair]) -> AttackResult:
        """Search a key that gives the responses of all pairs.

        Raises:
            InconsistentPairs: there is none.
            InputError: a challenge or response is none.
        """
        outcome = self._search(pairs)
        if outcome.found is False:
            raise self._first_contradiction(pairs)
        key = self.schema.check_key(outcome.key) if outcome.found else None
        status: Status = "unsolved" if key is None else "solved"
        return AttackResult(status, key, outcome.conflicts, outcome.deterministic_time, self.limit, self.unit)

    def consistent(self, pairs: Sequence[Pair], key: dict[str, Any] | None = None) -> bool | None:
        """Whether some key (or this one) gives all the responses; None if that is not decided within the limit."""
        return self._search(pairs, key=self.schema.check_key(key) if key is not None else None).found

    def determined(self, pairs: Sequence[Pair], challenge: Challenge, response: str) -> bool | None:
        """Whether every key that is consistent with the pairs gives this response to a challenge.

        Proven by asking for a key that gives another one; None if that is not decided within the limit.
        """
        check_response(response, challenge)
        outcome = self._search(pairs, other=(challenge, response))
        return None if outcome.found is None else not outcome.found

    def _search(
        self, pairs: Sequence[Pair], other: Pair | None = None, key: dict[str, IntArray] | None = None
    ) -> Outcome:
        model = self._make()
        # No hint, and unknowns in the order of the maps: nothing of the true key can leak into the search.
        unknowns: dict[str, list[Any]] = {m.name: [model.unknown(10) for _ in range(m.size)] for m in self.schema.maps}
        for part_of_key in self.schema.maps:
            if part_of_key.permutation:
                model.all_different(unknowns[part_of_key.name])
        for name, values in (key or {}).items():
            for unknown, value in zip(unknowns[name], values.tolist(), strict=True):
                model.require(unknown, (value,))
        for challenge, response in pairs:
            check_response(response, challenge)
            tie(model, self.schema.trace(model, unknowns, self.schema.codes(challenge)), response)
        if other is not None:
            part(model, self.schema.trace(model, unknowns, self.schema.codes(other[0])), other[1])
        outcome: Outcome = model.solve(unknowns, self.limit)
        return outcome

    def _first_contradiction(self, pairs: Sequence[Pair]) -> InconsistentPairs:
        """Find the first pair that leaves no key, by bisection; what the limit leaves open counts as consistent."""
        low, high = 0, len(pairs)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._search(pairs[:middle]).found is False else (middle, high)
        return InconsistentPairs(high, pairs[high - 1][0])
