"""Own data with untouched defaults: `Forecaster` against seasonal naive and the linear map, on series of many shapes.

    python experiments/own.py [--data=vic_elec,NN5_daily] [--knob=KEY=VALUE ...] [--quantiles=0.1,0.9]
    python experiments/own.py --file=mine.csv --horizon=24   # any other file, a column for each series

A Forecaster learns from all rows but the last tenth (at least two horizons), and forecasts windows that lie evenly over
the rest, some 200 where it holds them, each from all rows before it. Errors are of the mean absolute kind, in units of
each series' spread in the rows that taught, so that series weigh alike. `linear` is the ridge regression of
baselines.py with the Forecaster's lookback; `last season` repeats the season that the Forecaster found. What finished
is in results/own.csv, of --file in results/own-more.csv, and is not run again under the same knobs.
"""

import argparse
import ast
import hashlib
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from ledger import Ledger, chosen, command, exit_code, finish, show

from ptt_jax import Forecaster, baselines, fitting, frames, intervals, layers, mesh, predict, problems, recipe, scaling
from ptt_jax.errors import UserError

HERE = Path(__file__).parent
# file, horizon: a day of hours and half hours, what a bank plans of its machines, a season of flu, a month of rates
SETS = {
    "vic_elec": ("more/vic_elec.csv.gz", 48),
    "gefcom2012_load": ("more/gefcom2012_load.csv.gz", 24),
    "NN5_daily": ("more/NN5_daily.csv.gz", 56),
    "Beijing_air": ("more/Beijing_air.csv.gz", 24),
    "WTH": ("more/WTH.csv.gz", 24),
    "illness": ("national_illness.csv", 24),
    "exchange_rate": ("exchange_rate.csv", 30),
}
WINDOWS = 200
HELD_OUT = 0.1
COLUMNS = ("last season", "linear", "prompts", "of linear", "coverage 80", "coverage 95", "seconds")


