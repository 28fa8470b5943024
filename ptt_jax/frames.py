"""DataFrame -> `Table` -> DataFrame of the same kind: what a caller gives and gets back. numpy and pandas only.

A frame is wide, a row for each stamp and a column for each series, or long, a row for each stamp of each series. It is
read on the grid of one step, and never changed. Four things go out: `write` rows after the ends (forecasts),
`write_windows` the same for several cutoffs (cross-validation), `fill` the frame itself without its gaps (imputation),
and `attach` the frame itself with a column more (scores).
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ptt_jax.clock import counted
from ptt_jax.columns import find_time, flat, is_number, is_plain, is_wide, read_cells, read_ids, read_plain, read_time
from ptt_jax.errors import UserError
from ptt_jax.frame import shorten, to_numbers
from ptt_jax.steps import Grid, lay_out


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """How a frame came: what it takes to write the same kind again. N rows, S groups of rows that are in time order."""

    wide: bool
    id_column: Hashable | None  # None: a long frame without, or a wide one
    time_column: Hashable
    labels_K: tuple[Hashable, ...]  # the columns with values: each a series if wide, else the target's
    ids_S: pd.Index | None  # with the dtype that they had
    index: dict[Hashable, Hashable]  # which of these columns stood in the index, and their names there
    grid: Grid  # where the frame's rows stand
    group_N: np.ndarray  # the group of each


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Several series, each with its own end, on one step."""

    names_C: tuple[str, ...]  # ids, or names of columns, in order of appearance
    values_TC: np.ndarray  # float64, NaN = missing; the last row is each series' own last stamp, T is the longest
    ends_C: tuple[Any, ...]  # last stamps: pd.Timestamp with its zone, pd.Period, or int
    lengths_C: np.ndarray  # steps from a series' own first stamp to its last; rows of values_TC before are padding
    freq: str  # pandas offset alias of the step; '' for whole numbers
    step: int  # difference of whole numbers; 1 where `freq` says it all
    layout: Layout
    notes: tuple[str, ...]  # one sentence for each thing that was seen and handled


def read(
    df: pd.DataFrame,
    *,
    id_column: Hashable = "unique_id",
    time_column: Hashable = "ds",
    target_column: Hashable = "y",
    freq: str | int = "",
) -> Table:
    """Returns the series of a frame. It is long if it has the id column, or the target's and no other numbers; else
    wide, and every column of numbers is a series. '' says that there is no such column.

    The time is the column or level of the index of that name, else an index of datetimes, else a column that is called
    or looks like time. `freq` '' takes the commonest difference. Raises UserError when the frame is neither, or not
    clear, or its values or stamps cannot be taken as they are.
    """
    frame, index = flat(df, (id_column, time_column))
    time = find_time(frame, list(index), time_column)
    wide = is_wide(frame, id_column, time, target_column)
    stamps_N, notes = read_time(frame[time], "the frame")
    has_ids = not wide and id_column in frame.columns
    others = [name for name in frame.columns if name != time and not (has_ids and name == id_column)]
    plain = {n for n, kind in zip(frame, frame.dtypes, strict=True) if is_plain(kind)}  # thousands, say
    labels = [n for n in others if n in plain or is_number(frame[n])] if wide else [target_column]
    if not labels:
        raise UserError(f"the frame has no column of numbers besides {time!r}; there are: {shorten(list(frame))}")
    left_out = [name for name in others if name not in labels]
    if left_out:
        words = "without numbers left out" if wide else "beside the series left out"
        notes.append(f"{counted(len(left_out), 'column')} {words}: {shorten(left_out)}")
    ids_S, group_N = None, np.zeros(len(frame), np.int64)
    if has_ids:
        group_N, ids_S = read_ids(frame[id_column])
    names_C = tuple(map(str, labels if ids_S is None else ids_S))
    if len(set(names_C)) < len(names_C):
        raise UserError(f"two columns of the frame are written alike: {shorten(names_C)}; rename one")
    called_C = [f"series {name!r}" for name in names_C]
    called_S = called_C if has_ids or len(labels) == 1 else ["the frame"]
    grid = lay_out(stamps_N, group_N, called_S, str(freq))
    values_TSK = np.full((grid.length_S.max(), len(grid.length_S), len(labels)), np.nan)
    y_NK = read_plain(frame[labels]) if plain.issuperset(labels) else None
    if y_NK is None:
        cells = (read_cells(frame[n], stamps_N, group_N, called_C[0 if has_ids else k :]) for k, n in enumerate(labels))
        y_NK = np.stack([*cells], 1)
    values_TSK[grid.row_N[grid.kept_N], group_N[grid.kept_N]] = y_NK[grid.kept_N]
    layout = Layout(wide, id_column if has_ids else None, time, tuple(labels), ids_S, index, grid, group_N)
    steps, each = grid.steps, len(labels)
    ends_C = tuple(steps.stamps(grid.count_S).repeat(each).astype(object))
    return Table(
        names_C,
        values_TSK.reshape(len(values_TSK), -1),
        ends_C,
        grid.length_S.repeat(each),
        steps.freq,
        1 if steps.freq else steps.size,
        layout,
        (*notes, *grid.notes),
    )


