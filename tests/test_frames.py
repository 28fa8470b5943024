"""frames.py with columns.py and steps.py: frames of every kind are read on one step, and the same kind comes back."""

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ptt_jax import frames
from ptt_jax.errors import UserError

BERLIN = "Europe/Berlin"
STEPS = ["s", "500ms", "15min", "h", "6h", "36h", "D", "3D", "B", "2B", "W-TUE", "2W-SUN", "MS", "ME", "2ME", "BMS",
         "BME", "QS-FEB", "QE-DEC", "YS-JAN", "YE-DEC", "2YS-JUL"]  # fmt: skip


def long(lengths=(50, 30, 40), freq="h", starts=("2024-01-03", "2024-01-05", "2024-01-04"), tz=None, ids="abc"):
    """A long frame; y is 100 s + row, so that each cell says where it belongs."""
    parts = []
    for s, (n, start) in enumerate(zip(lengths, starts, strict=True)):
        stamps = pd.date_range(start, periods=n, freq=freq, tz=tz)
        parts.append(pd.DataFrame({"unique_id": ids[s], "ds": stamps, "y": 100.0 * s + np.arange(n)}))
    return pd.concat(parts, ignore_index=True)


def wide(rows=60, freq="h", tz=None, start="2024-01-03"):
    stamps = pd.date_range(start, periods=rows, freq=freq, tz=tz)
    return pd.DataFrame({"ds": stamps, "load": np.arange(rows) * 1.0, "heat": np.arange(rows) - 7.5})


def whole(table):
    """The table as a frame: every row from each first stamp on."""
    return frames.write(table, {"y": table.values_TC}, after=-len(table.values_TC))


def same(table, other):
    assert (table.names_C, table.ends_C, table.freq, table.step) == (
        other.names_C, other.ends_C, other.freq, other.step,
    )  # fmt: skip
    np.testing.assert_array_equal(table.values_TC, other.values_TC)


def equal(a, b):
    pd.testing.assert_frame_equal(a, b, check_freq=False)


# ---- in ----


def test_series_end_together_whatever_their_lengths():
    table = frames.read(long())
    assert table.names_C == ("a", "b", "c")
    assert table.values_TC.shape == (50, 3)
    assert table.freq == "h"
    np.testing.assert_array_equal(table.values_TC[-1], [49, 129, 239])
    np.testing.assert_array_equal((~np.isnan(table.values_TC)).sum(0), [50, 30, 40])
    np.testing.assert_array_equal(table.lengths_C, [50, 30, 40])
    assert table.ends_C[1] == pd.Timestamp("2024-01-06 05:00")
    assert not table.notes


def test_trailing_missing_values_of_a_wide_column_stand_before_the_common_end():
    df = wide()
    df.loc[57:, "heat"] = np.nan
    table = frames.read(df)
    assert table.ends_C == (df.ds.iloc[-1],) * 2
    np.testing.assert_array_equal(np.isnan(table.values_TC[-4:, 1]), [False, True, True, True])


@pytest.mark.parametrize("tz", [None, BERLIN])
@pytest.mark.parametrize("freq", STEPS)
def test_future_stamps_go_on_as_date_range_does(freq, tz):
    df = long((30, 22, 26), freq, tz=tz)
    if freq[0] != "2":  # several dates of a calendar at a time must be asked for
        found = frames.read(df).freq
        assert found == freq or (freq[0] in "QY" and found[:2] == freq[:2])  # any month of its quarters is right
    table = frames.read(df, freq=freq)
    for (_, rows), stamps, end in zip(df.groupby("unique_id"), frames.ahead(table, 40), table.ends_C, strict=True):
        assert end == rows.ds.iloc[-1]
        expected = pd.date_range(rows.ds.iloc[0], periods=len(rows) + 40, freq=freq)[len(rows) :]
        assert list(stamps) == list(expected)
        assert stamps.dtype == expected.as_unit(rows.ds.dt.unit).dtype


