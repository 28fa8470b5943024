"""The model that a config asks for, or that a backbone's card records."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ptt_jax import config, knobs, prompts
from ptt_jax.errors import UserError, brief
from ptt_jax.model import CrossMAE, init

Params = Any
# What a checkpoint records of config.model; a card of an earlier version lacks what stands at its default.
RECORDED = (
    "patch", "width", "mlp", "heads", "encoder_layers", "decoder_layers", "position", "decoder_attention", "hiding",
)  # fmt: skip


def of(cfg: ConfigDict) -> dict[str, Any]:
    """Returns what a checkpoint records of the model: all that decides shapes and meaning of its parameters."""
    ahead = prompts.patches(max(cfg.horizons[-1], cfg.pretrain.horizon), cfg.model.patch)
    history = cfg.lookback // cfg.model.patch
    beside = {"linear": history} if cfg.model.linear else {}
    beside |= {"members": cfg.model.members} if cfg.model.members > 1 else {}
    return {**{k: cfg.model[k] for k in RECORDED}, "patches": history + ahead, **beside}


def build(card: dict[str, Any], compute_dtype: str, dropout: float = 0.0, views: int = 1) -> CrossMAE:
    """Returns the model of a recorded architecture. Raises UserError for what no version recorded, or a later one."""
    rules = {key.removeprefix("model."): (value, rule) for key, value, rule, _ in knobs.KNOBS}
    rules |= {key: (1, knobs.count(1)) for key in ("patches", "linear")}
    later = ("decoder_attention", "hiding", "linear", "members")  # than format 1
    known = {"patches", "linear", "members", *RECORDED}
    fits = isinstance(card, dict) and known - {*later} <= {*card} <= known
    for key, value in card.items() if fits else ():
        standard, rule = rules[key]
        fits = fits and type(value) is type(standard) and rule.holds(value)
    fits = fits and card.get("linear", 0) < card["patches"]
    if not fits:
        raise UserError(
            f"the architecture in backbone.json, {brief(card)}, is none of this version's; accepted: the file "
            f"as a run wrote it, and a version of ptt_jax that is no older"
        )
    return CrossMAE(**card, dropout=dropout, dtype=jnp.dtype(compute_dtype), views=views)


def adopt(cfg: ConfigDict, card: dict) -> None:
    """Sets the model of the config to that of the backbone, which decides, and checks what must fit it."""
    patch, window = card["architecture"]["patch"], card["architecture"]["patches"]
    standard = config.default().model
    for key in RECORDED:
        cfg.model[key] = card["architecture"].get(key, standard[key])
    cfg.model.linear = "linear" in card["architecture"]
    cfg.model.members = card["architecture"].get("members", 1)
    config.check_members(cfg, "a backbone of one network")
    config.check_lookback(cfg.lookback, patch)
    need = cfg.lookback // patch + -(-cfg.horizons[-1] // patch)
    if need > window and (cfg.model.position == "learned" or cfg.model.hiding == "value"):
        knows, other = ("positions", "rotary positions") if cfg.model.position == "learned" else ("patches", "hiding")
        raise UserError(
            f"config.lookback = {cfg.lookback} and horizon {cfg.horizons[-1]} make {need} patches, but the backbone "
            f"{card['run']} learned {window} {knows}; accepted: less, or a backbone with {other}"
        )


def shapes(model: CrossMAE) -> Params:
    """Returns the parameter tree as shapes, without making it."""
    return jax.eval_shape(lambda: init(model, jax.random.key(0)))


def count(tree: Params) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
