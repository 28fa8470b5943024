"""The two jobs of a backbone: reconstruct hidden patches (pre-training), reconstruct a hidden future (tuning).

A loss takes (params, data, row_R, key) and returns for each row a sum and a count, so that batches of unlike weight
add up and padding can be left out.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from ptt_jax import mesh as meshes
from ptt_jax import prompts
from ptt_jax.config import UserError
from ptt_jax.data import Scaler, Series, fit_scaler
from ptt_jax.layers import instance_stats
from ptt_jax.model import CrossMAE, Encoded, flatten
from ptt_jax.stream import Host
from ptt_jax.windows import Mix, Panel, Span, Windows, few, future, past, span, stretch, take

Loss = Callable[[Any, Any, Array, Array], tuple[Array, Array]]


@flax.struct.dataclass
class Cached:
    """A series, and what the frozen encoder says of the first rows of one span: all of them, as many as a budget holds,
    or none (encoded None); the others are encoded when needed."""

    panel: Any  # Panel, Mix or Host; in jitted code what is fed of it
    encoded: Encoded | None = None
    complete: bool = flax.struct.field(pytree_node=False, default=False)
    mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)
    dtype: DTypeLike | None = flax.struct.field(pytree_node=False, default=None)  # what memory is rounded to, if cached

    @property
    def member_axes(self) -> "Cached":
        """What of it is each seed's own, for the axes of a vmap."""
        return self.replace(panel=self.panel.member_axis, encoded=None)  # type: ignore[attr-defined]

    def on(self, panel: Windows | None) -> "Cached":
        """Returns it with what a dispatch reads of the series."""
        return self.replace(panel=panel)  # type: ignore[attr-defined]

    def at(self, block: Array | int) -> "Cached":
        """Returns it with what one step of a dispatch reads of the series."""
        return self.on(self.panel.at(block))

    @property
    def stored(self) -> int:
        """Rows that need no encoder."""
        return 0 if self.encoded is None else len(self.encoded.keep_RN)

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


def augment(key: Array, x_RL: Array, observed_RL: Array, flip: float, blend: float) -> tuple[Array, Array]:
    """Returns windows that might have been: some turned upside down, some blended with another of the batch.

    What a linear forecaster says of such windows follows from what it says of those that were; a Transformer is taught.
    A blend keeps mean and scale of its row: x + (share to 0 .. 1) of the way to the other window, both normalised
    (TSMixup, Ansari et al. 2024, with two series). What is missing in either is missing in it.
    """
    sign_key, chosen_key, share_key = jax.random.split(key, 3)
    rows = (len(x_RL), 1)
    x_RL = jnp.where(jax.random.bernoulli(sign_key, flip, rows), -x_RL, x_RL)
    if not blend:
        return x_RL, observed_RL
    mean_R1, scale_R1 = instance_stats(x_RL, observed_RL.astype(jnp.float32))
    z_RL = (x_RL - mean_R1) / scale_R1
    share_R1 = jax.random.uniform(share_key, rows) * jax.random.bernoulli(chosen_key, blend, rows)
    mixed_RL = (z_RL + share_R1 * (jnp.roll(z_RL, 1, axis=0) - z_RL)) * scale_R1 + mean_R1
    both_RL = observed_RL & (jnp.roll(observed_RL, 1, axis=0) | (share_R1 == 0))
    return jnp.where(share_R1 > 0, mixed_RL, x_RL), both_RL


def hidden_patches(patches: int, ratio: float) -> int:
    """Returns M of a window: at least one patch is hidden and one visible."""
    return min(max(round(ratio * patches), 1), patches - 1)


