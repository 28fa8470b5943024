"""What finished cells found, and the tables of numbers made of it."""

import dataclasses
import datetime
import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
from cells import PARTS, SETS, Cell

from ptt_jax import config
from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic
from ptt_jax.flags import parse
from ptt_jax.knobs import FREE
from ptt_jax.seal import read_json

HERE = Path(__file__).parent
MOST_SEEDS = 10


@dataclasses.dataclass
class Plan:
    """What is asked for: parts, cells of each, where runs lie, overrides of every cell."""

    parts: dict[str, list[Cell]]
    runs: Path
    overrides: list[str]

    def folder(self, part: str) -> Path:
        """Returns where a part's runs lie; overrides make another one."""
        return self.runs / f"{part}{self.suffix}"

    @property
    def suffix(self) -> str:
        text = " ".join(self.overrides)
        return f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}" if text else ""

    def argv(self, part: str, cell: Cell) -> list[str]:
        """Returns the arguments of ptt_jax.main for a cell."""
        home, name = origin(part, cell)
        backbone = [f"--config.backbone={self.folder(home) / name}"] if home else []
        own = [f"--config.{text}" for text in cell.overrides]
        where = f"--workdir={self.folder(part) / cell.name}"
        return [f"--config={cell.config}", where, *own, *backbone, *self.overrides]


class Store:
    """What finished cells of a part found, a JSON object a line: {'cell', 'config', 'on', 'about', 'rows'}; 'on' is the
    config of the cell whose backbone it took, 'rows' are 'columns' and 'data' of its results.csv. Raises UserError for
    a line that is none."""

    def __init__(self, plan: Plan, part: str) -> None:
        self.file = HERE / "results" / "cells" / f"{part}{plan.suffix}.jsonl"
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        self.records: dict[str, dict[str, Any]] = {}
        for row, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                self.records[record["cell"]] = record
            except (ValueError, TypeError, KeyError) as e:
                raise UserError(
                    f"{self.file}, line {row} is no record of a cell ({e}); accepted: lines as reproduce.py wrote them"
                ) from None

    def put(self, record: dict[str, Any]) -> None:
        self.records[record["cell"]] = record
        lines = [json.dumps(r, separators=(",", ":")) for _, r in sorted(self.records.items())]
        write_atomic(self.file, "\n".join([*lines, ""]))


def origin(part: str, cell: Cell) -> tuple[str, str]:
    """Returns (part, cell) of the backbone that a cell takes, ('', '') without one."""
    home, _, name = cell.backbone.rpartition("/")
    return (home or part, name) if name else ("", "")


def backbone_of(part: str, cell: Cell) -> tuple[str, Cell] | None:
    """Returns the part and the cell of the backbone that a cell takes; None without one."""
    home, name = origin(part, cell)
    return (home, next(c for c in PARTS[home](SETS, range(MOST_SEEDS)) if c.name == name)) if home else None


def keep(plan: Plan, part: str, cell: Cell, seconds: float) -> None:
    """Notes what a finished run found."""
    folder, argv = plan.folder(part) / cell.name, plan.argv(part, cell)
    cfg = config.from_json((folder / "config.json").read_text(encoding="utf-8"))
    frame, (home, name) = pd.read_csv(folder / "results.csv").round(6), origin(part, cell)
    about = {
        "seconds": round(seconds, 1), "date": datetime.date.today().isoformat(), "hash": config.content_hash(cfg),
        "versions": read_json(folder / "versions.json"),
        # The directory of runs is everybody's own.
        "command": shlex.join(["python", "-m", "ptt_jax.main", *(a for a in argv if "--workdir" not in a)]).replace(
            str(plan.runs), "runs/reproduce"
        ),
    }  # fmt: skip
    rows = json.loads(frame.to_json(orient="split", index=False))
    record = {"cell": cell.name, "config": knobs(cfg), "about": about, "rows": rows}
    if home:
        file = plan.folder(home) / name / "config.json"
        record["on"] = knobs(config.from_json(file.read_text(encoding="utf-8")))
    Store(plan, part).put(record)


def knobs(cfg: Any) -> dict[str, Any]:
    """Returns every knob that decides a cell's numbers, as JSON has them; which backbone it took stands elsewhere."""
    kept = {key: value for key, value in config.flat(cfg).items() if key not in (*FREE, "backbone")}
    return dict(json.loads(json.dumps(kept)))


