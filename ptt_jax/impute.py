"""Imputation with a frozen backbone: hidden or missing values of a window, reconstructed from what is seen of it.

Pre-training hid whole patches. Here a patch may be seen in part, which the frozen embedding never met, and a single
value next to seen ones is better told by these than by any reconstruction of a day. Two things that need no parameter
bridge both (`Way`): what the encoder reads at the gaps of a patch that is seen in part, and how far an answer is drawn
to its seen neighbours. A task is one prompt token for each patch of the window, zero at the start, which is the mask
token alone, and shares by which a channel's answers lean on straight lines (`bridge.py`); `imputation.py` finds both.
"""

from typing import Any, NamedTuple, cast

import jax.numpy as jnp
from jax import Array

from ptt_jax import bridge, gaps, members, prompts
from ptt_jax.errors import UserError
from ptt_jax.layers import flatten, instance_stats, keepable, normalise, patchify
from ptt_jax.model import CrossMAE, Encoded

Params = Any


class Way(NamedTuple):
    """How gaps are closed.

    fill: what the encoder reads at the gaps of a patch that is seen in part: 'mean' of the seen values, as a forecast's
      history has it, a 'line' between the neighbours, or the 'season' around, drawn to the neighbours.
    reach: steps from the nearest seen value at which its pull on an answer has faded to 1/e; 0 = none.
    season: steps, 1 = none.
    """

    fill: str
    reach: float
    season: int


def check(model: CrossMAE) -> None:
    """Raises UserError for a backbone that learned to be asked otherwise than is done here."""
    if model.decoder_attention == "self":
        raise UserError(
            "the backbone's queries see each other (model.decoder_attention = self), and imputation asks for seen "
            "patches, too, which would change the others; accepted: a backbone of model.decoder_attention = cross"
        )


def filled(of: Way, x_RL: Array, seen_RL: Array) -> Array:
    """Returns the window with a first guess at its gaps, for the encoder."""
    if of.fill == "season":
        return gaps.draw(gaps.season_around(x_RL, seen_RL, of.season), x_RL, seen_RL, of.reach)
    return (gaps.average if of.fill == "mean" else gaps.interpolate)(x_RL, seen_RL)


def observe(model: CrossMAE, backbone: Params, of: Way, x_RL: Array, seen_RL: Array) -> Encoded:
    """Returns what the frozen encoder says of a window. Statistics are of seen values only; a patch without one is read
    by none, or as zeros where the backbone learned hidden patches so. Raises UserError as `check` does."""
    check(model)

    def encode(model: CrossMAE, guess_RL: Array) -> Encoded:
        mean_R1, scale_R1 = instance_stats(x_RL, seen_RL.astype(jnp.float32))
        x_RNP = normalise(patchify(guess_RL, model.patch), mean_R1, scale_R1)
        keep_RN = keepable(patchify(seen_RL, model.patch))
        if model.hiding == "value":
            x_RNP, keep_RN = jnp.where(keep_RN[..., None], x_RNP, 0), jnp.ones_like(keep_RN)
        at_1N = jnp.arange(x_RNP.shape[1])[None]
        z_RND = model.encode(x_RNP, at_1N, keep_RN)
        return Encoded(model.remember(z_RND, at_1N), keep_RN, mean_R1, scale_R1)

    model, backbone = members.first(model, backbone)
    return cast(Encoded, model.apply({"params": backbone}, filled(of, x_RL, seen_RL), method=encode))


def reconstruct(model: CrossMAE, params: Params, encoded: Encoded, channel_R: Array) -> Array:
    """Returns y_RL, every patch of the window asked at its own position by mask token + prompt, if there is one.

    Those that no value is missing in are asked too: what the backbone makes of seen neighbours is needed.
    """
    model, backbone = members.first(model, params["backbone"])
    count, prompt = encoded.keep_RN.shape[1], params.get("prompt")
    tokens = None if prompt is None else prompts.tokens(prompt, count, channel_R)
    question = encoded.memory, jnp.arange(count)[None], tokens, encoded.keep_RN
    y_RMP = cast(Array, model.apply({"params": backbone}, *question, method=model.decode))
    return flatten(y_RMP) * encoded.scale_R1 + encoded.mean_R1


def impute(model: CrossMAE, params: Params, of: Way, x_RL: Array, seen_RL: Array, channel_R: Array) -> Array:
    """Returns the windows with their gaps closed, whatever made them; seen values come back as they are.

    params {'backbone', 'prompt', 'share_CA'}, without 'prompt' the mask token alone, without 'share_CA' no line. x_RL
    float32 in scaled units, anything finite where not seen_RL; L a multiple of the patch. channel_R: the rows'
    channels, of which each has its own shares and may have its own prompt.
    """
    x_RL = jnp.where(seen_RL, x_RL, 0)
    y_RL = reconstruct(model, params, observe(model, params["backbone"], of, x_RL, seen_RL), channel_R)
    y_RL = gaps.draw(y_RL, x_RL, seen_RL, of.reach)
    if "share_CA" not in params:
        return y_RL
    return bridge.lean(x_RL, y_RL, seen_RL, jnp.asarray(params["share_CA"])[channel_R])
