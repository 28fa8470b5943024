"""Bad input, as it is typed: each case is one sentence that says where and what would be accepted, exit code 2, and
nothing written; what can be mended is mended, and said."""

import gzip
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from ptt_jax import cache, checkpoint, config, fitting, flags, foresight, frames, main, parcel, train, userfile
from ptt_jax.bank import Bank
from ptt_jax.errors import UserError
from ptt_jax.forecaster import Forecaster
from ptt_jax.knobs import KNOBS as ALL
from ptt_jax.knobs import anything

CONFIGS = Path(__file__).parent.parent / "configs"
ROWS = 300
STAMPS = [str(stamp) for stamp in pd.date_range("2024-01-01", periods=ROWS, freq="h")]
VALUES = [f"{100 + 20 * np.sin(2 * np.pi * t / 24) + t % 7:.3f}" for t in range(ROWS)]


def csv(stamps=STAMPS, values=VALUES, header: str = "ds,load", separator: str = ",") -> str:
    rows = (f"{s}{separator}{v}\n" for s, v in zip(stamps, values, strict=True))
    return header.replace(",", separator) + "\n" + "".join(rows)


def at(row: int, value: str, of: list[str] = VALUES) -> list[str]:
    """The column with another cell in a row of the file, whose header is row 1."""
    return [value if t == row - 2 else v for t, v in enumerate(of)]


