"""What own data get untouched: seasons, recipes and intervals, each by its rule."""

import numpy as np
import pytest

from ptt_jax import config, intervals, recipe, seasons, train
from ptt_jax.errors import UserError


def wave(rows: int, season: int, channels: int = 2, noise: float = 0.3, seed: int = 0) -> np.ndarray:
    rng, t_T1 = np.random.default_rng(seed), np.arange(rows)[:, None]
    shape_C = rng.uniform(0, season, channels)
    saw_TC = ((t_T1 + shape_C) % season) / season + 0.2 * np.sin(2 * np.pi * 2 * (t_T1 + shape_C) / season)
    return saw_TC + noise * rng.normal(size=(rows, channels)) + 0.002 * t_T1


@pytest.mark.parametrize(("season", "freq"), [(24, "h"), (7, "D"), (12, "MS"), (96, "15min"), (30, "h"), (5, "")])
def test_the_season_of_a_noisy_wave_with_a_trend_is_found(season, freq):
    assert seasons.estimate(wave(20 * season + 3, season, noise=0.1), freq) == season


def test_noise_and_a_random_walk_have_no_season():
    noise_TC = np.random.default_rng(0).normal(size=(2000, 3))
    assert seasons.estimate(noise_TC, "D") == 1
    assert seasons.estimate(noise_TC.cumsum(0), "D") == 1
    assert seasons.estimate(np.ones((500, 2)), "h") == 1


def test_the_season_is_seen_through_missing_values_and_spikes():
    values_TC = wave(1500, 24, noise=0.1)
    values_TC[np.random.default_rng(1).random(values_TC.shape) < 0.3] = np.nan
    values_TC[::97] = 1e6
    assert seasons.estimate(values_TC, "h") == 24


