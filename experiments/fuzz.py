"""Property-based fuzzing: whatever is typed or lies in a file, it is taken as it must be, or refused in one sentence.

    python experiments/fuzz.py [--examples=20000] [--only=csv,frames,config,json,windows] [--seed=0]

Five properties by hypothesis: bytes of a csv, read by a run and by a stage; DataFrames of many kinds; knobs as typed;
a config.json; and windows of series of any length, against plain slicing. `tests/test_fuzz.py` runs a few hundred
examples of each. An example counts as `broken` when it ends in any exception but a UserError of one line, in a result
that is not well-formed, or in nothing after 20 seconds. results/fuzz.csv has the counts.
"""

import argparse
import collections
import contextlib
import gzip
import json
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from ptt_jax import config, data, flags, frames, scaling, userfile, windows
from ptt_jax.errors import UserError
from ptt_jax.knobs import KNOBS

HERE = Path(__file__).parent
LONGEST = 2000  # characters of a sentence
SECONDS = 20  # after which an example hangs
ODD = [
    "", "NA", "nan", "inf", "-Infinity", "1e300", "1e999", "-0", "007", "1,5", "1.234,5", "0x1F", "1_000", "True", "١٢",
    "2024-01-01", "2024-02-30", "01/02/2024", "31.12.2023 24:00", "9999-12-31", "0001-01-01", "2024-01-01T00:00Z",
    "2024-01-01 00:00+14:00", "1700000000", "20240101", "12:30", '"', '""', "'", "\t", "\r", "\0", "\ufeff", "=1+1",
    "9" * 400, "x" * 300, "date", "ds", "y", "unique_id",
]  # fmt: skip
FREQS = ["h", "15min", "D", "B", "W-MON", "MS", "QE", "YS", "s", "7h", "3D"]


def well_formed(ok: bool, what: str) -> None:
    if not ok:
        raise AssertionError(what)


def outcome(ask: Callable[[], Any]) -> str:
    """Returns 'taken', or 'refused' after a UserError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ask()
    except UserError as e:
        text = " ".join(str(e).split())
        well_formed(0 < len(text) < LONGEST, f"a sentence of {len(text)} characters: {text[:200]}")
        return "refused"
    return "taken"


# ---- csv ----


@st.composite
def cells(draw: Any) -> list[list[str]]:
    """Rows of a file: a header, then stamps and numbers, some of them odd."""
    rows, columns = draw(st.sampled_from([0, 1, 2, 3, 9, 30, 40, 40, 40])), draw(st.integers(1, 4))
    start = draw(st.sampled_from(["2024-01-01", "2023-03-25 22:00", "1969-12-31", "2199-12-30"]))
    stamps = pd.date_range(start, periods=rows, freq=draw(st.sampled_from(FREQS)))
    forms = ["%Y-%m-%d %H:%M:%S"] * 3 + ["%d.%m.%Y %H:%M", "%m/%d/%Y", "%Y%m%d", "%Y-%m-%dT%H:%MZ", "%H:%M"]
    form = draw(st.sampled_from(forms))
    name = st.one_of(st.sampled_from(["load", "wind", "a b", "", "p", "q"]), st.sampled_from(["load", "z", "y", *ODD]))
    names = draw(st.lists(name, min_size=columns, max_size=columns))
    time = draw(st.sampled_from(["date", "ds", "when", "", "Timestamp"]))
    table = [
        [time, *names],
        *([f"{s:{form}}", *(f"{t % 7}.{c}" for c in range(columns))] for t, s in enumerate(stamps)),
    ]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2, 4]))):
        row = draw(st.integers(0, len(table) - 1))
        table[row][draw(st.integers(0, columns))] = draw(st.sampled_from(ODD))
    change = draw(st.sampled_from(["", "", "", "shuffle", "twice", "drop", "ragged", "reverse"]))
    body = table[1:]
    if change == "shuffle":
        body = draw(st.permutations(body))
    elif change == "reverse":
        body = body[::-1]
    elif change == "twice":
        body = body + body[: draw(st.integers(0, len(body)))]
    elif change == "drop" and body:
        del body[draw(st.integers(0, len(body) - 1))]
    elif change == "ragged" and body:
        at = draw(st.integers(0, len(body) - 1))
        body[at] = body[at][: draw(st.integers(0, columns))] or [*body[at], "9"]
    return [table[0], *body]


@st.composite
def csv_bytes(draw: Any) -> tuple[str, bytes]:
    """A file's name and bytes."""
    separator, end = draw(st.sampled_from(",,,,,,;;\t\t| ")), draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    text = end.join(separator.join(row) for row in draw(cells())) + draw(st.sampled_from([end, "", end * 3, "\x1a"]))
    codec = draw(st.sampled_from(["utf-8"] * 8 + ["utf-8-sig", "latin-1", "utf-16", "cp037"]))
    raw = bytearray(text.encode(codec, errors="replace"))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 3]))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "put", "copy"])):
            case "flip" if raw:
                raw[at] = draw(st.integers(0, 255))
            case "cut":
                del raw[at : at + draw(st.integers(0, 30))]
            case "put":
                raw[at:at] = draw(st.binary(max_size=9))
            case "copy":
                raw[at:at] = raw[at : at + draw(st.integers(0, 60))]
    name = draw(st.sampled_from(["mine.csv"] * 10 + ["mine.csv.gz", "mine.parquet"]))
    whole = (
        gzip.compress(bytes(raw)) if name.endswith(".gz") and draw(st.sampled_from([True, True, False])) else bytes(raw)
    )
    return name, whole


