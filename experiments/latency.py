"""How long `Forecaster.predict` takes: 100 series, 48 hours ahead, the model that untouched defaults give.

    python experiments/latency.py [--series=100]

A Forecaster learns for a few steps, which changes no program, and is saved. Then a new process with a warm compilation
cache loads it and forecasts: once, with its imports, and then many times, of a wide frame, of a long one of 1,000 rows
a series, of a wide one with 400 rows since it learned, which widen its intervals, and of the rows that it learned from.
Medians of wall time, one line for each in results/latency.csv.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ledger import Ledger, command, show

HERE = Path(__file__).parent
HORIZON, ROWS, RECENT, SINCE, TIMES = 48, 3400, 1000, 400, 50
NEWER, OWN = "rows since it learned", "what it learned from"
FEW = {"pretrain.steps": 5, "pretrain.validations": 1, "tune.steps": 2, "tune.validations": 1}


def made(series: int) -> pd.DataFrame:
    """Returns a wide frame of noisy days."""
    t_T, rng = np.arange(ROWS), np.random.default_rng(0)
    days = {f"load {c}": np.sin(2 * np.pi * (t_T + c) / 24) + 0.3 * rng.normal(size=ROWS) for c in range(series)}
    return pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=ROWS, freq="h"), **days})


def ask(folder: str, series: int) -> dict[str, float]:
    """Returns seconds of the first forecast of this process, imports and loading in it, and of later ones."""
    begun = time.perf_counter()
    from ptt_jax import Forecaster

    whole = made(series)
    wide, newer = whole.iloc[-SINCE - RECENT : -SINCE], whole.iloc[-SINCE - RECENT :]
    model = Forecaster.load(folder)
    model.predict(wide)
    took = {"first, in a new process": time.perf_counter() - begun}
    long = wide.melt("ds", var_name="unique_id", value_name="y")
    for name, frame in (("wide frame", wide), ("long frame", long), (NEWER, newer), (OWN, None)):
        times = []
        for _ in range(TIMES):
            begun = time.perf_counter()
            model.predict(frame)
            times.append(time.perf_counter() - begun)
        took[name] = float(np.median(times))
    return took


def measure(series: int) -> dict[str, Any]:
    """Returns the row of the table."""
    import jax

    from ptt_jax import Forecaster

    with tempfile.TemporaryDirectory() as folder:
        Forecaster(HORIZON, knobs=FEW).fit(made(series).iloc[:-SINCE]).save(f"{folder}/saved")
        child = [sys.executable, __file__, f"--series={series}", f"--saved={folder}/saved"]
        for _ in range(2):  # the first one fills the cache
            done = subprocess.run(child, capture_output=True, text=True, check=True)
    return {
        "series": series, "horizon": HORIZON, **json.loads(done.stdout.splitlines()[-1]),
        "device": jax.devices()[0].device_kind, "jax": jax.__version__, "date": pd.Timestamp.now().date().isoformat(),
        "command": command("latency", sys.argv[1:]),
    }  # fmt: skip


def table(rows: pd.DataFrame) -> str:
    """Returns the table for README.md."""
    lines = [f"| series x hours ahead | first, in a new process | wide frame | long frame | {NEWER} | {OWN} |"]
    lines.append("|---" * 6 + "|")
    for r in rows.to_dict("records"):
        rest = " | ".join(f"{1000 * r[name]:.0f} ms" for name in ("wide frame", "long frame", NEWER, OWN))
        lines.append(f"| {r['series']} x {r['horizon']} | {r['first, in a new process']:.1f} s | {rest} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=100)
    parser.add_argument("--saved", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.saved:
        print(json.dumps(ask(asked.saved, asked.series)))
        return
    ledger = Ledger(HERE / "results" / "latency.csv", ("series", "device"), ())
    ledger.add(pd.DataFrame([measure(asked.series)]))
    show("latency", table(ledger.rows))


if __name__ == "__main__":
    main()
