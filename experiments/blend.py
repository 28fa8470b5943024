"""What a linear map knows that prompts do not, and what several backbones know together: averages of forecasts.

    python experiments/blend.py --runs=runs/reproduce --data=ETTh1 --seeds=3     # runs/reproduce/main/ETTh1-s0, s1, s2
    python experiments/blend.py --runs=runs/reproduce --config.model.width=128   # of reproduce.py with this override
    python experiments/blend.py --tables                                         # the table of what is finished

Takes finished runs of `tune.mode=prompt`, of the first seed of each. Nothing is trained: the prompts are as a run chose
them, and the map is the one that the run is compared with, ridge regression on the training rows
(`baselines.fit_linear`). Several runs count alike: the mean of their forecasts. One number for each horizon is chosen,
the share of the prompts' forecast, and on validation: the squared error is a parabola in the share (Bates and Granger
1969), which three shares tell. Test is read when the shares are there.
"""

import argparse
import datetime
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from cells import SETS
from jax import Array
from ledger import Ledger, chosen, command, exit_code, fingerprint, show
from records import Plan

from ptt_jax import architecture, baselines, checkpoint, config, data, evaluate, linear, mesh, problems, prompts, score
from ptt_jax.data import season
from ptt_jax.errors import UserError
from ptt_jax.seal import read_json
from ptt_jax.windows import Span, Windows

RESULTS = Path(__file__).parent / "results"
KEYS, VERSIONS = ("data", "seeds"), ("config", "backbone")
MODELS = ("prompt", "linear", "blend")
EVERY = "every"  # of several runs, their mean
Inputs = dict[str, Any]


def read(run: Path) -> tuple[Any, dict[str, Any]]:
    """Returns a run's config and its backbone's card."""
    cfg = config.default()
    cfg.update(config.from_json(json.dumps(read_json(run / "config.json"))))
    if cfg.tune.mode != "prompt":
        raise UserError(f"{run} has config.tune.mode = {cfg.tune.mode!r}; accepted: a run of 'prompt'")
    return cfg, checkpoint.find_backbone(run)


def identities(runs: list[Path]) -> dict[str, dict[str, str]]:
    """Returns what tells runs of one data set from others (KEYS, VERSIONS): of each alone, by its seed, and of several
    together. Raises UserError for runs of different recipes."""
    found = {}
    for run in runs:
        cfg, card = read(run)
        name = read_json(run / "data.json")["name"]
        plain = cfg.copy_and_resolve_references()
        plain.seed = 0
        known = name, f"{cfg.seed}", fingerprint(plain), card["content_hash"][:12]
        found[f"{cfg.seed}"] = dict(zip((*KEYS, *VERSIONS), known, strict=True))
    first, *others = found.values()
    for other in others:
        if (other["data"], other["config"]) != (first["data"], first["config"]):
            raise UserError(
                f"{runs[0]} and its neighbours are of different recipes; accepted: runs that differ by seed"
            )
    if others:
        backbones = hashlib.sha256(" ".join(of["backbone"] for of in found.values()).encode()).hexdigest()[:12]
        found[EVERY] = first | {"seeds": " ".join(found), "backbone": backbones}
    return found


def members(runs: list[Path], problem: problems.Problem) -> tuple[dict[str, evaluate.Forecast], dict[str, Inputs]]:
    """Returns how each run forecasts and what it takes for that, by its seed."""
    forecasts, inputs = {}, {}
    for run in runs:
        cfg, card = read(run)
        model = architecture.build(card["architecture"], cfg.compute_dtype, views=cfg.views)
        forecasts[f"{cfg.seed}"] = score.models(model, season(problem.series.freq), (cfg.seed,))
        task = prompts.name(problem.series.name, cfg.horizons)
        inputs[f"{cfg.seed}"] = {
            "backbone": checkpoint.load_backbone(card, architecture.shapes(model)),
            "tuned": checkpoint.load_prompts(run, task, card["content_hash"]),
        }
    return forecasts, inputs