@pytest.mark.parametrize(("freq", "rows"), [("h", 100), ("15min", 400), ("D", 5), ("B", 5), ("24h", 5)])
@pytest.mark.parametrize("day", ["2024-03-29", "2024-10-25"])
def test_both_changes_of_the_clock_are_passed_over_in_the_past_and_in_the_future(day, freq, rows):
    stamps = pd.date_range(day, periods=2 * rows, freq=freq, tz=BERLIN)
    for known in (2 * rows, rows // 5, 3):  # the change is in the past, or ahead
        df = pd.DataFrame({"ds": stamps[:known], "load": np.arange(known)})
        table = frames.read(df, freq=freq)
        assert not np.isnan(table.values_TC).any()
        assert list(frames.ahead(table, rows)[0]) == list(
            pd.date_range(stamps[0], periods=known + rows, freq=freq)[known:]
        )


def test_days_are_found_in_three_rows_across_a_change_of_the_clock():
    for day in ("2024-03-30", "2024-10-26"):
        df = pd.DataFrame({"ds": pd.date_range(day, periods=3, freq="D", tz=BERLIN), "load": 1.0})
        assert frames.read(df).freq == "D"


def test_a_day_that_begins_at_one_because_its_midnight_was_skipped_is_on_the_grid():
    stamps = pd.DatetimeIndex(["2024-09-06", "2024-09-07", "2024-09-08 01:00", "2024-09-09"], tz="America/Santiago")
    for known in (4, 3, 2):
        table = frames.read(pd.DataFrame({"ds": stamps[:known], "load": np.arange(known)}), freq="D")
        np.testing.assert_array_equal(table.values_TC[:, 0], np.arange(known))
        assert frames.ahead(table, 5 - known)[0][: 4 - known].equals(stamps[known:].as_unit("us").astype(stamps.dtype))
        assert frames.ahead(table, 5 - known)[0][-1] == pd.Timestamp("2024-09-10", tz="America/Santiago")


def test_each_series_may_have_a_phase_of_its_own():
    df = pd.concat([long((30,), "h", ("2024-01-01 00:10",), ids="a"), long((9,), "h", ("2024-01-01 00:40",), ids="b")])
    table = frames.read(df)
    assert [stamps[0].minute for stamps in frames.ahead(table, 2)] == [10, 40]
    days = pd.concat(
        [long((30,), "B", ("2024-01-01 09:00",), ids="a"), long((9,), "B", ("2024-01-01 17:30",), ids="b")]
    )
    assert [str(s[0].time()) for s in frames.ahead(frames.read(days), 2)] == ["09:00:00", "17:30:00"]


def test_shuffled_rows_make_the_same_table():
    df = long()
    df = df.drop([7, 8, 60])
    df.loc[12, "y"] = np.nan
    for seed in range(5):
        mixed = df.sample(frac=1, random_state=seed)
        order = [str(name) for name in mixed.unique_id.unique()]
        table = frames.read(pd.concat([mixed[mixed.unique_id == name] for name in "abc"]))
        same(table, frames.read(df))
        other = frames.read(mixed)
        assert list(other.names_C) == order
        np.testing.assert_array_equal(other.values_TC[:, [order.index(name) for name in "abc"]], table.values_TC)
        assert "rows were out of order" in other.notes[0]


def test_gaps_and_repeats_are_told_and_the_later_row_counts():
    df = long()
    df = pd.concat([df, df.iloc[[20]].assign(y=-1.0)]).drop([5, 6, 7, 61])
    table = frames.read(df)
    assert table.values_TC[20, 0] == -1
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(table.values_TC[:, 0])), [5, 6, 7])
    told = "\n".join(table.notes)
    assert "1 row with the stamp of a later row dropped, first series 'a' at 2024-01-03 20:00:00 (row 17)" in told
    assert "4 rows taken as missing to close 2 gaps in the stamps; the longest, 3 rows, in series 'a' after" in told


