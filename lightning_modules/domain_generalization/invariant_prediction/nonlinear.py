"""Non-linear IRM: the representation that almost satisfies its constraint and still fails; full-batch training."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lightning_modules.data.simulated.gaussian_sem import GaussianSEM
from lightning_modules.domain_generalization.invariant_prediction.linear import check_labels
from lightning_modules.domain_generalization.invariant_prediction.population import (
    objective,
    population_optimum,
    risks_and_slopes,
)
from lightning_modules.errors import InputError


class NonlinearFailure:
    """The invariant predictor where training data lie, the ERM predictor everywhere else.

    Let B be the union over environments of the balls of radius sqrt(eps d_e) s_e around +mu_e and -mu_e. The
    representation shows z_c where z_e is in B and all of z elsewhere; the linear classifier on top is the optimal
    invariant predictor there and the pooled ERM predictor here. It leaves training data of high dimension almost
    nowhere to notice: a share of at most exp(-d_e min(eps-1, (eps-1)^2) / 8) lies outside B.

    Source: Rosenfeld et al., arXiv 2010.05761, theorem on non-linear representations (section 6).

    Args:
        sem: the model; training environments are its own, and classes must be of equal size.
        eps: squared radius of the balls relative to its typical value, above 1.

    Raises:
        InputError: eps is 1 or less, or eta is not 1/2.
    """

    def __init__(self, sem: GaussianSEM, eps: float) -> None:
        if not eps > 1 or not math.isfinite(eps):
            raise InputError(f"eps: {eps} is not a finite number above 1; smaller balls miss half of the training data")
        if sem.eta != 0.5:
            raise InputError(f"eta: {sem.eta} is not 1/2, for which this construction stands; give classes equal size")
        self.sem, self.eps = sem, float(eps)
        self.invariant = np.concatenate([2 * sem.mu_c / sem.sigma_c2, np.zeros(sem.env_means.shape[1])])
        mean, var = map(torch.as_tensor, sem.latent_moments())
        self.erm: np.ndarray = population_optimum("erm", mean.unsqueeze(0), var.unsqueeze(0))[0].numpy()

    @property
    def radii(self) -> np.ndarray:
        """Radius of each environment's balls, [E]."""
        radii: np.ndarray = np.sqrt(self.eps * self.sem.env_vars * self.sem.env_means.shape[1])
        return radii

    def in_balls(self, z_e: np.ndarray) -> np.ndarray:
        """Whether environmental features [..., d_e] lie in B, [...] bool."""
        if z_e.shape[-1] != self.sem.env_means.shape[1]:
            raise InputError(f"z_e: has {z_e.shape[-1]} features; the model has {self.sem.env_means.shape[1]}")
        # |z -+ mu|^2 = |z|^2 + |mu|^2 -+ 2 z.mu, and the nearer of the two balls is that on z's side.
        cross = np.abs(z_e @ self.sem.env_means.T)
        squares = np.square(z_e).sum(-1)[..., None] + np.square(self.sem.env_means).sum(-1) - 2 * cross
        inside: np.ndarray = (squares <= np.square(self.radii)).any(-1)
        return inside

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Logit of class +1 for inputs [..., d], [...]."""
        z = self.sem.latent(x)
        inside = self.in_balls(z[..., len(self.sem.mu_c) :])
        logits: np.ndarray = np.where(inside, z @ self.invariant, z @ self.erm)
        return logits

    def penalty(self, x: np.ndarray, y: np.ndarray) -> float:
        """Estimate IRM's gradient penalty mean_e ||grad_beta R^e||^2, without bias.

        The gradient is in all weights of the linear classifier on [1(in B) z_c, 1(outside) z], not in one scale. The
        squared norm is the inner product of the gradients of even and odd examples, so it can be negative.

        Args:
            x: inputs [E, n, d] of the training environments, n >= 2.
            y: labels [E, n] in {-1, +1}.

        Raises:
            InputError: shapes that do not fit, too few examples, or labels outside the coding.
        """
        if x.ndim != 3 or y.shape != x.shape[:2] or x.shape[1] < 2:
            raise InputError(f"x {list(x.shape)} and y {list(y.shape)} do not fit; give [E, n, d] and [E, n], n >= 2")
        check_labels(y, "y")
        z, d_c = self.sem.latent(x), len(self.sem.mu_c)
        inside = self.in_balls(z[..., d_c:])
        margins = y * np.where(inside, z @ self.invariant, z @ self.erm)
        residual = -y * np.exp(-np.logaddexp(0, margins))
        total = 0.0
        for part, features in ((inside, z[..., :d_c]), (~inside, z)):
            each = residual * part
            halves = [
                np.einsum("en,end->ed", each[:, k::2], features[:, k::2]) / each[:, k::2].shape[1] for k in (0, 1)
            ]
            total += float((halves[0] * halves[1]).sum(1).mean())
        return total

    def chi_square_tail(self) -> float:
        """P(chi^2 with d_e degrees > eps d_e): the share of training data outside the ball around its own mean."""
        half = torch.tensor(self.sem.env_means.shape[1] / 2, dtype=torch.float64)
        return float(torch.special.gammaincc(half, self.eps * half))

    def p_eps_bound(self) -> float:
        """Bound on that share: exp(-d_e min(eps-1, (eps-1)^2) / 8)."""
        gap = self.eps - 1
        return math.exp(-self.sem.env_means.shape[1] * min(gap, gap * gap) / 8)

    def far_mean(self, delta: float) -> np.ndarray:
        """A test mean at least (sqrt(eps) + delta) s_e sqrt(d_e) away from every +-mu_e, where ERM fails; [d_e].

        It lies opposite to ERM's environmental weights, as near to the origin as the distances allow.

        Raises:
            InputError: delta is not positive, or ERM has no environmental weights.
        """
        if not delta > 0:
            raise InputError(f"delta: {delta} is not positive; give a distance above 0")
        direction = -self.erm[len(self.sem.mu_c) :]
        length = np.linalg.norm(direction)
        if length < 1e-12:
            raise InputError("env_means: ERM ignores the environmental features, so no test mean makes it fail")
        direction /= length
        distance = self.radii * (1 + delta / math.sqrt(self.eps))
        centres = np.concatenate([self.sem.env_means, -self.sem.env_means])
        along = centres @ direction
        # The line t u leaves a ball around c for good at the larger root of |t u - c|^2 = distance^2.
        inner = along**2 - np.square(centres).sum(1) + np.tile(distance, 2) ** 2
        return float((along + np.sqrt(inner.clip(min=0))).max()) * direction

    def erm_share_bound(self, delta: float) -> float:
        """Bound on the share of test points, at distance `delta` (`far_mean`), that are not treated as by ERM.

        2 E / (sqrt(pi) delta) exp(-delta^2), at most 1.
        """
        return min(1.0, 2 * self.sem.environments / (math.sqrt(math.pi) * delta) * math.exp(-(delta**2)))


def train_mlp(
    x: Tensor,
    y: Tensor,
    name: str,
    generator: torch.Generator,
    width: int = 24,
    lam: float = 1e4,
    steps: int = 801,
    anneal_steps: int = 100,
    lr: float = 2e-3,
    l2: float = 3e-3,
    restart: bool = False,
) -> Callable[[Tensor], Tensor]:
    """Train a network of two hidden ReLU layers by full batches of every environment.

    The penalty's weight is 1 for `anneal_steps` updates, then `lam`; the whole loss is divided by a weight above 1.

    Args:
        x: inputs [E, n, d].
        y: labels [E, n] in {-1, +1}.
        name: objective, see `population.OBJECTIVES`.
        generator: source of the initial weights (Xavier's uniform law; biases start at 0).
        width: units of each hidden layer.
        lam: weight of the penalty; give 1 for ERM, which has none.
        steps: updates.
        anneal_steps: updates before the penalty counts fully.
        lr: Adam's learning rate.
        l2: weight of the sum of squares of all parameters.
        restart: whether Adam forgets its moments where the weight jumps. It then takes full steps again; without, the
            moments of the undivided loss keep its steps small, which acts as early stopping.

    Returns:
        The trained logit of class +1: inputs [m, d] to [m].

    Raises:
        InputError: unknown objective, shapes that do not fit, labels outside the coding, or too few environments.
        FloatingPointError: the loss is not finite.
    """
    if x.dim() != 3 or y.shape != x.shape[:2] or not y.numel():
        raise InputError(f"x {list(x.shape)} and y {list(y.shape)} do not fit; give [E, n, d] and [E, n]")
    check_labels(y.numpy(force=True), "y")
    form, flat = objective(name), x.flatten(0, 1)
    parameters: list[Tensor] = []
    for fan_in, fan_out in ((x.shape[2], width), (width, width), (width, 1)):
        bound = math.sqrt(6 / (fan_in + fan_out))
        weights = (2 * torch.rand(fan_in, fan_out, generator=generator) - 1) * bound
        parameters += [weights.requires_grad_(), torch.zeros(fan_out, requires_grad=True)]

    def logits(inputs: Tensor) -> Tensor:
        a, b, c, d, e, f = parameters
        return torch.addmm(f, torch.addmm(d, torch.addmm(b, inputs, a).relu(), c).relu(), e)[:, 0]

    adam = torch.optim.Adam(parameters, lr)
    for step in range(steps):
        weight = lam if step >= anneal_steps else 1.0
        if restart and step == anneal_steps:
            adam = torch.optim.Adam(parameters, lr)
        risks, slopes = risks_and_slopes(logits(flat).view(y.shape), y)
        decay = sum((p.square().sum() for p in parameters), risks.new_zeros(()))
        loss = (form(risks, slopes, risks.new_tensor(weight)) + l2 * decay) / max(weight, 1.0)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of {name} is {loss.item()} at step {step}")
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        adam.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return logits
