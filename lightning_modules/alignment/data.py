"""Features of images and captions from a file, for `ContrastiveAligner`."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from lightning_modules.alignment.pairs import PairsData, make_pairs, split_pairs
from lightning_modules.data.pairs import read_pairs
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice


class AlignmentData(PairsData):
    """A table of pairs, part of it held out.

    Args:
        pairs: a file as `read_pairs` takes it. Where it has a column `split`, its "out" rows are held out.
        held_out: elsewhere, the share of rows that are, drawn at random.
        budget: at most so many pairs are trained on, drawn at random; 0: all.
        batch_size: pairs that are told apart from each other.
        seed: of the draws and the batches.

    Raises:
        InputError: as `read_pairs` does; too few pairs.

    Example:
        shiftlab train --method lightning_modules.alignment.aligner:ContrastiveAligner \
            --dataset lightning_modules.alignment.data:AlignmentData \
            --hyperparameters '{pairs: pairs.parquet}' --steps 200 --run runs/aligned
    """

    def __init__(
        self,
        pairs: str,
        held_out: float = 0.2,
        budget: int = 0,
        batch_size: Annotated[int, Choice((64, 128, 256, 512, 1024))] = 256,
        seed: int = 0,
    ) -> None:
        if budget < 0:
            raise InputError(f"budget: is {budget}; give 0 or more pairs")
        read = read_pairs(pairs)
        found = make_pairs(np.array(read.image_features), np.array(read.text_features), read.captions)
        split = np.asarray(read.columns["split"]) if "split" in read.columns else None
        if split is None:
            training, held = split_pairs(len(found), held_out, seed)
        else:
            training, held = np.flatnonzero(split == "in"), np.flatnonzero(split == "out")
            if not len(held):
                raise InputError(f"{pairs}: column 'split' holds nothing out; mark some rows 'out' or drop the column")
        if budget:
            training = np.random.default_rng([seed, 1]).permutation(training)[:budget]
        super().__init__(found.take(training), found.take(held), batch_size, seed)
