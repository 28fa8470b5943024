"""Every window of a split: sums on the device, one division on the host in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ptt_jax import mesh as meshes
from ptt_jax.windows import Panel, Span, take

# f(inputs, row_R) -> one forecast y_RH in scaled space for each horizon of the span.
Forecast = Callable[[Any, Array], tuple[Array, ...]]


class Errors(NamedTuple):
    """Errors of one horizon over every window: mse_H and mae_H by step, float64, and how many windows there were."""

    mse_H: np.ndarray
    mae_H: np.ndarray
    count_H: np.ndarray
    windows: int

    @property
    def mse(self) -> float:
        """Mean over every observed value, as the field reports it."""
        return float(np.average(self.mse_H, weights=self.count_H))

    @property
    def mae(self) -> float:
        return float(np.average(self.mae_H, weights=self.count_H))


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
        return out

    def run(panel: Panel, inputs: Any) -> list[Errors]:
        parts = [sums(panel, inputs, jnp.int32(first)) for first in range(0, span.rows, batch)]
        totals = [
            [np.sum([np.asarray(p[h][i], np.float64) for p in parts], 0) for i in range(3)]
            for h in range(len(span.horizons))
        ]
        return [
            Errors(se / np.maximum(n, 1), ae / np.maximum(n, 1), n, count)
            for (se, ae, n), count in zip(totals, span.counts, strict=True)
        ]

    return run
