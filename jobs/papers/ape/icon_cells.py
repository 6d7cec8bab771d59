"""Cells on icons: which caption is whose, in the style that was trained on and in another."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.ape.features import IconData, encode_texts, icon_data
from jobs.papers.ape.names import (
    ARMS,
    BATCH,
    BUDGET,
    CLIP,
    CURATION_STEPS,
    DOWNSTREAM,
    HEADS,
    LIT,
    LIT_BATCH,
    OTHER_STYLE,
    OWN_STYLE,
    RIDGE,
    SHUFFLED,
    STEPS,
    TARGETS,
)
from lightning_modules.alignment.aligner import ContrastiveAligner
from lightning_modules.alignment.costs import Cost, counted, trained_parameters
from lightning_modules.alignment.curation import CurationSampler
from lightning_modules.alignment.dual_encoder import DualEncoder, fit
from lightning_modules.alignment.pairs import PairTensors, make_pairs
from lightning_modules.alignment.references import RidgeAligner
from lightning_modules.alignment.retrieval import retrieval_recall
from lightning_modules.alignment.towers import ClipFromScratch, LiTModule, bags_of_words, vocabulary_of
from lightning_modules.alignment.zero_shot import Aligner
from lightning_modules.encoders import minilm_tower


def align(
    method: str, seed: int, data: str, subcategories: bool, centred: bool = False, steps: int = STEPS
) -> list[MetricRow]:
    """Align by a method; recall of unseen icons in both styles, and what it took."""
    parts = icon_data(data, subcategories)
    images, texts = (clip if method == CLIP else lit if method == LIT else vectors)(parts, centred)
    training = make_pairs(images[OWN_STYLE][0], texts[0], parts.names(parts.training))
    if method == SHUFFLED:
        training = training.shuffled(seed)
    aligner, cost = train(method, training, seed, steps)
    rows = scalar_rows(
        {"parameters": cost.parameters, "pairs": cost.pairs, "seconds": cost.seconds}, environment="cost"
    )
    for style, sides in images.items():
        rows += recall_rows(aligner, sides[-1], texts[-1], style)
    test = F.normalize(torch.as_tensor(images[OWN_STYLE][-1]).flatten(1).float(), dim=1)
    return rows + scalar_rows({"cosine": float((test @ test.T).mean())})


Sides = tuple[dict[str, list[torch.Tensor]], list[torch.Tensor]]
"""Images by style, those of the training (if they are needed) before those of the test; and texts, likewise."""


def vectors(parts: IconData, centred: bool) -> Sides:
    """Vectors of both encoders; centred with the mean of the unit image vectors of the training."""
    every, texts = torch.tensor(parts.images()), torch.tensor(parts.texts())
    images = {
        OWN_STYLE: [every[parts.training], every[parts.test]],
        OTHER_STYLE: [torch.tensor(parts.images(OTHER_STYLE))],
    }
    if centred:
        mean = F.normalize(images[OWN_STYLE][0], dim=1).mean(0)
        images = {style: [F.normalize(side, dim=1) - mean for side in sides] for style, sides in images.items()}
    return images, [texts[parts.training], texts[parts.test]]


def lit(parts: IconData, centred: bool) -> Sides:
    """Vectors of images, tokens of captions."""
    tokens, _ = minilm_tower()[1](parts.icons.names)
    return vectors(parts, centred)[0], [tokens[parts.training], tokens[parts.test]]


def clip(parts: IconData, centred: bool) -> Sides:
    """Pixels, and bags of the training's words."""
    known = vocabulary_of(parts.names(parts.training))
    images = {style: [torch.from_numpy(parts.pixels(style, parts.test))] for style in (OWN_STYLE, OTHER_STYLE)}
    images[OWN_STYLE].insert(0, torch.from_numpy(parts.pixels(OWN_STYLE, parts.training)))
    return images, [bags_of_words(parts.names(rows), known) for rows in (parts.training, parts.test)]


def train(method: str, pairs: PairTensors, seed: int, steps: int) -> tuple[Aligner, Cost]:
    """Train by a method, and say what it took; features are there already."""
    if method == RIDGE:
        with counted(len(pairs)) as cost:
            ridge = RidgeAligner().fit(pairs)
        cost.parameters = ridge.parameters
        return ridge, cost
    module: DualEncoder
    if method == LIT:
        tower, tokenizer = minilm_tower(dropout=0.0)
        module = LiTModule(tower, 384, pairs.images.shape[1], tokenizer.ids["[PAD]"], lr=3e-4, seed=seed)
    elif method == CLIP:
        module = ClipFromScratch(pairs.texts.shape[1], seed=seed)
    else:
        module = ContrastiveAligner(layers=HEADS[method], seed=seed)
    with counted(len(pairs)) as cost:
        fit(module, pairs, steps, LIT_BATCH if method == LIT else BATCH, seed)
    cost.parameters = trained_parameters(module)
    return module, cost


def recall_rows(aligner: Aligner, images: torch.Tensor, texts: torch.Tensor, environment: str) -> list[MetricRow]:
    """Recall at 1, 5 and 10 both ways."""
    found = retrieval_recall(aligner.embed_images(images), aligner.embed_texts(texts))
    figures = {f"image_to_text_{k}": share for k, share in found.image_to_text.items()}
    figures |= {f"text_to_image_{k}": share for k, share in found.text_to_image.items()}
    return scalar_rows(figures | {"pairs": found.pairs}, environment=environment)


def curate(seed: int, data: str) -> list[MetricRow]:
    """Recall among 90 unseen icons of animals, nature, food and drink, by the pairs that were trained on."""
    parts = icon_data(data)
    fits = np.array([category in DOWNSTREAM for category in parts.icons.categories])
    generator = np.random.default_rng(seed)
    relevant = generator.permutation(np.flatnonzero(fits))
    test, relevant = relevant[:TARGETS], relevant[TARGETS:]
    irrelevant = generator.permutation(np.flatnonzero(~fits))
    every = np.concatenate([relevant, irrelevant])
    similar = every[
        CurationSampler(BUDGET, "similarity", seed).choose(parts.names(every), parts.names(test), encode_texts)
    ]
    arms = (relevant[:BUDGET], irrelevant[:BUDGET], irrelevant, every, similar)
    pairs = make_pairs(parts.images().copy(), parts.texts().copy(), parts.icons.names)
    rows: list[MetricRow] = []
    for name, chosen in zip(ARMS, arms, strict=True):
        aligner, _ = train("linear", pairs.take(chosen), seed, CURATION_STEPS)
        rows += recall_rows(aligner, pairs.images[test], pairs.texts[test], name)
        rows += scalar_rows({"trained_on": len(chosen), "relevant": float(fits[chosen].mean())}, environment=name)
    return rows


def depth(seed: int, data: str, layers: int, pairs: int) -> list[MetricRow]:
    """Recall of a head of so many layers on so many pairs."""
    parts = icon_data(data)
    both = make_pairs(parts.images().copy(), parts.texts().copy(), parts.icons.names)
    module = ContrastiveAligner(layers=layers, seed=seed)
    fit(module, both.take(parts.training[:pairs]), STEPS, BATCH, seed)
    return recall_rows(module, both.images[parts.test], both.texts[parts.test], OWN_STYLE)
