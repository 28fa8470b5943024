"""What intervals are made from: residuals over the whole history, of the size that the model's have.

Of the rows that taught a model, its residuals are too small; and those of the last rows, which did not, know one season
and one mood of the series. So the shape of the residuals, over all seasons, is that of a linear map which forecasts
each fifth of the history from what the other fifths taught it (cross-conformal, Vovk 2015; CV+, Barber et al. 2021),
and their size is the model's: by how much it errs more or less than that map in the last rows, at each step and on each
series. `experiments/coverage.py` measures what each of that brings. numpy, but for the forecasts.
"""

import numpy as np

from ptt_jax import frames, intervals, predict, scaling
from ptt_jax.frames import Table
from ptt_jax.intervals import Intervals, Unit
from ptt_jax.predict import Predictor

CUTOFFS = 300  # most windows of the history, and of the last rows ...
LEAST, ROWS = 50, 12_000  # ... which are fewer where there are many series
FOLDS = 5
TAUGHT = 10_000  # most rows that teach the map of a fold
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # times the mean diagonal of the Gram matrix
MOST = 3  # times as large, or as small, may the model's residuals be as the map's


def fit(predictor: Predictor, table: Table, kept: int, unit: Unit) -> Intervals:
    """Returns the intervals of a model that the last `kept` rows taught nothing.

    Raises UserError where no residual is known, of those rows or of the whole history.
    """
    recent, whole, apart = windows(predictor, table, kept)
    residual_WHC, unit_WC = back_test(predictor, table, recent, unit)
    if whole:
        residual_WHC = of_history(table, whole, recent, residual_WHC, unit_WC, predictor.lookback)
        unit_WC = sizes(table, whole, predictor.lookback, unit)
    return intervals.fit(residual_WHC, unit_WC, apart, unit)


