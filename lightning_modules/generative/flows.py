"""The flow variant: masked autoregressive flows whose base and whose every MADE see the codes and the previous block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError
from lightning_modules.generative.bijectors import AffineRankOneBijector, import_zuko
from lightning_modules.generative.generator import Generator, NeuralGenerator
from lightning_modules.generative.hierarchy import SelfReflectiveHierarchy
from lightning_modules.generative.layers import Mlp, standard_normal
from lightning_modules.generative.partition import BlockPartition, check_data
from lightning_modules.generative.posterior import NeuralPosterior
from lightning_modules.networks import initialise


class MaskedAutoregressiveFlow(nn.Module):
    """p(x | context): a unit-rank Gaussian whose parameters the context gives, pushed through MADEs that see it, too.

    Every other MADE goes through the entries backwards. The density of x costs one pass of each, a draw D of them.

    Args:
        dim: D.
        context_dim: width of the context; 0: none.
        hidden: widths of the hidden layers of every MADE and of the base's net.
        n_made: number of MADEs.
        generator: of the first weights; None: seed 0.

    Raises:
        InputError: zuko is not installed, or a size is out of range.

    Source: Papamakarios et al., "Masked Autoregressive Flow for Density Estimation", arXiv 1705.07057; paper, flow experiment.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        hidden: Sequence[int] = (64, 64),
        n_made: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        zuko = import_zuko()
        if dim < 1 or context_dim < 0 or n_made < 1 or not hidden or min(hidden) < 1:
            raise InputError(
                f"dim, context_dim, n_made, hidden: {dim}, {context_dim}, {n_made}, {list(hidden)}; give 1 or more of each, "
                "0 for no context"
            )
        super().__init__()
        source = generator or torch.Generator().manual_seed(0)
        self.dim, self.context_dim = dim, context_dim
        self.start = nn.Parameter(torch.zeros(3 * dim))
        self.base = Mlp([context_dim], hidden, 3 * dim, source, "silu") if context_dim else None
        self.mades = nn.ModuleList()
        with torch.random.fork_rng(devices=[]):  # zuko draws first weights from the global generator
            if dim == 1:  # of layers that `initialise` does not know
                torch.default_generator.manual_seed(int(torch.randint(2**31, (1,), generator=source)))
            for number in range(n_made):
                order = torch.arange(dim) if number % 2 == 0 else torch.arange(dim).flip(0)
                nets = {"hidden_features": tuple(hidden), "activation": nn.SiLU}
                self.mades.append(
                    zuko.flows.MaskedAutoregressiveTransform(dim, context_dim, order=order, **nets)
                    if dim > 1
                    else zuko.flows.ElementWiseTransform(1, context_dim, **(nets if context_dim else {}))
                )
        initialise(self.mades, source)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density [...] of x [..., D] given a context [..., C]; the two broadcast.

        Raises:
            InputError: the widths do not fit.
        """
        self._check(x, context)
        total = x.new_zeros(())
        for made in self.mades:
            x, found = made(context).call_and_ladj(x)
            total = total + found
        base = self._base(context)
        return standard_normal(self.dim, x).log_prob(base.inverse(x)) - base.log_abs_det() + total

    def sample(
        self, shape: Sequence[int], context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw x [*shape, D] given a context [*shape, C].

        Raises:
            InputError: the context's width does not fit.
        """
        noise = torch.randn((*shape, self.dim), generator=generator, device=self.start.device, dtype=self.start.dtype)
        self._check(noise, context)
        x = self._base(context).forward(noise)
        for made in reversed(self.mades):
            x = made(context).inv(x)
        return x

    def _base(self, context: Tensor | None) -> AffineRankOneBijector:
        return AffineRankOneBijector.of(self.start if self.base is None else self.start + self.base(context))

    def _check(self, x: Tensor, context: Tensor | None) -> None:
        width = 0 if context is None else context.shape[-1]
        if x.shape[-1] != self.dim or width != self.context_dim:
            raise InputError(f"x, context: widths {x.shape[-1]} and {width}; give {self.dim} and {self.context_dim}")


