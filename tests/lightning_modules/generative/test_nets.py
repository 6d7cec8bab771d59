"""Nets side by side are what they are made of, and each posterior's nets are as deep and see what was asked."""

import pytest
import torch

from lightning_modules.generative.hierarchy import self_reflective
from lightning_modules.generative.layers import Mlp, StackedMlp, pad
from lightning_modules.generative.partition import BlockPartition
from lightning_modules.generative.posterior import FAMILIES

BITS = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def lively(model):
    source = generator()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.25 * torch.randn(p.shape, generator=source))
    return model


def test_stacked_perceptrons_are_what_they_are_made_of():
    source = generator()
    nets = [Mlp([n, m], (7, 5), out, source) for n, m, out in ((3, 2, 4), (1, 6, 9), (3, 6, 2))]
    stacked = StackedMlp(nets)
    first, second = (
        [torch.randn(*lead, net.first[i].in_features) for net in nets] for i, lead in ((0, (4, 8)), (1, (8,)))
    )
    together = stacked(pad(first), pad(second))
    assert together.shape == (3, 4, 8, 9)
    for number, net in enumerate(nets):
        expected = net(first[number], second[number])
        width = expected.shape[-1]
        assert torch.allclose(together[number, ..., :width], expected, atol=1e-6)
        assert torch.allclose(stacked.alone(number, first[number], second[number])[..., :width], expected, atol=1e-6)
        assert (together[number, ..., width:] == 0).all()
    sum(together[i, ..., : net.output.out_features].sum() for i, net in enumerate(nets)).backward()
    assert stacked.first[0].grad[1, 1:].abs().max() == 0  # padding stays zero under any optimiser
    assert stacked.rest[1].grad[2, :, 2:].abs().max() == 0


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 3, 2)])
def test_all_blocks_at_once_are_the_sum_of_each(likelihood, sizes):
    model = lively(self_reflective(BlockPartition(sizes), [3, 1, 2], (8,), likelihood))
    codes = [torch.randn(4, 64, n, generator=generator(n)) for n in (3, 1, 2)]
    blocks = model.partition.split(BITS)
    with torch.no_grad():
        total = model.generator.total_log_likelihood(blocks, codes)
        terms = [model.generator.log_likelihood(i, blocks[i], codes[i], blocks[i - 1] if i else None) for i in range(3)]
    assert total.std() > 0.1
    assert torch.allclose(total, sum(terms), atol=1e-4)


def test_the_correction_is_as_deep_as_asked_in_both_families():
    for posterior in FAMILIES:
        for depth in (0, 1, 2):
            model = self_reflective(BlockPartition((2, 2)), [3] * 2, (8, 5), posterior=posterior, correction=depth)
            for net in model.posterior.corrections:
                assert [m.in_features for m in net.rest if hasattr(m, "in_features")] == [5] * depth
            assert len(model.posterior.estimates) == (posterior == "self_reflective")


def test_the_independent_posterior_reads_no_codes():
    """q(eps_l | x) of one draw is that of another; the self-reflective one is not."""
    x = BITS[:3]
    for posterior, moves in (("self_reflective", True), ("independent", False)):
        model = lively(self_reflective(BlockPartition((2, 2, 2)), [3] * 3, (8,), posterior=posterior))
        evidence = model.evidence(x)
        laws = [model.posterior.conditional(2, torch.full((1, 3, 3), value), evidence[2]) for value in (0.0, 1.0)]
        assert ((laws[0].mean - laws[1].mean).abs().max() > 0.01).item() is moves
