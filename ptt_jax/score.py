"""Every model on every window of validation and test: results.csv, steps.csv, channels.csv, and what to look at."""

from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pandas as pd
from jax import Array
from ml_collections import ConfigDict

from ptt_jax import (
    architecture,
    baselines,
    cache,
    checkpoint,
    encodings,
    evaluate,
    exhibits,
    finetune,
    processes,
    prompts,
    seal,
    tally,
    tasks,
)
from ptt_jax import mesh as meshes
from ptt_jax.data import season
from ptt_jax.encodings import Cached
from ptt_jax.files import write_atomic
from ptt_jax.layers import linear
from ptt_jax.log import Log
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.windows import Span, Windows, past

RESULTS = ("data", "lookback", "horizon", "model", "split", "seed", "mse", "mae", "windows")
STEPS = ("data", "horizon", "model", "split", "step", "mse", "mae")
NOTED = ("steps.csv", "channels.csv", "samples.npz", "exhibits.npz", "metrics.jsonl")  # by results.json
CHANNELS = ("data", "horizon", "model", "split", "channel", "mse", "mae")


@cache.kept
def models(
    model: CrossMAE, steps_a_season: int, seeds: tuple[int, ...], mode: str = "prompt", levels: int = 0
) -> evaluate.Forecast:
    """Returns how every model forecasts the rows of a span: {model: y_RH for each horizon}, inputs those of `score`.

    One program for all of them, so that what they share is there once: histories, encodings, and one decoder for the
    queries of every prompt. The prompt of each seed is a model of its own, 'prompt SEED'; of another mode than 'prompt'
    there is one, 'MODE SEED'. levels: of quantile prompts, 'quantile SEED': y_QRH, ordered.
    """

    def forecast(panel: Windows, inputs: dict[str, Any], span: Span, row_R: Array) -> dict[str, tuple[Array, ...]]:
        x_RT, observed_RT = past(panel, span, row_R)
        encoded = encodings.encode(model, inputs["backbone"], Cached(panel), span, row_R)
        longest = span.horizons[-1]
        several = range(len(seeds)) if mode == "prompt" else ()
        prompted = [(inputs["tuned"][h][s], h) for s in several for h in span.horizons]
        asked = [(s, h, q) for s in several for h in span.horizons for q in range(levels)]
        of_level = [(jax.tree.map(lambda a, q=q: a[q], inputs["quantiles"][h][s]), h) for s, h, q in asked]
        zero_RH, *rest = tasks.forecasts(
            model, inputs["backbone"], encoded, [(None, longest), *prompted, *of_level], row_R % span.channels
        )
        naive_RH = baselines.seasonal_naive(x_RT, steps_a_season, longest)
        linear_RH = linear(inputs["weights_TH"], x_RT, observed_RT)
        wholes = {"seasonal_naive": naive_RH, "linear": linear_RH, "zero_shot": zero_RH}
        out = {name: tuple(y_RH[:, :h] for h in span.horizons) for name, y_RH in wholes.items()}
        if mode != "prompt":
            history = x_RT, observed_RT
            of = inputs["tuned"]
            tuned = (
                baselines.forecast(model, of[h], *history, row_R % span.channels, h, longest) for h in span.horizons
            )
            return out | {f"{mode} {seeds[0]}": tuple(tuned)}
        count = len(span.horizons)
        out |= {f"prompt {s}": tuple(rest[i * count : (i + 1) * count]) for i, s in enumerate(seeds)}
        if levels:
            parts = [rest[at : at + levels] for at in range(len(prompted), len(rest), levels)]
            ordered = [tasks.rearranged(part) for part in parts]
            out |= {f"quantile {s}": tuple(ordered[i * count : (i + 1) * count]) for i, s in enumerate(seeds)}
        return out

    return forecast


class Plan:
    """What scores a run, before its weights are there."""

    def __init__(self, cfg: ConfigDict, problem: Problem, model: CrossMAE) -> None:
        self.cfg, self.problem, self.model, mode = cfg, problem, model, cfg.tune.mode
        self.seeds = tuple(range(cfg.seed, cfg.seed + cfg.tune.seeds)) if mode == "prompt" else (cfg.seed,)
        splits = ("validation", "test") if cfg.evaluate.test else ("validation",)
        self.spans = {s: problem.span(s, cfg.lookback, cfg.horizons) for s in splits}
        self.levels, self.cycle = tuple(cfg.tune.quantiles), season(problem.series.freq)
        self.forecast = models(model, self.cycle, self.seeds, mode, len(self.levels))
        batch = min(cfg.evaluate.batch, max(of.rows for of in self.spans.values()))
        intervals = self.cycle * cfg.evaluate.intervals
        self.measure = evaluate.evaluator(self.forecast, problem.mesh, batch, season=intervals, by_channel=True)

    def foresee(self, tuned: dict[int, Any], quantiles: dict[int, Any] | None = None) -> int:
        """Returns the bytes of each device that scoring will take beside what is there now; of what is tuned for each
        horizon, as `models` takes it, which may be shapes. Raises TooLarge when it will not fit."""
        weights_TH = jax.ShapeDtypeStruct((self.cfg.lookback, self.cfg.horizons[-1]), np.float32)
        inputs = {"backbone": architecture.shapes(self.model), "tuned": tuned, "weights_TH": weights_TH}
        inputs |= {"quantiles": quantiles} if quantiles else {}
        inputs = meshes.shapes(self.problem.mesh, inputs)
        return max(self.measure.foresee(self.problem.panel, inputs, span) for span in self.spans.values())


