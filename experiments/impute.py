"""Impute hidden values with frozen backbones and a prompt for points and one for blocks; go on where it stopped.

    python experiments/impute.py --runs=runs/reproduce                  # all sets whose backbone is finished
    python experiments/impute.py --runs=runs/reproduce --data=ETTh1,Weather --seeds=3
    python experiments/impute.py --tables                               # runs nothing

A cell is a data set, a kind of gaps and a seed, on the backbone RUNS/main/SET-sSEED: a prompt is tuned on mixed ratios,
in a folder of RUNS/imputation, and every model is measured at each ratio. A finished cell is in results/imputation.csv
and is not run again, unless its config or its backbone changed. The table is in README.md, pictures of the first seed's
test windows in results/imputation/.
"""

import argparse
import contextlib
import datetime
import functools
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from cells import FIVE, ROOT
from ledger import Ledger, exit_code, fingerprint, set_table
from reproduce import MOST_SEEDS, at_hand

from ptt_jax import (
    architecture,
    bridge,
    checkpoint,
    config,
    data,
    gaps,
    imputation,
    impute,
    mesh,
    pictures,
    problems,
    restoration,
)
from ptt_jax.architecture import adopt
from ptt_jax.errors import UserError
from ptt_jax.flags import load_file
from ptt_jax.log import Log
from ptt_jax.main import set_up
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.windows import take

HERE = Path(__file__).parent
TABLE = HERE / "results" / "imputation.csv"
RECIPE = {"steps": 200, "batch": 224, "validations": 4}  # of tuning: ETTh1's validation stands still after 150 steps
KEYS = ("data", "kind", "seed")
MODELS = {
    "mean": "mean",
    "linear": "linear interpolation",
    "seasonal": "seasonal naive",
    "drawn": "seasonal naive, drawn to its neighbours",
    "plain": "mask token, plain",
    "zero_shot": "mask token",
    "prompt": "prompts",
    "leaning": "prompts and lines",
}
SHOWN = {"linear": "#009E73", "seasonal": "#CC79A7", "zero_shot": "#0072B2", "leaning": "#D55E00"}


def settings(name: str, kind: str, seed: int, card: dict) -> Any:
    """Returns a cell's config: the set's own, on the backbone of a card."""
    cfg = load_file(ROOT / "configs" / f"{name.lower()}.py")
    cfg.seed, cfg.lookback, cfg.impute.kind = seed, card["lookback"], kind
    cfg.tune.update(RECIPE)
    adopt(cfg, card)
    config.check(cfg)
    return cfg


def key(cfg: Any, card: dict) -> tuple[str, str]:
    """Returns what a cell was measured under, besides its data, kind and seed: (config, backbone), hex digits."""
    constants = {"models": [*MODELS], "stride": restoration.stride(card["architecture"]["patch"])}
    return fingerprint(cfg, **constants), card["content_hash"][:12]


def closing(model: CrossMAE, of: impute.Way) -> restoration.Closing:
    """Returns how every model closes gaps, inputs {'backbone', 'prompt', 'share_CA'}."""
    plain = impute.Way("mean", 0.0, of.season)  # as a forecast's history is read, and the reconstruction as it is

    def close(params: Any, x_RL: jax.Array, seen_RL: jax.Array, channel_R: jax.Array) -> dict[str, jax.Array]:
        alone = {"backbone": params["backbone"]}
        around_RL = gaps.season_around(x_RL, seen_RL, of.season)
        prompted = {k: v for k, v in params.items() if k != "share_CA"}
        told_RL = impute.impute(model, prompted, of, x_RL, seen_RL, channel_R)
        return {
            "mean": gaps.average(x_RL, seen_RL),
            "linear": gaps.interpolate(x_RL, seen_RL),
            "seasonal": gaps.seasonal(x_RL, seen_RL, of.season),
            "drawn": gaps.draw(around_RL, x_RL, seen_RL, of.reach),
            "plain": impute.impute(model, alone, plain, x_RL, seen_RL, channel_R),
            "zero_shot": impute.impute(model, alone, of, x_RL, seen_RL, channel_R),
            "prompt": told_RL,
            "leaning": bridge.lean(x_RL, told_RL, seen_RL, jnp.asarray(params["share_CA"])[channel_R]),
        }

    return close


def tuned(cfg: Any, problem: Problem, card: dict, runs: Path) -> tuple[restoration.Closing, Any, gaps.Law]:
    """Tunes a cell's prompt, unless that was done; returns what closes gaps, its inputs, and how values are hidden."""
    about = "-".join([cfg.impute.kind, f"s{cfg.seed}", *key(cfg, card)])
    folder = runs / "imputation" / f"{problem.series.name}-{about}"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.refer(folder, card)
    with (folder / "tune.log").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        task = imputation.tuning(cfg, folder, problem, Log(folder / "metrics.jsonl"))
    (asked,), way = imputation.load(folder, task, card["content_hash"])
    model = architecture.build(card["architecture"], cfg.compute_dtype)
    params = {"backbone": checkpoint.load_backbone(card, architecture.shapes(model)), **asked}
    return closing(model, way), params, imputation.law(cfg, problem.series)