def reconstruction(
    model: CrossMAE,
    span: Span,
    *,
    ratio: float,
    tail_share: float,
    norm: str,
    train: bool,
    penalty: str = "mse",
    units: str = "normalised",
    flip: float = 0.0,
    blend: float = 0.0,
) -> Loss:
    """Returns the pre-training loss: error of hidden patches only.

    params {'backbone'}, data Cached. The masks of a batch follow from its key alone. flip, blend: of `augment`.
    """
    patches = span.length // model.patch
    hidden, tail = hidden_patches(patches, ratio), span.horizons[-1] // model.patch

    def loss(params: Any, data: Cached, row_R: Array, key: Array) -> tuple[Array, Array]:
        mask_key, dropout_key = jax.random.split(key)
        x_RL, observed_RL = take(data.panel, span, row_R)
        if flip or blend:
            x_RL, observed_RL = augment(jax.random.fold_in(mask_key, 1), x_RL, observed_RL, flip, blend)
        visible_RV, hidden_RM = hide(mask_key, len(row_R), patches, hidden, tail, tail_share)
        variables, rngs = {"params": params["backbone"]}, {"dropout": dropout_key} if train else {}
        window = x_RL, observed_RL, visible_RV, hidden_RM
        outputs = model.apply(
            variables, *window, norm=norm, units=units, train=train, rngs=rngs, method=model.reconstruct
        )
        y_RMP, target_RMP, weight_RMP = cast(tuple[Array, Array, Array], outputs)
        return (PENALTY[penalty](y_RMP - target_RMP) * weight_RMP).sum((1, 2)), weight_RMP.sum((1, 2))

    return loss


def encode(model: CrossMAE, backbone: Any, data: Cached, span: Span, row_R: Array) -> Encoded:
    """Returns what the frozen encoder says of some rows: from the cache, or made now. No prompt can change it."""

    def fresh(row_R: Array) -> Encoded:
        history = past(data.panel, span, row_R)
        encoded = cast(Encoded, model.apply({"params": backbone}, *history, method=model.observe))
        return encoded.replace(memory=rounded(encoded.memory, data.dtype))  # type: ignore[attr-defined]

    if data.encoded is None:
        return fresh(row_R)
    at_R = jnp.minimum(row_R, data.stored - 1)
    found = jax.tree.map(lambda a: a[at_R], data.encoded)
    # A cache may be stored in half the bytes; what is computed from it is not.
    found = jax.tree.map(lambda a, like: a.astype(like.dtype), found, jax.eval_shape(fresh, row_R))
    return found if data.complete else fill(found, row_R >= data.stored, row_R, fresh, data.mesh)


def rounded(memory: Any, dtype: DTypeLike | None) -> Any:
    """Returns the memory with the digits that a cache of `dtype` keeps, so that it does not matter which rows are
    cached. A cast there and back would not do: XLA drops it."""
    if dtype is None:
        return memory
    bits = jnp.finfo(dtype)
    return jax.tree.map(lambda a: jax.lax.reduce_precision(a, bits.nexp, bits.nmant), memory)


PARTS = 8  # a batch's missing rows are encoded in eighths of a batch