def score(cfg: ConfigDict, run: Path, problem: Problem, task: str, log: Log, plan: Plan | None = None) -> None:
    """Writes results.csv last, unless it is there already. Without `evaluate.test` no test window is ever cut. plan:
    one that is there."""
    if processes.once((run / "results.csv").exists):
        processes.once(lambda: seal.check_files(run / "results.json"))
        log.say(f"evaluate: done before ({run / 'results.csv'})")
        return
    mode = cfg.tune.mode
    with processes.together():
        card = checkpoint.find_backbone(run)
        model = architecture.build(card["architecture"], cfg.compute_dtype, views=cfg.views)
        inputs: dict[str, Any] = {"backbone": checkpoint.load_backbone(card, architecture.shapes(model))}
        if mode == "prompt":
            inputs["tuned"] = checkpoint.load_prompts(run, task, card["content_hash"])
            if cfg.tune.quantiles:
                inputs["quantiles"] = checkpoint.load_prompts(run, prompts.quantiles(task), card["content_hash"])
        else:
            channels = len(problem.series.names_C)
            inputs["tuned"] = finetune.load(cfg, run, task, card, inputs["backbone"], channels)
    plan = plan or Plan(cfg, problem, model)
    seeds, spans, levels, forecast, cycle = plan.seeds, plan.spans, plan.levels, plan.forecast, plan.cycle
    inputs["weights_TH"] = baselines.fit_linear(problem, problem.learning(cfg), spans["validation"])
    inputs = meshes.replicate(problem.mesh, inputs)
    names = {"seasonal_naive": cfg.seed, "linear": cfg.seed, "zero_shot": cfg.seed}
    names |= {f"{mode} {seed}": seed for seed in seeds}
    names |= {f"quantile {seed}": seed for seed in seeds if cfg.tune.quantiles}
    rows: list[dict[str, Any]] = []
    steps: list[tuple] = []
    by_channel: list[tuple] = []
    past: dict[str, list[evaluate.Errors]] = {}
    counted: list[np.ndarray] = []
    for split in spans:
        found = plan.measure(problem.panel, inputs, spans[split])
        past = past or found
        if (longest := found[f"{mode} {seeds[0]}"][-1].tally) is not None:
            counted.append(longest[0])
        for key, seed in names.items():
            name, errors = key.split()[0], [median(e, levels) for e in found[key]]
            for i, (h, e) in enumerate(zip(cfg.horizons, errors, strict=True)):
                values = (problem.series.name, cfg.lookback, h, name, split, seed, e.mse, e.mae, e.windows)
                rows.append(dict(zip(RESULTS, values, strict=True)))
                if (before := past[key][i].tally) is not None and e.tally is not None and split == "test":
                    apart = spans["validation"].apart(i) * len(problem.series.names_C)
                    rows[-1] |= tally.judge(levels or tally.DECILES, before, e.tally, apart)
                if seed == cfg.seed and name != "quantile":
                    steps += [(problem.series.name, h, name, split, i + 1, e.mse_H[i], e.mae_H[i]) for i in range(h)]
                    of_C = zip(problem.series.names_C, cast(Any, e.mse_C), cast(Any, e.mae_C), strict=True)
                    by_channel += [(problem.series.name, h, name, split, *of) for of in of_C]
            log.say(
                f"evaluate  {split}  {name if len(seeds) == 1 else key:<14}  "
                + "  ".join(f"{h}: {e.mse:.4f} / {e.mae:.4f}" for h, e in zip(cfg.horizons, errors, strict=True))
            )
    one = [key for key in names if not key.startswith("quantile")]
    shown = {key.split()[0]: key for key in reversed(one)}  # of several seeds the first
    exhibits.write(run, cfg, problem, model, forecast, inputs, spans, shown, counted, cycle)
    write_csv(run / "steps.csv", pd.DataFrame(steps, columns=STEPS))
    write_csv(run / "channels.csv", pd.DataFrame(by_channel, columns=CHANNELS))
    processes.once(lambda: forget(run))
    results = pd.DataFrame(rows)
    processes.once(lambda: seal.note_files(run / "results.json", NOTED, {"results.csv": text(results)}))
    write_csv(run / "results.csv", results)


def forget(run: Path) -> None:
    """Removes the pages of results that were here before."""
    for page in ("report.md", "report.html"):
        (run / page).unlink(missing_ok=True)


def median(e: evaluate.Errors, levels: tuple[float, ...]) -> evaluate.Errors:
    """Returns the errors of a forecast: of quantile forecasts those of the median, nan where it is not among them."""
    if e.mse_H.ndim == 1:
        return e
    at = levels.index(0.5) if 0.5 in levels else None
    mse_H, mae_H = (np.full(len(e.count_H), np.nan) if at is None else a_QH[at] for a_QH in (e.mse_H, e.mae_H))
    return e._replace(mse_H=mse_H, mae_H=mae_H)


def text(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.6f")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    processes.once(lambda: write_atomic(path, text(frame)))
