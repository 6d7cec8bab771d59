"""Gradient feature matching with linear features: matched layers on cached moments, and a logistic head on top.

Only the class-conditional moments enter the matching, so its cost does not depend on the number of examples. Every
function takes problems stacked along a first axis K (restarts, data seeds) and solves each as if it were alone.
Letters of shapes: K problems, E environments, C classes, N examples, d inputs, r features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_modules.domain_generalization.feature_matching.moments import (
    ABSENT,
    Moments,
    Pairs,
    class_moments,
    difference_penalty,
    pair_differences,
    stack_environments,
)
from lightning_modules.errors import InputError

Match = Literal["disjoint", "all"]


def shrinking_widths(d_inv: int, d_spu: int, layers: int) -> list[int]:
    """Widths of the linear layers' outputs: d_inv + k_l with k_{l+1} = ceil(k_l / d_spu^(1/L)), and 0 for the last.

    Source: the paper's published code.

    Raises:
        InputError: for a size below 1.

    Example:
        >>> shrinking_widths(5, 32, 3)
        [16, 9, 5]
    """
    for name, value in (("d_inv", d_inv), ("d_spu", d_spu), ("layers", layers)):
        if value < 1:
            raise InputError(f"{name}: {value} is below 1; give at least 1")
    divisor, left, widths = d_spu ** (1 / layers), d_spu, []
    for _ in range(layers - 1):
        left = math.ceil(round(left / divisor, 9))  # 64 / 64^(1/3) is 16.000000000000004
        widths.append(d_inv + left)
    return [*widths, d_inv]


def environment_groups(environments: int, layers: int, match: str) -> list[slice]:
    """Assign environments to layers: "disjoint" (E / L consecutive ones each) or "all" (all in every layer).

    Raises:
        InputError: for another value of match, fewer than two environments in a group, or disjoint groups that do not
            come out even.
    """
    if match == "all":
        if environments < 2:
            raise InputError(f"environments: {environments} is below 2; matching compares at least two")
        return [slice(0, environments)] * layers
    if match != "disjoint":
        raise InputError(f"match: unknown {match!r}; choose disjoint or all")
    if environments < 2 * layers or environments % layers:
        raise InputError(
            f"environments: {environments} cannot make {layers} disjoint groups of equal size, two or more each; "
            f"give a multiple of {layers} from {2 * layers} on, or match='all'"
        )
    size = environments // layers
    return [slice(layer * size, (layer + 1) * size) for layer in range(layers)]


def match_moments(
    moments: Moments,
    widths: Sequence[int],
    generator: torch.Generator,
    match: Match = "all",
    pairs: Pairs = "consecutive",
    restarts: int = 1,
    steps: int = 400,
    lr: float = 0.02,
) -> tuple[Tensor, Tensor]:
    """Train orthonormal linear layers one after the other so that their outputs' moments agree between environments.

    Layer l minimises `difference_penalty` over its group of environments, the earlier layers frozen. A layer is the Q
    factor of a free matrix: the rows of the product of all layers stay orthonormal exactly, with the minimisers of the
    published orthonormality penalty and no weight to tune. Of several restarts each layer keeps the best.

    Args:
        moments: means [K, E, C, d], covariances [K, E, C, d, d].
        widths: outputs of each layer, each at most its inputs.
        generator: source of the initial matrices; all K problems start alike, restarts differ.
        match: which environments a layer sees, see `environment_groups`.
        pairs: "consecutive" or "all".
        restarts: initial matrices tried for each layer.
        steps: of Adam, for each layer.
        lr: of Adam.

    Returns:
        U [K, r, d] and the penalty [K, layers, steps] of the kept restart before each step.

    Raises:
        InputError: for widths that do not fit, or groups that cannot be made.
    """
    d, layers = moments.dimension, len(widths)
    if restarts < 1 or steps < 1:
        raise InputError(f"restarts, steps: {restarts}, {steps}; give at least 1 of each")
    for before, width in zip([d, *widths], widths, strict=False):
        if not 1 <= width <= before:
            raise InputError(f"widths: {width} outputs of {before} inputs; a layer keeps at least 1 and at most all")
    groups = environment_groups(moments.environments, layers, match)
    problems = len(moments.means)
    u = torch.eye(d, dtype=moments.means.dtype).expand(problems, d, d)
    history = []
    for group, width in zip(groups, widths, strict=True):
        means, covariances = pair_differences(moments.of_environments(group).project(u), pairs)
        first = torch.randn(1, restarts, u.shape[1], width, generator=generator, dtype=u.dtype)
        free = first.expand(problems, -1, -1, -1).clone().requires_grad_()
        optimizer = torch.optim.Adam([free], lr=lr)
        losses = []
        for _ in range(steps):
            penalty = difference_penalty(*_project(torch.linalg.qr(free).Q, means, covariances))
            optimizer.zero_grad()
            torch.autograd.backward(penalty.sum())
            optimizer.step()
            losses.append(penalty.detach())
        with torch.no_grad():
            layer = torch.linalg.qr(free).Q
            best = difference_penalty(*_project(layer, means, covariances)).argmin(1)
            rows = torch.arange(problems)
            u = layer[rows, best].mT @ u
            history.append(torch.stack(losses, -1)[rows, best])
    return u, torch.stack(history, 1)


def _project(columns: Tensor, means: Tensor, covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Project differences [K, P, C, ...] on layers given by columns [K, restarts, d, r]."""
    means_out = torch.einsum("kpcd,ksdr->kspcr", means, columns)
    w = columns[:, :, None, None]
    return means_out, w.mT @ (covariances.unsqueeze(1) @ w)


