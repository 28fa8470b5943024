"""Who overfits: error on training and validation windows while a model learns, by trained parameters and data.

    python experiments/overfit.py --data=ETTh1 --seeds=1 --minutes=25     # cells in order of weight, until time is up
    python experiments/overfit.py --tables                                # table and figures of what is there

A linear map by gradient steps (of full rank, or through a few numbers), a Transformer from scratch (`tune.mode=head` on
a random backbone), the same from a pre-trained backbone, all of a Cross-MAE from its mask token (`full`), and prompts.
All take the same steps, batch, rate and schedule, see the first `tune.share` of the training windows, and never stop
early. Both errors are measured alike, without dropout, as means over the horizons: over every validation window, and
over WATCHED training rows that were drawn once. Nothing of the test split is read. Overrides, --config.key=value, go to
every cell.
"""

import argparse
import dataclasses
import datetime
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from cells import ROOT, SETS
from ledger import Ledger, chosen, command, exit_code, fingerprint, pictures, show
from ml_collections import ConfigDict

from ptt_jax import (
    baselines,
    cache,
    checkpoint,
    config,
    data,
    evaluate,
    finetune,
    flags,
    layers,
    main,
    mesh,
    optim,
    problems,
    rundir,
    step,
    tasks,
)
from ptt_jax import train as training
from ptt_jax import tune as tuning
from ptt_jax.encodings import Cached
from ptt_jax.errors import UserError
from ptt_jax.log import Log
from ptt_jax.loop import Loop, keys
from ptt_jax.problems import Problem
from ptt_jax.seal import read_json
from ptt_jax.windows import Span, past

RESULTS = Path(__file__).parent / "results"
KEYS, VERSIONS = ("data", "model", "share", "width", "seed"), ("config",)
WATCHED = 2048
# Backbones of every width learn as long, so that they compare.
SAME = (
    "pretrain.steps=300", "tune.steps=400", "tune.batch=128", "tune.validations=8", "tune.patience=99",
    f"tune.watch_train={WATCHED}", "evaluate.test=False",
)  # fmt: skip
MODELS = {
    "linear": "linear map, gradient steps",
    "scratch": "Transformer from scratch",
    "head": "pre-trained, new head: everything",
    "full": "pre-trained, mask token: everything",
    "prompt": "pre-trained, prompts",
}
WIDTHS, RANKS, WHOLE = (64, 32, 16), (0, 64, 16, 4), 0  # of a linear map: its rank, 0 = full
SHARES = (1.0, 0.05, 0.25)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model on a share of the training windows; width: of the backbone, of a linear map its rank."""

    data: str
    model: str
    share: float
    width: int
    seed: int

    @property
    def knobs(self) -> list[str]:
        """Returns what it overrides of its data set's config."""
        linear = self.model == "linear"
        mode = {"scratch": "head", "linear": "full"}.get(self.model, self.model)
        own = [f"seed={self.seed}", f"tune.mode={mode}", f"tune.share={self.share}"]
        own += [] if linear else [f"model.width={self.width}", f"model.mlp={2 * self.width}"]
        return own + (["pretrain.epochs=0.0", "pretrain.steps=0"] if self.model == "scratch" else [])


def cells(sets: list[str], seeds: range) -> list[Cell]:
    """Returns all cells of the grid: first the cross of all data and the largest width, the ends of its arms before
    their middles, shares before widths; then its corners."""
    grid = [
        Cell(name, model, share, width, seed)
        for seed in seeds for name in sets for share in SHARES for i in range(len(RANKS)) for model in MODELS
        for width in (RANKS if model == "linear" else WIDTHS)[i : i + 1]
    ]  # fmt: skip

    def turn(cell: Cell) -> tuple[int, bool, bool, bool]:
        widths = RANKS if cell.model == "linear" else WIDTHS
        large, whole = cell.width == widths[0], cell.share == 1
        end = cell.width in (widths[0], widths[-1]) and cell.share in (1, min(SHARES))
        return cell.seed, not (large or whole), not end, not large

    return sorted(grid, key=turn)