def ahead(table: Table, horizon: int) -> tuple[pd.Index, ...]:
    """Returns the next `horizon` stamps of each series, in the dtype of the frame's."""
    layout, grid = table.layout, table.layout.grid
    count_SH = grid.count_S[:, None] + np.arange(1, horizon + 1) * grid.steps.size
    stamps = grid.steps.stamps(count_SH.ravel())
    each = [stamps[s * horizon : (s + 1) * horizon] for s in range(len(count_SH))]
    return tuple(each * len(layout.labels_K) if layout.wide else each)


def write(table: Table, columns: dict[str, np.ndarray], after: int = 0) -> pd.DataFrame:
    """Returns a frame of the same kind with `columns`, {name: y_HC}, whose first row is the step after a series' end.

    Long: id, time and the columns, series by series. Wide: time and, for each series, the first column under the
    series' own name and the others behind it with what their names add: of {'ptt': .., 'ptt-lo-80': .., 'y': ..} and
    a series 'load' come 'load', 'load-lo-80' and 'load-y', so that a forecast can be put under the frame as it is.
    `after` moves the first row by so many steps, back where it is negative; rows before a series' first stamp are left
    out. Raises UserError when two columns get the same name.
    """
    return lay(table, {name: np.asarray(y_HC)[None] for name, y_HC in columns.items()}, [after], cutoff=False)


def write_windows(table: Table, columns: dict[str, np.ndarray], after: Sequence[int]) -> pd.DataFrame:
    """Returns what `write` does for several windows, {name: y_WHC}, with a column 'cutoff' after the time: the last
    stamp that a window knows, `after[w]` steps from the series' end. A series' windows that know nothing are left out.
    """
    return lay(table, columns, after, cutoff=True)


def truth(table: Table, horizon: int, after: Sequence[int]) -> np.ndarray:
    """Returns y_WHC, what came in the windows of `write_windows`; NaN where nothing is known."""
    step_WH = len(table.values_TC) + np.asarray(after)[:, None] + np.arange(horizon)
    known_WH = (step_WH >= 0) & (step_WH < len(table.values_TC))
    return np.where(known_WH[:, :, None], table.values_TC[np.where(known_WH, step_WH, 0)], np.nan)


def ends(table: Table) -> pd.DataFrame:
    """Returns where a table's series end: by their names, the last stamp, and the steps up to it."""
    stamps_C = pd.Index(list(table.ends_C))
    return pd.DataFrame({"end": stamps_C, "steps": table.lengths_C}, index=pd.Index(table.names_C, dtype=object))


