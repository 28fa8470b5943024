"""The linear map of a backbone: what stands beside its network.

Prompts steer a network that was trained to fill what is hidden. Where a future is mostly a linear function of the
past, ridge regression says as much, and errs elsewhere (experiments/README.md). With `model.linear` a backbone holds
both. The map belongs to what is frozen; how much of a forecast it has belongs to the task: prompts learn beside each
of `tune.linear_shares`, by default none of it among them, and validation takes one for each horizon; or they learn
alone and take a share in the end (`tune.linear_when`). Other modes (`tune.mode`) and other tasks leave it out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ptt_jax import baselines, prompts
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.windows import Span

Params = Any
# Of a map that is mixed in at the end: a forecast that is all the map's is no better than the map, and a mix of two
# that err differently mostly is. As much as the largest of tune.linear_shares.
MOST_SHARE = 0.75


def fit(
    model: CrossMAE, problem: Problem, lookback: int, also: Sequence[Problem] = (), towards: str = "mean"
) -> np.ndarray:
    """Returns map_TH (`baselines.fit_linear`) from the lookback to all patches that a model with `linear` knows.

    also: further series that teach it, as much as they have rows (of each at most `baselines.MOST_ROWS`); towards: what
    a ridge draws it to. Raises UserError when a split has no window of that length.
    """
    train, validation = (span(model, problem, lookback, split) for split in ("train", "validation"))
    others = [(other, span(model, other, lookback, "train")) for other in also]
    return baselines.fit_linear(problem, train, validation, others, towards)


def span(model: CrossMAE, problem: Problem, lookback: int, split: str) -> Span:
    """Returns a split's windows of the lookback and all that the map knows. Raises UserError when there is none."""
    return problem.span(split, lookback, ((model.patches - model.linear) * model.patch,))


def beside(model: CrossMAE, network: Params, map_TH: np.ndarray | None) -> Params:
    """Returns a backbone of its network and its map, which is zeros where there is none yet, on the host; of a model
    without one, the network."""
    if not model.linear:
        return jax.device_get(network)
    steps = model.linear * model.patch, (model.patches - model.linear) * model.patch
    return {**jax.device_get(network), "linear_map": jnp.zeros(steps) if map_TH is None else map_TH}


def best_share(first: np.ndarray, half: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the share in [0, 1] of the second of two forecasts at which the squared error of their mix is least, from
    its values at the shares 0, 1/2 and 1: it is a parabola (Bates and Granger 1969). 0 where one of them is not finite.

    Of an absolute error, which is convex in the share, too, it is where the parabola through the three is least.
    """
    slope, bend = 4 * half - 3 * first - second, 2 * (first + second - 2 * half)
    known = np.isfinite(slope) & np.isfinite(bend)
    bent = known & (bend > 0)
    inner = np.clip(-np.where(known, slope, 0) / np.where(bent, 2 * bend, 1), 0, 1)
    return np.where(bent, inner, known & (second < first)).astype(float)


def with_best_shares(
    look: Callable[[prompts.Prompt], dict[str, np.ndarray]], best: Mapping[str, prompts.Prompt], longest: int,
    known: Mapping[str, np.ndarray],
) -> dict[str, prompts.Prompt]:  # fmt: skip
    """Returns each horizon's prompts with the share of the map that is best on validation, every member's own, and at
    most `MOST_SHARE`.

    look: f(prompts of `longest` tokens) -> {horizon: error_SG}; best: {horizon: prompts} without a share; known: of
    these the errors, as far as they are known.
    """

    def ask(many: prompts.Prompt, share: float) -> dict[str, np.ndarray]:
        def whole(tokens: np.ndarray) -> np.ndarray:
            return np.pad(tokens, [(0, 0)] * (tokens.ndim - 2) + [(0, longest - tokens.shape[-2]), (0, 0)])

        return look(prompts.with_shares(jax.tree.map(whole, many), np.full((1, 1), share)))

    alone, out = ask(next(iter(best.values())), 1.0), {}  # the map, whatever the prompts
    for h, many in best.items():
        none = known[h] if h in known else ask(many, 0.0)[h]
        share_SG = best_share(none, ask(many, 0.5)[h], alone[h])
        out[h] = prompts.with_shares(many, np.minimum(share_SG, MOST_SHARE))
    return out
