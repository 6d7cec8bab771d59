"""When do invariance objectives find an invariant predictor? Exact risks, closed forms and counterexamples.

`population.py` computes risks of linear predictors under Gaussian features without sampling and minimises ERM, IRMv1,
V-REx and their kin on them, many problems at once; `linear.py` has IRM's closed form, the check of feasibility (on a
model or on one's own data) and full-batch training on samples; `nonlinear.py` has the representation that is nearly
feasible and fails. Source of all: Rosenfeld et al., "The Risks of Invariant Risk Minimization", arXiv 2010.05761.
"""
