"""Linear causal disentanglement: latents and graph under a LINEAR mixing, in closed form from covariances and means. Baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_modules.causal.contrastive.environments import InterventionalDataset
from lightning_modules.errors import InputError

Array = np.ndarray

_NOTHING = 1e-12
"""Differences of whitened precisions below this are rounding."""


@dataclass(frozen=True)
class LinearDisentanglement:
    """What was found.

    Args:
        unmixing: [d, dx]; latents are unmixing @ x, in the order of the environments, up to sign, scale and shift.
        b: [d, d] B with B z ~ N(0, I) for observational latents: row t holds what environment t's latent depends on.
    """

    unmixing: Array
    b: Array

    def transform(self, x: Array) -> Array:
        """Latents [n, d] of rows [n, dx]."""
        found: Array = np.asarray(x, np.float64) @ self.unmixing.T
        return found

    def edge_scores(self) -> Array:
        """|B_ji| sd(z_i) [d, d] for the edge i -> j, as `ContrastiveCRLModule.edge_scores`."""
        spread = np.linalg.norm(np.linalg.inv(self.b), axis=1)
        found: Array = np.abs(self.b.T) * spread[:, None]
        np.fill_diagonal(found, 0)
        return found


def disentangle(observational: Array, interventional: Sequence[Array]) -> LinearDisentanglement:
    """Solve X = G Z for latents and graph, from the covariances of X; exact where they are.

    In the span of X, and with Theta_0 made the identity, Theta_t - Theta_0 = h_t h_t^T / v' - q_t q_t^T, of h_t the row of the unmixing
    and q_t that of the noise. h_t lies in the span of q_t and its ancestors' q, so that the difference is rank one once these are
    projected out: peel off the environment that comes nearest to rank one, until none is left. In the coordinates q, causes last,
    the upper Cholesky factor of Theta_t is the identity but for row t, which is h_t / sqrt(v').

    Args:
        observational: [dx, dx] covariance.
        interventional: d of them, one perfect intervention each, every latent targeted once.

    Raises:
        InputError: fewer than 2 environments, dx < d, covariances of rank below d, or one that is the observational one: an
            intervention on a node without parents that leaves its variance cannot be seen in covariances.

    Source: Squires, Seigal, Bhate, Uhler, "Linear Causal Disentanglement via Interventions", ICML 2023, arXiv 2211.16467, and the
    authors' code. That also prunes the peeled nodes to ancestors by a threshold on the rank, and does not whiten; in whitened
    coordinates any order of causes before effects gives the same solution (rederived here), so that no threshold is needed.
    """
    d, whiten = len(interventional), _whitening(observational, interventional)
    precisions = [np.linalg.inv(whiten @ covariance @ whiten.T) for covariance in interventional]
    order, noise = _peel([precision - np.eye(d) for precision in precisions])
    flipped = noise[::-1]  # causes last
    unmixing = np.empty((d, d))
    for place, environment in enumerate(order):
        factor = np.linalg.cholesky(flipped @ precisions[environment] @ flipped.T).T
        unmixing[environment] = factor[d - 1 - place] @ flipped
    return _solution(unmixing, noise[np.argsort(order)], whiten)


def disentangle_by_shifts(
    observational: Array, interventional: Sequence[Array], shifts: Sequence[Array]
) -> LinearDisentanglement:
    """The same in closed form where interventions shift the mean: h_t = Theta_t (mean_t - mean_0), up to scale.

    Latents under the intervention have the precision B_t^T B_t and the mean B_t^-1 e_t eta / sqrt(v'), and row t of B_t is
    e_t / sqrt(v'), so that precision times mean is e_t eta / v': no order of the nodes, no rank need be guessed. The noise row
    follows from q_t q_t^T = Theta_0 - Theta_t + h_t h_t^T / v'.

    Args:
        observational: [dx, dx] covariance.
        interventional: d of them, as `disentangle`.
        shifts: d differences [dx] of interventional and observational means.

    Raises:
        InputError: as `disentangle`, but that it is a mean that is the observational one.

    Source: derived here.
    """
    d, whiten = len(interventional), _whitening(observational, interventional)
    unmixing, noise = np.empty((d, d)), np.empty((d, d))
    for t, (covariance, shift) in enumerate(zip(interventional, shifts, strict=True)):
        own = whiten @ covariance @ whiten.T
        precision = np.linalg.inv(own)
        row = precision @ whiten @ shift
        if np.linalg.norm(row) < _NOTHING:
            raise InputError(f"env_{t + 1}: its mean is that of obs; take the covariances alone")
        unmixing[t] = row
        rank_one = np.eye(d) - precision + np.outer(row, row) / (row @ own @ row)
        noise[t] = np.linalg.eigh(rank_one)[1][:, -1]
    return _solution(unmixing, noise, whiten)


def linear_disentanglement(data: InterventionalDataset, shifts: bool = False) -> LinearDisentanglement:
    """Disentangle rows. Under a mixing that is not linear it solves for the first d principal directions of standardised rows.

    Args:
        data: rows.
        shifts: use the means too (`disentangle_by_shifts`), not the covariances alone (`disentangle`).

    Raises:
        InputError: as these; an environment without more rows than latents.
    """
    _, spread = data.scales
    scaled = [np.asarray(rows, np.float64) / spread for rows in (data.x_obs, *data.x_int)]
    for number, rows in enumerate(scaled):
        if len(rows) <= data.d:
            name = f"env_{number}" if number else "obs"
            raise InputError(f"{name}: {len(rows)} rows have no covariance of rank {data.d}; give more")
    first, *others = (np.cov(rows, rowvar=False) for rows in scaled)
    if shifts:
        start = scaled[0].mean(0)
        found = disentangle_by_shifts(first, others, [rows.mean(0) - start for rows in scaled[1:]])
    else:
        found = disentangle(first, others)
    return LinearDisentanglement(found.unmixing / spread, found.b)


def _whitening(observational: Array, interventional: Sequence[Array]) -> Array:
    """[d, dx] map onto the span of all environments in which observational rows have the identity as covariance."""
    d = len(interventional)
    if d < 2 or len(observational) < d:
        raise InputError(f"dim_x: {len(observational)} features for {d} environments; give 2 environments or more")
    values, directions = np.linalg.eigh((observational + sum(interventional)) / (d + 1))
    if values[-d] <= _NOTHING * values[-1]:
        raise InputError(f"x_obs: covariances have a rank below {d}; give features that are not copies of each other")
    span = directions[:, -d:]
    found: Array = np.linalg.solve(np.linalg.cholesky(span.T @ observational @ span), span.T)
    return found


def _solution(unmixing: Array, noise: Array, whiten: Array) -> LinearDisentanglement:
    return LinearDisentanglement(unmixing @ whiten, noise @ np.linalg.inv(unmixing))


def _peel(differences: Sequence[Array]) -> tuple[tuple[int, ...], Array]:
    """Environments, causes first, and their orthonormal noise rows [d, d]."""
    d = len(differences)
    left, order, rows = list(range(d)), list[int](), np.empty((0, d))
    while left:
        free = np.linalg.svd(rows, full_matrices=True)[2][len(rows) :] if len(rows) else np.eye(d)
        seen = {t: np.linalg.eigh(free @ differences[t] @ free.T) for t in left}
        for t, (values, _) in seen.items():
            if np.abs(values).max() < _NOTHING:
                raise InputError(f"env_{t + 1}: its covariance is that of obs or follows from others; nothing is seen")
        nearest = max(left, key=lambda t: np.abs(seen[t][0]).max() / np.linalg.norm(seen[t][0]))
        values, vectors = seen[nearest]
        rows = np.concatenate([rows, (vectors[:, np.argmax(np.abs(values))] @ free)[None]])
        order.append(nearest)
        left.remove(nearest)
    return tuple(order), rows
