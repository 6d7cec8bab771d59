"""Causal representation learning: latent causes from what is observed under interventions.

`metrics.py` says how well latents and graphs were found; `rep4ex/` learns a representation with which effects of unseen
interventions are extrapolated.
"""
