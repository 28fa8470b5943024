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

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from ptt_jax import answer, columns, config, fitting, frames, intervals, parquet, prospect, recipe, seasons
from ptt_jax import export as exports
from ptt_jax import impute as imputing
from ptt_jax.errors import UserError
from ptt_jax.files import to_path, write_atomic
from ptt_jax.forecaster import Forecaster
from ptt_jax.frame import check_numbers, find_time_column, is_filler, nearest, parse, read_bytes, to_numbers

# What the file or the Forecaster's own arguments say; every other knob that is set goes to the recipe.
OWN = ("seed", "lookback", "horizons", "backbone", "output", "levels", "model.patch", "tune.quantiles")
# Nothing is learned for these; a forecast has two more.
ASKED = ("backbone", "output", "data.path", "data.columns", "data.time_column")
FORECAST = ("horizons", "levels")
KINDS = (".csv", ".parquet")  # that an answer can be written as; a forecast is a page, too


class File(NamedTuple):
    """What was read from where, and where the answer goes."""

    path: Path
    frame: pd.DataFrame
    cells: pd.DataFrame | None  # of the same shape: text, as a csv has it; None of a parquet file
    time_column: str
    notes: list[str]
    output: Path


def read(cfg: ConfigDict, kinds: tuple[str, ...] = KINDS) -> File:
    """Returns the file, and where to write one of some kinds. Raises UserError when it cannot be read, or that cannot
    be written."""
    if not cfg.data.path:
        raise UserError("config.data.path is empty; accepted: the path of a .csv, .csv.gz or .parquet file")
    path, output = to_path(cfg.data.path, "config.data.path"), place(cfg.output, kinds)
    notes: list[str] = []
    wanted = [name.strip() for name in cfg.data.columns.split(",") if name.strip()]
    if parquet.is_parquet(path):
        frame, cells = parquet.read(path), None
        asked = cfg.data.time_column or columns.DEFAULTS[1]
        plain, index = columns.flat(frame, (columns.DEFAULTS[0], asked))
        time_column = str(columns.find_time(plain, list(index), asked))
    else:
        raw = read_bytes(path)
        frame, notes = parse(raw, path)
        cells = parse(raw, path, as_text=True)[0].loc[frame.index].reset_index(drop=True)
        if columns.DEFAULTS[0] in frame:
            ids = cells[columns.DEFAULTS[0]].to_numpy()  # NA and 007 are ids
            frame[columns.DEFAULTS[0]] = pd.Series(ids, frame.index).replace("", np.nan)
        time_column = find_time_column(frame, cfg.data.time_column, path)
        for name in (name for name in wanted or frame if name in frame and name != time_column):
            if not wanted and is_filler(name, to_numbers(frame[name])[0]):
                frame[name] = pd.Categorical(cells[name])  # which is no series, and is written as it stands
            elif columns.is_number(frame[name]):
                check_numbers(frame[name], path)  # here, where rows are counted as in the file
        if not pd.api.types.is_numeric_dtype(frame[time_column]):
            columns.read_time(frame[time_column], str(path))
        frame = frame.reset_index(drop=True)
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}{nearest(missing[0], list(map(str, frame)))}")
    if wanted:
        frame = frame[[*([time_column] if time_column in frame else []), *wanted]]
    return File(path, frame, cells, time_column, notes, output)


def series(file: File, freq: str | int, who: str = "") -> frames.Table:
    """Returns the file's series. Raises UserError, which names the file, when they cannot be read, or are not on the
    step that `who` learned."""
    try:
        table = frames.read(file.frame, time_column=file.time_column, freq=freq)
        if who:
            answer.check_step(table, freq, who)
    except UserError as e:
        raise UserError(f"{file.path}, rows counted from 0: {e}") from None
    return table


