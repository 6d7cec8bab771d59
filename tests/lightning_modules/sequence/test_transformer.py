import math

import pytest
import torch
from torch import nn

from lightning_modules.errors import InputError
from lightning_modules.sequence.decoding import decode, sampled
from lightning_modules.sequence.transformer import Block, Cache, Transformer, TransformerConfig, attend, rotate


def make(seed=0, **options):
    config = TransformerConfig(**{"vocabulary": 30, "context": 16, "init_std": 0.3} | options)
    return Transformer(config, torch.Generator().manual_seed(seed)).double().eval()


def tokens(rows, length, seed=1, vocabulary=30):
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (TransformerConfig(12, 12), 101_632),
        (TransformerConfig(404, 9), 126_528),
        (TransformerConfig(404, 9, tie=False), 126_528 + 404 * 64),
        (TransformerConfig(404, 9, positions="rotary"), 126_528 - 9 * 64),
        (TransformerConfig(10, 5, layers=1, width=8, heads=2, hidden=12), 80 + 40 + 16 + 32 + 216 + 72 + 108 + 104),
    ],
)
def test_it_has_the_parameters_that_its_sizes_say(config, count):
    assert sum(p.numel() for p in Transformer(config).parameters()) == count


def by_hand(model, row):
    """The same network for one sequence, one position and one head at a time, in loops."""
    config, state = model.config, dict(model.named_parameters())

    def norm(x, name):
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def layer(x, name):
        return state[f"{name}.weight"] @ x + state[f"{name}.bias"]

    xs = [state["embedding.weight"][t] + state["positions"][i] for i, t in enumerate(row)]
    size = config.head_width
    for b in range(config.layers):
        at = f"blocks.{b}"
        qkv = [layer(norm(x, f"{at}.norm"), f"{at}.mixer.qkv").view(3, config.heads, size) for x in xs]
        mixed = []
        for i in range(len(xs)):
            heads = []
            for h in range(config.heads):
                weights = torch.stack([(qkv[i][0, h] @ qkv[j][1, h] / math.sqrt(size)).exp() for j in range(i + 1)])
                heads.append(sum(w * qkv[j][2, h] for j, w in enumerate(weights / weights.sum())))
            mixed.append(layer(torch.cat(heads), f"{at}.mixer.out"))
        xs = [x + m for x, m in zip(xs, mixed, strict=True)]
        for i, x in enumerate(xs):
            hidden = layer(norm(x, f"{at}.feed_forward_norm"), f"{at}.feed_forward.up")
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            xs[i] = x + layer(hidden, f"{at}.feed_forward.out")
    return torch.stack([state["embedding.weight"] @ norm(x, "norm") for x in xs])


