"""What the command line does with somebody's own file beside a whole run: `forecast`. A thin layer over `Forecaster`.

    python -m ptt_jax.main forecast --config.data.path=mine.csv --config.horizons=48, --config.output=out.csv
    python -m ptt_jax.main forecast --config.data.path=newer.csv --config.backbone=runs/mine --config.output=out.csv

The first pre-trains on the file and forecasts what follows it; `--workdir=DIR` keeps what was learned, and a run that
was stopped goes on there. The second takes a Forecaster that is there and only forecasts. The file is wide or long
(`unique_id, ds, y`), see `frames.read`.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from ptt_jax import config, intervals
from ptt_jax.config import UserError, write_atomic
from ptt_jax.forecaster import Forecaster
from ptt_jax.frame import find_time_column, parse, read_bytes

# What the file or the Forecaster's own arguments say; every other knob that is set goes to the recipe.
OWN = ("seed", "lookback", "horizons", "backbone", "output", "levels", "model.patch")
ASKED = (
    "backbone",
    "output",
    "levels",
    "data.path",
    "data.columns",
    "data.time_column",
)  # nothing is learned for these


def read(cfg: ConfigDict) -> tuple[pd.DataFrame, str, list[str]]:
    """Returns the file as a frame, the name of its time column, and notes. Raises UserError when it cannot be read."""
    if not cfg.data.path:
        raise UserError("config.data.path is empty; accepted: the path of a .csv or .csv.gz file to forecast")
    path = Path(cfg.data.path).expanduser()
    frame, notes = parse(read_bytes(path), path, ("unique_id",))
    wanted = [name.strip() for name in cfg.data.columns.split(",") if name.strip()]
    time_column = find_time_column(frame, cfg.data.time_column, path)
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}; {config.nearest(missing[0], list(map(str, frame)))}")
    return (frame[[time_column, *wanted]] if wanted else frame).reset_index(drop=True), time_column, notes


def forecast(cfg: ConfigDict, said: set[str], workdir: str) -> Path:
    """Writes what follows the file to `config.output`; returns its path.

    said: the knobs that a flag or a config file sets. Raises UserError before anything is written or learned when the
    file, a knob, or a place to write is not as it must be.
    """
    frame, time_column, notes = read(cfg)
    if not cfg.output:
        raise UserError("config.output is empty; accepted: the path of a .csv file to write")
    output = Path(cfg.output).expanduser()
    if output.is_dir() or output.suffix.lower() != ".csv":
        raise UserError(f"config.output = {cfg.output!r} is no .csv file; accepted: a path like out.csv")
    if not output.absolute().parent.is_dir():
        raise UserError(
            f"config.output = {cfg.output!r}: there is no folder {output.parent}; accepted: one that is there"
        )
    levels = intervals.check_levels(cfg.levels)
    if cfg.backbone and (Path(cfg.backbone).expanduser() / "forecaster.json").exists():
        model = Forecaster.load(cfg.backbone).set_params(time_column=time_column)
        idle = sorted(
            said - {"backbone", "output", "levels", "horizons", "data.path", "data.columns", "data.time_column"}
        )
        if idle or workdir:
            raise UserError(
                f"{f'config.{idle[0]}' if idle else '--workdir'} is for learning, and {cfg.backbone} has learned; "
                f"accepted: data.path, output, levels and horizons, or a backbone without a Forecaster"
            )
        found = model.predict(frame, cfg.horizons[-1] if "horizons" in said else None, levels)
    else:
        if "horizons" not in said:
            raise UserError("config.horizons is not said; accepted: --config.horizons=48, for 48 steps")
        knobs = {key: value for key, value in config.flat(cfg).items() if key in said and key not in OWN}
        model = Forecaster(
            cfg.horizons[-1], freq=cfg.data.freq, time_column=time_column, seed=cfg.seed, workdir=workdir, verbose=True,
            lookback=cfg.lookback if "lookback" in said else 0, patch=cfg.model.patch if "model.patch" in said else 0,
            knobs={key: value for key, value in knobs.items() if not key.startswith(("data.", "evaluate."))},
        )  # fmt: skip
        for note in notes:
            print(f"data: {note}")
        model = model.tune(frame, cfg.backbone) if cfg.backbone else model.fit(frame)
        if workdir:
            model.save(workdir)
        found = model.predict(levels=levels)
    write_atomic(output, found.to_csv(index=False))
    return output


# What can be typed, and what it calls with the config, the knobs that were said, and --workdir or ''.
STAGES: dict[str, Callable[[ConfigDict, set[str], str], Path]] = {"forecast": forecast}
