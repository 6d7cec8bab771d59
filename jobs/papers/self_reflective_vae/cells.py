"""What the cells compute."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.self_reflective_vae.names import BITS_A_ROW, DRAWN, SAMPLES
from lightning_modules.errors import InputError
from lightning_modules.generative.baselines import build_arm
from lightning_modules.generative.data import hold_out, load_images
from lightning_modules.generative.flows import FlowDensity, FlowGenerator, SelfReflectiveFlow
from lightning_modules.generative.hierarchy import self_reflective
from lightning_modules.generative.latent_variable_model import LatentVariableModel
from lightning_modules.generative.linear_gaussian import LinearGaussianHierarchy, vector_chain
from lightning_modules.generative.partition import BlockPartition, binarise
from lightning_modules.generative.posterior import LinearPosterior, NeuralPosterior, Posterior
from lightning_modules.generative.training import fit, fit_density


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _model(chain: str) -> LinearGaussianHierarchy:
    return LinearGaussianHierarchy() if chain == "scalar" else vector_chain()


def chain(name: str) -> list[MetricRow]:
    """Closed forms of a chain, and how far the exact posterior's weights are from the likelihood."""
    model = _model(name)
    d = model.partition.dimension
    values = {
        "expected": -model.entropy(),
        "at zero": float(model.log_prob(torch.zeros(1, d))),
        "mean-field gap": model.gap("mean_field"),
        "self-reflective gap": model.gap("self_reflective"),
    }
    if name == "scalar":
        values["at a point"] = float(model.log_prob(torch.tensor([[0.5, -1.0, 0.0, 2.0]])))
        x = 3 * torch.randn(50, d, dtype=torch.double, generator=_generator(1))
        with torch.no_grad():
            weights = model.with_posterior(model.exact_posterior()).log_weights(x, 50, _generator(2))
        values["exact weights off by"] = float((weights - model.log_prob(x)).abs().max())
    return scalar_rows(values)


def split(shift: float) -> list[MetricRow]:
    """Gaps of the scalar chain, a part of whose transition is in the bijection."""
    model = LinearGaussianHierarchy(prior=1 - shift, shift=shift)
    values = {"expected": -model.entropy()}
    values |= {"mean-field gap": model.gap("mean_field"), "self-reflective gap": model.gap("self_reflective")}
    return scalar_rows(values)


def restricted(family: str, evidence: str) -> list[MetricRow]:
    """Smallest gap of linear posteriors of the scalar chain that see a part of x."""
    return scalar_rows({"gap": LinearGaussianHierarchy().restricted_gap(family, evidence)})


def trained(family: str, seed: int, chain: str, evidence: str, net: str, steps: int) -> list[MetricRow]:
    """Train a posterior for a frozen chain; ELBO and importance bounds minus the true log likelihood."""
    model = _model(chain)
    sizes = [model.latents] * model.L
    posterior: Posterior = LinearPosterior(model.partition, sizes, family, evidence)
    if net == "tanh":
        posterior = NeuralPosterior(model.partition, sizes, (32,), family, evidence, seed, "tanh")
    hierarchy = model.with_posterior(posterior).float()
    fit(hierarchy, lambda n, g: model.sample(n, g).float(), steps, 256, 1e-2, warmup=0.0, seed=seed)
    x = model.sample(10_000, _generator(3)).float()
    truth, generator = model.log_prob(x), _generator(4, seed)
    with torch.no_grad():
        values = {"elbo": float((hierarchy.log_weights(x, 8, generator) - truth).mean())}
    few = x[:2000]
    for k in SAMPLES:
        values[f"bound {k}"] = float((hierarchy.log_likelihood(few, k, generator=generator) - truth[:2000]).mean())
    return scalar_rows(values)


def bits(posterior: str) -> list[MetricRow]:
    """Sum over all 64 x of 6 bits of the mean weight of a random model, and its standard error."""
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    model = self_reflective(BlockPartition((2, 2, 2)), [3] * 3, (8, 8), posterior=posterior, seed=1)
    with torch.no_grad():
        source = _generator(5)
        for p in model.generator.parameters():
            p.add_(0.15 * torch.randn(p.shape, generator=source))
        weights = model.log_weights(x, 4000, _generator(6)).double().exp()
    return scalar_rows({"sum": float(weights.mean(0).sum()), "error": float((weights.var(0) / 4000).sum().sqrt())})


def digits(
    arm: str,
    seed: int,
    data: str,
    pixels: int,
    blocks: int,
    latents: int,
    width: int,
    steps: int,
    rows: int,
    k: int,
    correction: int = 0,
) -> list[MetricRow]:
    """Train an arm on digits; ELBO, importance bounds, KL and active units of each layer, and samples as rows of bits."""
    train, test = _full(data) if data else load_images(pixels, 0)
    test = test[:rows]
    model = build_arm(arm, pixels, blocks, latents, width, seed, correction=correction)
    fit(model, train, steps, seed=seed)
    values, elbo, kl, means = _bounds(model, test, [n for n in SAMPLES if n < k] + [k], seed)
    values["elbo"] = elbo
    found = scalar_rows(values)
    for layer, (nats, units) in enumerate(zip(kl, means, strict=True)):
        found += scalar_rows({"kl": nats, "active units": units}, step=layer, environment="layer")
    if pixels % BITS_A_ROW:
        return found
    drawn, _ = model.sample(DRAWN, _generator(8, seed))
    found += _bit_rows(drawn, "samples")
    return found + _bit_rows(test[:DRAWN], "data")


