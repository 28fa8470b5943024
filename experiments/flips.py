"""Single bytes flipped in files that ptt_jax wrote: found, harmless, or silent?

    python experiments/flips.py [--count=500] [--seed=0]

Four folders are made: a finished run, a run that was stopped while it tuned, a saved Forecaster, and a bank. A byte of
one of their files is changed to another value (files take turns, so that small ones are in the sample, too), and the
folder is used as a program would:

    finished    the config and the data's card as the same command checks them, backbone, prompts, what the page reads
    stopped     the same command as far as it goes on: the step it begins from, with its state
    forecaster  Forecaster.load
    bank        Bank, and each task

`found`: a sentence named a file. `goes on`: a sentence named it, and the step before, which is the intact folder's to
the bit, is begun from; steps are deterministic, so the result is. `harmless`: nothing was said, and all that was read
is the intact folder's to the bit. `silent`: anything else. report.html, report.md and figures/ are not in the sample:
nothing reads them. Counts go to results/flips.csv.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from ledger import command

from ptt_jax import (
    Bank,
    Forecaster,
    architecture,
    checkpoint,
    config,
    data,
    fitted,
    main,
    mesh,
    prompts,
    rundir,
)
from ptt_jax import store as stores
from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic
from ptt_jax.found import Found
from ptt_jax.log import Log
from ptt_jax.store import Store

RESULTS = Path(__file__).parent / "results"
SHOWN = ("report.html", "report.md", "figures")
FOUND, GOES_ON, HARMLESS, SILENT = "found", "goes on", "harmless", "silent"
SMALL = {
    "model.width": 16, "model.mlp": 16, "model.heads": 2, "model.encoder_layers": 1, "devices": 1, "cache_dir": "",
    "pretrain.steps": 6, "pretrain.batch": 16, "pretrain.validations": 3, "pretrain.validation_rows": 32,
    "tune.steps": 6, "tune.batch": 16, "tune.validations": 3,
}  # fmt: skip


class Stop(Exception):
    """Stands for the power that goes."""


def recipe() -> Any:
    """Returns the config of the two runs."""
    cfg = config.default()
    cfg.lookback, cfg.horizons, cfg.model.patch, cfg.evaluate.batch = 48, (12, 20), 12, 128
    cfg.data.rows, cfg.data.channels = 500, 3
    cfg.update_from_flattened_dict(SMALL)
    return cfg


def make(folder: Path) -> dict[str, Path]:
    """Makes the four folders; returns {kind: folder}."""
    main.run(recipe(), folder / "finished")
    save, left = Store.save, iter(range(4, -1, -1))  # the fifth save is the second of tuning

    def cut(self: Store, *args: Any) -> None:
        save(self, *args)
        if not next(left):
            raise Stop

    Store.save = cut  # type: ignore[method-assign]
    try:
        main.run(recipe(), folder / "stopped")
    except Stop:
        Store.save = save  # type: ignore[method-assign]
    stamps = pd.date_range("2026-01-01", periods=160, freq="h", name="ds")
    df = pd.DataFrame({"a": np.sin(np.arange(160) * np.pi / 6)}, stamps)
    small = {key: value for key, value in SMALL.items() if not key.startswith("pretrain.validation_rows")}
    one = Forecaster(horizon=12, season=12, patch=6, lookback=24, knobs=small).fit(df)
    one.save(folder / "forecaster")
    bank = Bank.create(folder / "bank", one)
    for name in ("one", "the other"):
        bank.add(name, one)
    return {kind: folder / kind for kind in ("finished", "stopped", "forecaster", "bank")}


def digest(*content: Any) -> str:
    """Returns the SHA-256 over trees of arrays, frames, and whatever JSON has words for."""
    sha = hashlib.sha256()
    for of in content:
        if isinstance(of, pd.DataFrame):
            sha.update(of.to_csv().encode() + str(of.dtypes.tolist()).encode())
        elif all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(of)):
            sha.update(stores.content_hash(of).encode())
        else:
            sha.update(json.dumps(of, sort_keys=True, default=str).encode())
    return sha.hexdigest()


def begin(run: Path) -> tuple[Any, Any]:
    """Returns the config of a run and its series, checked against its files as the same command does."""
    cfg = recipe()
    series = data.load(cfg.data)
    about = {"name": series.name, "fingerprint": series.fingerprint, "freq": series.freq, "splits": series.splits}
    rundir.open_run(run, cfg, about)
    return cfg, series


def backbone_of(folder: Path) -> tuple[dict[str, Any], Any]:
    card = checkpoint.find_backbone(folder)
    like = architecture.shapes(architecture.build(card["architecture"], "float32"))
    return card, checkpoint.load_backbone(card, like)


def finished(run: Path) -> str:
    cfg, series = begin(run)
    card, backbone = backbone_of(run)
    of_horizon = checkpoint.load_prompts(run, prompts.name(series.name, cfg.horizons), card["content_hash"])
    shown = Found(run)
    pages = shown.results, shown.table("steps.csv"), shown.table("channels.csv")
    cards = [{**about, "run": ""} for about in (card, *(about for _, about in shown.cards), shown.versions)]
    return digest(backbone, of_horizon, *pages, cards, arrays(shown.samples), arrays(shown.kept))


def arrays(of: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: [str(a.dtype), a.tolist()] for name, a in of.items()}


def stopped(run: Path) -> str:
    """What tuning begins from; where the later step is damaged, `resume` deletes it and says so."""
    cfg, series = begin(run)
    card, backbone = backbone_of(run)
    task, log = prompts.name(series.name, cfg.horizons), Log(run / "metrics.jsonl")
    of = checkpoint.identity(cfg, ("tune.",), task, card["content_hash"], series.fingerprint)
    store = Store(run / "prompts" / task, ("prompt", "state"), of=of)
    try:
        trees, meta = checkpoint.resume(store, like(cfg, run), log, "tune", mesh.make(1))
    finally:
        store.close()
    return digest(backbone, jax.device_get(trees), meta["history"], log.path.read_text())


@functools.cache
def shapes() -> list[Any]:
    return []


def like(cfg: Any, run: Path) -> Any:
    """Returns the trees that tuning asks `resume` for, as the command itself makes them."""
    if not shapes():

        def note(store: Store, trees: Any, *_: Any) -> Any:
            shapes().append(jax.device_get(trees))
            raise Stop

        # The run's pre-training is done, so that tuning is what asks first.
        resume, checkpoint.resume = checkpoint.resume, note
        try:
            with tempfile.TemporaryDirectory() as temporary, contextlib.suppress(Stop):
                main.run(cfg, Path(shutil.copytree(run, Path(temporary) / "run")))
        finally:
            checkpoint.resume = resume
    return shapes()[0]


def forecaster(folder: Path) -> str:
    of = Forecaster.load(folder)
    known, own = of.fitted, {**of.get_params(), "cfg": of.fitted.cfg.to_dict()}
    about = [own, known.names_C, known.freq, known.season, known.predictor.lookback, known.predictor.horizon]
    return digest(known.predictor.backbone, known.predictor.prompt, fitted.arrays(known.intervals), known.tail, about)


def bank(folder: Path) -> str:
    of = Bank(folder)
    return digest(jax.device_get(of.backbone), [[name, of._task(name).arrays()["hash"].tolist()] for name in of])


USES: dict[str, Callable[[Path], str]] = {
    "finished": finished, "stopped": stopped, "forecaster": forecaster, "bank": bank,
}  # fmt: skip


def use(kind: str, folder: Path) -> tuple[str, str]:
    """Returns the digest of what was read, and what was said; '' and the sentence when it was refused."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            outcome = USES[kind](folder)
        except UserError as e:
            return "", str(e)
    return outcome, said.getvalue()


