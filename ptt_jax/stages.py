"""What the command line does with somebody's own file beside a whole run. Thin layers over `Forecaster`.

    python -m ptt_jax.main forecast --config.data.path=mine.csv --config.horizons=48, --config.output=out.csv
    python -m ptt_jax.main forecast --config.data.path=newer.csv --config.backbone=runs/mine --config.output=out.csv
    python -m ptt_jax.main impute --config.data.path=mine.csv --config.output=closed.csv
    python -m ptt_jax.main detect --config.data.path=mine.csv --config.output=scores.csv
    python -m ptt_jax.main export --config.backbone=kept --config.output=model.stablehlo

The first pre-trains on the file and forecasts what follows it; `--workdir=DIR` keeps what was learned, and a run that
was stopped goes on there. The second takes a Forecaster that is there and only forecasts. `impute` and `detect` do
either, too, and write the file's own rows: its gaps closed, or scores behind its columns. The file is wide or long
(`unique_id, ds, y`), see `frames.read`. A forecast that is written as .html is a page to look at (`prospect.py`).
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from ptt_jax import config, fitting, frames, intervals, prospect, recipe, seasons, userfile
from ptt_jax import export as exports
from ptt_jax import impute as imputing
from ptt_jax.errors import UserError
from ptt_jax.files import to_path, write_atomic
from ptt_jax.forecaster import Forecaster
from ptt_jax.log import tell
from ptt_jax.userfile import KINDS, File

# What the file or the Forecaster's own arguments say; every other knob that is set goes to the recipe.
OWN = ("seed", "lookback", "horizons", "backbone", "output", "levels", "model.patch", "tune.quantiles")
# Nothing is learned for these; a forecast has two more.
ASKED = ("backbone", "output", "data.path", "data.columns", "data.time_column")
FORECAST = ("horizons", "levels")


def forecast(cfg: ConfigDict, said: set[str], workdir: str) -> Path:
    """Writes what follows the file to `config.output`; returns its path.

    said: the knobs that a flag or a config file sets. Raises UserError before anything is written or learned when the
    file, a knob, or a place to write is not as it must be.
    """
    file, levels = userfile.read(cfg, (*KINDS, ".html")), intervals.check_levels(cfg.levels)
    if file.output.resolve() == Path(cfg.data.path).expanduser().resolve():
        raise UserError(f"config.output = {cfg.output!r} is the file to forecast; accepted: another path")
    horizon = cfg.horizons[-1] if "horizons" in said else None
    model = kept(cfg, said, workdir, file, FORECAST)
    if model:
        found = model.predict(file.frame, horizon, levels)
        if levels and (factor := model.drift(file.frame)) == factor:  # NaN where nothing came
            tell(f"forecast: intervals {factor:.2f} times as wide as when it learned, by what came since")
    elif not horizon:
        raise UserError("config.horizons is not said; accepted: --config.horizons=48, for 48 steps")
    else:
        model = learn(cfg, said, workdir, file, horizon)
        found = model.predict(levels=levels)
    if file.output.suffix.lower() == ".html":
        past = frames.read(file.frame, time_column=file.time_column, freq=model.fitted.freq)
        title = f"Forecast of {Path(cfg.data.path).name}"
        write_atomic(file.output, prospect.page(title, past, found, model.name, levels))
        return file.output
    return userfile.write(found, file)


def impute(cfg: ConfigDict, said: set[str], workdir: str) -> Path:
    """Writes the file with its gaps closed, every other cell as it stands there; as `forecast` does otherwise."""
    file = userfile.read(cfg)
    if not cfg.backbone:
        imputing.check(cfg.model)  # not after minutes of learning
    found = at_hand(cfg, said, workdir, file).impute(file.frame)
    before, after = (int(of.isna().to_numpy().sum()) for of in (file.frame, found))
    tell(f"impute: {before - after} of {before} missing values closed")
    return userfile.write(userfile.as_written(found, file), file)


def detect(cfg: ConfigDict, said: set[str], workdir: str) -> Path:
    """Writes the file with a score for each value behind its columns; as `forecast` does otherwise."""
    file = userfile.read(cfg)
    found = at_hand(cfg, said, workdir, file, ("detect.groups",)).detect(file.frame)
    return userfile.write(userfile.as_written(found, file), file)


def at_hand(cfg: ConfigDict, said: set[str], workdir: str, file: File, asked: tuple[str, ...] = ()) -> Forecaster:
    """Returns a Forecaster for what needs no horizon: the kept one, or one that learns from the file, for a horizon by
    rule where none is said. asked: knobs that count as said when it learns. Raises UserError as `forecast` does."""
    if "levels" in said:
        raise UserError("config.levels is for intervals, and this stage makes none; accepted: no levels")
    model = kept(cfg, said, workdir, file, ())
    if model:
        return model
    said = {*said, *asked}
    if "horizons" in said:
        return learn(cfg, said, workdir, file, cfg.horizons[-1])
    table = userfile.series(file, cfg.data.freq)
    season = seasons.estimate(table.values_TC, table.freq)
    return learn(cfg, said, workdir, file, recipe.usual_horizon(fitting.typical_rows(table, 1), season))


def kept(cfg: ConfigDict, said: set[str], workdir: str, file: File, more: tuple[str, ...]) -> Forecaster | None:
    """Returns the Forecaster that `config.backbone` holds; None where it holds none. Raises UserError for a knob that
    is of learning, beside ASKED and `more`."""
    if not cfg.backbone or not (to_path(cfg.backbone, "config.backbone") / "forecaster.json").exists():
        return None
    idle = sorted(said - {*ASKED, *more})
    if idle or workdir:
        raise UserError(
            f"{f'config.{idle[0]}' if idle else '--workdir'} is for learning, and {cfg.backbone} has learned; "
            f"accepted: {', '.join((*ASKED, *more))}, or a backbone without a Forecaster"
        )
    model = Forecaster.load(cfg.backbone).set_params(time_column=file.time_column)
    for note in (*file.notes, *userfile.series(file, model.fitted.freq, cfg.backbone).notes):
        tell(f"data: {note}")
    return model


def learn(cfg: ConfigDict, said: set[str], workdir: str, file: File, horizon: int) -> Forecaster:
    """Returns a Forecaster that learned from the file, on `config.backbone` if there is one; saved in `workdir`, if
    that is said."""
    knobs = {key: value for key, value in config.flat(cfg).items() if key in said and key not in OWN}
    model = Forecaster(
        horizon, freq=cfg.data.freq, time_column=file.time_column, seed=cfg.seed, workdir=workdir, verbose=True,
        lookback=cfg.lookback if "lookback" in said else 0, patch=cfg.model.patch if "model.patch" in said else 0,
        quantiles=cfg.tune.quantiles or None,
        knobs={key: value for key, value in knobs.items() if not key.startswith(("data.", "evaluate."))},
    )  # fmt: skip
    userfile.series(file, cfg.data.freq)
    for note in file.notes:
        tell(f"data: {note}")
    model = model.tune(file.frame, cfg.backbone) if cfg.backbone else model.fit(file.frame)
    if workdir:
        model.save(workdir)
    return model


def export(cfg: ConfigDict, said: set[str], workdir: str) -> Path:
    """Writes the forecast of the Forecaster, or of the run, in `config.backbone` as a program (`export.py`).

    Of a run it is that of its longest horizon, or of the one that is said. Raises UserError before anything is written.
    """
    if not cfg.backbone or not cfg.output:
        empty = "output" if cfg.backbone else "backbone"
        raise UserError(
            f"config.{empty} is empty; accepted: --config.backbone=DIR, the folder of a Forecaster or of a run, and "
            f"--config.output=model.stablehlo"
        )
    folder = to_path(cfg.backbone, "config.backbone")
    whole = (folder / "forecaster.json").exists()
    idle = sorted(said - {"backbone", "output", *(() if whole else ("horizons",))})
    if idle or workdir:
        raise UserError(
            f"{f'config.{idle[0]}' if idle else '--workdir'} changes nothing of what {folder} learned; accepted: "
            f"backbone and output, and horizons where that is a run"
        )
    if whole:
        return Forecaster.load(folder).export(cfg.output)
    return exports.write(cfg.output, *exports.of_run(folder, cfg.horizons[-1] if "horizons" in said else 0))


# What can be typed, and what it calls with the config, the knobs that were said, and --workdir or ''.
STAGES: dict[str, Callable[[ConfigDict, set[str], str], Path]] = {
    "forecast": forecast,
    "impute": impute,
    "detect": detect,
    "export": export,
}
