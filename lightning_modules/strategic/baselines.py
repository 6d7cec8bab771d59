"""What minimax training is compared with: the same hinge, trained against another cost or none, with another penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lightning_modules.strategic.cost_sets import CostSet
from lightning_modules.strategic.costs import Array, Cost
from lightning_modules.strategic.solvers import Problems

Lam = float | Literal["tau_plus"]


@dataclass(frozen=True)
class Arm:
    """One way to train: against the worst of some costs, with a penalty.

    Args:
        costs: J of them.
        lam: weight of the dual-norm regularisation, or "tau_plus" for the share of positives.
        l2: weight of (l2 / 2) ||w||^2.
    """

    costs: Sequence[Cost]
    lam: Lam = 0.0
    l2: float = 0.0


def arms(uncertainty: CostSet, nominal: Cost, l2: float = 0.01) -> dict[str, Arm]:
    """Name the ways to train when the cost is one of a set with extremes that depend on no weights.

    Args:
        uncertainty: the set of possible costs, two of which are enough to train against, e.g. an `EigenvalueBox`.
        nominal: the cost that is believed in.
        l2: penalty of the arm "l2".

    Returns:
        naive (as if nobody moved), l2 (naive with that penalty), nominal, costliest and cheapest (against that cost
        alone) and minimax; the last four also with a dual-norm penalty: NAME_tau at the share of positives, and
        minimax_0.05.
    """
    costliest, cheapest = uncertainty.training_costs()
    known: Any = nominal
    nobody = [replace(known, budget=0.0)] * 2  # twice, as problems solved side by side have equally many costs
    against = {
        "nominal": [nominal] * 2,
        "costliest": [costliest] * 2,
        "cheapest": [cheapest] * 2,
        "minimax": [costliest, cheapest],
    }
    found = {"naive": Arm(nobody), "l2": Arm(nobody, l2=l2)}
    found |= {name: Arm(costs) for name, costs in against.items()}
    found |= {f"{name}_tau": Arm(costs, "tau_plus") for name, costs in against.items()}
    return found | {"minimax_0.05": Arm(against["minimax"], 0.05)}


def problems(inputs: Array, y: Array, chosen: Mapping[str, Arm], radius: float = 10.0) -> Problems:
    """Set up one problem an arm on the same examples, to be solved side by side.

    Args:
        inputs: [n, d].
        y: [n] -1 and +1.
        chosen: the arms, of equally many costs each.
        radius: bound on ||w||_2 and |b|.

    Raises:
        InputError: shapes that do not fit, or arms with different numbers of costs.
    """
    share = float((y > 0).mean())
    lam = np.array([share if arm.lam == "tau_plus" else arm.lam for arm in chosen.values()], np.float64)
    l2 = np.array([arm.l2 for arm in chosen.values()])
    return Problems(inputs, np.asarray(y, np.float64), [list(a.costs) for a in chosen.values()], lam, radius, l2)
