"""How far answers lean on lines: widths against a plain loop, shares against a solver, and what a share does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import bridge


def width(seen_L: np.ndarray, at: int) -> float:
    """l r / (l + r) of a step, by looking around."""
    before = [at - i for i in range(at) if seen_L[i]]
    after = [i - at for i in range(at + 1, len(seen_L)) if seen_L[i]]
    if before and after:
        return min(before) * min(after) / (min(before) + min(after))
    return min(before + after, default=np.inf)


def test_a_class_is_a_doubling_of_the_width():
    rng = np.random.default_rng(0)
    seen_RL = rng.random((6, 90)) < np.array([0.02, 0.05, 0.2, 0.5, 0.9, 0.0])[:, None]
    found_RL = np.asarray(bridge.rung(jnp.asarray(seen_RL)))
    for r, seen_L in enumerate(seen_RL):
        for at in np.flatnonzero(~seen_L):
            of = width(seen_L, at)
            expected = bridge.RUNGS - 1 if np.isinf(of) else max(int(np.ceil(np.log2(of))) + 1, 0)
            assert found_RL[r, at] == expected, (r, at, of)
    assert (found_RL[seen_RL] == 0).all()
    assert len({*found_RL[:5].ravel()}) > 5


def test_a_single_gap_is_the_narrowest_and_the_end_of_a_long_one_is_wider():
    seen_1L = jnp.array([[True, False, True, True, *[False] * 9, True, False]])
    rung_L = np.asarray(bridge.rung(seen_1L))[0]
    assert [rung_L[1], rung_L[4], rung_L[8], rung_L[14]] == [0, 1, 3, 1]


def best(dot_A: np.ndarray, square_A: np.ndarray) -> np.ndarray:
    """Projected gradient descent: the shares of least error among those that never grow, from 0 to 1."""
    drop_A = np.full(len(dot_A), 1 / len(dot_A))  # what each class has more than the next one
    for _ in range(200_000):
        share_A = np.cumsum(drop_A[::-1])[::-1]
        slope_A = np.cumsum(square_A * share_A - dot_A)
        drop_A = np.maximum(drop_A - 0.5 * slope_A / (len(dot_A) * square_A.sum()), 0)
        drop_A /= max(drop_A.sum(), 1)
    return np.cumsum(drop_A[::-1])[::-1]


def loss(share_A: np.ndarray, dot_A: np.ndarray, square_A: np.ndarray) -> float:
    return float((square_A * share_A**2 - 2 * dot_A * share_A).sum())


def test_shares_are_the_best_of_those_that_never_grow():
    rng = np.random.default_rng(3)
    square_A = rng.uniform(0.5, 2, bridge.RUNGS)
    dot_A = square_A * (np.linspace(0.9, 0.1, bridge.RUNGS) + rng.normal(size=bridge.RUNGS) / 5)
    share_A = bridge.shares(np.stack([dot_A, square_A]))
    assert (np.diff(share_A) <= 0).all()
    assert 0 < share_A.min() < share_A.max() < 1
    assert len(np.unique(share_A)) > 3
    near_A = best(dot_A, square_A)
    np.testing.assert_allclose(share_A, near_A, atol=0.02)
    assert loss(share_A, dot_A, square_A) <= loss(near_A, dot_A, square_A) + 1e-6


@pytest.mark.parametrize(
    ("of_A", "expected_A"),
    [
        ([0.9, 0.5, 0.1], [0.9, 0.5, 0.1]),
        ([0.2, 0.8, 0.1], [0.5, 0.5, 0.1]),  # what would grow is pooled
        ([1.4, 0.5, -0.3], [1.0, 0.5, 0.0]),
        ([0.9, None, 0.3], [0.9, 0.3, 0.3]),  # nothing was hidden there: what the next wider one has
        ([0.9, None, None], [0.9, 0.0, 0.0]),
    ],
)
def test_what_shares_are_made_of(of_A, expected_A):
    square_A = np.zeros(bridge.RUNGS)
    dot_A = np.zeros(bridge.RUNGS)
    for a, share in enumerate(of_A):
        if share is not None:
            square_A[a], dot_A[a] = 2.0, 2.0 * share
    found_A = bridge.shares(np.stack([dot_A, square_A]))
    np.testing.assert_allclose(found_A[: len(of_A)], expected_A, rtol=1e-6)
    assert (found_A[len(of_A) :] == 0).all()


def test_shares_are_found_again_in_what_was_mixed_by_them():
    rng = np.random.default_rng(1)
    seen_RL = jnp.asarray(rng.random((40, 200)) < 0.3)
    y_RL, line_RL = (jnp.asarray(rng.normal(size=seen_RL.shape), jnp.float32) for _ in "ab")
    share_A = np.linspace(1, 0, bridge.RUNGS, dtype=np.float32)
    rung_RL = bridge.rung(seen_RL)
    x_RL = bridge.lean(y_RL, line_RL, rung_RL, share_A)
    m_2A = jax.jit(bridge.moments)(x_RL, y_RL, line_RL, rung_RL, ~seen_RL)
    there_A = np.unique(rung_RL[~seen_RL])
    assert len(there_A) > 4
    np.testing.assert_allclose(bridge.shares(m_2A)[there_A], share_A[there_A], atol=1e-4)
    some_RL = ~seen_RL & (jnp.arange(200) < 100)[None]
    spoilt_RL = jnp.where(some_RL, x_RL, jnp.nan)
    np.testing.assert_array_equal(  # what was not hidden does not count, whatever stands there
        bridge.moments(spoilt_RL, y_RL, line_RL, rung_RL, some_RL),
        bridge.moments(x_RL, y_RL, line_RL, rung_RL, some_RL),
    )


def test_a_share_of_one_is_the_line_and_of_none_the_answer():
    y_RL, line_RL, rung_RL = jnp.ones((1, 3)), jnp.array([[5.0, 7.0, 9.0]]), jnp.array([[0, 1, 2]])
    share_A = np.zeros(bridge.RUNGS, np.float32)
    share_A[:2] = 1, 0.5
    np.testing.assert_array_equal(bridge.lean(y_RL, line_RL, rung_RL, share_A), [[5.0, 4.0, 1.0]])