def test_one_row_is_a_series_where_another_or_the_given_step_tells_the_step():
    table = frames.read(long((50, 1, 2)))
    assert [str(stamps[0]) for stamps in frames.ahead(table, 1)][1] == "2024-01-05 01:00:00"
    table = frames.read(long((1, 1, 1)), freq="h")
    assert table.values_TC.shape == (1, 3)
    with pytest.raises(UserError, match="no series has 3 stamps"):
        frames.read(long((1, 2, 2)))


def test_the_frame_that_was_given_is_never_changed():
    for df in (long(), wide(), wide().set_index("ds"), long().set_index(["unique_id", "ds"])):
        df.iloc[3, -1] = np.nan
        before = df.copy(deep=True)
        table = frames.read(df)
        frames.fill(table, df, np.zeros_like(table.values_TC))
        frames.attach(table, df, {"score": table.values_TC})
        equal(df, before)


# ---- kinds of time, ids and columns ----


def test_text_periods_and_whole_numbers_are_time():
    base = long()
    text = frames.read(base.assign(ds=base.ds.dt.strftime("%d.%m.%Y %H:%M")))
    same(text, frames.read(base))
    periods = base.assign(ds=base.ds.dt.to_period("h"))
    table = frames.read(periods)
    np.testing.assert_array_equal(table.values_TC, text.values_TC)
    assert frames.ahead(table, 3)[0].equals(pd.period_range(table.ends_C[0] + 1, periods=3, freq="h"))
    numbers = base.assign(ds=(10 * base.groupby("unique_id").cumcount() + 1990).astype("int32"))
    table = frames.read(numbers)
    assert (table.freq, table.step, table.ends_C) == ("", 10, (2480, 2280, 2380))
    out = frames.write(table, {"p": np.zeros((2, 3))})
    assert out.ds.dtype == np.int32
    assert list(out.ds) == [2490, 2500, 2290, 2300, 2390, 2400]
    assert frames.read(numbers.iloc[:1], freq=5).step == 5


@pytest.mark.parametrize("freq", ["M", "Q-NOV", "Y", "D", "W-SUN", "2M"])
def test_periods_go_on_as_periods(freq):
    stamps = pd.period_range("2020-01", periods=8, freq=freq)
    table = frames.read(pd.DataFrame({"ds": stamps[:5], "load": 1.0}))
    assert frames.ahead(table, 3)[0].equals(stamps[5:])
    assert table.ends_C == (stamps[4],)
    assert isinstance(table.ends_C[0], pd.Period)


@pytest.mark.parametrize("dtype", ["int16", "Int64", "category", "object", "string", "bool", "datetime64[s]"])
def test_ids_keep_their_dtype(dtype):
    df = long((9, 8), starts=("2024", "2024"))
    one, other = {"bool": (True, False), "datetime64[s]": pd.to_datetime(["2024", "2023"])}.get(dtype, (7, 3))
    df["unique_id"] = pd.Series([one] * 9 + [other] * 8).astype(dtype)
    table = frames.read(df)
    assert table.names_C == (str(df.unique_id[0]), str(df.unique_id[9]))
    out = frames.write(table, {"y": np.zeros((2, 2))})
    assert out.unique_id.dtype == df.unique_id.dtype
    assert list(out.unique_id) == list(df.unique_id[[0, 1, 9, 10]])


def test_columns_without_numbers_are_left_out_and_told():
    df = wide().assign(place="x", flag=True, when=pd.Timestamp("2024"), kind=pd.Categorical(["k"] * 60))
    table = frames.read(df)
    assert table.names_C == ("load", "heat")
    assert table.notes == ("4 columns without numbers left out: 'place', 'flag', 'when', 'kind'",)
    assert frames.read(long().assign(x=1)).notes == ("1 column beside the series left out: 'x'",)


def test_nullable_and_text_numbers_are_numbers():
    df = wide().assign(load=pd.array([*range(59), None], dtype="Int64"), heat=[str(i / 4) for i in range(60)])
    table = frames.read(df)
    assert np.isnan(table.values_TC[-1, 0])
    np.testing.assert_array_equal(table.values_TC[:, 1], np.arange(60) / 4)


