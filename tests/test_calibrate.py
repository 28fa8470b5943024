"""What intervals are made from: whole histories, held out block by block, of the size of the model's own errors."""

import warnings

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
    assert np.abs(residual_WHC).mean() > np.abs(values_TC).mean()  # noise is told by nothing


def test_no_row_that_a_window_is_judged_on_was_a_target_of_its_map(monkeypatch):
    """Squares tell rows: from one to the next they grow by 2 t + 1."""
    taught, real, lookback, horizon, rows = [], calibrate.ridges, 40, 6, 150
    monkeypatch.setattr(calibrate, "ridges", lambda x_RT, y_RH: taught.append(y_RH) or real(x_RT, y_RH))
    values_T1 = np.arange(rows)[:, None] ** 2.0
    calibrate.crossed(table(values_T1), calibrate.cutoffs(lookback - rows, -horizon, 300), lookback, horizon)
    folds = np.array_split(np.arange(rows - lookback - horizon + 1), calibrate.FOLDS)
    for start_S, y_RH in zip(folds, taught, strict=True):
        at = np.unique(((np.diff(y_RH) * values_T1.std() - 1) / 2).round().astype(int))
        judged = range(start_S[0] + lookback, start_S[-1] + lookback + horizon)
        assert {*range(lookback, rows)} - {*judged} >= {*at, *(at + 1)} != set()


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
    known = calibrate.fit(Mean(), of, 300, Unit.of(1, 6, 24))
    last_WHC, unit_WC = calibrate.back_test(Mean(), of, calibrate.cutoffs(-300, -6, 300), known.unit)
    short = intervals.fit(last_WHC, unit_WC, 50, known.unit)
    assert known.at(0.995).mean() > 2 * short.at(0.995).mean()
    assert (known.at(0.5) < known.at(0.9)).all()


def test_a_history_without_room_for_a_map_is_calibrated_on_its_last_rows():
    of = table(np.random.default_rng(0).normal(size=(30, 2)))
    with pytest.warns(UserWarning, match="windows that don't overlap"):
        known = calibrate.fit(Mean(), of, 10, Unit.of(1, 6, 24))
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


def test_moves_are_from_step_to_step_where_a_lookback_holds_few_values_a_season_apart():
    """Of 24 hours a single pair is a day apart, which says next to nothing: bounds were four times as wide."""
    assert Unit.of(24, 6, 48) == Unit(intervals.RECENT, 24, 48)
    assert Unit.of(24, 6, 47) == Unit(intervals.RECENT, 1, 48)
    of = table(np.sign(np.random.default_rng(0).normal(size=(400, 1))))
    known = calibrate.fit(Mean(), of, 60, Unit.of(24, 6, Mean.lookback))
    low_H1, high_H1 = known.bounds(np.zeros((6, 1)), known.ratio_C, 80)
    assert (high_H1 - low_H1).mean() < 4  # of values of -1 and 1


def test_a_history_whose_last_rows_are_missing_has_the_residuals_of_the_others():
    values_TC = np.random.default_rng(0).normal(size=(400, 1))
    whole = calibrate.fit(Mean(), table(values_TC), 60, Unit.of(1, 6, 24))
    values_TC[-60:-1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a mean of nothing, in the place of a model
        short = calibrate.fit(Mean(), table(values_TC), 60, Unit.of(1, 6, 24))
    widths = [known.at(0.9) - known.at(0.1) for known in (whole, short)]
    np.testing.assert_allclose(*widths, rtol=0.5)


def test_a_model_is_measured_beside_last_season_on_rows_that_taught_it_nothing():
    t_T, rng = np.arange(400), np.random.default_rng(0)
    season_TC = np.stack([np.sin(t_T / 6 * 2 * np.pi), 1e6 * np.cos(t_T / 6 * 2 * np.pi)], 1)
    noise_TC = rng.normal(size=(400, 2)) * [0.3, 3e5]
    of = table(season_TC + noise_TC)
    last_WHC = frames.truth(of, 6, calibrate.cutoffs(-90, -6, 300))
    before_WHC = np.stack([of.values_TC[400 + a - 6 : 400 + a] for a in calibrate.cutoffs(-90, -6, 300)])
    mean_WHC = np.stack([of.values_TC[400 + a - 24 : 400 + a].mean(0) for a in calibrate.cutoffs(-90, -6, 300)])[
        :, None
    ]
    scale_C = of.values_TC.std(0)
    expected = (np.abs(mean_WHC - last_WHC) / scale_C).mean() / (np.abs(before_WHC - last_WHC) / scale_C).mean()
    assert calibrate.beside_season(Mean(), of, 90, 6) == pytest.approx(expected, rel=1e-6)
    assert expected > 1.2
    noisy = calibrate.beside_season(Mean(), table(noise_TC), 90, 6)
    assert noisy == pytest.approx(np.sqrt((1 + 1 / 24) / 2), abs=0.06)  # a mean of 24 against one value
    of.values_TC[-70:-64, 0] = np.nan  # a season that nobody saw is not compared with
    assert calibrate.beside_season(Mean(), of, 90, 6) == pytest.approx(expected, rel=0.1)
    assert np.isnan(calibrate.beside_season(Mean(), table(t_T[:, None] % 6.0), 90, 6))
