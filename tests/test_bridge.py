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


def pooled(share_A: np.ndarray, weight_A: np.ndarray) -> np.ndarray:
    """Pools adjacent violators, the textbook's way to what never grows."""
    pools = []  # [mean, weight, classes]
    for share, weight in zip(share_A, weight_A, strict=True):
        pools.append([share, weight, 1])
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (m, w, n), (k, v, c) = pools[-2:]
            pools[-2:] = [[(m * w + k * v) / (w + v), w + v, n + c]]
    return np.clip(np.concatenate([[mean] * count for mean, _, count in pools]), 0, 1)


def test_shares_are_the_nearest_of_those_that_never_grow():
    rng = np.random.default_rng(3)
    weight_CA = rng.uniform(0.5, 2, (30, bridge.RUNGS))
    share_CA = np.linspace(1.1, -0.1, bridge.RUNGS) + rng.normal(size=weight_CA.shape) / 5
    found_CA = bridge.falling(share_CA, weight_CA)
    expected_CA = [pooled(*of) for of in zip(share_CA, weight_CA, strict=True)]
    np.testing.assert_allclose(found_CA, expected_CA, rtol=1e-9, atol=1e-12)
    assert min(len(np.unique(found_A)) for found_A in found_CA) > 3


@pytest.mark.parametrize(
    ("share_A", "expected_A"),
    [
        ([0.9, 0.5, 0.1], [0.9, 0.5, 0.1]),
        ([0.2, 0.8, 0.1], [0.5, 0.5, 0.1]),  # what would grow is pooled
        ([1.4, 0.5, -0.3], [1.0, 0.5, 0.0]),
    ],
)
def test_what_never_grows_is_left_and_what_does_is_pooled(share_A, expected_A):
    found_A = bridge.falling(np.array([share_A]), np.full((1, 3), 2.0))
    np.testing.assert_allclose(found_A[0], expected_A, rtol=1e-6)


def told(*shares_A, count=1e9, square=1.0):
    """Moments of series in whose classes so many values were hidden, for which these shares are best; None: in none."""
    m_C3A = np.zeros((len(shares_A), 3, bridge.RUNGS))
    for m_3A, share_A in zip(m_C3A, shares_A, strict=True):
        for a, share in enumerate(share_A):
            m_3A[:, a] = 0 if share is None else (share * square * count, square * count, count)
    return m_C3A


def test_many_values_are_taken_at_their_word():
    found_CA = bridge.shares(told([0.9, 0.5, 0.1], [0.4, 0.3, 0.2]))
    np.testing.assert_allclose(found_CA[:, :3], [[0.9, 0.5, 0.1], [0.4, 0.3, 0.2]], rtol=1e-4)


def test_where_nothing_was_hidden_each_class_has_half_of_the_narrower_one():
    np.testing.assert_allclose(bridge.shares(told([]))[0], 0.5 ** np.arange(bridge.RUNGS), rtol=1e-6)
    known_A = bridge.shares(told([0.8, 0.8]))[0]
    np.testing.assert_allclose(known_A[:4], [0.8, 0.8, 0.4, 0.2], rtol=1e-4)


def test_a_series_with_few_values_is_drawn_to_what_all_say_in_units_of_its_own():
    few = told([0.0] * 2, count=bridge.LENT, square=1e-6)
    for square in (1e-3, 1.0, 1e3):
        many = told([0.6] * 2, square=square)
        found_CA = bridge.shares(np.concatenate([many, few]))
        np.testing.assert_allclose(found_CA[0, :2], 0.6, rtol=1e-3)
        np.testing.assert_allclose(found_CA[1, :2], 0.3, rtol=1e-3)  # as many say 0 as are lent
    nobody = bridge.shares(np.concatenate([many, told([])]))
    np.testing.assert_allclose(nobody[1, :2], 0.6, rtol=1e-3)


def test_classes_that_a_series_has_no_value_in_do_not_outvote_it():
    many = told(*[[1.0] * 9] * 4, count=2000)
    for count in (256, 2400):
        found_CA = bridge.shares(np.concatenate([many, told([0.0] * 2, count=count)]))
        np.testing.assert_allclose(found_CA[:4, :2], 1, rtol=0.05)
        assert found_CA[4, 0] < 0.1
        assert (found_CA[4] <= found_CA[4, 0]).all()


def test_wide_gaps_are_believed_by_their_number_not_by_their_values():
    known_A = bridge.shares(told([1.0] * 3, count=64))[0]
    found_A = bridge.shares(told([1.0] * 3 + [None] * 4 + [0.0], count=64))[0]
    np.testing.assert_allclose(found_A[:7], known_A[:7], rtol=1e-6)
    assert 0.85 * known_A[7] < found_A[7] < 0.95 * known_A[7]  # 64 values of a gap or two
    narrow_A = bridge.shares(told([1.0, 0.0], count=64))[0]
    assert narrow_A[1] < 0.1 * known_A[1]  # as many of as many gaps


def test_shares_are_found_again_in_what_was_mixed_by_them():
    rng = np.random.default_rng(1)
    seen_RL = jnp.asarray(rng.random((40, 2000)) < 0.3)
    x_RL, y_RL = (jnp.asarray(rng.normal(size=seen_RL.shape), jnp.float32) for _ in "ab")
    share_RA = np.tile(np.linspace(1, 0, bridge.RUNGS, dtype=np.float32), (40, 1)) * np.array([[1], [0.5]] * 20)
    truth_RL = jnp.where(seen_RL, x_RL, bridge.lean(x_RL, y_RL, seen_RL, jnp.asarray(share_RA, jnp.float32)))
    m_R3A = np.asarray(jax.jit(bridge.moments)(truth_RL, y_RL, seen_RL, ~seen_RL), float)
    np.testing.assert_array_equal(m_R3A[:, 2].sum(1), (~seen_RL).sum(1))
    there_RA = m_R3A[:, 2] > 0
    assert there_RA.sum() > 160
    best_RA = m_R3A[:, 0] / np.maximum(m_R3A[:, 1], 1e-9)
    np.testing.assert_allclose(best_RA[there_RA], share_RA[there_RA], atol=1e-3)
    some_RL = ~seen_RL & (jnp.arange(2000) < 1000)[None]
    spoilt_RL = jnp.where(seen_RL | some_RL, truth_RL, jnp.nan)
    np.testing.assert_array_equal(  # what was not hidden does not count, whatever stands there
        *(bridge.moments(of_RL, y_RL, seen_RL, some_RL) for of_RL in (truth_RL, spoilt_RL))
    )


def test_a_share_of_one_is_the_line_and_of_none_the_answer():
    x_RL = jnp.array([[2.0, 0, 4, 0, 0, 0, 0, 9]] * 2)
    seen_RL = x_RL > 0
    y_RL = jnp.where(seen_RL, x_RL, 1.0)
    share_RA = np.zeros((2, bridge.RUNGS), np.float32)
    share_RA[0, :2], share_RA[1, 0] = (1, 0.5), 0.25
    found_RL = bridge.lean(x_RL, y_RL, seen_RL, share_RA)  # classes: 0 of the first gap, 1 and 2 of the second one
    np.testing.assert_allclose(found_RL[:, 1:7], [[3, 4, 3, 1, 1, 4.5], [1.5, 4, 1, 1, 1, 1]], rtol=1e-6)
