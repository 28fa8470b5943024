"""The two jobs of a backbone: reconstruct hidden patches (pre-training), reconstruct a hidden future (tuning).

A loss takes (params, data, row_R, key) and returns for each row a sum and a count, so that batches of unlike weight
add up and padding can be left out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from ptt_jax import mesh as meshes
from ptt_jax import prompts
from ptt_jax.data import Scaler, Series, fit_scaler
from ptt_jax.model import CrossMAE, Encoded
from ptt_jax.windows import Panel, Span, span, take

Loss = Callable[[Any, Any, Array, Array], tuple[Array, Array]]


@flax.struct.dataclass
class Cached:
    """A series, and the frozen encoder's output for every row of one span (or None: encode when needed)."""

    panel: Panel
    encoded: Encoded | None = None

    @property
    def encoded_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.encoded))


def hide(key: Array, rows: int, patches: int, hidden: int, tail: int, tail_share: float) -> tuple[Array, Array]:
    """Returns visible_RV and hidden_RM, sorted positions, V + M = patches, M = hidden for every row.

    A row hides random patches; in a share of the rows the last 1 to `tail` patches (uniform; at most M) come first, as
    in forecasting, and random ones fill up. Shapes never change, so that rows of both kinds share a batch.
    """
    noise_key, kind_key, length_key = jax.random.split(key, 3)
    score_RN = jax.random.uniform(noise_key, (rows, patches))
    length_R1 = jax.random.randint(length_key, (rows, 1), 1, min(tail, hidden) + 1 if tail else 2)
    is_tail_R1 = jax.random.bernoulli(kind_key, tail_share if tail else 0.0, (rows, 1))
    score_RN = score_RN + (is_tail_R1 & (jnp.arange(patches)[None] >= patches - length_R1))
    order_RN = jnp.argsort(-score_RN, axis=-1)
    return jnp.sort(order_RN[:, hidden:], axis=-1), jnp.sort(order_RN[:, :hidden], axis=-1)


def hidden_patches(patches: int, ratio: float) -> int:
    """Returns M of a window: at least one patch is hidden and one visible."""
    return min(max(round(ratio * patches), 1), patches - 1)


def reconstruction(model: CrossMAE, span: Span, *, ratio: float, tail_share: float, norm: str, train: bool) -> Loss:
    """Returns the pre-training loss: squared error of hidden patches only, in normalised units.

    params {'backbone'}, data Cached. The masks of a batch follow from its key alone.
    """
    patches = span.length // model.patch
    hidden, tail = hidden_patches(patches, ratio), span.horizons[-1] // model.patch

    def loss(params: Any, data: Cached, row_R: Array, key: Array) -> tuple[Array, Array]:
        mask_key, dropout_key = jax.random.split(key)
        x_RL, observed_RL = take(data.panel, span, row_R)
        visible_RV, hidden_RM = hide(mask_key, len(row_R), patches, hidden, tail, tail_share)
        variables, rngs = {"params": params["backbone"]}, {"dropout": dropout_key} if train else {}
        window = x_RL, observed_RL, visible_RV, hidden_RM
        outputs = model.apply(variables, *window, norm=norm, train=train, rngs=rngs, method=model.reconstruct)
        y_RMP, target_RMP, weight_RMP = cast(tuple[Array, Array, Array], outputs)
        return (jnp.square(y_RMP - target_RMP) * weight_RMP).sum((1, 2)), weight_RMP.sum((1, 2))

    return loss


def encode(model: CrossMAE, backbone: Any, data: Cached, span: Span, row_R: Array) -> Encoded:
    """Returns the frozen encoder's output of some rows: from the cache, or made now. No prompt can change it."""
    if data.encoded is not None:
        return jax.tree.map(lambda a: a[row_R], data.encoded)
    x_RL, observed_RL = take(data.panel, span, row_R)
    history = x_RL[:, : span.lookback], observed_RL[:, : span.lookback]
    return cast(Encoded, model.apply({"params": backbone}, *history, method=model.observe))


def forecast(model: CrossMAE, params: Any, encoded: Encoded, horizon: int) -> Array:
    """Returns y_RH in scaled space; params {'backbone', 'prompt'}, without 'prompt' the zero-shot forecast."""
    prompt = params.get("prompt")
    prompt_MD = None if prompt is None else prompts.tokens(prompt, prompts.patches(horizon, model.patch))
    variables = {"params": params["backbone"]}
    return cast(Array, model.apply(variables, encoded, prompt_MD, horizon, method=model.foretell))


PENALTY: dict[str, Callable[[Array], Array]] = {
    "mse": jnp.square,
    "mae": jnp.abs,
    "huber": lambda e: jnp.where(jnp.abs(e) <= 1, 0.5 * e * e, jnp.abs(e) - 0.5),
}


def forecasting(model: CrossMAE, span: Span, *, penalty: str) -> Loss:
    """Returns the tuning loss: error of the longest horizon's forecast in scaled space, so that the loss is the metric.

    Shorter horizons are its first steps; targets past the split's end count as missing, so that a window that only
    holds a short horizon teaches that one.
    """

    def loss(params: Any, data: Cached, row_R: Array, key: Array) -> tuple[Array, Array]:
        x_RL, observed_RL = take(data.panel, span, row_R)
        encoded = encode(model, params["backbone"], data, span, row_R)
        y_RH = forecast(model, params, encoded, span.horizons[-1])
        error_RH = PENALTY[penalty](y_RH - x_RL[:, span.lookback :])
        weight_RH = observed_RL[:, span.lookback :].astype(jnp.float32)
        return (error_RH * weight_RH).sum(1), weight_RH.sum(1)

    return loss


class Problem(NamedTuple):
    """A series on the device, scaled, and where its splits lie."""

    series: Series
    scaler: Scaler
    panel: Panel
    mesh: Mesh

    def span(self, split: str, lookback: int, horizons: tuple[int, ...]) -> Span:
        """Returns a split's windows. Raises UserError when one of the horizons fits none."""
        return span(self.series.splits[split], lookback, horizons, len(self.series.names_C), split)


def prepare(series: Series, mesh: Mesh) -> Problem:
    """Returns the series scaled by its training rows, whole on each device."""
    scaler = fit_scaler(series)
    panel = Panel(jnp.asarray(scaler.transform(series.values_TC).T), jnp.asarray(series.observed_TC.T))
    return Problem(series, scaler, meshes.replicate(mesh, panel), mesh)


def encode_all(model: CrossMAE, backbone: Any, problem: Problem, span: Span, block: int, budget: int) -> Cached:
    """Returns the series with the encoder's output of every row of the span; without, when past `budget` bytes."""
    block = -(-min(block, span.rows) // problem.mesh.size) * problem.mesh.size
    blocks = -(-span.rows // block)

    @jax.jit
    def run(backbone: Any, panel: Panel) -> Encoded:
        def one(first: Array) -> Encoded:
            row_R = meshes.split(problem.mesh, jnp.minimum(first + jnp.arange(block), span.rows - 1))
            return encode(model, backbone, Cached(panel), span, row_R)

        stacked = jax.lax.map(one, jnp.arange(blocks) * block)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), stacked)  # rows past the last are padding

    shapes = jax.eval_shape(run, backbone, problem.panel)
    need = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    return Cached(problem.panel, run(backbone, problem.panel) if need <= budget else None)
