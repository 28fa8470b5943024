"""What a run keeps to be looked at: a few forecasts with intervals, how much these cover, attention over history.

    samples.npz    windows of several channels in original units: history, truth, and every model's forecast
    exhibits.npz   low_ZSH and high_ZSH, intervals of the tuned model's forecasts in samples.npz, and what share of test
                   falls between, coverage_ZH, Z levels in percent; attention_IKMN, what future patch M pays to history
                   patch N in block I and head K of the decoder; what the series holds

All of the longest horizon. Intervals are those that results.csv measures (`tally.py`): made from validation's errors,
which have chosen the step of the weights, too, and counted on test, both of every window.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ptt_jax import attention, cache, evaluate, members, processes, prompts, tally
from ptt_jax import mesh as meshes
from ptt_jax.files import write_atomic
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.windows import Span, Windows, past, take

LEVELS = (80, 95)
ROWS = 256  # of the mean that attention is, and of a dispatch

# f(span, row_R) -> x_RL, observed_RL, {model: y_RH of the longest horizon}: windows and forecasts in scaled space
View = Callable[[Span, np.ndarray], tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]


def write(
    run: Path, cfg: ConfigDict, problem: Problem, model: CrossMAE, forecast: evaluate.Forecast,
    inputs: dict[str, Any], spans: dict[str, Span], shown: dict[str, str], counted: list[np.ndarray], season: int,
) -> None:  # fmt: skip
    """Writes samples.npz and exhibits.npz, of the last span. shown: {model: its key in what `forecast` returns}; the
    tuned one is called by its mode. counted: its tally_HBK of each span, in units of a `season`; empty = no intervals.
    """
    view, tuned = viewer(problem, forecast, inputs, shown), cfg.tune.mode
    span = list(spans.values())[-1]
    row_S = pick(span, cfg.evaluate.samples)
    x_SL, observed_SL, made = view(span, row_S)
    series, channel_S, split = problem.series, row_S % span.channels, slice(span.lookback, None)
    scale_S1, mean_S1 = problem.scaler.scale_C[channel_S, None], problem.scaler.mean_C[channel_S, None]
    now_S = span.first + row_S // span.channels + span.lookback
    steps = np.diff(series.stamps_T.to_numpy()).astype("timedelta64[s]").astype(float)
    steady = np.mean(steps == np.median(steps)) > 0.99  # months are not; a benchmark file with one gap is
    history, history_observed = x_SL[:, : span.lookback], observed_SL[:, : span.lookback]
    samples = {
        "history_ST": scale_S1 * history + mean_S1,
        "history_observed_ST": history_observed,
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
    if counted and counted[0][..., 0].any():  # else not one value of validation is known
        validation = spans["validation"]
        unit_S1 = np.asarray(tally.unit(jnp.asarray(history), jnp.asarray(history_observed), season))[:, None]
        apart = validation.apart(-1)
        bounds_ZH = [tally.bounds(counted[0], level / 100, apart * span.channels) for level in LEVELS]
        for side, key in enumerate(("low_ZSH", "high_ZSH")):
            found[key] = np.stack([scale_S1 * (made[tuned] + unit_S1 * of[side]) + mean_S1 for of in bounds_ZH])
        found["levels"] = LEVELS
        found |= {"windows": validation.counts[-1], "apart": apart}
        if span is not validation:
            found["coverage_ZH"] = np.stack([tally.shares((counted[-1],) * 2, bounds) for bounds in bounds_ZH])
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
    one = viewing(forecast, problem.mesh, tuple(shown.items()))

    def view(span: Span, row_R: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        row_JR = blocks(problem, row_R)
        feed = problem.panel.feed(span, lambda j: row_JR[j : j + 1], len(row_JR))
        parts = [jax.device_get(one(fed, inputs, span, row)) for fed, row in zip(feed, row_JR, strict=True)]
        return jax.tree.map(lambda *some: np.concatenate(some)[: len(row_R)], *parts)

    return view


@cache.kept
def viewing(forecast: evaluate.Forecast, mesh: Mesh, shown: tuple[tuple[str, str], ...]) -> Callable:
    """Returns the windows of some rows, and the longest forecast of each model that is shown, under jit."""

    @jax.jit
    def one(fed: Windows, inputs: Any, span: Span, row_R: Array) -> Any:
        panel, row_R = fed.at(0), meshes.split(mesh, row_R)
        made = forecast(panel, inputs, span, row_R)
        last = {name: made[key][-1] for name, key in shown}
        return meshes.whole(mesh, (*take(panel, span, row_R), last))

    return one


def blocks(problem: Problem, row_R: np.ndarray) -> np.ndarray:
    """Returns row_JR, the rows of each dispatch; the last row again fills the last one."""
    size = -(-ROWS // problem.mesh.size) * problem.mesh.size
    count = -(-len(row_R) // size)
    return row_R[np.minimum(np.arange(count * size), len(row_R) - 1)].reshape(count, size).astype(np.int32)


def attend(problem: Problem, model: CrossMAE, backbone: Any, prompt: prompts.Prompt | None, span: Span) -> np.ndarray:
    """Returns attention_IKMN, the mean of rows that are drawn from the span once; prompt None is the mask token alone.
    Of several views it is that of the whole lookback, of several networks that of the first."""
    row_R = np.random.default_rng(0).integers(span.counts[-1] * span.channels, size=ROWS)
    one, row_JR = attending(model, problem.mesh), blocks(problem, row_R)
    feed = problem.panel.feed(span, lambda j: row_JR[j : j + 1], len(row_JR))
    parts = [np.asarray(one(fed, backbone, prompt, span, row)) for fed, row in zip(feed, row_JR, strict=True)]
    return np.mean(parts, 0)


@cache.kept
def attending(model: CrossMAE, mesh: Mesh) -> Callable:
    """Returns the mean of some rows' attention, under jit."""

    @jax.jit
    def one(fed: Windows, backbone: Any, prompt: Any, span: Span, row_R: Array) -> Array:
        panel, row_R = fed.at(0), meshes.split(mesh, row_R)
        count = prompts.patches(span.horizons[-1], model.patch)
        zero_MD = jnp.zeros((count, model.width))
        prompt_RMD = zero_MD if prompt is None else prompts.tokens(prompt, count, row_R % span.channels)
        prompt_RMD = prompt_RMD if prompt_RMD.ndim == 3 else prompt_RMD[None]
        network, own = members.first(model, backbone)
        variables, history = {"params": own}, past(panel, span, row_R)
        encoded: Any = network.apply(variables, *history, method=network.observe)
        walked: Any = network.apply(variables, encoded, prompt_RMD, method=attention.walk)
        known_R = encoded.keep_RN.any(1).astype(jnp.float32)  # a row that nothing is known of looks nowhere
        sums = [jnp.einsum("R,RKMN->KMN", known_R, weight_RKMN) for weight_RKMN in walked[1]]
        return meshes.whole(mesh, jnp.stack(sums) / jnp.maximum(known_R.sum(), 1))

    return one


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Writes a .npz under a temporary name and renames it."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomic(path, content.getvalue())
