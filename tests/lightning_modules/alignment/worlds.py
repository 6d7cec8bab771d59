"""Two small random networks that see the same hidden things, in place of pretrained encoders."""

import numpy as np
import torch
from torch import nn

from lightning_modules.alignment.pairs import make_pairs

HIDDEN, D_IMAGE, D_TEXT = 12, 40, 24


class StandIn(nn.Module):
    """A small encoder with dropout and batch statistics, which change what it gives in training mode."""

    def __init__(self, width, seed):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(HIDDEN, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, width)
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.layers.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
            self.layers[1].running_mean.copy_(torch.randn(64, generator=generator))
        self.eval()

    def forward(self, things):
        return self.layers(things)


def things(count, seed=0):
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def world(count=600, seed=0):
    """Pairs of vectors of the same things; image vectors and text vectors."""
    seen = things(count, seed)
    return make_pairs(StandIn(D_IMAGE, 1)(seen), StandIn(D_TEXT, 2)(seen))


def brute_force_loss(images, texts, scale):
    """The objective in loops and double precision."""
    w = images.double() / images.double().norm(dim=1, keepdim=True)
    z = texts.double() / texts.double().norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(w)):
        row = [scale * float(w[i] @ other) for other in z]
        column = [scale * float(other @ z[i]) for other in w]
        for scores in (row, column):
            top = max(scores)
            total += top + np.log(np.sum(np.exp(np.array(scores) - top))) - scores[i]
    return total / (2 * len(w))
