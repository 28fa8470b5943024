"""Intervals as wide as what came since asks for: a predictor that says 0, series that go up and down by 1."""

import numpy as np
import pandas as pd
import pytest

from ptt_jax import drift, frames
from ptt_jax.intervals import LEVELS, Intervals, Unit

LOOKBACK, HORIZON, LEARNED = 20, 24, 100
FULL = drift.SPANS / (drift.SPANS + drift.LENT)  # what a factor is drawn by when all of its spans came


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
    quantile_Q = (LEVELS - 0.5).round(12) / 0.4 * width
    return Intervals(np.repeat(quantile_Q[:, None], HORIZON, 1), np.ones(series), 1.0)


def factors(values, width=0.5, after=(0,), since=None, full=LOOKBACK, predictor=None, of=None):
    """Returns factor_WC; values: a table, or its values_TC."""
    table = values if isinstance(values, frames.Table) else read(values)
    series = len(table.names_C)
    since_C = np.full(series, len(table.values_TC) - LEARNED) if since is None else np.asarray(since)
    of = of or known(width, series)
    full_C = np.broadcast_to(full, series)
    return drift.factors(predictor or Nothing(), of, of.ratio_C, table, since_C, full_C, after)


def factor(*args, **more) -> float:
    """Returns the one of a window that all series share."""
    (found_C,) = factors(*args, **more)
    assert (found_C == found_C[0]).all() or np.isnan(found_C).all()
    return float(found_C[0])


def test_where_nothing_came_nothing_is_asked():
    asked = Nothing()
    assert np.isnan(factor(waves(LEARNED), predictor=asked))
    assert np.isnan(factors(waves(LEARNED + 40, 2), after=(-40, -50), predictor=asked)).all()
    assert not asked.rows


@pytest.mark.parametrize("width", [0.5, 0.8, 2.0])
def test_a_factor_is_what_covers_the_errors_drawn_to_one(width):
    # errors of 1 everywhere: the factor that covers 80 % of them is 1 / width
    for spans, counted in ((1, 1), (4, 4), (8, 8), (30, 8)):
        found = factor(waves(LEARNED + spans * HORIZON), width)
        assert found == pytest.approx((1 / width) ** (counted / (counted + drift.LENT)), rel=1e-6)


def test_a_factor_has_bounds():
    rows = LEARNED + 30 * HORIZON
    assert factor(waves(rows), 1e-3) == pytest.approx(drift.MOST**FULL)
    assert factor(waves(rows), 1e3) == pytest.approx(drift.MOST**-FULL)


@pytest.mark.parametrize(("horizon", "low"), [(1, 0.785), (3, 0.785), (24, 0.79)])
def test_intervals_that_are_right_stay_right(horizon, low):
    """Of errors that do not change 80 % stay about 80 %, at horizons of few truths, too."""
    rng = np.random.default_rng(0)
    predictor = Nothing()
    predictor.horizon, predictor.lookback = horizon, 200
    learned, ahead = 300, 6000
    values_TC = rng.normal(size=(learned + ahead, 1))
    quantile_Q = np.quantile(values_TC, LEVELS)
    of = Intervals(np.repeat(quantile_Q[:, None], horizon, 1), np.ones(1), 1.0)
    after = [-a for a in range(horizon, ahead - 8 * max(horizon, 8), 7)]
    wide_W = factors(values_TC, since=[ahead], full=200, after=after, predictor=predictor, of=of)[:, 0]
    truth_WH = np.stack([values_TC[len(values_TC) + a :][:horizon, 0] for a in after])
    low_W, high_W = (wide_W * float(np.quantile(values_TC, q)) for q in (0.1, 0.9))
    assert low < ((truth_WH > low_W[:, None]) & (truth_WH < high_W[:, None])).mean() < 0.81


def test_the_share_that_is_covered_counts_and_not_the_mean():
    values_TC = waves(LEARNED + 30 * HORIZON)
    values_TC[LEARNED::10] *= 30  # a tenth is wild: 80 % are not
    assert factor(values_TC, 1.0) < 1.05  # a history with a wild value has a larger unit, and so wider intervals


def test_each_side_is_judged_by_its_own_bound():
    """Errors of 1 upwards and of 1 downwards, from the median 0: the bounds are 2 above and .25 below."""
    quantile_Q = np.interp(LEVELS, [0, 0.1, 0.5, 0.9, 1], [-0.3, -0.25, 0, 2, 2.5])
    of = Intervals(np.repeat(quantile_Q[:, None], HORIZON, 1), np.ones(1), 1.0)
    rows = LEARNED + 8 * HORIZON
    assert factor(waves(rows), of=of) == pytest.approx(drift.MOST**FULL)  # a half needs 4
    values_TC = np.abs(waves(rows))
    values_TC[:LEARNED:2] *= -1  # a history that moves, and then nothing but truths above
    assert factor(values_TC, of=of) < 1


