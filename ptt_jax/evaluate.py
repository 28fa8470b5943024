"""Every window of a split: sums on the device, one division on the host in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ptt_jax import mesh as meshes
from ptt_jax import tasks
from ptt_jax.model import CrossMAE
from ptt_jax.tasks import Cached, Problem
from ptt_jax.windows import Panel, Span, shuffle, take

Params = Any
# f(inputs, row_R) -> one forecast y_RH in scaled space for each horizon of the span.
Forecast = Callable[[Any, Array], tuple[Array, ...]]


class Errors(NamedTuple):
    """Errors of one horizon over every window: mse_H and mae_H by step, float64, nan where no value was observed."""

    mse_H: np.ndarray
    mae_H: np.ndarray
    count_H: np.ndarray
    windows: int

    @property
    def mse(self) -> float:
        """Mean over every observed value, as the field reports it."""
        return float(np.nansum(self.mse_H * self.count_H) / self.count_H.sum())

    @property
    def mae(self) -> float:
        return float(np.nansum(self.mae_H * self.count_H) / self.count_H.sum())


def evaluator(forecast: Forecast, span: Span, mesh: Mesh, batch: int) -> Callable[[Panel, Any], list[Errors]]:
    """Returns f(panel, inputs) -> Errors for each horizon, over every window of the span.

    The last batch is padded with rows of weight 0, so nothing depends on `batch`.
    """
    batch = -(-min(batch, span.rows) // mesh.size) * mesh.size

    @jax.jit
    def sums(panel: Panel, inputs: Any, first: Array) -> list[tuple[Array, Array, Array]]:
        row_R = meshes.split(mesh, first + jnp.arange(batch))
        real_R, row_R = row_R < span.rows, jnp.minimum(row_R, span.rows - 1)
        x_RL, observed_RL = take(panel, span, row_R)
        out = []
        for y_RH, horizon, count in zip(forecast(inputs, row_R), span.horizons, span.counts, strict=True):
            target = slice(span.lookback, span.lookback + horizon)
            inside_R1 = (real_R & (row_R // span.channels < count))[:, None]
            weight_RH = (observed_RL[:, target] & inside_R1).astype(jnp.float32)
            error_RH = (y_RH - x_RL[:, target]) * weight_RH
            out.append((jnp.square(error_RH).sum(0), jnp.abs(error_RH).sum(0), weight_RH.sum(0)))
        return meshes.whole(mesh, out)

    def run(panel: Panel, inputs: Any) -> list[Errors]:
        parts = [sums(panel, inputs, jnp.int32(first)) for first in range(0, span.rows, batch)]
        totals = [
            [np.sum([np.asarray(p[h][i], np.float64) for p in parts], 0) for i in range(3)]
            for h in range(len(span.horizons))
        ]
        with np.errstate(invalid="ignore"):  # 0 / 0 is nan: a step at which nothing was observed
            return [Errors(se / n, ae / n, n, count) for (se, ae, n), count in zip(totals, span.counts, strict=True)]

    return run


def sampler(
    model: CrossMAE, problem: Problem, span: Span, most_rows: int, hiding: dict[str, Any], keys: tuple[Array, Array]
) -> Callable[[Params], dict[str, float]]:
    """Returns f(params) -> losses of pre-training on rows drawn from the span once, with masks fixed for the whole run.

    'reconstruction' hides as pre-training does; 'forecast' is the zero-shot forecast's squared error in scaled space.
    """
    rows = min(most_rows, span.rows)
    block = -(-512 // problem.mesh.size) * problem.mesh.size
    rows_key, mask_key = keys  # the same for every seed: seeds are compared on them
    reconstruct = tasks.reconstruction(model, span, **hiding, train=False)
    foretell = tasks.forecasting(model, span, penalty="mse")

    @jax.jit
    def losses(params: Params, data: Cached, first: Array) -> Any:
        at_R = meshes.split(problem.mesh, first + jnp.arange(block))
        row_R, key = shuffle(rows_key, at_R, span.rows), jax.random.fold_in(mask_key, first)
        pairs = reconstruct(params, data, row_R, key), foretell(params, data, row_R, key)
        return meshes.whole(problem.mesh, jax.tree.map(lambda a_R: (a_R * (at_R < rows)).sum(), pairs))

    def look(params: Params) -> dict[str, float]:
        parts = [losses(params, Cached(problem.panel), jnp.int32(first)) for first in range(0, rows, block)]
        (error, weight), (forecast_error, forecast_weight) = np.sum(np.asarray(jax.device_get(parts), np.float64), 0)
        return {"reconstruction": error / weight, "forecast": forecast_error / forecast_weight}

    return look


def watcher(
    model: CrossMAE, problem: Problem, span: Span, batch: int, backbone: Params, budget: int
) -> Callable[[Params], dict[str, float]]:
    """Returns f(params) -> {horizon: MSE over every window of the span}, from one forecast of the longest horizon."""
    data = tasks.encode_all(model, backbone, problem, span, batch, budget)

    def forecast(inputs: tuple[Params, Cached], row_R: Array) -> tuple[Array, ...]:
        params, data = inputs
        encoded = tasks.encode(model, params["backbone"], data, span, row_R)
        y_RH = tasks.forecast(model, params, encoded, span.horizons[-1])
        return tuple(y_RH[:, :h] for h in span.horizons)

    measure = evaluator(forecast, span, problem.mesh, batch)

    def look(params: Params) -> dict[str, float]:
        errors = measure(problem.panel, (params, data))
        return {str(h): e.mse for h, e in zip(span.horizons, errors, strict=True)}

    return look
