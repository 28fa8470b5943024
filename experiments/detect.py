"""Anomaly detection on four collections with one frozen backbone and a prompt for each, against a moving z-score.

    python experiments/detect.py --runs=runs/reproduce                 # backbones RUNS/main/ETTm1-s0, -s1, -s2
    python experiments/detect.py --backbone=runs/ettm1 --data=UCR --seeds=1
    python experiments/detect.py --tables                              # write the table of what is finished

A cell is a collection and a seed; one that is finished under the same recipe and backbone is not run again. Files are
looked for in $PTT_DATA_DIR and the folders in it, long tables: NAB.csv.gz (series,date,value,label,window),
UCR_anomaly*.csv.gz (series,t,train,label,value), SMAP.csv.gz and MSL.csv.gz (series,split,t,label,f0,f1,...).

Labels are read by the metrics alone, NAB's windows and not its points. Prompts and scalers see training parts: UCR's,
SMAP's and MSL's own, and of NAB, which has none, the first 15 % of each series, its probationary period, which is not
scored. Of SMAP and MSL the first channel is telemetry, which the labels are about (Hundman et al. 2018), and the others
say which commands were sent: all channels and telemetry alone are collections of their own. Rows are steps: gaps in
NAB's stamps are not looked at. SMAP's and MSL's test parts are read without what came before them, UCR's and NAB's with
it. A channel that stands still over what is scored adds nothing to a score; one that stood still in training is not
scaled. Series without an anomaly, or with nothing else, are no part of a mean.
"""

import argparse
import datetime
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
from ledger import Ledger, chosen, exit_code, fingerprint, set_table

from ptt_jax import architecture, checkpoint, config, detect, lessons, mesh, ranking, scaling
from ptt_jax import main as program
from ptt_jax.errors import UserError
from ptt_jax.seal import read_json

HERE = Path(__file__).parent
FILES = {"NAB": "NAB.csv.gz", "UCR": "UCR_anomaly*.csv.gz", "SMAP": "SMAP.csv.gz", "SMAP-telemetry": "SMAP.csv.gz",
         "MSL": "MSL.csv.gz", "MSL-telemetry": "MSL.csv.gz"}  # fmt: skip
PROBATION = 0.15  # of a NAB series
EACH = 10  # series of a collection, up to which a prompt for each is tuned, too
SHARE = 0.25  # of a window, its end, that is hidden where only the past is read
BUFFER, EVERY = 100, 5  # steps, of VUS-PR
METRICS = {
    "auroc": ("AUROC", ranking.auroc),
    "auprc": ("AUPRC", ranking.auprc),
    "vus_pr": ("VUS-PR", lambda label_T, score_T: ranking.vus_pr(label_T, score_T, BUFFER, EVERY)),
    "f1_best": ("best F1", ranking.f1_best),
    "f1_point_adjusted": ("*point-adjusted F1 (inflated)*", ranking.f1_point_adjusted),
}
SHOWN = "prompts"  # whose scores the pictures have, beside the z-score's


class Case(NamedTuple):
    """One series, scaled: its training part, and what is scored of the whole, the steps from `begin` on."""

    name: str
    learn: lessons.Part
    whole: lessons.Part
    begin: int
    label_T: np.ndarray


def recipe(seed: int) -> config.ConfigDict:
    """Returns the config of a cell: the defaults of scores, and how a prompt is tuned.

    Absolute errors, since in the units of a window that stands still a jump's square outweighs all others.
    """
    cfg = config.default()
    cfg.seed = seed
    cfg.tune.update(steps=120, batch=128, learning_rate=3e-3, validations=4, loss="mae")
    return cfg


def find(name: str) -> Path:
    """Returns a collection's file. Raises UserError when it is nowhere."""
    folder = Path(os.environ.get("PTT_DATA_DIR") or ".")
    for path in (*sorted(folder.glob(FILES[name])), *sorted(folder.glob(f"*/{FILES[name]}"))):
        return path
    raise UserError(f"{FILES[name]} is neither in {folder} nor in a folder there; accepted: PTT_DATA_DIR that holds it")


def read(name: str) -> Iterator[Case]:
    """Yields the series of a collection."""
    for series, rows in pd.read_csv(find(name)).groupby("series", sort=False):
        columns = [c for c in rows if c == "value" or (c[0] == "f" and c[1:].isdigit())]
        columns = columns[:1] if name.endswith("-telemetry") else columns
        values_TC, label_T = (
            rows[columns].to_numpy(np.float64),
            rows["window" if name == "NAB" else "label"].to_numpy(bool),
        )
        apart = "split" in rows
        if name == "NAB":
            learn_T = np.arange(len(rows)) < int(PROBATION * len(rows))
        else:
            learn_T = (rows["split"] == "train").to_numpy() if apart else rows["train"].to_numpy(bool)
        whole_T, begin = ~learn_T if apart else np.ones_like(learn_T), 0 if apart else int(learn_T.sum())
        observed_TC = ~np.isnan(values_TC)
        scaler = scaling.standardise(values_TC[learn_T], observed_TC[learn_T])
        x_TC = scaler.transform(values_TC)
        learn, whole = ((x_TC[of_T], observed_TC[of_T]) for of_T in (learn_T, whole_T))
        yield Case(str(series), learn, whole, begin, label_T[whole_T][begin:])


