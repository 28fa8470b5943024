"""Run the experiments, go on where they stopped, and write their tables.

    python experiments/reproduce.py                              # everything that the files at hand allow
    python experiments/reproduce.py --only=main --data=ETTh1,Weather --rows=prompts --seeds=3 --jobs=2
    python experiments/reproduce.py --only=main --rows=prompts --config.model.width=128
    python experiments/reproduce.py --tables                     # runs nothing: tables of what is finished

A cell is a run of `python -m ptt_jax.main` in a directory of its own under --runs. What it found is kept in
results/cells/PART.jsonl with every knob, seconds, device, date and command, so that a finished cell is not run again on
any machine; one whose knobs have changed since is. A stopped one goes on. Tables are written after every cell:
results/PART.csv, and the table in README.md between its markers. Imputation, anomalies, overfitting and tokens are
scripts of their own (impute.py, detect.py, overfit.py, tokens.py), which are called with the same --runs and --seeds.
Overrides go to every cell and make a table of their own, results/PART-HASH.csv, that no README shows; scripts take
none. --jobs=N runs N cells at a time, each in a process on its share of the cores and of a GPU's memory, which goes on
with a cell of the same shapes and what it has compiled for them (crew.py); with --threads=M each runs M cells at a
time, which share that and the GPU.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import ablations
import costs
import pandas as pd
import records
import workers
from cells import PARTS, SETS, Cell
from crew import Crew
from records import MOST_SEEDS, Plan, backbone_of, finished, found, gather, is_stale, keep, origin
from tables import by_horizon, markdown, write_table

from ptt_jax import benchmarks, preemption
from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic
from ptt_jax.preemption import Preempted

# Parts that are scripts of their own.
STUDIES = {"imputation": "impute", "anomalies": "detect", "overfitting": "overfit", "tokens": "tokens"}


class Ahead(NamedTuple):
    """A cell of a part, and of what kind its programs are (`shapes`)."""

    part: str
    cell: Cell
    kind: str


def at_hand(names: list[str]) -> list[str]:
    """Returns the data sets whose file is found, or can be fetched."""

    def found(name: str) -> bool:
        bench = benchmarks.TABLE[name]
        places = filter(None, (os.environ.get("PTT_DATA_DIR"), benchmarks.cache_dir()))
        return bool(bench.url) or any((Path(place) / bench.file).is_file() for place in places)

    return [name for name in names if found(name)]


def command(plan: Plan, part: str, cell: Cell) -> tuple[Path, list[str]]:
    """Returns the file for a run's words, and its arguments. A run of another recipe in its directory is moved away."""
    folder = plan.folder(part) / cell.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    if is_stale(plan, part, cell):
        former = (folder.with_name(f"{folder.name}.former-{i}") for i in itertools.count(1))
        folder.rename(next(path for path in former if not path.exists()))
        Path(f"{folder}.seconds").unlink(missing_ok=True)
    return Path(f"{folder}.log"), plan.argv(part, cell)


def shapes(plan: Plan, part: str, cell: Cell) -> str:
    """Returns a word for what decides the shapes of a cell's programs, its data set first: those of its model, which is
    its backbone's, and of its windows."""
    model, own = (records.asked(plan, *of) for of in (backbone_of(part, cell) or (part, cell), (part, cell)))
    knobs = {k: v for k, v in model.items() if k.startswith("model.")}
    return json.dumps([cell.data, *(own[k] for k in ("lookback", "horizons", "views", "compute_dtype")), knobs])


def pick(
    ready: Sequence[Ahead], last: str, others: Collection[str], known: Collection[str] = (), begun: Collection[str] = ()
) -> Ahead:  # fmt: skip
    """Returns what a worker runs next: of the kind of its last cell, or one of those `known`, whose programs it has;
    else of a data set that is not among those of others; else of a kind that is not begun, and so compiled, beside it
    in its process; else the first."""
    rules: tuple[Callable[[Ahead], bool], ...] = (
        lambda of: of.kind == last,
        lambda of: of.kind in known,
        lambda of: of.cell.data not in others,
        lambda of: of.kind not in begun,
    )
    return next((of for rule in rules for of in ready if rule(of)), ready[0])


