"""Penalties trained together with a classifier: linear networks for the Gaussian task, and the matched MLP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.domain_generalization.feature_matching.linear import environment_groups
from lightning_modules.domain_generalization.feature_matching.moments import (
    ABSENT,
    Moments,
    Pairs,
    difference_penalty,
    moment_matching_penalty,
    pair_differences,
)
from lightning_modules.domain_generalization.training import fit
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl

Joint = Literal["IRM", "CORAL", "CORAL+ON"]


def train_linear_network(
    x: Tensor,
    y: Tensor,
    moments: Moments,
    method: Joint,
    lam: Sequence[float],
    widths: Sequence[int],
    generator: torch.Generator,
    steps: int = 500,
    lr: float = 0.01,
    lam_orthonormal: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Train linear layers and a logistic head together, full batch, for K data sets and R penalty weights at once.

    The loss is the cross-entropy plus lam times a penalty: for "IRM" the mean over environments of the squared slope in
    a scale of the classifier (the product over even and odd examples); for "CORAL" the class-conditional moment
    differences of the last layer, consecutive environments; "CORAL+ON" adds lam_orthonormal times the mean over layers
    of ||I - W_l W_l'||_F^2.

    Args:
        x: [K, E, B, d].
        y: [K, E, B] in {0, 1}.
        moments: of the same data: means [K, E, 2, d], covariances [K, E, 2, d, d]; they make the matching cheap.
        method: which penalty.
        lam: its R weights.
        widths: outputs of each linear layer, without biases.
        generator: source of the initial weights; all K R networks start alike.
        steps: of Adam.
        lr: of Adam.
        lam_orthonormal: of CORAL+ON.

    Returns:
        weights [K, R, d] and biases [K, R] of each whole network as one linear rule; positive for class 1.

    Raises:
        InputError: for an unknown method.
        FloatingPointError: when training diverges.

    Source: arXiv 2106.09913, baselines as in the published code (there with SGD on mini-batches).
    """
    if method not in ("IRM", "CORAL", "CORAL+ON"):
        raise InputError(f"method: unknown {method!r}; choose IRM, CORAL or CORAL+ON")
    lead = (len(x), len(lam))
    sizes = [x.shape[-1], *widths, 1]
    layers = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        first = (2 * torch.rand(after, before, generator=generator, dtype=x.dtype) - 1) / math.sqrt(before)
        layers.append(first.expand(*lead, -1, -1).clone().requires_grad_())
    bias = torch.zeros(*lead, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([*layers, bias], lr=lr)
    weight = torch.tensor(lam, dtype=x.dtype)
    signs_KEB1 = (2 * y - 1).to(x.dtype).unsqueeze(-1)
    flat = x.flatten(1, 2)
    mean_gap, covariance_gap = (gap.to(x.dtype).unsqueeze(1) for gap in pair_differences(moments, "consecutive"))
    for _ in range(steps):
        product = _product(layers[:-1])
        rule_KdR = (layers[-1] @ product).squeeze(-2).mT
        margins_KEBR = (flat @ rule_KdR + bias.unsqueeze(1)).view(*y.shape, -1) * signs_KEB1
        loss = F.softplus(-margins_KEBR).mean((1, 2))
        if method == "IRM":
            loss = loss + weight * margin_slope_penalty(margins_KEBR)
        else:
            w = product[:, :, None, None]
            projected = (w @ mean_gap.unsqueeze(-1)).squeeze(-1)
            loss = loss + weight * difference_penalty(projected, w @ covariance_gap @ w.mT)
        if method == "CORAL+ON":
            gaps = [(torch.eye(p.shape[-2], dtype=x.dtype) - p @ p.mT).square().sum((-2, -1)) for p in layers[:-1]]
            loss = loss + lam_orthonormal * torch.stack(gaps).mean(0)
        optimizer.zero_grad()
        torch.autograd.backward(loss.sum())
        optimizer.step()
    if not torch.isfinite(loss).all():
        raise FloatingPointError(f"{method} diverged: a loss is not finite after {steps} steps at lam {list(lam)}")
    return _product(layers).squeeze(-2).detach(), bias.detach()


def margin_slope_penalty(margins: Tensor) -> Tensor:
    """IRMv1's penalty for two classes: mean over environments of (d/ds R_e(s f))^2 at s = 1, without bias.

    The squared mean is the product of the means over even and odd examples (`irm.irm_penalty` for any classes).

    Args:
        margins: y f(x), [K, E, B, R].

    Returns:
        [K, R].
    """
    slopes = -margins * torch.sigmoid(-margins)
    return (slopes[:, :, ::2].mean(2) * slopes[:, :, 1::2].mean(2)).mean(1)


def _product(layers: Sequence[Tensor]) -> Tensor:
    product = layers[0]
    for layer in layers[1:]:
        product = layer @ product
    return product


class MatchedMLP(pl.LightningModule):
    """A ReLU network whose hidden layers' moments are matched between environments while it learns to classify.

    Args:
        widths: inputs, then each hidden layer; for noised MNIST the published ones are 812 and [24], [96, 24],
            [128, 50, 24] or [192, 96, 48, 24].
        classes: number of classes.
        match: "none" (plain risk minimisation), "last" (the last hidden layer, all environments), "disjoint" (each
            layer its own group of environments) or "all" (every layer, all environments).
        lam: weight of the penalty, a sum over layers of `moment_matching_penalty`; without effect for "none".
        conditional: match within each class; the published code for MNIST does not.
        lr: of Adam.
        weight_decay: of Adam.
        seed: of the initial weights.

    Raises:
        InputError: for fewer than one hidden layer or an unknown `match`.

    Source: arXiv 2106.09913, noised MNIST; widths and penalty as in the published code (there with SGD).
    """

    def __init__(
        self,
        widths: Sequence[int],
        classes: int,
        match: str = "all",
        lam: float = 1.0,
        conditional: bool = True,
        lr: float = 2e-3,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise InputError(f"widths: {list(widths)} has no hidden layer; give the inputs and at least one more")
        if match not in ("none", "last", "disjoint", "all"):
            raise InputError(f"match: unknown {match!r}; choose none, last, disjoint or all")
        self.classes, self.match, self.lam, self.conditional = classes, match, lam, conditional
        self.lr, self.weight_decay = lr, weight_decay
        generator = torch.Generator().manual_seed(seed)
        sizes = [*widths, classes]
        with torch.device("meta"):  # no draw from the global generator
            layers = [nn.Linear(before, after) for before, after in zip(sizes, sizes[1:], strict=False)]
        self.hidden, self.classifier = nn.ModuleList(layers[:-1]), layers[-1]
        self.to_empty(device="cpu")
        with torch.no_grad():
            for layer in layers:
                bound = 1 / math.sqrt(layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)

    def features(self, inputs: Tensor) -> list[Tensor]:
        """Compute the output of every hidden layer, [..., width]."""
        outputs: list[Tensor] = []
        for layer in self.hidden:
            outputs.append(layer(outputs[-1] if outputs else inputs).relu())
        return outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits [..., C] of inputs [..., d]."""
        logits: Tensor = self.classifier(self.features(inputs)[-1])
        return logits

    def objective(self, inputs: Tensor, labels: Tensor, pairs: Pairs = "consecutive") -> tuple[Tensor, Tensor]:
        """Compute (cross-entropy, penalty before its weight).

        Args:
            inputs: [E, B, d].
            labels: [E, B]; rows labelled `ABSENT` (they fill up short environments) count nowhere.
            pairs: of environments.

        Raises:
            InputError: when disjoint groups cannot be made of E environments.
        """
        outputs = self.features(inputs)
        risk = F.cross_entropy(self.classifier(outputs[-1]).flatten(0, 1), labels.flatten(), ignore_index=ABSENT)
        if self.match == "none":
            return risk, risk.new_zeros(())
        if self.match == "last":
            outputs = outputs[-1:]
        groups = environment_groups(len(inputs), len(outputs), "disjoint" if self.match == "disjoint" else "all")
        classes = self.classes if self.conditional else 1
        matched = labels if self.conditional else labels.clamp(max=0)  # ABSENT is negative and stays
        terms = [
            moment_matching_penalty(output[group], matched[group], classes, pairs)
            for output, group in zip(outputs, groups, strict=True)
        ]
        return risk, torch.stack(terms).sum()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Compute the loss of one step from inputs [E, B, d] and labels [E, B]."""
        risk, penalty = self.objective(*batch)
        return risk + self.lam * penalty

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with weight decay."""
        return torch.optim.Adam(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def fit_full_batch(self, inputs: Tensor, labels: Tensor, steps: int) -> MatchedMLP:
        """Train on all examples at once, by Lightning.

        Args:
            inputs: [E, B, d] float32.
            labels: [E, B].
            steps: number of updates.
        """
        fit(self, cast(Any, [(inputs, labels)]), {"steps": steps}, pl.Callback())
        return self.cpu().eval()

    @torch.no_grad()
    def accuracy(self, inputs: Tensor, labels: Tensor) -> float:
        """Share of right predictions on inputs [..., d]; rows labelled `ABSENT` do not count."""
        present = labels != ABSENT
        return float((self(inputs).argmax(-1) == labels)[present].double().mean())
