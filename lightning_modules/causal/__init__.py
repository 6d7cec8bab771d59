"""Causal representation learning: latent causes from what is observed under interventions.

`metrics.py` says how well latents and graphs were found; `contrastive/` identifies linear causal models under nonlinear mixing
from unknown single-node interventions; `rep4ex/` learns a representation with which effects of unseen interventions are
extrapolated.
"""
