"""data.py with clock.py, frame.py and generated.py: what a file becomes, and what its owner is told."""

import errno
import gzip
import hashlib
import io
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ptt_jax import benchmarks, clock, config, data, scaling
from ptt_jax.errors import UserError

HOURS = "date,load\n" + "".join(f"2024-01-{1 + h // 24:02d} {h % 24:02d}:00:00,{h}\n" for h in range(240))


def section(**knobs):
    """The config section `data` with some knobs set."""
    cfg = config.default().data
    cfg.update(knobs)
    return cfg


def load(**knobs):
    return data.load(section(**knobs))


def write(folder: Path, content: str | bytes, name: str = "mine.csv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def load_text(folder: Path, content: str | bytes, **knobs):
    return load(name="csv", path=write(folder, content), **knobs)


def csv_of(stamps, values=None) -> str:
    """A csv with one channel 'load'; values default to 0, 1, 2 ..."""
    values = range(len(stamps)) if values is None else values
    return "date,load\n" + "".join(f"{s},{v}\n" for s, v in zip(stamps, values, strict=True))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """data.dir, $PTT_DATA_DIR and the cache, all empty; the network is off."""
    out = [tmp_path / name for name in ("own", "env", "cache")]
    for folder in out:
        folder.mkdir()
    monkeypatch.setenv("PTT_DATA_DIR", str(out[1]))
    monkeypatch.setenv("PTT_CACHE_DIR", str(out[2]))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return out


def refuse(url, timeout):
    raise urllib.error.URLError("no route to host")


@pytest.fixture
def tiny(monkeypatch):
    """A benchmark of 240 rows and one channel, with the text of its file."""
    row = benchmarks.DataSet(
        "tiny.csv", 240, 1, "h", "fractions", hashlib.sha256(HOURS.encode()).hexdigest(), "https://x/y"
    )
    monkeypatch.setitem(benchmarks.TABLE, "Tiny", row)
    return HOURS


# ---- splits and scaling ----


@pytest.mark.parametrize(
    ("name", "borders"),
    [
        ("ETTh1", (8640, 11520, 14400)),
        ("ETTh2", (8640, 11520, 14400)),
        ("ETTm1", (34560, 46080, 57600)),
        ("ETTm2", (34560, 46080, 57600)),
        ("Weather", (36887, 42157, 52696)),
        ("Electricity", (18412, 21044, 26304)),
        ("Traffic", (12280, 14036, 17544)),
        ("Exchange", (5311, 6071, 7588)),
        ("ILI", (676, 773, 966)),
    ],
)
def test_the_parts_of_every_benchmark_end_where_the_protocol_says(name, borders):
    row = benchmarks.TABLE[name]
    splits = (
        data.by_months(row.freq) if row.split == "months" else data.by_fractions(row.rows, (0.7, 0.1, 0.2), row.file)
    )
    a, b, c = borders
    assert splits == {"train": (0, a), "validation": (a, b), "test": (b, c)}


def test_every_row_of_the_table_has_its_borders_tested():
    assert len(benchmarks.TABLE) == 9


def changed(series, values_TC=None, observed_TC=None):
    values_TC = series.values_TC if values_TC is None else values_TC
    observed_TC = series.observed_TC if observed_TC is None else observed_TC
    names = (series.name, values_TC, observed_TC, series.stamps_T, series.names_C, series.freq, series.splits)
    return data.Series(*names, series.notes)


def test_the_scaler_sees_observed_train_rows_only():
    series = load(name="generated")
    end = series.splits["train"][1]
    scaler = scaling.fit_scaler(series)
    train = np.where(series.observed_TC, series.values_TC.astype(np.float64), np.nan)[:end]
    np.testing.assert_allclose(scaler.mean_C, np.nanmean(train, 0), rtol=1e-12)
    np.testing.assert_allclose(scaler.scale_C, np.nanstd(train, 0), rtol=1e-12)
    later, unseen = series.values_TC.copy(), series.values_TC.copy()
    later[end:] += 1000
    unseen[~series.observed_TC] += 1000
    for values_TC in (later, unseen):
        other = scaling.fit_scaler(changed(series, values_TC))
        np.testing.assert_array_equal(other.mean_C, scaler.mean_C)
        np.testing.assert_array_equal(other.scale_C, scaler.scale_C)


def test_scaling_goes_there_and_back_on_any_axis():
    series = load(name="generated", channels=3)
    scaler = scaling.fit_scaler(series)
    scaled_TC = scaler.transform(series.values_TC)
    assert scaled_TC.dtype == np.float32
    np.testing.assert_allclose(scaler.inverse(scaled_TC), series.values_TC, rtol=1e-5)
    seen_TC = np.arange(scaled_TC.size).reshape(scaled_TC.shape) % 3 > 0
    shown_TC = scaler.transform(np.where(seen_TC, series.values_TC, np.nan), seen_TC)
    assert shown_TC.dtype == np.float32
    np.testing.assert_array_equal(shown_TC, np.where(seen_TC, scaled_TC, 0))
    back_1CT = scaler.inverse(scaled_TC.T[None], axis=1)
    assert back_1CT.dtype == np.float32
    np.testing.assert_array_equal(back_1CT[0].T, scaler.inverse(scaled_TC))


def test_a_constant_channel_has_scale_one_whatever_its_level(tmp_path):
    for level in ("0", "0.1", "-1e9"):
        series = load_text(tmp_path, csv_of(pd.date_range("2024", periods=100, freq="h"), [level] * 100))
        scaler = scaling.fit_scaler(series)
        assert scaler.scale_C[0] == 1
        assert abs(scaler.transform(series.values_TC)).max() < 1e-6
        assert any("constant" in note and "'load'" in note for note in series.notes)


def test_a_large_offset_does_not_drown_a_small_spread(tmp_path):
    values = [100000 + h % 2 for h in range(240)]
    series = load_text(tmp_path, csv_of(pd.date_range("2024", periods=240, freq="h"), values))
    np.testing.assert_allclose(scaling.fit_scaler(series).scale_C, 0.5, rtol=1e-9)


# ---- missing values ----


def test_filled_values_never_depend_on_the_future():
    rng = np.random.default_rng(0)
    values_TC = rng.normal(size=(60, 3))
    values_TC[rng.random((60, 3)) < 0.4] = np.nan
    values_TC[0] = 7  # observed from the first row on
    filled_TC = data.fill(values_TC, ~np.isnan(values_TC), 40)
    assert np.isfinite(filled_TC).all()
    for now in (5, 30, 45):
        later_TC = values_TC.copy()
        later_TC[now + 1 :] = rng.normal(size=later_TC[now + 1 :].shape)
        other_TC = data.fill(later_TC, ~np.isnan(later_TC), 40)
        np.testing.assert_array_equal(other_TC[: now + 1], filled_TC[: now + 1])


def test_before_the_first_observed_value_stands_the_train_mean_and_nothing_later():
    values_TC = np.array([[np.nan], [np.nan], [1.0], [3.0], [100.0]])
    filled_TC = data.fill(values_TC, ~np.isnan(values_TC), 4)
    np.testing.assert_array_equal(filled_TC[:, 0], [2, 2, 1, 3, 100])


def test_missing_cells_are_not_observed_and_are_counted(tmp_path):
    text = HOURS.replace(" 05:00:00,5\n", " 05:00:00,\n").replace(",30\n", ",NA\n")
    series = load_text(tmp_path, text)
    assert [int(t) for t in np.flatnonzero(~series.observed_TC[:, 0])] == [5, 30]
    assert series.values_TC[5, 0] == 4
    assert series.values_TC[30, 0] == 29
    assert any(note.startswith("2 values (0.83%) missing") for note in series.notes)


# ---- benchmark files ----


def test_the_weather_file_is_read_as_it_is_and_its_quirks_are_told():
    folder = os.environ.get("PTT_DATA_DIR")
    if not folder or not (Path(folder) / "weather.csv").is_file():
        pytest.skip("weather.csv is not in $PTT_DATA_DIR")
    series = load(name="Weather", dir=folder)
    assert series.values_TC.shape == (52696, 21)
    assert series.observed_TC.all()
    assert series.values_TC[0, 0] == np.float32(1008.89)
    assert (series.values_TC == -9999).sum() == 81
    assert series.stamps_T.duplicated().sum() == 1
    told = "\n".join(series.notes)
    assert len(series.notes) == 4
    for words in (
        "3 column names with characters that were no UTF-8",
        "jump forward 1 time, first at row 21516 (2020-05-29 09:30:00 to 2020-05-29 11:10:00)",
        "repeat 1 time, first at row 19046",
        "1 time in 'wv (m/s)'",
        "50 times in 'OT'",
    ):
        assert words in told


def test_every_benchmark_file_at_hand_is_the_published_one():
    folder = os.environ.get("PTT_DATA_DIR")
    there = [name for name, row in benchmarks.TABLE.items() if folder and (Path(folder) / row.file).is_file()]
    if not there:
        pytest.skip("no benchmark file is in $PTT_DATA_DIR")
    for name in there:
        if name not in ("ETTm1", "ETTm2"):  # as large as the rest together, and made like ETTh
            series = load(name=name, dir=folder)
            assert not any("published" in note for note in series.notes)
            assert series.values_TC.shape == (benchmarks.TABLE[name].rows, benchmarks.TABLE[name].columns)
            assert pd.Series(np.diff(series.stamps_T.asi8)).mode()[0] / 1e9 == data.step_seconds(series.freq)


def test_files_are_looked_for_in_dir_then_environment_then_cache(folders, tiny):
    own, env, cache = folders
    for folder, dir_knob in ((cache, ""), (env, ""), (own, str(own))):  # each later one wins over those before
        write(folder, tiny, "tiny.csv")
        assert benchmarks.find(benchmarks.TABLE["Tiny"], section(dir=dir_knob)) == folder / "tiny.csv"
    (own / "tiny.csv").unlink()
    (own / "tiny").mkdir()
    write(own / "tiny", tiny, "tiny.csv")  # one folder for each set
    assert benchmarks.find(benchmarks.TABLE["Tiny"], section(dir=str(own))).parent == own / "tiny"


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("PTT_CACHE_DIR", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert benchmarks.cache_dir() == Path("/a")
    monkeypatch.delenv("PTT_CACHE_DIR")
    assert benchmarks.cache_dir() == Path("/b/ptt_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert benchmarks.cache_dir() == Path.home() / ".cache" / "ptt_jax"


def test_a_download_is_verified_kept_and_not_repeated(folders, tiny, monkeypatch):
    asked = []

    def serve(url, timeout):
        asked.append((url, timeout))
        return io.BytesIO(tiny.encode())

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    first, second = load(name="Tiny"), load(name="Tiny")
    assert asked == [("https://x/y", benchmarks.TIMEOUT)]
    assert [path.name for path in folders[2].iterdir()] == ["tiny.csv"]
    assert first.fingerprint == second.fingerprint


def test_a_download_with_another_hash_leaves_no_file(folders, tiny, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(tiny[:-9].encode()))
    with pytest.raises(UserError, match="SHA-256 differs"):
        load(name="Tiny")
    assert not list(folders[2].iterdir())


def test_a_download_that_breaks_off_leaves_no_file(folders, tiny, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(tiny.encode()))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"tiny\.csv cannot be written \(No space left"):
        load(name="Tiny")
    assert not list(folders[2].iterdir())


def test_offline_one_sentence_says_which_file_goes_where(folders):
    for knobs, reason in (
        ({"name": "ETTh1"}, "no route to host"),
        ({"name": "ETTh1", "download": False}, "data.download is off"),
        ({"name": "Traffic"}, "no public home"),
    ):
        with pytest.raises(UserError) as e:
            load(**knobs)
        text = str(e.value)
        assert reason in text
        assert "\n" not in text
        assert benchmarks.TABLE[knobs["name"]].file in text
        assert str(folders[1]) in text
        assert str(folders[2]) in text
    assert "Autoformer" in text


def test_another_file_of_the_same_shape_is_taken_with_a_note_and_another_shape_is_not(folders, tiny):
    write(folders[1], tiny.replace(",7\n", ",8\n"), "tiny.csv")
    assert any("not the published file" in note for note in load(name="Tiny").notes)
    write(folders[1], tiny[: tiny.rindex("2024")], "tiny.csv")
    with pytest.raises(UserError, match="239 rows and 1 number columns, but Tiny has 240 and 1"):
        load(name="Tiny")


def test_ett_says_that_it_has_borders_of_its_own(folders, monkeypatch):
    row = benchmarks.DataSet("tiny.csv", 17420, 1, "h", "months")
    monkeypatch.setitem(benchmarks.TABLE, "Tiny", row)
    write(folders[0], csv_of(pd.date_range("2016-07-01", periods=17420, freq="h")), "tiny.csv")
    plain, other = (load(name="Tiny", dir=str(folders[0]), split=s) for s in ((0.7, 0.1, 0.2), (0.6, 0.2, 0.2)))
    assert plain.splits == other.splits
    assert plain.splits["test"] == (11520, 14400)
    assert not plain.notes
    assert "is not used" in other.notes[0]


def test_columns_can_be_chosen_and_keep_their_order(tmp_path):
    text = "load,date,heat,place\n" + "".join(f"{h},2024-01-01 {h:02d}:00,{-h},x\n" for h in range(24))
    assert load_text(tmp_path, text).names_C == ("load", "heat")
    assert "1 column without numbers left out: 'place'" in load_text(tmp_path, text).notes
    series = load_text(tmp_path, text, columns="heat, load")
    assert series.names_C == ("heat", "load")
    assert series.values_TC[3].tolist() == [-3, 3]


# ---- own files: bytes ----


def test_gz_bom_semicolons_tabs_crlf_and_blank_ends_change_nothing(tmp_path):
    plain = load_text(tmp_path, HOURS)
    assert plain.name == "mine"
    assert plain.freq == "h"
    assert not plain.notes
    for content, name in (
        (gzip.compress(HOURS.encode()), "mine.csv.gz"),
        (b"\xef\xbb\xbf" + HOURS.encode(), "mine.csv"),
        (HOURS.replace(",", ";"), "mine.csv"),
        (HOURS.replace(",", "\t"), "mine.csv"),
        (HOURS.replace("\n", "\r\n"), "mine.csv"),
        (HOURS + "\n\n,\n", "mine.csv"),
        (HOURS.replace("date,", "when,").replace("when,", '"date" ,'), "mine.csv"),
        (HOURS.replace("date,", "Timestamp,"), "mine.csv"),
        (HOURS.replace("date,", "when,"), "mine.csv"),
        (HOURS.replace("date,", ","), "mine.csv"),
    ):
        other = load(name="csv", path=write(tmp_path, content, name))
        assert other.fingerprint == plain.fingerprint
        assert other.name == "mine"


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    assert len(load_text(tmp_path, b"\xef\xbb\xbf" + HOURS.encode(), time_column="date").stamps_T) == 240


def test_decimal_commas_are_read_between_semicolons(tmp_path):
    series = load_text(tmp_path, "date;load\n" + "".join(f"{d:02d}.01.2024;{d},5\n" for d in range(1, 29)))
    assert series.values_TC[3, 0] == 4.5
    assert series.freq == "D"
    assert "commas in numbers are read as decimal points" in series.notes


def test_bytes_that_are_not_utf8_are_read_and_told(tmp_path):
    series = load_text(tmp_path, HOURS.replace("load", "W/m²").encode("latin-1"))
    assert series.names_C == ("W/m²",)
    assert any("not UTF-8" in note for note in series.notes)


def test_row_numbers_without_a_name_are_not_a_channel(tmp_path):
    frame = pd.DataFrame({"date": pd.date_range("2024", periods=50, freq="h"), "load": 1.5})
    series = load_text(tmp_path, frame.to_csv())
    assert series.names_C == ("load",)
    assert "1 column without numbers left out: 'column 1'" in series.notes


def test_the_fingerprint_sees_values_gaps_names_and_stamps(tmp_path):
    prints = {
        load_text(tmp_path, text).fingerprint
        for text in (
            HOURS,
            HOURS.replace(",7\n", ",7.001\n"),
            HOURS.replace(",7\n", ",\n").replace(",6\n", ",7\n"),
            HOURS.replace(",7\n", ",\n"),
            HOURS.replace(",7\n", ",6\n"),
            HOURS.replace("load", "heat"),
            HOURS.replace("2024", "2023"),
        )
    }
    assert len(prints) == 7


# ---- own files: stamps ----


@pytest.mark.parametrize("freq", ["h", "15min", "10min", "30min", "5min", "s", "500ms", "D", "B", "W-TUE", "14D", "MS"])
def test_the_step_is_found(tmp_path, freq):
    series = load_text(tmp_path, csv_of(pd.date_range("2024-01-03", periods=60, freq=freq)))
    assert series.freq == freq
    assert len(series.stamps_T) == 60
    assert series.observed_TC.all()


@pytest.mark.parametrize("freq", ["ME", "BMS", "QS", "QE", "QS-FEB", "YS", "YE"])
def test_calendar_steps_are_found_up_to_their_anchor(tmp_path, freq):
    stamps = pd.date_range("1950-01-01", periods=40, freq=freq)
    series = load_text(tmp_path, csv_of(stamps))
    assert list(series.stamps_T) == list(stamps)
    assert series.freq.split("-")[0] == freq.split("-")[0]


@pytest.mark.parametrize(
    ("freq", "steps"),
    [("h", 24), ("15min", 96), ("10min", 144), ("30min", 48), ("min", 1440), ("s", 3600), ("12h", 2), ("D", 7),
     ("B", 5), ("W-TUE", 52), ("MS", 12), ("ME", 12), ("QS-JAN", 4), ("YS-JAN", 1), ("2YS-JAN", 1)],
)  # fmt: skip
def test_the_season_of_a_step(freq, steps):
    assert data.season(freq) == steps


def test_rows_are_sorted_repeats_dropped_and_gaps_become_missing_rows(tmp_path):
    lines = HOURS.splitlines()
    header, rows = lines[0], lines[1:]
    del rows[100:103]  # hours 100, 101, 102
    rows[50] = rows[50].replace(",50", ",999")  # dropped: the same hour comes once more
    rows.insert(60, "2024-01-03 02:00:00,50")
    rows[10], rows[11] = rows[11], rows[10]
    series = load_text(tmp_path, "\n".join([header, *rows]))
    assert series.freq == "h"
    assert len(series.stamps_T) == 240
    assert [int(t) for t in np.flatnonzero(~series.observed_TC[:, 0])] == [100, 101, 102]
    np.testing.assert_array_equal(
        series.values_TC[series.observed_TC[:, 0], 0], np.delete(np.arange(240), [100, 101, 102])
    )
    told = "\n".join(series.notes)
    assert "rows were out of order (first at row 13, 2024-01-01 10:00:00)" in told
    assert "1 row with the stamp of a later row dropped, first 2024-01-03 02:00:00 (row 52)" in told
    assert (
        "3 rows put in as missing to close 1 gap in the stamps; the longest, 3 rows, after 2024-01-05 03:00:00" in told
    )


def test_the_given_step_wins_and_makes_missing_rows(tmp_path):
    series = load_text(tmp_path, HOURS, freq="30min")
    assert series.freq == "30min"
    assert len(series.stamps_T) == 479
    assert series.observed_TC.sum() == 240


@pytest.mark.parametrize(
    "form",
    ["%Y-%m-%d %H:%M:%S", "%Y/%m/%d %H:%M", "%d.%m.%Y %H:%M", "%d/%m/%Y %H:%M", "%m/%d/%Y %I:%M:%S %p",
     "%Y-%m-%dT%H:%M:%S.000", "%Y-%m-%dT%H:%MZ", "%Y-%m-%d %H:%M+05:30"],
)  # fmt: skip
def test_common_forms_of_stamps_mean_the_same(tmp_path, form):
    stamps = pd.date_range("2024-01-01", periods=600, freq="h")
    series = load_text(tmp_path, csv_of(stamps.strftime(form)))
    assert list(series.stamps_T) == list(stamps)


def test_dots_mean_that_the_day_comes_first(tmp_path):
    stamps = pd.date_range("2024-01-01", periods=12, freq="MS")
    assert list(load_text(tmp_path, csv_of(stamps.strftime("%d.%m.%Y"))).stamps_T) == list(stamps)


def test_the_step_is_the_commonest_one_and_not_the_first(tmp_path):
    series = load_text(tmp_path, HOURS.replace("2024-01-01 01:00:00,1\n", ""))
    assert series.freq == "h"
    assert len(series.stamps_T) == 240
    assert not series.observed_TC[1, 0]


@pytest.mark.parametrize(
    ("form", "order"),
    [("%m/%d/%Y", "month/day"), ("%d/%m/%Y", "day/month"), ("%d-%m-%Y", "day-month"), ("%d.%m.%Y", "")],
)
def test_which_number_is_the_month_is_said_where_it_comes_first_or_second(tmp_path, form, order):
    stamps = pd.date_range("2024-03-01", periods=40)
    series = load_text(tmp_path, csv_of(stamps.strftime(form)))
    assert list(series.stamps_T) == list(stamps)
    told = [note for note in series.notes if "are read as" in note]
    assert told == ([f"stamps like {stamps[0].strftime(form)} (row 2) are read as {order}"] if order else [])


def test_midnight_may_lack_its_time_of_day(tmp_path):
    assert list(load_text(tmp_path, HOURS.replace(" 00:00:00", "")).stamps_T) == list(
        load_text(tmp_path, HOURS).stamps_T
    )


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1000)])
def test_whole_numbers_are_seconds_or_milliseconds_since_1970(tmp_path, unit, factor):
    stamps = pd.date_range("2024-01-01", periods=50, freq="h")
    seconds = stamps.as_unit("s").asi8 * factor
    text = csv_of(seconds).replace("date", "Timestamp")
    assert list(load_text(tmp_path, text).stamps_T) == list(stamps)


