"""Generative models: the self-reflective variational autoencoder and what it is compared with.

`module.py` holds the LightningModules that `shiftlab train` takes by import path, `data.py` their LightningDataModules.
`hierarchy.py` holds the hierarchy itself and a function that makes one of perceptrons, `generator.py` its half p(x, z),
`posterior.py` its half q(eps | x), `bijectors.py` the maps from base latents to codes between them, `layers.py` the Gaussians and
nets these are made of, `partition.py` the blocks of x. `latent_variable_model.py` holds what every model can do (ELBO, importance
bounds, samples), `training.py` how every model is trained. `linear_gaussian.py` holds hierarchies whose posterior is known
exactly, `linear_generator.py` their frozen half p(x, z).
`baselines.py` names the arms of a comparison, of which `ladder.py` and `iaf.py` are models of their own. `flows.py` holds the
variant whose blocks are masked autoregressive flows; that and `iaf.py` need the extra `flows`.

Source: Apostolopoulou, Rosenfeld, Dubrawski, "Self-Reflective Variational Autoencoder", 2020, arXiv 2007.05166. Its main text was at hand,
its appendix (widths, optimiser, schedules) was not.
"""