def detector(cfg: config.ConfigDict, card: dict, **instead: object) -> detect.Detector:
    """Returns the backbone of a card and what it is asked, with some knobs of `detect` in others' stead."""
    section = config.default().detect
    section.update(cfg.detect, **instead)
    model, on = architecture.build(card["architecture"], cfg.compute_dtype), mesh.make(1)
    backbone = mesh.replicate(on, checkpoint.load_backbone(card, architecture.shapes(model)))
    return detect.Detector(model, backbone, detect.question(section, model.patch, card["lookback"]), section.units, on)


class Cell(NamedTuple):
    """A collection and a seed, on a backbone."""

    name: str
    seed: int
    backbone: Path
    runs: Path

    @property
    def key(self) -> dict[str, object]:
        """What a finished cell is known by."""
        card = checkpoint.find_backbone(self.backbone)
        constants = {
            "probation": PROBATION, "each": EACH, "share": SHARE, "buffer": BUFFER, "every": EVERY,
            "metrics": [*METRICS], "rows": lessons.MOST_ROWS, "held_back": lessons.HELD_BACK, "far": detect.FAR,
        }  # fmt: skip
        return {"data": self.name, "seed": self.seed, "config": fingerprint(recipe(self.seed), **constants),
                "backbone": card["content_hash"][:12]}  # fmt: skip

    def run(self, note: dict[str, object]) -> tuple[pd.DataFrame, str]:
        """Returns a row for each series and model, and what was learnt, in words. Pictures of seed 0 are drawn."""
        cfg, cases, card = recipe(self.seed), list(read(self.name)), checkpoint.find_backbone(self.backbone)
        asked, ahead = detector(cfg, card), detector(cfg, card, score="forecast", stride=SHARE)
        folder = self.runs / "detect" / f"{self.name}-s{self.seed}-{self.key['config']}-{self.key['backbone']}"
        parts = [case.learn for case in cases]
        prompt = learn(folder, self.name, asked, card, cfg, parts)
        past = learn(folder, f"{self.name}-past", ahead, card, cfg, parts)
        rng, rows, shown = np.random.default_rng(self.seed), [], []
        for case in cases:
            asked_by, names = [None, prompt], ["mask token alone", "prompts"]
            if len(cases) <= EACH:
                names.append("prompts, one a series")
                asked_by.append(learn(folder, case.name, asked, card, cfg, [case.learn]))
            both = zip(names, asked.errors(*case.whole, asked_by, case.begin), strict=True)
            alone, prompted = ahead.errors(*case.whole, (None, past), case.begin)
            errors = {
                "random scores": rng.random(case.label_T.shape)[:, None],
                "moving z-score": detect.moving_z(*case.whole, asked.asked.length, case.begin),
                "mask token alone, past only": alone,
                "prompts, past only": prompted,
                **dict(both),
            }  # fmt: skip
            scores = {model: detect.combine(error_TC, cfg.detect.combine) for model, error_TC in errors.items()}
            if not case.label_T.any() or case.label_T.all():
                continue
            for model, score_T in scores.items():
                values = {metric: f(case.label_T, score_T) for metric, (_, f) in METRICS.items()}
                rows.append({**note, "series": case.name, "model": model, **values, "steps": len(score_T),
                             "anomalous": case.label_T.mean()})  # fmt: skip
            shown.append((case, scores))
        if not self.seed:
            draw(self.name, [shown[i] for i in np.linspace(0, len(shown) - 1, min(3, len(shown))).astype(int)])
        said = read_json(folder / "prompts" / f"{self.name}.json")
        (_, first), best = said["looks"][0], min(loss for _, loss in said["looks"])
        return pd.DataFrame(rows), f"held-back loss {first:.4f} to {best:.4f}, step {said['step']}"


def learn(
    folder: Path, task: str, asked: detect.Detector, card: dict, cfg: config.ConfigDict, parts: list[lessons.Part]
) -> lessons.Prompt:
    """Returns the prompt of a task, tuned on training parts unless that was done."""
    if not (folder / "prompts" / f"{task}.json").exists():
        tuned = lessons.tune(asked, *lessons.lessons(asked, parts), cfg.tune, cfg.seed)
        lessons.save(folder, task, tuned, asked, card, cfg.seed)
    return lessons.load(folder, task, asked, card, cfg.tune.loss)


