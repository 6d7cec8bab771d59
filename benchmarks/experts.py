"""Sparse experts: tokens a second of the batched layer, against a Python loop over experts and a dense network of the same active width."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/experts.py` has only this folder

from benchmarks.harness import Figure, alternate, quick_asked, ratio, show
from lightning_modules.sequence.experts import ExpertsConfig, SparseExperts
from lightning_modules.sequence.transformer import FeedForward, TransformerConfig

SIZES = ((64, 16, 32, 1024), (64, 64, 32, 2048), (256, 64, 128, 2048))
"""Width, experts, hidden units of each, tokens; two experts a token."""


def loop(layer: SparseExperts, x: Tensor) -> Tensor:
    """The same function without a limit of capacity, expert by expert: gather its tokens, apply it, add to where they were."""
    probabilities = (x @ layer.router.T).softmax(-1)
    weights, chosen = probabilities.topk(layer.config.per_token)
    weights = weights / weights.sum(-1, keepdim=True)
    found = torch.zeros_like(x)
    for e in range(layer.config.experts):
        token, choice = (chosen == e).nonzero(as_tuple=True)
        if len(token):
            inner = nn.functional.gelu(x[token] @ layer.up[e] + layer.up_bias[e])
            out = inner @ layer.down[e] + layer.down_bias[e]
            found = found.index_add(0, token, weights[token, choice, None] * out)
    return found


def compare(width: int, experts: int, hidden: int, tokens: int, rounds: int, repeats: int) -> list[Figure]:
    """Tokens a second, forward and backward, of all three."""
    generator = torch.Generator().manual_seed(0)
    config = ExpertsConfig(experts, 2, hidden, capacity_factor=None)
    layer = SparseExperts(width, config, std=width**-0.5, out_std=hidden**-0.5, generator=generator)
    dense = FeedForward(TransformerConfig(1, 1, width=width, hidden=2 * hidden))
    with torch.no_grad():
        for p in dense.parameters():
            p.normal_(0, width**-0.5, generator=generator)
    x = torch.randn(tokens, width, generator=generator, requires_grad=True)
    torch.testing.assert_close(layer(x), loop(layer, x), rtol=1e-3, atol=1e-5)

    def clocked(call: Callable[[], Tensor]) -> Callable[[], float]:
        def measure() -> float:
            began = time.perf_counter()
            for _ in range(repeats):
                call().square().sum().backward()  # type: ignore[no-untyped-call]
            return repeats * tokens / (time.perf_counter() - began)

        return measure

    ways = {"batched": lambda: layer(x), "loop": lambda: loop(layer, x), "dense": lambda: dense(x)}
    measures = {name: clocked(call) for name, call in ways.items()}
    for measure in measures.values():
        measure()  # first calls also pay for memory
    taken = alternate(measures, rounds)
    name = f"width {width}, {experts} experts of {hidden}, {tokens} tokens"
    share = statistics.median(our / its for our, its in zip(taken["batched"], taken["dense"], strict=True))
    return [
        ratio(f"{name}: tokens a second, against a loop", taken["batched"], taken["loop"], 1),
        Figure(
            "the same, against a dense network of the same active width",
            share,
            "x",
            None,
            statistics.median(taken["batched"]),
            statistics.median(taken["dense"]),
        ),
    ]


def main() -> None:
    """Measure."""
    quick = quick_asked(__doc__)
    torch.set_num_threads(1)
    figures = []
    for size in SIZES:
        figures += compare(*size, rounds=3 if quick else 9, repeats=2 if quick else 10)
    show(
        "Sparse experts, one thread, forward and backward",
        figures,
        [
            "loop: for each expert its tokens are gathered, served and added back; both give the same numbers",
            "dense: one feed-forward network with as many hidden units as a token's two experts have together",
        ],
    )


if __name__ == "__main__":
    main()
