"""Names and sizes that cells, claims and figures share."""

from __future__ import annotations

_PAPER = "opposing_signals"
LINEAR, SIMULATED, EDGE = f"{_PAPER}/linear", f"{_PAPER}/simulated", f"{_PAPER}/edge"
PRODUCTS, RESCALED = f"{_PAPER}/products", f"{_PAPER}/rescaled"
PLANTED, NATURAL, OPTIMIZERS = f"{_PAPER}/planted", f"{_PAPER}/natural", f"{_PAPER}/optimizers"

BETAS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""|beta| of the linear model."""
FACTORS = (0.6, 0.9, 1.1, 1.3, 1.6, 2.0)
"""Step sizes of the linear model, over 2 / its flow's final sharpness."""
MODES = ("opposing", "same", "none")
RATES: dict[str, tuple[tuple[str, float], ...]] = {
    "SGD": (("0", 0.05), ("0", 0.1), ("0", 0.2), ("0", 0.5), ("0.9", 0.03), ("0.9", 0.1), ("0.9", 0.2), ("0.9", 0.3)),
    "Adam": (("", 1e-3), ("", 3e-3), ("", 1e-2)),
    "sign-SGD": (("0", 3e-4), ("0", 1e-3), ("0.9", 3e-4)),
    "SplitSGD": (("0.001", 0.5), ("0.003", 0.5), ("0.001", 1.0), ("0.003", 1.0)),
}
"""By optimizer: momentum (of SplitSGD the length of a sign step) and step size of every run that is tried."""

CROSSED, LATE, SETTLED = 30, 100, 250
"""Steps after which sharpness has crossed 2 / eta, groups oppose each other, and it stays there."""
FOLLOWED = 100
"""Steps for which groups that one step chose are followed."""
SCORED = (100, 200, 300, 400)
"""Steps at which other selectors choose too."""
MOVED = 0.01
"""Change of a planted group's mean loss above which a step moves it."""
A, B = "planted A", "planted B"
