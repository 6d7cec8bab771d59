"""What the cells about images and text compute."""

from __future__ import annotations

import torch

from jobs.claims import MetricRow, scalar_rows
from lightning_modules.sequence.multimodal import DigitSums, MultimodalModel
from lightning_modules.sequence.training import fit


def digits(seed: int, steps: int, batch_size: int, lr: float, width: int = 64, layers: int = 2) -> list[MetricRow]:
    """Train on sums of two handwritten digits; accuracy on unseen images, and with images taken away or exchanged."""
    data = DigitSums(steps * batch_size, 2000, batch_size=batch_size, seed=seed)
    module = MultimodalModel(layers=layers, width=width, lr=lr, seed=seed)
    fit(module, data, steps)
    module.eval()
    asked = data.validation
    own, half = asked.patches, asked.patches.shape[1] // 2
    others = own.roll(1, 0)  # of the question before
    shown = {
        "own": own,
        "blank": torch.zeros_like(own),
        "others": others,
        "second": torch.cat([own[:, :half], others[:, half:]], 1),
    }
    found = {}
    with torch.no_grad():
        for name, patches in shown.items():
            logits, targets = module.logits(asked._replace(patches=patches))
            found[f"accuracy_{name}"] = float((logits.argmax(-1) == targets).float().mean())
    found["accuracy_constant"] = float(targets.bincount().max()) / len(targets)
    return scalar_rows(found)
