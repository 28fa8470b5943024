"""The gaps of a table of series, closed by a frozen backbone: the mask token alone, over windows of all of it.

How far answers lean on straight lines (`bridge.py`) is the table's own affair: values that it has are hidden in gaps
like those that it has, moved along the series, and reconstructed as well.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ptt_jax import bridge, gaps, impute
from ptt_jax.model import CrossMAE
from ptt_jax.predict import Predictor
from ptt_jax.scaling import exact

FILL, REACH = "season", 0.5  # of `impute.Way`: what the encoder reads at gaps, and the pull of neighbours in patches
BATCH = 64  # windows of a dispatch, always: one program, however many there are
ENOUGH, MOVES, MOST = 8192, 16, 0.03  # values that shares are learned from; moves for it; of those seen, a move's part


class Asked(NamedTuple):
    """What reconstructs windows."""

    model: CrossMAE
    backbone: Any
    way: impute.Way
    length: int


def close(of: Predictor, values_TC: np.ndarray, season: int, share_A: np.ndarray | None = None) -> np.ndarray:
    """Returns values_TC float64 with their gaps (NaN) closed; a series without any value stays as it is.

    share_A: how far answers lean on lines, by width (`bridge.lean`); None = what `shares` learns from the table.
    """
    asked = Asked(of.model, of.backbone, impute.Way(FILL, REACH * of.model.patch, season), of.lookback)
    rows = len(values_TC)
    padded_TC = np.pad(values_TC, ((max(of.lookback - rows, 0), 0), (0, 0)), constant_values=np.nan)
    seen_TC = ~np.isnan(padded_TC)
    scaler = exact(padded_TC, seen_TC)
    x_TC = scaler.transform(padded_TC, seen_TC)
    y_TC = reconstruct(asked, x_TC, seen_TC, ~seen_TC)
    share_A = shares(asked, x_TC, seen_TC) if share_A is None else share_A
    y_TC = np.asarray(lean(x_TC.T, y_TC.T, seen_TC.T, share_A), np.float64).T
    return np.where(seen_TC, padded_TC, y_TC * scaler.scale_C + scaler.mean_C)[-rows:]


def reconstruct(asked: Asked, x_TC: np.ndarray, seen_TC: np.ndarray, wanted_TC: np.ndarray) -> np.ndarray:
    """Returns y_TC float64: x where it is seen, and where an answer is wanted what windows say that lie half a window
    apart; where they overlap, the one more in whose middle a step lies.

    What no window with a value reaches, deep in a gap of more than a window, is a straight line; NaN in a series
    without any value.
    """
    length, last = asked.length, len(x_TC) - asked.length
    start_W = sorted({*range(0, last, max(length // 2, 1)), last})
    pairs = [(w, c) for w in start_W for c in np.flatnonzero(wanted_TC[w : w + length].any(0))
             if seen_TC[w : w + length, c].any()]  # fmt: skip
    total_TC, weight_TC = np.zeros(x_TC.shape), np.zeros(x_TC.shape)
    weight_L = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
    for first in range(0, len(pairs), BATCH):
        some = pairs[first : first + BATCH]
        x_RL, seen_RL = np.zeros((BATCH, length), np.float32), np.zeros((BATCH, length), bool)
        for r, (w, c) in enumerate(some):
            x_RL[r], seen_RL[r] = x_TC[w : w + length, c], seen_TC[w : w + length, c]
        y_RL = np.asarray(run(asked.model, asked.way, asked.backbone, x_RL, seen_RL))
        for (w, c), y_L in zip(some, y_RL, strict=False):
            total_TC[w : w + length, c] += weight_L * y_L
            weight_TC[w : w + length, c] += weight_L
    y_TC = np.where(weight_TC > 0, total_TC / np.maximum(weight_TC, 1), np.nan)
    y_TC, at_T = np.where(seen_TC, x_TC, y_TC), np.arange(len(x_TC))
    for torn in np.flatnonzero(np.isnan(y_TC).any(0) & seen_TC.any(0)):
        known_T = ~np.isnan(y_TC[:, torn])
        y_TC[~known_T, torn] = np.interp(at_T[~known_T], at_T[known_T], y_TC[known_T, torn])
    return y_TC


def shares(asked: Asked, x_TC: np.ndarray, seen_TC: np.ndarray) -> np.ndarray:
    """Returns share_A of `bridge.lean`: of the errors at seen values that are hidden in the table's own gaps, moved.

    All gaps of a table move by the same number of steps, another one each time, until enough is known; of many, some,
    so that hardly more is missing than is. What lies before a series begins or after it ends is no gap.
    """
    begun_TC, over_TC = np.maximum.accumulate(seen_TC), np.maximum.accumulate(seen_TC[::-1])[::-1]
    gap_TC = begun_TC & over_TC & ~seen_TC
    sums, hidden, rng = np.zeros((2, bridge.RUNGS)), 0, np.random.default_rng(0)
    begins_CT = (gap_TC & ~np.roll(gap_TC, 1, 0)).T
    which_TC = np.cumsum(begins_CT).reshape(begins_CT.shape).T  # the number of the gap that a step is in
    part = min(1.0, min(MOST * seen_TC.sum(), ENOUGH) / max(gap_TC.sum(), 1))
    for by in 1 + rng.permutation(len(x_TC) - 1)[: MOVES if gap_TC.any() else 0]:
        taken = rng.random(begins_CT.sum() + 1) < part
        moved_TC = np.roll(gap_TC & taken[which_TC], by, 0) & seen_TC
        left_TC = seen_TC & ~moved_TC
        moved_TC &= left_TC.any(0)
        y_TC = reconstruct(asked, np.where(left_TC, x_TC, 0), left_TC, moved_TC)
        sums += np.asarray(moments(x_TC.T, y_TC.T, left_TC.T, moved_TC.T))
        hidden += moved_TC.sum()
        if hidden >= ENOUGH:
            break
    return bridge.shares(sums)


@jax.jit
def moments(x_RL: Array, y_RL: Array, seen_RL: Array, hidden_RL: Array) -> Array:
    line_RL = gaps.interpolate(jnp.where(seen_RL, x_RL, 0), seen_RL)
    return bridge.moments(x_RL, y_RL, line_RL, bridge.rung(seen_RL), hidden_RL)


@jax.jit
def lean(x_RL: Array, y_RL: Array, seen_RL: Array, share_A: Array) -> Array:
    return bridge.lean(y_RL, gaps.interpolate(x_RL, seen_RL), bridge.rung(seen_RL), share_A)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(model: CrossMAE, of: impute.Way, backbone: Any, x_RL: Array, seen_RL: Array) -> Array:
    return impute.impute(model, {"backbone": backbone}, of, x_RL, seen_RL, jnp.zeros(len(x_RL), jnp.int32))