def cell(cfg: Any, problem: Problem, card: dict, runs: Path) -> list[dict]:
    """Returns the rows of a cell: every model at each ratio, on validation and test."""
    begun, (of_config, of_backbone) = time.monotonic(), key(cfg, card)
    close, params, hiding = tuned(cfg, problem, card, runs)
    stride = restoration.stride(card["architecture"]["patch"])
    measure = restoration.evaluator(close, problem.mesh, cfg.evaluate.batch, stride)
    rows = []
    for split in ("validation", "test"):
        of = restoration.span(problem, split, cfg.lookback)
        for ratio in hiding.ratios:
            found = measure(problem.panel, params, of, hiding.replace(ratios=(ratio,)))
            rows += [
                {"ratio": ratio, "split": split, "model": name, "mse": e.mse, "mae": e.mae, "hidden": e.hidden}
                for name, e in found.items()
            ]
    about = {
        "data": problem.series.name, "kind": cfg.impute.kind, "seed": cfg.seed, "lookback": cfg.lookback,
        "stride": stride, "config": of_config, "backbone": of_backbone,
        "seconds": round(time.monotonic() - begun, 1), "date": datetime.date.today().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "command": shlex.join(["python", "experiments/impute.py", f"--data={problem.series.name}"]),
    }  # fmt: skip
    return [{**about, **row} for row in rows]


def picture(drawn: dict[str, tuple], problem: Problem, lookback: int, file: Path) -> None:
    """Draws two channels of a test window with half of the values hidden, as points above, as blocks below."""
    try:
        import matplotlib
        from matplotlib.dates import DateFormatter, DayLocator
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib, pip install ptt_jax[plot]", flush=True)
        return
    of = restoration.span(problem, "test", lookback)
    channel_A = np.unique([0, of.channels - 1])
    row_A = jnp.asarray(of.counts[0] // 2 * of.channels + channel_A)
    steps = min(3 * max(data.season(problem.series.freq), 24), lookback)  # of more, lines are no longer told apart
    x_AL, observed_AL = take(problem.panel.at(0), of, row_A)
    names = [problem.series.names_C[c] for c in channel_A]
    with matplotlib.rc_context(pictures.STYLE):
        figure = Figure(figsize=(8.4, 2.2 * len(drawn) + 0.4), layout="constrained")
        axes = figure.subplots(len(drawn), len(names), squeeze=False)
        for line, (kind, (close, params, hiding)) in zip(axes, drawn.items(), strict=True):
            hidden_AL = gaps.hide(hiding.replace(ratios=(0.5,)), jax.random.key(0), row_A, observed_AL)
            closed = jax.device_get(jax.jit(close)(params, x_AL, observed_AL & ~hidden_AL, row_A % of.channels))
            for a, (ax, name) in enumerate(zip(line, names, strict=True)):
                share = np.convolve(hidden_AL[a], np.ones(steps) / steps, "valid")
                begin = int(np.abs(share - 0.5).argmin())  # of a window's few blocks, where there are some
                shown, first = slice(begin, begin + steps), of.first + of.counts[0] // 2 + begin
                at, hidden = problem.series.stamps_T[first : first + steps], np.asarray(hidden_AL[a, shown])
                truth = np.where(observed_AL[a, shown], x_AL[a, shown], np.nan)
                ax.plot(at, np.where(hidden, np.nan, truth), ".", color="#222222", markersize=3, label="seen")
                ax.plot(at, np.where(hidden, truth, np.nan), ".", color="#BBBBBB", markersize=3, label="hidden")
                for model, colour in SHOWN.items():
                    width = 1.6 if model == "leaning" else 0.8
                    y = closed[model][a, shown]
                    ax.plot(at, y, color=colour, linewidth=width, label=MODELS[model], zorder=1 + width)
                ax.set_title(f"{name}, half of the {kind} hidden" if kind == "points" else f"{name}, half in {kind}")
                ax.xaxis.set_major_locator(DayLocator())
                ax.xaxis.set_major_formatter(DateFormatter("%d %b"))
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=6)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=130)


def ledger() -> Ledger:
    """Returns what is finished."""
    return Ledger(TABLE, KEYS, ("config", "backbone"))


