"""`Forecaster`: a DataFrame in, forecasts out, in the units and the kind of frame that came.

    f = Forecaster(horizon=48).fit(df)          # pre-trains a backbone on the frame and tunes a prompt to forecast 48
    f.predict(levels=(80, 95))                  # what follows the frame, with intervals
    f.save("load"); Forecaster.load("load").predict(newer)
    g = Forecaster(horizon=168).tune(other, backbone=f)        # a prompt of a few kilobytes, the backbone untouched

A frame is wide (a time column, a column of numbers for each series) or long (`unique_id, ds, y`); see `frames.read`.
Parameters are those of scikit-learn's habits: `get_params`, `set_params` and `sklearn.base.clone` work.
"""

import inspect
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from ptt_jax import (
    cache,
    checkpoint,
    config,
    data,
    detect,
    fitted,
    frames,
    impute,
    intervals,
    predict,
    problems,
    recipe,
    seasons,
    train,
    tune,
)  # fmt: skip
from ptt_jax import mesh as meshes
from ptt_jax.clock import counted
from ptt_jax.config import UserError
from ptt_jax.data import Series
from ptt_jax.fitted import Fitted, Scratch
from ptt_jax.frames import Table
from ptt_jax.log import Log

SHORT = 240  # rows below which a history is called short


