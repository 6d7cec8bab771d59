"""Names and settings that the cells, claims and figures share."""

from typing import Any

IN_WEIGHTS, HARDEST, FROZEN = (
    "geometric_memory/in_weights",
    "geometric_memory/hardest_token",
    "geometric_memory/frozen_control",
)
DIRECTION, PAUSES, TREES = (
    "geometric_memory/edge_direction",
    "geometric_memory/pauses",
    "geometric_memory/tree_stars",
)
EDGES_ONLY, IN_CONTEXT = "geometric_memory/edges_only", "geometric_memory/in_context"
NODE2VEC, TINY, COMPLEXITY = (
    "geometric_memory/node2vec",
    "geometric_memory/tiny_graphs",
    "geometric_memory/complexity",
)
LARGE = "geometric_memory/paper_sizes"

TRAINED = (IN_WEIGHTS, HARDEST, FROZEN, DIRECTION, PAUSES, TREES, EDGES_ONLY, LARGE)
"""Experiments that train `InWeightsModule`; the cell's settings are its arguments and those of its data."""

STAR: dict[str, Any] = {"arms": 100, "length": 5, "steps": 400}
"""The standard setting: what is not named here has the default of the module or its data."""
HEAT_MAPS = ((IN_WEIGHTS, "transformer"), (FROZEN, "transformer"))
"""Experiments whose seed 0 stores the cosines of held-out leaves and first nodes."""
CURVE_STEPS = 25
"""Between two measurements while a cell trains."""
PAUSE_COUNTS = (0, 4)
IN_CONTEXT_STEPS = 800

GRAPHS = ("cycle", "star", "grid", "irregular")
"""Cycle of 15, star of 4 arms of 5, grid of 4 by 4, and a fixed irregular graph of 16 nodes and 20 edges."""
MARKS = (2, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)
"""Updates after which Node2Vec's energies are stored, as far as a cell goes."""
STARTS = {"cycle": 3 / 15, "star": 4 / 17, "grid": 3 / 16}
SHARES = {"cycle": (0.999, "1.0000"), "star": (0.97, "0.984"), "grid": (0.98, "0.994")}
"""Least share of energy in the kept eigenvectors, and the prototype's."""

PAPER_STARS: tuple[tuple[int, int, int], ...] = ((5000, 5, 384), (10_000, 6, 384), (10_000, 10, 784))
"""(arms, length, width) of the paper's stars."""
PAPER_IN_CONTEXT = (2, 5, 10, 20)
"""Arms of the in-context stars of 5 nodes an arm."""
