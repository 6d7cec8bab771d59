"""Names and settings that the cells, claims and figures share."""

_NAME = "interventional_crl"
EXACT, CLOSED, LINEAR, NETWORK, HARDER, OVERFIT = (
    f"{_NAME}/{part}"
    for part in ("exact", "closed-forms", "linear-mixing", "network-mixing", "narrow-network-mixing", "overfitting")
)
BROKEN, BALLS, SIZES, NOISE, ORIGINAL, LEARNING = (
    f"{_NAME}/{part}" for part in ("broken", "balls", "sizes", "noise", "original-protocol", "learning-rates")
)

CONTRASTIVE, LINEAR_ENCODER, FREE_HEAD, VAE, GRAPH_VAE, PCA = (
    "contrastive",
    "linear encoder",
    "unstructured head",
    "VAE",
    "VAE with a graph",
    "principal components",
)
LBFGS = "lbfgs"
COVARIANCES, SHIFTS = "linear disentanglement", "linear, by shifts"
"""Closed forms for linear mixings: Squires et al.'s from covariances, and ours from means too."""
CODE = "contrast on a VAE's code"
METHODS = (CONTRASTIVE, LINEAR_ENCODER, FREE_HEAD, VAE, GRAPH_VAE, COVARIANCES, SHIFTS, PCA)
"""Compared under the network mixing."""

NO_INTERVENTION, ZERO_SHIFT, SHUFFLED, REORDERED = "no intervention", "zero shift", "shuffled", "reordered"
ORDER = (3, 0, 4, 1, 2)
"""The order in which environments are fed in one cell."""
NOISES = ("laplace", "exponential", "gumbel", "uniform")
SETTINGS = ((5, 1.0, 20), (5, 2.0, 20), (10, 1.0, 20), (10, 2.0, 20), (10, 2.0, 100), (10, 4.0, 100))
"""(d, average degree, dx) of the paper scale."""
PACK = 5
"""Seeds that train as one pack, in one cell."""
