"""A config: the defaults of `knobs.py`, whether one can be had, how two differ, and the way to JSON and back.

A file in `configs/` calls `default()` and sets differences.
"""

import difflib
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from ptt_jax.errors import UserError, brief
from ptt_jax.files import check_text
from ptt_jax.knobs import FREE, KNOBS, PARTS

MOST_GENERATED = 10**8  # values, some GB while they are made


def default() -> ConfigDict:
    """Returns the default of every knob."""
    cfg = ConfigDict()
    for key, value, _, _ in KNOBS:
        section, _, name = key.rpartition(".")
        if section and section not in cfg:
            cfg[section] = ConfigDict()
        (cfg[section] if section else cfg)[name] = value
    return cfg


def benchmark(name: str) -> ConfigDict:
    """Returns the recipe that the sets of the main table start from; chosen on validation (levers in experiments/)."""
    cfg = default()
    cfg.data.name = name
    cfg.lookback, cfg.views = 720, 3
    cfg.pretrain.update(norm="visible", batch=224, flip=0.5, blend=0.5, average=0.99)
    return cfg


def flat(cfg: ConfigDict) -> dict[str, Any]:
    """Returns {'section.name': value}, in the order of KNOBS where they know the key."""
    out = {}
    for name, value in cfg.items():
        if isinstance(value, ConfigDict):
            out.update({f"{name}.{key}": v for key, v in flat(value).items()})
        else:
            out[name] = value
    return out


def nearest(key: str, valid: list[str]) -> str:
    """Returns the words 'nearest: a, b' for a key that does not exist: whole paths first, then last parts alone."""
    by_end = [k for k in valid if k.rpartition(".")[2] == key.rpartition(".")[2]]
    close = by_end + [k for k in difflib.get_close_matches(key, valid, n=3, cutoff=0.5) if k not in by_end]
    return (
        "nearest: " + ", ".join(close[:3])
        if close
        else "there are: " + ", ".join(dict.fromkeys(k.split(".")[0] for k in valid))
    )


def check(cfg: ConfigDict) -> None:
    """Raises UserError at the first knob that is unknown or out of range, alone or against another."""
    values, known = flat(cfg), [key for key, *_ in KNOBS]
    for key in values:
        if key not in known:
            raise UserError(f"config key {key} does not exist; {nearest(key, known)}")
    for key, standard, rule, legend in KNOBS:
        if key not in values:
            raise UserError(f"config key {key} is missing ({legend})")
        if type(values[key]) is not type(standard):
            kind = type(standard).__name__
            raise UserError(
                f"config.{key} = {brief(values[key])} is a {type(values[key]).__name__}; "
                f"accepted: {rule.words or 'a ' + kind}, as {kind}"
            )
        if not rule.holds(values[key]):
            raise UserError(f"config.{key} = {brief(values[key])} is out of range; accepted: {rule.words} ({legend})")
        if isinstance(standard, str):
            check_text(f"config.{key}", values[key])
    if cfg.model.width % (2 * cfg.model.heads):
        raise UserError(
            f"config.model.width = {cfg.model.width} is out of range; accepted: a multiple of twice "
            f"config.model.heads = {cfg.model.heads}, so that each head rotates pairs"
        )
    if cfg.data.name == "generated" and cfg.data.rows * cfg.data.channels > MOST_GENERATED:
        raise UserError(
            f"config.data.rows = {cfg.data.rows} of config.data.channels = {cfg.data.channels} are too many numbers to "
            f"generate; accepted: at most {MOST_GENERATED} in all"
        )
    if cfg.seed + cfg.tune.seeds > 2**32:
        raise UserError(
            f"config.tune.seeds = {cfg.tune.seeds} from config.seed = {cfg.seed} on pass the last seed; "
            f"accepted: a sum of at most {2**32}"
        )
    if (cfg.tune.mode == "thaw") != (cfg.tune.thaw != ""):
        raise UserError(
            f"config.tune.thaw = {cfg.tune.thaw!r} does not go with config.tune.mode = {cfg.tune.mode}; "
            f"accepted: under mode thaw 'all' or some of {','.join(PARTS)}, under any other ''"
        )
    check_members(cfg, "config.model.members = 1")
    defaults = {k: v for k, v, *_ in KNOBS}
    if cfg.tune.mode != "prompt":
        for key in ("seeds", "learning_rates", "weight_decays", "linear_shares", "linear_when", "quantiles"):
            usual = defaults[f"tune.{key}"]
            if cfg.tune[key] != usual:
                raise UserError(
                    f"config.tune.{key} = {cfg.tune[key]} is for prompts, which learn side by side, and "
                    f"config.tune.mode = {cfg.tune.mode}; accepted: config.tune.{key} = {usual}, or mode prompt"
                )
    shares = defaults["tune.linear_shares"]
    if cfg.tune.linear_when == "after" and cfg.tune.linear_shares != shares:
        raise UserError(
            f"config.tune.linear_shares = {cfg.tune.linear_shares} are for prompts to learn beside, and "
            f"config.tune.linear_when = after; accepted: config.tune.linear_shares = {shares}, or beside"
        )
    if cfg.backbone and cfg.pretrain.also:
        raise UserError(
            f"config.pretrain.also = {cfg.pretrain.also} is for pre-training, and config.backbone = {cfg.backbone} has "
            f"learned already; accepted: one of the two"
        )
    if not cfg.backbone:  # else the patch is the backbone's
        check_lookback(cfg.lookback, cfg.model.patch)
        if cfg.pretrain.horizon == 0 and cfg.lookback == cfg.model.patch:
            raise UserError(
                f"config.pretrain.horizon = 0 leaves windows of one patch, of which none can be hidden; accepted: a "
                f"config.lookback of at least {2 * cfg.model.patch}, or a config.pretrain.horizon of -1 or at least 1"
            )


