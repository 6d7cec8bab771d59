"""Masked autoregressive flows, and the hierarchy whose blocks they are."""

import sys

import pytest
import torch

pytest.importorskip("zuko")

from lightning_modules.errors import InputError
from lightning_modules.generative.flows import FlowGenerator, MaskedAutoregressiveFlow, SelfReflectiveFlow
from lightning_modules.generative.hierarchy import self_reflective
from lightning_modules.generative.iaf import InverseAutoregressiveVAE
from lightning_modules.generative.partition import BlockPartition


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def lively(module, scale=0.3):
    source = generator(5)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=source, dtype=p.dtype))
    return module


def test_a_made_is_triangular_and_sees_all_of_its_context():
    flow = lively(MaskedAutoregressiveFlow(5, 3, (16, 16), 2).double())
    x = torch.randn(5, dtype=torch.double, generator=generator())
    context = torch.randn(3, dtype=torch.double, generator=generator(1))
    for number, made in enumerate(flow.mades):
        on_x, on_context = torch.autograd.functional.jacobian(lambda x, c, made=made: made(c)(x), (x, context))
        if number % 2:  # backwards
            on_x = on_x.flip(0, 1)
        assert (on_x.triu(1) == 0).all()
        assert (on_x.tril() != 0).sum() == 15
        assert (on_context != 0).all()
        determinant = made(context).call_and_ladj(x)[1]
        assert determinant.item() == pytest.approx(on_x.diagonal().abs().log().sum().item(), abs=1e-10)


def test_log_densities_agree_with_autograd():
    flow = lively(MaskedAutoregressiveFlow(4, 2, (8,), 3).double())
    x = torch.randn(4, dtype=torch.double, generator=generator())
    context = torch.randn(2, dtype=torch.double, generator=generator(1))

    def to_noise(x):
        for made in flow.mades:
            x = made(context)(x)
        return flow._base(context).inverse(x)

    jacobian = torch.autograd.functional.jacobian(to_noise, x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(to_noise(x)).sum()
    expected = normal + torch.linalg.slogdet(jacobian)[1]
    assert flow.log_prob(x, context).item() == pytest.approx(expected.item(), abs=1e-10)


def test_a_flow_integrates_to_one():
    flow = lively(MaskedAutoregressiveFlow(2, 0, (8, 8), 2).double(), 0.15)
    steps = 640
    line = (torch.arange(steps, dtype=torch.double) + 0.5) * (80 / steps) - 40
    total = 0.0
    with torch.no_grad():
        for row in line.split(80):
            total += flow.log_prob(torch.cartesian_prod(row, line)).exp().sum().item()
    assert total * (80 / steps) ** 2 == pytest.approx(1, abs=1e-4)


def test_samples_of_a_flow_have_its_density():
    flow = lively(MaskedAutoregressiveFlow(3, 2, (8,), 2).double())
    context = torch.randn(2, dtype=torch.double, generator=generator(1)).expand(20_000, 2)
    with torch.no_grad():
        x = flow.sample((20_000,), context, generator())
        base = torch.randn(20_000, 3, generator=generator(), dtype=torch.double)
        back = x
        for made in flow.mades:
            back = made(context)(back)
        assert torch.allclose(flow._base(context).inverse(back), base, atol=1e-6)


@pytest.mark.parametrize("bijector", ["spline", "affine"])
def test_the_bound_of_a_flow_hierarchy_is_one(bijector):
    """Integral over all x of the mean weight: 1, for blocks of one entry."""
    model = SelfReflectiveFlow(FlowGenerator(BlockPartition((1, 1)), [2, 2], (8,), 1, bijector=bijector, seed=3))
    lively(model.generator, 0.05)
    with torch.no_grad():  # a posterior a little wider, so that its weights have a variance
        for correction in model.posterior.corrections:
            correction.output.bias[2:] += 0.3
    steps, k = 40, 150
    line = (torch.arange(steps) + 0.5) * (20 / steps) - 10
    x = torch.cartesian_prod(line, line)
    with torch.no_grad():
        weights = model.log_weights(x, k, generator()).double().exp() * (20 / steps) ** 2
    error = (weights.var(0) / k).sum().sqrt().item()
    assert error < 0.05
    assert abs(weights.mean(0).sum().item() - 1) < 4 * error + 1e-3
    model.elbo(x[:9], 1, generator()).elbo.mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    drawn, codes = model.sample(7, generator())
    assert drawn.shape == (7, 2)
    assert len(codes) == 2
    assert model.reconstruct(x[:4], generator()).isfinite().all()


def test_making_flows_takes_nothing_from_the_global_random_numbers():
    made = []
    for junk in (3, 4):
        torch.manual_seed(junk)
        before = torch.get_rng_state()
        made.append(
            [
                MaskedAutoregressiveFlow(4, 2, (8,), 2),
                MaskedAutoregressiveFlow(1, 2, (8,), 2),
                MaskedAutoregressiveFlow(1, 0, (8,), 2),
                InverseAutoregressiveVAE(6, 4, (8,)),
                SelfReflectiveFlow(FlowGenerator(BlockPartition((2, 1)), [2, 2], (8,))),
            ]
        )
        assert torch.equal(torch.get_rng_state(), before)
    for one, two in zip(*made, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_what_is_missing_or_wrong_is_said(monkeypatch):
    flow = MaskedAutoregressiveFlow(3, 2, (8,), 1)
    with pytest.raises(InputError, match="give 3 and 2"):
        flow.log_prob(torch.zeros(1, 3))
    with pytest.raises(InputError, match="^dim, context_dim"):
        MaskedAutoregressiveFlow(0)
    with pytest.raises(InputError, match="splines?.*take affine"):
        self_reflective(BlockPartition((2, 2)), [1, 1], bijector="spline")
    with pytest.raises(InputError, match="^latents: 1"):
        InverseAutoregressiveVAE(6, 1)
    monkeypatch.setitem(sys.modules, "zuko", None)
    for make in (
        lambda: MaskedAutoregressiveFlow(3),
        lambda: InverseAutoregressiveVAE(6, 4),
        lambda: self_reflective(BlockPartition((2, 2)), [2, 2], bijector="spline"),
    ):
        with pytest.raises(InputError, match=r"pip install 'shiftlab\[flows\]'"):
            make()
