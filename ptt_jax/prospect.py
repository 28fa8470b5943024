"""A forecast as a page to look at: what each series did, and what is said of it, with intervals."""

from html import escape
from typing import Any

import numpy as np
import pandas as pd

from ptt_jax.charts import Band, Line, swatch
from ptt_jax.frames import Table
from ptt_jax.outlook import chart
from ptt_jax.scales import number
from ptt_jax.sheet import document, facts, figures, legend, table

SHOWN = 60  # series that are drawn
MOST = 1000  # series in the table
BEFORE = (48, 192)  # steps of history: twice the horizon, at least and at most so many


def page(title: str, past: Table, found: pd.DataFrame, name: str, levels: tuple[float, ...]) -> str:
    """Returns the page of a forecast. found: the frame that follows `past`, as `Forecaster.predict` returns it, whose
    `name` heads the columns of a long one."""
    frame = found if isinstance(found.index, pd.RangeIndex) else found.reset_index()
    charts, body = [], []
    for c, series in enumerate(past.names_C):
        rows, label = of_series(past, frame, c, name)
        y_H, stamps = rows[label].to_numpy("float64"), rows[past.layout.time_column]
        bounds = {z: [rows[f"{label}-{side}-{z:g}"].to_numpy("float64") for side in ("lo", "hi")] for z in levels}
        known_T = past.values_TC[-int(past.lengths_C[c]) :, c]
        ends = [f"{number(low[-1])} to {number(high[-1])}" for low, high in bounds.values()]
        last = known_T[~np.isnan(known_T)][-1:]
        values = (*map(number, map(float, last)),) or (number(np.nan),)
        body.append([escape(series), *values, number(y_H[0]), number(y_H[-1]), *ends])
        if c < SHOWN:
            charts.append(draw(series, known_T, y_H, bounds, stamps))
    items = [(swatch("truth"), "history"), (swatch("m3 tuned"), "forecast")]
    items += [(swatch(f"level{z:g}"), f"{z:g} % interval") for z in levels]
    more = f"The first {SHOWN} of {len(past.names_C)} series. " if len(past.names_C) > SHOWN else ""
    more += "Intervals are conformal: made from how forecasts erred over the whole history where it is long enough."
    head = ["series", "last value", "next step", "last step", *(f"{z:g} % there" for z in levels)]
    known = [
        ("Series", f"{len(past.names_C):,}"),
        ("Steps ahead", f"{len(y_H):,}"),
        ("Step", past.freq or str(past.step)),
    ]
    parts = [
        ("forecasts", "Forecasts", legend(items) + figures(charts, more)),
        ("table", "Numbers", table("What each series is said to do", head, body[:MOST], "numbers")),
    ]
    return document(title, facts(known), parts, "ptt_jax")


def of_series(past: Table, frame: pd.DataFrame, c: int, name: str) -> tuple[pd.DataFrame, Any]:
    """Returns the rows of a series in what `frames.write` wrote, and the column of its forecast."""
    layout = past.layout
    if layout.wide:
        return frame, layout.labels_K[c]
    if layout.ids_S is None:
        return frame, name
    return frame[frame[layout.id_column].astype(str) == past.names_C[c]], name


def draw(series: str, known_T: np.ndarray, y_H: np.ndarray, bounds: dict, stamps: pd.Series) -> str:
    """Returns the chart of one series."""
    past = known_T[-min(max(2 * len(y_H), BEFORE[0]), BEFORE[1]) :]
    x = np.arange(len(y_H))
    curves = [Line("history", "truth", np.arange(-len(past), 0), past), Line("forecast", "m3 tuned", x, y_H)]
    bands = [Band(f"{z:g} %", f"level{z:g}", x, low, high) for z, (low, high) in bounds.items()]
    first, seconds = None, 0.0
    if isinstance(stamps.dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_any_dtype(stamps):
        first = stamps.iloc[0].tz_localize(None)
        steps = np.unique(stamps.diff().dropna().dt.total_seconds())
        seconds = float(steps[0]) if len(steps) == 1 else 0.0
    words = f"{len(past)} steps of history and {len(y_H)} ahead, from {number(y_H[0])} to {number(y_H[-1])}"
    return chart(series, words, curves, bands, first, seconds)
