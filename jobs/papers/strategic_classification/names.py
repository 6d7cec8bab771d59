"""Names and settings that the cells, claims and figures share."""

TWO_POINT, GAUSSIAN, CANCER = (
    "strategic_classification/two-point",
    "strategic_classification/gaussian",
    "strategic_classification/breast-cancer",
)
RATE, CONVEXITY, ADVERSARY = (
    "strategic_classification/rate",
    "strategic_classification/convexity",
    "strategic_classification/adversary",
)

POINTS = ((0.1, 0.04), (0.1, 0.2), (0.01, 0.004))
"""(epsilon, half the distance) of the two-point example."""
ERRORS = (0.0, 0.25, 0.5, 0.75, 0.9)
WRONG = (1.0, 2**0.5, 2.0, 3.0, 4.0)
"""How many times as far as believed people may move, or as little."""
TIMES = (100, 400, 1600, 6400)
METHODS = (
    "naive",
    "l2",
    "costliest",
    "nominal",
    "nominal_tau",
    "cheapest",
    "minimax",
    "minimax_0.05",
    "minimax_tau",
    "stochastic",
)
