"""One table out of many run directories: mean over seeds, and its spread where there are several.

python experiments/collect.py runs/etth1 runs/etth1-*            # test MSE / MAE by model, lookback and horizon
python experiments/collect.py runs/* --by=config.tune.learning_rate --split=validation --csv=sweep.csv
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from ptt_jax import config
from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic
from ptt_jax.seal import read_json


def read(run: Path, keys: list[str]) -> pd.DataFrame:
    """Returns a run's results.csv with a column for each key of its config, and the config's hash."""
    results, path = run / "results.csv", run / "config.json"
    if not results.is_file():
        raise UserError(f"{results} does not exist; accepted: directories of finished runs")
    cfg = config.from_json(json.dumps(read_json(path)))
    knobs = config.flat(cfg)
    unknown = [key for key in keys if key not in knobs]
    if unknown:
        raise UserError(f"{path} has no key {unknown[0]}; {config.nearest(unknown[0], list(knobs))}")
    frame = pd.read_csv(results)
    for key in keys:
        frame[key] = str(knobs[key])
    frame["config"] = config.content_hash(cfg)
    return frame


def collect(runs: list[Path], keys: list[str], split: str) -> pd.DataFrame:
    """Returns one row for each data set, model, lookback, horizon and value of the keys: mean and spread over seeds.

    Raises UserError when two runs of one seed would fall into one cell: a key that tells them apart is missing.
    """
    rows = pd.concat([read(run, keys) for run in runs]).query("split == @split")
    cell = list(dict.fromkeys(["data", "model", "lookback", *keys, "horizon"]))
    twice = rows[
        rows.duplicated([*cell, "seed"], keep=False) & ~rows.duplicated([*cell, "seed", "mse", "mae"], keep=False)
    ]
    if len(twice):
        a, b = twice["config"].unique()[:2] if twice["config"].nunique() > 1 else (twice["config"].iloc[0],) * 2
        raise UserError(
            f"two runs (configs {a} and {b}) share data, lookback and seed; accepted: --by with a key they differ in"
        )
    grouped = rows.drop_duplicates([*cell, "seed"]).groupby(cell, sort=False)
    table = grouped.agg(
        mse=("mse", "mean"),
        mse_spread=("mse", "std"),
        mae=("mae", "mean"),
        mae_spread=("mae", "std"),
        seeds=("seed", "nunique"),
    )
    return table.reset_index()


def markdown(table: pd.DataFrame, keys: list[str]) -> str:
    """Returns the table with one row a model and one column a horizon, 'mse / mae', and the mean of the horizons."""
    lines: list[str] = []
    for names, part in table.groupby(["data", "lookback", *keys], sort=False):
        horizons = sorted(part["horizon"].unique())
        title = ", ".join(f"{k} {v}" for k, v in zip(["data", "lookback", *keys], names, strict=True))
        lines += [
            "",
            f"**{title}**",
            "",
            "| model | " + " | ".join(map(str, horizons)) + " | mean | seeds |",
            "|---" * (len(horizons) + 3) + "|",
        ]
        for model, cells in part.groupby("model", sort=False):
            by = cells.set_index("horizon")
            texts = [cell(by.loc[h]) if h in by.index else "" for h in horizons]
            mean = f"{by['mse'].mean():.3f} / {by['mae'].mean():.3f}" if len(by) == len(horizons) else ""
            lines.append(f"| {model} | " + " | ".join([*texts, mean, str(by["seeds"].min())]) + " |")
    return "\n".join(lines).strip()


def cell(row: Any) -> str:
    spread = f" ±{row['mse_spread']:.3f}" if row["seeds"] > 1 else ""
    return f"{row['mse']:.3f}{spread} / {row['mae']:.3f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--by", action="append", default=[], help="a key of the config that makes columns, repeatable")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--csv", type=Path, help="write the long table here, too")
    args = parser.parse_args(argv)
    always = ("lookback", "seed", "horizons")  # are in results.csv
    keys = [key for key in (by.removeprefix("config.") for by in args.by) if key not in always]
    try:
        table = collect(args.runs, keys, args.split)
    except UserError as e:
        print(f"collect: {e}", file=sys.stderr)
        return 2
    if args.csv:
        write_atomic(args.csv, table.to_csv(index=False, float_format="%.6f"))
    print(markdown(table, keys))
    return 0


if __name__ == "__main__":
    sys.exit(main())