class Forecaster:
    """Pre-trains, tunes and forecasts.

    Args:
      horizon: steps to forecast; a prompt for it also serves every shorter one.
      freq: pandas offset alias of the step, or a whole number; '' = the commonest difference of the frame's stamps.
      season, lookback, patch: in steps; 0 = by rule, from the frame (`seasons.estimate`, `recipe.recipe`).
      seed: root of every random number.
      knobs: {'model.width': 128, ...}, any knob of config.py in the place of what the rules say.
      id_column, time_column, target_column: of a long frame.
      name: of the forecast's column.
      workdir: where checkpoints lie; a fit that was stopped goes on there. '' = a temporary folder.
      verbose: whether progress is printed.
    """

    def __init__(
        self,
        horizon: int,
        *,
        freq: str | int = "",
        season: int = 0,
        lookback: int = 0,
        patch: int = 0,
        seed: int = 0,
        knobs: Mapping[str, Any] | None = None,
        id_column: str = "unique_id",
        time_column: str = "ds",
        target_column: str = "y",
        name: str = "ptt",
        workdir: str = "",
        verbose: bool = False,
    ) -> None:
        self.horizon, self.freq, self.season, self.lookback, self.patch = horizon, freq, season, lookback, patch
        self.seed, self.knobs, self.workdir, self.verbose, self.name = seed, knobs, workdir, verbose, name
        self.id_column, self.time_column, self.target_column = id_column, time_column, target_column

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the constructor's arguments, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def set_params(self, **params: Any) -> Self:
        """Changes arguments; what was fitted stays until the next `fit`. Raises UserError for an unknown one."""
        for name, value in params.items():
            if name not in PARAMETERS:
                raise UserError(f"Forecaster has no parameter {name!r}; {config.nearest(name, PARAMETERS)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        changed = {k: v for k, v in self.get_params().items() if k == "horizon" or v != DEFAULTS[k]}
        return f"Forecaster({', '.join(f'{k}={v!r}' for k, v in changed.items())})"

    @property
    def fitted(self) -> Fitted:
        """What `fit`, `tune` or `load` left. Raises UserError before."""
        found: Fitted | None = getattr(self, "_fitted", None)
        if found is None:
            raise UserError(
                f"{self!r} has not learned yet; accepted: fit(df), tune(df, backbone) or Forecaster.load first"
            )
        return found

    def read(self, df: pd.DataFrame, freq: str | int = "") -> Table:
        """Returns the frame's series on one step."""
        columns = {"id_column": self.id_column, "time_column": self.time_column, "target_column": self.target_column}
        return frames.read(df, **columns, freq=freq or self.freq)

    def say(self, *notes: str) -> None:
        for note in notes if self.verbose else ():
            print(note, flush=True)

    def fit(self, df: pd.DataFrame) -> Self:
        """Pre-trains a backbone on the frame's series and tunes a prompt to forecast `horizon` steps.

        The last fifth of the rows chooses and calibrates (`recipe.validation_rows`), the rest teaches. Raises UserError
        when the frame cannot be read or is too short; a short one that will do gets a smaller model, and a warning.
        """
        return self.learn(df, {}, ())

    def tune(self, df: pd.DataFrame, backbone: "str | Path | Forecaster") -> Self:
        """Tunes a prompt for the frame's series on a backbone that is there: a Forecaster, or the folder of a run or of
        `save`. It is only read. Raises UserError as `fit` does, or when the backbone does not fit."""
        other = backbone.fitted if isinstance(backbone, Forecaster) else None
        folder = other.folder if other else Path(str(backbone)).expanduser()
        return self.learn(df, checkpoint.find_backbone(folder), other.alive if other else ())

    def learn(self, df: pd.DataFrame, card: dict[str, Any], alive: tuple[Scratch, ...]) -> Self:
        """Fits, on the backbone of a card if there is one, whose files are there while `alive` is."""
        table = self.read(df)
        rows, channels = table.values_TC.shape
        cfg, season = self.settle(table, card)
        cache.use(cfg.cache_dir)
        series = as_series(table, cfg)
        step = table.freq or table.step
        self.say(
            *table.notes,
            f"{channels} series of {rows} steps of {step!r}: season {season}, patch {cfg.model.patch}, lookback "
            f"{cfg.lookback}, {'another' if card else 'a'} backbone of width {cfg.model.width}",
        )
        own = () if self.workdir else (Scratch(),)
        folder = own[0].folder if own else Path(self.workdir).expanduser()
        problem = problems.prepare(series, meshes.make(cfg.devices), cfg.data.device_bytes)
        train.check(cfg, problem)
        about = {"name": series.name, "fingerprint": series.fingerprint, "freq": series.freq, "splits": series.splits}
        checkpoint.open_run(folder, cfg, about)
        log = Log(folder / "metrics.jsonl", silent=not self.verbose)
        if card:
            checkpoint.refer(folder, card)
        else:
            train.pretrain(cfg, folder, problem, log)
        task = tune.tune(cfg, folder, problem, log)
        predictor = fitted.predictor(folder, task, cfg)
        kept = recipe.validation_rows(rows, self.horizon)
        known = intervals.fit(*predict.back_test(predictor, table, kept, self.horizon))
        tail = frames.write(table, {self.target(table): table.values_TC[-cfg.lookback :]}, after=-cfg.lookback)
        self._fitted = Fitted(folder, task, cfg, predictor, known, table.names_C, step, season, tail, (*own, *alive))
        return self

    def target(self, table: Table) -> str:
        """Returns the name of a column of values, by which a frame of the same kind is read again."""
        return self.name if table.layout.wide else self.target_column

    def settle(self, table: Table, card: dict[str, Any]) -> tuple[ConfigDict, int]:
        """Returns the config for a table, and its season."""
        rows, channels = table.values_TC.shape
        if type(self.horizon) is not int or self.horizon < 1:
            raise UserError(f"Forecaster(horizon={self.horizon!r}): accepted: a whole number of at least 1")
        season = self.season or seasons.estimate(table.values_TC, table.freq)
        patch, lookback = self.patch, self.lookback
        if card:
            patch = card["architecture"]["patch"]
            lookback = lookback or min(card["lookback"], max(patch, (rows - self.horizon) // 3 // patch * patch))
        cfg = recipe.recipe(rows, channels, season, self.horizon, patch, lookback)
        known = {key: standard for key, standard, _, _ in config.KNOBS}
        for key, value in dict(self.knobs or {}).items():
            if key not in known:
                raise UserError(f"config key {key} does not exist; {config.nearest(key, list(known))}")
            section, _, knob = key.rpartition(".")
            try:
                (cfg[section] if section else cfg)[knob] = value
            except TypeError:
                raise UserError(f"knobs[{key!r}] = {value!r} is no {type(known[key]).__name__}") from None
        cfg.seed, cfg.data.name = self.seed, "csv"
        if card:
            train.adopt(cfg, card)
            cfg.backbone = card["run"]
        config.check(cfg)
        if rows < SHORT and not card:
            warnings.warn(
                f"{rows} rows are a short history: the model is small, and a backbone of more series may do better "
                f"(Forecaster.tune)", stacklevel=4,
            )  # fmt: skip
        return cfg, season

    def predict(
        self, df: pd.DataFrame | None = None, horizon: int | None = None, levels: Sequence[float] = (80, 95)
    ) -> pd.DataFrame:
        """Returns the steps that follow a frame: a column `name`, and `name-lo-80`, `name-hi-80` for each level.

        df: any frame of the same step, series that were not there when it learned too; None = the one it learned from.
        horizon: None = the one it was tuned for, or fewer steps. Wide frames come back wide (`frames.write`).
        Raises UserError for a longer horizon, a level that is no percentage, or a frame that cannot be read.
        """
        of, horizon = self.fitted, self.check_horizon(horizon)
        levels = tuple(levels)
        intervals.check_levels(levels)
        table = self.read(of.tail if df is None else df, of.freq)
        y_WHC, unit_WC = self.forecast(table, [0], horizon)
        return frames.write(table, {n: y[0] for n, y in self.columns(table, y_WHC, unit_WC, levels).items()})

    def check_horizon(self, horizon: int | None) -> int:
        most = self.fitted.horizon
        if horizon is None:
            return most
        if type(horizon) is not int or not 1 <= horizon <= most:
            raise UserError(
                f"predict(horizon={horizon!r}): the prompt was tuned for {most} steps; accepted: 1 to {most}, or "
                f"Forecaster(horizon={horizon}).tune(df, backbone=this) first"
            )
        return horizon

    def forecast(self, table: Table, after: Sequence[int], horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns y_WHC of windows whose history ends `after` steps from the table's end, and unit_WC of intervals."""
        y_WHC, spread_WC = predict.foretell(self.fitted.predictor, table.values_TC, after, horizon)
        empty_C = np.isnan(spread_WC[-1])
        if 0 in after and empty_C.any():
            name = table.names_C[int(empty_C.argmax())]
            raise UserError(
                f"series {name!r} has no value in its last {self.fitted.cfg.lookback} steps, which a forecast is made "
                f"from; accepted: at least one value there, or a frame without it"
            )
        of = self.fitted.intervals
        known = dict(zip(self.fitted.names_C, of.unit_C, strict=True))
        own_C = np.array([known.get(name, np.nan) for name in table.names_C])
        return y_WHC, np.where(np.isnan(own_C), of.relative * spread_WC, own_C)

    def columns(
        self, table: Table, y_WHC: np.ndarray, unit_WC: np.ndarray, levels: tuple[float, ...]
    ) -> dict[str, np.ndarray]:
        """Returns {column: y_WHC} of a forecast and its intervals."""
        out = {self.name: y_WHC}
        for level in levels:
            both = [self.fitted.intervals.bounds(y, unit, level) for y, unit in zip(y_WHC, unit_WC, strict=True)]
            low, high = (np.stack(side) for side in zip(*both, strict=True))
            out |= {f"{self.name}-lo-{level:g}": low, f"{self.name}-hi-{level:g}": high}
        return out

    def cross_validation(
        self, df: pd.DataFrame, n_windows: int = 1, step_size: int | None = None,
        levels: Sequence[float] = (80, 95), refit: bool = True,
    ) -> pd.DataFrame:  # fmt: skip
        """Returns forecasts of the frame's last windows beside what came: time, `cutoff`, the forecast and `y`.

        Windows of `horizon` steps lie `step_size` apart (None: end to end), the last one at the frame's end. refit:
        whether a copy learns first, from the rows before the first window alone; otherwise this Forecaster forecasts as
        it is, and rows that it learned from are no test of it. Raises UserError when the frame is too short.
        """
        step_size = self.horizon if step_size is None else step_size
        for word, value in (("n_windows", n_windows), ("step_size", step_size)):
            if type(value) is not int or value < 1:
                raise UserError(f"cross_validation({word}={value!r}): accepted: a whole number of at least 1")
        levels = tuple(levels)
        intervals.check_levels(levels)
        table = self.read(df) if refit else self.read(df, self.fitted.freq)
        after = [-(self.horizon + i * step_size) for i in reversed(range(n_windows))]
        if len(table.values_TC) <= -after[0]:
            raise UserError(
                f"{counted(n_windows, 'window')} of {self.horizon} steps begin before the frame, which has "
                f"{counted(len(table.values_TC), 'row')}; accepted: fewer windows, or a longer frame"
            )
        model = self
        if refit:
            model = Forecaster(**self.get_params()).set_params(workdir="")
            model.fit(
                frames.write(table, {self.target(table): table.values_TC[: after[0]]}, after=-len(table.values_TC))
            )
        y_WHC, unit_WC = model.forecast(table, after, self.horizon)
        columns = model.columns(table, y_WHC, unit_WC, levels)
        return frames.write_windows(table, columns | {"y": frames.truth(table, self.horizon, after)}, after)

    def impute(self, df: pd.DataFrame) -> pd.DataFrame:
        """Returns the frame with its missing values reconstructed by the frozen backbone, everything else as it was.

        Rows that the frame lacks are not put in (`frames.fill`). A series without any value keeps its gaps.
        """
        of, table = self.fitted, self.read(df, self.fitted.freq)
        impute.check(of.predictor.model)
        return frames.fill(table, df, of.predictor.close(table.values_TC, of.season))

    def detect(self, df: pd.DataFrame) -> pd.DataFrame:
        """Returns the frame with a column `score` (wide: one for each series, 'load-score'): how wrong the backbone's
        reconstruction of a step is while its patch is hidden, squared, in units of the spread of what is visible.

        A large score is a step that its surroundings do not explain; missing steps have 0 (`detect.py`).
        """
        of, table = self.fitted, self.read(df, self.fitted.freq)
        asked = detect.question(of.cfg.detect, of.predictor.model.patch, of.cfg.lookback)
        here = detect.Detector(of.predictor.model, of.predictor.backbone, asked, of.cfg.detect.units, meshes.make(1))
        observed_TC = ~np.isnan(table.values_TC)
        scaler = data.exact(table.values_TC, observed_TC)
        scaled_TC = np.where(observed_TC, (table.values_TC - scaler.mean_C) / scaler.scale_C, 0).astype(np.float32)
        return frames.attach(table, df, {"score": here.errors(scaled_TC, observed_TC, (None,))[0]})

    def embed(self, df: pd.DataFrame) -> pd.DataFrame:
        """Returns a vector for each series, of its last `lookback` steps: a row for each, a column for each of D."""
        table = self.read(df, self.fitted.freq)
        e_CD = self.fitted.predictor.embed(table.values_TC[-self.fitted.cfg.lookback :].T)
        return pd.DataFrame(e_CD, index=pd.Index(table.names_C, name=self.id_column))

    def save(self, folder: str | Path) -> Path:
        """Writes what was fitted, so that `load` needs nothing else (`fitted.py` says what); returns the folder.

        Raises UserError when the folder holds something else, or cannot be written; what was there is then as it was.
        """
        of, target = self.fitted, Path(folder).expanduser()
        ours = (target / "forecaster.json").exists() or (target.is_dir() and not any(target.iterdir()))
        if target.exists() and not ours:
            raise UserError(f"save({str(folder)!r}): something else is there; accepted: a new folder, or a saved one")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
                whole = Path(temporary) / "whole"
                fitted.write(of, whole, {**self.get_params(), "workdir": ""})
                if target.exists():
                    target.rename(Path(temporary) / "former")
                whole.rename(target)
        except OSError as e:
            raise UserError(f"save({str(folder)!r}): {e.strerror}; accepted: a folder that can be written") from None
        return target

    @classmethod
    def load(cls, folder: str | Path) -> "Forecaster":
        """Returns what `save` wrote. Raises UserError when it is not there, not whole, or of another version."""
        cache.use(config.default().cache_dir)
        of, params = fitted.read(Path(folder).expanduser())
        self = cls(**params)
        self._fitted = of
        return self


PARAMETERS = [name for name in inspect.signature(Forecaster.__init__).parameters if name != "self"]
DEFAULTS = {name: p.default for name, p in inspect.signature(Forecaster.__init__).parameters.items()}


def as_series(table: Table, cfg: ConfigDict) -> Series:
    """Returns the table's series that have a value to learn from, each in units of its own spread, with its splits."""
    rows = len(table.values_TC)
    begin = rows - recipe.validation_rows(rows, cfg.horizons[-1])
    learned_C = (~np.isnan(table.values_TC[:begin])).any(0)
    if not learned_C.any():
        raise UserError(f"no series has a value in its first {begin} rows, which teach; accepted: longer series")
    values_TC = table.values_TC[:, learned_C]
    scaler = data.exact(values_TC[:begin], ~np.isnan(values_TC[:begin]))
    names = [name for name, learned in zip(table.names_C, learned_C, strict=True) if learned]
    stamps_T = pd.date_range("2000-01-01", periods=rows, freq="h").as_unit("ns")  # series end at stamps of their own
    splits = {"train": (0, begin), "validation": (begin, rows), "test": (begin, rows)}
    scaled_TC = (values_TC - scaler.mean_C) / scaler.scale_C
    return data.make_series("frame", scaled_TC, stamps_T, names, table.freq or "h", splits, [])
