"""Own data with gaps: `Forecaster.impute`, untouched, against straight lines and last season's values.

    python experiments/torn.py [--data=vic_elec,NN5_daily]

A tenth of each file's values is hidden one by one, and another tenth in blocks of a quarter to two horizons; a
Forecaster of own.py's horizon learns from what is left, and closes the gaps. Errors over the hidden values, in units of
each series' spread in what is left, so that series weigh alike. `alone` is the reconstruction that leans on no line.
What finished is in results/torn.csv and is not run again under the same rules.
"""

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from ledger import Ledger, chosen, command, exit_code, finish, show
from own import SETS

from ptt_jax import Forecaster, bridge, closing, frames, gaps, impute, recipe, scaling

HERE = Path(__file__).parent
SHARE = 0.1  # of the values, of each kind
COLUMNS = {"line": "straight lines", "season": "last season", "alone": "reconstructed alone", "impute": "`impute`"}


def tear(values_TC: np.ndarray, horizon: int) -> dict[str, np.ndarray]:
    """Returns what is hidden of values that are there: {'points', 'blocks'}, which do not overlap."""
    rng, (rows, channels) = np.random.default_rng(0), values_TC.shape
    blocks_TC, known_TC = np.zeros(values_TC.shape, bool), ~np.isnan(values_TC)
    for c in range(channels):
        wanted = round(SHARE * known_TC[:, c].sum())
        while (left := wanted - (blocks_TC & known_TC)[:, c].sum()) > 0:  # the last block is cut
            begin, length = rng.integers(rows), rng.integers(max(horizon // 4, 1), 2 * horizon + 1)
            blocks_TC[begin : begin + min(length, left), c] = True
    points_TC = (rng.random(values_TC.shape) < SHARE / (1 - SHARE)) & ~blocks_TC
    return {"points": points_TC & known_TC, "blocks": blocks_TC & known_TC}


def close(torn_TC: np.ndarray, season: int) -> dict[str, np.ndarray]:
    """Returns what closes gaps without a model: lines, and the value a season before, or after where that is missing,
    or else a line."""
    torn = pd.DataFrame(torn_TC)
    line = torn.interpolate(limit_direction="both")
    around = torn.fillna(torn.shift(season)).fillna(torn.shift(-season)).fillna(line)
    return {"line": line.to_numpy(), "season": around.to_numpy()}


def measure(name: str) -> list[dict[str, Any]]:
    """Returns the rows of a set: one for points and one for blocks."""
    file, horizon = SETS[name]
    frame = pd.read_csv(Path(os.environ.get("PTT_DATA_DIR", ".")) / file)
    table = frames.read(frame)
    names, truth_TC = list(table.names_C), table.values_TC
    hidden = tear(truth_TC, horizon)
    torn_TC = np.where(hidden["points"] | hidden["blocks"], np.nan, truth_TC)
    torn = frame.assign(**dict(zip(names, torn_TC.T, strict=True)))
    begun = time.perf_counter()
    model = Forecaster(horizon).fit(torn)
    fitted = time.perf_counter()
    of = model.fitted
    closed = {"impute": model.impute(torn)[names].to_numpy()}
    ended = time.perf_counter()
    closed |= close(torn_TC, of.season)
    closed["alone"] = closing.close(of.predictor, torn_TC, of.season, np.zeros((len(names), bridge.RUNGS), np.float32))
    spread_C = scaling.exact(torn_TC, ~np.isnan(torn_TC)).scale_C
    rows = []
    for kind, hidden_TC in hidden.items():
        errors = {}
        for how in COLUMNS:
            e_A = ((closed[how] - truth_TC) / spread_C)[hidden_TC]
            errors |= {f"{how}_mse": float(np.mean(e_A**2)), f"{how}_mae": float(np.mean(np.abs(e_A)))}
        rows.append({
            "data": name, "kind": kind, "hidden": int(hidden_TC.sum()), "rows": len(frame), "series": len(names),
            "season": of.season, "patch": of.cfg.model.patch, **errors, "fit_seconds": round(fitted - begun, 1),
            "seconds": round(ended - fitted, 1), "rules": rules(), "device": jax.devices()[0].device_kind,
            "date": pd.Timestamp.now().date().isoformat(), "command": command("torn", sys.argv[1:]),
        })  # fmt: skip
    return rows


def rules() -> str:
    """Returns 8 hex digits over the rules: what was measured under others is run again."""
    files = (__file__, *(module.__file__ for module in (recipe, impute, gaps, closing, bridge)))
    text = "".join(Path(file).read_text("utf-8") for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def table(rows: pd.DataFrame) -> str:
    """Returns the table for README.md: MSE / MAE, the smallest MSE of a line in bold."""
    lines = ["| | | " + " | ".join([*COLUMNS.values(), "seconds"]) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for r in rows.to_dict("records"):
        best = min(COLUMNS, key=lambda how: r[f"{how}_mse"])
        cells = [f"{r[f'{how}_mse']:.4f} / {r[f'{how}_mae']:.3f}" for how in COLUMNS]
        cells = [f"**{cell}**" if how == best else cell for how, cell in zip(COLUMNS, cells, strict=True)]
        lines.append(f"| {r['data']} | {r['kind']} | {' | '.join(cells)} | {r['seconds']:.0f} |")
    return "\n".join(lines)


@exit_code("torn")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(SETS), help="which sets, comma-separated")
    args = parser.parse_args()
    ledger = Ledger(HERE / "results" / "torn.csv", ("data", "kind"), ("rules",))
    for name in chosen(args.data, SETS):
        cell = [{"data": name, "kind": "points", "rules": rules()}]  # both kinds are made together
        finish(ledger, cell, lambda data, **_: measure(data), lambda rows: table(pd.DataFrame(rows)))
    show("torn", table(ledger.rows))


if __name__ == "__main__":
    sys.exit(main())