def markdown(table: pd.DataFrame) -> str:
    """Returns a line for each set and kind and a column for each model: test MSE / MAE, means of ratios and seeds; of a
    model that a cell has not run, nothing."""
    table = table[table["split"] == "test"]
    means = table.groupby(["data", "kind", "model"])[["mse", "mae"]].mean()
    lines = ["| | | " + " | ".join(MODELS.values()) + " | seeds |", "|---" * (len(MODELS) + 3) + "|"]
    for name in (name for name in FIVE if name in {*table["data"]}):
        for kind in (kind for kind in gaps.KINDS if (name, kind, "prompt") in means.index):
            of = means.loc[name, kind]
            best = of["mse"].idxmin()
            cells = [f"{of.mse[m]:.4f} / {of.mae[m]:.3f}" if m in of.index else "" for m in MODELS]
            cells = [f"**{text}**" if m == best else text for m, text in zip(MODELS, cells, strict=True)]
            seeds = table[(table["data"] == name) & (table["kind"] == kind)]["seed"].nunique()
            lines.append(f"| {name} | {kind} | " + " | ".join([*cells, str(seeds)]) + " |")
    return "\n".join(lines)


def publish() -> None:
    """Writes the table into README.md."""
    if len(table := ledger().rows):
        set_table(HERE / "README.md", "imputation", markdown(table))


def wanted(args: argparse.Namespace) -> list[tuple[str, int, dict]]:
    """Returns (set, seed, card of its backbone) of what is asked for. Raises UserError for what does not exist."""
    names = args.data.split(",") if args.data else at_hand(list(FIVE))
    if wrong := [name for name in names if name not in FIVE]:
        raise UserError(
            f"--data={wrong[0]} is no set of this table; accepted: {', '.join(FIVE)}, each with a backbone in "
            f"{args.runs / 'main'}/SET-sSEED, where {found(args.runs)}"
        )
    if not 1 <= args.seeds <= MOST_SEEDS:
        raise UserError(f"--seeds={args.seeds} is out of range; accepted: 1 to {MOST_SEEDS}")
    runs = {(name, seed): args.runs / "main" / f"{name}-s{seed}" for name in names for seed in range(args.seeds)}
    there = {key: run for key, run in runs.items() if (run / "backbone.json").exists()}
    if not there or (args.data and len(there) < len(runs)):
        lacking = next(run for key, run in runs.items() if key not in there)
        raise UserError(
            f"{lacking} holds no backbone, and in {args.runs / 'main'} {found(args.runs)}; accepted: --data and "
            f"--seeds of these, or --runs of a finished reproduce.py --only=main"
        )
    return [(name, seed, checkpoint.find_backbone(run)) for (name, seed), run in there.items()]


def found(runs: Path) -> str:
    """Says which backbones of the sets lie where they are looked for."""
    at = [path.parent.name for path in sorted((runs / "main").glob("*-s*/backbone.json"))]
    own = [name for name in at if name.rpartition("-s")[0] in FIVE]
    return f"there are {', '.join(own)}" if own else "there is none"


@functools.cache
def load(name: str) -> Problem:
    cfg = load_file(ROOT / "configs" / f"{name.lower()}.py")
    set_up(cfg)
    return problems.prepare(data.load(cfg.data), mesh.make(1))


def run(args: argparse.Namespace) -> None:
    book = ledger()
    ahead, asked = [], wanted(args)
    for name, seed, card in asked:
        for kind in gaps.KINDS:
            cfg = settings(name, kind, seed, card)
            of_config, of_backbone = key(cfg, card)
            if not book.has(data=name, kind=kind, seed=seed, config=of_config, backbone=of_backbone):
                ahead.append((name, kind, cfg, card))
    begun = time.monotonic()
    for i, (name, kind, cfg, card) in enumerate(ahead, 1):
        rows = cell(cfg, load(name), card, args.runs)
        book.add(pd.DataFrame(rows))
        publish()
        left = (time.monotonic() - begun) / i * (len(ahead) - i)
        said = f"{name} {kind} seed {cfg.seed}  {rows[0]['seconds']:.0f} s  {left / 60:.0f} min left"
        print(f"{i} of {len(ahead)}  {said}", flush=True)
    for name, seed, card in asked:
        file = HERE / "results" / "imputation" / f"{name.lower()}.png"
        if seed == 0 and (not file.exists() or name in {new for new, *_ in ahead}):
            drawn = {kind: tuned(settings(name, kind, 0, card), load(name), card, args.runs) for kind in gaps.KINDS}
            picture(drawn, load(name), card["lookback"], file)


@exit_code("impute")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="where reproduce.py's runs lie")
    parser.add_argument("--data", default="", help="data sets, comma-separated; default: those with a backbone")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="write the table of what is finished, run nothing")
    args = parser.parse_args(argv)
    if not args.tables:
        run(args)
    publish()


if __name__ == "__main__":
    sys.exit(main())