def test_whole_numbers_that_look_like_time_are_taken_as_they_are_and_it_is_said():
    seconds = wide().ds.astype("datetime64[s]").astype("int64")
    table = frames.read(wide().assign(ds=seconds))
    assert (table.freq, table.step) == ("", 3600)
    assert frames.ahead(table, 1)[0][0] == seconds.iloc[-1] + 3600
    (note,) = table.notes
    assert f"whole numbers like {seconds[0]} in column 'ds' look like time since 1970" in note
    assert "pd.to_datetime(.., unit='s') makes stamps of them" in note
    assert frames.read(wide().assign(ds=range(60))).notes == ()


def test_names_can_be_chosen_and_time_is_found():
    base = long().rename(columns={"unique_id": "shop", "ds": "day", "y": "sold"})
    same(frames.read(base, id_column="shop", time_column="day", target_column="sold"), frames.read(long()))
    for df in (
        wide(),
        wide().rename(columns={"ds": "Date"}),
        wide().rename(columns={"ds": "x"}),
        wide().set_index("ds"),
    ):
        same(frames.read(df), frames.read(wide()))
    same(frames.read(long().set_index(["unique_id", "ds"])), frames.read(long()))
    same(frames.read(long().set_index("ds")), frames.read(long()))


def test_a_frame_without_ids_is_one_series_or_wide_as_the_caller_says():
    df = wide().rename(columns={"load": "y"})
    table = frames.read(df, id_column="")
    assert table.names_C == ("y",)
    assert not table.layout.wide
    assert frames.read(df, target_column="").names_C == ("y", "heat")
    assert frames.read(df[["ds", "y"]]).names_C == ("y",)


# ---- out ----


@pytest.mark.parametrize("tz", [None, BERLIN])
@pytest.mark.parametrize("freq", ["h", "D", "B", "ME", "W-TUE"])
def test_what_is_read_is_written_again(freq, tz):
    table = frames.read(long(freq=freq, tz=tz))
    equal(whole(table), long(freq=freq, tz=tz))
    for df in (wide(freq=freq, tz=tz), wide(freq=freq, tz=tz).set_index("ds")):
        equal(whole(frames.read(df)), df)
    df = long(freq=freq, tz=tz).set_index(["unique_id", "ds"])
    equal(whole(frames.read(df)), df)
    unnamed = wide(freq=freq, tz=tz).set_index("ds").rename_axis(None)
    equal(whole(frames.read(unnamed)), unnamed)


def test_a_forecast_put_under_its_frame_is_read_as_one_longer_frame():
    for df in (wide(), wide(freq="D", tz=BERLIN).set_index("ds"), long(), long(freq="BME")):
        table = frames.read(df)
        y_HC = np.arange(7 * len(table.names_C)).reshape(7, -1) + 0.5
        out = frames.write(table, {"y": y_HC})
        longer = frames.read(pd.concat([df, out]))
        np.testing.assert_array_equal(longer.values_TC[-7:], y_HC)
        np.testing.assert_array_equal(longer.values_TC[:-7], table.values_TC)
        assert longer.freq == table.freq


def test_several_columns_get_their_names():
    y_HC = np.arange(4.0).reshape(2, 2)
    columns = {"ptt": y_HC, "ptt-lo-80": y_HC - 1, "y": y_HC + 1}
    out = frames.write(frames.read(wide()), columns)
    assert list(out) == ["ds", "load", "load-lo-80", "load-y", "heat", "heat-lo-80", "heat-y"]
    assert list(out["heat-lo-80"]) == [0, 2]
    out = frames.write(frames.read(long(ids="pqr")), {k: np.zeros((2, 3)) for k in columns})
    assert list(out) == ["unique_id", "ds", "ptt", "ptt-lo-80", "y"]
    with pytest.raises(UserError, match="would be called 'ds'"):
        frames.write(frames.read(long()), {"ds": np.zeros((1, 3))})
    with pytest.raises(UserError, match="would be called 'load-lo'"):
        frames.write(frames.read(wide().rename(columns={"heat": "load-lo"})), {"p": y_HC, "lo": y_HC})