def measure(
    name: str, file: str | Path, horizon: int, knobs: Mapping[str, Any], quantiles: tuple[float, ...] = ()
) -> dict[str, Any]:
    """Returns one row of the table; quantiles: of prompts that intervals are made from. Raises UserError for a file
    that cannot be read, or is long."""
    path = Path(os.environ.get("PTT_DATA_DIR", ".")) / file
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({getattr(e, 'strerror', e)}); accepted: a csv") from None
    if not frames.read(frame).layout.wide:
        raise UserError(f"{path} is long; accepted: a column for each series, none of them called y")
    held = max(int(HELD_OUT * len(frame)), 2 * horizon)
    begun = time.perf_counter()
    model = Forecaster(horizon, quantiles=quantiles, knobs=knobs, verbose=True).fit(frame.iloc[:-held])
    seconds = time.perf_counter() - begun
    of, table = model.fitted, frames.read(frame)
    step = max((held - horizon) // (WINDOWS - 1), 1)
    count = (held - horizon) // step + 1
    found = model.cross_validation(frame, n_windows=count, step_size=step, levels=(80, 95), refit=False)
    after = [-(horizon + i * step) for i in reversed(range(count))]

    before_TC = table.values_TC[:-held]
    spread_C = scaling.exact(before_TC, ~np.isnan(before_TC)).scale_C
    labels = table.layout.labels_K

    def pick(rest: str) -> np.ndarray:
        cells = found[[f"{label}{rest}" for label in labels]].to_numpy()
        return cells.reshape(count, horizon, len(labels)) / spread_C

    truth, forecast = pick("-y"), pick("")
    ends = [len(table.values_TC) + a for a in after]
    history_RT = np.concatenate([table.values_TC[end - of.cfg.lookback : end].T for end in ends])
    x_RT, seen_RT, scaler = predict.ready(history_RT, of.cfg.lookback)
    x_RT = last_observed(x_RT, seen_RT)
    past = frames.read(frame.iloc[:-held])
    problem = problems.prepare(
        fitting.as_series(past, recipe.validation_rows(len(frame) - held, horizon)), mesh.make(0)
    )
    spans = [problem.span(split, of.cfg.lookback, of.cfg.horizons) for split in ("train", "validation")]
    weights_TH = baselines.fit_linear(problem, *spans)

    def restore(y_RH: Any) -> np.ndarray:
        y_RH = np.asarray(y_RH) * scaler.scale_C[:, None] + scaler.mean_C[:, None]
        return y_RH.reshape(count, len(labels), horizon).swapaxes(1, 2) / spread_C

    naive = restore(baselines.seasonal_naive(x_RT, of.season, horizon))
    linear = restore(layers.linear(weights_TH, x_RT, seen_RT))
    error = {"last season": naive, "linear": linear, "prompts": forecast}
    known = ~np.isnan(truth + forecast)  # the same for all
    mae = {model: float(np.abs(y - truth)[known].mean()) for model, y in error.items()}
    cover = {
        f"coverage {level}": intervals.coverage(truth, pick(f"-lo-{level}"), pick(f"-hi-{level}")) for level in (80, 95)
    }
    return {
        "data": name, "knobs": said(knobs, quantiles), "rows": len(frame) - held,
        "series": len(labels), "horizon": horizon, "season": of.season, "patch": of.cfg.model.patch,
        "lookback": of.cfg.lookback, "windows": count, **mae, "of linear": mae["prompts"] / mae["linear"], **cover,
        "pinball 10": intervals.pinball(truth, pick("-lo-80"), 0.1),
        "pinball 90": intervals.pinball(truth, pick("-hi-80"), 0.9),
        "seconds": seconds, "recipe": recipe_hash(), "device": jax.devices()[0].device_kind,
        "date": pd.Timestamp.now().date().isoformat(),
    }  # fmt: skip


def said(knobs: Mapping[str, Any], quantiles: tuple[float, ...] = ()) -> str:
    """Returns the knobs as the csv has them, quantiles among them."""
    words = [f"quantiles={','.join(map(str, quantiles))}"] * bool(quantiles)
    return " ".join([*words, *(f"{k}={v}" for k, v in knobs.items())]) or "untouched"


def last_observed(x_RT: np.ndarray, seen_RT: np.ndarray) -> np.ndarray:
    """Returns histories whose missing values are the last observed ones, which a season is copied from."""
    at_RT = np.maximum.accumulate(np.where(seen_RT, np.arange(x_RT.shape[1]), 0), axis=1)
    return np.take_along_axis(x_RT, at_RT, axis=1)


def recipe_hash() -> str:
    """Returns 8 hex digits over the rules: what was measured under others is run again."""
    rules = ("recipe", "seasons", "intervals", "calibrate", "drift")
    text = "".join((Path(recipe.__file__).parent / f"{name}.py").read_text("utf-8") for name in rules)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def table(rows: pd.DataFrame) -> str:
    """Returns the table for README.md."""
    lines = ["| | rows x series | horizon | season, patch, lookback | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---" * (4 + len(COLUMNS)) + "|")
    for r in rows.to_dict("records"):
        cells = [f"{r[c]:.3f}" if c != "seconds" else f"{r[c]:.0f}" for c in COLUMNS]
        shape = f"{r['rows']} x {r['series']} | {r['horizon']} | {r['season']}, {r['patch']}, {r['lookback']}"
        lines.append(f"| {r['data']} | {shape} | {' | '.join(cells)} |")
    return "\n".join(lines)


@exit_code("own")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="which sets, comma-separated; default: all")
    parser.add_argument("--knob", action="append", default=[], help="KEY=VALUE in the recipe's stead; its own rows")
    parser.add_argument("--quantiles", default="", help="like 0.1,0.9: intervals from quantile prompts; their own rows")
    parser.add_argument("--file", default="", help="a csv in the sets' place, with --horizon")
    parser.add_argument("--horizon", type=int, default=0, help="steps ahead, of --file")
    args = parser.parse_args()
    if bool(args.file) != bool(args.horizon) or args.horizon < 0 or (args.file and args.data):
        raise UserError("--file and --horizon go together, in --data's place; accepted: both, a horizon of at least 1")
    quantiles = tuple(float(q) for q in args.quantiles.split(",") if q)
    knobs = {k: parse_value(v) for k, _, v in (text.partition("=") for text in args.knob)}
    sets, name, words = SETS, "own", sys.argv[1:]
    if args.file:
        path = Path(args.file).absolute()
        sets, name = {re.sub(r"\.csv(\.gz)?$", "", path.name): (path, args.horizon)}, "own-more"
        words = [word.replace(args.file, path.name) for word in words]  # not where it lies on this machine
    ledger = Ledger(HERE / "results" / f"{name}.csv", ("data", "knobs", "horizon"), ("recipe",))
    rules = {"knobs": said(knobs, quantiles), "recipe": recipe_hash()}
    asked = list(sets) if args.file or not args.data else chosen(args.data, sets)
    cells = [{"data": data, "horizon": sets[data][1], **rules} for data in asked]

    def rows(data: str, **_: Any) -> list[dict[str, Any]]:
        return [{**measure(data, *sets[data], knobs, quantiles), "command": command("own", words)}]

    finish(ledger, cells, rows, lambda rows: table(pd.DataFrame(rows)))
    show(name, table(ledger.rows[ledger.rows["knobs"] == said({})]))


def parse_value(text: str) -> Any:
    """Returns a number, True or False where the text is one."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return value if isinstance(value, int | float) else text


if __name__ == "__main__":
    sys.exit(main())
