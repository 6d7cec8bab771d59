"""One observational data set and d interventional ones; and simulated worlds with everything known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lightning_modules.causal.contrastive.mixing import REACH, Mixing
from lightning_modules.causal.contrastive.scm import Intervention, LinearGaussianSCM, cross_entropy_at, sample_er_dag
from lightning_modules.errors import InputError

Array = np.ndarray

_PART = 1024
"""Images that are counted at once."""


class InterventionalDataset:
    """Rows of one observational and d interventional environments; environment t has one intervened latent, nobody knows which.

    Args:
        x_obs: [n, dx] observational rows, floats or uint8 pixels.
        x_int: d arrays [n_t, dx].
        d: latents, where known; None: as many as there are interventional environments.

    Raises:
        InputError: another number of interventional sets than d, d < 2, dx < d, other widths, an empty environment, NaN or
            infinite numbers.
    """

    def __init__(self, x_obs: Array, x_int: Sequence[Array], d: int | None = None) -> None:
        d = len(x_int) if d is None else d
        if d < 2:
            raise InputError(f"dim_z: {d} latents; give 2 or more, with one interventional environment each")
        if len(x_int) != d:
            what = "fewer environments than latents" if len(x_int) < d else "more environments than latents"
            raise InputError(
                f"x_int: {len(x_int)} interventional environments for {d} latents, {what}; give one a latent"
            )
        names = ["obs", *(f"env_{t + 1}" for t in range(d))]
        arrays = [_checked(name, rows) for name, rows in zip(names, [x_obs, *x_int], strict=True)]
        width = arrays[0].shape[1]
        for name, rows in zip(names, arrays, strict=True):
            if rows.shape[1] != width:
                raise InputError(f"{name}: has {rows.shape[1]} features, obs {width}; give equally wide environments")
            if rows.dtype != arrays[0].dtype:
                raise InputError(
                    f"{name}: holds {rows.dtype}, obs {arrays[0].dtype}; give pixels everywhere or nowhere"
                )
        if width < d:
            raise InputError(f"dim_x: {width} features cannot hold {d} latents; give {d} or more")
        self.x_obs, self.x_int = arrays[0], arrays[1:]

    @property
    def d(self) -> int:
        """Number of latents and of interventional environments."""
        return len(self.x_int)

    @property
    def dx(self) -> int:
        """Width of the rows."""
        return int(self.x_obs.shape[1])

    @property
    def is_image(self) -> bool:
        """Whether rows are pixels in uint8."""
        return bool(self.x_obs.dtype == np.uint8)

    @cached_property
    def scales(self) -> tuple[Array, Array]:
        """Mean and standard deviation [dx] of observational rows; of pixels (in [0, 1]) one of each for all."""
        if self.is_image:
            values, shares = np.arange(256) / 255, self._shades / self._shades.sum()
            mean = float(shares @ values)
            return np.full(self.dx, mean), np.full(self.dx, max(float(shares @ (values - mean) ** 2) ** 0.5, 1e-6))
        spread = self.x_obs.std(0)
        return self.x_obs.mean(0), np.where(spread > 1e-12, spread, 1.0)

    @property
    def _shades(self) -> Array:
        """[256] how often each value is among observational pixels, counted in parts: floats of all would take 4 times the room."""
        parts = range(0, len(self.x_obs), _PART)
        counts = [np.bincount(self.x_obs[i : i + _PART].reshape(-1), minlength=256) for i in parts]
        found: Array = np.sum(counts, 0)
        return found

    def split(self, share: float, seed: int) -> tuple[InterventionalDataset, InterventionalDataset]:
        """Split every environment at random: (training, validation with `share` of the rows, one at least of each)."""
        parts = [self.split_rows(share, seed, part) for part in (0, 1)]
        training, held = ([rows[order] for rows, order in zip(self.arrays, part, strict=True)] for part in parts)
        return InterventionalDataset(training[0], training[1:]), InterventionalDataset(held[0], held[1:])

    def split_rows(self, share: float, seed: int, part: int) -> list[Array]:
        """Rows of each environment, obs first, that `split` puts into the training (part 0) or the validation (part 1)."""
        if not 0 < share < 1:
            raise InputError(f"validation: the share is {share}; give one between 0 and 1")
        rng, found = np.random.default_rng([seed, 72]), []
        for number, rows in enumerate(self.arrays):
            if len(rows) < 2:
                raise InputError(f"{f'env_{number}' if number else 'obs'}: 1 row cannot be split; give 2 or more")
            order, count = rng.permutation(len(rows)), min(max(1, round(share * len(rows))), len(rows) - 1)
            found.append(order[:count] if part else order[count:])
        return found

    @property
    def arrays(self) -> list[Array]:
        """All environments' rows, obs first."""
        return [self.x_obs, *self.x_int]

    def shuffled(self, seed: int) -> InterventionalDataset:
        """Deal the interventional rows out anew: every environment has rows of all interventions."""
        rows = np.concatenate(self.x_int)[np.random.default_rng([seed, 73]).permutation(sum(map(len, self.x_int)))]
        return InterventionalDataset(self.x_obs, np.split(rows, np.cumsum([len(x) for x in self.x_int])[:-1]))

    def without_interventions(self, seed: int) -> InterventionalDataset:
        """Put permuted observational rows in the place of every interventional environment: nothing can be told apart."""
        rng = np.random.default_rng([seed, 74])
        return InterventionalDataset(self.x_obs, [rng.permutation(self.x_obs) for _ in self.x_int])

    def reordered(self, order: Sequence[int]) -> InterventionalDataset:
        """Put environment order[t] in place t."""
        return InterventionalDataset(self.x_obs, [self.x_int[t] for t in order])


