"""The season of a series, from its own values: the lag at which its steps repeat. numpy and pandas only."""

import numpy as np

from ptt_jax import clock

FAINT = 0.05  # autocorrelation of steps from which on the calendar's season is believed ...
LEAST = 0.15  # ... and any other lag
WILD = 5  # median steps
SHARE = 0.85  # of the highest peak's, from which on a shorter lag is the season and the higher one a multiple of it
SEEN = 3  # a season that is seen fewer times than this cannot be told from a trend
MOST = 32  # channels that are asked
LONGEST = 4096  # steps; longer ones are no use to a model whose lookback is a few hundred


def autocorrelation(values_TC: np.ndarray, longest: int) -> np.ndarray:
    """Returns the autocorrelation of steps at lags 0 to `longest`, mean over channels that move; missing is NaN.

    Of steps (differences), not of values: a trend, which is alike at all lags, is gone. Steps of more than WILD median
    steps are cut there, so that no spike speaks for a series.
    """
    steps_TC = np.diff(values_TC, axis=0)
    seen_TC = ~np.isnan(steps_TC)
    both = zip(np.abs(steps_TC).T, seen_TC.T, strict=True)
    usual_C = np.array([np.median(size_T[seen_T]) if seen_T.any() else 0.0 for size_T, seen_T in both])
    most_C = np.where(usual_C > 0, WILD * usual_C, np.inf)  # of one that mostly stands still, steps are few and count
    steps_TC = np.clip(np.where(seen_TC, steps_TC, 0), -most_C, most_C)
    count_C = np.maximum(seen_TC.sum(0), 1)
    steps_TC = np.where(seen_TC, steps_TC - steps_TC.sum(0) / count_C, 0)
    scale_C = np.sqrt((steps_TC**2).sum(0) / count_C)
    moves_C = scale_C > 0
    if not moves_C.any():
        return np.zeros(longest + 1)
    steps_TC, seen_TC = steps_TC[:, moves_C], seen_TC[:, moves_C].astype(float)
    size = 2 ** int(np.ceil(np.log2(len(steps_TC) + longest + 1)))  # no lag wraps round

    def products(x_TC: np.ndarray) -> np.ndarray:
        return np.fft.irfft(np.abs(np.fft.rfft(x_TC, size, axis=0)) ** 2, size, axis=0)[: longest + 1]

    pairs_LC = np.maximum(np.round(products(seen_TC)), 1)
    covariance_LC = products(steps_TC) / pairs_LC
    return np.asarray((covariance_LC / covariance_LC[0]).mean(1))


def estimate(values_TC: np.ndarray, freq: str = "") -> int:
    """Returns the season in steps, 1 where there is none.

    values_TC float64, NaN where missing; freq: pandas offset alias, '' = none known. The calendar's season of that step
    (the day of hours, the week of days) is taken where steps repeat after it at all, or where the history is too short
    to tell; otherwise the shortest lag at which steps are about as alike as at any: of two lags of nearly the same
    autocorrelation the longer is often a multiple of the shorter, and a patch must divide both.
    """
    rows, usual = len(values_TC), clock.season(freq) if freq else 1
    longest = min(rows // SEEN, LONGEST)
    if longest <= usual:
        return usual if rows >= 2 * usual else 1
    values_TC = values_TC[-8 * LONGEST :, :: -(-values_TC.shape[1] // MOST)]
    at_L = autocorrelation(values_TC, longest)
    chance = 4 / np.sqrt(len(values_TC))
    # Half a season apart steps are less alike, unless what is seen is only that neighbours are.
    if usual > 1 and at_L[usual] > max(FAINT, at_L[usual // 2]):
        return usual
    peaks = np.flatnonzero((at_L[1:-1] >= at_L[:-2]) & (at_L[1:-1] >= at_L[2:])) + 1
    peaks = peaks[(peaks > 1) & (at_L[peaks] > max(LEAST, chance))]
    return int(peaks[at_L[peaks] >= SHARE * at_L[peaks].max()][0]) if len(peaks) else 1
