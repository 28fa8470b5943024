"""The gaps of a table of series, closed by a frozen backbone: the mask token alone, over windows of all of it.

How far answers lean on straight lines (`bridge.py`) is the table's own affair: values that a series has are hidden in
gaps like those that it has, laid elsewhere, and reconstructed as well.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ptt_jax import bridge, impute
from ptt_jax.model import CrossMAE
from ptt_jax.predict import Predictor
from ptt_jax.scaling import exact

FILL, REACH = "season", 0.5  # of `impute.Way`: what the encoder reads at gaps, and the pull of neighbours in patches
FEW, BATCH = 64, 512  # windows of a dispatch: two programs, however many there are
GROUP = 16  # series that are learned from together, or copies of one
ENOUGH, LEAST = 24000, 256  # hidden values of a table, and of a series, to learn from
COPIES = 16  # of a series at most, with gaps laid elsewhere, besides the one of its ends
MOST, LONGEST = 0.03, 0.25  # of a series' values, what a copy hides; of a single gap that is longer


class Asked(NamedTuple):
    """What reconstructs windows."""

    model: CrossMAE
    backbone: Any
    way: impute.Way
    length: int


def close(of: Predictor, values_TC: np.ndarray, season: int, share_CA: np.ndarray | None = None) -> np.ndarray:
    """Returns values_TC float64 with their gaps (NaN) closed; a series without any value stays as it is.

    share_CA: how far answers lean on lines, by width (`bridge.lean`); None = what `shares` learns from the table.
    """
    seen_TC = ~np.isnan(values_TC)
    torn_C = np.flatnonzero(~seen_TC.all(0) & seen_TC.any(0))
    closed_TC = values_TC.astype(np.float64)
    if not len(torn_C):
        return closed_TC
    asked = Asked(of.model, of.backbone, impute.Way(FILL, REACH * of.model.patch, season), of.lookback)
    seen_TC = seen_TC[:, torn_C]
    scaler = exact(values_TC[:, torn_C], seen_TC)
    x_TC = scaler.transform(values_TC[:, torn_C], seen_TC)
    share_CA = shares(asked, x_TC, seen_TC) if share_CA is None else share_CA[torn_C]
    y_TC = reconstruct(asked, x_TC, seen_TC, ~seen_TC)
    for some in np.array_split(np.arange(len(torn_C)), -(-len(torn_C) // GROUP)):
        y_CT = lean(x_TC[:, some].T, y_TC[:, some].T, seen_TC[:, some].T, share_CA[some])
        y_TC[:, some] = np.asarray(y_CT, np.float64).T
    closed_TC[:, torn_C] = np.where(seen_TC, closed_TC[:, torn_C], y_TC * scaler.scale_C + scaler.mean_C)
    return closed_TC


def reconstruct(asked: Asked, x_TC: np.ndarray, seen_TC: np.ndarray, wanted_TC: np.ndarray) -> np.ndarray:
    """Returns y_TC float64: x where it is seen, and where an answer is wanted what windows say that lie half a window
    apart; where they overlap, the one more in whose middle a step lies. A table shorter than a window is padded in
    front.

    What no window with a value reaches, deep in a gap of more than a window, is a straight line; NaN in a series
    without any value.
    """
    length, rows = asked.length, len(x_TC)
    padding = (max(length - rows, 0), 0), (0, 0)
    x_TC, seen_TC, wanted_TC = (np.pad(a_TC, padding) for a_TC in (x_TC, seen_TC, wanted_TC))
    last = len(x_TC) - length
    start_W = sorted({*range(0, last, max(length // 2, 1)), last})
    pairs = [(w, c) for w in start_W for c in np.flatnonzero(wanted_TC[w : w + length].any(0))
             if seen_TC[w : w + length, c].any()]  # fmt: skip
    total_TC, weight_TC = np.zeros(x_TC.shape), np.zeros(x_TC.shape)
    weight_L = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
    size = BATCH if len(pairs) > BATCH else FEW
    for first in range(0, len(pairs), size):
        some = pairs[first : first + size]
        x_RL, seen_RL = np.zeros((size, length), np.float32), np.zeros((size, length), bool)
        for r, (w, c) in enumerate(some):
            x_RL[r], seen_RL[r] = x_TC[w : w + length, c], seen_TC[w : w + length, c]
        y_RL = np.asarray(run(asked.model, asked.way, asked.backbone, x_RL, seen_RL))
        for (w, c), y_L in zip(some, y_RL, strict=False):
            total_TC[w : w + length, c] += weight_L * y_L
            weight_TC[w : w + length, c] += weight_L
    y_TC = np.where(weight_TC > 0, total_TC / np.maximum(weight_TC, 1), np.nan)
    y_TC, at_T = np.where(seen_TC, x_TC, y_TC), np.arange(len(x_TC))
    for torn in np.flatnonzero((np.isnan(y_TC) & wanted_TC).any(0) & seen_TC.any(0)):
        known_T = ~np.isnan(y_TC[:, torn])
        y_TC[~known_T, torn] = np.interp(at_T[~known_T], at_T[known_T], y_TC[known_T, torn])
    return y_TC[-rows:]


def shares(asked: Asked, x_TC: np.ndarray, seen_TC: np.ndarray) -> np.ndarray:
    """Returns share_CA of `bridge.lean`: of the errors at seen values that are hidden in gaps like those of their
    series (`copies`)."""
    rows, series = x_TC.shape
    each, sums_C3A = max(ENOUGH // series, LEAST), np.zeros((series, 3, bridge.RUNGS))
    # A series learns from the same gaps wherever it stands in the table.
    pairs = ((c, hidden_T) for c in range(series)
             for hidden_T in copies(seen_TC[:, c], each, np.random.default_rng(0)))  # fmt: skip
    while some := [*itertools.islice(pairs, GROUP)]:
        of_G = [c for c, _ in some] + [0] * (GROUP - len(some))
        hidden_TG = np.zeros((rows, GROUP), bool)
        hidden_TG[:, : len(some)] = np.stack([hidden_T for _, hidden_T in some], 1)
        left_TG = seen_TC[:, of_G] & ~hidden_TG
        y_TG = reconstruct(asked, np.where(left_TG, x_TC[:, of_G], 0), left_TG, hidden_TG)
        found_G3A = np.asarray(moments(x_TC[:, of_G].T, y_TG.T, left_TG.T, hidden_TG.T), np.float64)
        np.add.at(sums_C3A, of_G, found_G3A)
    return bridge.shares(sums_C3A)


def copies(seen_T: np.ndarray, enough: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields hidden_T, seen values of a series to hide: first of all at its ends, if values are missing there; then,
    until these are enough, in gaps as long as its own, laid anywhere between its first value and its last.

    Gaps are drawn by turns as often as each other and as often as they are long, so that neither many short ones nor a
    single long one are all that is learned from. Little is hidden at once, so that hardly more is missing than is, and
    a gap that is too long for it is cut.
    """
    place_N = np.flatnonzero(seen_T)
    first, last, count, at_T = place_N[0], place_N[-1], len(place_N), np.arange(len(seen_T))
    most, longest = min(MOST * count, enough / 2), int(LONGEST * count)
    after = len(seen_T) - 1 - last
    ends_T = (at_T < first + min(first, longest // 2)) | (at_T > last - min(after, longest // 2))
    if (ends_T := ends_T & seen_T).any():
        yield ends_T
    apart_N = np.diff(place_N) - 1
    length_G, hidden = np.minimum(apart_N[apart_N > 0], longest), 0
    for turn in range(COPIES if len(length_G) and longest else 0):
        often_G = length_G if turn % 2 else np.ones(len(length_G))
        taken_G = rng.choice(length_G, len(length_G), replace=False, p=often_G / often_G.sum())
        hidden_T = np.zeros(len(seen_T), bool)
        for length in taken_G[: max((np.cumsum(taken_G) <= most).sum(), 1)]:
            begin = rng.integers(first + 1, last - length + 1)
            hidden_T[begin : begin + length] = True
        hidden_T &= seen_T
        hidden += hidden_T.sum()
        if hidden_T.any():
            yield hidden_T
        if turn % 2 and hidden >= enough:
            return


moments, lean = jax.jit(bridge.moments), jax.jit(bridge.lean)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(model: CrossMAE, of: impute.Way, backbone: Any, x_RL: Array, seen_RL: Array) -> Array:
    return impute.impute(model, {"backbone": backbone}, of, x_RL, seen_RL, jnp.zeros(len(x_RL), jnp.int32))