GOOD = csv()
KNOBS = {
    "lookback": 48, "model.patch": 12, "model.width": 16, "model.mlp": 16, "model.heads": 2, "model.encoder_layers": 1,
    "pretrain.steps": 8, "pretrain.batch": 32, "pretrain.validations": 1, "pretrain.validation_rows": 32,
    "tune.steps": 4, "tune.batch": 32, "tune.validations": 1, "devices": 1, "cache_dir": "",
}  # fmt: skip
TINY = [f"--config.{key}={value}" for key, value in KNOBS.items()]
RUN = [f"--config={CONFIGS / 'csv.py'}", *TINY, "--config.horizons=12,24", "--workdir=run"]
OWN = [*RUN, "--config.data.path=mine.csv"]
MADE = [f"--config={CONFIGS / 'quickstart.py'}", *TINY, "--config.data.rows=600", "--workdir=run"]
LEARN = ["forecast", *TINY, "--config.horizons=12,", "--config.data.path=mine.csv", "--config.output=out.csv"]
ASK = ["--config.backbone=kept", "--config.data.path=mine.csv", "--config.output=out.csv"]
FORECAST, IMPUTE, DETECT = ["forecast", *ASK], ["impute", *ASK], ["detect", *ASK]
EXPORT = ["export", "--config.backbone=kept", "--config.output=out.stablehlo"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of a Forecaster, which is a run directory, too."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("kept")
    patch.chdir(folder)
    (folder / "mine.csv").write_text(GOOD)
    assert main.main([*LEARN, "--workdir=kept"]) == 0
    patch.undo()
    return folder / "kept"


class Reached(Exception):
    """What is asked for is as it must be: the first step of training would come."""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty folder to type in. Nothing is learned from there."""

    def reached(*_, **__):
        raise Reached

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(foresight, "look", reached)
    monkeypatch.setattr(train, "pretrain", reached)
    monkeypatch.setattr(main, "set_up", lambda cfg: None)
    for name in ("PTT_DATA_DIR", "PTT_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def everything(folder: Path) -> dict[str, tuple]:
    """Every file and folder, with what it holds and when it was written."""
    return {str(p): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in sorted(folder.rglob("*"))}


def put(desk: Path, kept: Path, files: dict) -> None:
    """Makes the files of a case: text, bytes, None for a folder; or what a function makes of a copy of `kept`."""
    for name, content in files.items():
        path = desk / name
        if callable(content):
            shutil.copytree(kept, path)
            content(path)
        elif content is None:
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)


class Case(NamedTuple):
    argv: list[str]
    words: tuple[str, ...]
    files: dict[str, Callable[[Path], object] | str | bytes | None]


def mine(content: str | bytes, *words: str, argv: list[str] = OWN, name: str = "mine.csv") -> Case:
    return Case(argv, words, {name: content})


def typed(argv: list[str], *words: str, **files) -> Case:
    return Case(argv, words, {"mine.csv": GOOD, **{name.replace("__", "."): f for name, f in files.items()}})


def edit(name: str, **changes) -> Callable[[Path], object]:
    """Changes entries of a JSON file of a kept folder."""

    def change(folder: Path) -> None:
        (path,) = folder.glob(name)
        content = json.loads(path.read_text()) | changes
        content.pop("seal", None)  # as one would do who edits it on purpose
        path.write_text(json.dumps(content))

    return change


def whole(folder: Path) -> None:
    """Leaves the folder as it is."""


def cut(name: str, end: int = -20) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (path,) = folder.glob(name)
        path.write_bytes(path.read_bytes()[:end])

    return change


def of_other_data(folder: Path) -> None:
    """Makes a run of the config of OWN on other data."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "config.json").write_text(config.to_json(flags.parse(OWN)[0]))
    (folder / "data.json").write_text(json.dumps({"name": "mine", "fingerprint": "0" * 64}))


def without(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (path,) = folder.glob(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def long(ids=("a", "b"), rows: int = 100) -> str:
    return "unique_id,ds,y\n" + "".join(
        f"{i},{s},{v}\n" for i in ids for s, v in zip(STAMPS[:rows], VALUES, strict=False)
    )


LONGEST = "x" * 5000
ADVICE = (
    r"accepted|give|nearest|there are|needs?\b|save it|put |write |leave |bring |rename |take "  # one of these words
)
SEED_OF_TEXT = """
from ptt_jax import config
def get_config():
    cfg = config.default()
    del cfg.seed
    cfg.seed = "0"
    return cfg
"""
CASES = {
    # what a file may hold, in a run
    "empty": mine("", "is empty"),
    "header only": mine("ds,load\n", "has a header and no rows; it needs one row for each time stamp"),
    "header only, no line end": mine("ds,load", "has a header and no rows"),
    "one row": mine("\n".join(GOOD.split("\n")[:2]), "mine.csv has 1 stamp; it needs 3"),
    "two rows": mine("\n".join(GOOD.split("\n")[:3]), "mine.csv has 2 stamps; it needs 3"),
    "few rows": mine("\n".join(GOOD.split("\n")[:40]),
        "mine: the train split has rows 0 to 27: too few for one window of 48 steps"),
    "only blank lines": mine("\n\n\n", "is empty or starts with a blank row"),
    "only separators": mine("ds,load\n,\n,\n,\n"),
    "text in a number column": mine(csv(values=at(9, "seven")), "'load', row 9: 'seven' is not a number"),
    "all missing": mine(csv(values=[""] * ROWS), "column 'load'"),
    "all missing as NA": mine(csv(values=["NA"] * ROWS), "'load'"),
    "nothing in training rows": mine(csv(values=[""] * 250 + VALUES[250:]), "'load'"),
    "nothing in test rows": mine(csv(values=VALUES[:240] + [""] * 60), "the test split has no value at all"),
    "infinite": mine(csv(values=at(9, "inf")), "row 9: 'inf' is infinite"),
    "minus infinite": mine(csv(values=at(9, "-Infinity")), "row 9: '-inf"),
    "1e300": mine(csv(values=at(9, "1e300")), "row 9: '1e+300' is infinite or more than a float32 holds"),
    "1e999": mine(csv(values=at(9, "1e999")), "row 9"),
    "400 digits": mine(csv(values=at(9, "9" * 400)), "row 9"),
    "complex": mine(csv(values=at(9, "1+2j")), "row 9: '1+2j' is not a number"),
    "hexadecimal": mine(csv(values=at(9, "0x1F")), "row 9: '0x1F' is not a number"),
    "thousands with commas": mine(csv(values=at(9, '"1,234.5"')), "row 9: '1,234.5' is not a number"),
    "half of the stamps twice": mine(csv([*STAMPS[:150], *STAMPS[:150]]), "rows have the stamp of a later row"),
    "half a millennium": mine(csv(["1700-01-01", *STAMPS[1:-1], "2199-12-31"]), "of 'h' makes 4382880 rows"),
    "one stamp for all": mine(csv([STAMPS[0]] * ROWS), "299 of 300 rows have the stamp of a later row"),
    "zones in some rows": mine(csv(at(9, f"{STAMPS[7]}+01:00", STAMPS)),
        "row 2 has no time zone and row 9 has '+01:00'"),
    "a stamp that is none": mine(csv(at(9, "soon", STAMPS)), "row 9: 'soon' is no time stamp"),
    "30 February": mine(csv(at(9, "2024-02-30 07:00", STAMPS)), "row 9: '2024-02-30 07:00' is no time stamp"),
    "25 o'clock": mine(csv(at(9, "2024-01-01 25:00", STAMPS)), "row 9"),
    "year 9999": mine(csv(at(301, "9999-12-31", STAMPS)), "row 301: '9999-12-31' is no time stamp"),
    "a stamp is missing": mine(csv(at(9, "", STAMPS)), "row 9: the cell is empty"),
    "off the grid": mine(csv(at(9, "2024-01-01 07:10", STAMPS)), "row 9: 2024-01-01 07:10:00 is not on the grid"),
    "a century away": mine(csv(at(301, "2124-01-01", STAMPS)), "makes"),
    "day or month": mine(csv([f"{1 + t % 12:02d}/{1 + t // 12 % 12:02d}/2024" for t in range(ROWS)])),
    "wrong separator": mine(csv(separator="|"), "fields between commas"),
    "spaces": mine(GOOD.replace(",", " "), "fields between commas"),
    "UTF-16": mine(GOOD.encode("utf-16"), "zero bytes); save it as csv in UTF-8"),
    "UTF-32": mine(GOOD.encode("utf-32"), "zero bytes"),
    "zero bytes": mine(GOOD.replace(VALUES[7], "1\0"), "zero bytes"),
    "zero bytes alone": mine(b"\0" * 4096, "zero bytes"),
    "a picture": mine(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "zero bytes"),
    "random bytes": mine(b"\r" + np.random.default_rng(0).integers(1, 256, 4096).astype(np.uint8).tobytes()),
    "a web page": mine("<!DOCTYPE html>\n<html><head><title>404</title></head>\n<body>Not found</body></html>\n"),
    "JSON": mine('{"ds": ["2024-01-01"],\n "load": [1.0]}\n'),
    "ragged, too wide": mine(csv(values=at(9, "1,2")), "line 9, saw 3", "every row needs 2 fields"),
    "ragged, too narrow": mine(GOOD.replace(f"{STAMPS[7]},{VALUES[7]}", "2024"), "row 9"),
    "a quote that never ends": mine(csv(values=at(9, '"1')), "mine.csv"),
    "a title above": mine("Load of 2024\n\n" + GOOD, "fields"),
    "no header": mine(GOOD.split("\n", 1)[1], "where column names are needed"),
    "names that repeat": mine("ds,load,load\n" + "".join(f"{s},1,2\n" for s in STAMPS), "2 columns are called 'load'"),
    "1 column": mine("load\n" + "\n".join(VALUES), "1 and 1 fields"),
    "no column of numbers": mine(csv(values=["x"] * ROWS), "no column of numbers besides 'ds'; there are"),
    "no column of time": mine("a,b\n" + "".join(f"{t},{v}\n" for t, v in enumerate(VALUES)), "no time column"),
    "a long table": mine(long(), "(a long table must be pivoted first)"),
    "a line of a million characters": mine(csv(values=at(9, "7x" * 500_000)), "row 9"),
    "no whole gzip": mine(gzip.compress(GOOD.encode())[:-20], "not a whole gzip file", argv=[*RUN,
        "--config.data.path=mine.csv.gz"], name="mine.csv.gz"),
    "gz that is no gzip": mine(GOOD, "not a whole gzip file", argv=[*RUN, "--config.data.path=mine.csv.gz"],
        name="mine.csv.gz"),
    "gzip without gz": mine(gzip.compress(GOOD.encode(), mtime=0)),
    "parquet that is none": mine(GOOD, "not a whole parquet file", argv=[*RUN, "--config.data.path=mine.parquet"],
        name="mine.parquet"),
    "empty parquet": mine("", "not a whole parquet file", argv=[*RUN, "--config.data.path=mine.parquet"],
        name="mine.parquet"),

    # where it lies, and how it is read
    "no path": typed(RUN, "config.data.path is empty"),
    "no file": typed([*RUN, "--config.data.path=none.csv"], "none.csv does not exist; give the path of a .csv"),
    "a folder for the file": typed([*RUN, "--config.data.path=folder"], "folder is a folder; give the path",
        folder=None),
    "a folder for a parquet file": typed([*RUN, "--config.data.path=a.parquet"], "a.parquet is a folder",
        a__parquet=None),
    "a file for a folder": typed([*RUN, "--config.data.path=mine.csv/x.csv"], "mine.csv/x.csv"),
    "a path too long": typed([*RUN, f"--config.data.path={LONGEST}.csv"], "config.data.path", "accepted"),
    "nobody's home": typed([*RUN, "--config.data.path=~nobody-at-all/x.csv"], "config.data.path"),
    "a path that is not UTF-8": typed([*RUN, "--config.data.path=\udcff.csv"], "config.data.path", "not UTF-8"),
    "a column that is not there": typed([*OWN, "--config.data.columns=laod"], "no column 'laod'", "nearest: 'load'"),
    "a column that is no number": mine(csv(values=["x"] * ROWS), "'load', row 2", argv=[*OWN,
        "--config.data.columns=load"]),
    "a time column that is not there": typed([*OWN, "--config.data.time_column=when"], "no column 'when'"),
    "a time column of numbers": typed([*OWN, "--config.data.time_column=load"], "'load', row 2"),
    "no such step": typed([*OWN, "--config.data.freq=hourly"], "config.data.freq = 'hourly' is no step"),
    "a step of nothing": typed([*OWN, "--config.data.freq=0h"], "config.data.freq = '0h'"),
    "a step back": typed([*OWN, "--config.data.freq=-1h"], "config.data.freq"),
    "a step too fine": typed([*OWN, "--config.data.freq=ns"], "step of 'ns'"),
    "a step out of time": typed([*OWN, "--config.data.freq=1000YS"], "leads out of the years that pandas can say"),
    "a step too coarse": typed([*OWN, "--config.data.freq=YS"], "grid of step 'YS'"),
    "an empty split": typed([*OWN, "--config.data.split=1.0,0.0,0.0"], "config.data.split", "three fractions above 0"),
    "a split of nothing": typed([*OWN, "--config.data.split=0.998,0.001,0.001"], "data.split", "empty"),
    "a split past the whole": typed([*OWN, "--config.data.split=0.9,0.9,0.9"], "that sum to 1"),
    "a split of text": typed([*OWN, "--config.data.split=most"], "config.data.split"),
    "a split of nan": typed([*OWN, "--config.data.split=nan,nan,nan"], "config.data.split"),
    "no data set": typed([*OWN, "--config.data.name=ETTh9"], "'ETTh9' is no data set; nearest: 'ETTh"),
    "no folder of data sets": typed([*OWN, "--config.data.name=ETTh1", "--config.data.dir=none"],
        "config.data.dir = 'none' is no folder"),
    "a data set of another shape": Case([*RUN, "--config.data.name=ETTh1"],
        ("300 rows and 1 number columns, but ETTh1 has 17420 and 7",), {"ETTh1.csv": GOOD.replace("ds", "date")}),
    "a data set that is nowhere": typed([*RUN, "--config.data.name=Traffic"], "traffic.csv was not found"),
    "the same series also": typed([*OWN, "--config.pretrain.also=mine.csv"], "config.pretrain.also names mine.csv"),
    "another series is broken": typed([*OWN, "--config.pretrain.also=other.csv"], "config.pretrain.also: other.csv",
        other__csv="ds,load\n"),
    "another series is nowhere": typed([*OWN, "--config.pretrain.also=other.csv"],
        "config.pretrain.also: other.csv does"),

    # knobs against each other
    "a horizon longer than the data": typed([*OWN, "--config.horizons=500,"], "to forecast; accepted: a longer split"),
    "a lookback longer than the data": typed([*OWN, "--config.lookback=4800"], "the train split has rows 0 to 210"),
    "a lookback shorter than a patch": typed([*OWN, "--config.lookback=6"],
        "config.lookback = 6 is no multiple of the patch length 12; accepted: 12 or 24"),
    "a patch that does not divide": typed([*OWN, "--config.model.patch=13"], "no multiple of the patch length 13"),
    "heads that do not divide": typed([*OWN, "--config.model.heads=3"], "config.model.width = 16",
        "a multiple of twice config.model.heads = 3"),
    "heads of one number": typed([*OWN, "--config.model.heads=16"], "config.model.width = 16"),
    "a batch that does not divide": typed([*OWN, "--config.devices=8", "--config.pretrain.batch=30"],
        "config.pretrain.batch = 30 does not divide by 8 devices; accepted: 24"),
    "a batch of tuning that does not divide": typed([*OWN, "--config.devices=8", "--config.tune.batch=30"],
        "config.tune.batch = 30"),
    "more devices than there are": typed([*OWN, "--config.devices=99"], "config.devices = 99, but there are 8"),
    "windows of one patch": typed([*OWN, "--config.lookback=12", "--config.pretrain.horizon=0"],
        "config.pretrain.horizon = 0"),
    "more rows than there are numbers": typed([*OWN, "--config.pretrain.steps=2000000000"], "config.pretrain asks for"),
    "quantiles of a whole model": typed([*OWN, "--config.tune.mode=full", "--config.tune.quantiles=0.1,0.9"],
        "config.tune.quantiles = (0.1, 0.9) is for prompts"),
    "seeds of a whole model": typed([*OWN, "--config.tune.mode=full", "--config.tune.seeds=3"],
        "config.tune.seeds = 3 is for prompts"),
    "shares to learn beside, and one in the end": typed(
        [*OWN, "--config.tune.linear_when=after", "--config.tune.linear_shares=0.5,"],
        "config.tune.linear_shares = (0.5,) are for prompts to learn beside"),
    "parts of nothing": typed([*OWN, "--config.tune.thaw=head"], "config.tune.thaw = 'head' does not go with"),
    "a series too large to make": typed([*MADE, "--config.data.channels=1000000000"], "config.data.rows = 600",
        "accepted: at most 100000000"),

    # what is typed
    "no config": typed(["--workdir=run"], "no --config=FILE given; accepted"),
    "two configs": typed([*OWN, *OWN], "2 --config=FILE given; accepted: one"),
    "an unknown knob": typed([*OWN, "--config.model.widht=3"],
        "config key model.widht does not exist; nearest: model.width"),
    "an unknown section": typed([*OWN, "--config.modle.width=3"], "modle.width does not exist"),
    "a section": typed([*OWN, "--config.model=3"], "config key model does not exist"),
    "a knob without a value": typed([*OWN, "--config.seed"],
        "config key seed has no value; accepted: --config.seed=VALUE"),
    "a knob with a blank": typed([*OWN, "--config.seed", "3"], "config key seed has no value"),
    "a flag that is none": typed([*OWN, "--wrokdir=x"], "argument --wrokdir=x is unknown; accepted"),
    "a word too many": typed([*OWN, "now"], "argument now is unknown"),
    "a stage that is none": typed(["forecst", *ASK], "stage forecst is unknown; accepted: forecast"),
    "text for a number": typed([*OWN, "--config.seed=many"], "config.seed = many is no int; accepted"),
    "a fraction for a whole number": typed([*OWN, "--config.seed=1.5"], "config.seed = 1.5 is no int"),
    "1e2 for a whole number": typed([*OWN, "--config.model.width=1e2"], "config.model.width = 1e2 is no int"),
    "a number for a choice": typed([*OWN, "--config.tune.mode=1"], "config.tune.mode = '1'", "accepted: one of prompt"),
    "horizons that descend": typed([*OWN, "--config.horizons=24,12"], "config.horizons = (24, 12)", "ascending"),
    "horizons of text": typed([*OWN, "--config.horizons=day"], "config.horizons"),
    "horizons of nothing": typed([*OWN, "--config.horizons=()"], "config.horizons = ()"),
    "a million characters": typed([*OWN, f"--config.tune.mode={'x' * 1_000_000}"], "config.tune.mode = 'xxx"),
    "a config that is nowhere": typed(["--config=none.py"], "--config=none.py is no file; accepted"),
    "a config that is a folder": typed(["--config=folder"], "--config=folder is no file", folder=None),
    "a config with a path too long": typed([f"--config={LONGEST}"], "--config"),
    "a config that is no Python": typed(["--config=my.py"], "--config=my.py cannot be used (SyntaxError",
        "accepted: a .py", my__py="def get_config(:\n"),
    "a config that divides by zero": typed(["--config=my.py"], "ZeroDivisionError", my__py="1 / 0\n"),
    "a config that exits": typed(["--config=my.py"], "--config=my.py", my__py="import sys\nsys.exit(3)\n"),
    "a config without get_config": typed(["--config=my.py"], "KeyError", my__py="x = 1\n"),
    "a config of another kind": typed(["--config=my.py"], "get_config() returned dict; accepted",
        my__py="def get_config():\n    return {}\n"),
    "a config of zero bytes": typed(["--config=my.py"], "--config=my.py cannot be used", my__py=b"\0\0"),
    "a config with a knob of another type": typed(["--config=my.py"], "config.seed = '0' is a str; accepted",
        my__py=SEED_OF_TEXT),
    "a config.json that breaks off": typed(["--config=my.json"], "--config=my.json cannot be used (JSONDecodeError",
        my__json='{"seed": '),
    "a config.json of a list": typed(["--config=my.json"], "--config=my.json cannot be used", my__json="[1, 2]"),
    "a config.json of later knobs": typed(["--config=my.json"], "config key model.rank does not exist",
        my__json=json.dumps(config.default().to_dict() | {"model": {"rank": 3}})),
        "a config.json with a section for a knob": typed(["--config=my.json"], "config",
        my__json=json.dumps(config.default().to_dict() | {"seed": {"a": 1}})),
    "a config.json with a knob for a section": typed(["--config=my.json"], "config",
        my__json=json.dumps(config.default().to_dict() | {"model": 3})),
    "a config.json with zero bytes in a path": typed(["--config=my.json"], "config.backbone",
        my__json=json.dumps(config.default().to_dict() | {"backbone": "a\0b"})),
    "a config.json of nan": typed(["--config=my.json"], "config.seed = nan",
        my__json=json.dumps(config.default().to_dict() | {"seed": float("nan")})),
    "a config.json of text for horizons": typed(["--config=my.json"], "config.horizons",
        my__json=json.dumps(config.default().to_dict() | {"horizons": ["12", None]})),

    # where it goes
    "a file for the run": typed([*OWN, "--workdir=mine.csv"], "--workdir=mine.csv: File exists; accepted"),
    "a run under a file": typed([*OWN, "--workdir=mine.csv/run"], "--workdir=mine.csv/run: Not a directory; accepted"),
    "a run where nothing can be made": typed([*OWN, "--workdir=/proc/run"], "--workdir=/proc/run",
        "accepted: a directory that can be written"),
    "a run in a folder of something else": typed([*OWN, "--workdir=full"],
        "--workdir=full is not empty and holds no config.json", **{"full/x": None}),
    "a run with a path too long": typed([*OWN, f"--workdir={LONGEST}"], "--workdir"),
    "a run of another config": typed([*OWN, "--workdir=kept"], "kept holds a run with config.",
        "accepted: the same config, or another --workdir", kept=whole),
    "a run whose config.json is none": typed([*OWN, "--workdir=kept"], "kept/config.json cannot be read as JSON",
        kept=cut("config.json")),
    "a trace under a file": typed([*OWN, "--profile=mine.csv/x"], "--profile=mine.csv/x: Not a directory; accepted"),
    "a trace without a folder": typed([*OWN, "--profile"], "accepted: --profile=DIR"),
    "processes of no number": typed([*OWN, "--distributed=here"], "--distributed"),

    # backbones
    "no backbone": typed([*OWN, "--config.backbone=none"], "none/backbone.json does not exist; accepted"),
    "a file for the backbone": typed([*OWN, "--config.backbone=mine.csv"], "mine.csv/backbone.json"),
    "a backbone with a path too long": typed([*OWN, f"--config.backbone={LONGEST}"], "config.backbone"),
    "a backbone and further series": typed([*OWN, "--config.backbone=kept", "--config.pretrain.also=mine.csv"],
        "one of the two", kept=whole),
    "a backbone of another patch": typed([*OWN, "--config.backbone=kept", "--config.lookback=50"],
        "config.lookback = 50 is no multiple of the patch length 12", kept=whole),
    "a backbone without weights": typed(FORECAST, "backbone does not exist; accepted",
        kept=without("backbone")),
    "a backbone of other weights": typed(FORECAST, "content hash differs", kept=edit("backbone.json",
        content_hash="0" * 64)),
    "a backbone of another architecture": typed(FORECAST, "does not fit", kept=edit("backbone.json",
        architecture={"patch": 12, "width": 32, "mlp": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1,
        "position": "rotary", "decoder_attention": "cross", "hiding": "feature", "patches": 5})),
    "a backbone of an architecture that is none": typed(FORECAST,
        "the architecture in backbone.json, {'patch': 'x'}, is none", kept=edit("backbone.json",
        architecture={"patch": "x"})),
    "a backbone of an architecture of later knobs": typed(FORECAST, "backbone.json", kept=edit("backbone.json",
        architecture={"rank": 3})),
    "a backbone that refers to itself": typed(FORECAST, "leads back to itself", kept=lambda f: edit("backbone.json",
        run=str(f))(f)),
    "backbone.json of a list": typed(FORECAST, "backbone.json cannot be read as JSON",
        kept=lambda f: (f / "backbone.json").write_text("[]")),
    "a prompt of another backbone": typed(FORECAST, "belongs to backbone 000000000000", kept=edit("prompts/*.json",
        backbone="0" * 64)),
    "a prompt of other tokens": typed(FORECAST, "content hash differs", kept=edit("prompts/*.json",
        content_hash="0" * 64)),
    "a prompt of another version": typed(FORECAST, "another version of ptt_jax (format 99", kept=edit("prompts/*.json",
        format=99)),
    "a prompt of another shape": typed(FORECAST, "does not fit", kept=edit("prompts/*.json", shapes={"12": [1, 1, 9,
        16]})),
    "a prompt card without its shapes": typed(FORECAST, "prompts/", kept=edit("prompts/*.json", shapes=None)),
    "no prompt": typed(FORECAST, "prompts/", kept=without("prompts")),
    "a Forecaster of another version": typed(FORECAST, "forecaster.json has format 99; accepted: 1",
        kept=edit("forecaster.json", format=99)),
    "a Forecaster that breaks off": typed(FORECAST, "forecaster.json cannot be read as JSON",
        kept=cut("forecaster.json")),
    "intervals that break off": typed(FORECAST, "does not hold a whole Forecaster", kept=cut("forecaster.npz")),
    "no intervals": typed(FORECAST, "does not hold a whole Forecaster", kept=without("forecaster.npz")),
    "a Forecaster of parameters that are none": typed(FORECAST, "kept", kept=edit("forecaster.json",
        params={"later": 1})),
    "a Forecaster without its last rows": typed(FORECAST, "does not hold a whole Forecaster",
        kept=edit("forecaster.json", tail={"columns": 3})),
    "another data set's run": typed([*OWN, "--workdir=run"], "run holds a run on other data than mine holds now",
        run=of_other_data),

    # stages
    "forecast of no file": typed(["forecast", "--config.output=out.csv"], "config.data.path is empty"),
    "forecast to no file": typed(["forecast", "--config.data.path=mine.csv"], "config.output is empty", ".html"),
    "forecast of no horizon": typed([*LEARN[:1], *LEARN[-2:]], "config.horizons is not said; accepted"),
    "forecast to another kind": typed([*LEARN, "--config.output=out.txt"],
        "'out.txt' is no .csv, .parquet or .html file"),
    "forecast to a folder": typed([*LEARN, "--config.output=folder"], "config.output = 'folder'", folder=None),
    "forecast to a folder of a name": typed([*LEARN, "--config.output=out.csv"], "config.output = 'out.csv'",
        out__csv=None),
    "forecast to no folder": typed([*LEARN, "--config.output=none/out.csv"], "there is no folder none"),
    "forecast under a file": typed([*LEARN, "--config.output=mine.csv/out.csv"], "there is no folder mine.csv"),
    "forecast where nothing can be written": typed([*LEARN, "--config.output=/proc/out.csv"], "/proc", "accepted"),
    "forecast with a path too long": typed([*LEARN, f"--config.output={LONGEST}.csv"], "config.output"),
    "forecast over its own file": typed([*FORECAST, "--config.output=./mine.csv"],
        "is the file to forecast; accepted: another path", kept=whole),
    "forecast of too short a file": mine("\n".join(GOOD.split("\n")[:20]),
        "series of 19 rows are too short; accepted: at least", argv=LEARN),
    "forecast of a header": mine("ds,load\n", "has a header and no rows", argv=LEARN),
    "forecast of one row": mine("\n".join(GOOD.split("\n")[:2]), "mine.csv", "no series has 3 stamps", argv=LEARN),
    "forecast of nothing but gaps": mine(csv(values=[""] * ROWS), "no series has a value in its first 240 rows",
        argv=LEARN),
    "forecast of text": mine(csv(values=at(9, "seven")), "mine.csv, column 'load', row 9: 'seven' is not a number",
        argv=LEARN),
    "forecast of the infinite": mine(csv(values=at(9, "-inf")), "mine.csv, column 'load', row 9: '-inf' is infinite",
        argv=LEARN),
    "forecast of ids that are missing": mine(long().replace("b,", ",", 1),
        "mine.csv, rows counted from 0: the frame, column 'unique_id', row 100: the id is missing", argv=LEARN),
    "forecast of two steps": mine(long(("a",)) + "".join(f"b,2024-{m:02d}-01,{m}\n" for m in range(1, 13)),
        "mine.csv, rows counted from 0: series 'a' has the step 'h' and series 'b' another", argv=LEARN),
    "forecast of a coarse series beside a crooked one": mine(
        "unique_id,ds,y\n" + "".join(f"b,{s},1\n" for s in STAMPS[:80:2])
        + long(("a",)).replace(STAMPS[9], "2024-01-01 09:10").split("\n", 1)[1],
        "no two stamps of series 'b' are one step of 'h' apart", argv=LEARN),
    "forecast of an empty end": Case(FORECAST, ("without a value in the last",), {"kept": whole,
        "mine.csv": csv(values=VALUES[:200] + [""] * 100)}),
    "forecast of another step": Case(FORECAST, ("mine.csv", "rows are 24 steps of 'h' apart, which kept learned"),
        {"kept": whole, "mine.csv": csv([f"2024-{1 + d // 28:02d}-{1 + d % 28:02d}" for d in range(30)], VALUES[:30])}),
    "forecast further than was tuned": typed([*FORECAST, "--config.horizons=99,"],
        "the prompt was tuned for 12 steps; accepted: 1 to 12", kept=whole),
    "forecast with a knob of learning": typed([*FORECAST, "--config.model.width=32"],
        "config.model.width is for learning", kept=whole),
    "forecast of levels past the table": typed([*FORECAST, "--config.levels=99.99,"], "levels", kept=whole),
    "forecast of a level of 0": typed([*FORECAST, "--config.levels=0.0,"], "config.levels = (0.0,)", kept=whole),
    "impute to a page": typed([*IMPUTE, "--config.output=out.html"], "'out.html' is no .csv or .parquet file",
        kept=whole),
    "impute of nothing": Case(IMPUTE, ("mine.csv is empty",), {"kept": whole, "mine.csv": ""}),
    "impute with levels": typed([*IMPUTE, "--config.levels=80,"], "config.levels is for intervals", kept=whole),
    "detect of a column that is not there": typed([*DETECT, "--config.data.columns=wind"], "no column 'wind'",
        kept=whole),
    "detect of a name that is taken": Case(DETECT, ("'load-score'",), {"kept": whole,
        "mine.csv": "ds,load,load-score\n" + "".join(f"{s},{v},1\n" for s, v in zip(STAMPS, VALUES, strict=True))}),
    "detect of windows of no patches": typed(["detect", *TINY, *ASK[1:], "--config.detect.window=7"],
        "config.detect.window = 7"),
    "export of nothing": typed(["export", "--config.output=out.stablehlo"], "config.backbone is empty"),
    "export to nothing": typed(["export", "--config.backbone=kept"], "config.output is empty", kept=whole),
    "export of no folder": typed(EXPORT, "kept/config.json does not exist"),
    "export to another kind": typed([*EXPORT, "--config.output=out.onnx"], "accepted: a path like model.stablehlo",
        kept=whole),
    "export to no folder": typed([*EXPORT, "--config.output=none/out.stablehlo"], "there is no folder none",
        kept=whole),
    "export beside a stranger's page": typed(EXPORT, "out.json, and something else is there; accepted: another name",
        kept=whole, out__json='{"mine": 1}'),
    "export beside a page that is none": typed(EXPORT, "out.json, and something else is there; accepted: another name",
        kept=whole, out__json="not json"),
    "export of a horizon that is none": typed([*EXPORT, "--config.horizons=7,"],
        "has no horizon 7 to export; accepted: 12", kept=without("forecaster.json")),
    "export with a knob": typed([*EXPORT, "--config.seed=1"], "config.seed changes nothing", kept=whole),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_and_nothing_is_written(name, desk, kept, capsys):
    case = CASES[name]
    put(desk, kept, case.files)
    before = everything(desk)
    assert main.main(case.argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert err.startswith("ptt_jax: ")
    assert len(err) < 1000
    assert re.search(ADVICE, err), err
    for words in case.words:
        assert words in err
    assert everything(desk) == before


def knob_values() -> Iterator[tuple[str, str, bool]]:
    """Yields every knob with values, and whether each must be refused: what is absurd for one may do for another."""
    for key, standard, rule, _ in ALL:
        kind = type(standard)
        if kind is bool:
            never, maybe = ["maybe", "2", "", "None", "1.5"], []
        elif kind is tuple:
            never, maybe = (
                ["-1.0,", "nan,", "inf,", "word", "0.5,word", "'',", "None,"],
                ["()", "2.0,1.0", "1e300,1e301"],
            )
        elif kind is str:
            never, maybe = (
                ["\udcff", "word"] if rule is not anything else ["\udcff"],
                ["", "0", "-1", "x" * 5000],
            )
        else:
            never = ["-7", "nan", "inf", "-inf", "word", "", "None", "1,2", "()"] + ["1.5", "1e3"] * (kind is int)
            maybe = ["0", "1"] + ([f"{2**31}", f"{10**30}"] if kind is int else ["1e300", "1e-300", "1e30"])
        yield from ((key, value, True) for value in never)
        yield from ((key, value, False) for value in maybe)


@pytest.mark.parametrize("key", [key for key, *_ in ALL])
def test_a_knob_of_any_value_is_refused_in_one_sentence_or_would_be_learned_with(key, desk, capsys):
    for name, value, never in knob_values():
        if name == key:
            shutil.rmtree(desk / "run", ignore_errors=True)
            try:
                code = main.main([*MADE, f"--config.{key}={value}"])
            except Reached:
                code = 0
            err = capsys.readouterr().err
            assert code in ((2,) if never else (0, 2)), value
            if code:
                assert re.fullmatch(rf"ptt_jax: .*({ADVICE}).*\n", err), err
                assert not (desk / "run").exists()


LINES = GOOD.splitlines()
ZONES = [str(s) for s in pd.date_range("2024-03-25", periods=ROWS, freq="h", tz="Europe/Berlin")]
# what a file may hold, and what is said of it: '' where there is nothing to say
NOTED = {
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD.encode(), ""),
    "line ends of Windows": (GOOD.replace("\n", "\r\n"), ""),
    "line ends of an old Mac": (GOOD.replace("\n", "\r"), ""),
    "no line end": (GOOD.rstrip("\n"), ""),
    "blank lines at the end": (GOOD + "\n\n,\n", ""),
    "blanks around": (GOOD.replace(",", " , "), ""),
    "quotes": (re.sub(r"[^,\n]+", r'"\g<0>"', GOOD), ""),
    "bytes of latin-1": (GOOD.replace("load", "Wärme").encode("latin-1"), "not UTF-8; the file is read as latin-1"),
    "decimal commas": (csv(values=[v.replace(".", ",") for v in VALUES], separator=";"), "read as decimal points"),
    "rows out of order": ("\n".join([LINES[0], *LINES[:0:-1]]), "rows were out of order"),
    "a row twice": ("\n".join([*LINES[:50], LINES[49], *LINES[50:]]), "1 row with the stamp of a later row dropped"),
    "rows that are missing": ("\n".join(LINES[:50] + LINES[60:]), "to close 1 gap"),
    "zones that change": (csv(ZONES), "2 offsets (+01:00, +02:00) and were converted to UTC"),
    "one zone": (csv([f"{s}+05:30" for s in STAMPS]), "kept as the clock with offset +05:30 showed them"),
    "day before month": (csv([f"{s:%d/%m/%Y %H:%M}" for s in pd.DatetimeIndex(STAMPS)]), "are read as day/month"),
    "a day that ends at 24:00": (GOOD.replace("2024-01-02 00:00:00", "2024-01-01 24:00"), ""),
    "a column of words": (csv([f"{s},x" for s in STAMPS], header="ds,place,load"), "1 column without numbers left out"),
    "row numbers": (csv([f"{t},{s}" for t, s in enumerate(STAMPS)], header=",ds,load"), "1 column without numbers"),
    "cells as NA": (csv(values=at(9, "NA", at(99, "", at(199, "null")))) , ""),
    "a series that stands still": (csv(values=["7"] * ROWS), ""),
    "a series that hardly moves": (csv(values=[f"100000000.00000{t % 2}" for t in range(ROWS)]), ""),
    "very large values": (csv(values=[f"{t % 7 + 1}e30" for t in range(ROWS)]), ""),
    "very small values": (csv(values=[f"{t % 7}e-30" for t in range(ROWS)]), ""),
    "a name of many characters": (GOOD.replace("load", "l" * 9999), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTED)
def test_what_can_be_mended_is_mended_and_said(name, desk, kept, capsys):
    """In a run, and where somebody's Forecaster is asked; then what comes out is finite."""
    content, words = NOTED[name]
    put(desk, kept, {"mine.csv": content, "kept": whole})
    with pytest.raises(Reached):
        main.main(OWN)
    run = capsys.readouterr()
    assert main.main(FORECAST) == 0
    asked = capsys.readouterr()
    assert words in run.out
    assert words in asked.out
    assert run.err + asked.err == ""
    found = pd.read_csv("out.csv").drop(columns="ds")
    assert len(found) == 12
    assert np.isfinite(found.to_numpy()).all()


def test_ten_thousand_columns_are_a_series(desk):
    names, rows = ",".join(f"c{i}" for i in range(10_000)), (f"{s}{',1.5' * 10_000}\n" for s in STAMPS)
    put(desk, desk, {"mine.csv": f"ds,{names}\n{''.join(rows)}"})
    with pytest.raises(Reached):
        main.main(OWN)


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame({"ds": pd.DatetimeIndex(STAMPS), "load": np.array(VALUES, float), **columns})


# what is called, with a Forecaster and a bank of it
CALLS = {
    "a bank that is nowhere": (lambda f, b: Bank.open("none"), "none is no bank; accepted: a folder that Bank.create"),
    "a bank that is a file": (lambda f, b: Bank.open("mine.csv"), "mine.csv is no bank"),
    "a bank that is a run": (lambda f, b: Bank.open(f.fitted.folder), "is no bank; accepted"),
    "a task that is no file of a bank": (lambda f, b: parcel.read(Path("mine.csv"), ""), "is no task of a bank ("),
    "compiled programs under a file": (lambda f, b: cache.use("mine.csv/x"), "config.cache_dir = 'mine.csv/x': "),
    "a bank over something": (lambda f, b: Bank.create("mine.csv", f), "something is there; accepted: a new folder"),
    "a bank under a file": (lambda f, b: Bank.create("mine.csv/bank", f), "Bank.create('mine.csv/bank')"),
    "an infinite history": (lambda f, b: b.forecast(["a"], np.full((1, 48), -np.inf)), "of row 0, task 'a', is"),
    "a history of text": (lambda f, b: b.forecast(["a"], np.full((1, 48), "x")), "histories that are no numbers"),
    "a history of objects": (lambda f, b: b.forecast(["a"], np.full((1, 48), {}, object)), "that are no numbers"),
    "a task that is none": (lambda f, b: b.forecast(["c"], np.zeros((1, 48))), "task 'c' is not in the bank"),
    "a task without a name": (lambda f, b: b.forecast([""], np.zeros((1, 48))), "'' of a task makes no file's"),
    "no frame": (lambda f, b: f.predict({"ds": [1]}), "a dict was given; accepted: a pandas DataFrame"),
    "a frame without rows": (lambda f, b: f.predict(frame()[:0]), "the frame has no rows"),
    "infinite values": (lambda f, b: f.predict(frame(wind=np.inf)), "series 'wind' at 2024-01-01 00:00:00 (row 0): "),
    "complex values": (lambda f, b: f.predict(frame(load=1j)), "no column of numbers besides 'ds'"),
    "dates for values": (lambda f, b: f.predict(frame(load=pd.NaT)), "no column of numbers besides 'ds'"),
    "no stamp at all": (lambda f, b: f.predict(frame(ds=pd.NaT)), "column 'ds', row 0: the cell is empty"),
    "levels of text": (lambda f, b: f.predict(levels="80"), "levels = '80' holds '80'; accepted"),
    "a horizon of a fraction": (lambda f, b: f.predict(horizon=1.5), "predict(horizon=1.5)"),
    "a folder of something to save in": (lambda f, b: f.save("mine.csv"), "something else is there; accepted"),
    "no folder to save in": (lambda f, b: f.save("mine.csv/x"), "save('mine.csv/x')"),
    "nobody's folder to save in": (lambda f, b: f.save("~nobody-at-all/x"), "accepted: a path that can"),
    "a horizon of text": (lambda f, b: Forecaster("12").fit(frame()), "Forecaster(horizon='12'): accepted"),
    "a seed below 0": (lambda f, b: Forecaster(12, seed=-1).fit(frame()), "Forecaster(seed=-1): accepted"),
    "a seed too large": (lambda f, b: Forecaster(12, seed=2**40).fit(frame()), "config.seed"),
    "a step finer than the stamps": (
        lambda f, b: Forecaster(12, freq="500ms").fit(frame(ds=pd.DatetimeIndex(STAMPS).as_unit("s"))),
        "freq = '500ms' is no whole number of s"),
    "a step of another kind": (lambda f, b: Forecaster(12, freq=[1]).fit(frame()), "freq"),
    "knobs that are none": (lambda f, b: Forecaster(12, knobs=5).fit(frame()), "knobs"),
    "a knob by number": (lambda f, b: Forecaster(12, knobs={5: 1}).fit(frame()), "knobs"),
    "a knob of another type": (lambda f, b: Forecaster(12, knobs={"tune.steps": "4"}).fit(frame()), "tune.steps"),
    "a knob out of range": (lambda f, b: Forecaster(12, knobs={"tune.steps": -4}).fit(frame()), "steps = -4"),
    "a patch that does not divide": (lambda f, b: Forecaster(12, patch=7, lookback=48).fit(frame()), "multiple of the"),
    "a file for a workdir": (lambda f, b: Forecaster(12, workdir="mine.csv").fit(frame()), "mine.csv: File exists"),
    "a name of another type": (lambda f, b: Forecaster(12, name=5).fit(frame()), "name"),
    "a column of a list": (lambda f, b: Forecaster(12, time_column=["ds"]).fit(frame()), "time_column"),
    "a column of another type": (lambda f, b: Forecaster(12, target_column=None).fit(frame()), "target_column"),
    "a backbone of another type": (lambda f, b: Forecaster(12).tune(frame(), 5), "5"),
    "a parameter that is none": (lambda f, b: f.set_params(horizn=3), "no parameter 'horizn'; nearest: horizon"),
}  # fmt: skip


@pytest.fixture(scope="module")
def both(kept):
    """The Forecaster, and a bank with its task 'a'."""
    forecaster = Forecaster.load(kept)
    bank = Bank.create(kept.parent / "bank", forecaster)
    bank.add("a", forecaster)
    return forecaster, bank


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call_is_one_sentence_and_nothing_is_written(name, desk, kept, both):
    put(desk, kept, {"mine.csv": GOOD})
    before, (call, words) = everything(desk) | everything(kept.parent), CALLS[name]
    with pytest.raises(UserError) as e:
        call(*both)
    assert words in str(e.value)
    assert "\n" not in str(e.value)
    assert everything(desk) | everything(kept.parent) == before
    assert "" not in both[1]


def test_numbers_of_numpy_are_saved(desk, kept):
    model = Forecaster.load(kept).set_params(season=np.int64(24))
    assert Forecaster.load(model.save("again")).get_params()["season"] == 24
    Bank.create("bank", model).add("a", model)


def test_what_a_backbone_has_learned_otherwise_is_said(desk, kept):
    """By a warning: the same arguments may serve to pre-train and to tune."""
    card = checkpoint.find_backbone(kept)
    for knobs, patch, words in (
        ({"pretrain.steps": 8, "model.width": 16}, 12, ""),
        ({"pretrain.steps": 9}, 0, "knobs['pretrain.steps']: of no effect, since the backbone has learned already"),
        ({"model.width": 32}, 24, "patch, knobs['model.width']: of no effect"),
    ):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            params = Forecaster(12, lookback=48, patch=patch, knobs=knobs).get_params()
            fitting.settle(frames.read(frame()), fitting.Wish.of(params), card)
        assert [words in str(w.message) for w in found] == [True] * bool(words)


def test_ids_called_na_are_ids(desk):
    (desk / "mine.csv").write_text(long(("NA", "007", "null")))
    cfg = flags.parse_stage([*ASK])[0]
    file = userfile.read(cfg)
    assert [*file.frame["unique_id"].unique()] == ["NA", "007", "null"]
    assert [*file.cells["unique_id"].unique()] == ["NA", "007", "null"]
