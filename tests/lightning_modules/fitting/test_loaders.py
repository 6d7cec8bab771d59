"""Loaders dealt out to processes: the batches stay those of the loader, whoever takes part and wherever it goes on."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_modules.errors import InputError
from lightning_modules.fitting.keeping import Position
from lightning_modules.fitting.loaders import DealtLoader
from lightning_modules.fitting.spread import Spread

BEGINNING = Position()
ROWS = TensorDataset(torch.arange(23), torch.arange(23) * 10)


class Stream(IterableDataset):
    def __iter__(self):
        for _ in range(6):
            yield torch.rand(4), torch.from_numpy(np.random.rand(4)), "name"  # noqa: NPY002


class Jittered(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, row):
        return row, torch.rand(()), np.random.rand(), random.random()  # noqa: NPY002


def shuffled():
    return DataLoader(ROWS, batch_size=5, shuffle=True)


def dealt(loader, rank=0, world=1, seed=7, start=BEGINNING):
    return DealtLoader(loader, Spread(rank, world), seed, start, "Data.train_dataloader")


def passes(loader, count=2):
    return [[batch[0].tolist() for batch in loader] for _ in range(count)]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_parts_make_up_the_batch_whatever_the_number_of_processes(world):
    whole = passes(dealt(shuffled()))
    parts = [passes(dealt(shuffled(), rank, world)) for rank in range(world)]
    assert whole[0] != whole[1]
    for number, batches in enumerate(whole):
        assert sorted(sum(batches, [])) == list(range(23))
        for index, batch in enumerate(batches):
            pieces = [parts[rank][number][index] for rank in range(world)]
            # The last batch has 3 rows: a fourth process takes one that weighs nothing.
            spare = [piece for piece in pieces if len(piece) and world > len(batch)]
            assert sum(pieces, [])[: len(batch)] == batch if not spare else set(sum(pieces, [])) == set(batch)


def test_weights_are_shares_of_the_batch_times_the_number_of_processes():
    loaders = [dealt(shuffled(), rank, 4) for rank in range(4)]
    sizes = [[len(batch[0]) for batch in loader] for loader in loaders]
    weights = [[loader.next_weight() for _ in range(5)] for loader in loaders]
    assert [sum(w[n] for w in weights) for n in range(5)] == pytest.approx([4.0] * 5)
    assert [w[4] for w in weights].count(0.0) == 1
    assert all(size >= 1 for process in sizes for size in process)


def test_a_training_goes_on_in_the_middle_of_a_pass():
    whole = passes(dealt(shuffled()), 3)
    late = dealt(shuffled(), start=Position(1, 2))
    assert [batch[0].tolist() for batch in late] == whole[1][2:]
    assert [batch[0].tolist() for batch in late] == whole[2]


def test_order_depends_on_the_seed_and_moves_no_random_numbers_of_others():
    torch.manual_seed(0)
    before = torch.rand(3).tolist()
    torch.manual_seed(0)
    loader = iter(dealt(shuffled()))
    first = next(loader)[0].tolist()
    next(loader)
    assert torch.rand(3).tolist() == before
    torch.rand(100)
    assert passes(dealt(shuffled()))[0][0] == first
    assert passes(dealt(shuffled(), seed=8))[0][0] != first


def test_a_generator_of_the_users_own_counts():
    def with_generator(seed):
        return DataLoader(ROWS, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(seed))

    assert passes(dealt(with_generator(1))) == passes(dealt(with_generator(1)))
    assert passes(dealt(with_generator(1))) != passes(dealt(with_generator(2)))
    late = dealt(with_generator(1), start=Position(1, 0))
    assert [batch[0].tolist() for batch in late] == passes(dealt(with_generator(1)))[1]


@pytest.mark.parametrize("world", [1, 2])
def test_iterables_are_dealt_out_by_row(world):
    whole = list(dealt(DataLoader(Stream(), batch_size=None)))
    parts = [list(dealt(DataLoader(Stream(), batch_size=None), rank, world)) for rank in range(world)]
    for index, (first, second, name) in enumerate(whole):
        assert torch.equal(torch.cat([p[index][0] for p in parts]), first)
        assert torch.equal(torch.cat([p[index][1] for p in parts]), second)
        assert {p[index][2] for p in parts} == {name}
    late = list(dealt(DataLoader(Stream(), batch_size=None), start=Position(0, 4)))
    assert torch.equal(late[0][0], whole[4][0])


def test_processes_of_the_loader_draw_from_the_pass():
    def draws(seed=7):
        loader = dealt(DataLoader(Jittered(), batch_size=4, shuffle=True, num_workers=2), seed=seed)
        return [[value.tolist() for value in batch] for batch in loader]

    assert draws() == draws()
    assert draws() != draws(8)


def test_the_length_is_the_loaders_and_unknown_for_streams():
    assert len(dealt(shuffled(), 1, 2)) == 5
    with pytest.raises(TypeError):
        len(dealt(DataLoader(Stream(), batch_size=None)))


def test_what_cannot_be_dealt_out_is_refused():
    with pytest.raises(InputError, match="gives dict; give one loader of training data"):
        dealt({"a": shuffled()})
    ragged = DataLoader([(torch.zeros(3), torch.zeros(4))], batch_size=None)
    with pytest.raises(InputError, match=r"tensors have \[3, 4\] rows"):
        list(dealt(ragged, 0, 2))


def test_a_stream_with_a_batch_size_is_dealt_out_too():
    parts = [
        list(DealtLoader(DataLoader(Stream(), batch_size=4), Spread(rank, 2), 0, Position(), "x")) for rank in range(2)
    ]
    whole = list(DealtLoader(DataLoader(Stream(), batch_size=4), Spread(), 0, Position(), "x"))
    assert len(whole) == len(parts[0]) > 1
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([first[0], second[0]]), batch[0])
