"""How far an imputed value leans on the straight line across its gap.

Close to what is seen a line is hard to beat where a series is smooth, and far from it a line says nothing. How much of
an answer is the line depends on the series and on how wide the gap is at its step, and is found where values are known
and were hidden: by least squares in closed form, a share for each width, none larger than that of a narrower one.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from ptt_jax import gaps

RUNGS = 16  # classes of width; the last one begins at 2^13 steps, and takes what no value is near
LENT = 16.0  # gaps that what is known beforehand counts as, of each class


def rung(seen_RL: Array) -> Array:
    """Returns the class of width of each step, int32: 0 of a single unseen step, and one more each time that
    l r / (l + r) doubles, l and r the steps to the nearest seen one before and after.

    With these grows the variance of a random walk that is seen at both ends (a Brownian bridge), and so the error of
    the line between them; where one end is lacking, that of a walk from the other, with l or r.
    """
    at_RL, before_RL, after_RL = gaps.around(seen_RL)
    left_RL = jnp.where(before_RL < 0, jnp.inf, at_RL - before_RL)
    right_RL = jnp.where(after_RL == seen_RL.shape[1], jnp.inf, after_RL - at_RL)
    return jnp.digitize(1 / (1 / left_RL + 1 / right_RL), 2.0 ** np.arange(-1, RUNGS - 2), right=True)


def moments(x_RL: Array, y_RL: Array, seen_RL: Array, hidden_RL: Array) -> Array:
    """Returns m_R3A float32, sums over the hidden values of each row and class A: how far the line through what is seen
    is from the answer y times how far the truth x is, the former squared, and how many they are."""
    away_RL = jnp.where(hidden_RL, gaps.interpolate(x_RL, seen_RL) - y_RL, 0)
    missed_RL = jnp.where(hidden_RL, x_RL - y_RL, 0)
    terms_R3L = jnp.stack([away_RL * missed_RL, away_RL * away_RL, hidden_RL.astype(jnp.float32)], 1)
    rung_R1L = rung(seen_RL)[:, None]
    return jnp.stack([jnp.where(rung_R1L == a, terms_R3L, 0).sum(-1) for a in range(RUNGS)], -1)


def shares(moments_C3A: np.ndarray) -> np.ndarray:
    """Returns share_CA float32 from 0 to 1, the line's part in an answer of each series and class: of all that never
    grow with the width those of the smallest squared error.

    A series is drawn to what all say, each in units of its own, as if LENT more of its gaps had said so; and what all
    say of a class to half of what they say of the next narrower one, of the narrowest to the line alone. So is what
    nothing was hidden for. A gap has about as many values in a class as it is wide there, which say much the same.
    Where that would grow with the width, classes are pooled by the series' own values: those that it has none in give
    way.
    """
    lent_A = LENT * np.maximum(2.0 ** np.arange(-1, RUNGS - 1), 1)
    dot_CA, square_CA, count_CA = np.moveaxis(np.asarray(moments_C3A, np.float64), 1, 0)
    unit_C1 = square_CA.sum(1, keepdims=True) / np.maximum(count_CA.sum(1, keepdims=True), 1)
    unit_C1 = np.where(unit_C1 > 0, unit_C1, 1)
    dot_A, square_A, count_A = (dot_CA / unit_C1).sum(0), (square_CA / unit_C1).sum(0), count_CA.sum(0)
    each_A = np.where(square_A > 0, square_A / np.maximum(count_A, 1), 1)  # of a value, in units of its series
    of_all_A, before = np.zeros(RUNGS), 2.0
    for a in range(RUNGS):
        before = (dot_A[a] + lent_A[a] * each_A[a] * before / 2) / (square_A[a] + lent_A[a] * each_A[a])
        before = of_all_A[a] = min(max(before, 0), 1)
    lent_CA = lent_A * each_A * unit_C1
    share_CA = (dot_CA + lent_CA * of_all_A) / (square_CA + lent_CA)
    return falling(share_CA, square_CA + 1e-9 * lent_CA).astype(np.float32)


def falling(share_CA: np.ndarray, weight_CA: np.ndarray) -> np.ndarray:
    """Returns what is nearest to the shares, by weighted squares, among all from 0 to 1 that never grow: isotonic
    regression by its min-max formula (Robertson et al. 1988)."""
    classes = share_CA.shape[1]
    mean_CAA = np.zeros((*share_CA.shape, classes))  # of the classes from the first to the second
    for i in range(classes):
        total_CA = np.cumsum((share_CA * weight_CA)[:, i:], 1)
        mean_CAA[:, i, i:] = total_CA / np.cumsum(weight_CA[:, i:], 1)
    best = [np.min([mean_CAA[:, i, a:].max(1) for i in range(a + 1)], 0) for a in range(classes)]
    return np.clip(np.stack(best, 1), 0, 1)


def lean(x_RL: Array, y_RL: Array, seen_RL: Array, share_RA: Array) -> Array:
    """Returns the answers y, each drawn to the line through what is seen by its row's share of its class."""
    line_RL = gaps.interpolate(x_RL, seen_RL)
    return y_RL + jnp.take_along_axis(jnp.asarray(share_RA), rung(seen_RL), axis=1) * (line_RL - y_RL)
