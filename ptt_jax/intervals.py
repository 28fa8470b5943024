"""Prediction intervals from residuals that the model did not learn from (split conformal). numpy only.

A residual is a validation window's truth minus its forecast. What is kept is one table of quantiles for each step of
the horizon, of residuals in units of their series' own mean absolute residual, and that unit for each series: the shape
comes from all series, the width from each. Vovk, Gammerman and Shafer 2005; Angelopoulos and Bates 2023, section 1, for
the correction of finite samples. Windows of a series overlap, so that the promise is not the theorem's: coverage is
measured (experiments/README.md).
"""

from typing import NamedTuple

import numpy as np

from ptt_jax.config import UserError

LEVELS = np.concatenate([[0.0025, 0.005, 0.01, 0.015], np.arange(0.02, 0.981, 0.01), [0.985, 0.99, 0.995, 0.9975]])
SMOOTH = 0.1  # share of the horizon over which neighbouring steps lend each other residuals


class Intervals(NamedTuple):
    """quantile_QH: of residuals in units of their series'; unit_C: each series' mean absolute residual, original units;
    relative: what a series that was not there gets, as share of its history's spread."""

    quantile_QH: np.ndarray
    unit_C: np.ndarray
    relative: float

    def bounds(self, y_HC: np.ndarray, unit_C: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns low_HC and high_HC around the forecast; `level` in percent, of 100 forecasts so many fall between."""
        tail = (1 - level / 100) / 2
        low_H, high_H = (self.at(q)[: len(y_HC), None] for q in (tail, 1 - tail))
        return y_HC + low_H * unit_C, y_HC + high_H * unit_C

    def at(self, q: float) -> np.ndarray:
        """Returns quantile_H of residuals in units."""
        return np.array([np.interp(q, LEVELS, column) for column in self.quantile_QH.T])


def check_levels(levels: tuple[float, ...]) -> None:
    """Raises UserError for a level that is no percentage these intervals know."""
    most = 100 * (1 - 2 * LEVELS[0])
    for level in levels:
        if not 0 < level <= most:
            raise UserError(f"levels = {levels!r} holds {level!r}; accepted: percentages above 0 and up to {most:g}")


def fit(residual_WHC: np.ndarray, spread_C: np.ndarray) -> Intervals:
    """Returns intervals from residuals in original units, NaN where the truth is missing.

    spread_C: of each series' history, in the same units. A series with few residuals has a unit drawn towards what its
    spread says, as if it had as many more as a window has steps.
    """
    known_WHC = ~np.isnan(residual_WHC)
    size_WHC = np.where(known_WHC, np.abs(residual_WHC), 0)
    spread_C = np.where(spread_C > 0, spread_C, 1.0)
    count_C, sum_C = known_WHC.sum((0, 1)), size_WHC.sum((0, 1))
    seen = count_C > 0
    if not seen.any():
        raise UserError("no value is known in the rows that intervals are made from; accepted: a longer series")
    relative = float(np.median(sum_C[seen] / count_C[seen] / spread_C[seen]))
    horizon = residual_WHC.shape[1]
    unit_C = (sum_C + horizon * relative * spread_C) / (count_C + horizon)
    unit_C = np.where(unit_C > 0, unit_C, 1.0)
    scaled_WHC, reach = residual_WHC / unit_C, round(SMOOTH * horizon / 2)
    columns = []
    for h in range(horizon):
        near = scaled_WHC[:, max(h - reach, 0) : h + reach + 1]
        near = near[~np.isnan(near)]
        # The k-th of n residuals is exceeded with probability k / (n + 1): the tails go a little further out.
        places = np.clip((LEVELS * (len(near) + 1) - 1) / max(len(near) - 1, 1), 0, 1)
        columns.append(np.quantile(near, places) if len(near) else np.full(len(LEVELS), np.nan))
    return Intervals(np.stack(columns, 1), unit_C, relative)


def coverage(y: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Returns the share of known values between the bounds."""
    known = ~np.isnan(y)
    return float(((y >= low) & (y <= high))[known].mean())


def pinball(y: np.ndarray, quantile: np.ndarray, q: float) -> float:
    """Returns the mean pinball loss of a quantile forecast; twice its mean over q is the CRPS."""
    known = ~np.isnan(y)
    error = (y - quantile)[known]
    return float(np.maximum(q * error, (q - 1) * error).mean())
