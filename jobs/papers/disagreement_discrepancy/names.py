"""Names that the cells, claims and figures share."""

DIGITS = "disagreement_discrepancy/digits"
CIRCLE = "disagreement_discrepancy/circle"
FLIGHTS = "disagreement_discrepancy/flights"
PUBLISHED = "disagreement_discrepancy/published"

DELTA = 0.01

SPACES = ("logits", "features", "pca:4", "pca:16")

BASELINES = ("AC", "DoC", "ATC-MC", "ATC-NE", "COT", "IW")

LOSSES = ("dis2", "one_minus_p", "neg_ce")

SHIFTS_OF_LOSSES = (
    "none",
    "rotate 30",
    "noise 0.4",
    "blur 2",
    "contrast 0.25",
    "translate 4",
    "patch 11",
    "zoom 1.5",
)
"""The eight shifts on which losses are compared."""