def settle(cell: Cell, overrides: list[str]) -> ConfigDict:
    """Returns a cell's config."""
    same, own = ([f"--config.{text}" for text in texts] for texts in (SAME, cell.knobs))
    cfg, _ = flags.parse([f"--config={recipe(cell.data)}", *same, *overrides, *own])
    return cfg


def recipe(name: str) -> Path:
    return ROOT / "configs" / f"{name.lower()}.py"


def backbone(cfg: ConfigDict, folder: Path, problem: Problem) -> dict[str, Any]:
    """Returns the card of a backbone of the cell's width, pre-trained now unless it was."""
    cfg = ConfigDict(cfg.to_dict())
    for key, value in config.default().tune.items():
        cfg.tune[key] = value  # whoever tunes on it
    kind = "random" if not (cfg.pretrain.epochs or cfg.pretrain.steps) else "backbone"
    run = folder / f"{cfg.data.name}-s{cfg.seed}-w{cfg.model.width}-{kind}-{fingerprint(cfg)}"
    series = problem.series
    rundir.open_run(run, cfg, {"name": series.name, "fingerprint": series.fingerprint, "splits": series.splits})
    training.pretrain(cfg, run, problem, Log(run / "metrics.jsonl"))
    return checkpoint.find_backbone(run)


def adapt(cell: Cell, cfg: ConfigDict, folder: Path, problem: Problem) -> pd.DataFrame:
    """Returns the looks of whatever has a backbone: its tuning stage in a run directory that is thrown away."""
    card = backbone(cfg, folder, problem)
    run = folder / "-".join(map(str, dataclasses.astuple(cell)))
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    checkpoint.refer(run, card)
    kind, learn = ("prompts", tuning.tune) if cell.model == "prompt" else ("finetuned", finetune.finetune)
    task = learn(cfg, run, problem, Log(run / "metrics.jsonl"))
    parameters = read_json(run / kind / f"{task}.json")["tuned_parameters"]
    looks = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    shutil.rmtree(run)
    errors = [(look["step"], mean(look["train_mse"]), mean(look["validation_mse"])) for look in looks]
    return frame(errors, parameters)


def mean(by_horizon: dict[str, float]) -> float:
    return float(np.mean([*by_horizon.values()]))


def frame(errors: list[tuple[int, float, float]], parameters: int) -> pd.DataFrame:
    return pd.DataFrame(errors, columns=["step", "train_mse", "validation_mse"]).assign(parameters=parameters)


