"""From a table of series to a frozen backbone with a prompt: what a Forecaster does when it learns."""

import contextlib
import json
import operator
import os
import warnings
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from ptt_jax import (  # fmt: skip
    architecture,
    cache,
    calibrate,
    checkpoint,
    config,
    data,
    detect,
    fitted,
    foresight,
    frames,
    lock,
    problems,
    quantiles,
    recipe,
    rundir,
    scaling,
    seasons,
    train,
    tune,
)
from ptt_jax import mesh as meshes
from ptt_jax.data import Series
from ptt_jax.errors import UserError
from ptt_jax.files import to_path
from ptt_jax.fitted import Fitted, Scratch
from ptt_jax.frames import Table
from ptt_jax.intervals import Unit
from ptt_jax.knobs import KNOBS
from ptt_jax.log import Log
from ptt_jax.seal import read_json

SHORT = 240  # rows below which a history is called short
TYPICAL = 0.25  # quantile of the series' lengths that the rules go by
# Knobs that are arguments of a Forecaster, or nothing to it.
TAKEN = (
    "seed", "lookback", "horizons", "backbone", "output", "levels", "model.patch", "pretrain.also", "tune.mode",
    "tune.quantiles",
)  # fmt: skip


class Wish(NamedTuple):
    """What is asked for, checked: whole numbers, 0 = by rule; knobs in the recipe's stead; '' = a scratch folder."""

    horizon: int
    season: int
    lookback: int
    patch: int
    quantiles: tuple[float, ...]
    seed: int
    knobs: Mapping[str, Any]
    workdir: str
    verbose: bool

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "Wish":
        """Returns the wish of a Forecaster's arguments. Raises UserError for one that is no such thing."""
        numbers = {}
        for name, least in (("horizon", 1), ("season", 0), ("lookback", 0), ("patch", 0), ("seed", 0)):
            try:
                numbers[name] = operator.index(params[name])
            except TypeError:
                numbers[name] = -1
            if numbers[name] < least:
                raise UserError(f"Forecaster({name}={params[name]!r}): accepted: a whole number of at least {least}")
        for name, kind, words in (
            ("name", str, "text"), ("workdir", str | os.PathLike, "a path"), ("id_column", Hashable, "a column's name"),
            ("time_column", Hashable, "a column's name"), ("target_column", Hashable, "a column's name"),
            ("knobs", Mapping | None, "a mapping like {'model.width': 128}"),
        ):  # fmt: skip
            if not isinstance(params[name], kind):
                raise UserError(f"Forecaster({name}={params[name]!r}): accepted: {words}")
        knobs = dict(params["knobs"] or {})
        known = {key: standard for key, standard, _, _ in KNOBS}
        for key in knobs:
            if key not in known:
                raise UserError(f"knobs: config key {key} does not exist; {config.nearest(str(key), list(known))}")
            if key in TAKEN or key.startswith(("data.", "evaluate.", "impute.")):
                raise UserError(
                    f"knobs[{key!r}] is no knob of a Forecaster; accepted: its arguments ({', '.join(numbers)}, "
                    f"quantiles), and knobs of model, pretrain, tune and detect"
                )
        levels = as_quantiles(params["quantiles"])
        return cls(**numbers, quantiles=levels, knobs=knobs, workdir=params["workdir"], verbose=params["verbose"])


def as_quantiles(asked: Any) -> tuple[float, ...]:
    """Returns the levels that prompts are tuned for; None is none. Raises UserError for what is no such thing."""
    rule = next(rule for key, _, rule, _ in KNOBS if key == "tune.quantiles")
    try:
        found = tuple(map(float, () if asked is None else asked))
    except (TypeError, ValueError):
        found = (float("nan"),)
    if not rule.holds(found):
        raise UserError(f"Forecaster(quantiles={asked!r}): accepted: {rule.words}; or None")
    return found


def typical_rows(table: Table, horizon: int) -> int:
    """Returns the length that rules and splits go by: of most series that are long enough to teach, not of the longest;
    that of the longest where none is."""
    able = table.lengths_C[table.lengths_C >= recipe.least_rows(horizon)]
    return int(np.quantile(able, TYPICAL, method="lower") if len(able) else table.lengths_C.max())


