"""What the cells about experts compute."""

from __future__ import annotations

import torch

from jobs.claims import MetricRow, scalar_rows
from lightning_modules.sequence.experts import ExpertsConfig, SparseExperts, watched
from lightning_modules.sequence.facts import FactData
from lightning_modules.sequence.language_model import LanguageModel
from lightning_modules.sequence.training import fit
from lightning_modules.sequence.transformer import FeedForward, TransformerConfig

_WIDTH, _EXPERTS = 64, 16
_TRIED, _TOKENS = 8, 63
"""Experts and tokens of the identities."""


@torch.no_grad()
def identities(seed: int) -> list[MetricRow]:
    """How far equal experts are from a dense network, the balance loss of a router of zeros, and what capacities drop."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(_TOKENS, _WIDTH, generator=generator)
    dense = FeedForward(TransformerConfig(1, 1, width=_WIDTH, hidden=_WIDTH))
    for p in dense.parameters():
        p.normal_(0, _WIDTH**-0.5, generator=generator)

    def layer(factor: float | None) -> SparseExperts:
        made = SparseExperts(_WIDTH, ExpertsConfig(_TRIED, 2, _WIDTH, factor), std=_WIDTH**-0.5, generator=generator)
        for ours, theirs in ((made.up, dense.up.weight), (made.down, dense.out.weight)):
            ours.copy_(theirs.T.expand_as(ours))
        for ours, theirs in ((made.up_bias, dense.up.bias), (made.down_bias, dense.out.bias)):
            ours.copy_(theirs.expand_as(ours))
        return made

    equal = layer(None)
    found = {"difference": float((equal(x) - dense(x)).abs().max())}
    for name, factor in (("full", _TRIED / 2), ("even", 1.0)):
        found[f"dropped_{name}"] = float(layer(factor).routed(x)[1].statistics()["dropped"])
    equal.router.zero_()
    found["balance"] = float(equal.routed(x)[1].balance_loss())
    return scalar_rows(found)


def memory(
    method: str, seed: int, domains: int, steps: int, hidden: int, lr: float, init_std: float, balance: float = 0.0
) -> list[MetricRow]:
    """Train a decoder on facts; the share that it knows, and how its experts share the load, by layer."""
    experts = _EXPERTS if method == "experts" else 1
    data = FactData(domains, seed=seed)
    module = LanguageModel(
        data.vocabulary_size, 3, 2, width=_WIDTH, hidden=hidden, init_std=init_std, lr=lr, weight_decay=0.0,
        warmup_steps=20, seed=seed, experts=experts, capacity_factor=0.0, balance_weight=balance,
    )  # fmt: skip
    fit(module, data, steps)
    module.eval()
    with torch.no_grad(), watched(module) as routings:
        logits = module(data.facts[:, :-1])[:, -1]
    rows = scalar_rows(
        {
            "accuracy": float((logits.argmax(-1) == data.facts[:, -1]).float().mean()),
            "loss": float(torch.nn.functional.cross_entropy(logits, data.facts[:, -1])),
            "parameters": sum(p.numel() for p in module.parameters()),
        }
    )
    for number, routing in enumerate(routings):
        rows += scalar_rows({k: float(v) for k, v in routing.statistics().items()}, number, "layer")
        rows += scalar_rows({f"load {e}": float(f) for e, f in enumerate(routing.load())}, number, "layer")
    return rows
