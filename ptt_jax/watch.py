"""What looks at validation while something learns: a backbone; prompts, all members from one cache of encodings; what
prompts are compared with."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from ptt_jax import baselines, cache, encodings, memory, tasks
from ptt_jax import mesh as meshes
from ptt_jax.encodings import Cached
from ptt_jax.evaluate import Forecast, Measure, evaluator
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.windows import Span, Windows, past, shuffle, stretch

Params = Any


class Watcher:
    """What looks at validation while prompts learn: read(backbone, budget) -> f(params) -> {horizon: MSE_SG over every
    window of the span}, from one forecast of the longest horizon.

    params['prompt'] has the axes (S, G) of `step.fan` in front: members share the encodings, which have a cache of at
    most `budget` bytes. few: of `evaluator`. f(params, levels): the pinball loss in place of the MSE, of members that
    forecast the quantiles `levels`, one for each G; f(params, absolute=True): the MAE.
    """

    def __init__(self, model: CrossMAE, problem: Problem, span: Span, batch: int, dtype: DTypeLike, few: int = 0):
        self.problem, self.span = problem, span
        batch = min(batch, few or span.rows, span.rows)
        self.encoder = encodings.Encoder(model, problem, span, batch, dtype)

        @functools.cache
        def measure(levels: tuple[float, ...]) -> Measure:
            return evaluator(foretelling(model), problem.mesh, batch, few, penalty(levels))

        self.measure = measure

    def read(self, backbone: Params, budget: int) -> Callable[..., dict[str, np.ndarray]]:
        """Returns f, with its encodings made."""
        data = self.encoder(backbone, budget).on(None)

        def look(params: Params, levels: tuple[float, ...] = (), absolute: bool = False) -> dict[str, np.ndarray]:
            errors = self.measure(levels)(self.problem.panel, (params, data), self.span)["prompt"]
            by = "mae" if levels or absolute else "mse"
            return {str(h): getattr(e, by) for h, e in zip(self.span.horizons, errors, strict=True)}

        return look

    def foresee(self, params: Params, budget: int, levels: tuple[float, ...] = (), beside: Any = None) -> Cached:
        """Returns the encodings that will be there, as shapes. Raises TooLarge when they or a look will not fit; of
        params that are shapes."""
        data = self.encoder.foresee(params["backbone"], budget).on(None)
        self.measure(levels).foresee(self.problem.panel, (params, data), self.span, beside)
        return data


@cache.kept
def foretelling(model: CrossMAE) -> Forecast:
    """Returns how all members forecast the rows of a span, of inputs (params, data)."""

    def forecast(
        panel: Windows, inputs: tuple[Params, Cached], span: Span, row_R: Array
    ) -> dict[str, tuple[Array, ...]]:
        params, data = inputs
        encoded = encodings.encode(model, params["backbone"], data.on(panel), span, row_R)

        def member(prompt: Params) -> Array:
            prompted = {**params, "prompt": prompt}
            return tasks.forecast(model, prompted, encoded, span.horizons[-1], row_R % span.channels)

        y_SGRH = jax.vmap(jax.vmap(member))(params["prompt"])
        return {"prompt": tuple(y_SGRH[..., :h] for h in span.horizons)}

    return forecast


@cache.kept
def penalty(levels: tuple[float, ...]) -> tasks.Penalty:
    """Returns what is measured in the place of the absolute error."""
    return tasks.pinball(np.array(levels, np.float32)[None, :, None, None]) if levels else jnp.abs


def measure(model: CrossMAE, problem: Problem, span: Span, batch: int, few: int = 0) -> Measure:
    """Returns what measures every window of the span by parameters of `baselines.forecast`. few: of `evaluator`."""
    rows = min(batch, few or span.rows, span.rows)
    return evaluator(refitted(model), problem.mesh, rows, few)


@cache.kept
def refitted(model: CrossMAE) -> Forecast:
    """Returns how such parameters forecast the rows of a span."""

    def foretell(panel: Windows, params: Params, span: Span, row_R: Array) -> dict[str, tuple[Array, ...]]:
        longest, channel_R = span.horizons[-1], row_R % span.channels
        y_RH = baselines.forecast(model, params, *past(panel, span, row_R), channel_R, longest, longest)
        return {"tuned": tuple(y_RH[:, :h] for h in span.horizons)}

    return foretell


def looks(of: Measure, problem: Problem, span: Span) -> Callable[[Params], dict[str, np.ndarray]]:
    """Returns f(params) -> {horizon: MSE_11} over every window of the span."""

    def look(params: Params) -> dict[str, np.ndarray]:
        errors = of(problem.panel, params, span)["tuned"]
        return {str(h): np.array([[e.mse]]) for h, e in zip(span.horizons, errors, strict=True)}

    return look


def sampler(
    model: CrossMAE,
    problem: Problem,
    span: Span,
    most_rows: int,
    hiding: dict[str, Any],
    keys: tuple[Array, Array],
    like: Params = None,
) -> Callable[[Params], dict[str, float]]:
    """Returns f(params) -> losses of pre-training on rows drawn from the span once, with masks fixed for the whole run.

    'reconstruction' hides as pre-training does; 'forecast' is the zero-shot forecast's squared error in scaled space.
    like: the params as shapes. Raises TooLarge when a look at such ones will not fit.
    """
    rows = min(most_rows, span.rows)
    block = -(-512 // problem.mesh.size) * problem.mesh.size
    words = tuple(tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys)
    order, losses = looking(model, problem.mesh, span, block, rows, tuple(hiding.items()), words)
    weighed = memory.Program(losses, problem.mesh, "validation", "config.compute_dtype=bfloat16")
    if like is not None:
        weighed.foresee(like, problem.panel.like(span, (1, block)), jnp.int32(0))

    def look(params: Params) -> dict[str, float]:
        feed = problem.panel.feed(span, lambda i: order(stretch(i * block, block, rows)[0])[None], -(-rows // block))
        parts = [weighed(params, fed, jnp.int32(i * block)) for i, fed in enumerate(feed)]
        (error, weight), (forecast_error, forecast_weight) = np.sum(np.asarray(jax.device_get(parts), np.float64), 0)
        return {"reconstruction": error / weight, "forecast": forecast_error / forecast_weight}

    return look


@cache.kept
def looking(
    model: CrossMAE, mesh: Mesh, span: Span, block: int, rows: int, hiding: tuple[tuple[str, Any], ...],
    words: tuple[tuple[int, ...], ...],
) -> tuple[Callable, Callable]:  # fmt: skip
    """Returns the order of the rows that `sampler` draws, and the losses' sums of a block of them, under jit; words:
    its keys as numbers, the same for every seed: seeds are compared on them."""
    rows_key, mask_key = (jax.random.wrap_key_data(jnp.array(of, jnp.uint32)) for of in words)
    reconstruct = tasks.reconstruction(model, span, **dict(hiding), train=False)
    foretell = tasks.forecasting(model, span, penalty="mse")

    @jax.jit
    def order(at_R: Array) -> Array:
        return shuffle(rows_key, at_R, span.rows)

    @jax.jit
    def losses(params: Params, panel: Windows, first: Array) -> Any:
        (at_R, real_R), data = meshes.split(mesh, stretch(first, block, rows)), Cached(panel.at(0))
        row_R, key = order(at_R), jax.random.fold_in(mask_key, first)
        pairs = reconstruct(params, data, row_R, key), foretell(params, data, row_R, key)
        return meshes.whole(mesh, jax.tree.map(lambda a_R: (a_R * real_R).sum(), pairs))

    return order, losses
