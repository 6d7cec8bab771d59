"""Error bounds: how wrong a classifier can be on unlabelled data of another distribution.

`evidence.py` holds what every method is given and returns, `losses.py` the surrogates that a critic is trained with,
`critics.py` linear critics, many at once, `discrepancy.py` the disagreement-discrepancy bound, `network_critic.py` a critic
that is a whole network; `confidence.py`, `transport.py` and `weighting.py` what it is compared with, `catalog.py` all of them
by name, `summary.py` how good they were where the truth is known.

Source: Rosenfeld, Garg, "(Almost) Provable Error Bounds Under Distribution Shift via Disagreement Discrepancy",
NeurIPS 2023, arXiv 2306.00312.
"""
