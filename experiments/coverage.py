"""How intervals of own data should be made: rules on earlier ends of many series, a linear map in the place of a model.

    python experiments/coverage.py [--data=vic_elec,NN5_daily]

A ridge regression (as in baselines.py) learns from what lies before an end of a series but its last rows, as a
Forecaster does, and forecasts up to 200 windows after it. Coverage is that of 80 % intervals from its residuals on
these last rows, or from `calibrate.py`, over the whole history; in units of a history's spread, or in those of
`intervals.Unit`; and as wide as what came since the end says (`drift.py`). The last tenth of each series, which
own.py's table is of, is never read; of many series 32 are.
What finished is in results/coverage.csv.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import own
import pandas as pd
from ledger import Ledger, chosen, exit_code, finish, show

from ptt_jax import calibrate, drift, fitting, frames, intervals, recipe, scaling, seasons
from ptt_jax.errors import UserError
from ptt_jax.intervals import Unit

HERE = Path(__file__).parent
SETS = {
    **own.SETS,
    "ETTh1": ("ETTh1.csv", 24),
    "ETTh2": ("ETTh2.csv", 48),
    "ETTm1": ("ETTm1.csv", 96),
    "ETTm2": ("ETTm2.csv", 96),
    "weather": ("weather.csv", 144),
}
ENDS = (0.45, 0.55, 0.65, 0.75, 0.89)  # of the rows that may be read
SERIES, WINDOWS, AHEAD = 32, 200, 0.1
RULES = ("last rows, spread", "last rows, unit", "history, spread", "history, unit", "history, unit, drift")


class Ridge:
    """A linear map around the history's mean, in the place of a `predict.Predictor`."""

    levels = ()  # no quantile prompts

    def __init__(self, table: frames.Table, rows: int, lookback: int, horizon: int) -> None:
        """Learns from the first `rows` rows; the ridge is the best of `calibrate.RIDGES` on their last fifth."""
        self.lookback, self.horizon = lookback, horizon
        seen_TC = ~np.isnan(table.values_TC[:rows])
        z_TC = scaling.exact(table.values_TC[:rows], seen_TC).transform(table.values_TC[:rows], seen_TC)
        windows = np.lib.stride_tricks.sliding_window_view(z_TC, lookback + horizon, axis=0)
        known = np.lib.stride_tricks.sliding_window_view(seen_TC, lookback + horizon, axis=0)
        s_R, c_R = np.nonzero(known[..., lookback:].all(-1))
        some = np.random.default_rng(0).permutation(len(s_R))[:25_000]
        s_R, c_R = s_R[some], c_R[some]
        x_RT, mean_R1 = centre(windows[s_R, c_R, :lookback], known[s_R, c_R, :lookback])
        y_RH, late_R = windows[s_R, c_R, lookback:] - mean_R1, s_R >= 0.8 * len(windows)
        maps = calibrate.ridges(x_RT[~late_R], y_RH[~late_R])
        self.weights_TH = min(maps, key=lambda w: float(np.square(y_RH[late_R] - x_RT[late_R] @ w).sum()))

    def __call__(self, history_RT: np.ndarray, horizon: int) -> np.ndarray:
        x_RT, mean_R1 = centre(np.nan_to_num(history_RT), ~np.isnan(history_RT))
        return x_RT @ self.weights_TH + mean_R1


