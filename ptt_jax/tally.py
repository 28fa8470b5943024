"""How often forecasts err by how much: a histogram of errors for each step of the horizon, and the intervals it makes.

Errors of every window and step are far too many to keep, so they are counted on the device, in bins of errors in units
of their history's usual move from one season to the next (the scale of MASE, Hyndman and Koehler 2006), so that a
channel, or a window, that moves more has wider intervals. Bins are even on an asinh scale: within FINE units of zero
they are FINE * WIDTH wide, further out WIDTH of what they hold, up to WIDEST units; zero is an edge. A quantile is off
by at most the width of its bin. Counts are exact: float32 up to 2^24 in a dispatch, float64 on the host.

What validation's errors say is taken for what test's will be (split conformal, Vovk, Gammerman and Shafer 2005; around
quantile forecasts CQR, Romano, Patterson and Candes 2019, each level by itself), a little further out: of n errors, the
k-th is exceeded with probability 1 - k / (n + 1). Windows overlap, so n is that of windows end to end, of each channel.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

BINS = 512
FINE, WIDEST = 0.02, 100.0
WIDTH = 2 * math.asinh(WIDEST / FINE) / BINS
FLOOR = 0.05  # of a channel's spread in training: a history that stands still is no unit
DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
EDGES = FINE * np.sinh((np.arange(BINS + 1) - BINS // 2) * WIDTH)
MIDDLES = ((EDGES[:-1] + EDGES[1:]) / 2).astype(np.float32)


def unit(x_RT: Array, observed_RT: Array, season: int) -> Array:
    """Returns unit_R of scaled histories: the mean distance of values a season apart, both observed; FLOOR at least."""
    lag = min(season, x_RT.shape[1] - 1)
    both_RT = observed_RT[:, lag:] & observed_RT[:, : x_RT.shape[1] - lag]
    move_RT = jnp.where(both_RT, jnp.abs(x_RT[:, lag:] - x_RT[:, : x_RT.shape[1] - lag]), 0)
    return jnp.maximum(move_RT.sum(1) / jnp.maximum(both_RT.sum(1, dtype=jnp.float32), 1), FLOOR)


def count(error_QRH: Array, weight_RH: Array, unit_R: Array) -> Array:
    """Returns parts_QHBK float32, what `sums` takes: for each step and bin of truth minus forecast, in units, sums over
    rows. error_QRH: forecast minus truth, 0 where the weight, 0 or 1, is; B bins, K = 5.

    A running sum of like numbers rounds each of them the same way. So the unit, and what the distance is away from the
    middle of its bin, are summed in two parts each, of which the first has so few digits that its sums are exact.
    """
    levels, _, steps = error_QRH.shape
    unit_QRH = jnp.broadcast_to(unit_R[None, :, None], error_QRH.shape)
    above_QRH = -error_QRH / unit_QRH  # of the truth over the forecast: what is added to it
    bin_QRH = jnp.floor(jnp.arcsinh(above_QRH / FINE) / WIDTH).astype(jnp.int32) + BINS // 2
    bin_QRH = jnp.clip(bin_QRH, 0, BINS - 1)
    weight_QRH = jnp.broadcast_to(weight_RH[None], error_QRH.shape)
    away_QRH = -error_QRH - jnp.asarray(MIDDLES)[bin_QRH] * unit_QRH
    parts = [jnp.ones_like(unit_QRH)]
    for whole_QRH in (unit_QRH, away_QRH):
        coarse_QRH = jax.lax.reduce_precision(whole_QRH, 8, 8)
        parts += [coarse_QRH, whole_QRH - coarse_QRH]
    parts_QRHK = jnp.stack(parts, -1)
    level_QRH, step_QRH = (jax.lax.broadcasted_iota(jnp.int32, bin_QRH.shape, axis) for axis in (0, 2))
    return jnp.zeros((levels, steps, BINS, 5)).at[level_QRH, step_QRH, bin_QRH].add(parts_QRHK * weight_QRH[..., None])


def sums(parts_QHBK: np.ndarray) -> np.ndarray:
    """Returns tally_QHBK float64 of what `count` counted: for each step and bin the sums over rows of 1, the unit and
    the distance of truth minus forecast."""
    number, *parts = np.moveaxis(np.asarray(parts_QHBK, np.float64), -1, 0)
    unit, away = parts[0] + parts[1], parts[2] + parts[3]
    return np.stack([number, unit, away + MIDDLES * unit], -1)


def quantile(tally_HBK: np.ndarray, level: float) -> np.ndarray:
    """Returns z_H in units: what a share `level` of the errors is below, at each step; 0 where nothing was counted."""
    upto_HB = tally_HBK[..., 0].cumsum(1)
    want_H1 = level * upto_HB[:, -1:]
    bin_H = np.minimum(((upto_HB < want_H1) | (upto_HB <= 0)).sum(1), BINS - 1)
    inside_H = np.take_along_axis(tally_HBK[..., 0], bin_H[:, None], 1)[:, 0]
    before_H = np.take_along_axis(upto_HB, bin_H[:, None], 1)[:, 0] - inside_H
    share_H = np.where(inside_H > 0, (want_H1[:, 0] - before_H) / np.maximum(inside_H, 1), 0.5)
    z_H = EDGES[bin_H] + np.clip(share_H, 0, 1) * (EDGES[bin_H + 1] - EDGES[bin_H])
    return np.where(upto_HB[:, -1] > 0, z_H, 0.0)


def split(tally_HBK: np.ndarray, z_H: np.ndarray) -> np.ndarray:
    """Returns below_HK, the sums over the errors below z_H units; within a bin they are taken to lie evenly."""
    bin_H = np.clip(np.searchsorted(EDGES, z_H, side="right") - 1, 0, BINS - 1)
    share_H = np.clip((z_H - EDGES[bin_H]) / (EDGES[bin_H + 1] - EDGES[bin_H]), 0, 1)
    upto_HBK, steps_H = tally_HBK.cumsum(1), np.arange(len(z_H))
    inside_HK = tally_HBK[steps_H, bin_H]
    return upto_HBK[steps_H, bin_H] - (1 - share_H[:, None]) * inside_HK


def outward(level: float, independent: int) -> float:
    """Returns the share of `independent` errors below a bound that a new one is below with probability `level`; a bound
    past the outermost error is that."""
    return min(max((level * (independent + 1) - 0.5) / independent, 0.0), 1.0)


def bounds(tally_HBK: np.ndarray, level: float, independent: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns low_H and high_H in units: a share `level` of new errors lies between, as many above as below."""
    low, high = (outward(0.5 + side * level / 2, independent) for side in (-1, 1))
    return quantile(tally_HBK, low), quantile(tally_HBK, high)


