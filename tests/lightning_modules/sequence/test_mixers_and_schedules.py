"""The state-space mixer against its recurrence, and learning rates against their formula."""

import math

import pytest
import torch

from lightning_modules.errors import InputError
from lightning_modules.sequence.decoders import make_decoder
from lightning_modules.sequence.decoding import decode
from lightning_modules.sequence.mamba import Mamba
from lightning_modules.sequence.schedules import adamw, warmup_schedule, warmup_share
from lightning_modules.sequence.transformer import Transformer, TransformerConfig


def lively(module):
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(
                p + 0.3 * torch.randn(p.shape, generator=source) if p.isfinite().all() and p.abs().max() < 1e3 else 0
            )
    return module


def test_a_mixer_follows_its_recurrence():
    mixer = lively(
        _filled(Mamba(TransformerConfig(5, 9, width=8), state=3, generator=torch.Generator().manual_seed(0)))
    )
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(2))
    u, gate = (x @ mixer.into.weight.T + mixer.into.bias)[0].chunk(2, -1)
    found, state = [], torch.zeros(16, 3)
    for time in range(6):
        seen = torch.stack([u[at] if at >= 0 else torch.zeros(16) for at in range(time - 3, time + 1)], 1)
        now = torch.nn.functional.silu((seen * mixer.kernel).sum(1) + mixer.kernel_bias)
        rank, b, c = (mixer.selection.weight @ now).split([1, 3, 3])
        delta = torch.nn.functional.softplus(mixer.step.weight @ rank + mixer.step_bias)
        a = -mixer.log_rates.exp()
        state = (delta[:, None] * a).exp() * state + delta[:, None] * b * now[:, None]
        found.append((state @ c + mixer.skip * now) * torch.nn.functional.silu(gate[time]))
    expected = torch.stack(found) @ mixer.out.weight.T + mixer.out.bias
    assert torch.allclose(mixer(x)[0], expected, atol=1e-5)


def _filled(mixer):
    with torch.no_grad():
        for part in mixer.modules():
            if isinstance(part, torch.nn.Linear):
                part.weight.zero_()
                if part.bias is not None:
                    part.bias.zero_()
    return mixer


def test_a_state_space_decoder_is_causal_and_writes_as_it_reads():
    model = lively(make_decoder(TransformerConfig(11, 9, width=16), "mamba", state=4)).eval()
    tokens = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    assert torch.equal(model(tokens)[:, :5], model(changed)[:, :5])
    assert not torch.equal(model(tokens)[:, 5:], model(changed)[:, 5:])
    written = decode(model, tokens[:, :4], 5)
    whole = torch.cat([tokens[:, :4], written], 1)
    assert torch.equal(model(whole[:, :-1]).argmax(-1)[:, 3:], written)


def test_decoders_come_from_their_seed_alone():
    for mixer in ("attention", "mamba"):
        config = TransformerConfig(11, 9, width=16)
        torch.manual_seed(0)
        one = make_decoder(config, mixer, seed=3)
        torch.manual_seed(1)
        same, other = make_decoder(config, mixer, seed=3), make_decoder(config, mixer, seed=4)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(InputError, match="mixer: unknown 'conv'; choose from attention, mamba"):
        make_decoder(config, "conv")
    with pytest.raises(InputError, match="state: is 0"):
        make_decoder(config, "mamba", state=0)


def test_rates_rise_and_fall_as_they_should():
    share = warmup_share(10, 110, 0.05)
    assert [share(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert share(60) == pytest.approx(0.05 + 0.95 / 2)
    assert share(35) == pytest.approx(0.05 + 0.95 * (1 + math.cos(math.pi / 4)) / 2)
    assert (share(110), share(10_000)) == pytest.approx((0.05, 0.05))
    flat = warmup_share(10, 5, shape="constant")
    assert (flat(4), flat(10), flat(1000)) == (0.5, 1.0, 1.0)
    assert warmup_share(0, 10)(0) == 1.0
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule, rates = warmup_schedule(optimizer, 2, 6), []
    for _ in range(7):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2 * warmup_share(2, 6)(step) for step in range(7)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 10), "warmup_steps: is -1"),
        ((20, 10), "end within the warm-up of 20"),
        ((1, 10, 2.0), "final_share: is 2.0"),
        ((1, 10, 0.0, "step"), "shape: unknown 'step'"),
    ],
)
def test_wrong_schedules_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        warmup_share(*arguments)


def test_adamw_decays_what_is_trained_and_leaves_the_frozen_alone():
    model = Transformer(TransformerConfig(5, 4, width=8, freeze_embeddings=True), torch.Generator().manual_seed(0))
    optimizer = adamw(model, 0.1, 0.5)
    assert model.embedding.weight not in set(optimizer.param_groups[0]["params"])
    before = model.embedding.weight.clone()
    kernel = model.blocks[0].mixer.qkv.weight
    start = kernel.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    assert torch.equal(model.embedding.weight, before)
    assert torch.allclose(kernel, start * (1 - 0.1 * 0.5))