def fill(
    found: Encoded, missing_R: Array, row_R: Array, fresh: Callable[[Array], Encoded], mesh: Mesh | None
) -> Encoded:
    """Returns `found` with the missing rows encoded now, and no others: the work follows their number.

    Shapes are fixed and the number is not, so a loop of as many turns as needed encodes a part of a batch each. Each
    device of the mesh does so for its own rows.
    """
    devices = mesh.size if mesh else 1
    size = -(-len(row_R) // devices)
    part = -(-size // PARTS)
    order_ER = jnp.argsort(~missing_R.reshape(devices, size), axis=1)  # missing ones first
    turns = -(-missing_R.reshape(devices, size).sum(1).max() // part)
    row_ER = row_R.reshape(devices, size)

    def body(i: Array, found: Encoded) -> Encoded:
        # Past the end, XLA moves the slice back onto rows that are done: the same again, at no harm.
        at_ER = jax.lax.dynamic_slice_in_dim(order_ER, i * part, part, axis=1)
        which_R = jnp.take_along_axis(row_ER, at_ER, axis=1).reshape(-1)
        made = fresh(meshes.split(mesh, which_R) if mesh else which_R)

        def put(a: Array, b: Array) -> Array:
            a_E, b_E = a.reshape(devices, size, *a.shape[1:]), b.reshape(devices, part, *b.shape[1:])
            return jax.vmap(lambda a, at, b: a.at[at].set(b))(a_E, at_ER, b_E).reshape(a.shape)

        return jax.tree.map(put, found, made)

    return jax.lax.fori_loop(0, turns, body, jax.lax.stop_gradient(found))


def forecast(model: CrossMAE, params: Any, encoded: Encoded, horizon: int, channel_R: Array) -> Array:
    """Returns y_RH in scaled space; params {'backbone', 'prompt'}, without 'prompt' the zero-shot forecast.

    channel_R: the rows' channels, of which each may have a prompt of its own.
    """
    return forecasts(model, params["backbone"], encoded, [(params.get("prompt"), horizon)], channel_R)[0]


QUERIES = 256  # most queries of a row in one decoder, unless a single horizon has more


def forecasts(
    model: CrossMAE,
    backbone: Any,
    encoded: Encoded,
    wanted: Sequence[tuple[prompts.Prompt | None, int]],
    channel_R: Array,
) -> list[Array]:
    """Returns y_RH for each (prompt or None, horizon), several from one decoder: its queries never see each other."""
    counts = [prompts.patches(horizon, model.patch) for _, horizon in wanted]
    if len(wanted) > 1 and sum(counts) > QUERIES:
        half = len(wanted) // 2
        parts = wanted[:half], wanted[half:]
        return [y_RH for part in parts for y_RH in forecasts(model, backbone, encoded, part, channel_R)]
    tokens = [
        jnp.zeros((count, model.width)) if prompt is None else prompts.tokens(prompt, count, channel_R)
        for (prompt, _), count in zip(wanted, counts, strict=True)
    ]
    if any(prompt_MD.ndim == 3 for prompt_MD in tokens):  # of a channel each: then every row asks for itself
        tokens = [jnp.broadcast_to(prompt_MD, (len(channel_R), *prompt_MD.shape[-2:])) for prompt_MD in tokens]
    question = encoded, jnp.concatenate([jnp.arange(count) for count in counts]), jnp.concatenate(tokens, axis=-2)
    y_RMP = cast(Array, model.apply({"params": backbone}, *question, method=model.foretell))
    pieces = jnp.split(y_RMP, np.cumsum(counts)[:-1], axis=1)
    return [flatten(y)[:, :horizon] for y, (_, horizon) in zip(pieces, wanted, strict=True)]


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

    # What is cheap (norms, activations, softmax) is made again on the way back; results of matrix products are kept.
    saved = jax.checkpoint_policies.dots_saveable

    def loss(params: Any, data: Cached, row_R: Array, key: Array) -> tuple[Array, Array]:
        encoded = encode(model, params["backbone"], data, span, row_R)

        @functools.partial(jax.checkpoint, policy=saved)
        def decode(params: Any, encoded: Encoded) -> Array:
            return forecast(model, params, encoded, span.horizons[-1], row_R % span.channels)

        return errors(decode(params, encoded), data.panel, span, row_R, penalty)

    return loss


def errors(y_RH: Array, panel: Panel, span: Span, row_R: Array, penalty: str) -> tuple[Array, Array]:
    """Returns each row's sum of errors over the observed values of its future, and how many these are."""
    x_RH, observed_RH = future(panel, span, row_R)
    error_RH = PENALTY[penalty](y_RH - x_RH)
    return jnp.where(observed_RH, error_RH, 0).sum(1), observed_RH.sum(1, dtype=jnp.float32)


class Problem(NamedTuple):
    """A series, scaled, on the device or streamed to it, and where its splits lie."""

    series: Series
    scaler: Scaler
    panel: Panel | Host
    mesh: Mesh

    def span(self, split: str, lookback: int, horizons: tuple[int, ...]) -> Span:
        """Returns a split's windows. Raises UserError when one of the horizons fits none."""
        return span(self.series.splits[split], lookback, horizons, len(self.series.names_C), split)

    def learning(self, cfg: ConfigDict) -> Span:
        """Returns the windows that a task learns from: the training split's, or `tune.share` of them."""
        return few(self.span("train", cfg.lookback, cfg.horizons), cfg.tune.share)


def prepare(series: Series, mesh: Mesh, budget: float = math.inf) -> Problem:
    """Returns the series scaled by its training rows, whole on each device, or on the host if it is over the budget.

    Raises UserError when it must be streamed and grain is not installed.
    """
    scaler = fit_scaler(series)
    values_CT, observed_CT = scaler.transform(series.values_TC).T, series.observed_TC.T
    if values_CT.nbytes + observed_CT.nbytes > budget:
        rows = np.ascontiguousarray(values_CT), np.ascontiguousarray(observed_CT)
        return Problem(series, scaler, Host(*rows, mesh, int(budget)), mesh)
    panel = Panel(jnp.asarray(values_CT), jnp.asarray(observed_CT))
    return Problem(series, scaler, meshes.replicate(mesh, panel), mesh)


def mix(problems: Sequence[Problem], lookback: int, horizon: int) -> Mix:
    """Returns the training windows of several problems as one panel. Raises UserError when one has no window, or does
    not lie on the device."""
    for problem in problems:
        if isinstance(problem.panel, Host):
            raise UserError(
                f"config.pretrain.also: {problem.series.name} is larger than config.data.device_bytes, and several "
                f"series cannot be streamed; accepted: a larger budget, or one series"
            )
    spans = [problem.span("train", lookback, (horizon,)) for problem in problems]
    return Mix(tuple(cast(Panel, p.panel) for p in problems), tuple(spans))


def encode_all(
    model: CrossMAE, backbone: Any, problem: Problem, span: Span, block: int, budget: int, dtype: DTypeLike
) -> Cached:
    """Returns the series with the encoder's output of every row of the span, or of as many blocks of rows as `budget`
    bytes hold.

    dtype: what the cache is stored in, and what every other row is rounded to; bfloat16 holds twice as many rows. A
    streamed series has no cache: it would take more room than the series itself.
    """
    if isinstance(problem.panel, Host):
        return Cached(problem.panel, dtype=dtype)
    block = -(-span.rows // -(-span.rows // block))  # equal ones, so that hardly a row is padding
    block = -(-block // problem.mesh.size) * problem.mesh.size

    def one(backbone: Any, panel: Panel, first: Array) -> Encoded:
        row_R = meshes.split(problem.mesh, stretch(first, block, span.rows)[0])
        encoded = encode(model, backbone, Cached(panel), span, row_R)
        memory = jax.tree.map(lambda a: a.astype(dtype), encoded.memory)
        return Encoded(memory, encoded.keep_RN, encoded.mean_R1, encoded.scale_R1)

    @functools.partial(jax.jit, static_argnums=2)
    def run(backbone: Any, panel: Panel, blocks: int) -> Encoded:
        stacked = jax.lax.map(lambda first: one(backbone, panel, first), jnp.arange(blocks) * block)
        # Whole on each device: a step's rows lie anywhere. Rows past the last are padding.
        return meshes.whole(problem.mesh, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), stacked))

    shapes = jax.tree.leaves(jax.eval_shape(one, backbone, problem.panel, 0))
    need = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)
    blocks = min(-(-span.rows // block), budget // need)
    encoded = run(backbone, problem.panel, blocks) if blocks else None
    return Cached(problem.panel, encoded, blocks * block >= span.rows, problem.mesh, dtype)
