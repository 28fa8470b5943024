"""Every window of a split: sums on the device, one division on the host in float64."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ptt_jax import cache, memory, tally, tasks
from ptt_jax import mesh as meshes
from ptt_jax.stream import Host
from ptt_jax.windows import Panel, Span, Windows, shuffle, stretch, take

# f(panel, inputs, span, row_R) -> {model: a forecast in scaled space for each horizon of the span}, each y_RH or, for
# members that are measured together, y_..RH.
Forecast = Callable[[Windows, Any, Span, Array], dict[str, tuple[Array, ...]]]
Sums = dict[str, list[tuple[Array, ...]]]
Tallies = dict[str, list[Array]]
BLOCKS = 32  # batches in a dispatch
PARTS = 128  # of a batch, which are summed apart where its rows are summed by channel


class Errors(NamedTuple):
    """Errors of one horizon over every window: mse_H and mae_H by step, float64, nan where no value was observed.

    Members that are measured together have axes in front: mse_SGH. mse_C and mae_C are the same by channel, where that
    was asked for.
    """

    mse_H: np.ndarray
    mae_H: np.ndarray
    count_H: np.ndarray
    windows: int
    tally: np.ndarray | None = None  # of `tally.sums`, where asked for
    mse_C: np.ndarray | None = None
    mae_C: np.ndarray | None = None

    @property
    def mse(self) -> Any:
        """Mean over every observed value, as the field reports it: a number, or one for each member."""
        return self.mean(self.mse_H)

    @property
    def mae(self) -> Any:
        return self.mean(self.mae_H)

    def mean(self, error_H: np.ndarray) -> Any:
        known_H = self.count_H > 0
        # Without one observed value it is nan, and no warning.
        total = self.count_H.sum() or np.nan
        return (error_H[..., known_H] * self.count_H[known_H]).sum(-1) / total


def errors(
    se_H: np.ndarray, ae_H: np.ndarray, n_H: np.ndarray, *of_C: np.ndarray, windows: int, tally: np.ndarray | None
) -> Errors:
    """Returns the errors that sums make; of_C: squared, absolute and count by channel, or nothing."""
    by_channel = [sum_C / of_C[2] for sum_C in of_C[:2]]
    return Errors(se_H / n_H, ae_H / n_H, n_H, windows, tally, *by_channel)


def pool(a_SR: Array, row_R: Array, channels: int) -> Array:
    """Returns a_SC, the rows' sums by channel, in PARTS first: a long running sum of like values rounds each of them
    the same way."""
    part_R = jnp.arange(len(row_R)) % PARTS
    return jnp.zeros((*a_SR.shape[:-1], channels, PARTS)).at[..., row_R % channels, part_R].add(a_SR).sum(-1)


def add(total: Any, part: Any) -> Any:
    """Returns what was counted so far and in a dispatch more, float64 on the host; None is nothing."""
    if part is None:
        return total
    part = jax.tree.map(lambda p: np.asarray(p, np.float64), part)
    return part if total is None else jax.tree.map(np.add, total, part)


def evaluator(
    forecast: Forecast,
    mesh: Mesh,
    batch: int,
    few: int = 0,
    penalty: tasks.Penalty = jnp.abs,
    season: int = 0,
    by_channel: bool = False,
) -> "Measure":
    """Returns f(panel, inputs, span) -> {model: Errors for each horizon}, over every window of the span.

    One program serves every span of the same horizons. The last batch is padded with rows of weight 0, so nothing
    depends on `batch`. few: at most so many rows, drawn once and the same in every call, in place of all. penalty: what
    stands in the place of the absolute error, 0 of 0. season: of `tally.unit`, for histograms of the errors; 0 = none.
    by_channel: errors by channel, too.
    """
    batch = -(-batch // mesh.size) * mesh.size
    chosen, sums = summing(forecast, mesh, batch, few, penalty, season, by_channel)
    weighed = memory.Program(sums, mesh, "evaluation", "config.evaluate.batch or config.tune.cache_bytes")
    return Measure(weighed, batch, few, chosen)


@cache.kept
def summing(
    forecast: Forecast, mesh: Mesh, batch: int, few: int, penalty: tasks.Penalty, season: int, by_channel: bool
) -> tuple[Callable[[Any, Span], Any], Callable]:
    """Returns what `Measure` calls chosen, and its program under jit; arguments are those of `evaluator`."""

    def chosen(at_R: Any, span: Span) -> Any:
        return shuffle(jax.random.key(0), at_R, span.rows) if few else at_R

    @functools.partial(jax.jit, inline=True)  # traced once for its shape and for the loop
    def one(panel: Windows, inputs: Any, span: Span, first: Array) -> tuple[Sums, Tallies]:
        rows = jnp.minimum(few, span.rows) if few else span.rows
        at_R, real_R = meshes.split(mesh, stretch(first, batch, rows))
        row_R = chosen(at_R, span)
        x_RL, observed_RL = take(panel, span, row_R)
        out: Sums = {}
        tallies: Tallies = {}
        unit_R = tally.unit(x_RL[:, : span.lookback], observed_RL[:, : span.lookback], season) if season else None
        for name, forecasts in forecast(panel, inputs, span, row_R).items():
            out[name], tallies[name] = [], []
            for y_SRH, horizon, count in zip(forecasts, span.horizons, span.counts, strict=True):
                target = slice(span.lookback, span.lookback + horizon)
                inside_R1 = (real_R & (row_R // span.channels < count))[:, None]
                weight_RH = (observed_RL[:, target] & inside_R1).astype(jnp.float32)
                lead = tuple(range(y_SRH.ndim - 2))  # members, if any
                away_SRH = y_SRH - jnp.expand_dims(x_RL[:, target], lead)
                error_SRH = jnp.where(jnp.expand_dims(weight_RH > 0, lead), away_SRH, 0)
                square_SRH, size_SRH = jnp.square(error_SRH), penalty(error_SRH)
                parts: tuple[Array, ...] = (square_SRH.sum(-2), size_SRH.sum(-2), weight_RH.sum(0))
                if by_channel:
                    parts += tuple(pool(a.sum(-1), row_R, span.channels) for a in (square_SRH, size_SRH, weight_RH))
                out[name].append(parts)
                if unit_R is not None:
                    tallies[name].append(tally.count(error_SRH.reshape(-1, *weight_RH.shape), weight_RH, unit_R))
        return out, tallies

    @jax.jit
    def sums(panel: Windows, inputs: Any, span: Span, first: Array, count: Array) -> tuple[Sums, Tallies]:
        """Returns the sums of each of up to BLOCKS batches apart: long sums are the host's, in float64; and what was
        counted, which is exact and large, of all of them."""
        shapes, counted = jax.eval_shape(one, panel.at(0), inputs, span, first)

        def body(i: Array, kept: tuple[Sums, Tallies]) -> tuple[Sums, Tallies]:
            part, more = one(panel.at(i), inputs, span, first + i * batch)
            return jax.tree.map(lambda a, b: a.at[i].set(b), kept[0], part), jax.tree.map(jnp.add, kept[1], more)

        zeros = (
            jax.tree.map(lambda a: jnp.zeros((BLOCKS, *a.shape)), shapes),
            jax.tree.map(lambda a: jnp.zeros(a.shape), counted),
        )
        return meshes.whole(mesh, jax.lax.fori_loop(0, count, body, zeros))

    return chosen, sums


class Measure(NamedTuple):
    """What `evaluator` returns: program runs up to BLOCKS batches, whose rows are those of chosen(at_R, span)."""

    program: memory.Program
    batch: int
    few: int
    chosen: Callable[[Any, Span], Any]

    def dispatch(self, panel: Panel | Host, span: Span) -> int:
        """Returns the most batches in a dispatch."""
        return min(BLOCKS, panel.fits(span, self.batch) or BLOCKS)

    def foresee(self, panel: Panel | Host, inputs: Any, span: Span, beside: Any = None) -> int:
        """Returns the bytes that it will take, of inputs that may be shapes, as `memory.Program.foresee` does."""
        fed = panel.like(span, (self.dispatch(panel, span), self.batch))
        return self.program.foresee(fed, inputs, span, jnp.int32(0), jnp.int32(0), beside=beside)

    def __call__(self, panel: Panel | Host, inputs: Any, span: Span) -> dict[str, list[Errors]]:
        total = min(self.few or span.rows, span.rows)
        batch, most = self.batch, self.dispatch(panel, span)
        blocks = -(-total // batch)

        def rows(dispatch: int) -> np.ndarray:
            first = dispatch * most * batch
            at_JR = np.minimum(first + np.arange(most * batch), total - 1).reshape(most, batch)
            return np.asarray(self.chosen(at_JR, span))

        feed = panel.feed(span, rows, -(-blocks // most))
        apart, tallies, last = [], None, None
        for i, fed in enumerate(feed):
            part, counted = self.program(
                fed, inputs, span, jnp.int32(i * most * batch), jnp.int32(min(most, blocks - i * most))
            )
            apart.append(part)
            tallies, last = add(tallies, last), counted  # of many dispatches, tallies would fill the device
        tallies = jax.tree.map(tally.sums, add(tallies, last))
        totals = jax.tree.map(lambda *part: np.sum([np.asarray(p, np.float64).sum(0) for p in part], 0), *apart)
        with np.errstate(invalid="ignore"):  # 0 / 0 is nan: a step at which nothing was observed
            return {
                name: [
                    errors(*sums, windows=count, tally=more)
                    for sums, count, more in zip(of, span.counts, tallies[name] or [None] * len(of), strict=True)
                ]
                for name, of in totals.items()
            }
