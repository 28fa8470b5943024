"""csv or parquet -> `Series`: benchmark files and own ones, splits, the scaler. numpy and pandas only.

Benchmark files are read as they are, and what is odd in them is said in the notes: published figures are on the files
as they are. Own files are brought to their grid first: sorted, one row for each step, gaps become missing rows.
"""

import dataclasses
import functools
import hashlib
import json
import re
from typing import Any

import numpy as np
import pandas as pd

from ptt_jax import config
from ptt_jax.benchmarks import TABLE, find, folders_of
from ptt_jax.clock import counted, read_stamps, season, step_seconds, to_grid
from ptt_jax.errors import UserError
from ptt_jax.files import to_path
from ptt_jax.frame import find_time_column, nearest, parse, read_bytes, read_numbers, read_table, shorten
from ptt_jax.generated import generate


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """A multi-channel series; T rows in time order, C channels."""

    name: str  # row of TABLE, 'generated', or the csv's stem
    values_TC: np.ndarray  # float32, original units, finite everywhere: see `fill`
    observed_TC: np.ndarray  # bool; False = missing: never enters statistics, loss or metrics
    stamps_T: pd.DatetimeIndex  # without time zone; may repeat or jump in benchmark files
    names_C: tuple[str, ...]
    freq: str  # pandas offset alias of the step
    splits: dict[str, tuple[int, int]]  # part -> [begin, end) rows of its targets; a lookback may reach before begin
    notes: tuple[str, ...]  # one sentence for each thing seen in the file

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over values, observed, names and stamps."""
        sha = hashlib.sha256(json.dumps([self.values_TC.shape, self.names_C]).encode())
        stamps_T = self.stamps_T.as_unit("ns").asi8
        for array, kind in ((self.values_TC, "<f4"), (self.observed_TC, "?"), (stamps_T, "<i8")):
            sha.update(np.ascontiguousarray(array, kind).tobytes())
        return sha.hexdigest()


def load(data: Any) -> Series:
    """The series that the config section `data` asks for. UserError when it cannot be had, read or split."""
    if data.name == "generated":
        return load_generated(data)
    if data.name == "csv":
        return load_csv(data)
    if data.name in TABLE:
        return load_benchmark(data)
    names = [*TABLE, "generated", "csv"]
    raise UserError(f"config.data.name = {data.name!r} is no data set{nearest(data.name, names)}")


def load_also(data: Any, names: str, own: Series) -> list[Series]:
    """The further series that a backbone learns from, comma-separated: rows of TABLE, or own files, every column; a
    path is one from here, or else from where benchmark files lie.

    UserError when one cannot be had, or is the data's own again.
    """
    found: list[Series] = []

    def path_of(name: str) -> str:
        places = (to_path(name, "config.pretrain.also"), *(folder / name for folder in folders_of(data)))
        return str(next((place for place in places if place.exists()), name))

    for name in filter(None, names.split(",")):
        section = data.copy_and_resolve_references() if name in TABLE else config.default().data
        section.columns, section.split = "", data.split
        section.name = name if name in TABLE else "csv"
        try:
            section.path = "" if name in TABLE else path_of(name)
            series = load(section)
        except UserError as e:
            raise UserError(f"config.pretrain.also: {e}") from None
        if series.fingerprint in {other.fingerprint for other in (own, *found)}:
            raise UserError(f"config.pretrain.also names {name}, which is there already; accepted: each series once")
        found.append(series)
    return found


def load_generated(data: Any) -> Series:
    values_TC = generate(data.rows, data.channels, data.seed)
    stamps_T = pd.date_range("2024-01-01", periods=data.rows, freq="h").as_unit("ns")
    names = [f"channel {c}" for c in range(data.channels)]
    splits = by_fractions(data.rows, data.split, "generated")
    return make_series("generated", values_TC, stamps_T, names, "h", splits, [])


def load_csv(data: Any) -> Series:
    """An own file with one row for each time stamp, brought to its grid."""
    if not data.path:
        raise UserError("config.data.path is empty; data.name='csv' needs the path of a .csv, .csv.gz or .parquet file")
    path = to_path(data.path, "config.data.path")
    frame, byte_notes = read_table(path, data.time_column)
    time_column = find_time_column(frame, data.time_column, path)
    stamps_T, stamp_notes = read_stamps(frame[time_column], path)
    values_TC, names, column_notes = read_numbers(frame, data.columns, time_column, path)
    stamps_T, values_TC, freq, grid_notes = to_grid(stamps_T, values_TC, data.freq, frame.index, path)
    name = re.sub(r"\.(csv(\.gz)?|parquet)$", "", path.name, flags=re.IGNORECASE)
    splits = by_fractions(len(stamps_T), data.split, path)
    notes = byte_notes + stamp_notes + column_notes + grid_notes
    return make_series(name, values_TC, stamps_T, names, freq, splits, notes)


def load_benchmark(data: Any) -> Series:
    """A row of TABLE, exactly as its file has it."""
    row = TABLE[data.name]
    path = find(row, data)
    raw = read_bytes(path)
    frame, notes = parse(raw, path)
    stamps_T, _ = read_stamps(frame[find_time_column(frame, "date", path)], path)
    values_TC, names, _ = read_numbers(frame, "", "date", path)
    if values_TC.shape != (row.rows, row.columns):
        rows, columns = values_TC.shape
        raise UserError(
            f"{path} has {rows} rows and {columns} number columns, but {data.name} has {row.rows} and {row.columns}; "
            f"take {row.file} from {row.source}, or read this file with data.name='csv'"
        )
    sha256 = hashlib.sha256(raw).hexdigest()
    if row.sha256 and sha256 != row.sha256:
        notes.append(f"not the published file (SHA-256 {sha256[:8]}, not {row.sha256[:8]}), but its shape agrees")
    if data.columns:
        values_TC, names, _ = read_numbers(frame, data.columns, "date", path)
    notes += odd_stamps(stamps_T, row.freq, frame.index)
    if row.split == "months":
        splits = by_months(row.freq)
        if tuple(data.split) != (0.7, 0.1, 0.2):
            notes.append(f"data.split = {tuple(data.split)} is not used, {data.name} has borders of its own")
    else:
        splits = by_fractions(row.rows, data.split, path)
    return make_series(data.name, values_TC, stamps_T, names, row.freq, splits, notes)


def make_series(
    name: str,
    values_TC: np.ndarray,
    stamps_T: pd.DatetimeIndex,
    names: list[str],
    freq: str,
    splits: dict[str, tuple[int, int]],
    notes: list[str],
) -> Series:
    """Puts the parts together; values_TC is float64, NaN where missing. UserError for a channel with no train value."""
    observed_TC = ~np.isnan(values_TC)
    begin, end = splits["train"]
    empty_C = ~observed_TC[begin:end].any(0)
    if empty_C.any():
        raise UserError(
            f"{name}: column {names[int(empty_C.argmax())]!r} has no value in the train rows, {stamps_T[begin]} to "
            f"{stamps_T[end - 1]}; leave it out with data.columns, or give it values there"
        )
    notes = notes + odd_values(values_TC, end, names)
    values_TC = fill(values_TC, observed_TC, end).astype(np.float32)
    return Series(name, values_TC, observed_TC, stamps_T, tuple(names), freq, splits, tuple(notes))


def fill(values_TC: np.ndarray, observed_TC: np.ndarray, train_end: int) -> np.ndarray:
    """Missing values become the last observed one: only the past, so that nothing leaks from a future.

    Before a channel's first observed value stands its train mean. The scaler knows it anyway and makes a 0 of it, while
    the first observed value would be one particular step of the future.
    """
    if observed_TC.all():
        return values_TC
    row_TC = np.where(observed_TC, np.arange(len(values_TC))[:, None], -1)
    last_TC = np.maximum.accumulate(row_TC, axis=0)
    filled_TC = np.take_along_axis(values_TC, np.maximum(last_TC, 0), axis=0)
    return np.where(last_TC < 0, np.nanmean(values_TC[:train_end], axis=0), filled_TC)


def by_months(freq: str) -> dict[str, tuple[int, int]]:
    """12, 4 and 4 months of 30 days; what follows is unused."""
    month = 30 * season(freq)
    return {"train": (0, 12 * month), "validation": (12 * month, 16 * month), "test": (16 * month, 20 * month)}


def by_fractions(rows: int, split: tuple[float, float, float], where: Any) -> dict[str, tuple[int, int]]:
    """Train: the first int(f * rows); test: the last int(f * rows); validation: what is between. Autoformer's rule."""
    begin, end = int(split[0] * rows), rows - int(split[2] * rows)
    if not 0 < begin < end < rows:
        raise UserError(f"{where}: {rows} rows leave a part of data.split = {tuple(split)} empty; give more rows")
    return {"train": (0, begin), "validation": (begin, end), "test": (end, rows)}