def place(output: str, kinds: tuple[str, ...]) -> Path:
    """Returns the path to write to. Raises UserError when nothing can be written there, or it is of another kind."""
    words = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    if not output:
        raise UserError(f"config.output is empty; accepted: the path of a {words} file to write")
    path = to_path(output, "config.output")
    if path.is_dir() or path.suffix.lower() not in kinds:
        raise UserError(f"config.output = {output!r} is no {words} file; accepted: a path like out.csv")
    if parquet.is_parquet(path):
        parquet.check(path)
    if not path.absolute().parent.is_dir():
        raise UserError(f"config.output = {output!r}: there is no folder {path.parent}; accepted: one that is there")
    try:  # what a folder's permissions say is not all, and root may everything
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as e:
        raise UserError(
            f"config.output = {output!r}: {path.parent} cannot be written ({e.strerror}); accepted: a folder that can"
        ) from None
    return path


def forecast(cfg: ConfigDict, said: set[str], workdir: str) -> Path:
    """Writes what follows the file to `config.output`; returns its path.

    said: the knobs that a flag or a config file sets. Raises UserError before anything is written or learned when the
    file, a knob, or a place to write is not as it must be.
    """
    file, levels = read(cfg, (*KINDS, ".html")), intervals.check_levels(cfg.levels)
    if file.output.resolve() == Path(cfg.data.path).expanduser().resolve():
        raise UserError(f"config.output = {cfg.output!r} is the file to forecast; accepted: another path")
    horizon = cfg.horizons[-1] if "horizons" in said else None
    model = kept(cfg, said, workdir, file, FORECAST)
    if model:
        found = model.predict(file.frame, horizon, levels)
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
    return write(found, file)


def impute(cfg: ConfigDict, said: set[str], workdir: str) -> Path:
    """Writes the file with its gaps closed, every other cell as it stands there; as `forecast` does otherwise."""
    file = read(cfg)
    if not cfg.backbone:
        imputing.check(cfg.model)  # not after minutes of learning
    found = at_hand(cfg, said, workdir, file).impute(file.frame)
    before, after = (int(of.isna().to_numpy().sum()) for of in (file.frame, found))
    print(f"impute: {before - after} of {before} missing values closed")
    return write(as_written(found, file), file)


def detect(cfg: ConfigDict, said: set[str], workdir: str) -> Path:
    """Writes the file with a score for each value behind its columns; as `forecast` does otherwise."""
    file = read(cfg)
    found = at_hand(cfg, said, workdir, file, ("detect.groups",)).detect(file.frame)
    return write(as_written(found, file), file)


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
    table = series(file, cfg.data.freq)
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
    for note in (*file.notes, *series(file, model.fitted.freq, cfg.backbone).notes):
        print(f"data: {note}")
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
    series(file, cfg.data.freq)
    for note in file.notes:
        print(f"data: {note}")
    model = model.tune(file.frame, cfg.backbone) if cfg.backbone else model.fit(file.frame)
    if workdir:
        model.save(workdir)
    return model


def write(found: pd.DataFrame, file: File) -> Path:
    """Writes the answer; returns its path. A csv has a column for each level of an index that says something."""
    if parquet.is_parquet(file.output):
        parquet.write(file.output, found)
    else:
        says = found.index.nlevels > 1 or found.index.name is not None or not pd.api.types.is_integer_dtype(found.index)
        write_atomic(file.output, found.to_csv(index=says))
    return file.output


def as_written(found: pd.DataFrame, file: File) -> pd.DataFrame:
    """Returns a frame that has the file's rows with its cells as the file has them, where they are the same: no digit,
    zero or stamp is written otherwise than it was read. Parquet knows stamps, and gets those that a csv's text says."""
    cells, time = file.cells, file.time_column
    if cells is None:
        return found
    if parquet.is_parquet(file.output):
        return found.assign(**{time: columns.read_time(found[time], str(file.path))[0]})
    out = found.astype(object)
    for name in file.frame:
        text, was = cells[name], file.frame[name]
        same = was.notna()
        if pd.api.types.is_numeric_dtype(was):  # commas as decimal points, say, are not what is written
            number = pd.to_numeric(text, errors="coerce")
            same &= np.isclose(number.to_numpy("float64"), was.to_numpy("float64"), rtol=1e-12, atol=0)
        out[name] = out[name].mask(same, text)
    return out


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