def draw(name: str, shown: list[tuple[Case, dict[str, np.ndarray]]]) -> None:
    """Draws the first, the middle and the last series with an anomaly: its first channel, and both scores below."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib, pip install ptt_jax[plot]", flush=True)
        return
    figure = Figure(figsize=(11, 2.6 * len(shown)), layout="constrained")
    heights = [1.3, 1] * len(shown)
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for (case, scores), above, below in zip(shown, axes[::2], axes[1::2], strict=True):
        x_T, at_T = case.whole[0][case.begin :, 0], np.arange(case.begin, len(case.whole[0]))
        above.plot(at_T, x_T, color="#222222", linewidth=0.6, label="value (scaled, first channel)")
        for model, colour in (("moving z-score", "#0072B2"), (SHOWN, "#D55E00")):
            score_T = scores[model] / max(scores[model].max(), 1e-12)
            below.plot(at_T, score_T, color=colour, linewidth=0.7, label=f"score, {model} (largest = 1)")
        edge_T = np.flatnonzero(np.diff(case.label_T.astype(int), prepend=0, append=0))
        for ax in (above, below):
            for i, (begin, end) in enumerate(edge_T.reshape(-1, 2) + case.begin - 0.5):
                ax.axvspan(begin, end, color="#F0E442", alpha=0.6, linewidth=0, label="anomaly" if not i else None)
            ax.set(xmargin=0)
            ax.spines[["top", "right"]].set_visible(False)
        above.set_title(f"{name}: {case.name}", fontsize=9, loc="left")
        above.set_xticklabels([])
    lines = [ax.get_legend_handles_labels() for ax in axes[:2]]
    handles = dict(zip(lines[0][1] + lines[1][1], lines[0][0] + lines[1][0], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4, fontsize=8, frameon=False)
    path = HERE / "results" / "anomalies" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def ledger(file: str) -> Ledger:
    """Returns a table of results: what is finished of each collection and seed."""
    return Ledger(HERE / "results" / file, ("data", "seed"), ("config", "backbone"))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns means over the series of a cell, with the columns of its note."""
    notes = [c for c in rows if c not in (*METRICS, "series", "steps", "anomalous")]
    means = {metric: (metric, "mean") for metric in (*METRICS, "anomalous")}
    return rows.groupby(notes, sort=False).agg(**means, series=("series", "nunique")).reset_index()


def markdown(table: pd.DataFrame) -> str:
    """Returns a line for each collection and model: means over series, then over seeds."""
    lines = ["| | | " + " | ".join(words for words, _ in METRICS.values()) + " | series | seeds |"]
    lines.append("|---" * (len(METRICS) + 4) + "|")
    for (name, model), of in table.groupby(["data", "model"], sort=False):
        texts = [f"{of[m].mean():.3f}" + (f" ±{of[m].std():.3f}" if len(of) > 1 else "") for m in METRICS]
        lines.append(f"| {name} | {model} | " + " | ".join([*texts, str(of["series"].max()), str(len(of))]) + " |")
    return "\n".join(lines)


def publish() -> None:
    """Writes the table into experiments/README.md between its markers."""
    if len(table := ledger("anomalies.csv").rows):
        order = {name: i for i, name in enumerate(FILES)}
        table = table.sort_values("data", key=lambda names: names.map(order), kind="stable")
        set_table(HERE / "README.md", "anomalies", markdown(table))


@exit_code("detect")
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="where run directories lie")
    parser.add_argument("--backbone", type=Path, help="run directory; default: RUNS/main/ETTm1-sSEED")
    parser.add_argument("--data", default=",".join(FILES), help="collections, comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", action="store_true", help="write the table of what is finished, run nothing")
    args = parser.parse_args(argv)
    names = chosen(args.data, FILES)
    cells = [
        Cell(name, seed, args.backbone or args.runs / "main" / f"ETTm1-s{seed}", args.runs)
        for seed in range(args.seeds) for name in names
    ]  # fmt: skip
    if not args.tables:
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns that it may not write beside a backbone
        program.set_up(recipe(0))
        book = ledger("anomalies.csv")
        ahead = [cell for cell in cells if not book.has(**cell.key)]
        finish(ahead, args)
    publish()


def finish(ahead: list[Cell], args: argparse.Namespace) -> None:
    """Runs cells, each with its rows written at once and a line that says how long the others may take."""
    begun, backbone = time.monotonic(), [f"--backbone={args.backbone.name}"] if args.backbone else []
    for i, cell in enumerate(ahead, 1):
        started, key = time.monotonic(), cell.key
        rows, words = cell.run(key)
        one = ["python", "experiments/detect.py", *backbone, f"--data={cell.name}", f"--seeds={cell.seed + 1}"]
        rows = rows.assign(
            seconds=round(time.monotonic() - started, 1), date=datetime.date.today().isoformat(),
            device=f"{jax.device_count()} x {jax.devices()[0].device_kind}", command=shlex.join(one),
        )  # fmt: skip
        ledger("anomalies-series.csv").add(rows.drop(columns=["seconds", "date", "device", "command"]))
        ledger("anomalies.csv").add(summary(rows))
        publish()
        left = (time.monotonic() - begun) / i * (len(ahead) - i) / 60
        shown = summary(rows).set_index("model")["auprc"].round(3).to_dict()
        print(f"{i} of {len(ahead)}  {cell.name}-s{cell.seed}  {words}  AUPRC {shown}  "
              f"{time.monotonic() - started:.0f} s  {left:.0f} min left", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
