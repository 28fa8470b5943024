"""`Bank`: one frozen backbone and the prompts of many tasks, in a directory that requests are answered from.

    bank = Bank.create("bank", backbone=forecaster)      # or the folder of a run, or of Forecaster.save
    bank.add("shop 17", forecaster)                      # one small file; the backbone's are never touched
    bank.tune("shop 18", df, horizon=48)
    bank.predict({"shop 17": df, "shop 18": other})      # each with its own prompt, in one compiled call

bank.json                             the format, and the backbone's content hash
backbone.json  backbone/STEP/params   as Forecaster.save writes them: `tune` and --config.backbone take a bank, too
tasks/NAME.npz                        a task each (`parcel.py`)

A file is written whole or not at all, and the directory is asked at each call: several processes may add and forecast.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import pandas as pd

from ptt_jax import architecture, checkpoint, fitted, intervals, parcel, predict, request, stacks
from ptt_jax.errors import UserError
from ptt_jax.files import sync, to_path
from ptt_jax.forecaster import Forecaster, plain
from ptt_jax.frame import nearest
from ptt_jax.parcel import Parcel
from ptt_jax.seal import read_json, write_json

FORMAT = 1  # of bank.json


class Bank:
    """A directory with a backbone and tasks. Raises UserError when it is none, or not whole.

    Args:
      folder: as `create` made it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = to_path(folder, "folder").absolute()
        if not (self.folder / "bank.json").is_file():
            raise UserError(f"{self.folder} is no bank; accepted: a folder that Bank.create made")
        about = read_json(self.folder / "bank.json")
        if about.get("format") != FORMAT:
            raise UserError(f"{self.folder / 'bank.json'} has format {about.get('format')!r}; accepted: {FORMAT}")
        self.card = checkpoint.find_backbone(self.folder)
        self.hash = str(self.card["content_hash"])
        if about.get("backbone") != self.hash:
            raise UserError(
                f"{self.folder} holds another backbone than its tasks were tuned on; accepted: a whole bank"
            )
        like = architecture.shapes(architecture.build(self.card["architecture"], "float32"))
        self.backbone = jax.device_put(checkpoint.load_backbone(self.card, like))
        self._read: dict[str, tuple[tuple[int, ...], Parcel]] = {}
        self._stacks = stacks.Stacks(self.card, self.backbone)

    @classmethod
    def create(cls, folder: str | Path, backbone: str | Path | Forecaster) -> Self:
        """Makes a bank of a backbone, which is copied: a Forecaster's, or that of a run's or saved one's folder.

        Raises UserError when something is in the folder, or the backbone is not what its run wrote.
        """
        of = backbone.fitted.folder if isinstance(backbone, Forecaster) else to_path(backbone, "backbone")
        card, target = checkpoint.find_backbone(of), to_path(folder, "folder").absolute()
        checkpoint.load_backbone(card, architecture.shapes(architecture.build(card["architecture"], "float32")))
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise UserError(f"Bank.create({str(folder)!r}): something is there; accepted: a new folder, or Bank.open")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
                whole = Path(temporary) / "whole"
                (whole / "tasks").mkdir(parents=True)
                fitted.copy(Path(card["run"]) / "backbone", whole / "backbone", card["step"], "params")
                write_json(whole / "backbone.json", {**card, "run": ""})
                write_json(whole / "bank.json", {"format": FORMAT, "backbone": card["content_hash"]})
                sync(whole)
                whole.replace(target)
        except OSError as e:
            raise UserError(
                f"Bank.create({str(folder)!r}): {e.strerror}; accepted: a folder that can be written"
            ) from None
        return cls(target)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Returns the bank of a folder."""
        return cls(folder)

    def __repr__(self) -> str:
        return f"Bank({str(self.folder)!r}): {len(self)} tasks on backbone {self.hash[:12]}"

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(parcel.task_name(path) for path in (self.folder / "tasks").glob(f"*{parcel.END}")))

    def __len__(self) -> int:
        return sum(1 for _ in (self.folder / "tasks").glob(f"*{parcel.END}"))

    def __contains__(self, name: object) -> bool:
        try:
            return self._path(name).exists()  # type: ignore[arg-type]  # a name of another type is refused
        except UserError:  # what can be no name is in no bank
            return False

    def _path(self, name: str) -> Path:
        return self.folder / "tasks" / parcel.file_name(name)

    def add(self, name: str, forecaster: Forecaster, replace: bool = False) -> None:
        """Adds what a Forecaster learned on this backbone as one file.

        Raises UserError for another backbone, a name that makes no file's, or one that is there, unless `replace`.
        """
        self.put(Parcel.of(name, forecaster.fitted, plain(forecaster.get_params())), replace)

    def put(self, task: Parcel, replace: bool = False) -> None:
        """Adds a task as it is kept; `add` is for people."""
        path = self._free(task.name, replace)
        if task.backbone != self.hash:
            raise UserError(
                f"the Forecaster of task {task.name!r} is on backbone {task.backbone[:12]}, and this bank's is "
                f"{self.hash[:12]}; accepted: Bank.tune, or Forecaster.tune(df, backbone={str(self.folder)!r}) first"
            )
        task.write(path)

    def _free(self, name: str, replace: bool) -> Path:
        path = self._path(name)
        if path.exists() and not replace:
            raise UserError(f"task {name!r} is in the bank; accepted: another name, or replace=True")
        return path

    def tune(self, name: str, df: pd.DataFrame, horizon: int, *, replace: bool = False, **params: Any) -> Forecaster:
        """Tunes a prompt for the frame's series on the bank's backbone, adds it, and returns its Forecaster.

        params: the other arguments of a Forecaster. Raises UserError as `add` and `Forecaster.tune` do.
        """
        self._free(name, replace)
        forecaster = Forecaster(horizon, **params).tune(df, backbone=self.folder)
        self.add(name, forecaster, replace)
        return forecaster

    def remove(self, name: str) -> None:
        """Deletes a task's file. Raises UserError when there is none."""
        try:
            self._path(name).unlink()
            self._forget(name)
        except FileNotFoundError:
            raise self._unknown(name) from None
        except OSError as e:
            raise UserError(f"task {name!r}: {e.strerror}; accepted: a bank that can be written") from None

    def _unknown(self, name: str) -> UserError:
        self._forget(name)
        return UserError(f"task {name!r} is not in the bank {self.folder}{nearest(name, [*self])}")

    def _forget(self, name: str) -> None:
        self._read.pop(name, None)
        self._stacks.drop(name)

    def check(self) -> None:
        """Reads every task. Raises UserError at the first file that is none; others do no harm until they are asked."""
        for name in self:
            self._task(name)

    def _task(self, name: str) -> Parcel:
        """Returns a task, from memory while its file is the same one."""
        path = self._path(name)
        try:
            of = os.stat(path)
        except FileNotFoundError:
            raise self._unknown(name) from None
        now = of.st_ino, of.st_mtime_ns, of.st_size
        if self._read.get(name, (None, None))[0] != now:
            self._read[name] = now, parcel.read(path, self.hash)
        return self._read[name][1]

    def forecaster(self, name: str) -> Forecaster:
        """Returns a task as a Forecaster, which can all that one can, save and tune on; without the frame that it
        learned from, so that `predict` wants one. Raises UserError when there is no such task."""
        of = self._task(name)
        made = parcel.unpack(of, self._stacks.model(stacks.kind(of, self.card)), self.backbone, self.card)
        return Forecaster.of(made, of.params)

    def forecast(self, names: Sequence[str], history_RT: np.ndarray, horizon: int | None = None) -> np.ndarray:
        """Returns y_RH float64: row r is what the prompt of task names[r] says after history_RT[r], in its units.

        One compiled call for up to `predict.ROWS` rows of all tasks that have lookback, views and dtype in common, as
        those of one backbone have unless their histories were short. A history is NaN where missing, as long as is
        there; what is longer than a task's lookback is not read. horizon: steps of each, None = each task's own, and
        NaN after it. Raises UserError for a task that is not there, or was tuned for less.
        """
        return self._forecast(names, history_RT, horizon)[0]

    def _forecast(
        self, names: Sequence[str], history_RT: np.ndarray, horizon: int | None, told: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `forecast` does and, if asked for, what quantile prompts say of each row (`Stacks.told`)."""
        if np.ndim(history_RT) != 2 or len(names) != len(history_RT):
            raise UserError(
                f"{len(names)} names for histories of shape {np.shape(history_RT)}; accepted: a name for each row"
            )
        tasks = {name: self._task(name) for name in dict.fromkeys(names)}
        steps = {name: request.check_horizon(of, horizon) for name, of in tasks.items()}
        try:
            history_RT = np.asarray(history_RT, float)
        except (ValueError, TypeError) as e:
            raise UserError(f"histories that are no numbers ({e}); accepted: floats, NaN where missing") from None
        if np.isinf(history_RT).any():
            r, t = np.argwhere(np.isinf(history_RT))[0]
            raise UserError(
                f"the history of row {r}, task {names[r]!r}, is infinite at step {t}; accepted: numbers, NaN where "
                "missing"
            )
        asked = [tasks[n] for n in names], [steps[n] for n in names], history_RT
        return self._stacks.told(*asked) if told else (self._stacks.forecast(*asked), np.zeros((0, 0, 0)))

    def predict(
        self, requests: Mapping[str, pd.DataFrame], horizon: int | None = None, levels: Sequence[float] = (80, 95)
    ) -> dict[str, pd.DataFrame]:
        """Returns {task: the steps that follow its frame}, each as `Forecaster.predict` of that task would have it,
        with intervals as wide as when it was tuned.

        requests: {task: a frame as the task learned from, series that were not there, too}. horizon: steps of each, or
        None: each task's own. All rows are forecast in one compiled call (`forecast` says when in several); those of
        tasks with quantile prompts, whose bounds are made from what these say, in one for all of the same quantiles.
        Raises UserError, which names the task, as `Forecaster.predict` does.
        """
        asked = intervals.check_levels(levels)
        tasks = {name: self._task(name) for name in requests}
        tables = {name: request.read(tasks[name], df) for name, df in requests.items()}
        steps = {name: request.check_horizon(of, horizon) for name, of in tasks.items()}
        longest = max((of.cfg.lookback for of in tasks.values()), default=0)
        ends = [request.ends(table.values_TC, longest) for table in tables.values()]
        history_RT = np.concatenate([np.zeros((0, longest)), *ends])
        names = [name for name, table in tables.items() for _ in table.names_C]
        y_RH, away_LRH = self._forecast(names, history_RT, horizon, told=bool(asked))
        unit_R = np.zeros(len(names))
        for lookback, unit in {(of.cfg.lookback, of.unit) for of in tasks.values()}:
            at = [r for r, n in enumerate(names) if (tasks[n].cfg.lookback, tasks[n].unit) == (lookback, unit)]
            unit_R[at] = predict.size(history_RT[at, -lookback:], unit)
        out, first = {}, 0
        for name, table in tables.items():
            rows, steps_H = slice(first, first := first + len(table.names_C)), slice(steps[name])
            heard = y_RH[rows, steps_H], away_LRH[:, rows, steps_H], unit_R[rows]
            out[name] = request.written(tasks[name], table, *heard, asked)
        return out
