"""Kill -9 at random moments of every stage, the same command again, and every bit of the result compared.

    python experiments/crash.py [--kills=30] [--cases=prompt,quantiles,full,forecaster] [--seed=0] [--runs=DIR]

Each kill has a run of its own: the command is started in an empty folder, dies by SIGKILL at a random moment of a
stage, every third time while a checkpoint or another file is being written, and is repeated until it ends; a third of
the repetitions are killed, too. Then weights, prompts, tables, pictures, pages and metrics must be those of a run that
nothing disturbed, but for the seconds that it took, and no other file may be there. --kills are of the first case; the
others, which share most of its code, have a fifth of them. One line for each in results/crash.csv; exit code 1 when one
differs.
"""

import argparse
import datetime
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from ledger import command

from ptt_jax import architecture, checkpoint, config, finetune
from ptt_jax import store as stores
from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic

HERE = Path(__file__).parent
SMALL = {
    "model.width": 16, "model.mlp": 16, "model.heads": 2, "model.encoder_layers": 1, "pretrain.steps": 48,
    "pretrain.batch": 16, "pretrain.validations": 8, "tune.steps": 48, "tune.batch": 16, "tune.validations": 8,
    "cache_dir": "../xla",
}  # fmt: skip
RUN = SMALL | {
    "lookback": 48, "horizons": "12,20", "model.patch": 12, "pretrain.validation_rows": 32, "data.rows": 500,
    "data.channels": 3, "evaluate.batch": 128,
}  # fmt: skip
OWN = SMALL | {"data.path": "mine.csv", "horizons": "12,", "output": "out.csv"}
AGAIN = 1 / 3  # share of repetitions that are killed, too
POLL = 0.002  # seconds


class Case(NamedTuple):
    """What is typed, and {stage: a pattern of the file that ends it}, in their order."""

    argv: list[str]
    ends: dict[str, str]


def run_of(ends: str = "prompts/*.json", **knobs: Any) -> Case:
    """Returns the case of a whole run. ends: of tuning."""
    flags = [f"--config.{key}={value}" for key, value in (RUN | knobs).items()]
    stages = {"start": "config.json", "pretrain": "backbone.json", "tune": ends, "evaluate": "results.csv"}
    stages["report"] = "report.html"
    argv = [f"--config={HERE.parent / 'configs/quickstart.py'}", "--workdir=run", *flags]
    return Case(argv, {stage: f"run/{file}" for stage, file in stages.items()})


CASES = {
    "prompt": run_of(),
    "quantiles": run_of("prompts/*-quantiles.json", **{"tune.quantiles": "0.1,0.5,0.9"}),
    "full": run_of("finetuned/*.json", **{"tune.mode": "full"}),
    "forecaster": Case(
        ["forecast", "--workdir=run", *(f"--config.{key}={value}" for key, value in OWN.items())],
        {"start": "run/config.json", "pretrain": "run/backbone.json", "tune": "run/prompts/*.json",
         "save": "run/forecaster.json", "forecast": "out.csv"},
    ),
}  # fmt: skip


class Stage(NamedTuple):
    """What a stage took where nothing was killed: seconds, and files seen under a temporary name."""

    seconds: float
    files: int


class Kill(NamedTuple):
    """When a process is to die: in a stage, as many seconds after its begin; or as the file of that number is being
    written in it, and then as many seconds later."""

    stage: str
    seconds: float
    file: int = 0


def moment(stage: str, of: Stage, draw: random.Random, writing: bool) -> Kill:
    """Returns a random moment of a stage."""
    if writing and of.files:
        return Kill(stage, draw.uniform(0, 0.012), draw.randint(1, of.files))
    return Kill(stage, draw.random() * of.seconds)


def stage_of(case: Case, folder: Path) -> str:
    """Returns the stage that a run is in; '' behind the last one."""
    return next((stage for stage, end in case.ends.items() if not any(folder.glob(end))), "")


def temporary(folder: Path) -> set[str]:
    """Returns what is there under a temporary name."""
    return {name for _, *names in os.walk(folder) for name in itertools.chain(*names) if "tmp" in name}


def attempt(case: Case, folder: Path, kill: Kill | None = None) -> tuple[dict[str, Any], dict[str, Stage]]:
    """Starts the command; returns where it was killed, {} when it ended before that, and what each stage took. Raises
    UserError when the command fails."""
    out, begun, known = folder.with_suffix(".out"), time.monotonic(), stage_of(case, folder)
    took: dict[str, Stage] = {}
    seen: set[str] = set()
    with out.open("ab") as log:
        argv = [sys.executable, "-m", "ptt_jax.main", *case.argv]
        env = {**os.environ, "GIT_DIR": os.devnull}  # which a run notes, and results/crash.csv would change meanwhile
        process = subprocess.Popen(argv, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=env)
    try:
        while process.poll() is None:
            now, stage = time.monotonic(), stage_of(case, folder)
            if stage != known:
                took[known], begun, known, seen = Stage(now - begun, len(seen)), now, stage, set()
            seen |= temporary(folder)
            due = kill and stage == kill.stage and (len(seen) >= kill.file if kill.file else now - begun > kill.seconds)
            if kill and due:
                time.sleep(kill.seconds if kill.file else 0)
                process.kill()
                process.wait()
                said = out.read_text(errors="replace").splitlines()[-1:]
                where = {"stage": stage_of(case, folder), "second": round(time.monotonic() - begun, 2)}
                return where | {"writing": " ".join(sorted(temporary(folder))), "last line": " ".join(said)[:60]}, took
            time.sleep(POLL)
    finally:
        process.kill()
    if process.returncode:
        last = out.read_text(errors="replace").splitlines()[-15:]
        raise UserError(f"the command ended with code {process.returncode}: {' | '.join(last)}")
    return {}, took


