"""What a linear map knows that prompts do not: forecasts that are a share of the one and the rest of the other.

    python experiments/blend.py --runs=runs/reproduce --data=ETTh1 --seeds=1     # runs/reproduce/main/ETTh1-s0
    python experiments/blend.py --tables                                         # the table of what is finished

Takes finished runs of `tune.mode=prompt`, of the first seed. Nothing is trained: the prompts are as the run chose them,
and the map is the one that the run is compared with, ridge regression on the training rows (`baselines.fit_linear`).
One number for each horizon is chosen, the share of the prompts' forecast, and on validation: the squared error is a
parabola in the share (Bates and Granger 1969), which three shares tell. Test is read when the shares are there.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from cells import SETS
from jax import Array
from ledger import Ledger, command, fingerprint, show

from ptt_jax import architecture, baselines, checkpoint, config, data, evaluate, mesh, problems, prompts, score
from ptt_jax.data import season
from ptt_jax.errors import UserError
from ptt_jax.seal import read_json
from ptt_jax.windows import Span, Windows

RESULTS = Path(__file__).parent / "results"
KEYS, VERSIONS = ("data", "seed"), ("config", "backbone")
MODELS = ("prompt", "linear", "blend")


def best_share(linear: float, half: float, prompt: float) -> float:
    """Returns the share in [0, 1] at which a parabola is least, from its values at 0, 1/2 and 1."""
    slope, bend = 4 * half - 3 * linear - prompt, 2 * (linear + prompt - 2 * half)
    return float(np.clip(-slope / (2 * bend), 0, 1)) if bend > 0 else float(prompt < linear)


def read(run: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Returns a run's config, its backbone's card, and what tells the run from others (KEYS, VERSIONS)."""
    cfg = config.default()
    cfg.update(config.from_json(json.dumps(read_json(run / "config.json"))))
    if cfg.tune.mode != "prompt":
        raise UserError(f"{run} has config.tune.mode = {cfg.tune.mode!r}; accepted: a run of 'prompt'")
    card, name = checkpoint.find_backbone(run), read_json(run / "data.json")["name"]
    known = name, cfg.seed, fingerprint(cfg), card["content_hash"][:12]
    return cfg, card, dict(zip((*KEYS, *VERSIONS), known, strict=True))


def measure(run: Path, of: problems.Problem | None = None) -> pd.DataFrame:
    """Returns a row for each horizon, split and model; of: the run's data, where it is there."""
    cfg, card, about = read(run)
    problem = of or problems.prepare(data.load(cfg.data), mesh.make(1))
    model = architecture.build(card["architecture"], cfg.compute_dtype, views=cfg.views)
    spans = {split: problem.span(split, cfg.lookback, cfg.horizons) for split in ("validation", "test")}
    inputs = {
        "backbone": checkpoint.load_backbone(card, architecture.shapes(model)),
        "tuned": checkpoint.load_prompts(run, prompts.name(problem.series.name, cfg.horizons), card["content_hash"]),
        "weights_TH": baselines.fit_linear(problem, problem.learning(cfg), spans["validation"]),
    }
    forecast = score.models(model, season(problem.series.freq), (cfg.seed,))

    def mixed(panel: Windows, inputs: dict[str, Any], span: Span, row_R: Array) -> dict[str, tuple[Array, ...]]:
        every = forecast(panel, inputs, span, row_R)
        both = {"prompt": every[f"prompt {cfg.seed}"], "linear": every["linear"]}
        pairs = zip(inputs["share_K"], *both.values(), strict=True)  # K horizons
        return both | {"blend": tuple(share * y_RH + (1 - share) * l_RH for share, y_RH, l_RH in pairs)}

    look = evaluate.evaluator(mixed, problem.mesh, cfg.evaluate.batch)
    count = len(cfg.horizons)
    halves = look(problem.panel, {**inputs, "share_K": jnp.full(count, 0.5)}, spans["validation"])
    at = [[halves[name][k].mse for name in ("linear", "blend", "prompt")] for k in range(count)]
    share_K = np.array([best_share(*of_k) for of_k in at])
    rows = []
    for split, span in spans.items():
        found = look(problem.panel, {**inputs, "share_K": jnp.asarray(share_K, jnp.float32)}, span)
        for k, h in enumerate(cfg.horizons):
            for name in MODELS:
                e = found[name][k]
                rows.append(
                    {"horizon": h, "split": split, "model": name, "share": share_K[k], "mse": e.mse, "mae": e.mae}
                )
    return pd.DataFrame(rows).assign(**about)


def table(rows: pd.DataFrame) -> str:
    """Returns MSE / MAE on test, means of the horizons and then of seeds, and the mean share."""
    rows = rows[rows["split"] == "test"]
    names = {"linear": "linear", "prompt": "prompts", "blend": "blend"}
    lines = ["| | " + " | ".join(names.values()) + " | share of the prompts | seeds |", "|---" * 6 + "|"]
    sets = [name for name in SETS if name in {*rows["data"]}]
    for name in sets:
        of = rows[rows["data"] == name]
        mean = of.groupby("model")[["mse", "mae"]].mean()
        errors = [f"{mean['mse'][m]:.4f} / {mean['mae'][m]:.4f}" for m in names]
        shares = of[of["model"] == "blend"].groupby("horizon")["share"].mean()
        lines.append(
            f"| {name} | "
            + " | ".join([*errors, " ".join(f"{s:.2f}" for s in shares), f"{of['seed'].nunique()}"])
            + " |"
        )
    if len(sets) > 1:
        mean = rows.groupby(["data", "model"])[["mse", "mae"]].mean().groupby("model").mean()
        errors = [f"{mean['mse'][m]:.4f} / {mean['mae'][m]:.4f}" for m in names]
        lines.append("| mean | " + " | ".join([*errors, "", ""]) + " |")
    return "\n".join(lines)


def study(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="where reproduce.py put its runs")
    parser.add_argument("--data", default="", help="data sets, comma-separated; default: those whose run is there")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", action="store_true", help="write the table of what is finished, measure nothing")
    args = parser.parse_args(argv)
    ledger = Ledger(RESULTS / "blend.csv", KEYS, VERSIONS)
    try:
        wrong = [name for name in args.data.split(",") if name and name not in SETS]
        if wrong:
            raise UserError(f"--data={wrong[0]} does not exist; accepted: {', '.join(SETS)}")
        sets = args.data.split(",") if args.data else list(SETS)
        runs = [args.runs / "main" / f"{name}-s{seed}" for name in sets for seed in range(args.seeds)]
        for run in [] if args.tables else [run for run in runs if (run / "results.csv").exists()]:
            _, _, about = read(run)
            if not ledger.has(**about):
                rows = measure(run)
                today = datetime.date.today().isoformat()
                ledger.add(rows.assign(date=today, command=command("blend", argv)))
                shown = rows[rows["split"] == "test"].groupby("model")["mse"].mean()
                print(f"{run.name}: " + ", ".join(f"{m} {shown[m]:.4f}" for m in MODELS), flush=True)
    except UserError as e:
        print(f"blend: {e}", file=sys.stderr)
        return 2
    if not ledger.rows.empty:
        show("blend", table(ledger.rows))
    return 0


if __name__ == "__main__":
    sys.exit(study(sys.argv[1:]))
