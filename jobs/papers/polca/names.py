"""Names and settings that the cells, claims and figures share."""

IDENTITIES, PLANTED, INTERVALS = "polca/identities", "polca/planted_skill", "polca/intervals"
ADDITION, FULL, TEXT = "polca/addition", "polca/addition_full", "polca/text"

PLANTED_BASES = ("hessian", "shuffled", "pca", "random", "axis")
PLANTED_BASELINES = ("exact loss", "loss change", "fisher")
ORDERS = ("1", "trapezoid", "ratio", "exact")
ADDITION_BASES = ("hessian", "pca", "random", "axis")
SPACINGS = (1, 2, 5, 10, 20, 40)
"""Steps between records of the interval study."""
PLACES = ("1000s", "100s", "10s", "1s")
ELIGIBLE_SHARE = 0.85
"""Of a cluster's carry tokens that must sit in the 10s or 100s place: the 1000s digit IS the carry."""
FULL_TABLE = {
    "exact loss": (0.514, 0.0),
    "loss change": (0.524, 0.0),
    "fisher": (0.664, 0.284),
    "axis, order 1": (0.792, 0.019),
    "hessian, order 1": (0.948, 0.307),
    "hessian": (0.973, 0.355),
    "random": (0.902, 0.031),
    "shuffled": (0.856, 0.304),
}
"""Of the paper: largest carry homogeneity of an eligible cluster, and share of clusters that break after step 1,000."""
EXACT_ROWS, EXACT_INTERVALS, EXACT_DIRECTIONS = 100, 10, 5
"""Problems (of 4 tokens), intervals and directions on which the ratio is compared with the exact second order."""
