"""What the command line does with somebody's own file beside a whole run: `forecast`. A thin layer over `Forecaster`.

    python -m ptt_jax.main forecast --config.data.path=mine.csv --config.horizons=48, --config.output=out.csv
    python -m ptt_jax.main forecast --config.data.path=newer.csv --config.backbone=runs/mine --config.output=out.csv

The first pre-trains on the file and forecasts what follows it, and `--workdir=DIR` keeps what was learned; the second
takes a Forecaster that is there and only forecasts. The file is wide or long (`unique_id, ds, y`), see `frames.read`.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from ptt_jax import config
from ptt_jax.config import UserError, write_atomic
from ptt_jax.forecaster import Forecaster
from ptt_jax.frame import find_time_column, parse, read_bytes

# What the file, the frame or the Forecaster's own arguments say; every other changed knob goes to the recipe.
OWN = ("seed", "lookback", "horizons", "backbone", "output", "levels", "model.patch", "data.name", "data.path",
       "data.time_column", "data.freq")  # fmt: skip
NAMES = ("forecast",)


def read(cfg: ConfigDict) -> tuple[pd.DataFrame, str, list[str]]:
    """Returns the file as a frame, the name of its time column, and notes. Raises UserError when it cannot be read."""
    if not cfg.data.path:
        raise UserError("config.data.path is empty; accepted: the path of a .csv or .csv.gz file to forecast")
    path = Path(cfg.data.path).expanduser()
    frame, notes = parse(read_bytes(path), path)
    wanted = [name.strip() for name in cfg.data.columns.split(",") if name.strip()]
    time_column = find_time_column(frame, cfg.data.time_column, path)
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}; {config.nearest(missing[0], list(map(str, frame)))}")
    return (frame[[time_column, *wanted]] if wanted else frame).reset_index(drop=True), time_column, notes


def changed(cfg: ConfigDict) -> dict[str, Any]:
    """Returns the knobs that a config file or a flag sets, for the recipe."""
    standard = {key: value for key, value, _, _ in config.KNOBS}
    return {k: v for k, v in config.flat(cfg).items() if v != standard[k] and k not in (*OWN, "data.columns")}


def forecast(cfg: ConfigDict, workdir: str) -> Path:
    """Writes what follows the file to `config.output`; returns its path. Raises UserError before anything is written
    when the file, a knob or a Forecaster that is named cannot be used."""
    frame, time_column, notes = read(cfg)
    if not cfg.output:
        raise UserError("config.output is empty; accepted: the path of a .csv file to write")
    output = Path(cfg.output).expanduser()
    if output.is_dir() or output.suffix.lower() != ".csv":
        raise UserError(f"config.output = {cfg.output!r} is no .csv file; accepted: a path like out.csv")
    standard = config.default()
    asked = cfg.horizons != standard.horizons
    if cfg.backbone and (Path(cfg.backbone).expanduser() / "forecaster.json").exists():
        model = Forecaster.load(cfg.backbone).set_params(time_column=time_column)
        found = model.predict(frame, cfg.horizons[-1] if asked else None, cfg.levels)
    else:
        lookback, patch = (0 if chosen == usual else chosen for chosen, usual in (
            (cfg.lookback, standard.lookback), (cfg.model.patch, standard.model.patch),
        ))  # fmt: skip
        model = Forecaster(
            cfg.horizons[-1], freq=cfg.data.freq, time_column=time_column, seed=cfg.seed, knobs=changed(cfg),
            lookback=lookback, patch=patch, verbose=True,
        )  # fmt: skip
        for note in notes:
            print(f"data: {note}")
        model = model.tune(frame, cfg.backbone) if cfg.backbone else model.fit(frame)
        if workdir:
            model.save(workdir)
        found = model.predict(levels=cfg.levels)
    write_atomic(output, found.to_csv(index=False))
    return output
