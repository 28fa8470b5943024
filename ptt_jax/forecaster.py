"""`Forecaster`: a DataFrame in, forecasts out, in the units and the kind of frame that came.

    f = Forecaster(horizon=48).fit(df)          # pre-trains a backbone on the frame and tunes a prompt to forecast 48
    f.predict(levels=(80, 95))                  # what follows the frame, with intervals
    f.save("load"); Forecaster.load("load").predict(newer)
    g = Forecaster(horizon=168).tune(other, backbone=f)        # a prompt of a few kilobytes, the backbone untouched

A frame is wide (a time column, a column of numbers for each series) or long (`unique_id, ds, y`); see `frames.read`.
Parameters are those of scikit-learn's habits: `get_params`, `set_params` and `sklearn.base.clone` work.
"""

import inspect
import json
import operator
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from ptt_jax import (
    answer,
    cache,
    checkpoint,
    closing,
    config,
    detect,
    drift,
    export,
    fitted,
    fitting,
    frames,
    impute,
    intervals,
    lock,
    manifest,
    predict,
    quantiles,
    scaling,
)
from ptt_jax import mesh as meshes
from ptt_jax.errors import UserError
from ptt_jax.files import sync, to_path
from ptt_jax.fitted import Fitted, Scratch
from ptt_jax.fitting import Wish
from ptt_jax.frames import Table


