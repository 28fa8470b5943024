"""Prediction intervals from residuals that the model did not learn from (split conformal). numpy only.

A residual is a window's truth minus its forecast (`calibrate.py` says of which windows). What is kept is one table of
quantiles for each step of the horizon, of residuals in units of what their series usually errs, and that unit for each
series, as a ratio to how its history moves (`Unit`): the shape comes from all series, the width from each, and a series
that moves more than it did has wider intervals. Vovk, Gammerman and Shafer 2005; Lei et al. 2018, section 5.2, for
residuals in units of their difficulty; Angelopoulos and Bates 2023, section 1, for the correction of finite samples.
Windows of a series overlap, so that the promise is not the theorem's: coverage is measured (`experiments/own.py`).
"""

import warnings
from typing import Any, NamedTuple

import numpy as np

from ptt_jax.errors import UserError

LEVELS = np.concatenate([[0.0025, 0.005, 0.01, 0.015], np.arange(0.02, 0.981, 0.01), [0.985, 0.99, 0.995, 0.9975]])
SMOOTH = 0.1  # share of the horizon over which neighbouring steps lend each other residuals
MOST = 4  # a series errs at most so many times as much as the median one: more is an accident of few windows
FLOOR = 0.1  # of a series' mean unit: a history that stands still for a while is none
RECENT = 0.5  # a unit is the geometric mean of spread and latest moves
SEASONS = 2  # seasons, or horizons, that are the latest
STILL = 0.02  # of the spread: latest moves are at least as much


class Unit(NamedTuple):
    """How a history moves: spread ** (1 - recent) * move ** recent. The spread is the standard deviation of all of it,
    the move its values' mean distance from those `lag` steps before, over its `last` steps."""

    recent: float = 0.0  # as a Forecaster of an earlier version has it: the spread alone
    lag: int = 1
    last: int = 1

    @classmethod
    def of(cls, season: int, horizon: int, lookback: int) -> "Unit":
        """Returns the unit of histories of a lookback. One shorter than two seasons holds few values a season apart, of
        24 hours a single pair: their moves are those from step to step."""
        return cls(RECENT, season if 2 * season <= lookback else 1, SEASONS * max(season, horizon))

    def size(self, history_RT: np.ndarray, spread_R: np.ndarray) -> np.ndarray:
        """Returns unit_R of histories, NaN where missing, whose spread is known; NaN where that is. The spread alone
        where no two values lie a lag apart."""
        lag = min(self.lag, history_RT.shape[1] - 1)
        if not self.recent or not lag:
            return spread_R
        apart_RT = np.abs(history_RT[:, lag:] - history_RT[:, :-lag])[:, -self.last :]
        count_R = (~np.isnan(apart_RT)).sum(1)
        move_R = np.where(count_R > 0, np.nansum(apart_RT, 1) / np.maximum(count_R, 1), spread_R)
        return np.asarray(spread_R ** (1 - self.recent) * np.maximum(move_R, STILL * spread_R) ** self.recent)


SPREAD = Unit()


