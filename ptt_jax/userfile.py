"""The file that somebody brings, csv or parquet, wide or long, and the file that an answer is written to."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from ptt_jax import answer, columns, frames, parquet
from ptt_jax.errors import UserError
from ptt_jax.files import to_path, write_atomic
from ptt_jax.frame import check_numbers, find_time_column, is_filler, nearest, parse, read_bytes, to_numbers

KINDS = (".csv", ".parquet")  # that an answer can be written as; a forecast is a page, too


class File(NamedTuple):
    """What was read from where, and where the answer goes."""

    path: Path
    frame: pd.DataFrame
    cells: pd.DataFrame | None  # of the same shape: text, as a csv has it; None of a parquet file
    time_column: str
    notes: list[str]
    output: Path


def read(cfg: ConfigDict, kinds: tuple[str, ...] = KINDS) -> File:
    """Returns the file, and where to write one of some kinds. Raises UserError when it cannot be read, or that cannot
    be written."""
    if not cfg.data.path:
        raise UserError("config.data.path is empty; accepted: the path of a .csv, .csv.gz or .parquet file")
    path, output = to_path(cfg.data.path, "config.data.path"), place(cfg.output, kinds)
    notes: list[str] = []
    wanted = [name.strip() for name in cfg.data.columns.split(",") if name.strip()]
    if parquet.is_parquet(path):
        frame, cells = parquet.read(path), None
        asked = cfg.data.time_column or columns.DEFAULTS[1]
        plain, index = columns.flat(frame, (columns.DEFAULTS[0], asked))
        time_column = str(columns.find_time(plain, list(index), asked))
    else:
        raw = read_bytes(path)
        frame, notes = parse(raw, path)
        cells = parse(raw, path, as_text=True)[0].loc[frame.index].reset_index(drop=True)
        if columns.DEFAULTS[0] in frame:
            ids = cells[columns.DEFAULTS[0]].to_numpy()  # NA and 007 are ids
            frame[columns.DEFAULTS[0]] = pd.Series(ids, frame.index).replace("", np.nan)
        time_column = find_time_column(frame, cfg.data.time_column, path)
        for name in (name for name in wanted or frame if name in frame and name != time_column):
            if not wanted and is_filler(name, to_numbers(frame[name])[0]):
                frame[name] = pd.Categorical(cells[name])  # which is no series, and is written as it stands
            elif columns.is_number(frame[name]):
                check_numbers(frame[name], path)  # here, where rows are counted as in the file
        if not pd.api.types.is_numeric_dtype(frame[time_column]):
            columns.read_time(frame[time_column], str(path))
        frame = frame.reset_index(drop=True)
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}{nearest(missing[0], list(map(str, frame)))}")
    if wanted:
        frame = frame[[*([time_column] if time_column in frame else []), *wanted]]
    return File(path, frame, cells, time_column, notes, output)


def series(file: File, freq: str | int, who: str = "") -> frames.Table:
    """Returns the file's series. Raises UserError, which names the file, when they cannot be read, or are not on the
    step that `who` learned."""
    try:
        table = frames.read(file.frame, time_column=file.time_column, freq=freq)
        if who:
            answer.check_step(table, freq, who)
    except UserError as e:
        raise UserError(f"{file.path}, rows counted from 0: {e}") from None
    return table


def place(output: str, kinds: tuple[str, ...]) -> Path:
    """Returns the path to write to. Raises UserError when nothing can be written there, or it is of another kind."""
    words = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    if not output:
        raise UserError(f"config.output is empty; accepted: the path of a {words} file to write")
    path = to_path(output, "config.output")
    if path.is_dir() or path.suffix.lower() not in kinds:
        raise UserError(f"config.output = {output!r} is no {words} file; accepted: a path like out.csv")
    if parquet.is_parquet(path):
        parquet.check(path)
    if not path.absolute().parent.is_dir():
        raise UserError(f"config.output = {output!r}: there is no folder {path.parent}; accepted: one that is there")
    try:  # what a folder's permissions say is not all, and root may everything
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as e:
        raise UserError(
            f"config.output = {output!r}: {path.parent} cannot be written ({e.strerror}); accepted: a folder that can"
        ) from None
    return path


def write(found: pd.DataFrame, file: File) -> Path:
    """Writes the answer; returns its path. A csv has a column for each level of an index that says something."""
    if parquet.is_parquet(file.output):
        parquet.write(file.output, found)
    else:
        says = found.index.nlevels > 1 or found.index.name is not None or not pd.api.types.is_integer_dtype(found.index)
        write_atomic(file.output, found.to_csv(index=says))
    return file.output


def as_written(found: pd.DataFrame, file: File) -> pd.DataFrame:
    """Returns a frame that has the file's rows with its cells as the file has them, where they are the same: no digit,
    zero or stamp is written otherwise than it was read. Parquet knows stamps, and gets those that a csv's text says."""
    cells, time = file.cells, file.time_column
    if cells is None:
        return found
    if parquet.is_parquet(file.output):
        return found.assign(**{time: columns.read_time(found[time], str(file.path))[0]})
    out = found.astype(object)
    for name in file.frame:
        text, was = cells[name], file.frame[name]
        same = was.notna()
        if pd.api.types.is_numeric_dtype(was):  # commas as decimal points, say, are not what is written
            number = pd.to_numeric(text, errors="coerce")
            same &= np.isclose(number.to_numpy("float64"), was.to_numpy("float64"), rtol=1e-12, atol=0)
        out[name] = out[name].mask(same, text)
    return out