def test_whole_numbers_may_be_dates(tmp_path):
    for form, freq in (("%Y%m%d", "D"), ("%Y%m", "MS"), ("%Y", "YS-JAN")):
        stamps = pd.date_range("1950-01-01", periods=60, freq=freq)
        series = load_text(tmp_path, csv_of(stamps.strftime(form)))
        assert list(series.stamps_T) == list(stamps)
        assert series.freq == freq


def test_offsets_that_change_become_utc(tmp_path):
    stamps = pd.date_range("2024-03-30", periods=60, freq="h", tz="UTC")
    local = [s.tz_convert("Europe/Berlin").isoformat() for s in stamps]
    series = load_text(tmp_path, csv_of(local))
    assert list(series.stamps_T) == list(stamps.tz_localize(None))
    assert series.observed_TC.all()
    assert "stamps have 2 offsets (+01:00, +02:00) and were converted to UTC" in series.notes


# ---- own files: errors ----

ROWS = HOURS.splitlines()
BAD = {
    "empty": (b"", "is empty"),
    "header only": ("date,load\n", "has a header and no rows"),
    "blank first row": ("\n" + HOURS, "starts with a blank row"),
    "no header": (HOURS.partition("\n")[2], "'2024-01-01 00:00:00' stands in row 1, where column names are needed"),
    "spaces": (HOURS.replace(",", " "), "1 and 1 fields between commas"),
    "same name twice": (HOURS.replace(",", ",1,").replace("date,1", "date,load"), "2 columns are called 'load'"),
    "a row too wide": (HOURS.replace(",9\n", ",9,9\n"), "Expected 2 fields in line 11, saw 3"),
    "zero bytes": (HOURS.encode("utf-16"), "zero bytes"),
    "text": (HOURS.replace(",7\n", ",seven\n"), "column 'load', row 9: 'seven' is not a number"),
    "text after a blank row": (HOURS.replace(",5\n", ",5\n\n").replace(",7\n", ",x\n"), "row 10: 'x' is not a number"),
    "infinite": (HOURS.replace(",7\n", ",inf\n"), "column 'load', row 9: 'inf' is infinite"),
    "too large": (HOURS.replace(",7\n", ",1e39\n"), "column 'load', row 9: '1e+39' is infinite or more than"),
    "no number column": ("date,a\n2024-01-01,x\n2024-01-02,y\n", "no column of numbers besides 'date'"),
    "no time column": ("a,b\n1,2\n3,4\n", "has no time column"),
    "bad stamp": (HOURS.replace("2024-01-01 07", "2024-13-01 07"), "row 9: '2024-13-01 07:00:00' is no time stamp"),
    "total": (HOURS + "Total,9\n", "row 242: 'Total' is no time stamp"),
    "no stamp at all": (re.sub("2024[^,]*", "x", HOURS), "row 2: 'x' is no time stamp"),
    "no stamp": (HOURS.replace("2024-01-01 07:00:00", ""), "row 9: the cell is empty"),
    "some zones": (HOURS.replace("07:00:00", "07:00:00Z"), "row 2 has no time zone and row 9 has 'Z'"),
    "day or month": ("date,a\n01/02/2024,1\n02/02/2024,2\n", "which of the two numbers before the year is the month"),
    "odd number stamps": ("time,a\n1,1\n2,2\n3,3\n", "row 2: '1' is no time stamp"),
    "one number stamp of another kind": ("time,a\n2024,1\n1700000000,2\n1700003600,3\n", "row 2: '2024' is no time"),
    "a half second since 1970": ("time,a\n1700000000,1\n1700000000.5,2\n", "row 3: '1700000000.5' is no time stamp"),
    "long table": (HOURS + "\n".join(ROWS[1:]), "240 of 480 rows have the stamp of a later row"),
    "off the grid": (HOURS.replace("07:00:00,7\n", "07:10:00,7\n"), "row 9: 2024-01-01 07:10:00 is not on the grid"),
    "a century away": (HOURS + "2124-01-01,1\n", "a step of 'h' makes"),
    "two stamps": ("\n".join(ROWS[:3]), "has 2 stamps"),
    "few rows": ("\n".join(ROWS[:5]), "4 rows leave a part of data.split"),
    "nothing in train": ("\n".join([ROWS[0] + ",b", *(f"{r},{'' if i < 200 else 1}" for i, r in enumerate(ROWS[1:]))]),
                         "column 'b' has no value in the train rows"),
}  # fmt: skip