AFTER = ("tune.", "impute.", "detect.", "evaluate.")  # what is done with a backbone, and makes it no other


def finished(plan: Plan, part: str) -> dict[str, tuple[Cell, dict[str, Any]]]:
    """Returns {cell: (cell, record)} of what is finished of a part, whatever is asked for now, under the recipe of now:
    a cell of another config, or on a backbone of another, is not among them, and is run again when asked for."""
    found: dict[str, tuple[Cell, dict[str, Any]]] = {}
    records = Store(plan, part).records
    for cell in PARTS[part](SETS, range(MOST_SEEDS)):
        if not (record := records.get(cell.name)):
            continue
        base = backbone_of(part, cell)
        if base and differences(record.get("on", {}), asked(plan, *base), AFTER):
            continue
        if not differences(record["config"], asked(plan, part, cell), "model." if base else ()):  # its backbone's
            found[cell.name] = cell, record
    return found


def asked(plan: Plan, part: str, cell: Cell) -> dict[str, Any]:
    """Returns the knobs of a cell under the recipe of now."""
    return knobs(parse(plan.argv(part, cell))[0])


def differences(saved: dict[str, Any], now: dict[str, Any], but: str | tuple[str, ...] = ()) -> list[str]:
    """Returns the knobs that differ, those that start with `but` aside; one that was not saved stood at its default."""
    standard = knobs(config.default())
    keys = [k for k in {*saved, *now} if not k.startswith(but)]
    return [k for k in keys if saved.get(k, standard.get(k)) != now.get(k, standard.get(k))]


def is_stale(plan: Plan, part: str, cell: Cell) -> bool:
    """Says whether a cell's run directory holds a run of another recipe, or on a backbone of another."""
    file, (home, name) = plan.folder(part) / cell.name / "config.json", origin(part, cell)
    if not file.exists():
        return False
    was = config.from_json(file.read_text(encoding="utf-8"))
    if differences(knobs(was), asked(plan, part, cell), "model." if home else ()):
        return True
    cards = [folder / "backbone.json" for folder in (file.parent, plan.folder(home) / name)]
    if not home or not all(card.exists() for card in cards):
        return False
    mine, its = map(read_json, cards)
    # Random weights are alike under knobs that change no shape: the hash alone does not tell.
    return any(mine.get(key) != its.get(key) for key in ("content_hash", "architecture"))


def found(plan: Plan, part: str) -> pd.DataFrame:
    """Returns one row for each data set, row of the table, horizon and seed, and where it comes from."""
    frames = []
    for cell, record in finished(plan, part).values():
        frame, about = pd.DataFrame(**record["rows"]), record["about"]
        frame = frame[frame["split"] == frame["split"].iloc[-1]]  # validation where test is hidden
        frame = frame[frame["model"].isin(cell.rows)].assign(
            seconds=about["seconds"], date=about["date"], config=about["hash"], command=about["command"],
            device=about["versions"]["device"],
        )  # fmt: skip
        frames.append(frame.assign(model=frame["model"].map(cell.rows)))
    if not frames:
        return pd.DataFrame()
    rows = pd.concat(frames)
    # What no seed changes is there once.
    still = rows["model"].str.startswith(("seasonal naive", "linear"))
    return rows[~still | ~rows.duplicated(["data", "model", "horizon"])]


def gather(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns one row for each data set, row of the table and horizon: mean and spread over seeds, and where from:
    every device, and the mean of the seconds if it is one."""

    def devices(of: pd.Series) -> str:
        return ", ".join(sorted({*of}))

    table = rows.groupby(["data", "model", "lookback", "horizon"], sort=False).agg(
        mse=("mse", "mean"), mse_spread=("mse", "std"), mae=("mae", "mean"), mae_spread=("mae", "std"),
        seeds=("seed", "nunique"), windows=("windows", "first"), config=("config", "first"),
        seconds=("seconds", "mean"), device=("device", devices), date=("date", "max"), command=("command", "first"),
    ).reset_index()  # fmt: skip
    return table.assign(seconds=table["seconds"].where(~table["device"].str.contains(", ")))
