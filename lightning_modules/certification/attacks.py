"""Attacks on a smoothed classifier: gradient ascent on its soft form under given noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_modules.certification.regularisers import smoothed_losses
from lightning_modules.errors import InputError


def draw_logits(model: nn.Module, noisy: Tensor) -> Tensor:
    """Apply a model to m noise draws of B inputs in one pass: [m, B, ...] to [m, B, C]."""
    logits: Tensor = model(noisy.flatten(0, 1)).unflatten(0, noisy.shape[:2])
    return logits


def smoothed_pgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    sigma: float,
    epsilon: float | Tensor,
    steps: int,
    noise: Tensor,
    step_size: float | Tensor | None = None,
    clip: tuple[float, float] | None = (0.0, 1.0),
) -> Tensor:
    """Move inputs within an l2 ball uphill on the smoothed classifier's loss, -log mean_i softmax(f(x + sigma e_i))_y.

    Each step goes a fixed way along the gradient's direction, back into the clip range, then back into the ball. It
    starts at the inputs and draws nothing. The model is used as it is: put it in eval mode before. Its parameters get
    no gradient.

    Args:
        model: [n, ...] to logits [n, C].
        inputs: [B, ...], within `clip`.
        labels: [B].
        sigma: standard deviation of the noise, in the inputs' units.
        epsilon: radius of the ball in the inputs' units, one for all or one for each input [B]; 0 moves nothing.
        steps: number of gradients.
        noise: m standard normal draws e_i [m, B, ...], the same in every step.
        step_size: length of a step, as epsilon is; 2 * epsilon / steps without.
        clip: smallest and largest value that an input may have, or None for no bounds.

    Returns:
        Inputs [B, ...], detached.

    Raises:
        InputError: for noise of another shape, a negative radius or step, no steps, or inputs outside `clip`.

    Source: SmoothAdv_PGD of Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed
    Classifiers", NeurIPS 2019, arXiv 1906.04584, section 2; step and projections as in the authors' code.
    """
    start = inputs.detach()
    radius = _each("epsilon", epsilon, start)
    if steps < 1:
        raise InputError(f"steps: {steps} is not positive; give 1 or more")
    if noise.shape[1:] != start.shape or len(noise) < 1:
        raise InputError(f"noise: has shape {list(noise.shape)}; give [draws, *{list(start.shape)}]")
    if clip is not None and len(start) and not (clip[0] <= start.amin() and start.amax() <= clip[1]):
        raise InputError(f"inputs: reach from {start.amin():g} to {start.amax():g}; scale them to {clip}, or clip=None")
    step = 2 * radius / steps if step_size is None else _each("step_size", step_size, start)
    scaled = sigma * noise
    moved = start
    for _ in range(steps):
        with torch.enable_grad():
            moved = moved.detach().requires_grad_()
            loss = smoothed_losses(draw_logits(model, moved + scaled), labels).sum()
            (gradient,) = torch.autograd.grad(loss, moved)
        with torch.no_grad():
            delta = moved + step * _directions(gradient) - start
            if clip is not None:
                delta = (start + delta).clamp_(*clip).sub_(start)
            # Shrinking towards an input inside the range stays inside, so that both bounds hold after this.
            delta *= (radius / _norms(delta)).clamp_max_(1)
            moved = start + delta
    return moved.detach() if clip is None else moved.clamp(*clip)


def _each(field: str, value: float | Tensor, inputs: Tensor) -> Tensor:
    """Give every input its own number, [B, 1, ...]."""
    numbers = torch.as_tensor(value, dtype=inputs.dtype, device=inputs.device)
    if numbers.shape not in ((), inputs.shape[:1]):
        raise InputError(f"{field}: has shape {list(numbers.shape)}; give one number, or one for each of {len(inputs)}")
    if not bool(((numbers >= 0) & (numbers < math.inf)).all()):
        raise InputError(f"{field}: {float(numbers.min()):g} is not a length; give 0 or more")
    return numbers.expand(len(inputs)).view(-1, *[1] * (inputs.ndim - 1))


def _directions(gradient: Tensor) -> Tensor:
    """Scale each gradient to length 1; where it is zero it stays zero.

    A confident network's gradient is so small that its square underflows, hence the largest entry goes first.
    """
    tiny = torch.finfo(gradient.dtype).tiny
    largest = gradient.flatten(1).abs().amax(1).clamp_min_(tiny)
    scaled = gradient / largest.view(-1, *[1] * (gradient.ndim - 1))
    return scaled / _norms(scaled)


def _norms(values: Tensor) -> Tensor:
    """Lengths [B, 1, ...] of [B, ...], at least the smallest positive number."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1).clamp_min_(torch.finfo(values.dtype).tiny)
    return norms.view(-1, *[1] * (values.ndim - 1))
