"""The columns of a DataFrame: which holds time, ids, values, and what stands in them. numpy and pandas only.

Rows in errors are counted from 0, as `df.iloc` counts them.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ptt_jax.clock import EPOCHS, STAMP, number_stamps, read_stamps
from ptt_jax.errors import UserError, brief
from ptt_jax.frame import BAD_NUMBERS, TIME_NAMES, nearest, shorten, to_numbers

DEFAULTS = ("unique_id", "ds", "y")


def flat(df: pd.DataFrame, wanted: Sequence[Hashable]) -> tuple[pd.DataFrame, dict[Hashable, Hashable]]:
    """Returns the frame with rows 0, 1, 2 .. and, as columns, those levels of its index that are `wanted` (id and time)
    or hold time; and which these are, with the names that they had. Raises UserError when it is no plain table.
    """
    if not isinstance(df, pd.DataFrame):
        raise UserError(f"a {type(df).__name__} was given; accepted: a pandas DataFrame")
    if df.columns.nlevels > 1 or df.columns.has_duplicates:
        again = df.columns[df.columns.duplicated()]
        what = f"2 columns are called {again[0]!r}" if len(again) else f"the columns have {df.columns.nlevels} levels"
        raise UserError(f"the frame: {what}; each column needs one name of its own")
    if not len(df):
        raise UserError("the frame has no rows; it needs one for each time stamp")
    frame = df.reset_index(drop=True)
    index: dict[Hashable, Hashable] = {}
    for level, name in enumerate(df.index.names):
        cells = df.index.get_level_values(level)
        is_time = isinstance(cells, pd.DatetimeIndex | pd.PeriodIndex) and wanted[1] not in frame.columns
        if (name is not None and name in wanted and name not in frame.columns) or is_time:
            label = wanted[1] if name is None else name
            if label in frame.columns:
                raise UserError(f"{label!r} is a column and a level of the index; rename one of them")
            frame.insert(len(index), label, cells)
            index[label] = name
    return frame, index


def find_time(frame: pd.DataFrame, index: Sequence[Hashable], wanted: Hashable) -> Hashable:
    """Returns the wanted column; else, where none was asked for, one from the index, of a name for time, or with
    datetimes or text like stamps. Raises UserError when there is none, or more than one of datetimes.
    """
    if wanted in frame.columns:
        return wanted
    names = list(map(str, frame.columns))
    if wanted != DEFAULTS[1] and wanted != "":
        raise UserError(f"the frame has no column {wanted!r} to take the time from{nearest(str(wanted), names)}")
    kinds = {name: pd.api.types.infer_dtype(frame[name], skipna=True) for name in frame.columns}
    for found in (
        [n for n in index if kinds[n] in ("datetime64", "datetime", "period")],
        [n for n in frame.columns if str(n).lower() in TIME_NAMES],
        [n for n in frame.columns if kinds[n] in ("datetime64", "datetime", "date", "period")],
        [n for n in frame.columns if kinds[n] == "string" and frame[n].dropna().str.strip().str.match(STAMP).all()],
    ):
        if len(found) > 1:
            raise UserError(f"the time may be in any of {shorten(list(map(str, found)))}; say which with time_column")
        if found:
            return found[0]
    raise UserError(
        f"the frame has no time: no column is called {wanted!r} and none holds datetimes, nor does the index; name it "
        f"with time_column; there are: {shorten(names)}"
    )


def is_wide(frame: pd.DataFrame, id_column: Hashable, time: Hashable, target: Hashable) -> bool:
    """Returns whether each column of numbers is a series. Raises UserError when it cannot be told, or a column that was
    asked for is not there.
    """
    names = list(map(str, frame.columns))
    others = [n for n in frame.columns if n not in (time, id_column, target)]
    for name, default, knob in ((id_column, DEFAULTS[0], "id_column"), (target, DEFAULTS[2], "target_column")):
        if name not in frame.columns and name not in ("", default):
            raise UserError(f"the frame has no column {name!r}, which {knob} names{nearest(str(name), names)}")
    if id_column in frame.columns:
        if target not in frame.columns:
            raise UserError(
                f"the frame has ids in {id_column!r} but no column {target!r} with their values; name it with "
                f"target_column; there are: {shorten(others)}"
            )
        return False
    if target not in frame.columns:
        return True
    numbers = [n for n in others if is_number(frame[n])]
    if numbers and id_column != "":
        raise UserError(
            f"the frame has no ids ({id_column!r}), and beside {target!r} other numbers: {shorten(numbers)}; give "
            f"id_column='' if {target!r} is the only series, or target_column='' if every column is one"
        )
    return False


def is_number(cells: pd.Series) -> bool:
    """Returns whether a column is of numbers, or of text most of which are."""
    kind = cells.dtype
    if pd.api.types.is_numeric_dtype(kind):
        return not (pd.api.types.is_bool_dtype(kind) or pd.api.types.is_complex_dtype(kind))
    if not (pd.api.types.is_object_dtype(kind) or pd.api.types.is_string_dtype(kind)):
        return False
    if pd.api.types.infer_dtype(cells, skipna=True) == "boolean" or not cells.notna().any():
        return False
    return bool(to_numbers(cells)[1].sum() * 2 <= cells.notna().sum())


def is_plain(kind: Any) -> bool:
    """Returns whether a dtype is numpy's, of numbers."""
    return isinstance(kind, np.dtype) and kind.kind in "iuf"