def references(kind: str, folder: Path) -> list[str]:
    """Returns the digest of the intact folder, and of a stopped run's one without its later step."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / "copy"))
        out = [use(kind, copy)[0]]
        if kind == "stopped":
            (task,) = (path for path in (copy / "prompts").iterdir() if path.is_dir())
            shutil.rmtree(max((path for path in task.iterdir()), key=lambda path: int(path.name)))
            out.append(use(kind, copy)[0])
    return out


def judge(kind: str, folder: Path, intact: list[str]) -> str:
    """Uses a damaged folder, and says which of the four it is. What is no UserError is raised on."""
    outcome, said = use(kind, folder)
    if not outcome or "warning: " in said:
        return FOUND if str(folder) in said else SILENT
    if "done again" in said:
        return GOES_ON if outcome == intact[-1] else SILENT
    return HARMLESS if outcome == intact[0] else SILENT


def flip(kind: str, folder: Path, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Returns a row for each of `count` flips in the files of a folder, which take turns."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    files = [p for p in files if p.relative_to(folder).parts[0] not in SHOWN]
    order = np.concatenate([rng.permutation(len(files)) for _ in range(-(-count // len(files)))])[:count]
    intact, rows = references(kind, folder), []
    for i in order:
        name = files[i].relative_to(folder)
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(shutil.copytree(folder, Path(temporary) / "copy"))
            content = bytearray((copy / name).read_bytes())
            at, by = int(rng.integers(len(content))), int(rng.integers(1, 256))
            content[at] ^= by
            (copy / name).write_bytes(content)
            rows.append(
                {"folder": kind, "file": str(name), "byte": at, "xor": by, "verdict": judge(kind, copy, intact)}
            )
    return rows


def study(argv: list[str] | None = None) -> int:
    """Returns the exit code: 1 when a flip was silent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng, rows = np.random.default_rng(args.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folders = make(Path(temporary))
        for i, (kind, folder) in enumerate(folders.items()):
            rows += flip(kind, folder, args.count * (i + 1) // 4 - args.count * i // 4, rng)
            print(pd.DataFrame(rows).groupby(["folder", "verdict"]).size().to_string(), flush=True)
    table = pd.crosstab((found := pd.DataFrame(rows))["folder"], found["verdict"]).reset_index()
    table = table.reindex(columns=["folder", FOUND, GOES_ON, HARMLESS, SILENT], fill_value=0)
    table["date"], table["command"] = (
        str(pd.Timestamp.now().date()),
        command("flips", sys.argv[1:] if argv is None else argv),
    )
    write_atomic(RESULTS / "flips.csv", table.to_csv(index=False))
    for row in rows:
        if row["verdict"] == SILENT:
            print(row)
    return int((found["verdict"] == SILENT).any())


if __name__ == "__main__":
    raise SystemExit(study())
