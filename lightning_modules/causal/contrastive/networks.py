"""Encoders and heads of K models as stacked parameters, and their optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.causal.contrastive.losses import rows_of_b
from lightning_modules.causal.contrastive.mixing import image_side
from lightning_modules.errors import InputError

ENCODERS = ("mlp", "linear", "conv")
HEADS = ("parametric", "linear")

_SLOPE = 0.2
_CHANNELS, _KERNEL, _STRIDE, _POOL, _CODE, _CODE_SLOPE = 10, 5, 3, 2, 64, 0.01


class StackedEncoder(nn.Module):
    """h: K encoders of standardised rows [K, n, dx] -> [K, n, d].

    Args:
        kind: "mlp" (LeakyReLU 0.2; hidden layers behind the first are residual), "linear" (a matrix without bias) or "conv" (rows
            are the pixels of RGB images: 5 x 5 convolution of stride 3 with 10 channels, ReLU, max-pool 2, a layer of 64 with
            LeakyReLU 0.01, one of d).
        dx: width of the rows.
        d: latents.
        width: of hidden layers of "mlp".
        depth: their number.
        seeds: [K] of the first weights, torch's default laws; a model's weights depend on its seed alone.

    Source: arXiv 2306.02235, experiments: one hidden layer of 512.
    """

    def __init__(self, kind: str, dx: int, d: int, width: int, depth: int, seeds: Sequence[int]) -> None:
        super().__init__()
        if kind not in ENCODERS:
            raise InputError(f"encoder: unknown {kind!r}; choose from {', '.join(ENCODERS)}")
        self.kind = kind
        shapes: list[tuple[str, tuple[int, ...], int]]  # name, shape, fan-in
        if kind == "linear":
            shapes = [("weight_0", (dx, d), dx)]
        elif kind == "mlp":
            sizes = [dx, *[width] * depth]
            shapes = [shape for i in range(depth) for shape in _layer(i, sizes[i], width)] + _layer(depth, width, d)
        else:
            self._side = image_side(dx)
            pooled = ((self._side - _KERNEL) // _STRIDE + 1) // _POOL
            if pooled < 1:
                raise InputError(f"dim_x: images of side {self._side} are too small for the encoder; give 8 or more")
            fan_in = 3 * _KERNEL**2
            shapes = [("kernel", (_CHANNELS, 3, _KERNEL, _KERNEL), fan_in), ("kernel_bias", (_CHANNELS,), fan_in)]
            shapes += _layer(0, _CHANNELS * pooled**2, _CODE) + _layer(1, _CODE, d)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for name, shape, fan_in in shapes:
            bound = 1 / math.sqrt(fan_in)
            drawn = [torch.empty(shape).uniform_(-bound, bound, generator=generator) for generator in generators]
            self.register_parameter(name, nn.Parameter(torch.stack(drawn)))
        self._last = sum(name.startswith("weight") for name, _, _ in shapes) - 1

    def forward(self, x: Tensor) -> Tensor:
        """Encodings [K, n, d] of rows [K, n, dx]."""
        if self.kind == "linear":
            return torch.bmm(x, self.get_parameter("weight_0"))
        values = self._convolved(x) if self.kind == "conv" else x
        for number in range(self._last):
            before = values
            values = self._product(number, values)
            if self.kind == "conv":
                values = nn.functional.leaky_relu(values, _CODE_SLOPE)
            else:
                values = nn.functional.leaky_relu(values, _SLOPE)
                values = before + values if number else values
        return self._product(self._last, values)

    def _product(self, number: int, values: Tensor) -> Tensor:
        weight, bias = self.get_parameter(f"weight_{number}"), self.get_parameter(f"bias_{number}")
        return torch.baddbmm(bias.unsqueeze(1), values, weight)

    def _convolved(self, x: Tensor) -> Tensor:
        """Pooled features [K, n, c]; the K models' kernels are groups of one convolution."""
        models, rows = x.shape[:2]
        images = x.view(models, rows, 3, self._side, self._side).transpose(0, 1).flatten(1, 2)  # [n, 3 K, side, side]
        kernel, bias = self.get_parameter("kernel").flatten(0, 1), self.get_parameter("kernel_bias").flatten()
        found = nn.functional.conv2d(images, kernel, bias, stride=_STRIDE, groups=models)
        pooled = nn.functional.max_pool2d(found.relu(), _POOL)
        return pooled.view(rows, models, -1).transpose(0, 1)