class FlowGenerator(NeuralGenerator):
    """A generator whose blocks come from flows, with z_l and x_{l-1} as their context.

    Args:
        partition: of real x. The paper: 5 layers.
        latent_dims: N_l of every layer. The paper: 40 each.
        hidden: widths of the hidden layers of every perceptron and MADE. The paper: MADEs of width 1024.
        n_made: MADEs of every layer. The paper: 2.
        data_coupling: whether a block sees the previous one.
        bijector: of the latents: "spline" as in the paper, "affine" or "identity".
        seed: of the first weights.

    Raises:
        InputError: as `NeuralGenerator` and `MaskedAutoregressiveFlow` raise.
    """

    _likelihoods = ("flow",)

    def __init__(
        self,
        partition: BlockPartition,
        latent_dims: Sequence[int],
        hidden: Sequence[int] = (64, 64),
        n_made: int = 2,
        data_coupling: bool = True,
        bijector: str = "spline",
        seed: int = 0,
    ) -> None:
        self.hidden, self.seed, self._n_made = tuple(hidden), seed, n_made
        super().__init__(partition, latent_dims, hidden, "flow", "conditional", data_coupling, bijector, 2 * seed)

    def _make_decoders(self, make: Callable[..., Mlp]) -> None:
        source = torch.Generator().manual_seed(2 * self.seed + 1_000_003)
        sizes = self.partition.sizes
        before = [0, *(sizes[:-1] if self.data_coupling else [0] * (len(sizes) - 1))]
        self.flows = nn.ModuleList(
            [
                MaskedAutoregressiveFlow(size, width + extra, self.hidden, self._n_made, source)
                for size, width, extra in zip(sizes, self.latent_dims, before, strict=True)
            ]
        )

    def log_likelihood(self, layer: int, block: Tensor, z: Tensor, before: Tensor | None) -> Tensor:
        """See `Generator`."""
        found: Tensor = self._flow(layer).log_prob(block.expand(*z.shape[:-1], -1), self._context(z, before))
        return found

    def total_log_likelihood(self, blocks: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
        """See `Generator`: flows go layer by layer."""
        return Generator.total_log_likelihood(self, blocks, codes)

    def mean(self, layer: int, z: Tensor, before: Tensor | None) -> Tensor:
        """Image of the base's mean: a flow's own mean has no closed form."""
        flow, context = self._flow(layer), self._context(z, before)
        x = flow._base(context).c
        for made in reversed(flow.mades):
            x = made(context).inv(x)
        return x

    def draw(self, layer: int, z: Tensor, before: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """See `Generator`."""
        return self._flow(layer).sample(z.shape[:-1], self._context(z, before), generator)

    def _flow(self, layer: int) -> MaskedAutoregressiveFlow:
        flow = self.flows[layer]
        assert isinstance(flow, MaskedAutoregressiveFlow)
        return flow

    def _context(self, z: Tensor, before: Tensor | None) -> Tensor:
        if before is None or not self.data_coupling:
            return z
        return torch.cat([z, before.expand(*z.shape[:-1], -1)], -1)


class SelfReflectiveFlow(SelfReflectiveHierarchy):
    """The self-reflective hierarchy whose blocks are masked autoregressive flows, for real x.

    Args:
        generator: p(x, z); the posterior's nets have its widths and its seed.

    Example:
        >>> SelfReflectiveFlow(FlowGenerator(BlockPartition((8, 8)), [4, 4])).elbo(torch.zeros(3, 16)).kl.shape
        torch.Size([3, 2])
    """

    def __init__(self, generator: FlowGenerator) -> None:
        seed = 2 * generator.seed + 1
        super().__init__(
            generator, NeuralPosterior(generator.partition, generator.latent_dims, generator.hidden, seed=seed)
        )


class FlowDensity(nn.Module):
    """A flow of the whole x without latents, with a loss: what the flow variant is compared with.

    Args:
        dim: D.
        hidden: widths of the hidden layers of every MADE.
        n_made: number of MADEs.
        seed: of the first weights.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (64, 64), n_made: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.flow = MaskedAutoregressiveFlow(dim, 0, hidden, n_made, torch.Generator().manual_seed(seed))
        self.partition = BlockPartition([dim])

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density [B] of x [B, D].

        Raises:
            InputError: x has another width, or holds NaN.
        """
        check_data(x, self.partition, binary=False)
        return self.flow.log_prob(x)
