"""A backbone of several networks (deep ensembles, Lakshminarayanan et al. 2017): asked side by side, they answer by
their mean.

With `model.members` every leaf of the parameters but a linear map's has an axis of the networks in front. Each begins
from weights of its own, learns the same rows under masks, dropout and augmentation of its own, and is frozen with the
others; the optimiser's clip, looks at validation and the step that is chosen are shared. What they read and say has
that axis after the one of the rows. A prompt token is that of each network, one after the other, so that a task still
learns its prompt alone. Other tasks than forecasts ask the first network.
"""

from typing import Any, cast

import jax
from jax import Array

from ptt_jax.layers import linear
from ptt_jax.model import CrossMAE, Encoded, mixed

Params = Any


def alone(model: CrossMAE) -> CrossMAE:
    """Returns one of the networks, without a linear map."""
    return model.clone(members=1, linear=0)


def networks(backbone: Params) -> Params:
    """Returns the parameters of a backbone that are not its linear map's."""
    return {name: leaf for name, leaf in backbone.items() if name != "linear_map"}


def first(model: CrossMAE, backbone: Params) -> tuple[CrossMAE, Params]:
    """Returns the first network and its parameters, without a linear map: what other tasks than forecasts ask."""
    kept = networks(backbone)
    return alone(model), kept if model.members == 1 else jax.tree.map(lambda a: a[0], kept)


def observe(model: CrossMAE, backbone: Params, x_RT: Array, observed_RT: Array) -> Encoded:
    """Returns what `CrossMAE.observe` does; of several networks (axis Z) all that each says of a history, as RZ."""
    if model.members == 1:
        return cast(Encoded, model.apply({"params": backbone}, x_RT, observed_RT, method=model.observe))
    one = alone(model)

    def look(network: Params) -> Encoded:
        return cast(Encoded, one.apply({"params": network}, x_RT, observed_RT, method=one.observe))

    encoded = jax.vmap(look, out_axes=1)(networks(backbone))
    if not model.linear:
        return encoded
    return encoded.replace(line_RH=linear(backbone["linear_map"], x_RT, observed_RT))  # type: ignore[attr-defined, no-any-return]


def foretell(model: CrossMAE, backbone: Params, encoded: Encoded, ahead_M: Array, prompt_ME: Array) -> Array:
    """Returns what `CrossMAE.foretell` does, of several networks the mean of what each says in answer to its part of
    the tokens, E = Z D; with the share of a linear map, which there is once, E = Z D + 1."""
    if model.members == 1:
        return cast(Array, model.apply({"params": backbone}, encoded, ahead_M, prompt_ME, method=model.foretell))
    one, size = alone(model), model.members * model.width
    prompt_MZD = prompt_ME[..., :size].reshape(*prompt_ME.shape[:-1], model.members, model.width)

    def ask(network: Params, encoded: Encoded, prompt_MD: Array) -> Array:
        return cast(Array, one.apply({"params": network}, encoded, ahead_M, prompt_MD, method=one.speak))

    heard: Any = encoded.replace(line_RH=None)  # type: ignore[attr-defined]
    y_RMP = jax.vmap(ask, in_axes=(0, 1, -2))(networks(backbone), heard, prompt_MZD).mean(0)
    return y_RMP if encoded.line_RH is None else mixed(y_RMP, encoded.line_RH, ahead_M, prompt_ME)