def one_sentence(e: pytest.ExceptionInfo) -> str:
    text = str(e.value)
    assert "\n" not in text
    assert len(text) < 500
    assert not text.endswith(".")
    return text


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_ends_in_one_sentence_that_names_the_place(tmp_path, case):
    content, words = BAD[case]
    with pytest.raises(UserError) as e:
        load_text(tmp_path, content)
    text = one_sentence(e)
    assert words in text
    assert "mine" in text


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"columns": "laod"}, "no column 'laod' to forecast; nearest: 'load'"),
        ({"columns": "date"}, "no column 'date' to forecast"),
        ({"time_column": "dat"}, "no column 'dat' to take the time from; nearest: 'date'"),
        ({"freq": "hourly"}, "config.data.freq = 'hourly' is no step"),
        ({"freq": "-1h"}, "config.data.freq = '-1h' does not lead forward"),
        ({"freq": "D"}, "row 3: 2024-01-01 01:00:00 is not on the grid of step 'D'"),
        ({"freq": "s"}, "makes 860400 rows where the file has 240"),
        ({"split": (0.999, 0.0005, 0.0005)}, "leave a part of data.split = (0.999, 0.0005, 0.0005) empty"),
        ({"path": ""}, "config.data.path is empty"),
        ({"path": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"path": "."}, "is a folder"),
        ({"name": "etth1"}, "'etth1' is no data set; nearest: 'ETTh1'"),
        ({"name": "ETTh1", "dir": "nowhere"}, "config.data.dir = 'nowhere' is no folder"),
    ],
)
def test_a_bad_knob_ends_in_one_sentence_that_names_it(tmp_path, knobs, words):
    with pytest.raises(UserError) as e:
        load(**({"name": "csv", "path": write(tmp_path, HOURS)} | knobs))
    assert words in one_sentence(e)


