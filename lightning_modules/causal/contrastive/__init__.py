"""Contrastive interventional causal representation learning: latents and their graph from unknown single-node interventions.

`scm.py` simulates linear Gaussian causal models and knows their exact log-odds, `mixing.py` turns latents into what is observed,
`environments.py` holds one observational and d interventional data sets, `folder.py` reads a person's own, `losses.py` and
`networks.py` are the objective and the networks (stacked: K models at once), `module.py` the Lightning module and `data.py` its
data module for `shiftlab train`, `pack.py` trains many at once, `fits.py` one, and `recovery.py` says what was found. It is compared
with what `baselines.py` trains, the autoencoders of `autoencoders.py` among it, and `linear_disentanglement.py` solves. Coordinate t of an
encoding belongs to interventional environment t.

Source: Buchholz, Rajendran, Rosenfeld, Aragam, Schoelkopf, Ravikumar, "Learning Linear Causal Representations from Interventions
under General Nonlinear Mixing", NeurIPS 2023, arXiv 2306.02235.
"""
