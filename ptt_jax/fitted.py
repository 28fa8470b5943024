"""What a Forecaster knows after it has learned, and the folder that it is saved in.

backbone.json  backbone/STEP/{params,meta}       as in a run directory, without what only goes on needs
prompts/TASK.json  prompts/TASK/STEP/{prompt,meta}   and TASK-quantiles, where there are quantile prompts
config.json  versions.json  data.json            every knob; of what made it, and on which data, as in a run directory
forecaster.json  forecaster.npz                  the Forecaster's arguments, the frame's last rows; intervals
"""

import dataclasses
import functools
import io
import json
import shutil
import tempfile
import weakref
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from ptt_jax import architecture, checkpoint, config, prompts
from ptt_jax import store as stores
from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic
from ptt_jax.intervals import Intervals, Unit
from ptt_jax.predict import Predictor
from ptt_jax.seal import read_json, write_json

FORMAT = 1  # of forecaster.json and forecaster.npz
PROVENANCE = ("versions.json", "data.json")


class Scratch:
    """A folder that lives as long as this object."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ptt_jax-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def __deepcopy__(self, memo: dict) -> "Scratch":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("what was fitted lies in a folder of this process; accepted: Forecaster.save and load")


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A frozen backbone with its prompt, what calibrates it, and the end of the frame that it learned from."""

    folder: Path  # a run directory, or one that was saved: backbone.json, prompts/TASK
    task: str
    cfg: ConfigDict
    predictor: Predictor
    intervals: Intervals
    names_C: tuple[str, ...]  # the series that intervals know
    freq: str | int
    season: int
    tail: pd.DataFrame | None  # the frame's last rows, in its own kind; a bank keeps none
    ends: pd.DataFrame | None  # where its series end (`frames.ends`); none in a bank, or of an earlier version
    alive: tuple[Scratch, ...] = ()  # where its files lie, unless the user said where

    @property
    def horizon(self) -> int:
        return int(self.cfg.horizons[-1])

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """{task: of its prompt's file as it was when this was made}; of the quantile prompts, too."""
        files = {task: self.folder / "prompts" / f"{task}.json" for task in tasks(self.task, self.cfg)}
        return {task: str(read_json(file)["content_hash"]) for task, file in files.items()}

    @property
    def prompt_hash(self) -> str:
        return self.hashes[self.task]

    def __post_init__(self) -> None:
        _ = self.hashes


def tasks(task: str, cfg: ConfigDict) -> tuple[str, ...]:
    """Returns the names of all that was tuned for a task: its prompt, and quantile prompts if there are any."""
    return (task, prompts.quantiles(task)) if cfg.tune.quantiles else (task,)


def predictor(folder: Path, task: str, cfg: ConfigDict) -> Predictor:
    """Returns what a folder's backbone and prompt make. Raises UserError when a file is missing or not what it was."""
    card = checkpoint.find_backbone(folder)
    model = architecture.build(card["architecture"], cfg.compute_dtype, views=cfg.views)
    backbone = checkpoint.load_backbone(card, architecture.shapes(model))
    horizon = cfg.horizons[-1]
    each = [
        checkpoint.load_prompts(folder, of, card["content_hash"])[horizon][0] for of in tasks(task, cfg)
    ]  # of the first seed
    prompt, quantiles = jax.device_put((*each, None)[:2])
    levels = tuple(cfg.tune.quantiles)
    return Predictor(model, jax.device_put(backbone), prompt, cfg.lookback, horizon, quantiles, levels)


def write(of: Fitted, folder: Path, params: dict[str, Any]) -> None:
    """Writes all that `read` needs into a new folder, or what it lacks into the one that was fitted in; params: the
    Forecaster's arguments. Raises UserError when the files are not those of what was fitted any more."""
    card = checkpoint.find_backbone(of.folder)
    cards = {task: checkpoint.read_card(of.folder / "prompts" / f"{task}.json") for task in of.hashes}
    now = {task: prompt["content_hash"] for task, prompt in cards.items()}
    if stores.content_hash(of.predictor.backbone) != card["content_hash"] or now != of.hashes:
        raise UserError(f"{of.folder} holds another backbone or prompt than was fitted; accepted: a new fit, or load")
    if folder != of.folder or card["run"] != str(of.folder):
        copy(Path(card["run"]) / "backbone", folder / "backbone", card["step"], "params")
        write_json(folder / "backbone.json", {**card, "run": ""})
    if folder != of.folder:
        for task, prompt in cards.items():
            copy(of.folder / "prompts" / task, folder / "prompts" / task, prompt["step"], "prompt")
            write_json(folder / "prompts" / f"{task}.json", {**prompt, "backbone_run": ""})
        write_json(folder / "config.json", of.cfg.to_dict())
        for name in PROVENANCE:
            if (of.folder / name).exists():  # an earlier version saved none
                write_atomic(folder / name, (of.folder / name).read_bytes())
    about = {
        "format": FORMAT, "params": params, "task": of.task, "names": of.names_C, "freq": of.freq, "season": of.season,
        "unit": of.intervals.unit, "tail": None if of.tail is None else to_json(of.tail),
        "ends": None if of.ends is None else to_json(of.ends),
        "intervals": stores.content_hash(arrays(of.intervals)),
    }  # fmt: skip
    content = io.BytesIO()
    np.savez(content, **arrays(of.intervals))  # type: ignore[arg-type]  # the stub takes each for `allow_pickle`
    write_atomic(folder / "forecaster.npz", content.getvalue())
    write_json(folder / "forecaster.json", about)