def depth(
    family: str, seed: int, pixels: int, blocks: int, latents: int, width: int, correction: int, steps: int, rows: int
) -> list[MetricRow]:
    """Train a posterior of some depth on a part of the training digits; ELBO and importance bound of the rest of them."""
    train, held = hold_out(load_images(pixels, 0)[0], rows)
    model = build_arm(family, pixels, blocks, latents, width, seed, correction=correction)
    fit(model, train, steps, seed=seed)
    values, elbo, _, _ = _bounds(model, held, [_VALIDATION_SAMPLES], seed)
    return scalar_rows(values | {"elbo": elbo})


_VALIDATION_SAMPLES = 50


def _bounds(
    model: LatentVariableModel, x: Tensor, counts: list[int], seed: int
) -> tuple[dict[str, float], float, list[float], list[float]]:
    """Bounds by number of samples, ELBO, KL of each layer, and active units of each layer.

    A unit is active where the variance over x of its posterior mean is above 0.01 (Burda et al.); the noise of means of 16
    draws is taken off that variance.
    """
    draws = 16
    with torch.no_grad():
        parts = [
            model.trace(p, model.evidence(p), draws, _generator(7, seed, i)) for i, p in enumerate(torch.split(x, 500))
        ]
    elbo = float(torch.cat([(p.log_likelihood - p.kl.sum(-1)).mean(0) for p in parts]).mean())
    kl = torch.cat([p.kl.mean(0) for p in parts]).mean(0).tolist()
    active = []
    for layer in range(len(kl)):
        eps = torch.cat([p.eps[layer] for p in parts], 1)  # [draws, n, N]
        active.append(float((eps.mean(0).var(0) - eps.var(0).mean(0) / draws > 0.01).sum()))
    values = {}
    for k in counts:
        generator = _generator(9, seed, k)
        values[f"bound {k}"] = float(
            torch.cat([model.log_likelihood(p, k, generator=generator) for p in torch.split(x, 500)]).mean()
        )
    return values, elbo, kl, active


def _bit_rows(x: Tensor, name: str) -> list[MetricRow]:
    """Binary images as numbers of BITS_A_ROW bits: step is the image, the metric names the place in it."""
    found: list[MetricRow] = []
    for number, image in enumerate(x.long().tolist()):
        for start in range(0, len(image), BITS_A_ROW):
            bits = "".join(map(str, image[start : start + BITS_A_ROW]))
            found.append((number, name, "test", f"bits {start}", float(int(bits, 2))))
    return found


def _full(folder: str) -> tuple[Tensor, Tensor]:
    """All of MNIST from Keras's mnist.npz: intensities to train on, and the test digits binarised once."""
    file = Path(folder, "mnist.npz")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            parts = [torch.from_numpy(arrays[name]).flatten(1).float() / 255 for name in ("x_train", "x_test")]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"data: cannot read x_train and x_test of {file} ({error}); fetch it again") from error
    return parts[0], binarise(parts[1], torch.Generator().manual_seed(0))


SCALES = (0.5, 2.5)
"""Of the scale mixture: x = s g with g ~ N(0, I) in 16 dimensions, s one of the two."""


def mixture(n: int, generator: torch.Generator) -> Tensor:
    """Draw from the scale mixture [n, 16]."""
    chosen = torch.tensor(SCALES)[torch.randint(2, (n, 1), generator=generator)]
    return chosen * torch.randn(n, 16, generator=generator)


def mixture_log_prob(x: Tensor) -> Tensor:
    """Log density of it [n]."""
    terms = [-x.square().sum(1) / (2 * s * s) - 16 * math.log(s) for s in SCALES]
    return torch.stack(terms).logsumexp(0) - math.log(2) - 8 * math.log(2 * math.pi)


def flow(model: str, seed: int, steps: int) -> list[MetricRow]:
    """Fit the scale mixture: a hierarchy of two blocks of flows, or one flow of as many MADEs."""
    x = mixture(2000, _generator(10))
    values = {"truth": float(mixture_log_prob(x).mean())}
    if model == "plain":
        plain = FlowDensity(16, (64, 64), 4, seed)
        fit_density(plain, plain.log_prob, mixture, steps, 256, seed=seed)
        with torch.no_grad():
            values["elbo"] = float(plain.log_prob(x).mean())
        return scalar_rows(values)
    latent = SelfReflectiveFlow(FlowGenerator(BlockPartition((8, 8)), [4, 4], (64, 64), 2, seed=seed))
    fit(latent, mixture, steps, 256, seed=seed)
    found, values["elbo"], kl, _ = _bounds(latent, x, [20], seed)
    rows = scalar_rows(values | found)
    for layer, nats in enumerate(kl):
        rows += scalar_rows({"kl": nats}, step=layer, environment="layer")
    return rows