def logistic_head(
    features: Tensor, labels: Tensor, classes: int, ridge: float = 1e-4, iterations: int = 200
) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression to K problems at once by L-BFGS on standardised features.

    Args:
        features: [K, N, r].
        labels: [K, N]; rows labelled `ABSENT` are ignored.
        classes: C.
        ridge: weight of half the squared coefficients of the standardised features, so that separable data have a
            finite solution.
        iterations: at most this many.

    Returns:
        weights [K, C, r] and biases [K, C] for the features as given; they add up to zero over classes.
    """
    present = (labels != ABSENT).to(features.dtype).unsqueeze(-1)
    count = present.sum(1, keepdim=True)
    centre = (features * present).sum(1, keepdim=True) / count
    spread = (((features - centre) * present).square().sum(1, keepdim=True) / count).sqrt().clamp(min=1e-12)
    scaled = (features - centre) / spread
    weights = torch.zeros(len(features), features.shape[-1], classes, dtype=features.dtype, requires_grad=True)
    biases = torch.zeros(len(features), 1, classes, dtype=features.dtype, requires_grad=True)
    targets = labels.clamp(min=0).unsqueeze(-1)
    optimizer: Any = torch.optim.LBFGS(
        [weights, biases],
        max_iter=iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_p = (scaled @ weights + biases).log_softmax(-1).gather(-1, targets)
        loss = -(log_p * present / count).sum() + ridge / 2 * weights.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        w = (weights / spread.mT).mT
        b = biases.squeeze(1) - (w @ centre.mT).squeeze(-1)
        return w - w.mean(1, keepdim=True), b - b.mean(1, keepdim=True)


class LinearFeatureMatching:
    """Iterative feature matching with linear layers of shrinking width, and a logistic head on all environments.

    Args:
        d_inv: dimensions to keep.
        d_spu: dimensions to drop; d_inv + d_spu is the number of inputs.
        layers: rounds of matching, L.
        match: "disjoint" gives each layer E / L environments of its own, as the proof needs; "all" gives every layer
            all of them, which does better on finite samples.
        pairs: "consecutive" or "all".
        restarts: initial matrices tried for each layer; the one with the least penalty is kept.
        steps: of Adam, for each layer.
        lr: of Adam.
        seed: of the initial matrices.

    Example:
        >>> from lightning_modules.data.simulated.gaussian_environments import GaussianEnvironments
        >>> law = GaussianEnvironments(d_inv=2, d_spu=4, n_envs=6)
        >>> model = LinearFeatureMatching(2, 4, layers=2, steps=200).fit(*law.sample(500))
        >>> float((model.predict(law.sample(1, stream=1)[0][0]) == 1).mean()) in (0.0, 1.0)
        True

    Source: arXiv 2106.09913; widths, groups and penalty as in the published code, with an exact QR retraction and Adam
    in place of an orthonormality penalty and SGD.
    """

    U: Tensor
    """[r, d] orthonormal rows."""
    loss_history: Tensor
    """[layers, steps] penalty before each step."""
    classes: np.ndarray
    """[C] the labels, sorted."""

    def __init__(
        self,
        d_inv: int,
        d_spu: int,
        layers: int = 3,
        match: Match = "all",
        pairs: Pairs = "consecutive",
        restarts: int = 1,
        steps: int = 400,
        lr: float = 0.02,
        seed: int = 0,
    ) -> None:
        self.widths = shrinking_widths(d_inv, d_spu, layers)
        self.inputs = d_inv + d_spu
        self.match, self.pairs, self.restarts, self.steps, self.lr, self.seed = match, pairs, restarts, steps, lr, seed

    def fit(self, inputs: Sequence[Any], labels: Sequence[Any]) -> LinearFeatureMatching:
        """Find the projection, then fit the head.

        Args:
            inputs: of each environment, [n_e, d]; an array [E, n, d] serves too.
            labels: of each environment, [n_e].

        Raises:
            InputError: for inputs of another dimension, groups that cannot be made, or data that
                `stack_environments` refuses.
        """
        x, y, self.classes = stack_environments(inputs, labels)
        if x.shape[-1] != self.inputs:
            raise InputError(f"inputs: {x.shape[-1]} features, but d_inv + d_spu is {self.inputs}; make them equal")
        moments = class_moments(x, y, len(self.classes))
        stacked = Moments(moments.means.unsqueeze(0), moments.covariances.unsqueeze(0))
        generator = torch.Generator().manual_seed(self.seed)
        u, history = match_moments(
            stacked, self.widths, generator, self.match, self.pairs, self.restarts, self.steps, self.lr
        )
        self.U, self.loss_history = u[0], history[0]
        features = (x @ self.U.T).flatten(0, 1).unsqueeze(0)
        weights, biases = logistic_head(features, y.flatten().unsqueeze(0), len(self.classes))
        self._weights, self._biases = weights[0], biases[0]
        return self

    def transform(self, inputs: Any) -> Tensor:
        """Project inputs [n, d] to [n, r]."""
        x = torch.as_tensor(np.asarray(inputs), dtype=self.U.dtype)
        if x.dim() != 2 or x.shape[1] != self.inputs:
            raise InputError(f"inputs: have shape {tuple(x.shape)}; make it [n, {self.inputs}]")
        return x @ self.U.T

    def predict(self, inputs: Any) -> np.ndarray:
        """Predict the labels [n] of inputs [n, d]."""
        logits = self.transform(inputs) @ self._weights.T + self._biases
        return np.asarray(self.classes[logits.argmax(1).numpy()])
