"""Alignment: a head on features encoded once, against frozen encoders that run at every step, and against training the text tower."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/alignment.py` has only this folder

from benchmarks.harness import Figure, alternate, ratio, show
from jobs.papers.ape.features import colours, encode_texts, icon_data, image_encoder, text_encoder, training_digits
from jobs.papers.ape.icon_cells import lit, vectors
from jobs.papers.ape.names import OWN_STYLE, STEPS
from lightning_modules.alignment.aligner import ContrastiveAligner
from lightning_modules.alignment.costs import trained_parameters
from lightning_modules.alignment.dual_encoder import DualEncoder, fit
from lightning_modules.alignment.losses import info_nce
from lightning_modules.alignment.pairs import make_pairs
from lightning_modules.alignment.retrieval import retrieval_recall
from lightning_modules.alignment.towers import LiTModule
from lightning_modules.encoders import minilm_tower
from lightning_modules.lightning_import import pl

BATCH, BAR, EVERY = 256, 0.42, 10
"""Pairs of a batch; R@5 of unseen icons that both must reach, and steps between two looks at it."""


def steps_a_second(rounds: int) -> list[Figure]:
    """Steps of the same head on the same pairs, their features at hand or computed anew; and a whole training of 1,000 pairs."""
    digits = training_digits()
    images, captions = list(colours(digits.training)), list(digits.captions)
    began = time.process_time()
    pairs = make_pairs(image_encoder().encode(images), text_encoder().encode(captions))
    encoding = time.process_time() - began
    module = ContrastiveAligner()
    module.connect(pairs.texts.shape[1], pairs.images.shape[1])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    rows = np.random.default_rng(0).permutation(len(pairs))[:BATCH]

    def step(v: Tensor, u: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = info_nce(v, module.text_vectors(u), module.log_scale)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def cached() -> float:
        began = time.process_time()
        for _ in range(20):
            step(pairs.images[rows], pairs.texts[rows])
        return 20 / (time.process_time() - began)

    def encoded() -> float:
        began = time.process_time()
        v = image_encoder().encode([images[row] for row in rows])
        step(torch.from_numpy(v), torch.from_numpy(encode_texts([captions[row] for row in rows])))
        return 1 / (time.process_time() - began)

    taken = alternate({"cached": cached, "encoded": encoded}, rounds)
    whole = [encoding + STEPS / rate for rate in taken["cached"]]
    running = [STEPS / rate for rate in taken["encoded"]]
    return [
        ratio(f"steps a second, batch {BATCH}", taken["cached"], taken["encoded"], 20),
        ratio(
            f"trainings of {STEPS} steps a second, encoding counted",
            [1 / s for s in whole],
            [1 / s for s in running],
            10,
        ),
    ]


class UntilRecalled(pl.Callback):
    """Ends a training as soon as R@5 of unseen icons is reached; looking at it does not count."""

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        self._images, self._texts = images, texts
        self.recall, self.looking = 0.0, 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look, every few steps."""
        if trainer.global_step % EVERY:
            return
        began = time.process_time()
        found = retrieval_recall(pl_module.embed_images(self._images), pl_module.embed_texts(self._texts), (5,))
        self.recall = found.image_to_text[5]
        trainer.should_stop = self.recall >= BAR
        self.looking += time.process_time() - began


def against_lit(folder: str) -> list[Figure]:
    """Processor seconds to the same R@5, the linear head's encoding of captions counted, and the numbers trained."""
    parts = icon_data(folder)
    names = parts.names(parts.training)
    tower, tokenizer = minilm_tower(dropout=0.0)
    began = time.process_time()
    encode_texts(names)
    encoding = time.process_time() - began
    ways: dict[str, tuple[DualEncoder, Any, int, int]] = {
        "head": (ContrastiveAligner(), vectors(parts, False), STEPS, BATCH),
        "LiT": (LiTModule(tower, 384, 1280, tokenizer.ids["[PAD]"], lr=3e-4), lit(parts, False), 60, 128),
    }
    seconds, trained = dict[str, float](), dict[str, int]()
    for name, (module, (images, texts), steps, batch) in ways.items():
        watch = UntilRecalled(images[OWN_STYLE][1], texts[1])
        began = time.process_time()
        fit(module, make_pairs(images[OWN_STYLE][0], texts[0], names), steps, batch, callbacks=[watch])
        taken = time.process_time() - began - watch.looking
        seconds[name] = taken if watch.recall >= BAR else math.inf
        trained[name] = trained_parameters(module)
    ours = seconds["head"] + encoding
    return [
        Figure(f"icons: seconds to R@5 {BAR}, LiT over head", seconds["LiT"] / ours, "x", 5, ours, seconds["LiT"]),
        Figure("icons: numbers trained, head over LiT", trained["head"] / trained["LiT"], "x", 0.03, trained["head"], trained["LiT"], at_most=True),
    ]  # fmt: skip


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats: under a minute, and rougher")
    parser.add_argument("--icons", default="", help="folder of the icons, as `shiftlab reproduce ape --data` takes it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = steps_a_second(1 if options.quick else 3)
    notes = ["processor seconds of one thread; both sides take the same step on the same pairs"]
    if options.icons and not options.quick:
        figures += against_lit(options.icons)
        notes.append(
            f"both train on 1,309 icons until {BAR} of 327 unseen ones have their caption among the nearest five"
        )
    else:
        notes.append("give --icons FOLDER, without --quick, to compare with training the text tower")
    show("Alignment", figures, notes)


if __name__ == "__main__":
    main()
