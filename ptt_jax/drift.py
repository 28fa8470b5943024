"""How much wider or narrower intervals have to be than when they were made, by what came since.

A Forecaster forecasts from later frames for as long as its user likes, and what it errs by may change. So the forecasts
that it would have made since it learned are made again, each from what was known at its time, and compared with what
came. By which factor would 80 % of these errors have been covered? That factor, drawn to 1, more where less came, moves
the bounds of all levels away from the median, or towards it: one for all series, since a few dozen forecasts of each
would take too long. A truth counts for forecasts that are made after it alone. numpy, but for the forecasts.

These are split conformal scores (Vovk, Gammerman and Shafer 2005) of the newest windows, and the model's own from when
it learned weigh as much as some of them: Barber et al. 2023 ("beyond exchangeability") say what newest scores are worth
where a series drifts. The aim is that of adaptive conformal inference (Gibbs and Candes 2021), without its feedback and
its guarantee. `experiments/coverage.py` measures what it brings; the constants were chosen on its ends.
"""

from collections.abc import Sequence

import numpy as np

from ptt_jax import frames, predict, quantiles
from ptt_jax.frames import Table
from ptt_jax.intervals import Intervals
from ptt_jax.predict import FEW, ROWS, Predictor

LEVEL = 80.0  # percent, for which the factor is found
MEDIAN = 0.0  # percent: an interval of no width
SPANS = 8  # forecasts count that began in so many ...
LEAST = 8  # ... of a horizon each, or so many steps where that is shorter
EACH = 8  # begin in a span, of one series after the other
LENT = 2  # a factor is drawn to 1 as by so many spans
MOST = 3.0  # times as wide may an interval have to be, and a third of it


def factors(
    predictor: Predictor, known: Intervals, ratio_C: np.ndarray, table: Table, since_C: np.ndarray, full_C: np.ndarray,
    after: Sequence[int],
) -> np.ndarray:  # fmt: skip
    """Returns factor_WC of windows whose history ends `after` steps from each series' end; NaN where no forecast from
    what came since can be judged.

    since_C: how many of a series' last steps are later than what the intervals were made from. full_C: how many steps a
    history must hold for its error to count.
    """
    behind_C, span, horizon = frames.behind(table), max(predictor.horizon, LEAST), predictor.horizon
    newest = int((since_C + behind_C)[since_C > 0].max(initial=0))
    # Time counts from the first end of what was learned from.
    latest_U, place_WC = np.unique(newest - behind_C + np.asarray(after)[:, None], return_inverse=True)
    factor_U, apart = np.full(len(latest_U), np.nan), span // EACH
    begin_R, series_R = windows(table, since_C, full_C, newest, latest_U[latest_U > 0], span, apart)
    parts = [slice(first, first + ROWS) for first in range(0, len(begin_R), ROWS)]  # a year would fill the memory
    asked = predictor, known, ratio_C, table
    each = [shares(*asked, (newest - behind_C[series_R] - begin_R)[part], series_R[part]) for part in parts]
    share_RH = np.concatenate([np.zeros((0, horizon)), *each])
    step_RH = begin_R[:, None] + 1 + np.arange(horizon)
    for u, latest in enumerate(latest_U):
        rows = slice(*np.searchsorted(begin_R, [latest - SPANS * span, latest]))
        share_N = share_RH[rows][step_RH[rows] <= latest]
        seen_N = share_N[~np.isnan(share_N)]
        if len(seen_N):
            spans = (rows.stop - rows.start) * apart / span * len(seen_N) / len(share_N)
            needed = max(float(np.quantile(seen_N, LEVEL / 100)), 1 / MOST)
            factor_U[u] = needed ** (spans / (spans + LENT))
    return factor_U[place_WC].reshape(len(after), -1)


