"""Iterative feature matching: drop, round by round, the directions whose mean or covariance changes by environment.

moments.py: class-conditional moments and the penalty on their differences; exact.py: the rule for two environments a
round; linear.py: the gradient version for linear features; network.py: penalties trained together with a classifier, in
linear networks and in a deep one.
Source of all: Chen, Rosenfeld, Sellke, Ma & Risteski, "Iterative Feature Matching: Toward Provable Domain
Generalization with Logarithmic Environments", arXiv 2106.09913. No sweep method lives here.
"""
