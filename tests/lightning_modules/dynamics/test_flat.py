import pytest
import torch
from torch import nn

from lightning_modules.dynamics import flat as flats
from lightning_modules.dynamics.flat import FlatParameters, directional_derivatives, losses_at, projected_gradients
from lightning_modules.errors import InputError
from lightning_modules.sequence.transformer import Transformer, TransformerConfig


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.net[0].bias.requires_grad_(False)

    def per_example_losses(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        config = TransformerConfig(5, 6, layers=1, width=8, heads=2, init_std=0.4)
        self.decoder = Transformer(config, torch.Generator().manual_seed(0)).double()

    def per_example_losses(self, batch):
        logits = self.decoder(batch[:, :-1])
        return nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").mean(1)


GENERATOR = torch.Generator().manual_seed(1)
DENSE = torch.randn(9, 4, generator=GENERATOR, dtype=torch.float64), torch.arange(9) % 3
TOKENS = torch.randint(5, (9, 6), generator=GENERATOR)
CASES = pytest.mark.parametrize(("module", "batch"), [(Dense(), DENSE), (Tokens(), TOKENS)], ids=["dense", "tokens"])


def explicit(module, batch):
    """Every example's gradient [n, D], one backward pass each."""
    flat = FlatParameters(module)
    losses = module.per_example_losses(batch)
    return torch.stack([flat.join(torch.autograd.grad(one, flat.tensors(), retain_graph=True)) for one in losses])


def directions(module, count):
    return torch.randn(
        count, len(FlatParameters(module)), generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )


def test_a_vector_holds_what_is_trained_and_ties_count_once():
    dense, tokens = Dense(), Tokens()
    assert len(FlatParameters(dense)) == 24 + 18 + 3
    assert len(FlatParameters(tokens)) == sum(p.numel() for p in tokens.parameters())
    flat = FlatParameters(dense)
    vector = flat.vector()
    flat.set(2 * vector)
    assert torch.equal(flat.vector(), 2 * vector)
    assert torch.equal(dense.net[2].weight, flat.split(2 * vector)["net.2.weight"])
    assert torch.equal(flat.join(list(flat.split(vector).values())), vector)
    flat.set(vector)


def test_losses_are_a_function_of_the_vector():
    module = Dense()
    losses, theta = losses_at(module, DENSE), FlatParameters(module).vector()
    assert torch.equal(losses(theta), module.per_example_losses(DENSE))
    moved = losses(theta + 0.1)
    FlatParameters(module).set(theta + 0.1)
    torch.testing.assert_close(moved, module.per_example_losses(DENSE))


@CASES
def test_directional_derivatives_are_products_with_the_gradients(module, batch):
    some = directions(module, 5)
    wanted = some @ explicit(module, batch).T
    theta = FlatParameters(module).vector()
    for chunk in (1, 2, 16):
        found = directional_derivatives(losses_at(module, batch), theta, some, chunk)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@CASES
@pytest.mark.parametrize("count", [1, 2, 5])
def test_both_ways_to_project_gradients_agree(module, batch, count, monkeypatch):
    some = directions(module, count)
    wanted = some @ explicit(module, batch).T
    torch.testing.assert_close(projected_gradients(module, batch, some), wanted, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(flats, "_FEW_DIRECTIONS", 0)
    monkeypatch.setattr(flats, "_GRADIENT_NUMBERS", 4 * some.shape[1])  # four examples at a time, then one
    for uses in (0.0, 1e9):
        monkeypatch.setattr(flats, "_MANY_USES", uses)
        torch.testing.assert_close(projected_gradients(module, batch, some), wanted, rtol=1e-9, atol=1e-12)


def test_the_way_follows_how_often_weights_are_used():
    dense, tokens = Dense(), Tokens()
    assert flats._uses(dense, DENSE, len(FlatParameters(dense))) == pytest.approx(42 / 45)
    assert flats._uses(tokens, TOKENS, len(FlatParameters(tokens))) > 3


def test_mass_is_every_tensors_share():
    flat = FlatParameters(Dense())
    vector = torch.zeros(len(flat), dtype=torch.float64)
    vector[0], vector[-1] = 1, 2
    assert flat.mass(vector) == {"net.0.weight": 0.2, "net.2.weight": 0.0, "net.2.bias": 0.8}
    assert set(flat.mass(0 * vector).values()) == {0.0}


def test_another_architectures_vector_is_refused():
    with pytest.raises(InputError, match="checkpoint: has 7 parameters, the module 45; give one of this architecture"):
        FlatParameters(Dense()).set(torch.zeros(7))


def test_nothing_to_train_is_refused():
    with pytest.raises(InputError, match="module: ReLU has no trainable parameters"):
        FlatParameters(nn.ReLU())