def test_of_a_day_and_a_week_the_day_is_taken():
    t_T = np.arange(24 * 7 * 12)
    load_T1 = (np.sin(2 * np.pi * t_T / 24) * (1 + 0.5 * (t_T // 24 % 7 < 5)))[:, None]
    assert seasons.estimate(load_T1, "") == 24


def test_a_history_too_short_to_tell_has_the_season_of_the_calendar():
    values_TC = np.random.default_rng(0).normal(size=(60, 1))
    assert seasons.estimate(values_TC, "h") == 24
    assert seasons.estimate(values_TC[:40], "h") == 1


@pytest.mark.parametrize(
    ("season", "most", "patch"),
    [(24, 100, 24), (96, 100, 48), (144, 100, 48), (7, 100, 7), (52, 100, 26), (12, 5, 4), (4, 100, 4), (1, 100, 16),
     (2, 100, 16), (24, 9, 8), (1, 1, 1), (53, 100, 24)],
)  # fmt: skip
def test_a_patch_divides_the_season_where_it_can(season, most, patch):
    assert recipe.patch_length(season, most) == patch


@pytest.mark.parametrize("season", [1, 4, 7, 12, 24, 52, 96, 1440])
@pytest.mark.parametrize("horizon", [1, 6, 48])
@pytest.mark.parametrize("rows", [*range(117, 140), 500, 3000, 50_000])
def test_every_recipe_is_accepted_and_leaves_windows_to_learn_from(rows, horizon, season):
    cfg = recipe.recipe(rows, 3, season, horizon)
    config.check(cfg)
    kept = recipe.validation_rows(rows, horizon)
    lookback, (padded,) = train.window(cfg)
    assert horizon <= padded <= kept <= max(rows // 3, horizon + rows // 12)
    assert rows - kept >= max(lookback + padded, cfg.lookback + horizon)
    assert cfg.lookback % cfg.model.patch == 0


def test_a_short_history_has_a_small_model_and_a_long_one_the_usual():
    short, long = (recipe.recipe(rows, 2, 24, 12).model for rows in (300, 30_000))
    assert short.encoder_layers < long.encoder_layers
    assert short.width == long.width


def test_patches_bound_the_steps_of_pre_training_and_windows_those_that_choose():
    hours, half_hours = (recipe.recipe(40_000, 100, season, 24) for season in (24, 48))
    assert hours.pretrain.steps == recipe.MOST_PATCHED // 31 < half_hours.pretrain.steps == recipe.MOST_PATCHED // 16
    assert recipe.recipe(40_000, 100, 48, 24, lookback=192).pretrain.steps == recipe.MOST_STEPS
    assert hours.tune.validation_rows == recipe.LOOKED_AT


def test_every_window_is_seen_often_where_the_bounds_allow():
    short, some, more = (recipe.recipe(rows, channels, 24, 12) for rows, channels in ((700, 1), (2500, 1), (2500, 2)))
    assert short.pretrain.steps == recipe.LEAST_STEPS
    windows = 2500 - some.lookback - 12
    assert some.pretrain.steps * some.pretrain.batch == pytest.approx(200 * windows, rel=1e-3)
    assert some.pretrain.steps < more.pretrain.steps == recipe.MOST_PATCHED // 31


def test_too_few_rows_are_refused_with_the_number_that_would_do():
    with pytest.raises(UserError, match=r"of 20 rows are too short; accepted: at least 64 .* 24"):
        recipe.recipe(20, 3, 7, 24)
    recipe.recipe(64, 3, 7, 24)


def residuals(windows: int, horizon: int, scale_C: np.ndarray, seed: int = 0) -> np.ndarray:
    grow_H1 = np.sqrt(1 + np.arange(horizon))[:, None]
    return np.random.default_rng(seed).standard_t(4, size=(windows, horizon, len(scale_C))) * grow_H1 * scale_C


def spread(windows: int, spread_C: np.ndarray) -> np.ndarray:
    return np.broadcast_to(spread_C, (windows, len(spread_C)))


@pytest.mark.parametrize("level", [50, 80, 95])
def test_intervals_cover_what_they_promise_on_each_series_and_step(level):
    scale_C = np.array([0.1, 1.0, 1000.0])
    known = intervals.fit(residuals(400, 6, scale_C), spread(400, 2 * scale_C))
    fresh_WHC = residuals(4000, 6, scale_C, seed=1)
    low_HC, high_HC = known.bounds(np.zeros((6, 3)), known.ratio_C * 2 * scale_C, level)
    inside_HC = ((fresh_WHC >= low_HC) & (fresh_WHC <= high_HC)).mean(0)
    np.testing.assert_allclose(inside_HC, level / 100, atol=0.06)
    assert abs(inside_HC.mean() - level / 100) < 0.02


def test_a_series_that_moves_more_than_it_did_has_wider_intervals():
    grow_W = np.exp(np.random.default_rng(3).normal(size=300))
    residual_WHC = residuals(300, 2, np.ones(1)) * grow_W[:, None, None]
    known = intervals.fit(residual_WHC, grow_W[:, None])
    low_HC, high_HC = known.bounds(np.zeros((2, 1)), known.ratio_C * 5, 80)
    calm_low_HC, calm_high_HC = known.bounds(np.zeros((2, 1)), known.ratio_C * 1, 80)
    np.testing.assert_allclose(high_HC - low_HC, 5 * (calm_high_HC - calm_low_HC))


def test_intervals_keep_a_skew_and_widen_with_level():
    skewed_WHC = np.random.default_rng(0).exponential(size=(500, 4, 2))
    known = intervals.fit(skewed_WHC, np.ones((500, 2)))
    y_HC = np.zeros((4, 2))
    low80, high80 = known.bounds(y_HC, known.ratio_C, 80)
    low95, high95 = known.bounds(y_HC, known.ratio_C, 95)
    assert (low95 <= low80).all()
    assert (low80 > 0).all()
    assert (high95 > high80).all()


def test_few_windows_give_the_largest_error_on_both_sides_and_a_warning():
    residual_WHC = np.array([0.5, -2.0, 1.0])[:, None, None]
    with pytest.warns(UserWarning, match="3 windows that don't overlap are too few"):
        few = intervals.fit(residual_WHC, np.ones((3, 1)))
    low_HC, high_HC = few.bounds(np.zeros((1, 1)), few.ratio_C, 95)
    np.testing.assert_allclose([low_HC[0, 0], high_HC[0, 0]], [-2, 2])


def test_windows_that_overlap_count_as_those_that_do_not():
    residual_WHC = residuals(200, 1, np.ones(1))
    free = intervals.fit(residual_WHC, np.ones((200, 1)))
    tied = intervals.fit(residual_WHC, np.ones((200, 1)), apart=20)
    assert tied.at(0.9)[0] > free.at(0.9)[0]
    assert tied.at(0.1)[0] < free.at(0.1)[0]


def test_a_series_without_residuals_gets_what_its_spread_says():
    residual_WHC = residuals(200, 4, np.array([1.0, 1.0]))
    residual_WHC[:, :, 1] = np.nan
    known = intervals.fit(residual_WHC, spread(200, np.array([2.0, 20.0])))
    assert known.ratio_C[1] == pytest.approx(known.relative) == pytest.approx(known.ratio_C[0], rel=0.01)


def test_missing_truths_change_no_quantile_but_by_their_absence():
    residual_WHC = residuals(300, 4, np.array([1.0]))
    holes_WHC = np.concatenate([residual_WHC, np.full((50, 4, 1), np.nan)])
    whole, holes = (intervals.fit(r, np.ones(r.shape[::2]), apart=100) for r in (residual_WHC, holes_WHC))
    for a, b in zip(whole, holes, strict=True):
        np.testing.assert_allclose(a, b)


@pytest.mark.parametrize("levels", [(0,), (100,), (80, -1), (99.9,), 120, ("80",)])
def test_a_level_that_is_no_percentage_is_refused(levels):
    with pytest.raises(UserError, match=r"accepted: percentages above 0 and up to 99\.5"):
        intervals.check_levels(levels)
    assert intervals.check_levels((80, 99.5)) == (80, 99.5)
    assert intervals.check_levels(None) == ()
    assert intervals.check_levels(80) == (80,)


def test_coverage_and_pinball_agree_with_their_definitions():
    y, low, high = np.array([1.0, 2.0, np.nan, 4.0]), np.array([0.0, 2.5, 0, 0]), np.array([2.0, 3.0, 0, 5])
    assert intervals.coverage(y, low, high) == pytest.approx(2 / 3)
    assert intervals.pinball(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.9) == pytest.approx((0.9 + 0.1) / 2)
