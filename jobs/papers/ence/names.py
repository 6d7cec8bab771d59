"""Names and settings that the cells, claims and figures share."""

VALUES, DESCENT, FLATNESS, GRID = "ence/values", "ence/descent", "ence/flatness", "ence/grid"
ROTATED, CENTRED, RATES = "ence/rotated", "ence/centred", "ence/rates"
COVARIANCE, SEPARABLE, CURVES, ENERGY = "ence/covariance", "ence/separable", "ence/curves", "ence/energy"

METHODS = (("nce", "gd"), ("nce", "ngd"), ("ence", "gd"), ("ence", "ngd"))
"""(loss, optimizer) of the paper."""
COLOURS = {
    ("nce", "gd"): "#cc79a7",
    ("nce", "ngd"): "#d55e00",
    ("ence", "gd"): "#56b4e9",
    ("ence", "ngd"): "#0072b2",
    ("nce", "adam"): "#e69f00",
    ("ence", "adam"): "#009e73",
}

RUNS: tuple[tuple[str, str, float, str, int], ...] = (
    ("nce", "gd", 1.0, "2 3 4 5", 30_000),
    ("nce", "gd", 1.0, "16", 5_000),
    ("ence", "gd", 1.0, "2 3 4 5", 30_000),
    ("ence", "ngd", 0.1, "2 4 8 16", 20_000),
    ("nce", "ngd", 0.1, "2 4 8", 8_000),
    ("ence", "ngd", 0.3, "6", 5_000),
    ("nce", "newton", 1.0, "4 16", 200),
    ("ence", "newton", 1.0, "4 16", 200),
    ("nce", "adam", 0.1, "2 4 8 16", 20_000),
    ("ence", "adam", 0.1, "2 4 8 16", 20_000),
    ("ence", "gd_log", 0.1, "2 4 8 16", 20_000),
)
"""(loss, optimizer, lr, distances R, updates at most), all problems with the noise's mean at 0."""
LONG_RUNS = (
    ("ence", "ngd", 0.1, "24 32", 400_000),
    ("nce", "ngd", 0.1, "12 16", 400_000),
    ("nce", "gd", 1.0, "6", 400_000),
)
DISTANCES = "1 2 4 6 8 12 16 24 32"
SWEPT = {
    "gd": "0.1 0.3 1 3 10 30 100 1000 10000 100000",
    "gd_log": "0.01 0.03 0.1 0.3 1 3",
    "ngd": "0.01 0.03 0.1 0.3 1",
    "adam": "0.01 0.03 0.1 0.3 1",
}
TIMES = (10, 30, 100, 200, 400)
TRAINED: tuple[tuple[str, str, float], ...] = (
    ("ence", "gd", 0.1),
    ("ence", "gd", 0.3),
    ("ence", "gd", 0.6),
    ("ence", "ngd", 0.01),
    ("ence", "ngd", 0.03),
    ("ence", "ngd", 0.1),
    ("nce", "gd", 0.6),
    ("nce", "gd", 1.0),
    ("nce", "ngd", 0.03),
    ("nce", "ngd", 0.1),
)
"""(loss, optimizer, lr) of energy networks."""