def windows(predictor: Predictor, table: Table, kept: int) -> tuple[list[int], list[int], int]:
    """Returns how many steps from the table's end the histories end of windows in its last `kept` rows, and of windows
    over the whole history; and how many of the latter do not overlap. A history that a backbone of others was tuned on
    may be too short for the latter: then there are none, and the number is that of the former."""
    horizon = predictor.horizon
    count = min(CUTOFFS, max(LEAST, ROWS // len(table.names_C)))
    recent, first = cutoffs(-kept, -horizon, count), predictor.lookback - len(table.values_TC)
    if first > -horizon - FOLDS:
        return recent, [], kept // horizon
    return recent, cutoffs(first, -horizon, count), -first // horizon


def of_history(
    table: Table, whole: list[int], recent: list[int], own_VHC: np.ndarray, unit_VC: np.ndarray, lookback: int
) -> np.ndarray:
    """Returns residual_WHC of the windows `whole`, in original units: the linear map's, of the size that the model's,
    own_VHC, have in the windows `recent`; unit_VC: of the histories of those."""
    map_WHC = crossed(table, [*whole, *recent], lookback, own_VHC.shape[1])
    return map_WHC[: len(whole)] * ratio(own_VHC, map_WHC[len(whole) :], unit_VC)


def cutoffs(first: int, last: int, most: int) -> list[int]:
    """Returns at most so many steps from the end, one out of each of as many equal stretches from `first` to `last`:
    which, is drawn, since even ones could all lie at the same hour."""
    edge_W = np.linspace(first, last + 1, min(most, last - first + 1) + 1).round().astype(int)
    return [int(a) for a in np.random.default_rng(0).integers(edge_W[:-1], edge_W[1:])]


def back_test(predictor: Predictor, table: Table, after: list[int], unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    """Returns residual_WHC of windows whose history ends `after` steps from the end, in original units, and unit_WC."""
    y_WHC, unit_WC = predict.foretell(predictor, table.values_TC, after, predictor.horizon, unit)
    return beyond(table, y_WHC, after, predictor.lookback), unit_WC


def beside_season(predictor: Predictor, table: Table, kept: int, season: int) -> float:
    """Returns the mean absolute error of a model in the last `kept` rows, which taught it nothing, as a share of that
    of the last season's values again: each series in units of its own spread, where both say something and the truth
    is known. NaN where that is nowhere, or where the season is never wrong."""
    after, *_ = windows(predictor, table, kept)
    y_WHC, _ = predict.foretell(predictor, table.values_TC, after, predictor.horizon, Unit())
    truth_WHC = frames.truth(table, predictor.horizon, after)
    padded_TC = np.pad(table.values_TC, ((season, 0), (0, 0)), constant_values=np.nan)
    ahead_H = np.arange(predictor.horizon) % season
    naive_WHC = np.stack([padded_TC[len(table.values_TC) + a + ahead_H] for a in after])
    scale_C = scaling.exact(table.values_TC, ~np.isnan(table.values_TC)).scale_C
    own_WHC, other_WHC = np.abs(y_WHC - truth_WHC) / scale_C, np.abs(naive_WHC - truth_WHC) / scale_C
    known_WHC = ~np.isnan(own_WHC + other_WHC)
    other = other_WHC[known_WHC].sum()
    return float(own_WHC[known_WHC].sum() / other) if other > 0 else float("nan")


def beyond(table: Table, y_WHC: np.ndarray, after: list[int], lookback: int) -> np.ndarray:
    """Returns residual_WHC of forecasts from histories that end `after` steps from the end."""
    return usual(table, frames.truth(table, y_WHC.shape[1], after) - y_WHC, after, lookback)


def usual(table: Table, residual_WHC: np.ndarray, after: list[int], lookback: int) -> np.ndarray:
    """Returns the residuals without those of a history that hardly began, unless there are no others: neither its
    error nor its unit says what is usual."""
    full_WC = np.array([table.lengths_C + a for a in after]) >= min(lookback, int(table.lengths_C.max()) + after[0])
    return np.where(full_WC[:, None], residual_WHC, np.nan)


def sizes(table: Table, after: list[int], lookback: int, unit: Unit) -> np.ndarray:
    """Returns unit_WC of the histories that end `after` steps from the end."""
    ends = [len(table.values_TC) + a for a in after]
    return np.stack([predict.size(table.values_TC[end - lookback : end].T, unit) for end in ends])


def crossed(table: Table, after: list[int], lookback: int, horizon: int) -> np.ndarray:
    """Returns residual_WHC of a linear map around the history's mean, ridge regression on windows of all series.

    A window lies in one of FOLDS stretches of the history and is forecast by what windows in the others teach, none of
    which shares a target with it, unless the history is too short for that. The ridge is the best of all of RIDGES.
    """
    seen_TC = ~np.isnan(table.values_TC)
    scaler = scaling.exact(table.values_TC, seen_TC)
    z_TC = ((table.values_TC - scaler.mean_C) / scaler.scale_C).astype(np.float32)
    start_W, rng = np.array(after) + len(z_TC) - lookback, np.random.default_rng(0)
    target_TC, at_T = z_TC.copy(), np.arange(len(z_TC))
    for c in np.flatnonzero(~seen_TC.all(0)):  # a target is whole: gaps are straight lines to teach, and never judge
        target_TC[:, c] = np.interp(at_T, at_T[seen_TC[:, c]], z_TC[seen_TC[:, c], c]) if seen_TC[:, c].any() else 0
    x_TC = np.where(seen_TC, z_TC, 0)
    every_S = np.arange(len(z_TC) - lookback - horizon + 1)
    back, ahead = np.arange(lookback), np.arange(lookback, lookback + horizon)

    def rows(s_R: np.ndarray, c_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x_RT around its mean, 0 where missing, and mean_R1."""
        x_RT, seen_RT = (a_TC[s_R[:, None] + back, c_R[:, None]] for a_TC in (x_TC, seen_TC))
        mean_R1 = x_RT.sum(1, keepdims=True) / np.maximum(seen_RT.sum(1, keepdims=True), 1)
        return np.where(seen_RT, x_RT - mean_R1, 0).astype(np.float32), mean_R1

    def away(w: int, x_CT: np.ndarray, mean_C1: np.ndarray, weights_TH: np.ndarray) -> np.ndarray:
        """residual_HC of a window."""
        return np.asarray(z_TC[start_W[w] + ahead] - (x_CT @ weights_TH + mean_C1).T)

    every_C, square_G = np.arange(z_TC.shape[1]), np.zeros(len(RIDGES))
    judges: dict[int, list[np.ndarray]] = {}  # the maps of each window; residuals of all would fill the memory
    for fold_S in np.array_split(every_S, FOLDS):
        near_S = (every_S > fold_S[0] - horizon) & (every_S < fold_S[-1] + horizon)
        teach_S = every_S[~near_S] if not near_S.all() else np.setdiff1d(every_S, fold_S)
        taught = min(TAUGHT, len(teach_S) * z_TC.shape[1])
        s_R, c_R = (rng.choice(a, taught) for a in (teach_S, z_TC.shape[1]))
        x_RT, mean_R1 = rows(s_R, c_R)
        y_RH = target_TC[s_R[:, None] + ahead, c_R[:, None]] - mean_R1
        maps = ridges(x_RT, y_RH)
        for w in map(int, np.flatnonzero((start_W >= fold_S[0]) & (start_W <= fold_S[-1]))):
            at_w = rows(np.full(len(every_C), start_W[w]), every_C)
            square_G += [np.nansum(np.square(away(w, *at_w, weights_TH), dtype=float)) for weights_TH in maps]
            judges[w] = maps
    best = int(square_G.argmin())
    residual_WHC = np.full((len(after), horizon, len(every_C)), np.nan, np.float32)
    for w, maps in judges.items():
        residual_WHC[w] = away(w, *rows(np.full(len(every_C), start_W[w]), every_C), maps[best])
    return usual(table, residual_WHC * scaler.scale_C, after, lookback)


def ridges(x_RT: np.ndarray, y_RH: np.ndarray) -> list[np.ndarray]:
    """Returns weights_TH float32 of the linear map that each of RIDGES makes of these rows."""
    gram, cross = (x_RT.T @ x_RT).astype(float), (x_RT.T @ y_RH).astype(float)
    scale = np.trace(gram) / len(gram) or 1.0  # of series that never move
    return [np.linalg.solve(gram + g * scale * np.eye(len(gram)), cross).astype(np.float32) for g in RIDGES]


def ratio(own_WHC: np.ndarray, map_WHC: np.ndarray, unit_WC: np.ndarray) -> np.ndarray:
    """Returns size_HC, how large the model's residuals are in the map's: of a step and its neighbours on all series,
    and of a series at all steps, drawn to that of all series as if it had as many more residuals as a window has."""
    both_WHC = ~np.isnan(own_WHC) & ~np.isnan(map_WHC) & (np.nan_to_num(unit_WC) > 0)[:, None]
    if not both_WHC.any():
        return np.ones(own_WHC.shape[1:])
    unit_W1C = np.where(np.nan_to_num(unit_WC) > 0, unit_WC, 1)[:, None]
    own_HC, map_HC = (np.where(both_WHC, np.abs(a) / unit_W1C, 0).sum(0) for a in (own_WHC, map_WHC))
    count, horizon = both_WHC.sum(), len(own_HC)
    reach = intervals.lent(horizon)

    def near(a_H: np.ndarray) -> np.ndarray:
        return np.array([a_H[max(h - reach, 0) : h + reach + 1].sum() for h in range(horizon)])

    def share(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(b > 0, a / np.where(b > 0, b, 1), 1.0)

    total = share(own_HC.sum(), map_HC.sum())
    lent_own, lent_map = (horizon * a_HC.sum() / count for a_HC in (own_HC, map_HC))
    of_C = share(own_HC.sum(0) + lent_own, map_HC.sum(0) + lent_map)
    of_H = share(near(own_HC.sum(1)), near(map_HC.sum(1)))
    return np.clip(of_H[:, None] * of_C / np.maximum(total, 1e-9), 1 / MOST, MOST)
