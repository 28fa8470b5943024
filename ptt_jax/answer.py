"""What goes back to who asked for a forecast: its columns with their intervals, in a frame of the kind that came."""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ptt_jax import frames
from ptt_jax.errors import UserError
from ptt_jax.frames import Table
from ptt_jax.intervals import Intervals


def check_step(table: Table, freq: str | int, who: str) -> None:
    """Raises UserError when the rows of a table, read with the `freq` that `who` learned, are of another step."""
    usual = frames.usual_step(table)
    if usual > 1:
        raise UserError(
            f"the frame's rows are {usual} steps of {freq!r} apart, which {who} learned; accepted: a "
            f"frame of that step, rows or cells missing where nothing was observed"
        )


def columns(
    name: str, y_WHC: np.ndarray, unit_WC: np.ndarray, known: Intervals, levels: Sequence[float]
) -> dict[str, np.ndarray]:
    """Returns {name: y_WHC} and the bounds of each level, `name-lo-80` and `name-hi-80`; unit_WC: of the intervals, in
    the units of each window's series."""
    each = [[known.bounds(y_HC, unit_C, z) for z in levels] for y_HC, unit_C in zip(y_WHC, unit_WC, strict=True)]
    return named(name, y_WHC, levels, each)


def named(
    name: str, y_WHC: np.ndarray, levels: Sequence[float], each: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]
) -> dict[str, np.ndarray]:
    """Returns what `columns` does of the bounds of each window and level."""
    out = {name: y_WHC}
    for level, *both in zip(levels, *each, strict=True):
        low_WHC, high_WHC = (np.stack(side) for side in zip(*both, strict=True))
        out |= {f"{name}-lo-{level:g}": low_WHC, f"{name}-hi-{level:g}": high_WHC}
    return out


def write(
    table: Table, columns: dict[str, np.ndarray], lookback: int, task: str = "", stacklevel: int = 2
) -> pd.DataFrame:
    """Returns the frame of {name: y_WHC} of one window, the forecast first. Warns of series that have none since their
    last `lookback` steps are empty; raises UserError when all are. task: whom to name besides."""
    empty_C = np.isnan(next(iter(columns.values()))[0]).all(0)
    if empty_C.any():
        names = [name for name, empty in zip(table.names_C, empty_C, strict=True) if empty]
        words = f"{frames.shorten(names)} without a value in the last {lookback} steps, which a forecast is made from"
        of = f" of task {task!r}" if task else ""
        if empty_C.all():
            raise UserError(f"series{of} {words}; accepted: at least one value there")
        warnings.warn(f"no forecast of series{of} {words}", stacklevel=stacklevel)
    return frames.write(table, {name: y_WHC[0] for name, y_WHC in columns.items()})