def linear(cell: Cell, cfg: ConfigDict, folder: Path, problem: Problem) -> pd.DataFrame:
    """Returns the looks of a linear map by gradient steps, and as its last row, `ridge`, the one in closed form."""
    t, horizon = cfg.tune, cfg.horizons[-1]
    train, validation = problem.learning(cfg), problem.span("validation", cfg.lookback, cfg.horizons)
    weights_key, key = keys(cfg.seed, "tune")
    first_TK = jax.random.normal(weights_key, (cfg.lookback, cell.width)) * cfg.lookback**-0.5
    several = {"first_TK": first_TK, "second_KH": jnp.zeros((cell.width, horizon))}
    params = {"probe": several if cell.width else {"weights_TH": jnp.zeros((cfg.lookback, horizon))}}
    steps = optim.plan(t.epochs, t.steps, t.batch, train.rows, "tune")
    tx = optim.PROBE.transform(optim.optimiser(optim.terms(t, steps)), params)

    def forecast(params: Any, panel: Any, span: Span, row_R: jax.Array) -> jax.Array:
        p = params["probe"]
        weights_TH = p["first_TK"] @ p["second_KH"] if "first_TK" in p else p["weights_TH"]
        return layers.linear(weights_TH, *past(panel, span, row_R))

    def loss(params: Any, data: Cached, row_R: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return tasks.errors(forecast(params, data.panel, train, row_R), data.panel, train, row_R, t.loss)

    looks = [
        watcher(forecast, problem, span, cfg.evaluate.batch, few)
        for span, few in ((train, t.watch_train), (validation, 0))
    ]
    chunk = step.many(step.one(loss, tx, optim.PROBE, problem.mesh, t.batch, train.rows))
    order = jax.jit(jax.vmap(lambda at: step.order(key, at, t.batch, train.rows)))
    log = Log(folder / "linear.jsonl", quiet=True)
    loop = Loop("tune", steps, t.validations, chunk, Cached(problem.panel), train, order, (key,), log)
    errors = [(0, *(look(params) for look in looks))]
    errors += [(p.step, *(look(p.state.params) for look in looks)) for p in loop.run(step.start(params, tx))]
    found = frame(errors, optim.table(params, optim.PROBE)["probe"]["tuned"])
    if not cell.width:
        ridge = {"probe": {"weights_TH": jnp.asarray(baselines.fit_linear(problem, train, validation))}}
        end = frame([(steps, *(look(ridge) for look in looks))], found["parameters"][0])
        found = pd.concat([found, end.assign(model="ridge")])
    return found


def watcher(forecast: Callable, problem: Problem, span: Span, batch: int, few: int) -> Callable[[Any], float]:
    """Returns f(params) -> MSE, the mean of the span's horizons."""

    def foretell(panel: Any, params: Any, span: Span, row_R: jax.Array) -> dict[str, tuple]:
        y_RH = forecast(params, panel, span, row_R)
        return {"": tuple(y_RH[:, :h] for h in span.horizons)}

    measure = evaluate.evaluator(foretell, problem.mesh, min(batch, few or span.rows, span.rows), few)
    return lambda params: float(np.mean([e.mse for e in measure(problem.panel, params, span)[""]]))


def run(cell: Cell, cfg: ConfigDict, folder: Path, problem: Problem, typed: str) -> pd.DataFrame:
    """Returns a cell's rows: one a look."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    found = (linear if cell.model == "linear" else adapt)(cell, cfg, folder, problem)
    about = {**dataclasses.asdict(cell), "config": fingerprint(cfg), "seconds": time.monotonic() - begun,
             "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
             "date": datetime.date.today().isoformat(), "command": typed}  # fmt: skip
    names = {"model": found["model"].fillna(cell.model)} if "model" in found else {}
    cache.forget()
    jax.clear_caches()
    return found.assign(**about | names)


def ends(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns one row a cell: its best look at validation, the gap to training there and at the end, and by how many
    % validation ended above its best. Means over seeds."""
    found = []
    for cell, looks in rows.groupby([*KEYS], sort=False):
        looks = looks.sort_values("step")
        best, last = looks.loc[looks["validation_mse"].idxmin()], looks.iloc[-1]
        found.append((
            *cell[:4], best["parameters"], best["step"], best["validation_mse"],
            best["validation_mse"] - best["train_mse"], last["validation_mse"] - last["train_mse"],
            100 * (last["validation_mse"] / best["validation_mse"] - 1),
        ))  # fmt: skip
    names = ["data", "model", "share", "width", "parameters", "step", "best", "gap", "gap_end", "rise"]
    table = pd.DataFrame(found, columns=names)
    return table.groupby(names[:4], sort=False).mean().reset_index()


def markdown(table: pd.DataFrame) -> str:
    """Returns a table for each data set: a row a model and width, three columns a share of the training windows."""
    shares = sorted(table["share"].unique())
    lines = []
    for name, of in table.groupby("data", sort=False):
        lines += [
            f"**{name}**: best validation MSE @ its step / gap to training there / gap at the end (rise of validation "
            f"from best to end)",
            "",
            "| model | width or rank | trained | " + " | ".join(f"{s:.0%} of the windows" for s in shares) + " |",
            "|---" * (3 + len(shares)) + "|",
        ]
        for model in ("ridge", *MODELS):
            for width, rows in sorted(of[of["model"] == model].groupby("width"), key=lambda item: -(item[0] or 10**9)):
                by = rows.set_index("share")
                texts = [
                    f"{r.best:.3f} @ {r.step:.0f} / {r.gap:.2f} / {r.gap_end:.2f} (+{r.rise:.1f} %)"
                    if r is not None
                    else ""
                    for r in (by.loc[s] if s in by.index else None for s in shares)
                ]
                label = MODELS.get(model, "linear map, ridge in closed form")
                head = [label, str(width or "full"), f"{by['parameters'].iloc[0]:,.0f}"]
                lines.append("| " + " | ".join([*head, *texts]) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def publish(rows: pd.DataFrame) -> None:
    """Writes the table and the figures of what is finished."""
    if rows.empty:
        return
    table = ends(rows)
    show("overfitting", markdown(table))
    pictures(lambda: draw(rows, table))


def draw(rows: pd.DataFrame, table: pd.DataFrame) -> None:
    """Writes the figures of each data set. table: of `ends`."""
    import curves

    for name in table["data"].unique():
        of, summary = rows[rows["data"] == name], table[table["data"] == name]
        curves.learning(of, MODELS, RESULTS / "overfit" / f"{name}-curves.png")
        curves.plane(of, MODELS, RESULTS / "overfit" / f"{name}-plane.png")
        curves.summary(summary, MODELS, RESULTS / "overfit" / f"{name}-best.png")


def arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Returns the arguments and the overrides of every cell. Raises UserError for what does not exist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="backbones go to overfit/ in it")
    parser.add_argument("--data", default="ETTh1", help="data sets, comma-separated")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no cell begins after so many")
    parser.add_argument("--tables", action="store_true", help="table and figures of what is finished, run nothing")
    args, rest = parser.parse_known_args(argv)
    args.data = chosen(args.data, SETS)
    if args.seeds < 1:
        raise UserError(f"--seeds={args.seeds} is out of range; accepted: a number of at least 1")
    wrong = [a for a in rest if not a.startswith("--config.")]
    if wrong:
        raise UserError(f"argument {wrong[0]} is unknown; accepted: those of --help, and --config.key=value")
    return args, rest


@exit_code("overfit")
def study(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    ledger = Ledger(RESULTS / "overfit.csv", KEYS, VERSIONS)
    args, overrides = arguments(argv)
    wanted = [(cell, settle(cell, overrides)) for cell in cells(args.data, range(args.seeds))]
    ahead = [
        (cell, cfg) for cell, cfg in wanted
        if not ledger.has(**dataclasses.asdict(cell), config=fingerprint(cfg))
    ]  # fmt: skip
    ahead = [] if args.tables else ahead
    prepared: dict[str, Problem] = {}
    begun = time.monotonic()
    for i, (cell, cfg) in enumerate(ahead, 1):
        spent = time.monotonic() - begun
        if spent > 60 * args.minutes:
            print(f"overfit: {len(ahead) - i + 1} cells are left after {spent / 60:.0f} minutes")
            break
        main.set_up(cfg)
        if cell.data not in prepared:
            prepared[cell.data] = problems.prepare(data.load(cfg.data), mesh.make(cfg.devices))
        rows = run(cell, cfg, args.runs / "overfit", prepared[cell.data], command("overfit", argv))
        ledger.add(rows)
        left = (time.monotonic() - begun) / i * (len(ahead) - i) / 60
        best = rows["validation_mse"].min()
        print(f"{i} of {len(ahead)}  {cell}  best {best:.4f}  {rows['seconds'].iloc[0]:.0f} s  {left:.0f} min left",
              flush=True)  # fmt: skip
    publish(ledger.rows)


if __name__ == "__main__":
    sys.exit(study())
