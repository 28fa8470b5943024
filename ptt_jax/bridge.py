"""How far an imputed value leans on the straight line across its gap.

Close to what is seen a line is hard to beat where a series is smooth, and far from it a line says nothing. How much of
an answer is the line depends on how wide the gap is at its step, and is found where values are known and were hidden:
by least squares in closed form, a share for each width, none larger than that of a narrower one.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from ptt_jax import gaps

RUNGS = 16  # classes of width; the last one begins 2^13 steps from what is seen, and takes what no value is near


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


def moments(x_RL: Array, y_RL: Array, line_RL: Array, rung_RL: Array, hidden_RL: Array) -> Array:
    """Returns m_2A float32, sums over the hidden values of each class A: of how far the line is from the answer y times
    how far the truth x is, and of the former squared."""
    away_RL = jnp.where(hidden_RL, line_RL - y_RL, 0)
    missed_RL = jnp.where(hidden_RL, x_RL - y_RL, 0)
    sums = [jnp.bincount(rung_RL.ravel(), weights.ravel(), length=RUNGS) for weights in
            (away_RL * missed_RL, away_RL * away_RL)]  # fmt: skip
    return jnp.stack(sums)


def shares(moments_2A: np.ndarray) -> np.ndarray:
    """Returns share_A float32 from 0 to 1, the line's part in an answer of each class: of all that never grow with the
    width those of the smallest squared error (isotonic regression by its min-max formula, Robertson et al. 1988). 0
    where nothing was hidden so far from what is seen."""
    dot_A, square_A = np.asarray(moments_2A, np.float64)
    mean_AA = np.zeros((RUNGS, RUNGS))  # the share that is best of the classes from the first to the second
    for i in range(RUNGS):
        total_A = np.cumsum(square_A[i:])
        np.divide(np.cumsum(dot_A[i:]), total_A, out=mean_AA[i, i:], where=total_A > 0)
    each = [min(max(mean_AA[i, k:]) for i in range(k + 1)) for k in range(RUNGS)]
    return np.clip(each, 0, 1).astype(np.float32)


def lean(y_RL: Array, line_RL: Array, rung_RL: Array, share_A: Array) -> Array:
    """Returns the answers y, each with the share of its class drawn to the line."""
    return y_RL + jnp.asarray(share_A)[rung_RL] * (line_RL - y_RL)