class ContrastiveHead(nn.Module):
    """g_t(z) = c_t + l_t z_t + (lam_t z_t)^2 - (B_t . z)^2, the form of log p_obs - log p_int(t), with B = diag(s) (I - A_off).

    Coordinate t belongs to environment t by construction: no target need be known. A[t, j] is the weight of parent j in node t.
    With `kind` "linear" it is g_t(z) = c_t + w_t . z instead, which knows nothing of causal models: a baseline.

    Args:
        d: latents.
        models: K.
        kind: "parametric" or "linear".
        seeds: [K] of a linear head's first weights; None: 0 to K - 1.

    Source: arXiv 2306.02235, section 4. A starts at 0.
    """

    def __init__(self, d: int, models: int = 1, kind: str = "parametric", seeds: Sequence[int] | None = None) -> None:
        super().__init__()
        if kind not in HEADS:
            raise InputError(f"head: unknown {kind!r}; choose from {', '.join(HEADS)}")
        self.kind = kind
        self.constant = nn.Parameter(torch.zeros(models, d))
        if kind == "linear":
            bound, first = 1 / math.sqrt(d), torch.empty(models, d, d)
            for matrix, seed in zip(first, range(models) if seeds is None else seeds, strict=True):
                matrix.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed + 2))
            self.matrix = nn.Parameter(first)
            return
        self.slope = nn.Parameter(torch.ones(models, d))
        self.curvature = nn.Parameter(torch.ones(models, d))
        self.scale = nn.Parameter(torch.ones(models, d))
        self.parents = nn.Parameter(torch.zeros(models, d, d))

    def forward(self, z: Tensor) -> Tensor:
        """All g_t [K, n, d] of encodings [K, n, d]; of [n, d] where there is one model: [n, d]."""
        if z.dim() == 2:
            alone: Tensor = self(z.unsqueeze(0))[0]
            return alone
        if self.kind == "linear":
            return torch.baddbmm(self.constant.unsqueeze(1), z, self.matrix.mT)
        return self._own(z) - torch.bmm(z, self.b.mT).square()

    def own(self, z: Tensor) -> Tensor:
        """g_t of the rows of environment t only: [K, n, d] of encodings [K, d, n, d]."""
        if self.kind == "linear":
            products = torch.matmul(z, self.matrix.unsqueeze(-1)).squeeze(-1)  # [K, d, n]
            return self.constant.unsqueeze(1) + products.mT
        across = torch.matmul(z, self.b.unsqueeze(-1)).squeeze(-1)
        return self._own(z.diagonal(dim1=1, dim2=3)) - across.mT.square()

    @property
    def b(self) -> Tensor:
        """B [K, d, d]."""
        return rows_of_b(self.scale, self.parents)

    def _own(self, z: Tensor) -> Tensor:
        linear = torch.addcmul(self.constant.unsqueeze(1), self.slope.unsqueeze(1), z)
        return linear + (self.curvature.unsqueeze(1) * z).square()


def one_cycle(encoder: nn.Module, head: nn.Module, lr: float, lr_head: float, steps: int) -> tuple[Any, Any]:
    """Adam with a learning rate of its own for the head, and a one-cycle schedule over `steps` updates."""
    groups = [{"params": list(encoder.parameters()), "lr": lr}, {"params": list(head.parameters()), "lr": lr_head}]
    optimizer = torch.optim.Adam(groups, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[lr, lr_head], total_steps=max(steps, 2) + 1)
    return optimizer, schedule


def _layer(number: int, fan_in: int, fan_out: int) -> list[tuple[str, tuple[int, ...], int]]:
    return [(f"weight_{number}", (fan_in, fan_out), fan_in), (f"bias_{number}", (fan_out,), fan_in)]
