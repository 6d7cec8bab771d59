"""What every part asks of its arrays."""

from __future__ import annotations

import numpy as np

from lightning_modules.errors import InputError

Array = np.ndarray


def matrix(name: str, values: Array) -> Array:
    """Return numbers as [n, width] float64; a vector is one column.

    Args:
        name: of the field, for messages.
        values: [n] or [n, width].

    Raises:
        InputError: another number of axes, no rows, NaN or infinite numbers, or no numbers at all.
    """
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: holds something else than numbers; give [rows, columns] of numbers") from error
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or not found.size:
        raise InputError(f"{name}: has shape {list(np.shape(values))}; give [rows, columns]")
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
        raise InputError(f"{name}: row {row} has NaN or infinite numbers; drop it")
    return found


def features(name: str, values: Array) -> Array:
    """As `matrix`, but pixels [n, width] uint8 stay what they are: an eighth of the memory, and features of one scale.

    Raises:
        InputError: as `matrix`.
    """
    pixels = isinstance(values, np.ndarray) and values.dtype == np.uint8 and values.ndim == 2 and values.size
    return values if pixels else matrix(name, values)


def same_length(**arrays: Array) -> None:
    """Check that arrays have equally many rows.

    Raises:
        InputError: naming the first whose number differs from the first's.
    """
    (first, rows), *others = [(name, len(array)) for name, array in arrays.items()]
    for name, count in others:
        if count != rows:
            raise InputError(f"{name}: has {count} rows, {first} {rows}; give equally many, in the same order")


def actions(a: Array) -> Array:
    """Check actions: as `matrix`, more rows than a regression on them has coefficients, and no collinear columns.

    Args:
        a: [n, k].

    Raises:
        InputError: n <= k + 1, a constant column, or columns of which one is a combination of others.
    """
    a = matrix("a", a)
    n, k = a.shape
    if n <= k + 1:
        raise InputError(
            f"a: {n} rows do not determine a regression on {k} actions with intercept; give {k + 2} or more"
        )
    spread = a.std(0)
    still = np.flatnonzero(spread <= 1e-12 * np.maximum(np.abs(a).max(0), 1e-300))
    if len(still):
        raise InputError(f"a: column {int(still[0])} is constant, so the actions' covariance is singular; leave it out")
    rank = int(np.linalg.matrix_rank((a - a.mean(0)) / spread, tol=1e-8 * np.sqrt(n)))
    if rank < k:
        raise InputError(
            f"a: its {k} columns are collinear (rank {rank}), so the actions' covariance is singular; leave {k - rank} out"
        )
    return a


def dimensions(dim_a: int, dim_z: int, dim_x: int | None = None) -> None:
    """Check that there are enough actions and features for the latents: k >= d, dx >= d, all positive.

    Raises:
        InputError: naming the dimension.
    """
    for name, value in (("dim_a", dim_a), ("dim_z", dim_z), ("dim_x", dim_x)):
        if value is not None and value < 1:
            raise InputError(f"{name}: is {value}; give 1 or more")
    if dim_a < dim_z:
        raise InputError(f"dim_a: {dim_a} actions cannot move {dim_z} latents in all directions; give dim_z <= {dim_a}")
    if dim_x is not None and dim_x < dim_z:
        raise InputError(f"dim_x: {dim_x} features cannot hold {dim_z} latents; give dim_z <= {dim_x}")
