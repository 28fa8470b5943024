"""A csv or parquet file -> a table of cells -> channels of numbers; knows no data set and no model. numpy and pandas
only.

Rows in errors are counted as in the file: the header of a csv is row 1, and a parquet file has none.
"""

import collections
import csv
import difflib
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ptt_jax import parquet
from ptt_jax.clock import STAMP, counted
from ptt_jax.errors import UserError, brief

BAD_NUMBERS = ("is not a number", "is infinite or more than a float32 holds")
TIME_NAMES = ("date", "ds", "time", "timestamp", "datetime")


def nearest(name: str, valid: Sequence[str]) -> str:
    """'; nearest: a, b', or what there is when nothing is near."""
    lower = {v.lower(): v for v in valid}
    close = [lower[v] for v in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    return "; nearest: " + shorten(close) if close else "; there are: " + shorten(valid)


def shorten(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(map(brief, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def read_bytes(path: Path) -> bytes:
    """The file's bytes, unpacked when its name ends in .gz."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of a .csv, .csv.gz or .parquet file in it")
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist; give the path of a .csv, .csv.gz or .parquet file") from e
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UserError(f"{path} is not a whole gzip file ({e}); give a .csv.gz that unpacks, or a plain .csv") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); give a .csv or .csv.gz file that can") from e


def read_table(path: Path, time_column: str) -> tuple[pd.DataFrame, list[str]]:
    """Cells by column name, of a csv as `parse` reads it or of a parquet file, its index among them; and notes."""
    if parquet.is_parquet(path):
        return parquet.flat(parquet.read(path), time_column), []
    return parse(read_bytes(path), path)


def parse(raw: bytes, path: Path, as_text: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """Cells by column name, numbers where a whole column is, or all as they stand, where 007 is no 7 and NA a text;
    the index is the row in the file. Notes on the bytes."""
    notes = []
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        text = raw.decode("latin-1")  # fails on nothing, and keeps names apart that errors='replace' would make equal
        notes.append(f"byte {e.start} is not UTF-8; the file is read as latin-1")
    if "\0" in text:
        raise UserError(f"{path} is not a text file in UTF-8 (it holds zero bytes); save it as csv in UTF-8")
    if "\n" not in text:  # as old Macs wrote
        text = text.replace("\r", "\n")
    header, _, body = text.partition("\n")
    if not header.strip():
        raise UserError(f"{path} is empty or starts with a blank row; it needs column names in row 1")
    if not body or body.isspace():
        raise UserError(f"{path} has a header and no rows; it needs one row for each time stamp")
    first = body.lstrip("\r\n").partition("\n")[0]
    separator, names, cells = split_fields(header, first, path)
    decimal = "," if separator != "," and any(re.fullmatch(r"\s*[-+]?\d+,\d+\s*", cell) for cell in cells) else "."
    if decimal == ",":
        notes.append("commas in numbers are read as decimal points")
    try:
        frame = pd.read_csv(
            io.StringIO(text), sep=separator, decimal=decimal, names=names, header=0,
            skip_blank_lines=False, low_memory=False, **({"dtype": "str", "keep_default_na": False} if as_text else {}),
        )  # fmt: skip
    except (pd.errors.ParserError, ValueError) as e:
        reason = str(e).strip().removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{path} is not a table ({reason}); every row needs {len(names)} fields") from e
    frame.index = np.arange(2, len(frame) + 2)
    lost = [name for name in names if "\ufffd" in name]
    if lost:
        notes.append(
            f"{counted(len(lost), 'column name')} with characters that were no UTF-8 and are lost: {shorten(lost)}"
        )
    return frame.dropna(how="all"), notes


def split_fields(header: str, first: str, path: Path) -> tuple[str, list[str], list[str]]:
    """Separator, column names, and the first row's cells; UserError when they don't look like a wide table."""
    try:
        fields = {s: [next(csv.reader([line], delimiter=s)) for line in (header, first)] for s in ",;\t"}
    except csv.Error as e:
        raise UserError(
            f"{path} is not a table ({e}, in the header or the first row); save it as csv in UTF-8, with a row on each "
            "line"
        ) from None
    fitting = [s for s, (names, cells) in fields.items() if len(names) == len(cells) >= 2]
    if not fitting:
        widths = " and ".join(str(len(line)) for line in fields[","])
        raise UserError(
            f"{path}: the header and the first row have {widths} fields between commas; they need the same number, "
            "two or more, between commas, semicolons or tabs"
        )
    separator = max(fitting, key=lambda s: len(fields[s][0]))
    names, cells = fields[separator]
    names = [name.strip() or f"column {c + 1}" for c, name in enumerate(names)]
    for name, times in collections.Counter(names).items():
        if times > 1:
            raise UserError(f"{path}: {times} columns are called {brief(name)}; each needs a name of its own")
        if re.match(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}", name):
            raise UserError(
                f"{path}: {name!r} stands in row 1, where column names are needed; put a header like 'date,load' above "
                "the rows, with time running downwards"
            )
    return separator, names, cells


def find_time_column(frame: pd.DataFrame, wanted: str, path: Path) -> str:
    """The wanted column; else the first with a name for time; else the first whose cells look like stamps."""
    if wanted:
        if wanted not in frame:
            raise UserError(f"{path} has no column {brief(wanted)} to take the time from{nearest(wanted, list(frame))}")
        return wanted
    for name in frame:
        if name.lower() in TIME_NAMES:
            return name
    for name in frame:
        cells = frame[name].dropna().head(100)
        is_text = len(cells) and not pd.api.types.is_numeric_dtype(cells)
        if is_text and cells.astype(str).str.strip().str.match(STAMP).all():
            return name
    raise UserError(
        f"{path} has no time column: none is called {', '.join(TIME_NAMES)} and none holds stamps like "
        f"2016-07-01 13:00; name it with data.time_column; there are: {shorten(list(frame))}"
    )


def to_numbers(cells: pd.Series) -> tuple[pd.Series, pd.Series, pd.Series]:
    """float64, NaN where a cell is empty or no number; which cells are no number; which are infinite or too large."""
    if isinstance(cells.dtype, np.dtype) and cells.dtype.kind in "iuf":  # the quick way, for thousands of columns
        values = cells.to_numpy("float64")
        sides = values, np.zeros(len(values), bool), np.abs(values) > np.finfo(np.float32).max
        number, text, too_large = (pd.Series(side, cells.index) for side in sides)
        return number, text, too_large
    number = pd.to_numeric(cells, errors="coerce").astype("float64")
    return number, cells.notna() & number.isna(), number.abs() > np.finfo(np.float32).max


def check_numbers(cells: pd.Series, path: Path) -> None:
    """Raises UserError at the first cell that is no number, or none that float32 holds; the index is the row in the
    file."""
    for bad, words in zip(to_numbers(cells)[1:], BAD_NUMBERS, strict=True):
        if bad.any():
            row = cells.index[bad][0]
            raise UserError(
                f"{path}, column {brief(cells.name)}, row {row}: {brief(str(cells[row]))} {words}; give a number, or "
                "leave the cell empty if it is missing"
            )


def is_filler(name: str, number: pd.Series) -> bool:
    """Says whether a column, as `to_numbers` has it, is none: without a name in the header, the row numbers that pandas
    writes, or what follows a last comma."""
    return bool(re.fullmatch(r"column \d+", name) and (number.isna().all() or (number.diff().iloc[1:] == 1).all()))


def read_numbers(
    frame: pd.DataFrame, wanted: str, time_column: str, path: Path
) -> tuple[np.ndarray, list[str], list[str]]:
    """values_TC float64, NaN where a cell is empty; names_C; notes on columns that were left out.

    `wanted` '' takes every column in which at least half of the cells are numbers.
    """
    others = [name for name in frame if name != time_column]
    chosen = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in chosen:
        if name not in others:
            raise UserError(f"{path} has no column {brief(name)} to forecast{nearest(name, others)}")
    names, columns, left_out = [], [], []
    for name in dict.fromkeys(chosen or others):
        cells = frame[name]
        number, text, _ = to_numbers(cells)
        if not chosen and (is_filler(name, number) or (text.any() and text.sum() * 2 > cells.notna().sum())):
            left_out.append(name)
            continue
        check_numbers(cells, path)
        names.append(name)
        columns.append(number.to_numpy())
    if not names:
        raise UserError(f"{path} has no column of numbers besides {time_column!r}; there are: {shorten(list(frame))}")
    notes = [f"{counted(len(left_out), 'column')} without numbers left out: {shorten(left_out)}"] if left_out else []
    return np.stack(columns, axis=1), names, notes