def centre(x_RT: np.ndarray, seen_RT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the history around its own mean, 0 where missing, and mean_R1."""
    mean_R1 = (x_RT * seen_RT).sum(1, keepdims=True) / np.maximum(seen_RT.sum(1, keepdims=True), 1)
    return (x_RT - mean_R1) * seen_RT, mean_R1


class Scene(NamedTuple):
    """An end of a series: what is known by then, what comes after, and a model that the last `kept` rows before it
    taught nothing."""

    model: Any
    past: frames.Table
    whole: frames.Table
    kept: int
    season: int
    after: list[int]  # windows from there on, in steps from the whole's end


def scene(name: str, end: float) -> Scene | None:
    """Returns an end of a set, None where the history is too short."""
    file, horizon = SETS[name]
    frame = pd.read_csv(Path(os.environ.get("PTT_DATA_DIR", ".")) / file)
    some = np.unique(np.linspace(1, frame.shape[1] - 1, SERIES).astype(int))
    frame = frame.iloc[: len(frame) - max(len(frame) // 10, 2 * horizon), [0, *some]]
    rows = int(end * len(frame))
    ahead = min(max(int(AHEAD * rows), 2 * horizon), len(frame) - rows)
    past, whole = (frames.read(frame.iloc[:r]) for r in (rows, rows + ahead))
    season = seasons.estimate(past.values_TC, past.freq)
    try:
        of = recipe.recipe(rows, len(past.names_C), season, horizon)
    except UserError:
        return None
    kept = recipe.validation_rows(fitting.typical_rows(past, horizon), horizon)
    model = Ridge(past, rows - kept, of.lookback, horizon)
    return Scene(model, past, whole, kept, season, calibrate.cutoffs(-ahead, -horizon, WINDOWS))


def measure(data: str, end: float) -> list[dict[str, Any]]:
    """Returns one row of the csv, none where the history is too short."""
    here = scene(data, end)
    if here is None:
        return []
    model, past, whole, kept, season, after = here
    horizon = model.horizon
    last = calibrate.cutoffs(-kept, -horizon, calibrate.CUTOFFS)
    found: dict[str, Any] = {"data": data, "end": end, "rows": len(past.values_TC), "windows": len(after)}
    for words, unit in (("spread", intervals.SPREAD), ("unit", Unit.of(season, horizon, model.lookback))):
        residual_WHC, unit_WC = calibrate.back_test(model, whole, after, unit)
        rules = {
            "last rows": intervals.fit(*calibrate.back_test(model, past, last, unit), kept // horizon, unit),
            "history": calibrate.fit(model, past, kept, unit),
        }
        for rule, known in rules.items():
            sides = np.array([known.bounds(np.zeros(residual_WHC.shape[1:]), known.ratio_C * unit_C, 80)
                              for unit_C in unit_WC])  # fmt: skip
            found |= judge(f"{rule}, {words}", residual_WHC, sides)
    new, full = (np.full(len(past.names_C), rows) for rows in (len(whole.values_TC) - len(past.values_TC), 0))
    factor_WC = np.nan_to_num(drift.factors(model, known, known.ratio_C, whole, new, full, after), nan=1.0)
    medians = np.array(
        [known.bounds(np.zeros(residual_WHC.shape[1:]), known.ratio_C * unit_C, 0) for unit_C in unit_WC]
    )
    return [found | judge(RULES[-1], residual_WHC, medians + (sides - medians) * factor_WC[:, None, None])]


def judge(rule: str, residual_WHC: np.ndarray, sides: np.ndarray) -> dict[str, float]:
    """Returns the coverage and the pinball loss of bounds [W, side, H, C]."""
    losses = [intervals.pinball(residual_WHC, sides[:, i], q) for i, q in enumerate((0.1, 0.9))]
    loss = float(np.mean(losses) / np.nanmean(np.abs(residual_WHC)))
    return {rule: intervals.coverage(residual_WHC, sides[:, 0], sides[:, 1]), f"pinball, {rule}": loss}


def table(rows: pd.DataFrame) -> str:
    """Returns the table for README.md."""
    lines = [
        "| residuals of, in units of | ends that 75 to 85 % cover | 77.5 to 82.5 % | mean distance from 80 % | loss |"
    ]
    lines.append("|---" * 5 + "|")
    for rule in RULES:
        inside, near = rows[rule].between(0.75, 0.85).sum(), rows[rule].between(0.775, 0.825).sum()
        off = (rows[rule] - 0.8).abs().mean()
        loss = np.exp(np.log(rows[f"pinball, {rule}"] / rows[f"pinball, {RULES[0]}"]).mean())
        lines.append(f"| {rule} | {inside} of {len(rows)} | {near} | {off:.3f} | {loss:.3f} |")
    return "\n".join(lines)


def study(
    name: str, about: str | None, measure: Callable[..., list[dict]], words: Callable[[list[dict]], str],
    table: Callable[[pd.DataFrame], str],
) -> None:  # fmt: skip
    """Measures each of the sets that the command line asks for at each of ENDS, and writes the table."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(SETS), help="which sets, comma-separated")
    args = parser.parse_args()
    ledger = Ledger(HERE / "results" / f"{name}.csv", ("data", "end"))
    cells = [{"data": data, "end": end} for data in chosen(args.data, SETS) for end in ENDS]
    finish(ledger, cells, measure, words)
    show(name, table(ledger.rows))


def words(rows: list[dict]) -> str:
    """Returns what is said of a row."""
    (row,) = rows
    return " ".join([*(f"{row[rule]:.3f}" for rule in RULES), row["data"], str(row["end"])])


@exit_code("coverage")
def main() -> None:
    study("coverage", __doc__, measure, words, table)


if __name__ == "__main__":
    sys.exit(main())
