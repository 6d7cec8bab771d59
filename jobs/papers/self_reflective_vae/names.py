"""Names and settings that the cells, claims and figures share."""

CHAIN, SPLIT, RESTRICTED = "self_reflective_vae/chain", "self_reflective_vae/split", "self_reflective_vae/evidence"
TRAINED, BITS = "self_reflective_vae/trained", "self_reflective_vae/bits"
MNIST, SMALL_DIGITS, FULL = "self_reflective_vae/mnist", "self_reflective_vae/digits", "self_reflective_vae/full-mnist"
SWEEP, FLOW = "self_reflective_vae/sweep", "self_reflective_vae/flow"
DEPTH, MNIST_DEEP = "self_reflective_vae/depth", "self_reflective_vae/mnist-deep"

SPLITS = (1.5, 1.0, 0.5, 0.2, 0.0)
"""Parts c of z_{l-1} that the bijection adds; the prior adds 1 - c."""
VIEWS = (
    ("self_reflective", "all"),
    ("self_reflective", "from_previous"),
    ("self_reflective", "without_previous"),
    ("self_reflective", "previous_and_own"),
    ("self_reflective", "block"),
    ("independent", "all"),
)
"""(family, evidence) of posteriors."""
SAMPLES = (1, 10, 100, 1000)
"""Numbers of importance samples."""
MNIST_ARMS = ("self_reflective", "independent", "deep_latent_gaussian", "one_layer")
MORE_ARMS = ("ladder", "no_coupling", "independent_no_coupling", "identity", "block_evidence", "iaf")
DIGIT_ARMS = ("self_reflective", "independent", "no_coupling")
FULL_ARMS = ("self_reflective", "deep_latent_gaussian", "ladder", "iaf")
WORDS = {
    "self_reflective": "self-reflective",
    "independent": "independent posterior",
    "deep_latent_gaussian": "deep latent Gaussian",
    "one_layer": "one layer",
    "ladder": "ladder",
    "no_coupling": "no data coupling",
    "independent_no_coupling": "independent, no coupling",
    "identity": "z = eps",
    "block_evidence": "encoders see their block",
    "iaf": "one layer, IAF posterior",
}
DRAWN = 12
"""Samples of a model that are stored, as rows of bits."""
BITS_A_ROW = 28
