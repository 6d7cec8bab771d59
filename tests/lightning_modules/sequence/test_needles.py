"""Needles where they should be, recall as counted by hand, taps and missing positions as their formulas say."""

import pytest
import torch

from lightning_modules.errors import InputError
from lightning_modules.sequence.cache import Cache
from lightning_modules.sequence.language_model import LanguageModel
from lightning_modules.sequence.needles import NeedleData, NeedleTask, recall
from lightning_modules.sequence.taps import CausalTaps
from lightning_modules.sequence.training import fit
from lightning_modules.sequence.transformer import Transformer, TransformerConfig


def source(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("depth", [None, 0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("length", [9, 11, 64])
def test_each_sequence_has_its_needles_and_asks_for_one(depth, length):
    if length == 9 and depth in (0.25, 0.5):
        depth = 2 / 6  # needles fill the whole sequence: they can begin at even places alone
    if length == 11 and depth == 0.25:
        depth = 0.5
    task = NeedleTask()
    rows = task.draw(400, length, source(), depth)
    assert rows.shape == (400, length + 1)
    for row in rows.tolist():
        at = [i for i, token in enumerate(row[:-2]) if token < 16]
        assert len({row[i] for i in at}) == 4
        assert all(16 <= row[i + 1] < 32 for i in at)
        rest = [row[i] for i in range(length - 1) if i not in at and i - 1 not in at]
        assert all(32 <= token < 48 for token in rest)
        (asked,) = [i for i in at if row[i] == row[-2]]
        assert row[asked + 1] == row[-1]
        if depth is not None:
            assert asked == round(depth * (length - 3))
    assert torch.equal(rows, task.draw(400, length, source(), depth))
    assert not torch.equal(rows, task.draw(400, length, source(1), depth))


def test_layouts_are_uniform():
    rows = NeedleTask(needles=2, keys=2).draw(30_000, 7, source())[:, :6]
    layouts = [tuple((row < 2).nonzero()[:, 0].tolist()) for row in rows]
    shares = {layout: layouts.count(layout) / len(layouts) for layout in set(layouts)}
    assert set(shares) == {(0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (2, 4)}
    assert max(abs(share - 1 / 6) for share in shares.values()) < 0.012
    fixed = NeedleTask(needles=2, keys=2).draw(30_000, 7, source(), 0.25)[:, :6]  # the needle asked for begins at 1
    others = [tuple((row < 2).nonzero()[:, 0].tolist()) for row in fixed]
    assert set(others) == {(1, 3), (1, 4)}
    assert abs(others.count((1, 3)) / len(others) - 0.5) < 0.015


class Oracle(Transformer):
    """Looks the key up, or names the first value there is."""

    def __init__(self, matches):
        super().__init__(TransformerConfig(48, 300, width=48, heads=1))
        self.matches = matches

    def features(self, tokens, cache=None):
        keys = tokens[:, :-1] == tokens[:, -1:] if self.matches else tokens[:, :-1] < 16
        found = tokens.gather(1, keys.float().argmax(1, keepdim=True) + 1)
        return torch.nn.functional.one_hot(found, 48).float()

    def logits(self, features):
        return features


def test_recall_counts_right_answers_and_values_of_the_sequence():
    task = NeedleTask()
    assert recall(Oracle(True), task, 64, 0.5, 200) == (1.0, 1.0)
    found, named = recall(Oracle(False), task, 64, 1.0, 2000)
    assert named == 1.0
    assert found == pytest.approx(1 / 16, abs=0.02)  # the last needle is never the first, but values repeat
    assert recall(Oracle(False), task, 64, 0.0, 200)[0] == 1.0


def test_a_decoder_of_neighbours_and_no_positions_recalls_at_twice_the_length_it_learned():
    task = NeedleTask(needles=2, keys=4, values=4, fillers=4)
    data = NeedleData(16, 64, task)
    module = LanguageModel(
        task.vocabulary,
        40,
        16,
        2,
        32,
        2,
        init_std=0.15,
        lr=5e-3,
        weight_decay=0.0,
        warmup_steps=10,
        positions="none",
        taps=2,
    )
    fit(module, data, 300)
    assert recall(module.transformer, task, 16, 0.5)[0] > 0.9
    assert recall(module.transformer, task, 32, 0.0)[0] > 0.9


def test_taps_are_the_sum_that_their_formula_says():
    taps = CausalTaps(3, 3).double()
    with torch.no_grad():
        taps.weight.normal_(generator=source())
    x = torch.randn(2, 7, 3, dtype=torch.float64, generator=source(1))
    for t in range(7):
        expected = sum(taps.weight[j] * x[:, t - j] for j in range(3) if t >= j)
        torch.testing.assert_close(taps(x)[:, t], expected)
    cache = Cache()
    parts = [taps(x[:, a:b], 0, cache) for a, b in ((0, 1), (1, 2), (2, 6), (6, 7))]
    torch.testing.assert_close(torch.cat(parts, 1), taps(x))


def test_taps_begin_with_the_scale_of_their_input():
    x = torch.randn(1, 10_000, 4, generator=source())
    for count in (1, 2, 4):
        assert float(CausalTaps(4, count)(x).std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("taps", [1, 2, 3])
def test_without_positions_a_cache_changes_nothing_and_no_position_sees_a_later_one(taps):
    config = TransformerConfig(30, 16, positions="none", taps=taps, init_std=0.3)
    model = Transformer(config, source()).double().eval()
    assert model.positions is None
    rows = torch.randint(30, (3, 16), generator=source(1))
    cache = Cache()
    parts = [model(rows[:, a:b], cache) for a, b in ((0, 5), (5, 6), (6, 11), (11, 16))]
    torch.testing.assert_close(torch.cat(parts, 1), model(rows), rtol=0, atol=1e-12)
    some, first = torch.tensor([2, 0, 0]), Cache()
    model(rows[:, :9], first)
    torch.testing.assert_close(model(rows[some, 9:], first.select(some)), model(rows)[some, 9:], rtol=0, atol=1e-12)
    changed = rows.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 30
    assert torch.equal(model(rows)[:, :7], model(changed)[:, :7])
    # The last position sees a set unless taps tell neighbours.
    swapped = rows.clone()
    swapped[:, [2, 9]] = rows[:, [9, 2]]
    one = Transformer(TransformerConfig(30, 16, layers=1, positions="none", taps=taps, init_std=0.3), source()).double()
    same = torch.allclose(one(rows)[:, -1], one(swapped)[:, -1], atol=1e-9)
    assert same == (taps == 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NeedleTask(needles=5, keys=4), "keys: 4 are too few for 5 needles"),
        (lambda: NeedleTask(values=0), "values: is 0"),
        (
            lambda: NeedleTask().draw(1, 8, source()),
            "length: 8 is too short for 4 needles and a question; give 9 or more",
        ),
        (lambda: NeedleTask().draw(1, 64, source(), 1.5), "depth: is 1.5; give 0 to 1"),
        (lambda: NeedleData(length=5), "length: 5 is too short"),
        (lambda: NeedleData(batch_size=0), "batch_size: is 0"),
        (lambda: TransformerConfig(5, 5, taps=0), "taps: is 0"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
