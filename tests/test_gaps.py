"""Gaps against plain loops: how they are made, and what closes them without a model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import gaps

hide = jax.jit(gaps.hide)
seasonal = jax.jit(gaps.seasonal, static_argnums=2)
LAWS = {kind: gaps.law(kind, (0.25,), (0.25, 1.0), 24) for kind in gaps.KINDS}


@pytest.fixture(scope="module")
def windows():
    """x_RL and seen_RL: 40 rows of 96 steps, half of them seen, in row 0 none, in row 1 all."""
    rng = np.random.default_rng(1)
    seen_RL = rng.random((40, 96)) < 0.5
    seen_RL[0], seen_RL[1] = False, True
    return rng.normal(size=(40, 96)).astype(np.float32), seen_RL


@pytest.mark.parametrize("ratio", [0.125, 0.5])
@pytest.mark.parametrize("kind", gaps.KINDS)
def test_the_share_asked_for_is_hidden_of_what_is_observed(windows, kind, ratio):
    law, row_R, observed_RL = LAWS[kind].replace(ratios=(ratio,)), jnp.arange(40), jnp.asarray(windows[1])
    hidden_RL = np.stack([hide(law, jax.random.key(i), row_R, observed_RL) for i in range(20)])
    assert not (hidden_RL & ~windows[1]).any()
    count_R = windows[1].sum(1)
    if kind == "blocks":
        np.testing.assert_array_equal(hidden_RL.sum(2), np.tile(np.round(ratio * count_R), (20, 1)))
    else:
        assert abs(hidden_RL.sum() / (20 * count_R.sum()) - ratio) < 0.01  # three standard deviations


def test_rows_draw_each_of_several_shares(windows):
    law = LAWS["blocks"].replace(ratios=(0.125, 0.5))
    share_R = np.asarray(hide(law, jax.random.key(0), jnp.arange(40), jnp.ones((40, 96), bool))).mean(1)
    assert {*share_R.tolist()} == {0.125, 0.5}


@pytest.mark.parametrize("kind", gaps.KINDS)
def test_the_gaps_of_a_row_are_its_own_in_whatever_batch(windows, kind):
    observed_RL = jnp.asarray(windows[1])
    whole_RL = hide(LAWS[kind], jax.random.key(0), jnp.arange(40), observed_RL)
    order_R = np.random.default_rng(0).permutation(40)[:8]
    some_RL = hide(LAWS[kind], jax.random.key(0), jnp.asarray(order_R), observed_RL[order_R])
    np.testing.assert_array_equal(some_RL, whole_RL[order_R])
    assert len(np.unique(whole_RL[1:], axis=0)) == 39


def test_blocks_have_lengths_between_the_bounds_and_hide_every_step_alike():
    law = gaps.law("blocks", (0.25,), (0.25, 1.0), 24)
    assert dataclasses.astuple(law)[2:] == (6, 24)
    hidden_RL = np.asarray(hide(law, jax.random.key(0), jnp.arange(4000), jnp.ones((4000, 96), bool)))
    assert np.abs(hidden_RL.mean(0) - 0.25).max() < 0.035  # edges too; five standard deviations
    edge_RL = np.diff(np.pad(hidden_RL, ((0, 0), (1, 1))).astype(int))
    row_G, begin_G = np.nonzero(edge_RL == 1)
    length_G = np.nonzero(edge_RL == -1)[1] - begin_G
    inside_G = (begin_G > 0) & (begin_G + length_G < 96)
    # The last run of a row ends early, and runs merge; what is shorter than a run is at most one a row.
    assert np.bincount(row_G[inside_G & (length_G < 6)], minlength=4000).max() <= 1
    assert 10 < length_G[inside_G].mean() < 20


def test_straight_lines_are_those_of_numpy(windows):
    x_RL, seen_RL = windows
    y_RL = np.asarray(gaps.interpolate(jnp.asarray(x_RL), jnp.asarray(seen_RL)))
    at_L = np.arange(96)
    want_RL = [np.interp(at_L, at_L[s], x[s]) if s.any() else 0 * x for x, s in zip(x_RL, seen_RL, strict=True)]
    np.testing.assert_allclose(y_RL, want_RL, atol=1e-6)
    np.testing.assert_array_equal(y_RL[seen_RL], x_RL[seen_RL])


@pytest.mark.parametrize("season", [1, 7, 24, 200])
def test_the_seasonal_guess_is_that_of_a_loop(windows, season):
    x_RL, seen_RL = windows
    seen_RL = seen_RL.copy()
    seen_RL[2, 5::24] = seen_RL[2, 5::7] = False  # a phase that is never seen
    line_RL = np.asarray(gaps.interpolate(jnp.asarray(x_RL), jnp.asarray(seen_RL)))

    def guess(r, t):
        if 1 < season < 96:
            for k in range(1, 96):
                for s in (t - k * season, t + k * season):
                    if 0 <= s < 96 and seen_RL[r, s]:
                        return x_RL[r, s]
        return line_RL[r, t]

    want_RL = [[x_RL[r, t] if seen_RL[r, t] else guess(r, t) for t in range(96)] for r in range(40)]
    np.testing.assert_allclose(seasonal(jnp.asarray(x_RL), jnp.asarray(seen_RL), season), want_RL, atol=1e-6)


def test_a_guess_is_drawn_to_its_neighbours_and_less_the_further_they_are(windows):
    x_RL, seen_RL = windows
    guess_RL = np.sin(np.arange(96, dtype=np.float32)) + 0 * x_RL
    y_RL = np.asarray(gaps.draw(*map(jnp.asarray, (guess_RL, x_RL, seen_RL)), 3.0))
    np.testing.assert_array_equal(y_RL[seen_RL], x_RL[seen_RL])
    np.testing.assert_array_equal(y_RL[0], guess_RL[0])
    missed_RL = np.asarray(gaps.interpolate(jnp.asarray(x_RL - guess_RL), jnp.asarray(seen_RL)))
    for r in range(2, 40):
        for t in np.nonzero(~seen_RL[r])[0]:
            away = np.abs(np.nonzero(seen_RL[r])[0] - t).min()
            assert abs(y_RL[r, t] - guess_RL[r, t] - missed_RL[r, t] * np.exp(-away / 3)) < 1e-5
    alone_RL = np.asarray(gaps.draw(*map(jnp.asarray, (guess_RL, x_RL, seen_RL)), 0.0))
    np.testing.assert_array_equal(alone_RL, np.where(seen_RL, x_RL, guess_RL))


def test_the_average_is_of_seen_values(windows):
    x_RL, seen_RL = windows
    y_RL = np.asarray(gaps.average(jnp.asarray(x_RL), jnp.asarray(seen_RL)))
    for r in range(1, 40):
        np.testing.assert_allclose(y_RL[r], np.where(seen_RL[r], x_RL[r], x_RL[r][seen_RL[r]].mean()), atol=1e-6)
    assert (y_RL[0] == 0).all()
