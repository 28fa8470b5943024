"""Intervals from quantile prompts, each level moved by how the truth lay beyond what the prompts said of it.

That is conformalised quantile regression (Romano, Patterson and Candes 2019), each side by itself. Residuals are those
of `calibrate.py`, over the whole history: the linear map's, of the size of the model's own, around its forecast; beside
them stands what the quantile prompts say after the same history. A level between two that were tuned, or past the
outermost, lies on a straight line in the normal distribution's quantiles, and is moved like any other. What all levels
say is then put in order: moved apart they may cross, and sorted ones never have a larger pinball loss (Chernozhukov,
Fernandez-Val and Galichon 2010).
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from ptt_jax import answer, calibrate, intervals, predict, tally
from ptt_jax.frames import Table
from ptt_jax.intervals import LEVELS, Intervals, Unit
from ptt_jax.predict import Predictor


def fit(predictor: Predictor, table: Table, kept: int, unit: Unit) -> Intervals:
    """Returns the intervals of a model with quantile prompts that the last `kept` rows taught nothing; their quantiles
    are of residuals beyond what the prompts say of each of LEVELS.

    Raises UserError where no residual is known, of those rows or of the whole history.
    """

    def told(after: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return predict.foretell_levels(predictor, table.values_TC, after, predictor.horizon, unit)

    recent, whole, apart = calibrate.windows(predictor, table, kept)
    y_WHC, unit_WC, away_LWHC = told(recent)
    residual_WHC = calibrate.beyond(table, y_WHC, recent, predictor.lookback)
    if whole:
        residual_WHC = calibrate.of_history(table, whole, recent, residual_WHC, unit_WC, predictor.lookback)
        _, unit_WC, away_LWHC = told(whole)
    return conform(residual_WHC, unit_WC, away_LWHC, with_median(predictor.levels), apart, unit)


def conform(
    residual_WHC: np.ndarray, unit_WC: np.ndarray, away_LWHC: np.ndarray, rungs: Sequence[float], apart: int, unit: Unit
) -> Intervals:
    """Returns intervals as `intervals.fit` does of the same residuals, but for their quantiles: those of each of LEVELS
    are of what the residuals are beyond that level's forecast, made at some steps (`intervals.knots`).

    away_LWHC: how far from the forecast the quantile forecasts of the levels `rungs` are.
    """
    known = intervals.fit(residual_WHC, unit_WC, apart, unit)
    windows, horizon, _ = residual_WHC.shape
    unit_WC = np.nan_to_num(unit_WC)
    size_W1C = (np.maximum(unit_WC, intervals.FLOOR * unit_WC.mean(0)) * known.ratio_C)[:, None]
    size_W1C[size_W1C == 0] = np.nan  # of a history that stands still nothing is known
    independent = (min(apart, windows) or windows) * int((~np.isnan(residual_WHC)).any((0, 1)).sum())
    reach, at_K = intervals.lent(horizon), intervals.knots(horizon)
    quantile_QK = np.full((len(LEVELS), len(at_K)), np.nan)
    for row_K, q in zip(quantile_QK, LEVELS, strict=True):
        beyond_WHC = (residual_WHC - said(away_LWHC, rungs, q)) / size_W1C
        for k, h in enumerate(at_K):
            near = beyond_WHC[:, max(h - reach, 0) : h + reach + 1]
            if (seen := near[~np.isnan(near)]).size:
                row_K[k] = np.quantile(seen, tally.outward(q, independent))
    return known._replace(quantile_QH=intervals.all_steps(quantile_QK, at_K))


def bounds(
    known: Intervals, rungs: Sequence[float], y_HC: np.ndarray, away_LHC: np.ndarray, unit_C: np.ndarray,
    levels: Sequence[float],
) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Returns low_HC and high_HC around the forecast for each level, in percent; those of a larger one are never inside
    those of a smaller one. away_LHC: as in `conform`; unit_C: as `Intervals.bounds` takes it."""
    told_QHC = np.stack([said(away_LHC, rungs, q) for q in LEVELS])
    moved_QHC = np.sort(told_QHC + known.quantile_QH[:, : len(y_HC), None] * unit_C, axis=0)
    tails = [(1 - level / 100) / 2 for level in levels]
    sides = [[interpolate(moved_QHC, LEVELS, q) for q in (tail, 1 - tail)] for tail in tails]
    return [(y_HC + low_HC, y_HC + high_HC) for low_HC, high_HC in sides]


def columns(
    name: str, y_WHC: np.ndarray, unit_WC: np.ndarray, known: Intervals, levels: Sequence[float],
    away_LWHC: np.ndarray, tuned: Sequence[float],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Returns what `answer.columns` does; away_LWHC: what the quantile prompts of the levels `tuned` say
    (`predict.Predictor.told`), where there are any."""
    if not tuned:
        return answer.columns(name, y_WHC, unit_WC, known, levels)
    windows = zip(y_WHC, away_LWHC.swapaxes(0, 1), unit_WC, strict=True)
    return answer.named(name, y_WHC, levels, [bounds(known, with_median(tuned), *of, levels) for of in windows])


def said(away_L: np.ndarray, rungs: Sequence[float], q: float) -> np.ndarray:
    """Returns what quantile forecasts of some levels say of the level q."""
    normal = NormalDist()
    return interpolate(away_L, [normal.inv_cdf(rung) for rung in rungs], normal.inv_cdf(q))


def interpolate(table_Q: np.ndarray, place_Q: Sequence[float] | np.ndarray, place: float) -> np.ndarray:
    """Returns what a table with a row for each of at least two places says of another: on straight lines, of which the
    outermost go on."""
    below = int(np.clip(np.searchsorted(place_Q, place, "right") - 1, 0, len(place_Q) - 2))
    share = (place - place_Q[below]) / (place_Q[below + 1] - place_Q[below])
    return np.asarray((1 - share) * table_Q[below] + share * table_Q[below + 1])


def with_median(levels: Sequence[float]) -> tuple[float, ...]:
    """Returns the levels of quantile prompts with that of the forecast itself, a median, unless they have one."""
    return tuple(sorted({*levels, 0.5}))