def windows(
    table: Table, since_C: np.ndarray, full_C: np.ndarray, newest: int, latest_U: np.ndarray, span: int, apart: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns begin_R, ascending, and series_R of the forecasts that count at the steps latest_U. They begin on one
    grid however long the table is, so that a frame and its beginning agree; and take turns among the series that came
    since, are not over, and have a whole history by then."""
    behind_C = frames.behind(table)
    able_C = np.flatnonzero((since_C > 0) & (behind_C < SPANS * span))
    first_C = (newest - behind_C - np.minimum(since_C, table.lengths_C - full_C))[able_C]
    rank_C = np.argsort(np.argsort(table.names_C))[able_C]  # turns do not depend on the order of columns
    able_C, first_C = able_C[order := np.lexsort((rank_C, first_C))], first_C[order]
    near = [np.arange(max(latest - SPANS * span, 0) // apart, -(-latest // apart)) for latest in latest_U]
    place_R = np.unique(np.concatenate([np.zeros(0, int), *near]))
    count_R = np.searchsorted(first_C, place_R * apart, "right")
    place_R, count_R = place_R[count_R > 0], count_R[count_R > 0]
    begin_R, series_R = place_R * apart, able_C[place_R % count_R]
    going_R = begin_R < newest - behind_C[series_R]
    return begin_R[going_R], series_R[going_R]


def shares(
    predictor: Predictor, known: Intervals, ratio_C: np.ndarray, table: Table, before_R: np.ndarray,
    series_R: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Returns share_RH of forecasts from histories of one series each that end `before_R` steps from its end: by which
    factor the interval must grow to reach the truth, at most MOST. NaN where that is missing, or the interval has no
    width, as of a history that stands still."""
    rows, horizon = len(table.values_TC), predictor.horizon
    count, padding = len(before_R), (0, -len(before_R) % FEW)  # one program, however much came
    before_R, series_R = np.pad(before_R, padding), np.pad(series_R, padding)
    at_RT = rows - before_R[:, None] + np.arange(-predictor.lookback, horizon)
    inside_RT = (at_RT >= 0) & (at_RT < rows)
    values_RT = np.where(inside_RT, table.values_TC[np.clip(at_RT, 0, rows - 1), series_R[:, None]], np.nan)
    history_RT, truth_RH = values_RT[:, : predictor.lookback], values_RT[:, predictor.lookback :]
    told = predictor.told(history_RT, horizon) if predictor.levels else (predictor(history_RT, horizon),)
    y_1HR, *away = (of.swapaxes(-1, -2)[..., None, :, :] for of in told)
    unit_1R = (predict.size(history_RT, known.unit) * ratio_C[series_R])[None]
    away_L1HR = away[0] if away else np.zeros((0, *y_1HR.shape))
    found = quantiles.columns("", y_1HR, unit_1R, known, (MEDIAN, LEVEL), away_L1HR, predictor.levels)
    _, median_RH, _, low_RH, high_RH = (of[0].T for of in found.values())
    error_RH = truth_RH - median_RH
    bound_RH = np.where(error_RH > 0, high_RH, low_RH) - median_RH
    reach_RH = np.divide(error_RH, bound_RH, out=np.full_like(error_RH, MOST), where=error_RH * bound_RH > 0)
    reach_RH = np.where(error_RH == 0, 0, np.minimum(reach_RH, MOST))
    return np.where(np.isnan(error_RH) | ~(high_RH > low_RH), np.nan, reach_RH)[:count]


def widen(name: str, columns: dict[str, np.ndarray], factor_WC: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {name: y_WHC} and the bounds beside it, so many times as far from the median, which those of MEDIAN say
    and which is left out; as they are where the factor is NaN."""
    middle_WHC, factor_W1C = columns[f"{name}-lo-{MEDIAN:g}"], factor_WC[:, None]
    names = [n for n in columns if n not in (name, f"{name}-lo-{MEDIAN:g}", f"{name}-hi-{MEDIAN:g}")]
    wide = {n: middle_WHC + factor_W1C * (columns[n] - middle_WHC) for n in names}
    return {name: columns[name], **{n: np.where(np.isnan(factor_W1C), columns[n], wide[n]) for n in names}}
