"""What a run keeps to be looked at: a few forecasts with intervals, how much these cover, attention over history.

    samples.npz    windows of several channels in original units: history, truth, and every model's forecast
    exhibits.npz   low_ZSH and high_ZSH, intervals of the tuned model's forecasts in samples.npz, and what share of test
                   falls between, coverage_ZH, Z levels in percent; attention_IKMN, what future patch M pays to history
                   patch N in block I and head K of the decoder; what the series holds

All of the longest horizon. Intervals are split-conformal (`intervals.py`), from residuals of validation, which has
chosen the step of the weights, too; they are measured on test.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from ptt_jax import attention, evaluate, intervals, processes, prompts
from ptt_jax import mesh as meshes
from ptt_jax.config import UserError
from ptt_jax.data import exact
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.windows import Span, Windows, past, take

LEVELS = (80, 95)
WINDOWS, CHANNELS = 200, 32  # most that intervals are made from, and measured on
ROWS = 256  # of the mean that attention is, and of a dispatch

# f(span, row_R) -> x_RL, observed_RL, {model: y_RH of the longest horizon}: windows and forecasts in scaled space
View = Callable[[Span, np.ndarray], tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]


def write(
    run: Path, cfg: ConfigDict, problem: Problem, model: CrossMAE, forecast: evaluate.Forecast,
    inputs: dict[str, Any], spans: dict[str, Span], shown: dict[str, str],
) -> None:  # fmt: skip
    """Writes samples.npz and exhibits.npz, of the last span. shown: {model: its key in what `forecast` returns}; the
    tuned one is called by its mode."""
    view, tuned = viewer(problem, forecast, inputs, shown), cfg.tune.mode
    span, validation = list(spans.values())[-1], spans["validation"]
    row_S = pick(span, cfg.evaluate.samples)
    x_SL, observed_SL, made = view(span, row_S)
    series, channel_S, split = problem.series, row_S % span.channels, slice(span.lookback, None)
    scale_S1, mean_S1 = problem.scaler.scale_C[channel_S, None], problem.scaler.mean_C[channel_S, None]
    now_S = span.first + row_S // span.channels + span.lookback
    steps = np.diff(series.stamps_T.to_numpy()).astype("timedelta64[s]").astype(float)
    steady = np.mean(steps == np.median(steps)) > 0.99  # months are not; a benchmark file with one gap is
    samples = {
        "history_ST": scale_S1 * x_SL[:, : span.lookback] + mean_S1,
        "history_observed_ST": observed_SL[:, : span.lookback],
        "truth_SH": scale_S1 * x_SL[:, split] + mean_S1,
        "truth_observed_SH": observed_SL[:, split],
        "channel_S": np.array([series.names_C[c] for c in channel_S]),
        "stamp_S": np.array([str(series.stamps_T[i]) for i in now_S]),
        "step_seconds": np.median(steps) if steady else 0.0,
        "horizon": span.horizons[-1],
        **{f"forecast_{name}_SH": scale_S1 * y_SH + mean_S1 for name, y_SH in made.items()},
    }
    found = {
        "model": tuned, "rows": len(series.values_TC), "channels": len(series.names_C),
        "missing": 1 - series.observed_TC.mean(), "first": str(series.stamps_T[0]), "last": str(series.stamps_T[-1]),
    }  # fmt: skip
    some_C = np.unique([*np.linspace(0, span.channels - 1, CHANNELS).astype(int), *channel_S])
    try:
        residual_WHC, spread_WC = residuals(view, validation, tuned, some_C)
        with warnings.catch_warnings():  # of few windows: the page says how many there are
            warnings.simplefilter("ignore")
            apart = (validation.counts[-1] - 1) // validation.horizons[-1] + 1
            kept = intervals.fit(residual_WHC, spread_WC, apart)
    except UserError:  # not one value of validation is known
        pass
    else:
        spread_S = spread(x_SL[:, : span.lookback], observed_SL[:, : span.lookback])
        unit_S = kept.ratio_C[np.searchsorted(some_C, channel_S)] * np.nan_to_num(spread_S)
        sides = [kept.bounds(made[tuned].T, unit_S, level) for level in LEVELS]
        low_ZSH, high_ZSH = (np.stack([b.T for b in of]) for of in zip(*sides, strict=True))
        found |= {"low_ZSH": scale_S1 * low_ZSH + mean_S1, "high_ZSH": scale_S1 * high_ZSH + mean_S1}
        found |= {"levels": LEVELS, "windows": len(residual_WHC), "apart": apart, "interval_channels": len(some_C)}
        if span is not validation:
            found["coverage_ZH"] = covered(kept, *residuals(view, span, tuned, some_C))
    if attention.followed(model, cfg.tune.prompts):
        prompt = inputs["tuned"][span.horizons[-1]][0] if cfg.tune.mode == "prompt" else None
        found |= {"attention_IKMN": attend(problem, model, inputs["backbone"], prompt, span), "patch": model.patch}
    if processes.is_first():
        save(run / "samples.npz", samples)
        save(run / "exhibits.npz", found)


def pick(span: Span, count: int) -> np.ndarray:
    """Returns row_S: at most `count` windows, evenly spread over the span, of several channels."""
    channels = min(3, span.channels, count)
    windows = max(count // channels, 1)
    at_W = np.unique(np.linspace(0, span.counts[-1] - 1, windows + 2)[1:-1].astype(int))
    of_C = np.unique(np.linspace(0, span.channels - 1, channels).astype(int))
    return np.array([w * span.channels + c for c in of_C for w in at_W])


def viewer(problem: Problem, forecast: evaluate.Forecast, inputs: Any, shown: dict[str, str]) -> View:
    """Returns the View of some models: one program for all spans and any number of rows."""

    @jax.jit
    def one(fed: Windows, inputs: Any, span: Span, row_R: Array) -> Any:
        panel, row_R = fed.at(0), meshes.split(problem.mesh, row_R)
        made = forecast(panel, inputs, span, row_R)
        last = {name: made[key][-1] for name, key in shown.items()}
        return meshes.whole(problem.mesh, (*take(panel, span, row_R), last))

    def view(span: Span, row_R: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        row_JR = blocks(problem, row_R)
        feed = problem.panel.feed(span, lambda j: row_JR[j : j + 1], len(row_JR))
        parts = [jax.device_get(one(fed, inputs, span, row)) for fed, row in zip(feed, row_JR, strict=True)]
        return jax.tree.map(lambda *some: np.concatenate(some)[: len(row_R)], *parts)

    return view


def blocks(problem: Problem, row_R: np.ndarray) -> np.ndarray:
    """Returns row_JR, the rows of each dispatch; the last row again fills the last one."""
    size = -(-ROWS // problem.mesh.size) * problem.mesh.size
    count = -(-len(row_R) // size)
    return row_R[np.minimum(np.arange(count * size), len(row_R) - 1)].reshape(count, size).astype(np.int32)


def residuals(view: View, span: Span, name: str, some_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns residual_WHC of windows that are spread over a span, NaN where the truth is missing, and spread_WC of
    their histories; scaled space, some channels."""
    at_W = np.unique(np.linspace(0, span.counts[-1] - 1, WINDOWS).round().astype(int))
    x_RL, observed_RL, made = view(span, (at_W[:, None] * span.channels + some_C[None]).ravel())
    future, shape = slice(span.lookback, None), (len(at_W), len(some_C))
    residual_RH = np.where(observed_RL[:, future], x_RL[:, future] - made[name], np.nan)
    spread_R = spread(x_RL[:, : span.lookback], observed_RL[:, : span.lookback])
    return residual_RH.reshape(*shape, -1).swapaxes(1, 2), spread_R.reshape(shape)


