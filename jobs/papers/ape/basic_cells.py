"""Cells that check the parts: the loss in closed form, the text encoder, what stays frozen, and a table of one's own pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.ape.names import BATCH, HEADS, RIDGE, SHUFFLED
from lightning_modules.alignment.aligner import ContrastiveAligner
from lightning_modules.alignment.costs import trained_parameters
from lightning_modules.alignment.dual_encoder import fit
from lightning_modules.alignment.heads import AlignmentHead
from lightning_modules.alignment.losses import LARGEST_SCALE, duplicates_floor, info_nce
from lightning_modules.alignment.pairs import make_pairs
from lightning_modules.alignment.references import RidgeAligner

_PUBLISHED = ("That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day")


def identities(seed: int) -> list[MetricRow]:
    """The loss where its value is known: scale 0, pairs told apart, pairs that share captions; and sizes of heads."""
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(256, 1280, generator=generator), dim=1)
    others = torch.randn(256, 1280, generator=generator)
    captions = torch.arange(256) % 10
    # The best that shared captions allow: an image is where its caption is.
    shared = vectors[captions]
    figures = {
        "scale 0": float(info_nce(vectors, others, -math.inf)),
        "told apart": float(info_nce(vectors, vectors, math.log(LARGEST_SCALE))),
        "shared": float(info_nce(shared, shared, math.log(LARGEST_SCALE))),
        "floor": duplicates_floor(captions.tolist()),
    }
    rows = scalar_rows(figures)
    for layers in HEADS.values():
        head = AlignmentHead(384, 1280, layers, 1024)
        rows += scalar_rows({"parameters": trained_parameters(head)}, layers, "head")
    return rows


def text_encoder(seed: int) -> list[MetricRow]:
    """Cosines of sentences whose values were published with the model."""
    from jobs.papers.ape.features import encode_texts

    first, *others = encode_texts(_PUBLISHED)
    return scalar_rows({sentence: float(first @ other) for sentence, other in zip(_PUBLISHED[1:], others, strict=True)})


def frozen(seed: int) -> list[MetricRow]:
    """What an alignment leaves as it was, and what an encoder in training mode would do."""
    from jobs.papers.ape.features import colours, encode_digits, encode_texts, image_encoder, training_digits
    from lightning_modules.encoders import read_pixels

    digits, encoder = training_digits(), image_encoder()
    model: Any = getattr(encoder, "model")  # noqa: B009 - of this encoder, not of the protocol
    before = {name: value.clone() for name, value in model.state_dict().items()}
    some = list(colours(digits.training[:64]))
    fresh = encoder.encode(some)
    module = ContrastiveAligner(seed=seed)
    pairs = make_pairs(digits.vectors().copy(), encode_texts(digits.captions), digits.captions)
    fit(module, pairs, 20, BATCH, seed)
    changed = sum(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    alone = np.concatenate([encoder.encode([image]) for image in some[:8]])
    pixels = torch.from_numpy(np.stack([read_pixels(image, 128) for image in some]))
    model.train()
    with torch.no_grad():
        state = torch.get_rng_state()
        torch.manual_seed(seed)  # drop-connect draws from torch's own numbers
        wrong = model.extract_features((pixels.float() - 127) / 128).mean((2, 3)).numpy()
        torch.set_rng_state(state)
    model.eval()
    model.load_state_dict(before)  # batch statistics were updated
    cosines = (_unit(wrong) * _unit(fresh)).sum(1)
    figures = {
        "changed": changed,
        "alone": float(np.abs(alone - encoder.encode(some[:8])).max()),
        "largest": float(np.abs(fresh).max()),
        "cached": float(np.abs(encode_digits(digits.training)[:64] - fresh).max()),
        "in training mode": float(cosines.mean()),
    }
    return scalar_rows(figures)


def own(method: str, seed: int, data: str, layers: int = 1, width: int = 1024, steps: int = 1) -> list[MetricRow]:
    """Align the pairs of a table; recall of those that it marks as out, or of a fifth."""
    from jobs.papers.ape.icon_cells import recall_rows
    from lightning_modules.alignment.data import AlignmentData

    table = AlignmentData(str(Path(data, "pairs.parquet")), seed=seed)
    training, test = table.training, table.validation
    assert test is not None
    if method == RIDGE:
        return recall_rows(RidgeAligner().fit(training), test.images, test.texts, "own")
    module = ContrastiveAligner(layers=layers, width=width, seed=seed)
    fit(module, training.shuffled(seed) if method == SHUFFLED else training, steps, BATCH, seed)
    return recall_rows(module, test.images, test.texts, "own")


def _unit(vectors: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found
