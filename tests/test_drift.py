"""Intervals as wide as what came since asks for: a predictor that says 0, series that go up and down by 1."""

import numpy as np
import pandas as pd
import pytest

from ptt_jax import drift, frames
from ptt_jax.intervals import LEVELS, Intervals

LOOKBACK, HORIZON, LEARNED = 20, 8, 100


class Nothing:
    """Says 0, and counts what it is asked."""

    lookback, horizon, levels = LOOKBACK, HORIZON, ()

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, history_RT: np.ndarray, horizon: int) -> np.ndarray:
        self.rows += len(history_RT)
        return np.zeros((len(history_RT), horizon))


def waves(rows: int, series: int = 1) -> np.ndarray:
    return np.where(np.arange(rows)[:, None] % 2, 1.0, -1.0) * np.ones(series)


def read(values_TC: np.ndarray) -> frames.Table:
    stamps = pd.date_range("2024-01-01", periods=len(values_TC), freq="h")
    names = [f"s{c}" for c in range(values_TC.shape[1])]
    return frames.read(pd.DataFrame({"ds": stamps, **dict(zip(names, values_TC.T, strict=True))}))


def known(width: float, series: int = 1) -> Intervals:
    """Intervals of 80 % that reach `width` to each side of a history that goes up and down by 1."""
    quantile_Q = (LEVELS - 0.5) / 0.4 * width
    return Intervals(np.repeat(quantile_Q[:, None], HORIZON, 1), np.ones(series), 1.0)


def factors(values_TC, width=0.5, after=(0,), since=None, full=LOOKBACK, predictor=None):
    series = values_TC.shape[1]
    since_C = np.full(series, len(values_TC) - LEARNED) if since is None else np.asarray(since)
    of = known(width, series)
    full_C = np.broadcast_to(full, series)
    return drift.factors(predictor or Nothing(), of, of.ratio_C, read(values_TC), since_C, full_C, after)


def test_intervals_of_what_was_learned_stay_as_they_are():
    asked = Nothing()
    assert factors(waves(LEARNED), predictor=asked) == 1
    assert factors(waves(LEARNED + 40), after=(-40, -50), predictor=asked).tolist() == [1, 1]
    assert not asked.rows


@pytest.mark.parametrize("width", [0.5, 0.8, 2.0])
def test_a_factor_is_what_covers_the_errors_drawn_to_one_while_little_came(width):
    # errors of 1 everywhere: the factor that covers 80 % of them is 1 / width
    for horizons, counted in ((1, 1), (4, 4), (8, 8), (30, 8)):
        found = factors(waves(LEARNED + horizons * HORIZON), width)
        assert found == pytest.approx((1 / width) ** (counted / (counted + drift.LENT)), rel=1e-6)


def test_a_factor_has_bounds():
    rows = LEARNED + 30 * HORIZON
    drawn = drift.HORIZONS / (drift.HORIZONS + drift.LENT)
    assert factors(waves(rows), 1e-3) == pytest.approx(drift.MOST**drawn)
    assert factors(waves(rows), 1e3) == pytest.approx(drift.MOST**-drawn)


def test_the_share_that_is_covered_counts_and_not_the_mean():
    values_TC = waves(LEARNED + 40 * HORIZON)
    values_TC[LEARNED::10] *= 30  # a tenth is wild: 80 % are not
    assert factors(values_TC, 1.0) < 1.05  # a history with a wild value has a larger unit, and so wider intervals


def test_what_came_later_changes_nothing():
    values_TC = waves(LEARNED + 60)
    values_TC[-25:] *= np.linspace(1, 5, 25)[:, None]
    calm_TC = waves(LEARNED + 60)
    after = [-40, -30, -25]
    assert factors(values_TC, after=after).tolist() == factors(calm_TC, after=after).tolist()
    assert factors(values_TC, after=[-10]) != factors(calm_TC, after=[-10])


def test_a_frame_and_its_beginning_agree():
    rng = np.random.default_rng(0)
    values_TC = rng.normal(size=(LEARNED + 200, 9))
    after = [-3, -50, -111, -199, -200, -230]  # in any order
    whole = factors(values_TC, after=after)
    parts = [factors(values_TC[:a], since=np.full(9, max(200 + a, 0)))[0] for a in after]
    assert whole.tolist() == pytest.approx(parts, rel=1e-9)
    assert len({*whole.round(6)}) == 5


def test_an_error_of_a_history_that_had_no_time_to_be_one_does_not_count():
    values_TC = waves(LOOKBACK + HORIZON)
    since = [HORIZON]
    assert factors(values_TC, since=since) != 1
    assert factors(values_TC[1:], since=since) != 1  # of a later window alone
    assert factors(values_TC[HORIZON:], since=since) == 1
    assert factors(values_TC[HORIZON:], since=since, full=LOOKBACK - HORIZON) != 1  # as it was learned from
    # of a frame that holds little before what came since, as little counts as of one since whose end little came
    long_TC = waves(LEARNED + 4 * HORIZON)
    assert factors(long_TC[-LOOKBACK - HORIZON :], since=[4 * HORIZON]) == factors(long_TC[: LEARNED + HORIZON])