def bits(path: Path) -> Any:
    """Returns what a file holds, without what a clock says and the seal over it."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}
    if path.name == "results.json":  # marks of files that are compared themselves, the seconds in some of them, too
        return sorted(json.loads(path.read_text()))
    if path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        found = [json.loads(line) for line in lines]
        return [{k: v for k, v in of.items() if k not in ("seconds", "seal")} for of in found]
    return CLOCK.sub("", path.read_text()) if path.suffix in (".md", ".html", ".csv") else path.read_bytes()


CLOCK = re.compile(r"(?<=`seconds` \| )[\d.]+|(?<=seconds</code></th><td>)[\d.]+")


def outcome(folder: Path) -> dict[str, Any]:
    """Returns {what: its bits} of a folder in which the command has ended: files; of checkpoints, which name their own
    files at random, the items that are there, and the weights and prompts that are read from them."""
    run, found = folder / "run", {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts = path.relative_to(folder).parts
        step = next((at for at, part in enumerate(parts[:-1]) if at > 1 and part.isdigit()), None)
        found["/".join(parts[: step + 2] if step else parts)] = None if step else bits(path)
    card = checkpoint.find_backbone(run)
    backbone = checkpoint.load_backbone(card, architecture.shapes(architecture.build(card["architecture"], "float32")))
    cfg = config.from_json((run / "config.json").read_text())
    found["weights"] = stores.content_hash(backbone)
    for path in sorted(run.glob("prompts/*.json")):
        of = checkpoint.load_prompts(run, path.stem, card["content_hash"])
        found[f"weights of {path.stem}"] = stores.content_hash({str(h): p for h, some in of.items() for p in some})
    for path in sorted(run.glob("finetuned/*.json")):
        tuned = finetune.load(cfg, run, path.stem, card, backbone)
        found[f"weights of {path.stem}"] = stores.content_hash({str(h): tree for h, tree in tuned.items()})
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [name for name in sorted({*ours, *theirs}) if ours.get(name, "none") != theirs.get(name, "none")]


def fresh(folder: Path) -> None:
    """Empties the folder, but for the file that a Forecaster learns from."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.with_suffix(".out").unlink(missing_ok=True)
    rng, t_T = np.random.default_rng(0), np.arange(300)
    load_T = (100 + 20 * np.sin(2 * np.pi * t_T / 24) + rng.normal(size=300)).round(3)
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=300, freq="h"), "load": load_T})
    frame.to_csv(folder / "mine.csv", index=False)


def study(name: str, count: int, folder: Path, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Yields a row for each kill of a case."""
    case = CASES[name]
    for _ in range(2):  # the first one compiles
        fresh(folder)
        _, took = attempt(case, folder)
    whole = outcome(folder)
    for number, stage in zip(range(count), itertools.cycle(case.ends)):
        died: dict[str, Any] = {}
        while not died:  # a stage may end before that moment
            fresh(folder)
            died, _ = attempt(case, folder, moment(stage, took[stage], draw, writing=number % 3 == 2))
        row, more = {"case": name, "kill": number + 1, **died}, 0
        while died:
            on = stage_of(case, folder)
            again = moment(on, took[on], draw, writing=False) if on and draw.random() < AGAIN else None
            died, _ = attempt(case, folder, again)
            more += bool(died)
        wrong = differences(outcome(folder), whole)
        yield row | {"kills": 1 + more, "identical": not wrong, "differs": " ".join(wrong)}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "ptt_jax-crash")
    asked = parser.parse_args(argv)
    about = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}", "jax": jax.__version__,
        "date": datetime.date.today().isoformat(), "command": command("crash", argv),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name in asked.cases.split(","):
        count = asked.kills if name == "prompt" else -(-asked.kills // 5)
        for row in study(name, count, asked.runs.absolute() / "job", random.Random(asked.seed)):
            print(" ".join(str(value) for value in row.values()), flush=True)
            rows.append(row | about)
            write_atomic(HERE / "results" / "crash.csv", pd.DataFrame(rows).to_csv(index=False))
    table = pd.DataFrame(rows)
    print(table.groupby("case", sort=False)["identical"].agg(["sum", "count"]).to_string())
    return int(not table["identical"].all())


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as e:
        print(f"crash.py: {e}", file=sys.stderr)
        sys.exit(2)