def check_members(cfg: ConfigDict, instead: str) -> None:
    """Raises UserError when several networks would learn otherwise than by prompts; instead: what would do."""
    if cfg.model.members > 1 and cfg.tune.mode != "prompt":
        raise UserError(
            f"config.model.members = {cfg.model.members} networks answer prompts, and config.tune.mode = "
            f"{cfg.tune.mode} trains one; accepted: {instead}, or mode prompt"
        )


def check_lookback(lookback: int, patch: int) -> None:
    """Raises UserError when the lookback is no whole number of patches."""
    if lookback % patch:
        near = max(lookback // patch, 1) * patch
        raise UserError(
            f"config.lookback = {lookback} is no multiple of the patch length {patch}; "
            f"accepted: {near} or {near + patch}, say"
        )


def to_json(cfg: ConfigDict) -> str:
    """Returns the config as JSON with the knobs in their order."""
    return json.dumps(cfg.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """Returns the config that `to_json` wrote: JSON's lists are tuples again, and a seal (`seal.py`) is no knob. Raises
    ValueError when it is no JSON."""

    def tuples(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: tuples(v) for k, v in node.items()}
        return tuple(node) if isinstance(node, list) else node

    read = tuples(json.loads(text))
    read.pop("seal", None)
    return ConfigDict(read)


def completed(cfg: ConfigDict) -> ConfigDict:
    """Returns the config of a run by an earlier version with the knobs that it did not know, at their default."""
    given, whole = flat(cfg), default()
    sections = [name for name, value in whole.items() if isinstance(value, ConfigDict)]
    if any(not isinstance(cfg.get(name, whole), ConfigDict) for name in sections):
        return cfg  # `check` says what is wrong
    for key, value in flat(whole).items():
        if key not in given:
            section, _, name = key.rpartition(".")
            if section and section not in cfg:
                cfg[section] = ConfigDict()
            (cfg[section] if section else cfg)[name] = value
    return cfg


def restored(text: str, where: Any) -> ConfigDict:
    """Returns the config of something that was saved, maybe by an earlier version, without its folder of compiled
    programs, which a stranger may have filled. Raises ValueError when it is no JSON, UserError, which names where it
    stands, for knobs or values that this version does not know."""
    cfg = completed(from_json(text))
    try:
        check(cfg)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    cfg.cache_dir = default().cache_dir if cfg.cache_dir else ""
    return cfg


def differences(a: ConfigDict, b: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (in a, in b)} of the knobs that decide results and differ.

    A knob that is absent, in the config of a run by an earlier version, stands at its default. Two backbones are no
    difference here: a run may have moved, and content hashes tell what it holds.
    """
    a_flat, b_flat = flat(a), flat(b)
    keys = [k for k in dict.fromkeys([*a_flat, *b_flat]) if k not in FREE]
    standard = {key: value for key, value, _, _ in KNOBS}
    pairs = {k: tuple(side.get(k, standard.get(k)) for side in (a_flat, b_flat)) for k in keys}
    return {k: (x, y) for k, (x, y) in pairs.items() if x != y and not (k == "backbone" and x and y)}


def content_hash(cfg: ConfigDict) -> str:
    """Returns 8 hex digits over the knobs that decide results and are not at their default: a knob that a later version
    brings changes no hash."""
    standard = {key: value for key, value, _, _ in KNOBS}
    kept = {k: v for k, v in sorted(flat(cfg).items()) if k not in FREE and v != standard.get(k)}
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:8]