@dataclass(frozen=True)
class World:
    """A simulated world.

    Args:
        scm: of the latents.
        interventions: [d], environment t's in place t.
        data: what is observed.
        z_obs: [n, d] latents of data.x_obs.
        z_int: [d, n, d] those of data.x_int.
        x_test: [m, dx] fresh observational rows.
        z_test: [m, d] their latents.
    """

    scm: LinearGaussianSCM
    interventions: tuple[Intervention, ...]
    data: InterventionalDataset
    z_obs: Array
    z_int: Array
    x_test: Array
    z_test: Array

    @property
    def targets(self) -> list[int]:
        """Latent that environment t intervenes on, [d]."""
        return [i.target for i in self.interventions]

    @property
    def weights(self) -> Array:
        """[d, d] standardised weights, re-indexed by the environments' order: what an estimate is compared with."""
        found: Array = self.scm.standardised_weights()[np.ix_(self.targets, self.targets)]
        return found

    @property
    def bayes(self) -> float:
        """Cross-entropy of the exact log-odds on the very rows of `data`, mean over environments."""
        return float(cross_entropy_at(self.scm, self.interventions, self.z_obs, self.z_int).mean())

    def reordered(self, order: Sequence[int]) -> World:
        """Put environment order[t] in place t."""
        interventions = tuple(self.interventions[t] for t in order)
        data = self.data.reordered(order)
        return World(self.scm, interventions, data, self.z_obs, self.z_int[list(order)], self.x_test, self.z_test)


def simulate(
    d: int = 5,
    degree: float = 2.0,
    dx: int = 20,
    n: int = 5000,
    mixing: str = "mlp",
    seed: int = 0,
    *,
    shift: bool = True,
    width: int = 512,
    depth: int = 4,
    n_test: int = 5000,
    noise: str = "gaussian",
) -> World:
    """Draw a graph, its variances, one intervention a latent, a mixing, and rows of all.

    Variances of noise are U[1, 2] in both settings, means of interventions +-U[1, 2]; of balls U[0.01, 0.02] and +-U[0.1, 0.2], and
    rows with a coordinate outside (-0.5, 0.5) are drawn again.

    Args:
        d: latents.
        degree: average number of a node's edges.
        dx: observed features.
        n: rows of each environment.
        mixing: "linear", "mlp" or "balls" (see `Mixing`).
        seed: of everything.
        shift: whether interventions shift the mean.
        width: of the mixing's hidden layers.
        depth: number of them.
        n_test: fresh observational rows.
        noise: law of the latents' noise (see `scm.NOISES`).

    Raises:
        InputError: as `sample_er_dag` and `Mixing`; n < 1.

    Source: experiments of arXiv 2306.02235.
    """
    if n < 1 or n_test < 1:
        raise InputError(f"rows: {n} rows and {n_test} for tests; give 1 or more")
    rng = np.random.default_rng([seed, 75])
    small = 0.01 if mixing == "balls" else 1.0
    scm = LinearGaussianSCM(sample_er_dag(d, degree, rng), small * rng.uniform(1, 2, d), rng, noise)
    means = (0.1 if mixing == "balls" else 1.0) * rng.uniform(1, 2, d) * rng.choice([-1.0, 1.0], d) * shift
    variances = small * rng.uniform(1, 2, d)
    interventions = tuple(
        Intervention(t, float(m), float(v)) for t, (m, v) in enumerate(zip(means, variances, strict=True))
    )
    mix = Mixing(mixing, d, dx, seed, width, depth)
    reach = REACH if mixing == "balls" else np.inf
    z_obs = _within(scm, None, n, reach)
    z_int = np.stack([_within(scm, i, n, reach) for i in interventions])
    z_test = _within(scm, None, n_test, reach)
    data = InterventionalDataset(mix(z_obs), [mix(z) for z in z_int])
    return World(scm, interventions, data, z_obs, z_int, mix(z_test), z_test)


def _within(scm: LinearGaussianSCM, intervention: Intervention | None, n: int, reach: float) -> Array:
    """[n, d] latents with all coordinates within (-reach, reach)."""
    parts: list[Array] = []
    while sum(map(len, parts)) < n:
        how = () if intervention is None else (intervention.target, intervention.mean, intervention.var)
        rows = scm.sample(n, *how)
        parts.append(rows[(np.abs(rows) < reach).all(1)])
    found: Array = np.concatenate(parts)[:n]
    return found


def _checked(name: str, rows: Array) -> Array:
    rows = np.asarray(rows)
    if rows.ndim != 2:
        raise InputError(f"{name}: has shape {list(rows.shape)}; give rows [n, dx]")
    if not len(rows):
        raise InputError(f"{name}: has no rows; give at least one")
    if rows.dtype == np.uint8:
        return rows
    if rows.dtype.kind not in "fiub":
        raise InputError(f"{name}: holds {rows.dtype}, no numbers; give floats or uint8 pixels")
    with np.errstate(over="ignore"):
        found = rows.astype(np.float32, copy=False)
    if not np.isfinite(found).all():  # what is beyond float32 included
        raise InputError(f"{name}: has NaN or infinite numbers; drop or fill these rows")
    return found