def read_ids(cells: pd.Series) -> tuple[np.ndarray, pd.Index]:
    """Returns the number of each row's id, and the ids in order of appearance, in their dtype. Raises UserError for
    an empty cell, or two ids that look the same.
    """
    if cells.isna().any():
        raise UserError(
            f"the frame, column {cells.name!r}, row {int(cells.isna().argmax())}: the id is missing; give one"
        )
    code_N, ids_S = pd.factorize(cells)
    same = pd.Index(map(str, ids_S)).duplicated()
    if same.any():
        raise UserError(
            f"the frame, column {cells.name!r}: two ids are written {str(ids_S[same.argmax()])!r}; rename one"
        )
    return code_N, pd.Index(ids_S)


def read_plain(frame: pd.DataFrame) -> np.ndarray | None:
    """Returns values_NK float64 of plain columns (`is_plain`) where float32 holds every number, or NaN: what
    `read_cells` says of each, at once. None where one needs a look."""
    values_NK = frame.to_numpy("float64")
    return None if (np.abs(values_NK) > np.finfo(np.float32).max).any() else values_NK


def read_cells(cells: pd.Series, stamps_N: pd.Index, group_N: np.ndarray, names_S: Sequence[str]) -> np.ndarray:
    """Returns float64, NaN where a cell is empty. Raises UserError for what is no number, or out of float32."""
    if not pd.api.types.is_numeric_dtype(cells.dtype):
        cells = cells.astype(object)
    if pd.api.types.infer_dtype(cells, skipna=True) in ("datetime64", "datetime", "date", "timedelta", "complex"):
        raise UserError(f"the frame, column {cells.name!r} holds {cells.dtype} cells; accepted: numbers")
    number, *bad = to_numbers(cells)
    for bad_N, words in zip(bad, BAD_NUMBERS, strict=True):
        if bad_N.any():
            n = int(bad_N.argmax())
            raise UserError(
                f"{names_S[group_N[n]]} at {stamps_N[n]} (row {n}): {brief(str(cells[n]))} {words}; give a number, or "
                "NaN if it is missing"
            )
    return number.to_numpy()


def read_time(column: pd.Series, where: str) -> tuple[pd.Index, list[str]]:
    """Returns a column of a frame as DatetimeIndex, PeriodIndex or an index of whole numbers, and notes.

    The column's own index is the row that an error names. Raises UserError for an empty cell or any other dtype.
    """
    name = f"{where}, column {column.name!r}"
    notes: list[str] = []
    if column.isna().any():
        raise UserError(f"{name}, row {column.index[column.isna()][0]}: the cell is empty; each row needs a stamp")
    kind = pd.api.types.infer_dtype(column)
    if kind == "string":  # each text once: a stamp of many series is read for all of them
        code_N, texts = pd.factorize(column)
        rows = column.index[np.unique(code_N, return_index=True)[1]]
        stamps_U, notes = read_stamps(pd.Series(texts.astype(object), rows, name=column.name), where)
        return stamps_U[code_N], notes
    dates = kind == "integer" and len(str(column.iloc[0])) in (6, 8)
    if dates and number_stamps(column.astype("int64")).dt.year.between(1900, 2200).all():  # steps of 1, 1, 70, 1 ...
        raise UserError(
            f"{name} holds whole numbers that look like dates, like {column.iloc[0]}; give datetimes or text instead"
        )
    unit = EPOCHS.get(len(str(column.iloc[0]))) if kind == "integer" else None
    if unit:
        notes.append(
            f"whole numbers like {column.iloc[0]} in column {column.name!r} look like time since 1970 and are taken as "
            f"they are; pd.to_datetime(.., unit={unit!r}) makes stamps of them"
        )
    try:
        if kind in ("datetime64", "datetime", "date"):
            stamps_N = pd.DatetimeIndex(column)
            stamps_N.as_unit("ns")
            return stamps_N, notes
        if kind == "period":
            return pd.PeriodIndex(column), notes
        if kind == "integer":
            return pd.Index(column.to_numpy("int64") if column.dtype.kind not in "iu" else column), notes
    except (ValueError, TypeError) as e:
        raise UserError(
            f"{name} holds stamps that cannot be read together ({e}); give one zone and years 1700 to 2200"
        ) from e
    raise UserError(
        f"{name} holds {kind} cells, like {str(column.iloc[0])!r}, and no time; accepted are datetimes, text like "
        "2016-07-01 13:00, pandas periods and whole numbers"
    )
