"""What looks at validation while prompts learn, all members from one cache of encodings."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from ptt_jax import cache, encodings, tasks
from ptt_jax.encodings import Cached
from ptt_jax.evaluate import Forecast, Measure, Params, evaluator
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.windows import Span, Windows


class Watcher:
    """What looks at validation while prompts learn: read(backbone, budget) -> f(params) -> {horizon: MSE_SG over every
    window of the span}, from one forecast of the longest horizon.

    params['prompt'] has the axes (S, G) of `step.fan` in front: members share the encodings, which have a cache of at
    most `budget` bytes. few: of `evaluator`. f(params, levels): the pinball loss in place of the MSE, of members that
    forecast the quantiles `levels`, one for each G.
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

        def look(params: Params, levels: tuple[float, ...] = ()) -> dict[str, np.ndarray]:
            errors = self.measure(levels)(self.problem.panel, (params, data), self.span)["prompt"]
            return {str(h): e.mae if levels else e.mse for h, e in zip(self.span.horizons, errors, strict=True)}

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
