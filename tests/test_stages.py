"""Stages of the command line: a file in, a file out. One small Forecaster is learned and kept, and asked by all."""

import contextlib
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from ptt_jax import calibrate, config, frames, main, recipe, userfile
from ptt_jax.forecaster import Forecaster
from ptt_jax.scales import number

TINY = {
    "model.width": 16, "model.mlp": 16, "model.heads": 2, "model.encoder_layers": 1, "pretrain.steps": 20,
    "pretrain.batch": 64, "pretrain.validations": 1, "tune.steps": 4, "tune.batch": 64, "tune.validations": 1,
    "pretrain.learning_rate": 1e-2, "cache_dir": "",
}  # fmt: skip
ROWS, HORIZON = 300, 24


def make(rows: int = ROWS) -> pd.DataFrame:
    rng, t_T = np.random.default_rng(0), np.arange(rows)
    return pd.DataFrame({
        "ds": pd.date_range("2024-01-01", periods=rows, freq="h"),
        "load": (100 + 20 * np.sin(2 * np.pi * t_T / 24) + rng.normal(size=rows)).round(3),
        "wind": (3 + np.sin(2 * np.pi * t_T / 24) + 0.1 * rng.normal(size=rows)).round(3),
    })  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder that a first forecast leaves, with the file and what it said."""
    folder = tmp_path_factory.mktemp("stages")
    make().to_csv(folder / "mine.csv", index=False)
    knobs = [f"--config.{key}={value}" for key, value in TINY.items()]
    argv = ["forecast", f"--config.data.path={folder / 'mine.csv'}", f"--config.horizons={HORIZON},", *knobs]
    with (folder / "words").open("w") as words, contextlib.redirect_stdout(words):
        assert main.main([*argv, f"--workdir={folder / 'kept'}", f"--config.output={folder / 'first.csv'}"]) == 0
    return folder


def call(stage: str, kept, path, out, *more: str) -> int:
    return main.main(
        [stage, f"--config.data.path={path}", f"--config.backbone={kept / 'kept'}", f"--config.output={out}", *more]
    )


def test_the_command_line_writes_what_the_forecaster_says(kept, tmp_path):
    first, out = pd.read_csv(kept / "first.csv"), tmp_path / "out.csv"
    assert list(first)[:3] == ["ds", "load", "load-lo-80"]
    assert len(first) == HORIZON
    assert call("forecast", kept, kept / "mine.csv", out) == 0
    np.testing.assert_allclose(pd.read_csv(out)["load"], first["load"], rtol=1e-6)


def test_a_forecast_of_later_rows_says_how_wide_it_makes_intervals(kept, tmp_path, capsys):
    newer = make(ROWS + 100)
    newer.loc[ROWS:, "load"] += 10 * np.random.default_rng(1).normal(size=100)
    newer.to_csv(tmp_path / "newer.csv", index=False)
    assert call("forecast", kept, tmp_path / "newer.csv", tmp_path / "out.csv") == 0
    factor = Forecaster.load(kept / "kept").drift(newer)
    assert factor > 1.1
    assert f"intervals {factor:.2f} times as wide as when it learned, by what came since" in capsys.readouterr().out
    for words in (
        "--config.levels=()",
        f"--config.data.path={kept / 'mine.csv'}",
    ):  # nothing to widen, nothing by which
        assert call("forecast", kept, tmp_path / "newer.csv", tmp_path / "out.csv", words) == 0
        assert "times as wide" not in capsys.readouterr().out


def test_a_fit_says_how_it_compares_with_last_season(kept):
    of = Forecaster.load(kept / "kept").fitted
    rows = recipe.validation_rows(ROWS, HORIZON)
    share = calibrate.beside_season(of.predictor, frames.read(make()), rows, of.season)
    words = (kept / "words").read_text()
    assert (
        f"in the last {rows} rows the forecast errs by {share:.2f} of what last season's values again err by" in words
    )
    assert ("repeating those does as well" in words) == (share >= 1)


def test_a_forecast_is_learned_again_from_its_own_config_bit_for_bit(kept, tmp_path):
    of = [f"--config={kept / 'kept' / 'config.json'}", f"--config.data.path={kept / 'mine.csv'}"]
    assert main.main(["forecast", *of, f"--config.output={tmp_path / 'again.csv'}"]) == 0
    assert (tmp_path / "again.csv").read_bytes() == (kept / "first.csv").read_bytes()


def test_a_forecast_does_not_overwrite_what_it_is_of(kept, tmp_path, capsys):
    shutil.copy(kept / "mine.csv", tmp_path)
    before = (tmp_path / "mine.csv").read_bytes()
    assert call("forecast", kept, tmp_path / "mine.csv", tmp_path / "." / "mine.csv") == 2
    assert "is the file to forecast; accepted: another path" in capsys.readouterr().err
    (tmp_path / "out.csv.tmp").mkdir()  # where the answer would be written first
    assert call("forecast", kept, tmp_path / "mine.csv", tmp_path / "out.csv") == 2
    assert "out.csv cannot be written" in capsys.readouterr().err
    assert (tmp_path / "mine.csv").read_bytes() == before


ODD = [f"{t:%d.%m.%Y %H:%M}" for t in make()["ds"]]  # stamps as nobody's program writes them


def long() -> str:
    """A long file: ids with zeros, a column that is no number, rows out of order, a repeated digit, a gap."""
    rows = [
        f"{unit},{stamp},{place},{'' if at == 60 else f'{value:.4f}'}"
        for unit, name in (("007", "load"), ("08", "wind"))
        for at, (stamp, value, place) in enumerate(zip(ODD, make()[name], "ab" * (ROWS // 2), strict=True))
    ]
    rows[3], rows[4] = rows[4], rows[3]
    return "\n".join(["unique_id,when,place,y", *rows]) + "\n"


def wide() -> str:
    rows = [
        f"{stamp};{'' if at in (50, 51) else f'{load:.4f}'.replace('.', ',')};{at};{f'{wind:.2f}'.replace('.', ',')}"
        for at, (stamp, load, wind) in enumerate(zip(ODD, make()["load"], make()["wind"], strict=True))
    ]
    return "\n".join(["when;load;row;wind", *rows]) + "\n"


@pytest.mark.parametrize("kind", ["wide", "long"])
def test_a_forecast_can_be_a_page(kept, tmp_path, kind):
    """Each series has its chart and its row, with the numbers that the csv has; other answers are no pages."""
    path = kept / "mine.csv" if kind == "wide" else tmp_path / "long.csv"
    if kind == "long":
        path.write_text(long().replace("unique_id,when", "unique_id,ds"))
    for name in ("out.csv", "out.html"):
        assert call("forecast", kept, path, tmp_path / name) == 0
    found, page = pd.read_csv(tmp_path / "out.csv", dtype={"unique_id": str}), (tmp_path / "out.html").read_text()
    for series in ("load", "wind") if kind == "wide" else ("007", "08"):
        rows = found if kind == "wide" else found[found["unique_id"] == series]
        label = series if kind == "wide" else next(name for name in found if f"{name}-lo-80" in found)
        first, last, low = rows[label].iloc[0], rows[label].iloc[-1], rows[f"{label}-lo-80"].iloc[-1]
        (row,) = re.findall(rf'<tr><th scope="row">{series}</th>(.*?)</tr>', page)
        cells = re.findall("<td>(.*?)</td>", row)
        assert cells[1:3] == [number(first), number(last)]
        assert cells[3].startswith(f"{number(low)} to ")
        assert f'aria-label="{series}, from 2024-01-13 12:00. ' in page
    assert page.count('class="chart"') == 2
    assert call("impute", kept, path, tmp_path / "no.html") == 2
    assert not (tmp_path / "no.html").exists()


def test_a_gap_is_closed_and_no_other_cell_is_written_otherwise(kept, tmp_path, capsys):
    path, out = tmp_path / "long.csv", tmp_path / "out.csv"
    path.write_text(long())
    assert call("impute", kept, path, out) == 0
    assert "impute: 2 of 2 missing values closed" in capsys.readouterr().out
    before, after = long().splitlines(), out.read_text().splitlines()
    other = [at for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert [before[at] for at in other] == [line for line in before if line.endswith(",")]
    for at, near in zip(other, (make()["load"], make()["wind"]), strict=True):
        head, value = after[at].rsplit(",", 1)
        assert head + "," == before[at]
        assert near.min() < float(value) < near.max()


@pytest.mark.parametrize("stage", ["impute", "detect"])
def test_stamps_of_a_csv_are_stamps_in_parquet(kept, tmp_path, stage):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'ptt_jax[parquet]'")
    path, out = tmp_path / "long.csv", tmp_path / "out.parquet"
    path.write_text(long())
    assert call(stage, kept, path, out) == 0
    found = pd.read_parquet(out)
    assert list(found)[:4] == ["unique_id", "when", "place", "y"]
    stamps = [row.split(",")[1] for row in long().splitlines()[1:]]
    assert list(found["when"]) == list(pd.to_datetime(stamps, format="%d.%m.%Y %H:%M"))
    assert set(found["unique_id"]) == {"007", "08"}


def test_decimal_commas_come_back_as_numbers(kept, tmp_path):
    path, out = tmp_path / "wide.csv", tmp_path / "out.csv"
    path.write_text(wide())
    assert call("impute", kept, path, out, "--config.data.columns=load,wind") == 0
    found = pd.read_csv(out)
    assert list(found) == ["when", "load", "wind"]
    assert list(found["when"]) == ODD
    assert found["load"].notna().all()
    np.testing.assert_array_equal(found["wind"], [float(f"{wind:.2f}") for wind in make()["wind"]])


def test_a_score_stands_behind_the_columns_of_its_row(kept, tmp_path):
    path, out, frame = tmp_path / "mine.csv", tmp_path / "out.csv", make()
    frame.loc[150, "wind"] += 50
    frame.to_csv(path, index=False)
    assert call("detect", kept, path, out) == 0
    found = pd.read_csv(out)
    assert list(found) == ["ds", "load", "wind", "load-score", "wind-score"]
    assert int(found["wind-score"].argmax()) == 150
    assert [line.split(",")[:3] for line in out.read_text().splitlines()] == [
        line.split(",") for line in path.read_text().splitlines()
    ]


@pytest.mark.parametrize(("flags", "horizon"), [([], 24), (["--config.horizons=7,"], 7)])
def test_what_needs_no_horizon_learns_for_a_season(kept, tmp_path, monkeypatch, flags, horizon):
    learned = []

    def fit(self, frame):
        learned.append((self.horizon, self.workdir, len(frame)))
        return Forecaster.load(kept / "kept")

    monkeypatch.setattr(Forecaster, "fit", fit)
    monkeypatch.setattr(Forecaster, "save", lambda self, folder: learned.append(folder))
    work = str(tmp_path / "work")
    argv = [f"--config.data.path={kept / 'mine.csv'}", f"--config.output={tmp_path / 'out.csv'}", f"--workdir={work}"]
    assert main.main(["detect", *argv, *flags]) == 0
    assert learned == [(horizon, work, ROWS), work]


@pytest.mark.parametrize(
    ("stage", "flag", "words"),
    [
        ("impute", "--config.levels=80,", "config.levels is for intervals, and this stage makes none"),
        ("detect", "--config.horizons=7,", "config.horizons is for learning"),
        ("detect", "--workdir=more", "--workdir is for learning"),
    ],
)
def test_what_a_kept_forecaster_has_no_use_for_is_refused(kept, tmp_path, capsys, stage, flag, words):
    assert call(stage, kept, kept / "mine.csv", tmp_path / "out.csv", flag) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_horizon_that_nobody_asked_for_fits_the_rows():
    for rows in (24, 30, 60, 100, 400):
        for season in (1, 24, 168):
            horizon = recipe.usual_horizon(rows, season)
            assert recipe.least_rows(horizon) <= rows or horizon == 1
            assert horizon in (season, recipe.MOST_HORIZON) or recipe.least_rows(horizon + 1) > rows


def test_ids_of_a_file_keep_their_zeros(tmp_path):
    (tmp_path / "long.csv").write_text("unique_id,ds,y\n" + "".join(f"007,2024-01-{d:02d},{d}\n" for d in range(1, 9)))
    cfg = config.default()
    cfg.data.path = str(tmp_path / "long.csv")
    cfg.output = str(tmp_path / "out.csv")
    assert set(userfile.read(cfg).frame["unique_id"]) == {"007"}


def test_a_stage_that_is_misspelt_is_named(capsys):
    assert main.main(["forecst", "--config.output=out.csv"]) == 2
    assert "stage forecst is unknown; accepted: forecast, impute, detect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.output=out.csv"], "config.data.path is empty"),
        (["--config.data.path={csv}"], "config.output is empty"),
        (["--config.data.path={csv}", "--config.output=out.txt"], "is no .csv, .parquet or .html file"),
        (["--config.data.path={csv}", "--config.output=out.csv", "--config.data.columns=lod"], "no column 'lod'"),
        (
            ["--config.data.path={csv}", "--config.output=out.csv", "--config.horizons=6,", "--config.backbone=none"],
            "none/backbone.json",
        ),
        (["--config.data.path={csv}", "--config.output=out.csv", "--config.levels=180,"], "config.levels"),
        (["--config.data.path={csv}", "--config.output=out.csv", "--config.levels=99.9,"], "up to 99.5"),
        (["--config.data.path={csv}", "--config.output=no/out.csv"], "there is no folder no"),
        (["--config.data.path={csv}", "--config.output=out.csv"], "config.horizons is not said"),
        (["--config.data.path={csv}", "--config.output=out.csv", "now"], "argument now is unknown"),
    ],
)
def test_a_stage_that_is_asked_wrongly_ends_with_a_sentence(tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    make().to_csv("mine.csv", index=False)
    assert main.main(["forecast", *(flag.format(csv="mine.csv") for flag in flags)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.csv"]