def test_truths_at_the_median_need_no_width():
    values_TC = waves(LEARNED + 8 * HORIZON)
    values_TC[np.arange(len(values_TC)) % 10 < 9] = 0
    quantile_Q = np.where(np.abs(LEVELS - 0.5) < 0.2, 0, LEVELS - 0.5)  # exactly 0 at the median
    of = Intervals(np.repeat(quantile_Q[:, None], HORIZON, 1), np.ones(1), 1.0)
    assert factor(values_TC, of=of) == pytest.approx(drift.MOST**-FULL)


def test_intervals_are_in_the_units_that_they_were_made_in():
    # from step to step a wave moves by 2, and its spread is 1
    of = known(0.5)._replace(unit=Unit(0.5, 1, 8))
    assert factor(waves(LEARNED + 8 * HORIZON), of=of) == pytest.approx(2**FULL / 2 ** (FULL / 2), rel=1e-6)
    of = known(0.5)._replace(ratio_C=np.array([2.0]))
    assert factor(waves(LEARNED + 8 * HORIZON), of=of) == pytest.approx(1, rel=1e-6)


class Told(Nothing):
    """Says 0, and that four in five lie within .25 below and .5 above."""

    levels = (0.1, 0.9)

    def told(self, history_RT: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        away_L11 = np.array([-0.25, 0, 0.5])[:, None, None]
        return self(history_RT, horizon), np.broadcast_to(away_L11, (3, len(history_RT), horizon))


def test_quantile_prompts_are_judged_by_what_they_say():
    of = Intervals(np.zeros((len(LEVELS), HORIZON)), np.ones(1), 1.0)
    values_TC = waves(LEARNED + 8 * HORIZON)
    values_TC[(values_TC < 0)[:, 0] & (np.arange(len(values_TC)) % 6 > 0)] = -0.125
    # truths of 1 need twice the width, those of -.125 half of it, and a sixth, of -1, as much as there may be
    assert factor(values_TC, of=of, predictor=Told()) == pytest.approx(2**FULL, rel=1e-6)


def test_intervals_beside_the_forecast_are_widened_about_their_median():
    """A model that is 3 too low at all times, and intervals that know: from 2 to 4 above what it says."""
    quantile_Q = 3 + (LEVELS - 0.5) / 0.4
    of = Intervals(np.repeat(quantile_Q[:, None], HORIZON, 1), np.ones(1), 1.0)
    values_TC = waves(LEARNED + 8 * HORIZON)
    predictor = Nothing()
    predictor.__class__ = type("Low", (Nothing,), {"__call__": lambda self, x_RT, h: np.full((len(x_RT), h), -3.0)})
    assert factor(values_TC, of=of, predictor=predictor) == pytest.approx(1, rel=1e-6)
    assert factor(values_TC * np.array([[1.0]]), of=of) > 2  # one that is right: all truths are below the interval


def test_what_came_later_changes_nothing():
    values_TC = waves(LEARNED + 150)
    values_TC[-65:] *= np.linspace(1, 5, 65)[:, None]
    calm_TC = waves(LEARNED + 150)
    after = [-100, -70, -65]
    assert factors(values_TC, after=after).tolist() == factors(calm_TC, after=after).tolist()
    assert factor(values_TC, after=[-10]) != factor(calm_TC, after=[-10])


def test_a_frame_and_its_beginning_agree():
    rng = np.random.default_rng(0)
    values_TC = rng.normal(size=(LEARNED + 600, 9))
    after = [-3, -50, -311, -598, -599, -600, -630]  # in any order
    whole = factors(values_TC, after=after)
    parts = [factors(values_TC[:a], since=np.full(9, max(600 + a, 0)))[0] for a in after]
    np.testing.assert_allclose(whole, parts, rtol=1e-9)
    assert len({*whole[:5, 0].round(6)}) == 5
    assert np.isnan(whole[5:]).all()


def test_an_error_of_a_history_that_had_no_time_to_be_one_does_not_count():
    values_TC = waves(LOOKBACK + HORIZON)
    since = [HORIZON]
    assert factor(values_TC, since=since) > 1
    assert 1 < factor(values_TC[HORIZON // 2 :], since=since) < factor(values_TC, since=since)  # of later windows
    assert np.isnan(factor(values_TC[HORIZON:], since=since))
    assert factor(values_TC[HORIZON:], since=since, full=0) > 1  # as it was learned from
    # of a frame that holds little before what came since, as little counts as of one since whose end little came
    long_TC = waves(LEARNED + 4 * HORIZON)
    assert factor(long_TC[-LOOKBACK - HORIZON :], since=[4 * HORIZON]) == factor(long_TC[: LEARNED + HORIZON])


def test_a_series_that_was_not_there_takes_the_factor_and_has_no_say():
    values_TC = waves(LEARNED + 192, 2)
    values_TC[LEARNED:, 1] *= np.linspace(1, 50, 192)
    assert factor(values_TC, since=[192, 0]) == factor(values_TC[:, :1])
    assert factor(values_TC, since=[192, 192]) != factor(values_TC[:, :1])


def test_a_series_that_stands_still_has_no_say():
    values_TC = waves(LEARNED + 192, 3)
    values_TC[:, 1:] = 5.0
    # the two others lose their turns: a third of the windows is left
    assert factor(values_TC) == pytest.approx(2 ** (8 / 3 / (8 / 3 + drift.LENT)), rel=5e-3)


def test_series_take_turns_whatever_their_order():
    asked, values_TC = Nothing(), waves(LEARNED + 8 * HORIZON, 200)
    calm = factor(values_TC, predictor=asked)
    assert asked.rows == drift.SPANS * drift.EACH
    values_TC[LEARNED:, 30:] *= np.linspace(1, 50, 8 * HORIZON)[:, None]
    loud, names = factor(values_TC), [f"s{c}" for c in range(200)]
    assert loud > calm
    frame = pd.DataFrame(values_TC, columns=names).assign(
        ds=pd.date_range("2024-01-01", periods=len(values_TC), freq="h")
    )
    assert factor(frames.read(frame[["ds", *reversed(names)]])) == loud
    assert factor(frames.read(frame[["ds", *names[100:], *names[:100]]])) == loud


def test_of_many_series_those_that_can_be_judged_take_all_turns():
    values_TC = waves(LEARNED + 192, 50)
    asked = Nothing()
    factors(values_TC, since=[192] + [1] * 49, predictor=asked)
    assert asked.rows == 64
    asked = Nothing()
    factors(values_TC, since=[192] * 50, full=[LOOKBACK] + [1000] * 49, predictor=asked)
    assert asked.rows == 64


def ragged(rows: dict[str, int], loud_from: int = 10**6, loud: int = 1) -> frames.Table:
    """Series that begin together and end after so many rows; the second one, or another, is ever louder from a row
    on."""
    parts = []
    for at, (name, count) in enumerate(rows.items()):
        loud_T = 1.1 ** np.maximum(np.arange(count) - loud_from, 0)
        y_T = waves(count)[:, 0] * (loud_T if at == loud else 1)
        parts.append(
            pd.DataFrame({"unique_id": name, "ds": pd.date_range("2024-01-01", periods=count, freq="h"), "y": y_T})
        )
    return frames.read(pd.concat(parts))


def test_time_is_the_calendars_and_not_each_series_own():
    # a ended 96 steps before b: what b says later is not known where a is forecast from
    table, later = (ragged({"a": 300, "b": 396}, loud) for loud in (10**6, 300))
    since = [200, 296]
    calm, loud = factors(table, since=since)[0], factors(later, since=since)[0]
    assert calm[0] == loud[0]
    assert calm[1] < loud[1]
    # what a said before it ended counts when it was said
    early, then = (ragged({"a": 300, "b": rows}, 200, loud=0) for rows in (348, 300))
    at_300 = factors(then, since=[200, 200])[0, 1]
    assert factors(early, since=[200, 248], after=[-48])[0, 1] == at_300 > 2
    # a frame's beginning by the calendar
    whole = factors(ragged({"a": 348, "b": 348}, 150), since=[248, 248], after=[-48])[0]
    assert whole.tolist() == factors(ragged({"a": 300, "b": 300}, 150), since=[200, 200])[0].tolist()
    # one that ended long ago has no say, loud as it is, and the others no less
    gone = ragged({"a": 1100, "b": 300}, 200)
    assert factors(gone, since=[1000, 200])[0, 0] == pytest.approx(2**FULL, rel=1e-6)
    assert factors(gone, since=[1000, 200])[0, 1] == pytest.approx(
        factors(ragged({"a": 300}), since=[200])[0, 0], rel=1e-6
    )


def test_missing_truths_count_for_nothing():
    values_TC = waves(LEARNED + 8 * HORIZON)
    values_TC[LEARNED:] = np.nan
    assert np.isnan(factor(values_TC))
    gone_TC = waves(LEARNED + 8 * HORIZON, 2)
    gone_TC[LEARNED:, 1] = np.nan  # half of the truths: as drawn as by half of the horizons
    assert factor(gone_TC) == pytest.approx(2 ** (4 / (4 + drift.LENT)), rel=2e-3)  # the other one ended the turns


def test_a_year_of_windows_is_asked_in_parts(monkeypatch):
    values_TC = waves(LEARNED + 900, 3)
    whole = factors(values_TC, after=[0, -277])
    sizes = []
    monkeypatch.setattr(drift, "ROWS", 7)
    monkeypatch.setattr(drift, "FEW", 1)
    monkeypatch.setattr(Nothing, "__call__", lambda self, x, h: sizes.append(len(x)) or np.zeros((len(x), h)))
    assert factors(values_TC, after=[0, -277]).tolist() == whole.tolist()
    assert max(sizes) == 7


def test_widening_leaves_the_forecast_and_moves_every_bound():
    y_WHC = np.arange(12.0).reshape(2, 3, 2)
    columns = {
        "ptt": y_WHC, "ptt-lo-0": y_WHC + 1, "ptt-hi-0": y_WHC + 1, "ptt-lo-80": y_WHC - 1, "ptt-hi-80": y_WHC + 2,
    }  # fmt: skip
    found = drift.widen("ptt", columns, np.array([[np.nan, 1.0], [3.0, 0.5]]))
    assert list(found) == ["ptt", "ptt-lo-80", "ptt-hi-80"]
    assert found["ptt"] is y_WHC
    beside = {name: (found[name] - y_WHC)[:, 0].tolist() for name in list(found)[1:]}
    assert beside == {"ptt-lo-80": [[-1, -1], [-5, 0]], "ptt-hi-80": [[2, 2], [4, 1.5]]}


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
    ends = frames.ends(frames.read(pd.DataFrame({"ds": stamps[:40], "a": np.arange(40.0)})))
    later = frames.read(pd.DataFrame({"ds": stamps[first:], "a": 1.0, "b": np.arange(first, 60.0)}))
    assert frames.since(later, ends).tolist() == [min(20, 60 - first), 0]  # of the one that was not there, none
    before = frames.read(pd.DataFrame({"ds": stamps[first // 2 : 40], "a": 1.0}))
    assert frames.since(before, ends).tolist() == [0]
    for other in set(KINDS) - {kind} - {"month ends" if kind == "business days" else "business days"}:
        assert frames.since(frames.read(pd.DataFrame({"ds": KINDS[other], "a": 1.0})), ends).tolist() == [0]


def test_steps_since_are_of_each_series():
    def make(ends: dict[str, tuple[str, int]]) -> frames.Table:
        return frames.read(pd.concat([
            pd.DataFrame({"unique_id": name, "ds": pd.date_range(end=end, periods=rows, freq="D"), "y": 1.0})
            for name, (end, rows) in ends.items()
        ]))  # fmt: skip

    ends = frames.ends(make({"c": ("2024-01-20", 9), "a": ("2024-01-10", 5), "b": ("2024-01-20", 7)}))
    table = make({"a": ("2024-01-30", 30), "b": ("2024-01-25", 25), "new": ("2024-01-30", 3), "c": ("2024-01-30", 4)})
    assert frames.since(table, ends).tolist() == [20, 5, 0, 4]  # c is four steps long
    assert frames.behind(table).tolist() == [0, 5, 0, 0]
    zone = make({"a": ("2024-01-30", 30)})
    assert frames.since(zone, ends.assign(end=ends["end"].dt.tz_localize("UTC"))).tolist() == [0]


def test_a_zone_is_told_by_another():
    for freq in ("h", "D"):
        stamps = pd.date_range("2024-03-10", periods=60, freq=freq, tz="Europe/Berlin")  # a clock changes
        ends = frames.ends(frames.read(pd.DataFrame({"ds": stamps[:40], "a": 1.0})))
        ends["end"] = ends["end"].dt.tz_convert("America/New_York")
        assert frames.since(frames.read(pd.DataFrame({"ds": stamps, "a": 1.0})), ends).tolist() == [20]


def test_an_end_that_the_calendar_lacks_lies_between_its_dates():
    ends = frames.ends(frames.read(pd.DataFrame({"ds": pd.date_range("2024-01-03", periods=7, freq="D"), "a": 1.0})))
    weekdays = pd.date_range("2024-01-01", periods=12, freq="B")  # the end, a Tuesday, and then a Saturday
    for noon in (pd.Timedelta(0), pd.Timedelta(hours=12)):
        for shift, later in ((0, 5), (4, 2), (-8, 11), (30, 0)):
            moved = ends.assign(end=ends["end"] + pd.Timedelta(days=shift) + noon)
            found = frames.since(frames.read(pd.DataFrame({"ds": weekdays + noon, "a": 1.0})), moved)
            assert found.tolist() == [(weekdays + noon > moved["end"].iloc[0]).sum()] == [later]