@pytest.mark.parametrize("kind", ["long", "wide"])
def test_windows_say_their_cutoff_and_the_truth_stands_beside(kind):
    df = long((50, 3, 40)) if kind == "long" else wide(40)
    table = frames.read(df)
    after = [-12, -8, -4]
    y_WHC = frames.truth(table, 4, after)
    out = frames.write_windows(table, {"ptt": y_WHC * 2, "y": y_WHC}, after)
    gap = (out.ds - out.cutoff) / pd.Timedelta(hours=1)
    if kind == "long":
        # of b, 3 rows long, nothing is known at these cutoffs
        assert list(out.unique_id) == ["a"] * 12 + ["c"] * 12
        there = out.merge(df, on=["unique_id", "ds"], suffixes=("", "_df"))
        assert len(there) == 24
        assert (there.y == there.y_df).all()
        assert (there.ptt == 2 * there.y_df).all()
    else:
        assert list(out) == ["ds", "cutoff", "load", "load-y", "heat", "heat-y"]
        there = out.merge(df, on="ds", suffixes=("", "_df"))
        assert (there["heat-y"] == there.heat_df).all()
        assert (there.load == 2 * there.load_df).all()
    assert list(gap) == [1, 2, 3, 4] * (len(out) // 4)
    assert np.isnan(frames.truth(table, 4, [-2])[0, 2:]).all()
    assert len(frames.write_windows(table, {"p": np.zeros((1, 4, len(table.names_C)))}, [-2])) == 4 * (
        3 if kind == "long" else 1
    )


@pytest.mark.parametrize(
    "make", [long, wide, lambda: wide().set_index("ds"), lambda: long().set_index(["unique_id", "ds"])]
)
def test_filling_touches_missing_cells_only(make):
    df = make().assign(place="x")
    target = df.columns[-2]
    df[target] = df[target].astype("float32")
    holes = [3, 4, 20]
    df.iloc[holes, df.columns.get_loc(target)] = np.nan
    df = pd.concat([df, df.iloc[[9]]]).drop(df.index[12]).sample(frac=1, random_state=1)
    table = frames.read(df)
    filled_TC = np.where(np.isnan(table.values_TC), 1e6, -5)
    out = frames.fill(table, df, filled_TC)
    gone = df[target].isna().to_numpy()
    assert gone.sum() == 3
    assert (out[target].to_numpy()[gone] == 1e6).all()
    assert out[target].dtype == np.float32
    equal(out[~gone], df[~gone])
    equal(out.drop(columns=target), df.drop(columns=target))


def test_whole_columns_of_whole_numbers_stay_what_they_are():
    df = wide().assign(load=np.arange(60), heat=pd.array([None, *range(59)], dtype="Int64"))
    table = frames.read(df)
    out = frames.fill(table, df, np.full((60, 2), 2.5))
    assert out.load.dtype == df.load.dtype
    assert out.heat.iloc[0] == 2.5


@pytest.mark.parametrize("make", [long, wide, lambda: wide().set_index("ds")])
def test_a_score_stands_at_the_row_that_it_is_of(make):
    df = make().sample(frac=1, random_state=2)
    table = frames.read(df)
    out = frames.attach(table, df, {"score": table.values_TC * 2})
    equal(out[list(df)], df)
    if "y" in df:
        assert (out.score == 2 * df.y).all()
    else:
        assert (out["load-score"] == 2 * df.load).all()
        assert (out["heat-score"] == 2 * df.heat).all()
    with pytest.raises(UserError, match="would be called"):
        frames.attach(table, out, {"score": table.values_TC})


def test_a_repeated_row_gets_the_score_of_its_stamp():
    df = pd.concat([long(), long().iloc[[20, 60]]])
    table = frames.read(df)
    assert (frames.attach(table, df, {"score": table.values_TC}).score == df.y).all()


# ---- real files ----


def test_the_files_at_hand_are_read():
    folder = os.environ.get("PTT_DATA_DIR")
    path = Path(folder or "") / "more" / "NAB.csv.gz"
    if not folder or not path.is_file():
        pytest.skip("more/NAB.csv.gz is not in $PTT_DATA_DIR")
    with gzip.open(path) as f:
        nab = pd.read_csv(f)
    df = nab[nab.series.str.startswith("artificial")]
    table = frames.read(df, id_column="series", time_column="date", target_column="value")
    assert table.freq == "5min"
    assert table.values_TC.shape == (4032, 11)
    assert (frames.attach(table, df, {"score": table.values_TC}).score == df.value).all()
    assert table.notes == ("2 columns beside the series left out: 'label', 'window'",)
    named = {"id_column": "series", "time_column": "date", "target_column": "value"}
    with pytest.raises(UserError, match="all series need one step"):
        frames.read(nab, **named)
    weather = pd.read_csv(Path(folder) / "weather.csv", encoding="latin-1")
    table = frames.read(weather)
    assert table.values_TC.shape == (52704, 21)
    assert len(table.notes) == 2
    assert table.notes[0].startswith("1 row with the stamp of a later row dropped, first the frame at 2020-05-12")
    assert table.notes[1].startswith(
        "9 rows taken as missing to close 1 gap in the stamps; the longest, 9 rows, in the"
    )


# ---- errors ----


def two_steps(freq):
    return pd.concat([long((90,), "h", ("2024",), ids="a"), long((9,), freq, ("2024",), ids="b")])


BAD = {
    "no frame": (lambda: long().y, {}, "a Series was given; accepted: a pandas DataFrame"),
    "no rows": (lambda: long().iloc[:0], {}, "the frame has no rows"),
    "empty": (pd.DataFrame, {}, "the frame has no rows"),
    "same column twice": (lambda: pd.concat([wide(), wide()], axis=1), {}, "2 columns are called 'ds'"),
    "two levels of columns": (lambda: pd.concat({"x": wide()}, axis=1), {}, "columns have 2 levels"),
    "no time": (lambda: wide().drop(columns="ds"), {}, "the frame has no time"),
    "no such time": (wide, {"time_column": "dss"}, "no column 'dss' to take the time from; nearest: 'ds'"),
    "two times": (lambda: wide().rename(columns={"ds": "p"}).assign(q=pd.Timestamp("2024")), {}, "any of 'p', 'q'"),
    "no such id": (long, {"id_column": "unique"}, "no column 'unique', which id_column names; nearest: 'unique_id'"),
    "no such target": (long, {"target_column": "z"}, "no column 'z', which target_column names"),
    "no target": (lambda: long().rename(columns={"y": "z"}), {}, "ids in 'unique_id' but no column 'y'"),
    "wide or long": (lambda: wide().rename(columns={"load": "y"}), {}, "beside 'y' other numbers: 'heat'"),
    "no number column": (lambda: wide()[["ds"]].assign(x="a"), {}, "no column of numbers besides 'ds'"),
    "no id": (lambda: long().replace({"unique_id": {"b": None}}), {}, "column 'unique_id', row 50: the id is missing"),
    "two ids alike": (lambda: long().assign(unique_id=[1] * 50 + ["1"] * 70), {}, "two ids are written '1'"),
    "no stamp": (lambda: long().assign(ds=lambda d: d.ds.mask(d.index == 7)), {}, "column 'ds', row 7: the cell is"),
    "day or month": (lambda: wide(2).assign(ds=["01/02/2024", "02/02/2024"]), {}, "which of the two numbers"),
    "bad stamp": (lambda: long().assign(ds=lambda d: d.ds.astype(str).mask(d.index == 7, "soon")), {}, "row 7: 'soon'"),
    "dates as numbers": (lambda: wide(9, "D").assign(ds=lambda d: d.ds.dt.strftime("%Y%m%d").astype(int)), {},
                         "whole numbers that look like dates, like 20240103"),
    "time in floats": (lambda: wide().assign(ds=0.5), {}, "holds floating cells, like '0.5'"),
    "text": (lambda: long().assign(y=lambda d: d.y.astype(object).mask(d.index == 52, "x")), {},
             "series 'b' at 2024-01-05 02:00:00 (row 52): 'x' is not a number"),
    "infinite": (lambda: wide().assign(heat=lambda d: d.heat.mask(d.index == 2, -np.inf)), {},
                 "series 'heat' at 2024-01-03 02:00:00 (row 2): '-inf' is infinite"),
    "dates for values": (lambda: long().assign(y=lambda d: d.ds), {}, "column 'y' holds"),
    "long, id not named": (lambda: long(starts=["2024-01-03"] * 3).set_axis(["shop", "ds", "sold"], axis=1), {},
                           "name the column that tells the series with id_column"),
    "two steps": (lambda: two_steps("D"), {}, "series 'a' has the step 'h' and series 'b' another (from 2024-01-01 00"),
    "two steps, off": (lambda: two_steps("7min"), {}, "series 'a' has the step 'h' and series 'b' another"),
    "two steps, first": (lambda: two_steps("7min").iloc[::-1], {}, "the step 'h' and series 'b' another"),
    "off the grid": (lambda: long().assign(ds=lambda d: d.ds.mask(d.index == 55, pd.Timestamp("2024-01-05 05:01"))),
                     {"freq": "h"}, "series 'b': 2024-01-05 05:01:00 is not on the grid of step 'h' (1 stamp in all)"),
    "mid-month": (lambda: long((9, 9, 9), "14D"), {"freq": "ME"}, "is not on the grid of step 'ME'"),
    "weekend": (lambda: long((9, 9, 9), "D"), {"freq": "B"}, "2024-01-06 00:00:00 is not on the grid of step 'B'"),
    "a century away": (lambda: pd.concat([long(), long().iloc[[5]].assign(ds=pd.Timestamp("2124"))]), {}, "makes 876"),
    "no step": (long, {"freq": "hourly"}, "freq = 'hourly' is no step"),
    "backward": (long, {"freq": "-1h"}, "does not lead forward"),
    "business hours": (long, {"freq": "bh"}, "counts hours of some days only"),
    "step of numbers": (lambda: long().assign(ds=lambda d: d.index), {"freq": "h"}, "the time is whole numbers"),
    "step of periods": (lambda: long().assign(ds=lambda d: d.ds.dt.to_period("h")), {"freq": "D"}, "step by 'h'"),
    "two zones": (lambda: wide(2).assign(ds=[pd.Timestamp("2024", tz="UTC"), pd.Timestamp("2024")]), {}, "one zone"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_frame_ends_in_one_sentence_that_names_the_place(case):
    make, knobs, words = BAD[case]
    with pytest.raises(UserError) as e:
        frames.read(make(), **knobs)
    text = str(e.value)
    assert words in text
    assert "\n" not in text
    assert len(text) < 500
    assert not text.endswith(".")


def test_another_frame_than_the_one_that_was_read_is_refused():
    table = frames.read(long())
    with pytest.raises(ValueError, match="the table was read with 120 rows"):
        frames.fill(table, long().iloc[1:], table.values_TC)
    with pytest.raises(ValueError, match="1 windows of 3 series"):
        frames.write(table, {"p": np.zeros((4, 2))})


def test_stamps_of_half_a_millennium_are_read_or_refused_in_one_sentence():
    """int64 holds no more than 292 years of nanoseconds."""
    years = pd.date_range("1700-01-01", "2199-01-01", freq="YS", unit="s")
    table = frames.read(pd.DataFrame({"ds": years, "y": np.arange(500.0)}))
    assert table.freq == "YS-JAN"
    assert list(table.values_TC[:, 0]) == list(range(500))
    with pytest.raises(UserError, match=r"a step of 'MS' makes 5989 rows where the frame has 4"):
        frames.read(pd.DataFrame({"ds": [*pd.date_range("1700-01-01", periods=3, freq="MS"), years[-1]], "y": 1.0}))
