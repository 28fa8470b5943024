"""Every model on every window of validation and test: results.csv, steps.csv, and a few forecasts to look at."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array
from ml_collections import ConfigDict

from ptt_jax import baselines, checkpoint, evaluate, processes, tasks, train
from ptt_jax import mesh as meshes
from ptt_jax.config import write_atomic
from ptt_jax.data import season
from ptt_jax.log import Log
from ptt_jax.model import CrossMAE
from ptt_jax.tasks import Cached, Problem
from ptt_jax.windows import Span, take

# f(inputs, row_R) -> a forecast in scaled space for each horizon, for a span.
Make = Callable[[Span], evaluate.Forecast]


def models(model: CrossMAE, steps_a_season: int) -> dict[str, Make]:
    """Returns how each model forecasts the rows of a span; its inputs are those of `score`."""

    def history(inputs: dict[str, Any], span: Span, row_R: Array) -> tuple[Array, Array]:
        x_RL, observed_RL = take(inputs["panel"], span, row_R)
        return x_RL[:, : span.lookback], observed_RL[:, : span.lookback]

    def naive(span: Span) -> evaluate.Forecast:
        return lambda inputs, row_R: tuple(
            baselines.seasonal_naive(history(inputs, span, row_R)[0], steps_a_season, h) for h in span.horizons
        )

    def linear(span: Span) -> evaluate.Forecast:
        return lambda inputs, row_R: tuple(
            baselines.linear(inputs["weights_TH"], *history(inputs, span, row_R), h) for h in span.horizons
        )

    def backbone(span: Span, prompted: bool) -> evaluate.Forecast:
        def forecast(inputs: dict[str, Any], row_R: Array) -> tuple[Array, ...]:
            encoded = tasks.encode(model, inputs["backbone"], Cached(inputs["panel"]), span, row_R)
            prompt = {h: {"prompt": inputs["prompts"][h]} if prompted else {} for h in span.horizons}
            return tuple(
                tasks.forecast(model, {"backbone": inputs["backbone"], **prompt[h]}, encoded, h) for h in span.horizons
            )

        return forecast

    return {
        "seasonal_naive": naive,
        "linear": linear,
        "zero_shot": lambda span: backbone(span, False),
        "prompt": lambda span: backbone(span, True),
    }


def score(cfg: ConfigDict, run: Path, problem: Problem, task: str, log: Log) -> None:
    """Writes results.csv last, unless it is there already."""
    if processes.once((run / "results.csv").exists):
        log.say(f"evaluate: done before ({run / 'results.csv'})")
        return
    card = checkpoint.find_backbone(run)
    model = train.build(card["architecture"], cfg.compute_dtype)
    spans = {s: problem.span(s, cfg.lookback, cfg.horizons) for s in ("train", "validation", "test")}
    inputs = {
        "panel": problem.panel,
        "backbone": checkpoint.load_backbone(card, train.shapes(model)),
        "prompts": checkpoint.load_prompts(run, task, card["content_hash"]),
        "weights_TH": baselines.fit_linear(problem.panel, spans["train"], spans["validation"]),
    }
    inputs = meshes.replicate(problem.mesh, inputs)
    makers = models(model, season(problem.series.freq))
    rows, steps = [], []
    for split in ("validation", "test"):
        for name, make in makers.items():
            errors = evaluate.evaluator(make(spans[split]), spans[split], problem.mesh, cfg.evaluate.batch)(
                problem.panel, inputs
            )
            for h, e in zip(cfg.horizons, errors, strict=True):
                rows.append((problem.series.name, cfg.lookback, h, name, split, cfg.seed, e.mse, e.mae, e.windows))
                steps += [(problem.series.name, h, name, split, i + 1, e.mse_H[i], e.mae_H[i]) for i in range(h)]
            log.say(
                f"evaluate  {split}  {name:<14}  "
                + "  ".join(f"{h}: {e.mse:.4f} / {e.mae:.4f}" for h, e in zip(cfg.horizons, errors, strict=True))
            )
    samples(cfg.evaluate.samples, run, problem, spans["test"], makers, inputs)
    write_csv(run / "steps.csv", "data,horizon,model,split,step,mse,mae", steps)
    write_csv(run / "results.csv", "data,lookback,horizon,model,split,seed,mse,mae,windows", rows)


def write_csv(path: Path, header: str, rows: list[tuple]) -> None:
    text = pd.DataFrame(rows, columns=header.split(",")).to_csv(index=False, float_format="%.6f")
    processes.once(lambda: write_atomic(path, text))


def samples(
    count: int, run: Path, problem: Problem, span: Span, makers: dict[str, Make], inputs: dict[str, Any]
) -> None:
    """Writes samples.npz: forecasts of the longest horizon in original units, of several channels and test windows."""
    channels = min(3, span.channels, count)
    windows = max(count // channels, 1)
    at_W = np.unique(np.linspace(0, span.counts[-1] - 1, windows + 2)[1:-1].astype(int))
    of_C = np.unique(np.linspace(0, span.channels - 1, channels).astype(int))
    row_S = np.array([w * span.channels + c for c in of_C for w in at_W])
    channel_S = row_S % span.channels

    scale_S1, mean_S1 = problem.scaler.scale_C[channel_S, None], problem.scaler.mean_C[channel_S, None]

    def units(x_SL: Array) -> np.ndarray:
        return scale_S1 * np.asarray(x_SL) + mean_S1

    x_SL, observed_SL = jax.device_get(take(problem.panel, span, jnp.asarray(row_S)))
    past, future = slice(0, span.lookback), slice(span.lookback, None)
    stamps = problem.series.stamps_T
    now_S = span.first + row_S // span.channels + span.lookback
    steps = np.diff(stamps.to_numpy()).astype("timedelta64[s]").astype(float)
    steady = np.mean(steps == np.median(steps)) > 0.99  # months are not; a benchmark file with one gap is
    makes = {name: make(span) for name, make in makers.items()}
    run_all = jax.jit(lambda inputs, row_S: {name: make(inputs, row_S)[-1] for name, make in makes.items()})
    forecasts = {f"forecast_{name}_SH": units(y_SH) for name, y_SH in run_all(inputs, jnp.asarray(row_S)).items()}
    if not processes.is_first():
        return
    temporary = run / "samples.npz.tmp"
    with temporary.open("wb") as f:
        np.savez(
            f,
            history_ST=units(x_SL[:, past]),
            history_observed_ST=np.asarray(observed_SL[:, past]),
            truth_SH=units(x_SL[:, future]),
            truth_observed_SH=np.asarray(observed_SL[:, future]),
            channel_S=np.array([problem.series.names_C[c] for c in channel_S]),
            stamp_S=np.array([str(stamps[i]) for i in now_S]),
            step_seconds=np.median(steps) if steady else 0.0,
            horizon=span.horizons[-1],
            **forecasts,  # type: ignore[arg-type]  # the stub takes each for `allow_pickle`
        )
    os.replace(temporary, run / "samples.npz")
