"""How near answers bring what is hidden of a split's windows: gaps laid by a law, errors, and how far answers lean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ptt_jax import bridge, cache, gaps, impute, windows
from ptt_jax import mesh as meshes
from ptt_jax.errors import UserError
from ptt_jax.gaps import Law
from ptt_jax.loop import keys
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.stream import Host
from ptt_jax.windows import Panel, Span, Windows, take

Params = Any


def span(problem: Problem, split: str, length: int) -> Span:
    """Returns the windows that lie in a split whole: unlike a forecast's, they have no history before it. Raises
    UserError when there is none."""
    begin, end = problem.series.splits[split]
    if end - begin < length:
        raise UserError(
            f"the {split} split has rows {begin} to {end}: too few for one window of {length} steps; accepted: a "
            f"longer split, or a smaller lookback"
        )
    return windows.span((begin, end), 0, (length,), len(problem.series.names_C), split)


def stride(patch: int) -> int:
    """Returns the steps between windows that are measured: one more than a patch, so that they begin at every hour."""
    return patch + 1


class Errors(NamedTuple):
    """Errors over the hidden values of every window, and how many these are; members measured together have axes."""

    mse: Any
    mae: Any
    hidden: int


# f(inputs, x_RL, seen_RL, channel_R) -> {model: windows with their gaps closed}, y_RL or, of members, y_..RL
Closing = Callable[[Any, Array, Array, Array], dict[str, Array]]


@cache.kept
def closing(model: CrossMAE, of: impute.Way) -> Closing:
    """Returns how members that learn side by side close gaps, of inputs {'backbone', 'prompt'}."""

    def close(params: Params, x_RL: Array, seen_RL: Array, channel_R: Array) -> dict[str, Array]:
        encoded = impute.observe(model, params["backbone"], of, jnp.where(seen_RL, x_RL, 0), seen_RL)

        def member(prompt: Params) -> Array:
            y_RL = impute.reconstruct(model, {**params, "prompt": prompt}, encoded, channel_R)
            return gaps.draw(y_RL, x_RL, seen_RL, of.reach)

        return {"prompt": jax.vmap(jax.vmap(member))(params["prompt"])}

    return close


def every(span: Span, stride: int) -> np.ndarray:
    """Returns the rows of every `stride`-th window and of the last one: with a stride of at most a window, every step
    of the split is in one."""
    last = span.counts[0] - 1
    start_W = np.minimum(np.arange(0, last + stride, stride), last)
    return (start_W[:, None] * span.channels + np.arange(span.channels)).ravel()


# f(panel, inputs, span, hiding) -> sums over rows of windows
Total = Callable[[Panel | Host, Any, Span, Law], Any]


def totalling(sums: Callable, mesh: Mesh, batch: int, stride: int) -> Total:
    """Returns what adds up, in float64, the sums of batches of rows over `every` window: f(windows, inputs, span,
    hiding, row_R, real_R) -> sums."""
    batch = -(-batch // mesh.size) * mesh.size

    def run(panel: Panel | Host, inputs: Any, span: Span, hiding: Law) -> Any:
        row_A = every(span, stride)
        blocks = -(-len(row_A) // batch)
        at_JR = np.arange(blocks * batch).reshape(blocks, batch)
        row_JR, real_JR = row_A[np.minimum(at_JR, len(row_A) - 1)], at_JR < len(row_A)
        feed = panel.feed(span, lambda i: row_JR[i][None], blocks)
        parts = [sums(fed, inputs, span, hiding, row_JR[i], real_JR[i]) for i, fed in enumerate(feed)]
        return jax.tree.map(lambda *part: np.sum(np.asarray(part, np.float64), 0), *jax.device_get(parts))

    return run


def evaluator(
    close: Closing, mesh: Mesh, batch: int, stride: int
) -> Callable[[Panel | Host, Any, Span, Law], dict[str, Errors]]:
    """Returns f(panel, inputs, span, hiding) -> {model: Errors} over `every` window. What is hidden follows from the
    law and a window's place alone: all models, seeds and batch sizes are measured on the same values."""
    total = totalling(summing(close, mesh), mesh, batch, stride)

    def run(panel: Panel | Host, inputs: Any, span: Span, hiding: Law) -> dict[str, Errors]:
        of, count = total(panel, inputs, span, hiding)
        some = count or np.nan  # nothing hidden: nan, and no warning
        return {name: Errors(se / some, ae / some, int(count)) for name, (se, ae) in of.items()}

    return run


@cache.kept
def summing(close: Closing, mesh: Mesh) -> Callable:
    """Returns the sums of errors of a batch of rows, and how many values they are of, under jit."""

    @jax.jit
    def sums(panel: Windows, inputs: Any, span: Span, hiding: Law, row_R: Array, real_R: Array) -> Any:
        x_RL, seen_RL, hidden_RL, channel_R = hide(mesh, panel, span, hiding, row_R, real_R)
        closed = close(inputs, x_RL, seen_RL, channel_R)

        def errors(y_SRL: Array) -> tuple[Array, Array]:
            lead = tuple(range(y_SRL.ndim - 2))  # members, if any
            e_SRL = jnp.where(jnp.expand_dims(hidden_RL, lead), y_SRL - jnp.expand_dims(x_RL, lead), 0)
            return jnp.square(e_SRL).sum((-2, -1)), jnp.abs(e_SRL).sum((-2, -1))

        return meshes.whole(mesh, ({name: errors(y) for name, y in closed.items()}, hidden_RL.sum()))

    return sums


@cache.kept
def leaning(model: CrossMAE, of: impute.Way, mesh: Mesh) -> Callable:
    """Returns `bridge.moments` of a batch of rows, those of each channel together, under jit."""

    @jax.jit
    def sums(panel: Windows, params: Params, span: Span, hiding: Law, row_R: Array, real_R: Array) -> Array:
        x_RL, seen_RL, hidden_RL, channel_R = hide(mesh, panel, span, hiding, row_R, real_R)
        y_RL = impute.impute(model, params, of, x_RL, seen_RL, channel_R)
        of_rows_R3A = bridge.moments(x_RL, y_RL, seen_RL, hidden_RL)
        return meshes.whole(mesh, jax.ops.segment_sum(of_rows_R3A, channel_R, span.channels))

    return sums


def hide(
    mesh: Mesh, panel: Windows, span: Span, hiding: Law, row_R: Array, real_R: Array
) -> tuple[Array, Array, Array, Array]:
    """Returns x_RL of rows, what is seen of it, what is hidden, and the rows' channels."""
    row_R, real_R = meshes.split(mesh, (row_R, real_R))
    x_RL, observed_RL = take(panel.at(0), span, row_R)
    key = jax.random.fold_in(keys(0, "validation")[1], span.first)
    hidden_RL = gaps.hide(hiding, key, row_R, observed_RL) & real_R[:, None]
    return x_RL, observed_RL & ~hidden_RL, hidden_RL, row_R % span.channels
