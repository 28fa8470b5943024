"""How much wider or narrower intervals have to be than when they were made, by what came since.

A Forecaster forecasts from later frames for as long as its user likes, and what it errs by may change. So the forecasts
that it would have made from the rows since then are made again, each from what was known at its time, and compared with
what came. By which factor would 80 % of the errors have been covered? That factor, drawn to 1 as long as little came,
widens or narrows the intervals of all levels. A truth counts for forecasts that are made after it alone. numpy, but for
the forecasts.

It is adaptive conformal inference (Gibbs and Candes 2021) on the width in the place of the level, as Angelopoulos,
Candes and Tibshirani 2023 (section 2.1) do, with a window of the newest errors for a step size, and with the delay that
a horizon has. `experiments/coverage.py` measures what it brings.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ptt_jax import predict, quantiles
from ptt_jax.frames import Table
from ptt_jax.intervals import Intervals
from ptt_jax.predict import ROWS, Predictor

LEVEL = 80.0  # percent, for which the factor is found
HORIZONS = 8  # forecasts count that began in so many
EACH = 8  # of them begin in each, of one series after the other
LENT = 2  # a factor is drawn to 1 as by so many horizons of truths
MOST = 3.0  # times as wide, or as narrow


def factors(
    predictor: Predictor, known: Intervals, ratio_C: np.ndarray, table: Table, since_C: np.ndarray, full_C: np.ndarray,
    after: Sequence[int],
) -> np.ndarray:  # fmt: skip
    """Returns factor_W of windows whose history ends `after` steps from the table's end; 1 where nothing came since.

    since_C: how many of each series' last steps are later than what the intervals were made from. full_C: steps that a
    history must have for its error to count: of a shorter one than those learned from it is none of the series' own.
    """
    horizon, newest = predictor.horizon, int(since_C.max(initial=0))
    latest_W = newest + np.asarray(after)
    factor_W = np.ones(len(latest_W))
    if latest_W.max(initial=0) <= 0:
        return factor_W
    begin_R, series_R = windows(table, since_C, full_C, horizon, int(latest_W.min()), int(latest_W.max()))
    parts = [shares(predictor, known, ratio_C, table, newest - begin_R[some], series_R[some]) for some in cut(begin_R)]
    share_RH = np.concatenate([np.zeros((0, horizon)), *parts])
    step_RH = begin_R[:, None] + 1 + np.arange(horizon)
    for w, latest in enumerate(latest_W):
        rows = slice(*np.searchsorted(begin_R, [latest - HORIZONS * horizon, latest]))
        share_N = share_RH[rows][step_RH[rows] <= latest]
        seen_N = share_N[~np.isnan(share_N)]
        if len(seen_N):
            horizons = (latest - begin_R[rows.start]) / horizon * len(seen_N) / len(share_N)
            needed = max(float(np.quantile(seen_N, LEVEL / 100)), 1 / MOST)
            factor_W[w] = needed ** (horizons / (horizons + LENT))
    return factor_W


def windows(
    table: Table, since_C: np.ndarray, full_C: np.ndarray, horizon: int, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns begin_R, ascending, and series_R of the forecasts that count between the steps `first` and `last`, all
    counted from the end of what was learned from on. They lie on one grid however long the table is, so that a frame
    and its beginning agree."""
    apart, newest = max(horizon // EACH, 1), int(since_C.max())
    some_C = np.flatnonzero(since_C)
    place_R = np.arange(max(first - HORIZONS * horizon, 0) // apart, -(-last // apart))
    begin_R, series_R = place_R * apart, some_C[place_R % len(some_C)]
    before_R = newest - begin_R
    able_R = (before_R <= since_C[series_R]) & (table.lengths_C[series_R] - before_R >= full_C[series_R])
    return begin_R[able_R], series_R[able_R]


def cut(begin_R: np.ndarray) -> Iterator[slice]:
    """Yields rows of a dispatch: a year of windows would fill the memory."""
    return (slice(first, first + ROWS) for first in range(0, len(begin_R), ROWS))


def shares(
    predictor: Predictor, known: Intervals, ratio_C: np.ndarray, table: Table, before_R: np.ndarray,
    series_R: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Returns share_RH of forecasts from histories of one series each that end `before_R` steps from the table's end:
    by which factor the interval must grow to reach the truth, at most MOST; NaN where that is missing."""
    rows, horizon = len(table.values_TC), predictor.horizon
    at_RT = rows - before_R[:, None] + np.arange(-predictor.lookback, horizon)
    inside_RT = (at_RT >= 0) & (at_RT < rows)
    values_RT = np.where(inside_RT, table.values_TC[np.clip(at_RT, 0, rows - 1), series_R[:, None]], np.nan)
    history_RT, truth_RH = values_RT[:, : predictor.lookback], values_RT[:, predictor.lookback :]
    told = predictor.told(history_RT, horizon) if predictor.levels else (predictor(history_RT, horizon),)
    y_1HR, *away_L1HR = (of.swapaxes(-1, -2)[..., None, :, :] for of in told)
    unit_1R = (predict.size(history_RT, known.unit) * ratio_C[series_R])[None]
    beside = away_L1HR[0] if away_L1HR else np.zeros((0, *y_1HR.shape))
    y_RH, low_RH, high_RH = (
        of[0].T for of in quantiles.columns("", y_1HR, unit_1R, known, (LEVEL,), beside, predictor.levels).values()
    )
    error_RH = truth_RH - y_RH
    bound_RH = np.where(error_RH > 0, high_RH, low_RH) - y_RH
    # MOST where the interval does not lie on the truth's side at all
    reach_RH = np.divide(error_RH, bound_RH, out=np.full_like(error_RH, MOST), where=error_RH * bound_RH > 0)
    reach_RH = np.where(error_RH == 0, 0, np.minimum(reach_RH, MOST))
    return np.where(np.isnan(error_RH + bound_RH), np.nan, reach_RH)


def widen(columns: dict[str, np.ndarray], factor_W: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {name: y_WHC}, the forecast first, with every other column so many times as far from it."""
    if (factor_W == 1).all():
        return columns
    y_WHC, factor_W11 = next(iter(columns.values())), factor_W[:, None, None]
    return {name: of if of is y_WHC else y_WHC + factor_W11 * (of - y_WHC) for name, of in columns.items()}
