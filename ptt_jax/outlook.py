"""Forecasts to look at: history, truth, what each model says, and intervals around the tuned one."""

import warnings
from typing import Any

import numpy as np
import pandas as pd

from ptt_jax.charts import Band, Line, lines, swatch
from ptt_jax.found import ABSENT, Found, spoken
from ptt_jax.pictures import SHOWN
from ptt_jax.scales import dates, number
from ptt_jax.sheet import figures, folded, legend, missing

PICKS = 9  # most windows that are shown


def forecasts(of: Found) -> str:
    """Returns the windows of samples.npz, channel by channel in the order of time."""
    if not of.samples:
        return missing(ABSENT.format("samples.npz"))
    channel_S, order = of.samples["channel_S"], np.argsort(of.samples["stamp_S"], kind="stable")
    picks = [s for name in dict.fromkeys(channel_S) for s in order if channel_S[s] == name][:PICKS]
    items = [(swatch("truth"), "truth"), *((swatch(of.looks[m]), spoken(m)) for m in drawn(of))]
    if "low_ZSH" in of.kept:
        items += [(swatch(f"level{z:g}"), f"{z:g} % interval of {spoken(of.tuned)}") for z in of.kept["levels"]]
    horizon = of.samples["truth_SH"].shape[1]
    note = f"The first {SHOWN} of {horizon} steps. " if horizon > SHOWN else ""
    note += f"Windows are spread evenly over {of.split}, and were not chosen. {calibration(of)}"
    body = legend(items) + figures((window(of, s, SHOWN) for s in picks), note)
    if horizon > SHOWN:
        whole = figures((window(of, s, horizon, wide=True) for s in picks[:6]), kind="one")
        body += folded(f"All {horizon} steps", whole)
    if "coverage_ZH" in of.kept:
        body += folded("What share of test the intervals cover, by step", figures([coverage(of)], covered(of), "two"))
    return body


def drawn(of: Found) -> list[str]:
    """Returns the models whose forecasts were kept."""
    return [m for m in of.models if f"forecast_{m}_SH" in of.samples]


def calibration(of: Found) -> str:
    """Returns what the intervals were made from, and what they cover."""
    if "low_ZSH" not in of.kept:
        return "Intervals: " + ABSENT.format("exhibits.npz")
    windows, apart = (int(of.kept[key]) for key in ("windows", "apart"))
    alone = "every other overlaps one of them" if apart < windows else "none overlaps another"
    return (
        f"Intervals are split-conformal: quantiles of the errors of {windows:,} validation windows, a little further "
        f"out as {apart:,} of them lie end to end ({alone}). Validation chose the weights, too. {covered(of)}"
    )


def covered(of: Found) -> str:
    if "coverage_ZH" not in of.kept:
        return ""
    pairs = zip(of.kept["levels"], mean(of.kept["coverage_ZH"]), strict=True)
    shares = (f"{100 * share:.1f} % lie within those of {z:g} %" for z, share in pairs)
    return f"Of the values of test, {' and '.join(shares)}."


def mean(a_ZH: np.ndarray) -> np.ndarray:
    """Returns the mean over steps at which anything is known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(a_ZH, -1))


def coverage(of: Found) -> str:
    """Returns the chart of coverage by step."""
    levels, share_ZH = [float(z) for z in of.kept["levels"]], of.kept["coverage_ZH"]
    steps = np.arange(1, share_ZH.shape[1] + 1)
    looks = ("m3 tuned", "m2", "m1", "m4")
    curves = [Line(f"{z:g} %", k, steps, 100 * share_H) for z, k, share_H in zip(levels, looks, share_ZH, strict=False)]
    return lines("Coverage, %", covered(of), curves, levels=levels, unit="step of the horizon")


def window(of: Found, s: int, shown: int, wide: bool = False) -> str:
    """Returns the chart of one sample, on dates where the step is constant; gaps where nothing was seen."""
    a = of.samples
    past = np.where(a["history_observed_ST"][s], a["history_ST"][s], np.nan)
    future = np.where(a["truth_observed_SH"][s], a["truth_SH"][s], np.nan)[:shown]
    past = past[-max(48, min(192, 2 * len(future))) :]
    said = {m: a[f"forecast_{m}_SH"][s][:shown] for m in drawn(of)}
    x, before = np.arange(len(future)), np.arange(-len(past), len(future))
    curves = [Line(spoken(m), of.looks[m], x, y) for m, y in said.items()]
    curves.append(Line("truth", "truth", before, np.append(past, future)))
    bands = []
    if "low_ZSH" in of.kept:
        for z, low, high in zip(of.kept["levels"], of.kept["low_ZSH"], of.kept["high_ZSH"], strict=True):
            bands.append(Band(f"{z:g} %", f"level{z:g}", x, low[s][:shown], high[s][:shown]))
    errors = {m: float(mean(np.abs(y - future))) for m, y in said.items()}
    words = f"{len(past)} steps of history and {len(future)} ahead; mean absolute error: "
    words += ", ".join(f"{spoken(m)} {number(error)}" for m, error in errors.items())
    stamp = pd.to_datetime(str(a["stamp_S"][s]), errors="coerce")
    return chart(str(a["channel_S"][s]), words, curves, bands, stamp, float(a["step_seconds"]), wide)


def chart(
    name: str, words: str, curves: list[Line], bands: list[Band], stamp: Any, seconds: float, wide: bool = False
) -> str:
    """Returns the chart of what happened and what is forecast, step 0 the first that is; on dates where `stamp` is that
    of step 0 and a step takes so many seconds (0: not always as many), on steps otherwise."""
    at = None
    axis: dict[str, Any] = {"word": "step"}
    x = np.concatenate([c.x for c in curves])
    if isinstance(stamp, pd.Timestamp) and not pd.isna(stamp):
        name += f", from {str(stamp)[:16]}"
        if seconds > 0:
            axis = {"date": stamp.tz_localize(None).isoformat(), "seconds": seconds}
            at = dates(float(x.min()), float(x.max()), stamp.tz_localize(None), seconds)
    return lines(name, words, curves, bands[::-1], xticks=at, mark=-0.5, axis=axis, wide=wide)