def test_half_a_gzip_file_ends_in_one_sentence(tmp_path):
    with pytest.raises(UserError) as e:
        load(name="csv", path=write(tmp_path, gzip.compress(HOURS.encode())[:-20], "mine.csv.gz"))
    assert "is not a whole gzip file" in one_sentence(e)


# ---- generated ----


def test_the_generated_series_is_made_by_its_seed_alone():
    prints = [load(name="generated", seed=seed).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(("rows", "channels", "seed"), [(4320, 4, 0), (4320, 4, 1), (2000, 1, 2), (1000, 20, 3)])
def test_about_one_percent_of_the_generated_series_is_missing_half_of_it_in_blocks(rows, channels, seed):
    series = load(name="generated", rows=rows, channels=channels, seed=seed)
    missing_TC = ~series.observed_TC
    assert series.values_TC.shape == (rows, channels)
    assert 0.003 < missing_TC.mean() < 0.03
    inside = missing_TC[:-2] & missing_TC[1:-1] & missing_TC[2:]
    assert 0.2 < inside.sum() / missing_TC.sum() < 0.7


def test_the_generated_series_can_be_forecast_but_not_perfectly():
    errors = []
    for seed in range(3):
        series = load(name="generated", seed=seed)
        scaled_TC = scaling.fit_scaler(series).transform(series.values_TC)
        for begin in range(series.splits["test"][0], len(scaled_TC) - 24, 24):
            future, day, week = (
                scaled_TC[begin : begin + 24],
                scaled_TC[begin - 24 : begin],
                scaled_TC[begin - 168 :][:24],
            )
            errors.append([((future - day) ** 2).mean(), ((future - week) ** 2).mean(), (future**2).mean()])
    last_day, last_week, mean = np.mean(errors, axis=0)
    assert 0.15 < min(last_day, last_week) < 0.75 * mean


def test_two_steps_can_be_compared():
    assert clock.step_seconds("60min") == clock.step_seconds("h") != clock.step_seconds("15min")
    assert clock.step_seconds("7D") == clock.step_seconds("W-TUE")