def odd_stamps(stamps_T: pd.DatetimeIndex, freq: str, rows_T: pd.Index) -> list[str]:
    """Sentences about stamps that don't follow each other at the step; nothing is repaired."""
    notes, seconds = [], np.diff(stamps_T.asi8) / 1e9
    for odd, words in (
        (seconds > step_seconds(freq), "jump forward"),
        (seconds == 0, "repeat"),
        (seconds < 0, "jump back"),
        ((seconds > 0) & (seconds < step_seconds(freq)), "come early"),
    ):
        if odd.any():
            t = int(odd.argmax())
            steps = f"{stamps_T[t]} to {stamps_T[t + 1]}"
            times = counted(odd.sum(), "time")
            notes.append(f"stamps {words} {times}, first at row {rows_T[t + 1]} ({steps}); left as they are")
    return notes


def odd_values(values_TC: np.ndarray, train_end: int, names: list[str]) -> list[str]:
    """Sentences about missing values, -9999, and channels that stand still."""
    notes = []
    missing_C, code_C = np.isnan(values_TC).sum(0), (values_TC == -9999).sum(0)
    if missing_C.any():
        share, worst = missing_C.sum() / values_TC.size, int(missing_C.argmax())
        notes.append(
            f"{counted(missing_C.sum(), 'value')} ({share:.2%}) missing, in {(missing_C > 0).sum()} of "
            f"{counted(len(names), 'column')}, most in {names[worst]!r} ({missing_C[worst]})"
        )
    if code_C.any():
        places = ", ".join(f"{counted(code_C[c], 'time')} in {names[c]!r}" for c in np.flatnonzero(code_C))
        notes.append(f"-9999 is taken as a value: {places}; in an own file, leave cells empty that are missing")
    train_TC = values_TC[:train_end]
    still = [names[c] for c in np.flatnonzero(np.nanmax(train_TC, 0) == np.nanmin(train_TC, 0))]
    if still:
        notes.append(f"{counted(len(still), 'column')} constant in the train rows: {shorten(still)}")
    return notes