def test_it_is_the_network_that_its_equations_say():
    model = make(width=8, heads=2, hidden=12)
    row = tokens(1, 6)
    torch.testing.assert_close(model(row)[0], by_hand(model, row[0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("positions", ["learned", "rotary", "none"])
@pytest.mark.parametrize("fused", [False, True])
def test_no_position_sees_a_later_one(positions, fused):
    model = make(positions=positions, fused=fused)
    rows = tokens(2, 12)
    changed = rows.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 30
    before, after = model(rows), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=1e-12)
    assert ((before - after)[:, 7:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("positions", ["learned", "rotary", "none"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_cache_changes_nothing(positions, fused):
    model = make(positions=positions, fused=fused)
    rows, cache = tokens(3, 16), Cache()
    parts = [model(rows[:, a:b], cache) for a, b in ((0, 5), (5, 6), (6, 11), (11, 16))]
    torch.testing.assert_close(torch.cat(parts, 1), model(rows), rtol=0, atol=1e-12)
    assert cache.length == 16
    some = torch.tensor([2, 0, 0])
    first = Cache()
    model(rows[:, :9], first)
    torch.testing.assert_close(model(rows[some, 9:], first.select(some)), model(rows)[some, 9:], rtol=0, atol=1e-12)


def test_fused_attention_is_the_same_function():
    plain, fused = make(), make(fused=True)
    torch.testing.assert_close(plain(tokens(2, 16)), fused(tokens(2, 16)), rtol=0, atol=1e-12)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def score(at, other):
        return float((rotate(q, at) * rotate(k, other)).sum())

    assert score(3, 1) == pytest.approx(score(12, 10), abs=1e-6)
    assert abs(score(3, 1) - score(4, 1)) > 1e-3
    assert float(rotate(q, 5).norm()) == pytest.approx(float(q.norm()))


def test_forward_mode_and_double_backward_go_through_it():
    model = make(width=8, heads=2)
    rows, name = tokens(2, 4), "blocks.0.mixer.qkv.weight"
    weight = model.get_parameter(name)
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(w):
        return torch.func.functional_call(model, {name: w}, (rows,)).square().mean()

    _, slope = torch.func.jvp(loss, (weight,), (direction,))
    (gradient,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
    assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=1e-9)
    (curved,) = torch.autograd.grad((gradient * direction).sum(), weight)
    nearby = [torch.func.grad(loss)(weight + e * direction) for e in (1e-5, -1e-5)]
    torch.testing.assert_close(curved, (nearby[0] - nearby[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_first_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    first, again, other = make(), make(), make(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    rows = tokens(2, 5)
    assert torch.equal(first(rows), again(rows))
    assert not torch.equal(first(rows), other(rows))
    out = make(width=64, layers=4).blocks[0].feed_forward.out.weight
    assert float(out.std()) == pytest.approx(0.3 / math.sqrt(8), rel=0.05)
    assert float(make(embedding_std=2.0, vocabulary=500).embedding.weight.std()) == pytest.approx(2, rel=0.02)


def test_frozen_embeddings_stay():
    for tie in (True, False):
        model = make(freeze_embeddings=True, tie=tie)
        learned = {name for name, p in model.named_parameters() if p.requires_grad}
        assert "embedding.weight" not in learned
        assert "head.weight" not in learned
        assert "positions" in learned
        model(tokens(2, 5)).square().mean().backward()
        assert model.embedding.weight.grad is None


def test_decoding_goes_on_with_what_is_most_likely():
    model = make()
    prefix, found = tokens(4, 3), decode(model, tokens(4, 3), 6)
    whole = prefix
    for _ in range(6):
        whole = torch.cat([whole, model(whole)[:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(found, whole[:, 3:])
    assert decode(model, prefix, 0).shape == (4, 0)


def test_sampling_follows_the_probabilities():
    model = make(vocabulary=5)
    prefix = tokens(1, 3, vocabulary=5).expand(20_000, -1)
    drawn = decode(model, prefix, 1, sampled(torch.Generator().manual_seed(0), 2.0))[:, 0]
    wanted = (model(prefix[:1])[0, -1] / 2).softmax(-1)
    torch.testing.assert_close(drawn.bincount(minlength=5) / 20_000, wanted.float(), rtol=0, atol=0.012)


def test_other_mixers_and_networks_can_take_their_place():
    class Nothing(nn.Module):
        def forward(self, x, layer, cache):
            return torch.zeros_like(x)

    config = TransformerConfig(30, 16, layers=1)
    model = Transformer(config, blocks=[Block(config, mixer=Nothing(), feed_forward=nn.Identity())])
    assert model(tokens(2, 5)).shape == (2, 5, 30)
    assert not any("qkv" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers: is 0; give 1 or more"),
        ({"hidden": 0}, "feed_forward: is 0"),
        ({"heads": 3}, "heads: 3 do not divide the width 64; give a divisor"),
        ({"positions": "sine"}, "positions: unknown 'sine'; choose from learned, rotary, none"),
        ({"positions": "rotary", "width": 12}, "heads: of odd width 3"),
        ({"dropout": 1.0}, "dropout: is 1.0"),
    ],
)
def test_bad_sizes_are_one_line(options, message):
    with pytest.raises(InputError, match=message):
        TransformerConfig(**{"vocabulary": 5, "context": 5} | options)


def test_too_long_a_sequence_is_refused():
    with pytest.raises(InputError, match="context: 17 positions do not fit into 16"):
        make()(tokens(1, 17))


def test_attention_of_the_last_positions_alone():
    q, k, v = torch.randn(3, 1, 2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = attend(q, k, v)
    torch.testing.assert_close(attend(q[:, :, 4:], k, v), whole[:, :, 4:])
