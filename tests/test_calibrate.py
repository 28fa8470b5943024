"""What intervals are made from: whole histories, held out block by block, of the size of the model's own errors."""

import numpy as np
import pandas as pd
import pytest

from ptt_jax import calibrate, frames, intervals
from ptt_jax.intervals import Unit


def table(values_TC: np.ndarray) -> frames.Table:
    named = {f"s{c}": values_TC[:, c] for c in range(values_TC.shape[1])}
    return frames.read(pd.DataFrame({"ds": pd.date_range("2024", periods=len(values_TC), freq="h"), **named}))


class Mean:
    """Forecasts the mean of a history, in the place of a model."""

    lookback, horizon = 24, 6

    def __call__(self, history_RT: np.ndarray, horizon: int) -> np.ndarray:
        return np.repeat(np.nanmean(history_RT, 1)[:, None], horizon, 1)


def test_a_map_is_never_taught_by_what_it_is_judged_on():
    values_TC = np.random.default_rng(0).normal(size=(150, 1))  # a map of 40 numbers would learn these by heart
    residual_WHC = calibrate.crossed(table(values_TC), calibrate.cutoffs(-110, -6, 300), 40, 6)
    assert residual_WHC.shape == (105, 6, 1)
    assert np.abs(residual_WHC).mean() > 0.95 * np.abs(values_TC).mean()


def test_a_map_learns_a_season_in_any_units_and_across_gaps():
    t_T = np.arange(400.0)
    values_TC = np.stack([1e6 + 1e3 * np.sin(t_T / 24 * 2 * np.pi), np.cos(t_T / 24 * 2 * np.pi)], 1)
    values_TC[np.random.default_rng(0).random(values_TC.shape) < 0.1] = np.nan
    residual_WHC = calibrate.crossed(table(values_TC), calibrate.cutoffs(-352, -6, 50), 48, 6)
    assert np.isnan(residual_WHC).mean() == pytest.approx(0.1, abs=0.03)
    assert (np.nanmean(np.abs(residual_WHC), (0, 1)) < [200, 0.2]).all()


def test_residuals_have_the_size_of_the_models_own_on_each_series_and_step():
    map_WHC = np.random.default_rng(0).normal(size=(400, 4, 3))
    grow_H1, of_C = np.array([1.0, 1.2, 1.4, 1.6])[:, None], np.array([0.5, 1.0, 1.5])
    map_WHC[:100, :, 1] = np.nan
    size_HC = calibrate.ratio(map_WHC * grow_H1 * of_C, map_WHC, np.ones((400, 3)))
    np.testing.assert_allclose(size_HC, grow_H1 * of_C, rtol=0.1)
    assert (calibrate.ratio(9 * map_WHC, map_WHC, np.ones((400, 3))) == calibrate.MOST).all()
    assert (calibrate.ratio(np.nan * map_WHC, map_WHC, np.ones((400, 3))) == 1).all()


def test_what_only_the_years_before_saw_is_in_the_intervals():
    rng, t_T = np.random.default_rng(0), np.arange(3000)
    wild_T1 = ((t_T % 60 == 0) & (t_T < 2600))[:, None]  # nothing wild happens in the last rows
    of = table(rng.normal(size=(3000, 2)) + 30 * wild_T1)
    known = calibrate.fit(Mean(), of, 300, Unit.of(1, 6))
    last_WHC, unit_WC = calibrate.back_test(Mean(), of, calibrate.cutoffs(-300, -6, 300), known.unit)
    short = intervals.fit(last_WHC, unit_WC, 50, known.unit)
    assert known.at(0.995).mean() > 2 * short.at(0.995).mean()
    assert (known.at(0.5) < known.at(0.9)).all()


def test_a_history_without_room_for_a_map_is_calibrated_on_its_last_rows():
    of = table(np.random.default_rng(0).normal(size=(30, 2)))
    with pytest.warns(UserWarning, match="windows that don't overlap"):
        known = calibrate.fit(Mean(), of, 10, Unit.of(1, 6))
    assert np.isfinite(known.quantile_QH).all()


def test_a_unit_lies_between_the_spread_and_the_latest_moves():
    history_RT = np.tile([0.0, 2.0, 0.0, 2.0], (3, 6))
    history_RT[1, -8:] *= 4  # moves more of late
    history_RT[2, -8:] = 1.0  # stands still of late
    unit, spread_R = Unit(0.5, 1, 4), history_RT.std(1)
    move_R = np.array([2.0, 8.0, intervals.STILL * spread_R[2]])
    np.testing.assert_allclose(unit.size(history_RT, spread_R), np.sqrt(spread_R * move_R))
    np.testing.assert_array_equal(Unit().size(history_RT, spread_R), spread_R)
    holes_RT = np.where(np.arange(24) % 2, np.nan, history_RT)  # no two neighbours are known
    np.testing.assert_allclose(unit.size(holes_RT, spread_R), spread_R)
    assert np.isnan(unit.size(history_RT * np.nan, np.full(3, np.nan))).all()