def read_csv(folder: Path, file: tuple[str, bytes], freq: str, columns: str) -> str:
    """A run's series is finite and in order; a stage's frame is read as one table. A file that is one for a run is one
    for a stage, or is refused there with a sentence."""
    path = folder / file[0]
    path.write_bytes(file[1])
    cfg = config.default()
    cfg.data.update(name="csv", path=str(path), freq=freq, columns=columns)
    cfg.output = str(folder / "out.csv")

    def run() -> None:
        series = data.load(cfg.data)
        rows, channels = series.values_TC.shape
        well_formed(series.values_TC.dtype == np.float32 and bool(np.isfinite(series.values_TC).all()), "values")
        well_formed(series.observed_TC.shape == (rows, channels) and len(series.names_C) == channels > 0, "shapes")
        well_formed(len(series.stamps_T) == rows and bool((np.diff(series.stamps_T.asi8) > 0).all()), "stamps")
        well_formed([*series.splits] == ["train", "validation", "test"], "splits")
        borders = [b for split in series.splits.values() for b in split]
        well_formed(borders == sorted(borders) and borders[0] == 0 and borders[-1] == rows, "borders")
        well_formed(all("\n" not in note for note in series.notes), "notes")
        scaled = scaling.fit_scaler(series).transform(series.values_TC)
        well_formed(bool(np.isfinite(scaled).all()), "scaled values")

    def stage() -> None:
        file = userfile.read(cfg)
        check_table(userfile.series(file, freq), 5)
        userfile.as_written(file.frame, file)

    return f"{outcome(run)} by a run, {outcome(stage)} by a stage"


# ---- frames ----


@st.composite
def dataframes(draw: Any) -> pd.DataFrame:
    """Long and wide frames: any step, zone and dtype, gaps, repeats, disorder, odd cells."""
    freq = draw(st.sampled_from(FREQS))
    zone = draw(st.sampled_from([None, None, "UTC", "Europe/Berlin", "America/St_Johns"]))
    start = draw(
        st.sampled_from(
            ["2024-01-01", "2024-01-01", "2024-03-29", "2024-10-25", "1700-01-01", "2261-12-01", "2199-12-31"]
        )
    )
    parts = []
    for name in "abc"[: draw(st.integers(1, 3))]:
        rows = draw(st.integers(0, 30))
        with contextlib.suppress(ValueError, OverflowError):  # past what pandas can say
            parts.append(pd.DataFrame({
                "unique_id": name, "ds": pd.date_range(start, periods=rows, freq=freq, tz=zone),
                "y": np.arange(rows, dtype=float) * draw(st.sampled_from([1, 0, 1e-30, 1e30, -3.3])),
            }))  # fmt: skip
    df = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if not len(df):
        return df
    kind = draw(st.sampled_from(["stamps", "stamps", "text", "period", "int", "index", "numbers", "objects"]))
    with contextlib.suppress(ValueError, TypeError, AttributeError, OverflowError):
        match kind:
            case "text":
                df["ds"] = df["ds"].astype(str)
            case "period":
                df["ds"] = df["ds"].dt.tz_localize(None).dt.to_period(draw(st.sampled_from(["h", "D", "M", "Q"])))
            case "int":
                df["ds"] = df.groupby("unique_id").cumcount() * draw(st.integers(1, 5)) + draw(st.integers(-9, 9))
            case "numbers":
                df["ds"] = df["ds"].astype("int64") // draw(st.sampled_from([1, 10**6, 10**9]))
            case "objects":
                df["ds"] = df["ds"].astype(object)
    if draw(st.booleans()):
        keep = draw(st.lists(st.booleans(), min_size=len(df), max_size=len(df)))
        df = df[np.array(keep)]
    if draw(st.booleans()) and len(df):
        df = df.take(draw(st.lists(st.integers(0, len(df) - 1), min_size=1, max_size=60)))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if len(df):
            at, of = draw(st.integers(0, len(df) - 1)), draw(st.sampled_from(list(df)))
            odd = draw(st.sampled_from([None, np.nan, np.inf, 1e39, "x", "7", pd.NaT, pd.Timestamp("2024"), 5, 1j]))
            df = df.astype({of: object})
            df.iloc[at, df.columns.get_loc(of)] = odd
    if draw(st.booleans()):
        with contextlib.suppress(ValueError):
            df = df.pivot(index="ds", columns="unique_id", values="y")
            df = df if kind == "index" else df.reset_index()
    elif draw(st.booleans()):
        df = df.rename(columns=dict(zip(df, draw(st.permutations(list(df))), strict=True)))
    if draw(st.sampled_from([False] * 4 + [True])) and len(df.columns):
        df = df.drop(columns=draw(st.sampled_from(list(df))))
    return df