class Intervals(NamedTuple):
    """quantile_QH: of residuals, in units; ratio_C: each series' unit in those of its history; relative: the median of
    these, for a series that was not there; unit: of a history."""

    quantile_QH: np.ndarray
    ratio_C: np.ndarray
    relative: float
    unit: Unit = SPREAD

    def bounds(self, y_HC: np.ndarray, unit_C: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns low_HC and high_HC around the forecast; `level` in percent, of 100 forecasts so many fall between.

        unit_C: a ratio times the unit of the history that is forecast from, in the forecast's units.
        """
        tail = (1 - level / 100) / 2
        low_H, high_H = (self.at(q)[: len(y_HC), None] for q in (tail, 1 - tail))
        return y_HC + low_H * unit_C, y_HC + high_H * unit_C

    def ratios(self, names_C: tuple[str, ...], asked_C: tuple[str, ...]) -> np.ndarray:
        """Returns ratio_C of the series that are asked for; names_C: of those that `ratio_C` is of."""
        ratio = dict(zip(names_C, self.ratio_C, strict=True))
        return np.array([ratio.get(name, self.relative) for name in asked_C])

    def at(self, q: float) -> np.ndarray:
        """Returns quantile_H of residuals in units."""
        place = np.interp(q, LEVELS, np.arange(len(LEVELS)))
        below = min(int(place), len(LEVELS) - 2)
        share = place - below
        return np.asarray((1 - share) * self.quantile_QH[below] + share * self.quantile_QH[below + 1])


def check_levels(levels: Any) -> tuple[float, ...]:
    """Returns levels as percentages; None is none, a number is one. Raises UserError for what is no percentage that
    these intervals know."""
    most = 100 * (1 - 2 * LEVELS[0])
    asked = () if levels is None else (levels,) if isinstance(levels, int | float | np.number | str) else tuple(levels)
    for level in asked:
        if not isinstance(level, int | float | np.number) or not 0 < level <= most:
            raise UserError(f"levels = {levels!r} holds {level!r}; accepted: percentages above 0 and up to {most:g}")
    return asked


def fit(residual_WHC: np.ndarray, unit_WC: np.ndarray, apart: int = 0, unit: Unit = SPREAD) -> Intervals:
    """Returns intervals from residuals in original units, NaN where the truth is missing.

    unit_WC: `unit` of the histories, in the same units; NaN or 0 where there is none. apart: how many of the W windows
    do not overlap; 0 = all. A series with few residuals has a ratio drawn to the median, as if it had as many more as a
    window has steps. Warns where windows are too few for quantiles far out, which are then the largest error seen.
    """
    windows, horizon, _ = residual_WHC.shape
    unit_WC = np.nan_to_num(unit_WC)
    unit_W1C = np.maximum(unit_WC, FLOOR * unit_WC.mean(0))[:, None]
    known_WHC = ~np.isnan(residual_WHC) & (unit_W1C > 0)
    if not known_WHC.any():
        raise UserError("no value is known in the rows that intervals are made from; accepted: a longer series")
    share_WHC = np.where(known_WHC, residual_WHC, np.nan) / np.where(unit_W1C > 0, unit_W1C, 1)
    count_C, sum_C = known_WHC.sum((0, 1)), np.nansum(np.abs(share_WHC), (0, 1))
    seen_C = count_C > 0
    relative = float(np.median(sum_C[seen_C] / count_C[seen_C]))
    ratio_C = np.minimum((sum_C + horizon * relative) / (count_C + horizon), MOST * relative)
    scaled_WHC = share_WHC / np.where(ratio_C > 0, ratio_C, 1)
    reach = lent(horizon)
    independent = (min(apart, windows) or windows) * int(seen_C.sum())
    near = [scaled_WHC[:, max(h - reach, 0) : h + reach + 1] for h in range(horizon)]
    columns = np.stack([outer(part[~np.isnan(part)], independent) for part in near], 1)
    if 0.9 * (independent + 1) - 0.5 > independent:
        warnings.warn(
            f"{independent} windows that don't overlap are too few for intervals of 80 % and more: theirs are the "
            f"largest error seen", stacklevel=2,
        )  # fmt: skip
    return Intervals(columns, ratio_C, relative, unit)


def lent(horizon: int) -> int:
    """Returns how many steps to each side lend a step their residuals."""
    return round(SMOOTH * horizon / 2)


def knots(horizon: int) -> np.ndarray:
    """Returns at_K, the steps from which `all_steps` makes the others' quantiles: two that follow each other share
    three quarters of the residuals that they are of."""
    apart = max(lent(horizon) // 2, 1)
    return np.unique([*range(0, horizon, apart), horizon - 1])


def all_steps(quantile_QK: np.ndarray, at_K: np.ndarray) -> np.ndarray:
    """Returns quantile_QH float64 of all steps up to the last one of at_K."""
    place_H = np.interp(np.arange(at_K[-1] + 1), at_K, np.arange(len(at_K)))
    below_H = np.minimum(place_H.astype(int), max(len(at_K) - 2, 0))
    above_H, share_H = np.minimum(below_H + 1, len(at_K) - 1), place_H - below_H
    quantile_QK = quantile_QK.astype(float)
    return np.asarray((1 - share_H) * quantile_QK[:, below_H] + share_H * quantile_QK[:, above_H])


def outer(residuals: np.ndarray, independent: int) -> np.ndarray:
    """Returns the quantiles at LEVELS of a step's residuals, a little further out: the k-th of n is exceeded with
    probability k / (n + 1), with n that of independent ones. Past the last one, it is the largest."""
    if not len(residuals):
        return np.full(len(LEVELS), np.nan)
    place_Q = (LEVELS * (independent + 1) - 0.5) / independent
    quantile_Q = np.quantile(residuals, np.clip(place_Q, 0, 1))
    largest = np.abs(residuals).max()
    return np.where(place_Q > 1, largest, np.where(place_Q < 0, -largest, quantile_Q))


def coverage(y: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Returns the share of known values between the bounds."""
    known = ~np.isnan(y)
    return float(((y >= low) & (y <= high))[known].mean())


def pinball(y: np.ndarray, quantile: np.ndarray, q: float) -> float:
    """Returns the mean pinball loss of a quantile forecast; twice its mean over q is the CRPS."""
    known = ~np.isnan(y)
    error = (y - quantile)[known]
    return float(np.maximum(q * error, (q - 1) * error).mean())