def shares(tallies: tuple[np.ndarray, np.ndarray], bounds: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Returns share_H of the truths between two bounds, each z_H units from a forecast with a tally of its own; 0 where
    they cross, NaN where no truth is known."""
    low_H, high_H = (split(tally, z_H)[:, 0] for tally, z_H in zip(tallies, bounds, strict=True))
    known_H = tallies[0][..., 0].sum(1)
    return np.where(known_H > 0, np.maximum(high_H - low_H, 0) / np.maximum(known_H, 1), np.nan)


def coverage(tallies: tuple[np.ndarray, np.ndarray], bounds: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the share of all truths between two bounds (`shares`); NaN without any."""
    known_H = tallies[0][..., 0].sum(1)
    return float(np.nan_to_num(shares(tallies, bounds)) @ known_H / (known_H.sum() or np.nan))


def pinball(tally_HBK: np.ndarray, z_H: np.ndarray, level: float) -> float:
    """Returns the mean pinball loss, in scaled space, of forecasts that are moved by z_H units; exact but for the
    errors of the bin that z_H lies in."""
    below_HK, all_HK = split(tally_HBK, z_H), tally_HBK.sum(1)
    distance_H, under_H = (k[:, 2] - z_H * k[:, 1] for k in (all_HK, below_HK))  # truth minus moved forecast
    return float((level * distance_H - under_H).sum() / (all_HK[:, 0].sum() or np.nan))


def judge(levels: tuple[float, ...], past: np.ndarray, seen: np.ndarray, independent: int) -> dict[str, float]:
    """Returns the columns of a model's row: coverage at 80 and 95 %, and the CRPS (twice the mean pinball loss over
    `levels`) of its forecasts as `past`, the tally_QHBK of validation, calibrates them, on those of `seen`, test's.
    independent: how many errors of a step of validation are of windows that do not overlap.

    Q = 1: a point forecast, which all levels move from. Otherwise Q are quantile forecasts of `levels`, ordered: they
    have these figures raw, too, and a coverage where its bounds are among them.
    """
    single = len(past) == 1

    def of(level: float) -> int | None:
        return 0 if single else levels.index(level) if level in levels else None

    def cover(low: float, high: float, calibrated: bool) -> float:
        places = of(low), of(high)
        if None in places:
            return math.nan
        a, b = (int(place or 0) for place in places)
        zero_H = np.zeros(past.shape[1])
        moved = [quantile(past[at], outward(level, independent)) for at, level in ((a, low), (b, high))]
        return coverage((seen[a], seen[b]), (moved[0], moved[1]) if calibrated else (zero_H, zero_H))

    def crps(calibrated: bool) -> float:
        each = []
        for level in levels:
            place = of(level) or 0
            z_H = quantile(past[place], level) if calibrated else np.zeros(past.shape[1])
            each.append(pinball(seen[place], z_H, level))
        return 2 * float(np.mean(each))

    out = {"coverage_80": cover(0.1, 0.9, True), "coverage_95": cover(0.025, 0.975, True), "crps": crps(True)}
    raw = {} if single else {"raw_coverage_80": cover(0.1, 0.9, False), "raw_crps": crps(False)}
    return out | raw