def check_table(table: frames.Table, horizon: int) -> None:
    rows, channels = table.values_TC.shape
    well_formed(channels == len(table.names_C) == len(table.ends_C) == len(table.lengths_C) > 0, "shapes")
    well_formed(not np.isinf(table.values_TC).any() and rows == max(table.lengths_C), "values")
    well_formed(len({*table.names_C}) == channels, "names")
    try:
        ahead = frames.ahead(table, horizon)
    except (pd.errors.OutOfBoundsDatetime, OverflowError):  # which a Forecaster says before it learns
        return
    well_formed(all(len(stamps) == horizon for stamps in ahead), "stamps ahead")
    well_formed(all(s[0] > end for s, end in zip(ahead, table.ends_C, strict=False)), "stamps that go on")


def read_frame(df: pd.DataFrame, freq: str, horizon: int) -> str:
    """A table has finite or missing values, and its stamps go on; the frame is as it was, and filled at its rows."""

    def ask() -> None:
        before = df.copy(deep=True)
        table = frames.read(df, freq=freq)
        check_table(table, horizon)
        filled = frames.fill(table, df, np.zeros(table.values_TC.shape))
        well_formed(filled.shape == df.shape, "a filled frame")
        pd.testing.assert_frame_equal(df, before)

    return outcome(ask)


# ---- configs ----

KEYS = [key for key, *_ in KNOBS]
TEXTS = st.one_of(
    st.sampled_from([*ODD, "-1", "0", "1", "2", "3.5", "1e3", "()", "1,2", "(1,)", "[1]", "{}", "None", "False"]),
    st.integers(-(2**70), 2**70).map(str), st.floats().map(repr), st.text(max_size=12),
    st.lists(st.one_of(st.integers(-2, 2000), st.floats()), max_size=4).map(lambda v: ",".join(map(str, v))),
    st.sampled_from([v for _, value, _, _ in KNOBS for v in (str(value), repr(value))]),
)  # fmt: skip
KEY = st.one_of(
    st.sampled_from(KEYS), st.sampled_from(KEYS), st.sampled_from(["model", "modle.width", "", ".", "a.b.c"])
)
# a value that is one knob's own, as often as anything
KNOB = st.one_of(st.tuples(KEY, TEXTS), st.sampled_from([(key, str(value)) for key, value, *_ in KNOBS]))


def check_config(cfg: Any) -> None:
    """Every knob is there, of its type, in its range, and the config survives JSON."""
    config.check(cfg)
    known = config.flat(cfg)
    for key, standard, rule, _ in KNOBS:
        well_formed(type(known[key]) is type(standard) and rule.holds(known[key]), key)
    again = config.from_json(config.to_json(cfg))
    well_formed(config.flat(again) == known and config.content_hash(again) == config.content_hash(cfg), "JSON")


def type_knobs(knobs: list[tuple[str, str]]) -> str:
    def ask() -> None:
        cfg = config.default()
        flags.override(cfg, [f"--config.{key}={value}" for key, value in knobs])
        check_config(cfg)

    return outcome(ask)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(ODD), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip


def read_json(folder: Path, changes: list[tuple[str, Any]], without: list[str], cut: int) -> str:
    """A config.json with some knobs of other values, some left out, broken off somewhere."""
    content = config.default().to_dict()
    for key, value in changes:
        section, _, name = key.rpartition(".")
        of = content.get(section) if section else content
        if isinstance(of, dict):
            of[name] = value
    for key in without:
        section, _, name = key.rpartition(".")
        of = content.get(section) if section else content
        if isinstance(of, dict):
            of.pop(name, None)
    text = json.dumps(content)
    path = folder / "config.json"
    path.write_text(text[: len(text) - cut], encoding="utf-8")
    return outcome(lambda: check_config(flags.load_file(path)))


# ---- windows ----

