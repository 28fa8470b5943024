"""A request to a task of a bank: a frame that is read as the task's own was, and the answer in a frame of that kind."""

import numpy as np
import pandas as pd

from ptt_jax import answer, frames, quantiles
from ptt_jax.errors import UserError
from ptt_jax.frames import Table
from ptt_jax.parcel import Parcel


def read(of: Parcel, df: pd.DataFrame) -> Table:
    """Returns a request's series. Raises UserError, which names the task."""
    columns = {key: of.params[key] for key in ("id_column", "time_column", "target_column")}
    try:
        table = frames.read(df, **columns, freq=of.freq)
        answer.check_step(table, of.freq, "it")
    except UserError as e:
        raise UserError(f"task {of.name!r}: {e}") from None
    return table


def check_horizon(of: Parcel, horizon: int | None) -> int:
    """Returns how many steps a task is asked for. Raises UserError when it was tuned for less."""
    if horizon is not None and not (isinstance(horizon, int | np.integer) and 1 <= horizon <= of.horizon):
        raise UserError(
            f"horizon={horizon!r}: the prompt of task {of.name!r} was tuned for {of.horizon} steps; accepted: 1 to "
            f"{of.horizon}, or None, each task's own"
        )
    return of.horizon if horizon is None else int(horizon)


def ends(values_TC: np.ndarray, length: int) -> np.ndarray:
    """Returns history_RT, the last `length` steps of each series, NaN before the first."""
    end_TC = values_TC[-length:]
    return np.pad(end_TC, ((length - len(end_TC), 0), (0, 0)), constant_values=np.nan).T


def written(
    of: Parcel, table: Table, y_CH: np.ndarray, away_LCH: np.ndarray, unit_C: np.ndarray, levels: tuple[float, ...]
) -> pd.DataFrame:
    """Returns the answer to a request, with the bounds of each level, in percent.

    away_LCH: what the task's quantile prompts say (`predict.Predictor.told`), if it has any and bounds are asked for;
    unit_C: of the task's intervals, of each series' history. Warns and raises UserError as `answer.write` does.
    """
    known, tuned = of.intervals(), of.levels if levels else ()
    size_C = unit_C * known.ratios(of.names_C, table.names_C)
    away_L1HC = away_LCH[: len(quantiles.with_median(tuned))].swapaxes(1, 2)[:, None]
    name = of.params["name"]
    columns = quantiles.columns(name, y_CH.T[None], size_C[None], known, levels, away_L1HC, tuned)
    return answer.write(table, columns, of.cfg.lookback, of.name, stacklevel=4)