class Forecaster:
    """Pre-trains, tunes and forecasts.

    Args:
      horizon: steps to forecast; a prompt for it also serves every shorter one.
      freq: pandas offset alias of the step, or a whole number; '' = the commonest difference of the frame's stamps.
      season, lookback, patch: in steps; 0 = by rule, from the frame (`seasons.estimate`, `recipe.recipe`).
      quantiles: like (.1, .9): a prompt for each is tuned besides, by pinball loss, and intervals are made from these,
        whatever levels are asked for; None = none.
      seed: root of every random number.
      knobs: {'model.width': 128, ...}, any knob of knobs.py in the place of what the rules say.
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
        quantiles: Sequence[float] | None = None,
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
        self.quantiles = quantiles
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

    def fit(self, df: pd.DataFrame) -> Self:
        """Pre-trains a backbone on the frame's series and tunes a prompt to forecast `horizon` steps.

        The last rows choose and calibrate (`recipe.validation_rows`), the rest teaches. Raises UserError when the frame
        cannot be read or is too short; a short one that will do gets a smaller model, and a warning.
        """
        return self._learn(df, {}, ())

    def tune(self, df: pd.DataFrame, backbone: "str | Path | Forecaster") -> Self:
        """Tunes a prompt for the frame's series on a backbone that is there: a Forecaster, or the folder of a run or of
        `save`. It is only read. Raises UserError as `fit` does, or when the backbone does not fit."""
        other = backbone.fitted if isinstance(backbone, Forecaster) else None
        folder = other.folder if other else to_path(str(backbone), "backbone")
        return self._learn(df, checkpoint.find_backbone(folder), other.alive if other else ())

    def _learn(self, df: pd.DataFrame, card: dict[str, Any], alive: tuple[Scratch, ...]) -> Self:
        """Fits, on the backbone of a card if there is one."""
        params = self.get_params()
        wish = Wish.of(params)
        try:
            plain(params)
        except TypeError as e:
            raise UserError(f"{self!r} could not be saved ({e}); accepted: arguments that JSON has words for") from None
        taken = [self.id_column, self.time_column, self.target_column, "cutoff"]
        if self.name in taken:
            raise UserError(f"Forecaster(name={self.name!r}) is a column of the frame; accepted: none of {taken}")
        table = self._read(df, self.freq)
        # What would only be found when there is a forecast to write.
        blank = np.zeros((wish.horizon, len(table.names_C)))
        try:
            frames.write(table, {f"{self.name}{rest}": blank for rest in ("", "-lo-80", "-hi-80", "-lo-95", "-hi-95")})
        except pd.errors.OutOfBoundsDatetime as e:
            raise UserError(
                f"{wish.horizon} steps ahead are later than pandas can say ({e}); accepted: fewer"
            ) from None
        for note in () if self.verbose else table.notes:
            warnings.warn(note, stacklevel=3)
        self._fitted = fitting.learn(table, wish, card, alive, self._column(table))
        return self

    def _column(self, table: Table) -> str:
        """Returns the name of a column of values, by which a frame of the same kind is read again."""
        return self.name if table.layout.wide else self.target_column

    def _read(self, df: pd.DataFrame, freq: str | int) -> Table:
        """Returns the frame's series on one step."""
        columns = {"id_column": self.id_column, "time_column": self.time_column, "target_column": self.target_column}
        return frames.read(df, **columns, freq=freq)

    def _read_more(self, df: pd.DataFrame) -> Table:
        """Returns a frame's series on the step that was learned. Raises UserError for a frame of another step."""
        table = self._read(df, self.fitted.freq)
        answer.check_step(table, self.fitted.freq, "this Forecaster")
        return table

    def predict(
        self, df: pd.DataFrame | None = None, horizon: int | None = None, levels: Sequence[float] = (80, 95)
    ) -> pd.DataFrame:
        """Returns the steps that follow a frame: a column `name`, and `name-lo-80`, `name-hi-80` for each level.

        df: any frame of the same step, series that were not there when it learned too; None = the one it learned from.
        horizon: None = the one it was tuned for, or fewer steps. Wide frames come back wide (`frames.write`).
        Raises UserError for a longer horizon, a level that is no percentage, or a frame that cannot be read.
        """
        horizon, asked = self._check_horizon(horizon), intervals.check_levels(levels)
        tail = self.fitted.tail
        if df is None and tail is None:
            raise UserError("predict(): a task of a bank comes without its frame; accepted: predict(df)")
        table = self._read(tail, self.fitted.freq) if df is None and tail is not None else self._read_more(df)
        columns = self._forecast(table, [0], horizon, asked)
        return answer.write(table, columns, self.fitted.cfg.lookback, stacklevel=3)

    def _check_horizon(self, horizon: int | None) -> int:
        most = self.fitted.horizon
        if horizon is None:
            return most
        if not isinstance(horizon, int | np.integer) or not 1 <= horizon <= most:
            raise UserError(
                f"predict(horizon={horizon!r}): the prompt was tuned for {most} steps; accepted: 1 to {most}, or "
                f"Forecaster(horizon={horizon}).tune(df, backbone=this) first"
            )
        return int(horizon)

    def _forecast(
        self, table: Table, after: Sequence[int], horizon: int, levels: tuple[float, ...]
    ) -> dict[str, np.ndarray]:
        """Returns {column: y_WHC} of windows whose history ends `after` steps from the table's end."""
        of = self.fitted
        asked = of.predictor, table.values_TC, after, horizon, of.intervals.unit
        ratio_C, tuned = of.intervals.ratios(of.names_C, table.names_C), of.predictor.levels
        how = predict.foretell_levels if tuned else predict.foretell
        y_WHC, unit_WC, *away = how(*asked)
        away_LWHC = away[0] if away else np.zeros((0, *y_WHC.shape))
        if not levels:
            return {self.name: y_WHC}
        wanted = (drift.MEDIAN, *levels)
        found = quantiles.columns(self.name, y_WHC, unit_WC * ratio_C, of.intervals, wanted, away_LWHC, tuned)
        return drift.widen(self.name, found, self._drift(table, after))

    def _drift(self, table: Table, after: Sequence[int]) -> np.ndarray:
        """Returns factor_WC of the intervals of such windows."""
        of = self.fitted
        if of.ends is None:
            return np.full((len(after), len(table.names_C)), np.nan)
        full_C = of.ends["steps"].reindex(list(table.names_C), fill_value=0).to_numpy().clip(max=of.cfg.lookback)
        ratio_C, since_C = of.intervals.ratios(of.names_C, table.names_C), frames.since(table, of.ends)
        return drift.factors(of.predictor, of.intervals, ratio_C, table, since_C, full_C, after)

    def drift(self, df: pd.DataFrame) -> float:
        """Returns how many times as wide as when it learned the intervals of `predict(df)` are, by what came since:
        above 1 where forecasts made since then would have erred by more than they promised, below 1 where by less; .42
        to 2.41. Far from 1 is a reason to fit again.

        It is one factor for all series that end with the frame, by those that it learned from. NaN where no forecast
        can be judged, and intervals are as when it learned: nothing later came, or not with a whole history before it
        (`lookback` steps, or all that a short series had); other series or another kind of time; a task of a bank, or
        what an earlier version saved (`drift.py`). Raises UserError for a frame that cannot be read.
        """
        table = self._read_more(df)
        return float(self._drift(table, [0])[0, frames.behind(table).argmin()])

    def cross_validation(
        self, df: pd.DataFrame, n_windows: int = 1, step_size: int | None = None,
        levels: Sequence[float] = (80, 95), refit: bool = True,
    ) -> pd.DataFrame:  # fmt: skip
        """Returns forecasts of the frame's last windows beside what came: time, `cutoff`, the forecast and the truth.

        Windows of `horizon` steps lie `step_size` apart (None: end to end), the last one at the frame's end. refit:
        whether a copy learns first, once, from the rows before the first window alone (after `tune`: a prompt, on the
        same backbone, whatever that learned from); otherwise this Forecaster forecasts as it is, and rows that it
        learned from are no test of it. Raises UserError when the frame is too short.
        """
        wish, asked = Wish.of(self.get_params()), intervals.check_levels(levels)
        horizon = wish.horizon if refit else self.fitted.horizon
        step_size = horizon if step_size is None else step_size
        for word, value in (("n_windows", n_windows), ("step_size", step_size)):
            if not isinstance(value, int | np.integer) or value < 1:
                raise UserError(f"cross_validation({word}={value!r}): accepted: a whole number of at least 1")
        table = self._read(df, self.freq) if refit else self._read_more(df)
        after = [-(horizon + i * int(step_size)) for i in reversed(range(n_windows))]
        rows = len(table.values_TC)
        if rows <= -after[0]:
            raise UserError(
                f"the first of {n_windows} windows of {horizon} steps, {step_size} apart, begins {-after[0]} rows "
                f"before the end, and the frame has {rows}; accepted: fewer windows, or a longer frame"
            )
        model = self
        if refit:
            model = Forecaster(**self.get_params()).set_params(workdir="")
            before = frames.write(table, {self._column(table): table.values_TC[: after[0]]}, after=-rows)
            on = getattr(self, "_fitted", None)
            model = model.tune(before, self) if on is not None and on.cfg.backbone else model.fit(before)
        truth = {self.target_column: frames.truth(table, horizon, after)}
        return frames.write_windows(table, model._forecast(table, after, horizon, asked) | truth, after)

    def impute(self, df: pd.DataFrame) -> pd.DataFrame:
        """Returns the frame with its missing values reconstructed by the frozen backbone, everything else as it was.

        How far answers lean on straight lines is learned from values that the frame has, hidden for it in gaps like its
        own (`closing.py`), so that they depend on all of the frame. Rows that the frame lacks are not put in
        (`frames.fill`). A series without any value keeps its gaps.
        """
        of, table = self.fitted, self._read_more(df)
        impute.check(of.predictor.model)
        return frames.fill(table, df, closing.close(of.predictor, table.values_TC, of.season))

    def detect(self, df: pd.DataFrame) -> pd.DataFrame:
        """Returns the frame with a column `score` (wide: one for each series, 'load-score'): how wrong the backbone's
        reconstruction of a step is while its patch is hidden, squared, in units of the spread of what is visible.

        A large score is a step that its surroundings do not explain; missing steps have 0 (`detect.py`).
        """
        of, table = self.fitted, self._read_more(df)
        asked = detect.question(of.cfg.detect, of.predictor.model.patch, of.cfg.lookback)
        here = detect.Detector(of.predictor.model, of.predictor.backbone, asked, of.cfg.detect.units, meshes.make(1))
        observed_TC = ~np.isnan(table.values_TC)
        scaler = scaling.exact(table.values_TC, observed_TC)
        scaled_TC = scaler.transform(table.values_TC, observed_TC)
        return frames.attach(table, df, {"score": here.errors(scaled_TC, observed_TC, (None,))[0]})

    def embed(self, df: pd.DataFrame) -> pd.DataFrame:
        """Returns a vector for each series, of its last `lookback` steps: a row for each, a column for each of D."""
        table = self._read_more(df)
        e_CD = self.fitted.predictor.embed(table.values_TC[-self.fitted.cfg.lookback :].T)
        return pd.DataFrame(e_CD, index=pd.Index(table.names_C, name=self.id_column))

    def save(self, folder: str | Path) -> Path:
        """Writes what was fitted, so that `load` needs nothing else (`fitted.py` says what); returns the folder.

        Raises UserError when the folder holds something else, or cannot be written; what was there is then as it was.
        """
        of, target = self.fitted, to_path(folder, "folder").absolute()
        params = plain({**self.get_params(), "workdir": ""})
        ours = target == of.folder or (target / "forecaster.json").exists()
        if target.exists() and not ours and not (target.is_dir() and not any(target.iterdir())):
            raise UserError(f"save({str(folder)!r}): something else is there; accepted: a new folder, or a saved one")
        try:
            if target == of.folder:
                with lock.hold(target, warnings.warn):
                    fitted.write(of, target, params)
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
                whole, former = Path(temporary) / "whole", Path(temporary) / "former"
                fitted.write(of, whole, params)
                sync(whole)
                if target.exists():
                    with lock.hold(target, warnings.warn):
                        pass  # nobody works in it
                try:
                    if target.exists():
                        target.rename(former)
                    whole.rename(target)
                except BaseException:  # Ctrl-C, too
                    if former.exists() and not target.exists():
                        former.rename(target)
                    raise
        except OSError as e:
            raise UserError(f"save({str(folder)!r}): {e.strerror}; accepted: a folder that can be written") from None
        return target

    def export(self, path: str | Path, platforms: Sequence[str] = export.USUAL) -> Path:
        """Writes the forecast as one program that jax runs without ptt_jax, NAME.stablehlo, and NAME.json, which says
        how to call it and how to make the intervals (`manifest.py`); returns the program's path.

        Where there are quantile prompts, the program says what they say besides. Raises UserError when the path is no
        .stablehlo file in a folder that is there, a platform has no such name, or flatbuffers is not installed.
        """
        return export.write(path, self.fitted.predictor, manifest.of_fitted(self.fitted), platforms)

    @classmethod
    def load(cls, folder: str | Path) -> "Forecaster":
        """Returns what `save` wrote. Raises UserError when it is not there, not whole, or of another version."""
        found, params = fitted.read(to_path(folder, "folder"))
        try:
            return cls.of(found, params)
        except UserError as e:  # of a later version
            raise UserError(f"{found.folder / 'forecaster.json'}: {e}") from None

    @classmethod
    def of(cls, of: Fitted, params: dict[str, Any]) -> "Forecaster":
        """Returns a Forecaster of what was fitted elsewhere; params: the constructor's arguments."""
        cache.offer(of.cfg.cache_dir)
        self = cls(of.horizon).set_params(**params)
        self._fitted = of
        return self


def plain(params: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments as JSON has them: numpy's whole numbers are Python's. Raises TypeError for what it has no words
    for."""
    return dict(json.loads(json.dumps(params, default=operator.index)))


PARAMETERS = [name for name in inspect.signature(Forecaster.__init__).parameters if name != "self"]
DEFAULTS = {name: p.default for name, p in inspect.signature(Forecaster.__init__).parameters.items()}