SERIES_TC = np.arange(240.0, dtype=np.float32).reshape(120, 2)
GAPS_TC = np.random.default_rng(0).random(SERIES_TC.shape) > 0.1


def cut_windows(begin: int, rows: int, lookback: int, horizons: list[int], share: float, picks: list[int]) -> str:
    """A split has the windows that plain counting gives it, and each is what plain slicing makes of the series."""
    horizons, end = sorted({*horizons}), min(begin + rows, len(SERIES_TC))

    def ask() -> None:
        of = windows.span((begin, end), lookback, tuple(horizons), 2, "train")
        starts = [s for s in range(len(SERIES_TC)) if s + lookback >= begin and s + lookback + horizons[0] <= end]
        well_formed(of.rows == 2 * len(starts) and of.first == starts[0], "number of windows")
        few = windows.few(of, share)
        well_formed(0 < few.rows <= of.rows and few.end <= of.end, "few windows")
        panel = windows.Panel(jnp.asarray(SERIES_TC.T), jnp.asarray(GAPS_TC.T))
        row_R = np.array(picks) % of.rows
        x_RL, seen_RL = windows.take(panel, of, jnp.asarray(row_R, jnp.int32))
        for r, row in enumerate(row_R):
            start, channel = starts[row // 2], row % 2
            length = min(of.length, end - start)
            at = slice(start, start + length)
            well_formed(bool((np.asarray(x_RL)[r, :length] == SERIES_TC[at, channel]).all()), "values")
            well_formed(bool((np.asarray(seen_RL)[r, :length] == GAPS_TC[at, channel]).all()), "gaps")
            well_formed(not np.asarray(seen_RL)[r, length:].any(), "steps of another split")

    return outcome(ask)


def properties(folder: Path) -> dict[str, tuple[Callable[..., str], dict[str, st.SearchStrategy]]]:
    """Returns {name: (property, what it is given)}; files are written into the folder."""
    freq = st.sampled_from([""] * 20 + [*FREQS, "0h", "-1h", "hourly", "\0", "9" * 30 + "D", "1000YS", "ns", "bh"])
    return {
        "csv": (
            lambda **given: read_csv(folder, **given),
            {"file": csv_bytes(), "freq": freq, "columns": st.sampled_from([""] * 8 + ["load", "load,wind", ",", "x"])},
        ),
        "frames": (read_frame, {"df": dataframes(), "freq": freq, "horizon": st.integers(1, 40)}),
        "config": (type_knobs, {"knobs": st.lists(KNOB, min_size=1, max_size=4)}),
        "json": (
            lambda **given: read_json(folder, **given),
            {
                "changes": st.lists(st.tuples(KEY, JSON), max_size=3), "without": st.lists(KEY, max_size=2),
                "cut": st.sampled_from([0] * 5 + [1, 40, 2000]),
            },
        ),
        "windows": (
            cut_windows,
            {
                "begin": st.integers(0, 119), "rows": st.integers(0, 120), "lookback": st.sampled_from([1, 7, 24, 130]),
                "horizons": st.lists(st.sampled_from([1, 12, 40]), min_size=1, max_size=3),
                "share": st.floats(1e-9, 1), "picks": st.lists(st.integers(0, 10**6), min_size=4, max_size=4),
            },
        ),
    }  # fmt: skip


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Raises TimeoutError when what is inside hangs."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"nothing after {SECONDS} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def at_length(name: str, examples: int, root: int, folder: Path) -> collections.Counter:
    """Returns how many examples of a property had which outcome; what is broken is printed, and does not end it."""
    found: collections.Counter = collections.Counter()
    check, strategies = properties(folder)[name]

    @seed(root)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate], verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(**strategies)
    def one(**given: Any) -> None:
        try:
            with in_time():
                found[check(**given)] += 1
        except Exception as e:
            found["broken"] += 1
            print(f"{name}: {type(e).__name__}: {str(e)[:300]} <- {given!r}"[:3000], flush=True)

    one()
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--only", default="csv,frames,config,json,windows")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    names, path = asked.only.split(","), HERE / "results" / "fuzz.csv"
    counts = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["property", "seed", "outcome", "examples"])
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            found = at_length(name, asked.examples // len(names), asked.seed, Path(folder))
            print(name, dict(found), flush=True)
            own = (counts["property"] == name) & (counts["seed"] == asked.seed)
            rows = [(name, asked.seed, what, count) for what, count in sorted(found.items())]
            counts = pd.DataFrame([*counts[~own].itertuples(index=False), *rows], columns=list(counts))
            counts.to_csv(path, index=False)
    broken = int(counts[counts["outcome"] == "broken"]["examples"].sum())
    print(f"{counts['examples'].sum()} examples in {path.name}, {broken} broken")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