def test_a_series_that_was_not_there_takes_the_factor_and_has_no_say():
    values_TC = waves(LEARNED + 80, 2)
    values_TC[LEARNED:, 1] *= np.linspace(1, 50, 80)
    assert factors(values_TC, since=[80, 0]) == factors(values_TC[:, :1])
    assert factors(values_TC, since=[80, 80]) != factors(values_TC[:, :1])


def test_series_that_end_earlier_are_asked_from_their_own_end_on():
    values_TC = waves(LEARNED + 80, 2)
    for since, rows in (([80, 80], 64), ([80, 16], 40), ([80, 0], 64)):
        asked = Nothing()
        factors(values_TC, since=since, predictor=asked)
        assert asked.rows == rows  # a window each step of the last 64, of one and the other in turn


def test_series_take_turns():
    asked, values_TC = Nothing(), waves(LEARNED + 8 * HORIZON, 200)
    calm = factors(values_TC, predictor=asked)
    assert asked.rows == drift.HORIZONS * drift.EACH
    values_TC[LEARNED:, 100:] *= 3
    assert factors(values_TC) == calm  # not their turn yet
    values_TC[LEARNED:, 30:] *= np.linspace(1, 50, 8 * HORIZON)[:, None]
    assert factors(values_TC) > calm


def test_missing_truths_count_for_nothing():
    values_TC = waves(LEARNED + 8 * HORIZON)
    values_TC[LEARNED:] = np.nan
    assert factors(values_TC) == 1
    gone_TC = waves(LEARNED + 8 * HORIZON, 2)
    gone_TC[LEARNED:, 1] = np.nan  # half of the truths: as drawn as by half of the horizons
    assert factors(gone_TC) == pytest.approx(2 ** (4 / (4 + drift.LENT)), rel=2e-3)  # the other one ended the turns


def test_a_year_of_windows_is_asked_in_parts(monkeypatch):
    values_TC = waves(LEARNED + 300, 3)
    whole = factors(values_TC, after=[0, -77])
    sizes = []
    monkeypatch.setattr(drift, "ROWS", 7)
    asked = Nothing()
    monkeypatch.setattr(Nothing, "__call__", lambda self, x, h: sizes.append(len(x)) or np.zeros((len(x), h)))
    assert factors(values_TC, after=[0, -77], predictor=asked).tolist() == whole.tolist()
    assert max(sizes) == 7


def test_widening_leaves_the_forecast_and_moves_every_bound():
    y_WHC = np.arange(12.0).reshape(2, 3, 2)
    columns = {"ptt": y_WHC, "ptt-lo-80": y_WHC - 1, "ptt-hi-80": y_WHC + 2}
    assert drift.widen(columns, np.ones(2)) is columns
    found = drift.widen(columns, np.array([1.0, 3.0]))
    assert (found["ptt"] == y_WHC).all()
    assert (found["ptt-hi-80"] - y_WHC == np.array([2, 6])[:, None, None]).all()
    assert (found["ptt-lo-80"] - y_WHC == np.array([-1, -3])[:, None, None]).all()


KINDS = {
    "hours of a zone": pd.date_range("2024-03-30", periods=60, freq="h", tz="Europe/Berlin"),  # a clock changes
    "business days": pd.date_range("2024-01-01", periods=60, freq="B"),
    "month ends": pd.date_range("2020-01-31", periods=60, freq="ME"),
    "periods": pd.period_range("2020-01", periods=60, freq="M"),
    "numbers": pd.Index(np.arange(10, 310, 5)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [0, 35, 45])
def test_steps_since_a_stamp_are_counted(kind, first):
    stamps = KINDS[kind]
    whole = frames.read(pd.DataFrame({"ds": stamps[:40], "a": np.arange(40.0)}))
    ends = dict(zip(whole.names_C, whole.ends_C, strict=True))
    later = pd.DataFrame({"ds": stamps[first:], "a": 1.0, "b": np.arange(first, 60.0)})
    found = frames.since(frames.read(later, freq=whole.freq or whole.step), ends)
    assert found.tolist() == [min(20, 60 - first), 0]  # of the one that was not there, none


def test_steps_since_are_of_each_series():
    long = pd.concat(
        [
            pd.DataFrame({"unique_id": name, "ds": pd.date_range("2024-01-01", periods=rows, freq="D"), "y": 1.0})
            for name, rows in (("a", 30), ("b", 25), ("c", 30))
        ]
    )
    day = pd.Timestamp("2024-01-20")
    assert frames.since(frames.read(long), {"a": day, "b": day, "c": day.tz_localize("UTC")}).tolist() == [10, 5, 0]
