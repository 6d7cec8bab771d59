"""Heads: sizes, weights, dropout. Pairs: checks and batches."""

import itertools

import numpy as np
import pytest
import torch

from lightning_modules.alignment.costs import Cost, cost_table, counted, trained_parameters
from lightning_modules.alignment.heads import AlignmentHead
from lightning_modules.alignment.pairs import PairBatches, PairsData, make_pairs, split_pairs
from lightning_modules.errors import InputError


@pytest.mark.parametrize(("layers", "count"), [(1, 492_800), (2, 1_706_240), (4, 3_805_440)])
def test_heads_have_the_numbers_that_their_sizes_say(layers, count):
    assert trained_parameters(AlignmentHead(384, 1280, layers, 1024)) == count


def test_one_layer_is_a_linear_map():
    head = AlignmentHead(3, 2)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    expected = x @ head.layers[0].weight.T + head.layers[0].bias
    assert torch.allclose(head(x), expected)
    assert torch.equal(head(x, torch.Generator().manual_seed(0)), head(x))  # nothing to drop


def test_dropout_is_the_generators_and_keeps_the_mean():
    head = AlignmentHead(4, 3, 2, 64, 0.5)
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first, again, other = (head(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    many = head(x.repeat(20_000, 1), torch.Generator().manual_seed(3))
    assert torch.allclose(many.mean(0), head(x)[0], atol=0.02)
    assert torch.equal(head.train()(x), head.eval()(x))


def test_first_weights_come_from_their_generator():
    one, same, other = (AlignmentHead(4, 3, 2, 8, 0.1, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(one.layers[1].weight, same.layers[1].weight)
    assert not torch.equal(one.layers[1].weight, other.layers[1].weight)


def test_a_pass_has_every_pair_once_and_every_pass_another_order():
    batches = list(itertools.islice(iter(PairBatches(10, 5, 3)), 4))
    passes = [torch.cat(batches[:2]).tolist(), torch.cat(batches[2:]).tolist()]
    assert [sorted(p) for p in passes] == [list(range(10))] * 2
    assert passes[0] != passes[1]
    again = list(itertools.islice(iter(PairBatches(10, 5, 3)), 4))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert len(next(iter(PairBatches(3, 256, 0)))) == 3


def test_equal_captions_are_known_with_and_without_their_words():
    vectors = torch.eye(3)
    assert make_pairs(vectors, vectors, ["a", "b", "a"]).captions.tolist() == [0, 1, 0]
    texts = vectors[[0, 1, 0]]
    groups = make_pairs(vectors, texts).captions
    assert groups[0] == groups[2] != groups[1]


def test_shuffling_deals_the_same_captions_to_other_images():
    pairs = make_pairs(torch.eye(50), torch.eye(50))
    shuffled = pairs.shuffled(0)
    assert torch.equal(shuffled.images, pairs.images)
    assert not torch.equal(shuffled.texts, pairs.texts)
    assert torch.equal(shuffled.texts.sum(0), pairs.texts.sum(0))


def test_a_split_parts_all_rows():
    training, held = split_pairs(10, 0.3, 0)
    assert sorted([*training, *held]) == list(range(10))
    assert len(held) == 3


def test_validation_batches_have_no_lonely_pair():
    pairs = make_pairs(torch.eye(9), torch.eye(9))
    sizes = [len(batch) for batch in PairsData(pairs, pairs, batch_size=4).val_dataloader()]
    assert sizes == [3, 3, 3]


def test_costs_are_set_beside_a_reference():
    with counted(pairs=5) as cost:
        sum(range(200_000))
    assert cost.seconds > 0
    rows = cost_table({"a": Cost(10, 5, 2.0), "b": Cost(40, 5, 8.0)}, "b")
    assert [(row["name"], row["parameter_share"], row["second_share"]) for row in rows] == [
        ("a", 0.25, 0.25),
        ("b", 1, 1),
    ]


def test_wrong_inputs_are_named():
    eye = torch.eye(3)
    nan = eye.clone()
    nan[1, 1] = float("nan")
    for make, message in (
        (lambda: AlignmentHead(4, 3, layers=0), "layers: is 0"),
        (lambda: AlignmentHead(4, 3, dropout=1.0), "dropout: is 1.0"),
        (lambda: AlignmentHead(0, 3), "d_text: is 0"),
        (lambda: AlignmentHead(4, 3)(torch.zeros(2, 5)), r"have shape \[2, 5\], the head takes \[B, 4\]"),
        (lambda: make_pairs(eye, eye[:2]), "there are 3 images, 2 texts"),
        (lambda: make_pairs(eye, eye, ["a"]), "3 texts, 1 captions"),
        (lambda: make_pairs(eye, eye, ["a", " ", "c"]), "captions: row 1 has none"),
        (lambda: make_pairs(nan, eye), "images: row 1 is not finite"),
        (lambda: make_pairs(eye, torch.zeros(3, 2)), "texts: row 0 is zero"),
        (lambda: make_pairs(np.zeros((0, 2)), np.zeros((0, 2))), "pairs: there are none"),
        (lambda: PairBatches(10, 1, 0), "batch_size: is 1, which has no negatives"),
        (lambda: PairBatches(1, 8, 0), "pairs: 1 to train on"),
        (lambda: PairsData(make_pairs(eye, eye), make_pairs(torch.eye(4), torch.eye(4))), "use one encoder"),
        (lambda: split_pairs(10, 1.0, 0), "held_out: is 1.0"),
        (lambda: split_pairs(10, 0.1, 0), "fewer than two on a side"),
    ):
        with pytest.raises(InputError, match=message):
            make()