def spread(x_RT: np.ndarray, seen_RT: np.ndarray) -> np.ndarray:
    """Returns spread_R, the standard deviation of what was seen of each row; NaN where nothing was."""
    scale_R = exact(x_RT.T.astype(np.float64), seen_RT.T, still=0.0).scale_C
    return np.where(seen_RT.any(1), scale_R, np.nan)


def covered(kept: intervals.Intervals, residual_WHC: np.ndarray, spread_WC: np.ndarray) -> np.ndarray:
    """Returns coverage_ZH: the share of known values between the bounds, by level and step; NaN without any."""
    unit_WC, out = kept.ratio_C * np.nan_to_num(spread_WC), []
    known_WHC = ~np.isnan(residual_WHC)
    for level in LEVELS:
        none_HC = np.zeros(residual_WHC.shape[1:])
        sides = [kept.bounds(none_HC, unit_C, level) for unit_C in unit_WC]
        low_WHC, high_WHC = (np.stack(side) for side in zip(*sides, strict=True))
        inside_H = ((residual_WHC >= low_WHC) & (residual_WHC <= high_WHC)).sum((0, 2))
        count_H = known_WHC.sum((0, 2))
        out.append(np.where(count_H > 0, inside_H / np.maximum(count_H, 1), np.nan))
    return np.stack(out)


def attend(problem: Problem, model: CrossMAE, backbone: Any, prompt: prompts.Prompt | None, span: Span) -> np.ndarray:
    """Returns attention_IKMN, the mean of rows that are drawn from the span once; prompt None is the mask token alone.
    Of several views it is that of the whole lookback."""
    row_R = np.random.default_rng(0).integers(span.counts[-1] * span.channels, size=ROWS)
    count = prompts.patches(span.horizons[-1], model.patch)

    @jax.jit
    def one(fed: Windows, backbone: Any, prompt: Any, span: Span, row_R: Array) -> Array:
        panel, row_R = fed.at(0), meshes.split(problem.mesh, row_R)
        zero_MD = jnp.zeros((count, model.width))
        prompt_RMD = zero_MD if prompt is None else prompts.tokens(prompt, count, row_R % span.channels)
        prompt_RMD = prompt_RMD if prompt_RMD.ndim == 3 else prompt_RMD[None]
        variables, history = {"params": backbone}, past(panel, span, row_R)
        encoded: Any = model.apply(variables, *history, method=model.observe)
        walked: Any = model.apply(variables, encoded, prompt_RMD, method=attention.walk)
        known_R = encoded.keep_RN.any(1).astype(jnp.float32)  # a row that nothing is known of looks nowhere
        sums = [jnp.einsum("R,RKMN->KMN", known_R, weight_RKMN) for weight_RKMN in walked[1]]
        return meshes.whole(problem.mesh, jnp.stack(sums) / jnp.maximum(known_R.sum(), 1))

    row_JR = blocks(problem, row_R)
    feed = problem.panel.feed(span, lambda j: row_JR[j : j + 1], len(row_JR))
    parts = [np.asarray(one(fed, backbone, prompt, span, row)) for fed, row in zip(feed, row_JR, strict=True)]
    return np.mean(parts, 0)


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Writes a .npz under a temporary name and renames it."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as f:
        np.savez(f, **arrays)
    os.replace(temporary, path)
