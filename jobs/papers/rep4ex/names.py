"""Names and settings that the cells, claims and figures share."""

STATISTIC, TWO_STAGE, CURVE = "rep4ex/statistic", "rep4ex/two-stage", "rep4ex/curve"
ALPHA, VARIANTS, STUDY = "rep4ex/alpha", "rep4ex/variants", "rep4ex/study"
CONFOUNDING, ASSUMPTIONS, SPRITES = "rep4ex/confounding", "rep4ex/assumptions", "rep4ex/sprites"

GAMMAS = (0.2, 0.7, 1.2)
"""Half widths of the actions' support, one action."""
STRENGTHS = (0.0, 1.0, 2.0, 4.0)
"""alpha of the effect of actions on latents, two actions."""
MORE_STRENGTHS = (0.5, 8.0)
HIDDEN = (0.0, 0.5, 1.0, 2.0)
"""Strengths of confounding."""
NOISES, BENDS = (0.05, 0.2), (0.3, 1.0)
"""Noise in X and nonlinearity of A -> Z, either of which breaks an assumption."""
LAMBDAS, BANDWIDTHS = (1.0, 30.0, 300.0), (0.1, 0.3, 1.0)
VARIANT_NAMES = ("wide kernel", "not whitened", "u-statistic")

ORACLE, MMR, VANILLA = "true Z", "AE-MMR", "AE-Vanilla"
NO_CONTROL, MLP, OLS = "no control", "MLP on A", "OLS on A"
METHODS = (ORACLE, MMR, VANILLA, NO_CONTROL, MLP, OLS)
TRUTH = "truth"
REACH = 2.5
"""Actions of the curve are predicted between -2.5 and 2.5."""