def perform(
    plan: Plan, ahead: list[tuple[str, Cell]], jobs: int, threads: int = 1
) -> Iterator[tuple[str, Cell, int, float]]:
    """Runs cells, up to `jobs` times `threads` at a time, a backbone's before those that tune on it; yields (part,
    cell, exit code, seconds of all calls) as they end. One at a time is run in this process."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    waiting, hand, last = [Ahead(*of, shapes(plan, *of)) for of in ahead], workers.Hand(), ""
    crew = Crew(cores, jobs, threads)
    running: dict[int, tuple[Ahead, float]] = {}

    def spent(of: Ahead, seconds: float) -> float:
        """Adds to what stopped calls took before."""
        file = Path(f"{plan.folder(of.part) / of.cell.name}.seconds")
        seconds += float(file.read_text(encoding="utf-8")) if file.exists() else 0.0
        write_atomic(file, f"{seconds:.1f}")
        return seconds

    try:
        while waiting or running:
            open_ = {f"{of.part}/{of.cell.name}" for of in [*waiting, *(of for of, _ in running.values())]}
            ready = [of for of in waiting if "/".join(origin(of.part, of.cell)) not in open_]
            if jobs * threads == 1:
                of = pick(ready, last, ())
                last = of.kind
                begun = time.monotonic()
                code = hand.run(*command(plan, of.part, of.cell), of.kind)
                waiting.remove(of)
                yield of.part, of.cell, code, spent(of, time.monotonic() - begun)
                continue
            for slot in range(jobs * threads):
                if slot in running or not ready or (one := crew.free(slot, running)) is None:
                    continue
                of = pick(ready, one.kind, {at.cell.data for at, _ in running.values()}, one.known, one.begun)
                ready.remove(of)
                waiting.remove(of)
                one.start(*command(plan, of.part, of.cell), of.kind)
                running[slot] = of, time.monotonic()
            for slot, (of, begun) in list(running.items()):
                if (code := crew.hired[slot].answer()) is not None:
                    del running[slot]
                    yield of.part, of.cell, code, spent(of, time.monotonic() - begun)
            time.sleep(0.2)
    finally:  # nobody else may write to a run directory when this has ended
        crew.dismiss()
        for of, begun in running.values():
            spent(of, time.monotonic() - begun)


def publish(plan: Plan, part: str) -> None:
    """Writes results/PART.csv, and its table into experiments/README.md between the markers of the part."""
    rows = found(plan, part)
    if rows.empty:
        return
    file = records.HERE / "results" / f"{part}{plan.suffix}.csv"
    write_atomic(file, gather(rows).to_csv(index=False, float_format="%.6f"))
    published = pd.read_csv(records.HERE / "published.csv")
    shown = markdown(rows, published)
    if part == "ablations" and not plan.suffix:
        folder = records.HERE / "results" / part
        ablations.publish(gather(rows), costs.read(folder / "costs.csv"), records.HERE / "README.md", folder)
    elif plan.suffix or not write_table(part, shown):
        print(shown)
    if not plan.suffix:
        write_table(f"{part}-horizons", by_horizon(rows, published))


def left(seconds: dict[str, list[float]], ahead: list[Cell], jobs: int) -> str:
    """Returns the words for the time that the cells ahead will take, by cells of their kind, else of any."""
    known = [s for of in seconds.values() for s in of]
    if not known or not ahead:
        return ""

    def guess(cell: Cell) -> float:
        of = seconds.get(kind(cell), known)
        return sum(of) / len(of)

    return f"  {sum(map(guess, ahead)) / jobs / 60:.0f} min left"


def kind(cell: Cell) -> str:
    return " ".join([cell.data, *cell.rows])


def make_plan(args: argparse.Namespace, overrides: list[str]) -> Plan:
    """Returns what the arguments ask for. Raises UserError for what does not exist."""
    for name, given, known in (("only", args.only, [*PARTS, *STUDIES]), ("data", args.data, list(SETS))):
        wrong = [g for g in given.split(",") if given and g not in known]
        if wrong:
            raise UserError(f"--{name}={wrong[0]} does not exist; accepted: {', '.join(known)}")
    if not 1 <= args.seeds <= MOST_SEEDS:
        raise UserError(f"--seeds={args.seeds} is out of range; accepted: 1 to {MOST_SEEDS}")
    if not Path("configs").is_dir():
        raise UserError(f"{Path.cwd()} has no configs/; accepted: the project's top folder as working directory")
    for name, given in (("jobs", args.jobs), ("threads", args.threads)):
        if given < 1:
            raise UserError(f"--{name}={given} is out of range; accepted: 1 or more")
    sets = [s for s in (args.data.split(",") if args.data else at_hand(list(SETS)))]
    asked = args.only.split(",") if args.only else PARTS
    parts = {part: PARTS[part](sets, range(args.seeds)) for part in asked if part in PARTS}
    if not args.data and not args.rows:  # everything that the files at hand allow
        parts = {part: with_files(cells) for part, cells in parts.items()}
    if args.rows:
        names = {row for cells in parts.values() for cell in cells for row in cell.rows.values()}
        wrong = [row for row in args.rows.split(";") if row not in names]
        if wrong:
            raise UserError(f"--rows={wrong[0]} does not exist; accepted: {', '.join(sorted(names))}")
        for part, cells in parts.items():
            wanted = {c.name for c in cells if {*c.rows.values()} & {*args.rows.split(";")}}
            wanted |= {c.backbone for c in cells if c.name in wanted and c.backbone}
            parts[part] = [c for c in cells if c.name in wanted]
    return Plan(with_backbones(parts, sets, args.seeds), args.runs, overrides)


def with_files(cells: list[Cell]) -> list[Cell]:
    """Returns the cells whose backbone learns from no file of its own beside the data sets, or from such as are there;
    and those that take it."""
    folder = Path(os.environ.get("PTT_DATA_DIR", "."))
    lost: set[str] = set()
    for cell in cells:
        also = next((text for text in cell.overrides if text.startswith("pretrain.also=")), "")
        files = {name for name in also.removeprefix("pretrain.also=").split(",") if name} - {*SETS}
        if not all((folder / name).is_file() for name in files) or cell.backbone in lost:
            lost.add(cell.name)
    return [cell for cell in cells if cell.name not in lost]


def with_backbones(parts: dict[str, list[Cell]], sets: list[str], seeds: int) -> dict[str, list[Cell]]:
    """Returns the parts, and before them the cells of other parts whose backbones they take."""
    needed = {cell.backbone for cells in parts.values() for cell in cells if "/" in cell.backbone}
    before: dict[str, list[Cell]] = {}
    for home in dict.fromkeys(name.split("/")[0] for name in sorted(needed)):
        known = {cell.name for cell in parts.get(home, [])}
        wanted = {name.split("/")[1] for name in needed if name.startswith(f"{home}/")} - known
        cells = [cell for cell in PARTS[home](sets, range(seeds)) if cell.name in wanted]
        before[home] = [*parts.get(home, []), *cells]
    return before | {part: cells for part, cells in parts.items() if part not in before}


def with_lost(plan: Plan, ahead: list[tuple[str, Cell]]) -> list[tuple[str, Cell]]:
    """Returns the cells ahead, and before them finished ones whose backbone they take and whose directory is gone or of
    another recipe."""
    out: list[tuple[str, Cell]] = []
    for part, cell in ahead:
        if of := backbone_of(part, cell):
            home, base = of
            known = any(p == home and c.name == base.name for p, c in [*out, *ahead])
            there = (plan.folder(home) / base.name / "backbone.json").exists() and not is_stale(plan, home, base)
            if not known and not there:
                out.append((home, base))
        out.append((part, cell))
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join([*PARTS, *STUDIES])
    parser.add_argument("--only", default="", help=f"parts, comma-separated: {known}; default: all")
    parser.add_argument("--data", default="", help="data sets, comma-separated; default: those whose file is at hand")
    parser.add_argument("--rows", default="", help="rows of the table, separated by semicolons; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="where run directories lie")
    parser.add_argument("--jobs", type=int, default=1, help="cells that run at a time, each on its share of the cores")
    parser.add_argument("--threads", type=int, default=1, help="cells at a time in each of these, for a GPU")
    parser.add_argument("--tables", action="store_true", help="write the tables of what is finished, run nothing")
    args, rest = parser.parse_known_args(argv)
    wrong = [a for a in rest if not a.startswith("--config.")]
    try:
        if wrong:
            raise UserError(f"argument {wrong[0]} is unknown; accepted: those of --help, and --config.key=value")
        with preemption.heeded():
            return work(make_plan(args, rest), args)
    except UserError as e:
        print(f"reproduce: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nreproduce: stopped; the same command goes on", file=sys.stderr)
        return 130
    except Preempted:
        print("reproduce: told to end (SIGTERM); the same command goes on", file=sys.stderr)
        return preemption.CODE


def work(plan: Plan, args: argparse.Namespace) -> int:
    """Runs what is not finished, writes tables, calls studies; returns the exit code."""
    ahead = [(part, cell) for part, cells in plan.parts.items() for cell in cells]
    done = {part: {*finished(plan, part)} for part in plan.parts}
    ahead = [] if args.tables else [(part, cell) for part, cell in ahead if cell.name not in done[part]]
    ahead = with_lost(plan, ahead)
    seconds: dict[str, list[float]] = {}
    failed, rest_of = 0, list(ahead)
    with contextlib.closing(perform(plan, ahead, args.jobs, args.threads)) as cells:
        for i, (part, cell, code, spent) in enumerate(cells, 1):
            if code in workers.STOPPED:
                return code
            rest_of.remove((part, cell))
            failed += code != 0
            log = Path(f"{plan.folder(part) / cell.name}.log")
            if not code:
                seconds.setdefault(kind(cell), []).append(spent)
                keep(plan, part, cell, spent)
                publish(plan, part)
            last = "" if not code else (log.read_text(encoding="utf-8").strip().splitlines() or [""])[-1]
            said = "done" if not code else f"FAILED, see {log}: {last}"
            remaining = left(seconds, [c for _, c in rest_of], args.jobs * args.threads)
            print(f"{i} of {len(ahead)}  {part}/{cell.name}  {said}  {spent:.0f} s{remaining}", flush=True)
    for part in plan.parts:
        publish(plan, part)
    asked = args.only.split(",") if args.only else () if args.rows or args.data else STUDIES
    for study in (s for s in STUDIES if s in asked and not plan.overrides):
        failed += study_of(study, args) != 0
    return 1 if failed else 0


def study_of(name: str, args: argparse.Namespace) -> int:
    """Runs a study, a script of its own that goes on where it stopped, too; returns its exit code."""
    argv = [f"--runs={args.runs}", f"--seeds={args.seeds}", *["--tables"] * args.tables]
    if args.data and name != "anomalies":  # whose collections are others
        argv.append(f"--data={args.data}")
    script = importlib.import_module(STUDIES[name])
    return int((script.study if hasattr(script, "study") else script.main)(argv))


if __name__ == "__main__":
    sys.exit(main())
