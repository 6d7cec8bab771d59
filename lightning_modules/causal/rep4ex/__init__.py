"""Rep4Ex: effects of actions that were never taken, through a representation in which they act linearly.

Saengkyongam, Rosenfeld, Ravikumar, Pfister, Peters, "Identifying Representations for Intervention Extrapolation", ICLR 2024, arXiv
2310.04295. `statistics.py` has the linear invariance and the moment restriction, `module.py` the autoencoder that obeys it, `pack.py` many
of them trained at once, `control.py` the second stage, `extrapolation.py` both together, `tables.py` a person's own data, `scm.py`,
`sprites.py` and `data.py` simulated ones, `regression.py` the networks that regress.
"""