def since(table: Table, ends: pd.DataFrame) -> np.ndarray:
    """Returns since_C, how many steps of each series come after where it ended before (`ends`); 0 of one that was not
    there, or where time is of another kind."""
    grid, each = table.layout.grid, len(table.layout.labels_K)
    at_C = ends.index.get_indexer(pd.Index(table.names_C, dtype=object))
    count_C = grid.steps.place(pd.Index(ends["end"])[at_C])
    if count_C is None:
        return np.zeros(len(at_C), int)
    past_C = -((count_C - grid.count_S.repeat(each)) // grid.steps.size)  # rounded up: a step begun is a step
    return np.where(at_C < 0, 0, np.clip(past_C, 0, table.lengths_C))


def behind(table: Table) -> np.ndarray:
    """Returns behind_C, how many steps before the table's latest stamp each series ends."""
    grid = table.layout.grid
    return ((grid.count_S.max() - grid.count_S) // grid.steps.size).repeat(len(table.layout.labels_K))


def usual_step(table: Table) -> int:
    """Returns how many steps of the table its frame's rows mostly are apart, 1 unless it was read with the `freq` of
    another."""
    grid, group_N = table.layout.grid, table.layout.group_N
    order_N = np.lexsort((grid.row_N, group_N))
    apart_N = np.diff(grid.row_N[order_N])[np.diff(group_N[order_N]) == 0]
    apart_N = apart_N[apart_N > 0]
    return int(np.bincount(apart_N).argmax()) if len(apart_N) > 1 else 1


def fill(table: Table, df: pd.DataFrame, values_TC: np.ndarray) -> pd.DataFrame:
    """Returns a copy of the frame that `table` was read from with its missing values taken from values_TC; everything
    else as it was. Rows that the frame lacks are not put in: `write` with after=-T has all of the grid.
    """
    out, values_NK = df.copy(), at_rows(table, df, values_TC)
    for k, label in enumerate(table.layout.labels_K):
        number = to_numbers(out[label].reset_index(drop=True))[0].to_numpy()
        if np.isnan(number).any():
            dtype = out[label].dtype if pd.api.types.is_float_dtype(out[label].dtype) else "float64"
            out[label] = pd.array(np.where(np.isnan(number), values_NK[:, k], number)).astype(dtype)
    return out


def attach(table: Table, df: pd.DataFrame, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """Returns a copy of the frame that `table` was read from with `columns`, {name: y_TC}, at its rows. Wide: a column
    for each series, called 'load-name'. Raises UserError when the frame has a column of that name.
    """
    layout, found = table.layout, {}
    for name, y_TC in columns.items():
        values_NK = at_rows(table, df, y_TC)
        for k, label in enumerate(layout.labels_K):
            found[f"{label}-{name}" if layout.wide else name] = values_NK[:, k]
    check_distinct([*df.columns, *found])
    return pd.concat([df, pd.DataFrame(found, index=df.index)], axis=1)


def at_rows(table: Table, df: pd.DataFrame, values_TC: np.ndarray) -> np.ndarray:
    """values_NK of the frame's rows."""
    layout = table.layout
    if len(df) != len(layout.group_N) or np.shape(values_TC) != table.values_TC.shape:
        was = f"{len(layout.group_N)} rows and values of shape {table.values_TC.shape}"
        raise ValueError(f"{len(df)} rows and values of shape {np.shape(values_TC)}; the table was read with {was}")
    values_TSK = np.reshape(values_TC, (len(values_TC), len(layout.grid.count_S), -1))
    return values_TSK[layout.grid.row_N, layout.group_N]


def lay(table: Table, columns: dict[str, np.ndarray], after: Sequence[int], cutoff: bool) -> pd.DataFrame:
    """The frame of {name: y_WHC}."""
    layout, grid = table.layout, table.layout.grid
    shapes = {np.shape(y_WHC) for y_WHC in columns.values()}
    if len(shapes) != 1 or (shape := shapes.pop())[::2] != (len(after), len(table.names_C)):
        raise ValueError(f"columns of shapes {shapes} for {len(after)} windows of {len(table.names_C)} series")
    after_W1, length_S11, count_S11 = (
        np.asarray(after)[:, None],
        grid.length_S[:, None, None],
        grid.count_S[:, None, None],
    )
    step_WH = after_W1 + np.arange(1, shape[1] + 1)
    known_SWH = (step_WH > -length_S11) & ((after_W1 > -length_S11) | (not cutoff))
    count_SWH = count_S11 + step_WH * grid.steps.size
    cutoff_SWH = np.broadcast_to(count_S11 + after_W1 * grid.steps.size, count_SWH.shape)
    leading: dict[Hashable, Any] = {}
    if layout.ids_S is not None:
        leading[layout.id_column] = layout.ids_S.take(np.nonzero(known_SWH)[0])
    leading[layout.time_column] = grid.steps.stamps(count_SWH[known_SWH])
    names: list[Hashable] = [*leading]
    if cutoff:
        leading["cutoff"] = grid.steps.stamps(cutoff_SWH[known_SWH])
        names.append("cutoff")
    first = next(iter(columns))
    if layout.wide:
        adds = [n.removeprefix(first) if n == first or n.startswith(first + "-") else f"-{n}" for n in columns]
        names += [f"{label}{add}" if add else label for label in layout.labels_K for add in adds]
        y_NCM = np.stack([np.asarray(y_WHC, float)[known_SWH[0]] for y_WHC in columns.values()], 2)
        y_NM = y_NCM.reshape(len(y_NCM), -1)
    else:
        names += columns
        y_NM = np.stack([np.moveaxis(np.asarray(y_WHC, float), 2, 0)[known_SWH] for y_WHC in columns.values()], 1)
    check_distinct(names)
    out = pd.DataFrame(y_NM)  # one block: of hundreds of series, hundreds of columns one by one take longest
    for at, stamps in enumerate(leading.values()):
        out.insert(at, f"leading {at}", stamps)
    out.columns = pd.Index(names)
    return out.set_index(list(layout.index)).rename_axis(list(layout.index.values())) if layout.index else out


def check_distinct(names: list[Hashable]) -> None:
    """Raises UserError when a name stands twice in what goes out."""
    again = pd.Index(names, dtype=object).duplicated()
    if again.any():
        name = names[int(again.argmax())]
        raise UserError(
            f"2 columns of the frame that goes out would be called {name!r}; accepted: another name for "
            "a column or a series of yours"
        )