def measure(runs: list[Path], of: problems.Problem | None = None) -> pd.DataFrame:
    """Returns a row for each horizon, split and model, of each run and of the mean of all; of: the runs' data, where it
    is there."""
    about, (cfg, _) = identities(runs), read(runs[0])
    problem = of or problems.prepare(data.load(cfg.data), mesh.make(1))
    forecasts, inputs = members(runs, problem)
    spans = {split: problem.span(split, cfg.lookback, cfg.horizons) for split in ("validation", "test")}
    whole: Inputs = {
        "runs": inputs,
        "weights_TH": baselines.fit_linear(problem, problem.learning(cfg), spans["validation"]),
    }

    def mixed(panel: Windows, inputs: Inputs, span: Span, row_R: Array) -> dict[str, tuple[Array, ...]]:
        out = {}
        for seed, forecast in forecasts.items():
            every = forecast(panel, inputs["runs"][seed] | {"weights_TH": inputs["weights_TH"]}, span, row_R)
            out |= {"linear": every["linear"], f"prompt {seed}": every[f"prompt {seed}"]}
        if EVERY in about:
            of_horizons = zip(*(out[f"prompt {seed}"] for seed in forecasts), strict=True)
            out[f"prompt {EVERY}"] = tuple(sum(y) / len(forecasts) for y in of_horizons)
        for who, share_K in inputs["shares"].items():
            pairs = zip(share_K, out[f"prompt {who}"], out["linear"], strict=True)  # K horizons
            out[f"blend {who}"] = tuple(share * y_RH + (1 - share) * l_RH for share, y_RH, l_RH in pairs)
        return out

    look = evaluate.evaluator(mixed, problem.mesh, cfg.evaluate.batch)
    halves = {who: jnp.full(len(cfg.horizons), 0.5) for who in about}
    found = look(problem.panel, whole | {"shares": halves}, spans["validation"])
    at = {who: [found[name] for name in ("linear", f"blend {who}", f"prompt {who}")] for who in about}
    shares = {who: linear.best_share(*(np.array([e.mse for e in errors]) for errors in at[who])) for who in about}
    taken = {who: jnp.asarray(share_K, jnp.float32) for who, share_K in shares.items()}
    rows = []
    for split, span in spans.items():
        found = look(problem.panel, whole | {"shares": taken}, span)
        for who, known in about.items():
            for name in MODELS:
                errors = found[name if name == "linear" else f"{name} {who}"]
                for h, share, e in zip(cfg.horizons, shares[who], errors, strict=True):
                    rows.append(
                        {"horizon": h, "split": split, "model": name, "share": share, "mse": e.mse, "mae": e.mae}
                        | known
                    )
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> str:
    """Returns MSE / MAE on test, means of the horizons: of single runs means over the seeds, and of all of them
    together; and the shares of these."""
    rows = rows[rows["split"] == "test"].assign(together=rows["seeds"].astype(str).str.contains(" "))
    names = {
        ("linear", False): "linear", ("prompt", False): "prompts", ("blend", False): "prompts and linear",
        ("prompt", True): "mean of the seeds", ("blend", True): "that and linear",
    }  # fmt: skip
    heads = ["", *names.values(), "share of the prompts alone", "of their mean", "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    sets = [name for name in SETS if name in {*rows["data"]}]

    def errors(mean: pd.DataFrame) -> list[str]:
        return [f"{mean['mse'][key]:.4f} / {mean['mae'][key]:.4f}" if key in mean.index else "" for key in names]

    for name in sets:
        of = rows[rows["data"] == name]
        shares = of[of["model"] == "blend"].groupby(["together", "horizon"])["share"].mean()
        words = [" ".join(f"{s:.2f}" for s in shares[key]) if key in shares else "" for key in (False, True)]
        mean = of.groupby(["model", "together"])[["mse", "mae"]].mean()
        lines.append(
            f"| {name} | "
            + " | ".join([*errors(mean), *words, f"{(~of.drop_duplicates('seeds')['together']).sum()}"])
            + " |"
        )
    if len(sets) > 1:
        every = rows.groupby(["data", "model", "together"])[["mse", "mae"]].mean().groupby(["model", "together"])
        lines.append("| mean | " + " | ".join([*errors(every.mean()[every.size() == len(sets)]), "", "", ""]) + " |")
    return "\n".join(lines)


@exit_code("blend")
def study(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="where reproduce.py put its runs")
    parser.add_argument("--data", default="", help="data sets, comma-separated; default: those whose run is there")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", action="store_true", help="write the table of what is finished, measure nothing")
    args, overrides = parser.parse_known_args(argv)
    if wrong := [text for text in overrides if not text.startswith("--config.")]:
        raise UserError(f"argument {wrong[0]} is unknown; accepted: those of --help, and --config.key=value")
    plan = Plan({}, args.runs, overrides)
    ledger = Ledger(RESULTS / f"blend{plan.suffix}.csv", KEYS, VERSIONS)
    sets = chosen(args.data, SETS) if args.data else list(SETS)
    for name in [] if args.tables else sets:
        runs = [plan.folder("main") / f"{name}-s{seed}" for seed in range(args.seeds)]
        runs = [run for run in runs if (run / "results.csv").exists()]
        if not runs or all(ledger.has(**about) for about in identities(runs).values()):
            continue
        rows = measure(runs).assign(date=datetime.date.today().isoformat(), command=command("blend", argv))
        ledger.add(rows)
        shown = rows[rows["split"] == "test"].groupby(["seeds", "model"])["mse"].mean()
        for seeds in dict.fromkeys(rows["seeds"]):
            errors = ", ".join(f"{m} {shown[seeds, m]:.4f}" for m in MODELS)
            print(f"{name}, seeds {seeds}: {errors}", flush=True)
    if not ledger.rows.empty and plan.suffix:
        print(table(ledger.rows))
    elif not ledger.rows.empty:
        show("blend", table(ledger.rows))


if __name__ == "__main__":
    sys.exit(study(sys.argv[1:]))