def settle(table: Table, wish: Wish, card: dict[str, Any]) -> tuple[ConfigDict, int]:
    """Returns the config for a table, and its season; on the backbone of a card if there is one. Raises UserError for a
    wish that cannot be had; warns of a short history."""
    rows, channels = typical_rows(table, wish.horizon), len(table.names_C)
    season = wish.season or seasons.estimate(table.values_TC, table.freq)
    patch, lookback = wish.patch, wish.lookback
    if card:
        patch = card["architecture"]["patch"]
        lookback = lookback or min(card["lookback"], max(patch, (rows - wish.horizon) // 3 // patch * patch))
    cfg = recipe.recipe(rows, channels, season, wish.horizon, patch, lookback)
    for key, value in wish.knobs.items():
        section, _, knob = key.rpartition(".")
        of = cfg[section] if section else cfg
        try:
            of[knob] = tuple(value) if isinstance(of[knob], tuple) else value
        except TypeError:
            raise UserError(f"knobs[{key!r}] = {value!r} is no {type(of[knob]).__name__}; accepted: one") from None
    if cfg.tune.prompts == "channel":
        raise UserError(
            "knobs['tune.prompts'] = 'channel' has a prompt for each series that was there, and a Forecaster forecasts "
            "others, too; accepted: position, shared or layer"
        )
    cfg.seed, cfg.data.name, cfg.tune.quantiles = wish.seed, "csv", wish.quantiles
    if card:
        idle = ["patch"] * (wish.patch not in (0, patch))
        if idle := idle + [f"knobs[{key!r}]" for key in unlearned(wish.knobs, card)]:
            warnings.warn(
                f"{', '.join(idle)}: of no effect, since the backbone has learned already, in patches of {patch} steps",
                stacklevel=4,
            )
        architecture.adopt(cfg, card)
        cfg.backbone = card["run"]
    config.check(cfg)
    if any(key.startswith("detect.") for key in wish.knobs):
        detect.question(cfg.detect, cfg.model.patch, cfg.lookback)  # not when there is something to detect in
    if rows < SHORT and not card:
        warnings.warn(
            f"{rows} rows are a short history: the model is small, and a backbone of more series may do better "
            f"(Forecaster.tune)", stacklevel=4,
        )  # fmt: skip
    return cfg, season


def unlearned(knobs: Mapping[str, Any], card: dict[str, Any]) -> list[str]:
    """Returns the knobs of pre-training that say otherwise than a backbone was made, as far as its run tells."""
    path = Path(card["run"]) / "config.json"
    known = config.flat(config.from_json(json.dumps(read_json(path)))) if path.exists() else {}
    known |= {f"model.{key}": value for key, value in card["architecture"].items()}
    known["model.linear"] = "linear" in card["architecture"]
    known["model.members"] = card["architecture"].get("members", 1)
    return [k for k, v in knobs.items() if k.startswith(("model.", "pretrain.")) and (k not in known or known[k] != v)]


def learn(table: Table, wish: Wish, card: dict[str, Any], alive: tuple[Scratch, ...], name: str) -> Fitted:
    """Returns what is learned from a table, on the backbone of a card if there is one, whose files are there while
    `alive` is. name: of the column of values in a frame that is read as the table was."""
    cfg, season = settle(table, wish, card)
    cache.offer(cfg.cache_dir)
    kept = recipe.validation_rows(typical_rows(table, wish.horizon), wish.horizon)
    series = as_series(table, kept)
    step = table.freq or table.step
    own = () if wish.workdir else (Scratch(),)
    folder = own[0].folder if own else to_path(wish.workdir, "workdir").absolute()
    problem = problems.prepare(series, meshes.make(cfg.devices), cfg.data.device_bytes)
    train.check(cfg, problem)
    about = {"name": series.name, "fingerprint": series.fingerprint, "freq": step, "splits": series.splits}
    log = Log(folder / "metrics.jsonl", silent=not wish.verbose)
    rundir.check_run(folder, cfg, about)
    with contextlib.nullcontext() if own else lock.hold(folder, log.say):
        rundir.open_run(folder, cfg, about)
        left_out = len(table.names_C) - len(series.names_C)
        few = [
            f"{left_out} of {len(table.names_C)} series have no value before the last {kept} rows, and teach nothing"
        ]
        for note in (*table.notes, *(few if left_out else [])):
            log.say(f"data: {note}")
        log.say(
            f"data: {len(table.names_C)} series of up to {len(table.values_TC)} steps of {step!r}; season {season}, "
            f"patch {cfg.model.patch}, lookback {cfg.lookback}"
        )
        if card:
            checkpoint.refer(folder, card)
        plans = foresight.look(cfg, folder, problem, log, scored=False)
        if not card:
            train.pretrain(cfg, folder, problem, log)
        task = tune.tune(cfg, folder, problem, log, ready=plans.prompts)
    predictor = fitted.predictor(folder, task, cfg)
    log.progress("intervals: back-testing")
    how = quantiles if predictor.levels else calibrate
    known = how.fit(predictor, table, kept, Unit.of(season, wish.horizon, cfg.lookback))
    share = calibrate.beside_season(predictor, table, kept, season) if wish.verbose else float("nan")
    log.progress("")
    if not np.isnan(share):
        told = f"in the last {kept} rows the forecast errs by {share:.2f} of what last season's values again err by"
        log.say(f"{told}{': repeating those does as well' * (share >= 1)}")
    tail = frames.write(table, {name: table.values_TC[-cfg.lookback :]}, after=-min(cfg.lookback, len(table.values_TC)))
    ends = frames.ends(table)
    return Fitted(folder, task, cfg, predictor, known, table.names_C, step, season, tail, ends, (*own, *alive))


def as_series(table: Table, kept: int) -> Series:
    """Returns the table's series that have a value before the last `kept` rows, each in units of its own spread, with
    its splits. Raises UserError where none has one, or none moves."""
    rows = len(table.values_TC)
    begin = rows - kept
    learned_C = (~np.isnan(table.values_TC[:begin])).any(0)
    if not learned_C.any():
        raise UserError(f"no series has a value in its first {begin} rows, which teach; accepted: longer series")
    values_TC = table.values_TC[:, learned_C]
    if (np.nanmax(values_TC, 0) == np.nanmin(values_TC, 0)).all():
        raise UserError("no series moves, each has one value throughout; accepted: at least one that does")
    scaler = scaling.exact(values_TC[:begin], ~np.isnan(values_TC[:begin]))
    names = [name for name, learned in zip(table.names_C, learned_C, strict=True) if learned]
    stamps_T = pd.date_range("2000-01-01", periods=rows, freq="s").as_unit("ns")  # series end at stamps of their own
    splits = {"train": (0, begin), "validation": (begin, rows), "test": (begin, rows)}
    scaled_TC = (values_TC - scaler.mean_C) / scaler.scale_C
    return data.make_series("frame", scaled_TC, stamps_T, names, "s", splits, [])
