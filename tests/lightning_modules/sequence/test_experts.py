"""Experts against a loop over tokens, closed forms of their balance, and decoders that have them."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import quiet_lightning
from lightning_modules.sequence.byte_model import ByteLM
from lightning_modules.sequence.decoders import make_decoder
from lightning_modules.sequence.decoding import decode
from lightning_modules.sequence.experts import ExpertsConfig, Routing, SparseExperts, places, router_loss, watched
from lightning_modules.sequence.language_model import LanguageModel
from lightning_modules.sequence.text import TextData
from lightning_modules.sequence.transformer import FeedForward, TransformerConfig


def made(width=8, seed=0, scale=1.0, **options):
    config = ExpertsConfig(**{"experts": 5, "per_token": 2, "hidden": 6} | options)
    layer = SparseExperts(
        width, config, std=scale, out_std=scale, generator=torch.Generator().manual_seed(seed)
    ).double()
    with torch.no_grad():
        for bias in (layer.up_bias, layer.down_bias):
            bias.normal_(generator=torch.Generator().manual_seed(seed + 1))
    return layer


def drawn(*shape, seed=2):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(layer, x, room):
    """One token, one choice and one expert at a time; returns outputs [N, W] and which choices were kept [N, k]."""
    experts, k = layer.config.experts, layer.config.per_token
    chosen = []
    for token in x:
        scores = [math.exp(float(token @ layer.router[e])) for e in range(experts)]
        best = sorted(range(experts), key=lambda e: (-scores[e], e))[:k]
        chosen.append((best, [scores[e] / sum(scores[b] for b in best) for e in best]))
    queue, found, kept = [0] * experts, torch.zeros_like(x), torch.zeros(len(x), k, dtype=torch.bool)
    for choice in range(k):
        for at, (best, weights) in enumerate(chosen):
            e = best[choice]
            if queue[e] < room:
                inner = nn.functional.gelu(x[at] @ layer.up[e] + layer.up_bias[e, 0])
                found[at] += weights[choice] * (inner @ layer.down[e] + layer.down_bias[e, 0])
                kept[at, choice] = True
            queue[e] += 1
    return found, kept


@pytest.mark.parametrize(("k", "factor"), [(1, 1.0), (2, 0.9), (2, 0.5), (3, 0.7), (5, 1.0), (2, None)])
def test_outputs_and_gradients_are_those_of_a_loop_over_tokens(k, factor):
    layer, x = made(per_token=k, capacity_factor=factor), drawn(23, 8).requires_grad_()
    room = 23 if factor is None else math.ceil(factor * k * 23 / 5)
    found, routing = layer.routed(x)
    expected, kept = by_hand(layer, x, room)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(routing.kept, kept)
    if factor is not None and k < 5:
        assert not kept.all()
    cotangent = drawn(23, 8, seed=5)
    wanted = [x, layer.up, layer.up_bias, layer.down, layer.down_bias]
    ours = torch.autograd.grad((found * cotangent).sum(), wanted)
    theirs = torch.autograd.grad((expected * cotangent).sum(), wanted)
    for one, other, exact in zip(ours, theirs, [False, True, True, True, True], strict=True):
        if exact:  # by hand the router's weights are plain numbers: x has a second path there
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    assert torch.autograd.gradcheck(
        lambda x, r: _with_router(layer, x, r), (x[:6].detach().requires_grad_(), layer.router)
    )


def _with_router(layer, x, router):
    return torch.func.functional_call(layer, {"router": router}, (x,))


def test_equal_experts_are_one_dense_network():
    config = TransformerConfig(5, 5, width=16, hidden=24)
    dense = FeedForward(config)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in dense.parameters():
            p.normal_(0, 0.3, generator=source)
    sparse = SparseExperts(16, ExpertsConfig(8, 3, 24, capacity_factor=None), std=0.5, generator=source)
    with torch.no_grad():
        sparse.up.copy_(dense.up.weight.T.expand(8, -1, -1))
        sparse.up_bias.copy_(dense.up.bias.expand(8, 1, -1))
        sparse.down.copy_(dense.out.weight.T.expand(8, -1, -1))
        sparse.down_bias.copy_(dense.out.bias.expand(8, 1, -1))
    x = torch.randn(4, 50, 16, generator=source)
    assert float((sparse(x) - dense(x)).abs().max()) < 1e-6
    assert sparse(x).shape == x.shape


def routing_of(logits, k, kept=True):
    probabilities = logits.softmax(-1)
    best, experts = probabilities.topk(k)
    return Routing(
        experts, best / best.sum(-1, keepdim=True), logits, probabilities, torch.full((len(logits), k), kept)
    )


def test_the_balance_loss_is_one_when_uniform_and_the_number_of_experts_at_collapse():
    layer = made(experts=4)
    with torch.no_grad():
        layer.router.zero_()
    assert float(layer.routed(drawn(63, 8))[1].balance_loss()) == 1.0
    collapsed = torch.full((40, 8), -50.0)
    collapsed[:, 3] = 50.0
    assert float(routing_of(collapsed, 1).balance_loss()) == pytest.approx(8, abs=1e-5)
    even = torch.full((40, 8), -50.0)
    even[torch.arange(40), torch.arange(40) % 8] = 50.0
    routing = routing_of(even, 1)
    assert float(routing.balance_loss()) == pytest.approx(1, abs=1e-6)
    assert float(routing.statistics()["load_entropy"]) == pytest.approx(1, abs=1e-6)
    assert float(routing.statistics()["fullest"]) == pytest.approx(1)
    assert float(routing_of(collapsed, 1).statistics()["load_entropy"]) == 0


def test_gradients_of_the_balance_loss_go_through_the_probabilities_alone():
    logits = drawn(30, 6).requires_grad_()
    routing = routing_of(logits, 2)
    (found,) = torch.autograd.grad(routing.balance_loss(), logits)
    f = torch.bincount(routing.experts.flatten(), minlength=6).double() / 60
    p = logits.detach().softmax(-1)
    expected = 6 / 30 * p * (f - (p @ f)[:, None])  # softmax's Jacobian on a constant f
    torch.testing.assert_close(found, expected)
    (z,) = torch.autograd.grad(routing.z_loss(), logits)
    torch.testing.assert_close(z, 2 / 30 * logits.detach().logsumexp(-1, keepdim=True) * p)


def test_following_the_balance_loss_spreads_tokens():
    layer, x = made(width=16, experts=8, scale=1.0), drawn(400, 16) + 1.0
    before = layer.routed(x)[1].statistics()["fullest"]
    optimizer = torch.optim.SGD([layer.router], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        with watched(layer) as routings:
            layer(x)
        router_loss(routings, 1.0).backward()
        optimizer.step()
    after = layer.routed(x)[1].statistics()
    assert before > 1.8
    assert after["fullest"] < 1.5


def test_capacity_drops_what_is_over_and_nothing_at_experts_over_choices():
    for factor, dropped in ((5 / 2, False), (1.0, True), (0.1, True)):
        layer = made(capacity_factor=factor)
        _, routing = layer.routed(drawn(63, 8))
        assert bool(routing.statistics()["dropped"] > 0) == dropped
        counts = torch.bincount(routing.experts[routing.kept], minlength=5)
        assert int(counts.max()) <= math.ceil(factor * 2 * 63 / 5)
    assert ExpertsConfig(10, 1, capacity_factor=1.1).capacity(100) == 11
    assert ExpertsConfig(10, 1, capacity_factor=1.0).capacity(101) == 11
    assert ExpertsConfig(4, 2, capacity_factor=9.0).capacity(7) == 7


def test_first_choices_go_before_second_ones_of_earlier_tokens():
    layer = made(experts=2, per_token=2, capacity_factor=0.5)
    with torch.no_grad():
        layer.router.zero_()
        layer.router[0, 0] = 1.0
    x = drawn(4, 8)
    x[:, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])  # two want expert 0 first, two expert 1; each has two places
    kept = layer.routed(x)[1].kept
    assert torch.equal(kept, torch.tensor([[True, False]] * 4))


def test_places_are_those_of_queues():
    wanted = torch.tensor([2, 0, 2, 2, 1, 0])
    place, counts = places(wanted, 4)
    assert place.tolist() == [0, 0, 1, 2, 0, 1]
    assert counts.tolist() == [2, 1, 3, 0]


def test_a_dropped_token_is_carried_by_the_residual_alone():
    layer = made(per_token=1, capacity_factor=0.01)
    found, routing = layer.routed(drawn(40, 8))
    lost = ~routing.kept[:, 0]
    assert lost.sum() >= 35
    assert torch.equal(found[lost], torch.zeros_like(found[lost]))
    assert (found[~lost].abs().amax(-1) > 0).all()


def test_an_expert_without_tokens_gets_a_gradient_of_zero():
    layer = made()
    with torch.no_grad():
        layer.router.zero_()
    layer(drawn(9, 8)).square().sum().backward()
    assert layer.up.grad[:2].abs().amax((1, 2)).gt(0).all()
    assert torch.equal(layer.up.grad[2:], torch.zeros_like(layer.up.grad[2:]))
    assert layer(drawn(0, 8)).shape == (0, 8)


def test_it_works_under_autocast_with_a_router_in_full_precision():
    layer = made(width=32, capacity_factor=None, scale=0.2).float()
    x = drawn(3, 20, 32).float()
    plain, routing = layer.routed(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough, same = layer.routed(x)
        layer(x).float().square().sum().backward()
    assert same.logits.dtype == torch.float32
    assert torch.equal(same.experts, routing.experts)
    assert not torch.equal(rough, plain)
    torch.testing.assert_close(rough.float(), plain, rtol=0.05, atol=0.05)
    assert layer.router.grad.isfinite().all()


def test_routings_are_collected_only_while_they_are_watched():
    decoder = make_decoder(TransformerConfig(20, 12, layers=3, width=16), experts=ExpertsConfig(4, 2))
    tokens = torch.randint(20, (2, 12), generator=torch.Generator().manual_seed(0))
    with watched(decoder) as outer:
        decoder(tokens)
        with watched(decoder.blocks[1]) as inner:
            decoder(tokens)
    decoder(tokens)
    assert (len(outer), len(inner)) == (6, 1)
    assert float(router_loss(inner, 0.5, 0.0)) == pytest.approx(0.5 * float(inner[0].balance_loss()))
    both = router_loss(outer[:3], 0.01, 1e-3)
    each = sum(0.01 * r.balance_loss() + 1e-3 * r.z_loss() for r in outer[:3])
    assert float(both) == pytest.approx(float(each))
    copy.deepcopy(decoder)
    with pytest.raises(InputError, match="routings: there are none"):
        router_loss([])


def test_a_decoder_with_experts_is_causal_and_writes_as_it_reads_in_evaluation():
    decoder = make_decoder(
        TransformerConfig(20, 12, width=16, init_std=0.3, taps=2, positions="none"), experts=ExpertsConfig(4, 2)
    )
    decoder = decoder.double().eval()
    tokens = torch.randint(20, (6, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 20
    before, after = decoder(tokens), decoder(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=1e-12)
    assert ((before - after)[:, 7:].abs().amax(-1) > 1e-4).all()
    written = decode(decoder, tokens[:, :4], 8)
    whole = torch.cat([tokens[:, :4], written], 1)
    assert torch.equal(decoder(whole[:, :-1]).argmax(-1)[:, 3:], written)


def test_first_weights_come_from_the_seed_alone():
    config = TransformerConfig(20, 12, layers=2, width=16)
    before = torch.get_rng_state()
    one, same, other = (make_decoder(config, seed=seed, experts=ExpertsConfig(4, 2)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.blocks[0].feed_forward.up, other.blocks[0].feed_forward.up)
    layer = one.blocks[0].feed_forward
    assert layer.up.shape == (4, 16, 32)  # half of a dense network's 64, as two are used
    assert float(layer.up.std()) == pytest.approx(0.02, rel=0.1)
    assert float(layer.down.std()) == pytest.approx(0.01, rel=0.1)


def test_a_language_model_with_experts_learns_a_text_and_survives_a_checkpoint(tmp_path):
    (tmp_path / "text.txt").write_text("Each token goes through few of many experts. " * 60)
    data = TextData(str(tmp_path / "text.txt"), context=16, batch_size=32)
    sizes = {"context": 16, "layers": 1, "width": 32, "heads": 2, "lr": 1e-2, "warmup_steps": 5, "init_std": 0.1}

    def learn(**options):
        module = LanguageModel(**sizes, experts=4, **options)
        with quiet_lightning():
            trainer = make_trainer(60, [], limit_val_batches=0, num_sanity_val_steps=0)
            trainer.fit(module, datamodule=data)
        return module, trainer

    module, trainer = learn()
    again, _ = learn()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert 0 < found["train_load_entropy"] <= 1
    assert found["train_fullest"] >= 1
    assert 0 <= found["train_dropped"] < 1
    module.eval()
    assert float(module.per_example_losses(data.train_tokens).mean()) < 2.0
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    assert torch.equal(loaded.token_losses(data.train_tokens), module.token_losses(data.train_tokens))
    other, _ = learn(balance_weight=0.0)
    assert not torch.equal(
        other.transformer.blocks[0].feed_forward.router, module.transformer.blocks[0].feed_forward.router
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 2, "per_token": 3}, "per_token: 3 of 2 experts cannot be chosen; give 2 or fewer"),
        ({"per_token": 0}, "per_token: is 0; give 1 or more"),
        ({"experts": 0}, "experts: is 0; give 1 or more"),
        ({"hidden": 0}, "hidden: is 0; give 1 or more"),
        ({"capacity_factor": 0.0}, "capacity_factor: is 0.0; give a number above 0"),
        ({"capacity_factor": -1.0}, "capacity_factor: is -1.0"),
        ({"capacity_factor": math.inf}, "capacity_factor: is inf"),
    ],
)
def test_wrong_settings_are_one_line(options, message):
    with pytest.raises(InputError, match=message):
        ExpertsConfig(**options)


def test_a_model_of_bytes_hands_every_setting_on(tmp_path):
    given = {
        "context": 9,
        "layers": 1,
        "width": 16,
        "heads": 2,
        "hidden": 24,
        "positions": "none",
        "taps": 3,
        "experts": 4,
    }
    given |= {
        "per_token": 3,
        "capacity_factor": 0.5,
        "balance_weight": 0.2,
        "z_weight": 0.3,
        "init_std": 0.2,
        "seed": 5,
    }
    model, plain = ByteLM(**given), LanguageModel(256, **given)
    assert model.transformer.config == plain.transformer.config
    assert model.transformer.blocks[0].feed_forward.config == ExpertsConfig(4, 3, None, 0.5)
    tokens = torch.randint(256, (4, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.token_losses(tokens), plain.token_losses(tokens))
    assert torch.equal(model.training_step(tokens, 0), plain.training_step(tokens, 0))
    assert model.training_step(tokens, 0) > model.token_losses(tokens).mean() + 0.2  # balance is 1 or so, z is above 0
    trainer = make_trainer(1, [])
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = ByteLM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(loaded.token_losses(tokens), model.token_losses(tokens))


def test_wrong_settings_of_a_language_model_are_one_line():
    for options, message in (
        ({"experts": 4, "per_token": 5}, "per_token: 5 of 4"),
        ({"experts": 4, "balance_weight": -1.0}, "balance_weight: is -1.0; give 0 or more"),
        ({"experts": 4, "capacity_factor": -2.0}, "capacity_factor: is -2.0"),
        ({"positions": "sine"}, "positions: unknown 'sine'"),
    ):
        with pytest.raises(InputError, match=message):
            LanguageModel(**options)
    with pytest.raises(InputError, match="taps: are 2, but mamba has a convolution of its own"):
        make_decoder(TransformerConfig(5, 5, taps=2), "mamba")