def arrays(of: Intervals) -> dict[str, np.ndarray]:
    """Returns what forecaster.npz holds."""
    return {key: np.asarray(value) for key, value in of._asdict().items() if key != "unit"}


def copy(source: Path, target: Path, step: int, item: str) -> None:
    """Copies a step of a checkpoint without the state that only going on needs."""
    shutil.copytree(source / str(step), target / str(step), ignore=lambda _, names: {"state"} & {*names})
    if not (target / str(step) / item).is_dir():
        raise UserError(f"{source / str(step) / item} is missing; accepted: the files as a run wrote them")


def read(folder: Path) -> tuple[Fitted, dict[str, Any]]:
    """Returns what was saved, and the Forecaster's arguments. Raises UserError when a file is missing, not whole, or of
    another version."""
    folder = folder.absolute()
    path = folder / "forecaster.json"
    about = read_json(path)
    if about.get("format") != FORMAT:
        raise UserError(f"{path} has format {about.get('format')!r}; accepted: {FORMAT}, that of this version")
    try:
        with np.load(io.BytesIO((folder / "forecaster.npz").read_bytes()), allow_pickle=False) as kept:
            unit = Unit(*about.get("unit", ()))  # an earlier version had none
            known = Intervals(kept["quantile_QH"], kept["ratio_C"], float(kept["relative"]), unit)
        whole = about.get("intervals") in (None, stores.content_hash(arrays(known)))  # None: of an earlier version
        cfg = config.restored(json.dumps(read_json(folder / "config.json")), folder / "config.json")
        tail, ends = (None if about.get(key) is None else from_json(about[key]) for key in ("tail", "ends"))
        task, names_C = checkpoint.plain(about["task"], path), tuple(about["names"])
        freq, season = about["freq"], about["season"]
        params = dict(about["params"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(
            f"{folder} does not hold a whole Forecaster ({type(e).__name__}: {e}); accepted: a folder as save wrote it"
        ) from None
    if not whole:
        raise UserError(
            f"{folder / 'forecaster.npz'} is not what was written (content hash differs); accepted: a folder as save "
            f"wrote it"
        )
    return Fitted(folder, task, cfg, predictor(folder, task, cfg), known, names_C, freq, season, tail, ends), params


def to_json(frame: pd.DataFrame) -> dict[str, Any]:
    """Returns a frame as JSON has it, every digit, dtype and index kept: pandas' own ways lose some of these."""
    levels = 0 if isinstance(frame.index, pd.RangeIndex) else frame.index.nlevels
    flat = frame.reset_index() if levels else frame
    columns = []
    for place, label in enumerate(flat.columns):
        cells = flat.iloc[:, place]
        if isinstance(cells.dtype, pd.PeriodDtype) or pd.api.types.is_datetime64_any_dtype(cells.dtype):
            values = cells.astype(str).tolist()
        else:
            values = [None if pd.isna(value) else value for value in cells.tolist()]
        columns.append({"label": label, "dtype": str(cells.dtype), "values": values})
    return {"columns": columns, "index": list(frame.index.names) if levels else []}


def from_json(saved: dict[str, Any]) -> pd.DataFrame:
    """Returns the frame that `to_json` was given."""
    cells = [pd.Series(c["values"], name=c["label"]).astype(c["dtype"]) for c in saved["columns"]]
    frame = pd.concat(cells, axis=1)
    levels = len(saved["index"])
    return frame.set_index(list(frame.columns[:levels])).rename_axis(saved["index"]) if levels else frame
