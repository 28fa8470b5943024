"""Errors that are counted in bins, against all of them kept."""

import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import intervals, tally, tasks

ROWS, STEPS = 4000, 3


@pytest.fixture(scope="module")
def errors():
    """error_RH of forecast minus truth, weight_RH with holes, unit_R."""
    rng = np.random.default_rng(0)
    unit_R = rng.uniform(0.2, 2, ROWS).astype(np.float32)
    error_RH = (rng.standard_t(4, size=(ROWS, STEPS)) - 0.3) * unit_R[:, None] * np.array([0.05, 1, 3])
    weight_RH = rng.random((ROWS, STEPS)) > 0.2
    return (error_RH * weight_RH).astype(np.float32), weight_RH.astype(np.float32), unit_R


@pytest.fixture(scope="module")
def counted(errors):
    error_RH, weight_RH, unit_R = errors
    return tally.sums(tally.count(jnp.asarray(error_RH[None]), jnp.asarray(weight_RH), jnp.asarray(unit_R)))


@pytest.mark.parametrize("level", [0.025, 0.1, 0.5, 0.9, 0.975])
def test_quantiles_are_those_of_all_errors_to_the_width_of_a_bin(errors, counted, level):
    error_RH, weight_RH, unit_R = errors
    found_H = tally.quantile(counted[0], level)
    for step, z in enumerate(found_H):
        kept = (-error_RH / unit_R[:, None])[weight_RH[:, step] > 0, step]
        exact = np.quantile(kept, level)
        assert abs(z - exact) < tally.WIDTH * np.hypot(exact, tally.FINE) * 1.1
        below = tally.split(counted[0], found_H)[step, 0] / len(kept)
        assert below == pytest.approx(level, abs=1e-6)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_pinball_and_coverage_are_those_of_all_errors(errors, counted, level):
    error_RH, weight_RH, unit_R = errors
    z_H = np.array([0.03, -0.7, 2.0])
    moved_RH = error_RH + z_H * unit_R[:, None]
    exact = np.asarray(tasks.pinball(level)(jnp.asarray(moved_RH)))[weight_RH > 0].mean()
    assert tally.pinball(counted[0], z_H, level) == pytest.approx(exact, rel=1e-3)
    truth_RH = np.where(weight_RH > 0, -error_RH, np.nan)
    inside = intervals.coverage(truth_RH, -unit_R[:, None] * z_H**2, unit_R[:, None] * z_H**2)
    assert tally.coverage((counted[0], counted[0]), (-(z_H**2), z_H**2)) == pytest.approx(inside, abs=4e-3)


def test_the_crps_of_normal_errors_is_what_the_formula_says():
    rng = np.random.default_rng(1)
    error_QRH = rng.normal(size=(1, 100_000, 1)).astype(np.float32)
    ones = jnp.ones(error_QRH.shape[1:])
    counted = tally.sums(tally.count(jnp.asarray(error_QRH), ones, ones[:, 0]))
    many = tuple(np.round(np.arange(0.005, 1, 0.01), 3).tolist())
    found = tally.judge(many, counted, counted, 100_000)
    assert found["crps"] == pytest.approx(1 / np.sqrt(np.pi), rel=5e-3)  # of a standard normal, known to be normal
    assert found["coverage_80"] == pytest.approx(0.8, abs=2e-3)
    assert found["coverage_95"] == pytest.approx(0.95, abs=2e-3)
    assert "raw_crps" not in found


def test_quantile_forecasts_are_judged_raw_and_calibrated():
    """Forecasts of -1 and 1 for the deciles of a standard normal: too narrow raw, right when calibrated."""
    truth_R = np.random.default_rng(2).normal(size=50_000).astype(np.float32)
    error_QRH = np.stack([-1 - truth_R, 1 - truth_R])[:, :, None]
    ones = jnp.ones((len(truth_R), 1))
    counted = tally.sums(tally.count(jnp.asarray(error_QRH), ones, ones[:, 0]))
    found = tally.judge((0.1, 0.9), counted, counted, 100_000)
    assert found["raw_coverage_80"] == pytest.approx((np.abs(truth_R) < 1).mean(), abs=1e-6)  # zero is an edge
    assert found["coverage_80"] == pytest.approx(0.8, abs=2e-3)
    assert found["crps"] < found["raw_crps"]
    assert np.isnan(found["coverage_95"])


def test_the_unit_is_the_usual_move_between_seasons_and_never_nothing():
    x_RT = jnp.asarray(np.stack([np.arange(10.0), np.zeros(10)]))
    seen_RT = jnp.ones(x_RT.shape, bool).at[0, 4].set(False)
    x_RT = x_RT.at[0, 4].set(1000)
    np.testing.assert_allclose(tally.unit(x_RT, seen_RT, 3), [3, tally.FLOOR])


def test_crossing_quantiles_are_put_in_order_at_no_cost():
    rng = np.random.default_rng(3)
    truth_R, y_QR = rng.normal(size=(500, 1)), rng.normal(size=(3, 500, 1))
    ordered = np.asarray(tasks.rearranged([jnp.asarray(y) for y in y_QR]))
    assert (np.diff(ordered, axis=0) >= 0).all()
    before, after = (
        sum(intervals.pinball(truth_R, y_R, q) for y_R, q in zip(of, (0.1, 0.5, 0.9), strict=True))
        for of in (y_QR, ordered)
    )
    assert after < before


def test_bounds_that_cross_cover_nothing_and_a_step_without_truths_counts_for_nothing(counted):
    one = counted[0]
    nothing = np.concatenate([one, np.zeros_like(one[:1])])
    two, three = np.full(len(nothing), 2.0), np.full(len(nothing), 3.0)
    assert (tally.shares((nothing, nothing), (three, two))[:-1] == 0).all()
    assert np.isnan(tally.shares((nothing, nothing), (two, three))[-1])
    assert tally.coverage((nothing, nothing), (-two, two)) == tally.coverage((one, one), (-two[:-1], two[:-1]))


def test_bounds_of_few_errors_cover_new_ones_as_often_as_asked():
    """What split conformal promises, over many draws; bounds at the plain quantiles cover too little."""
    rng = np.random.default_rng(2)
    n, draws, found = 19, 4000, {}
    error_QRH = rng.normal(size=(1, n, draws)).astype(np.float32)  # a step each is a draw of its own
    error_QRH = np.repeat(error_QRH, 20, 1) + 0.1 * rng.normal(size=(1, 20 * n, draws)).astype(np.float32)  # overlap
    ones = jnp.ones(error_QRH.shape[1:])
    counted_HBK = tally.sums(tally.count(jnp.asarray(error_QRH), ones, ones[:, 0]))[0]
    fresh_H = rng.normal(size=draws)
    for corrected, independent in ((True, n), (False, 10**9)):
        low_H, high_H = tally.bounds(counted_HBK, 0.8, independent)
        found[corrected] = np.mean((fresh_H >= low_H) & (fresh_H <= high_H))
    assert found[True] == pytest.approx(0.8, abs=0.02)
    assert found[False] < found[True] - 0.01
    outermost_H = tally.bounds(counted_HBK, 0.99, n)
    assert (outermost_H[0] <= -error_QRH[0].max(0)).all()
    assert (outermost_H[0] > -6).all()  # the outermost error's bin, not the outermost bin
