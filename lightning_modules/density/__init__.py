"""Densities from classification against noise: NCE and eNCE, for exponential families and for networks.

`losses.py` holds the two losses of log ratios, `optimizers.py` normalised gradient descent and Newton's step, `models.py` the
unnormalised models and the noise, `estimator.py` the Lightning module that is trained, `pairs.py` batches of data beside noise,
`data.py` the data modules, `fits.py` one fit as a function. `gaussian_means.py` holds the population's losses of the Gaussian mean
family in closed form and by quadrature, `samples.py` those of finite samples, `descent.py` descents on either, many cells at once.

Everywhere r = log p - log q, p the model, q the noise, and the log-partition is a parameter like the others.

Source: Liu, Rosenfeld, Ravikumar, Risteski, "Analyzing and Improving the Optimization Landscape of Noise-Contrastive Estimation",
ICLR 2022, arXiv 2110.11271. Of its text the abstract, the introduction and the opening of the appendix were at hand; what is
said to be the paper's beyond that is from memory, and marked so.
"""
