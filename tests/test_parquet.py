"""Parquet in and out: every kind of time, an index that is the time, files that are none, and no pyarrow."""

import sys

import numpy as np
import pandas as pd
import pytest

from ptt_jax import config, data, frame, parquet, userfile
from ptt_jax.errors import UserError

STAMPS = pd.date_range("2024-03-01", periods=240, freq="h")
VALUES = np.arange(480.0).reshape(240, 2)


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'ptt_jax[parquet]'")


def table(**kinds) -> pd.DataFrame:
    return pd.DataFrame({"ds": STAMPS, "load": VALUES[:, 0], "heat": VALUES[:, 1]} | kinds)


def load(path, **knobs) -> data.Series:
    cfg = config.default()
    cfg.data.update(name="csv", path=str(path), **knobs)
    return data.load(cfg.data)


KINDS = {
    "column": table,
    "zone": lambda: table(ds=STAMPS.tz_localize("UTC").tz_convert("Asia/Tokyo")),
    "period": lambda: table(ds=STAMPS.to_period("h")),
    "text": lambda: table(ds=STAMPS.astype(str)),
    "index": lambda: table().set_index("ds"),
    "unnamed index": lambda: table().set_index("ds").rename_axis(None),
    "period index": lambda: table(ds=STAMPS.to_period("h")).set_index("ds"),
    "gaps": lambda: table(load=pd.array([None, *range(239)], dtype="Int64")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_series_is_read_whatever_its_time_is(arrow, tmp_path, kind):
    KINDS[kind]().to_parquet(tmp_path / "mine.parquet")
    series = load(tmp_path / "mine.parquet")
    assert series.name == "mine"
    assert series.names_C == ("load", "heat")
    assert series.freq == "h"
    clock = STAMPS + pd.Timedelta(hours=9) if kind == "zone" else STAMPS
    assert list(series.stamps_T) == list(clock)
    assert series.observed_TC.sum() == 480 - (kind == "gaps")
    np.testing.assert_array_equal(series.values_TC[:, 1], VALUES[:, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_stage_reads_and_writes_is_the_frame_itself(arrow, tmp_path, kind):
    before, cfg = KINDS[kind](), config.default()
    before.to_parquet(tmp_path / "mine.parquet")
    cfg.data.path, cfg.output = str(tmp_path / "mine.parquet"), str(tmp_path / "out.parquet")
    file = userfile.read(cfg)
    userfile.write(userfile.as_written(file.frame, file), file)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet"), before, check_freq=False)
    assert file.time_column == "ds"
    cfg.output = str(tmp_path / "out.csv")
    file = userfile.read(cfg)
    userfile.write(userfile.as_written(file.frame, file), file)
    assert len(pd.read_csv(tmp_path / "out.csv").columns) == 3


def test_a_quarter_is_the_day_that_it_begins_with():
    quarters = pd.DataFrame({"ds": pd.period_range("2020Q1", periods=3, freq="Q"), "load": [1.0, 2, 3]})
    assert list(parquet.flat(quarters, "")["ds"]) == list(pd.date_range("2020", periods=3, freq="QS"))


def test_columns_can_be_chosen_beside_a_time_of_any_name(arrow, tmp_path):
    cfg = config.default()
    cfg.data.columns, cfg.output = "heat", str(tmp_path / "out.parquet")
    for name, before in (("day", table().rename(columns={"ds": "day"})), ("ds", table().set_index("ds"))):
        before.to_parquet(tmp_path / "mine.parquet")
        cfg.data.path = str(tmp_path / "mine.parquet")
        file = userfile.read(cfg)
        assert file.time_column == name
        assert list(file.frame) == (["day", "heat"] if name == "day" else ["heat"])


def test_what_is_no_parquet_file_is_one_sentence(arrow, tmp_path):
    whole = tmp_path / "mine.parquet"
    table().to_parquet(whole)
    content = whole.read_bytes()
    for raw in (b"", b"ds,load\n1,2\n", content[:-9], content[:200] + bytes(len(content) - 200), content[: 1000 * 2]):
        whole.write_bytes(raw)
        with pytest.raises(UserError, match=r"mine.parquet is not a whole parquet file \(") as e:
            load(whole)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"none.parquet does not exist"):
        load(tmp_path / "none.parquet")
    (tmp_path / "many.parquet").mkdir()
    with pytest.raises(UserError, match=r"many.parquet is a folder"):
        load(tmp_path / "many.parquet")
    table().iloc[:0].to_parquet(whole)
    with pytest.raises(UserError, match="has no rows"):
        load(whole)


def test_rows_in_errors_are_counted_from_one(arrow, tmp_path):
    text = [*map(str, range(238)), "x", "1"]
    table(load=text).to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(UserError, match="column 'load', row 239: 'x' is not a number"):
        load(tmp_path / "mine.parquet")


def test_row_numbers_of_an_index_are_no_column_of_a_csv(tmp_path):
    frame_ = pd.DataFrame({"y": [1.0, 2.0]}, index=[3, 7])
    file = userfile.File(tmp_path / "in.csv", frame_, None, "y", [], tmp_path / "out.csv")
    assert userfile.write(frame_, file).read_text() == "y\n1.0\n2.0\n"
    assert userfile.write(frame_.rename_axis("ds"), file).read_text() == "ds,y\n3,1.0\n7,2.0\n"


def test_what_cannot_be_written_leaves_nothing(arrow, tmp_path):
    with pytest.raises(UserError, match="cannot be written as parquet"):
        parquet.write(tmp_path / "out.parquet", table(mixed=[1, "x"] * 120))
    assert not list(tmp_path.iterdir())


def test_without_pyarrow_the_extra_is_named_before_anything_is_learned(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "mine.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"accepted: pip install 'ptt_jax\[parquet\]', or a .csv file"):
        frame.read_table(tmp_path / "mine.parquet", "")
    with pytest.raises(UserError, match=r"pip install 'ptt_jax\[parquet\]'"):
        userfile.place(str(tmp_path / "out.parquet"), (".csv", ".parquet"))
