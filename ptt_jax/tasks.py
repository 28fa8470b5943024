"""The two jobs of a backbone: reconstruct hidden patches (pre-training), reconstruct a hidden future (tuning).

A loss takes (params, data, row_R, key) and returns for each row a sum and a count, so that batches of unlike weight
add up and padding can be left out.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ptt_jax import members, prompts
from ptt_jax.encodings import Cached, encode
from ptt_jax.layers import flatten, instance_stats
from ptt_jax.model import CrossMAE, Encoded
from ptt_jax.windows import Panel, Span, future, take

Loss = Callable[[Any, Any, Array, Array], tuple[Array, Array]]


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
    rows, x_RL = (len(x_RL), 1), jnp.where(observed_RL, x_RL, 0)
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

    params {'backbone'}, data Cached. The masks of a batch follow from its key alone; of several members each has its
    own, and the loss is that of all their patches. flip, blend: of `augment`.
    """
    one = members.alone(model)
    patches = span.length // model.patch
    hidden, tail = hidden_patches(patches, ratio), span.horizons[-1] // model.patch

    def of_one(network: Any, x_RL: Array, observed_RL: Array, key: Array) -> tuple[Array, Array]:
        mask_key, dropout_key = jax.random.split(key)
        if flip or blend:
            x_RL, observed_RL = augment(jax.random.fold_in(mask_key, 1), x_RL, observed_RL, flip, blend)
        visible_RV, hidden_RM = hide(mask_key, len(x_RL), patches, hidden, tail, tail_share)
        variables, rngs = {"params": network}, {"dropout": dropout_key} if train else {}
        window = x_RL, observed_RL, visible_RV, hidden_RM
        outputs = one.apply(variables, *window, norm=norm, units=units, train=train, rngs=rngs, method=one.reconstruct)
        y_RMP, target_RMP, weight_RMP = cast(tuple[Array, Array, Array], outputs)
        return (PENALTY[penalty](y_RMP - target_RMP) * weight_RMP).sum((1, 2)), weight_RMP.sum((1, 2))

    def loss(params: Any, data: Cached, row_R: Array, key: Array) -> tuple[Array, Array]:
        rows, networks = take(data.panel, span, row_R), members.networks(params["backbone"])
        if model.members == 1:
            return of_one(networks, *rows, key)
        each = jax.vmap(of_one, in_axes=(0, None, None, 0))(networks, *rows, jax.random.split(key, model.members))
        sum_ZR, count_ZR = each
        return sum_ZR.sum(0), count_ZR.sum(0)

    return loss


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
    """Returns y_RH for each (prompt or None, horizon), several from one decoder: its queries never see each other.

    Where they do (decoder_attention 'self'), a forecast depends on what is asked: then each prompt has a decoder of its
    own, is asked for the longest horizon wanted, for which it must have tokens, and the answer is cut.
    """
    if model.decoder_attention == "self" and len(wanted) > 1:
        longest = max(horizon for _, horizon in wanted)
        each = [forecasts(model, backbone, encoded, [(prompt, longest)], channel_R)[0] for prompt, _ in wanted]
        return [y_RH[:, :horizon] for y_RH, (_, horizon) in zip(each, wanted, strict=True)]
    counts = [prompts.patches(horizon, model.patch) for _, horizon in wanted]
    if len(wanted) > 1 and sum(counts) > QUERIES:
        half = len(wanted) // 2
        parts = wanted[:half], wanted[half:]
        return [y_RH for part in parts for y_RH in forecasts(model, backbone, encoded, part, channel_R)]
    tokens = [
        jnp.zeros((count, model.token)) if prompt is None else prompts.tokens(prompt, count, channel_R)
        for (prompt, _), count in zip(wanted, counts, strict=True)
    ]
    lead = np.broadcast_shapes(*(prompt_MD.shape[:-2] for prompt_MD in tokens))  # where rows or blocks have their own
    tokens = [jnp.broadcast_to(prompt_MD, (*lead, *prompt_MD.shape[-2:])) for prompt_MD in tokens]
    question = encoded, jnp.concatenate([jnp.arange(count) for count in counts]), jnp.concatenate(tokens, axis=-2)
    y_RMP = members.foretell(model, backbone, *question)
    pieces = jnp.split(y_RMP, np.cumsum(counts)[:-1], axis=1)
    return [flatten(y)[:, :horizon] for y, (_, horizon) in zip(pieces, wanted, strict=True)]


Penalty = Callable[[Array], Array]  # of forecast minus truth

PENALTY: dict[str, Penalty] = {
    "mse": jnp.square,
    "mae": jnp.abs,
    "huber": lambda e: jnp.where(jnp.abs(e) <= 1, 0.5 * e * e, jnp.abs(e) - 0.5),
}


def pinball(level: Array | np.ndarray | float) -> Penalty:
    """Returns the loss whose mean is least at a quantile (Koenker and Bassett 1978): a truth above the forecast costs
    `level` of its distance, one below it the rest. level: broadcasts with the error."""
    return lambda e: jnp.where(e >= 0, (1 - level) * e, -level * e)


def rearranged(y_of_level: Sequence[Array]) -> Array:
    """Returns y_QRH, forecasts of ascending quantiles in order: prompts that learn apart may cross, and sorted ones
    never have a larger pinball loss (Chernozhukov, Fernandez-Val and Galichon 2010)."""
    return jnp.sort(jnp.stack(y_of_level), axis=0)


def forecasting(model: CrossMAE, span: Span, *, penalty: str | Penalty) -> Loss:
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


def errors(y_RH: Array, panel: Panel, span: Span, row_R: Array, penalty: str | Penalty) -> tuple[Array, Array]:
    """Returns each row's sum of errors over the observed values of its future, and how many these are."""
    x_RH, observed_RH = future(panel, span, row_R)
    away_RH = jnp.where(observed_RH, y_RH - x_RH, 0)  # before the penalty, whose gradient would be 0 times infinity
    error_RH = (PENALTY[penalty] if isinstance(penalty, str) else penalty)(away_RH)
    return jnp.where(observed_RH, error_RH, 0).sum(1), observed_RH.sum(1, dtype=jnp.float32)
