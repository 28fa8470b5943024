"""Run the experiments, go on where they stopped, and write their tables.

    python experiments/reproduce.py                              # everything that the files at hand allow
    python experiments/reproduce.py --only=main --data=ETTh1,Weather --rows=prompts --seeds=3
    python experiments/reproduce.py --only=main --rows=prompts --config.model.width=128
    python experiments/reproduce.py --tables                     # runs nothing: tables of what is finished

A cell is a run of `python -m ptt_jax.main` in a directory of its own under --runs; a finished one is not run again, a
stopped one goes on. Tables are written after every cell: results/PART.csv with every number's config hash, seeds,
spread, seconds, device, date and command, and the table in README.md between its markers. Overrides go to every cell
and make a table of their own, results/PART-HASH.csv, that no README shows.
"""

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax
import pandas as pd
from cells import PARTS, SETS, Cell
from collect import read

from ptt_jax import checkpoint, config, data
from ptt_jax.config import UserError, write_atomic
from ptt_jax.main import main as run_main
from ptt_jax.main import parse

HERE = Path(__file__).parent
MOST_SEEDS = 10
PUBLISHED = ("DUET", "PatchTST self-supervised, fine-tuned, mean of 5", "PatchTST/64 supervised", "SimMTM, GPHT re-run")


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
        backbone = []
        if cell.backbone:
            home, _, name = cell.backbone.rpartition("/")
            backbone = [f"--config.backbone={self.folder(home or part) / name}"]
        own = [f"--config.{text}" for text in cell.overrides]
        where = f"--workdir={self.folder(part) / cell.name}"
        return [f"--config={cell.config}", where, *own, *backbone, *self.overrides]


def at_hand(names: list[str]) -> list[str]:
    """Returns the data sets whose file is found, or can be fetched."""

    def found(name: str) -> bool:
        bench = data.TABLE[name]
        places = filter(None, (os.environ.get("PTT_DATA_DIR"), data.cache_dir()))
        return bool(bench.url) or any((Path(place) / bench.file).is_file() for place in places)

    return [name for name in names if found(name)]


def run(plan: Plan, part: str, cell: Cell) -> tuple[int, float]:
    """Runs a cell in this process, its words in RUN.log; returns the exit code and the seconds, noted in cell.json."""
    folder, argv, begun = plan.folder(part) / cell.name, plan.argv(part, cell), time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(Path(f"{folder}.log").open("a", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        try:
            code = run_main(argv)
        except Exception:  # hours of other cells wait
            traceback.print_exc()
            code = 1
    seconds, spent = time.monotonic() - begun, Path(f"{folder}.seconds")
    before = float(spent.read_text(encoding="utf-8")) if spent.exists() else 0.0  # of stopped calls
    write_atomic(spent, f"{before + seconds:.1f}")
    if not code:
        note = folder / "cell.json"
        about = {
            "seconds": round(before + seconds, 1), "date": datetime.date.today().isoformat(),
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "command": shlex.join(["python", "-m", "ptt_jax.main", *(a for a in argv if "--workdir" not in a)]),
        }  # fmt: skip
        write_atomic(note, json.dumps(about, indent=2))
    jax.clear_caches()
    return code, seconds


def finished(plan: Plan, part: str) -> Iterator[tuple[Cell, Path]]:
    """Yields what is finished of a part, whatever is asked for now, under the recipe of now: a run of another config
    is left out, and running its cell says so."""
    for cell in PARTS[part](SETS, range(MOST_SEEDS)):
        folder = plan.folder(part) / cell.name
        if (folder / "cell.json").exists():
            saved = config.from_json((folder / "config.json").read_text(encoding="utf-8"))
            now, _ = parse(plan.argv(part, cell))
            if cell.backbone:
                now.model = saved.model  # the backbone's
            if not config.differences(saved, now):
                yield cell, folder


def gather(plan: Plan, part: str) -> pd.DataFrame:
    """Returns one row for each data set, row of the table and horizon: mean and spread over seeds, and where from."""
    frames = []
    for cell, folder in finished(plan, part):
        frame, about = read(folder, []), checkpoint.read_json(folder / "cell.json")
        frame = frame[frame["split"] == frame["split"].iloc[-1]]  # validation where test is hidden
        frame = frame[frame["model"].isin(cell.rows)].assign(**about)
        frames.append(frame.assign(model=frame["model"].map(cell.rows)))
    if not frames:
        return pd.DataFrame()
    rows = pd.concat(frames)
    # What no seed changes is there once.
    still = rows["model"].str.startswith(("seasonal naive", "linear"))
    rows = rows[~still | ~rows.duplicated(["data", "model", "horizon"])]
    table = rows.groupby(["data", "model", "lookback", "horizon"], sort=False).agg(
        mse=("mse", "mean"), mse_spread=("mse", "std"), mae=("mae", "mean"), mae_spread=("mae", "std"),
        seeds=("seed", "nunique"), windows=("windows", "first"), config=("config", "first"),
        seconds=("seconds", "mean"), device=("device", "first"), date=("date", "max"), command=("command", "first"),
    )  # fmt: skip
    return table.reset_index()


def markdown(table: pd.DataFrame, published: pd.DataFrame) -> str:
    """Returns a line for each row of the table and a column for each data set: MSE / MAE, means of its horizons."""
    sets = [name for name in SETS if name in {*table["data"]}]
    lines = [
        "| | " + " | ".join(sets) + " | mean | seeds |",
        "|---" * (len(sets) + 3) + "|",
    ]

    def cells(of: pd.DataFrame) -> list[str]:
        means = [of[of["data"] == name][["mse", "mae"]].mean() if name in {*of["data"]} else None for name in sets]
        texts = ["" if m is None else f"{m['mse']:.3f} / {m['mae']:.3f}" for m in means]
        whole = [m for m in means if m is not None]
        all_sets = pd.DataFrame(whole).mean() if len(whole) == len(sets) else None
        return [*texts, "" if all_sets is None else f"{all_sets['mse']:.4f} / {all_sets['mae']:.4f}"]

    for model, of in table.groupby("model", sort=False):
        lines.append(f"| {model} | " + " | ".join([*cells(of), str(of["seeds"].min())]) + " |")
    for model in PUBLISHED:
        of = published[(published["model"] == model) & published["data"].isin(sets)]
        lookback = of["lookback"].iloc[0]
        lines.append(f"| *{model}, lookback {lookback} (published)* | " + " | ".join([*cells(of), ""]) + " |")
    return "\n".join(lines)


def publish(plan: Plan, part: str) -> None:
    """Writes results/PART.csv, and its table into experiments/README.md between the markers of the part."""
    table = gather(plan, part)
    if table.empty:
        return
    file = HERE / "results" / f"{part}{plan.suffix}.csv"
    write_atomic(file, table.to_csv(index=False, float_format="%.6f"))
    readme = HERE / "README.md"
    text, begin, end = readme.read_text(encoding="utf-8"), f"<!-- table {part} -->", f"<!-- end {part} -->"
    if plan.suffix or begin not in text:
        print(markdown(table, pd.read_csv(HERE / "published.csv")))
        return
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    shown = markdown(table, pd.read_csv(HERE / "published.csv"))
    write_atomic(readme, f"{before}{begin}\n{shown}\n{end}{after}")


def left(seconds: dict[str, list[float]], ahead: list[Cell]) -> str:
    """Returns the words for the time that the cells ahead will take, by cells of their kind, else of any."""
    known = [s for of in seconds.values() for s in of]
    if not known or not ahead:
        return ""

    def guess(cell: Cell) -> float:
        of = seconds.get(kind(cell), known)
        return sum(of) / len(of)

    return f"  {sum(map(guess, ahead)) / 60:.0f} min left"


def kind(cell: Cell) -> str:
    return " ".join([cell.data, *cell.rows])


def make_plan(args: argparse.Namespace, overrides: list[str]) -> Plan:
    """Returns what the arguments ask for. Raises UserError for what does not exist."""
    for name, given, known in (("only", args.only, list(PARTS)), ("data", args.data, list(SETS))):
        wrong = [g for g in given.split(",") if given and g not in known]
        if wrong:
            raise UserError(f"--{name}={wrong[0]} does not exist; accepted: {', '.join(known)}")
    if not 1 <= args.seeds <= MOST_SEEDS:
        raise UserError(f"--seeds={args.seeds} is out of range; accepted: 1 to {MOST_SEEDS}")
    sets = [s for s in (args.data.split(",") if args.data else at_hand(list(SETS)))]
    parts = {part: PARTS[part](sets, range(args.seeds)) for part in (args.only.split(",") if args.only else PARTS)}
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"parts, comma-separated: {', '.join(PARTS)}; default: all")
    parser.add_argument("--data", default="", help="data sets, comma-separated; default: those whose file is at hand")
    parser.add_argument("--rows", default="", help="rows of the table, separated by semicolons; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="where run directories lie")
    parser.add_argument("--tables", action="store_true", help="write the tables of what is finished, run nothing")
    args, rest = parser.parse_known_args(argv)
    wrong = [a for a in rest if not a.startswith("--config.")]
    try:
        if wrong:
            raise UserError(f"argument {wrong[0]} is unknown; accepted: those of --help, and --config.key=value")
        plan = make_plan(args, rest)
    except UserError as e:
        print(f"reproduce: {e}", file=sys.stderr)
        return 2
    ahead = [(part, cell) for part, cells in plan.parts.items() for cell in cells]
    done = {part: {cell.name for cell, _ in finished(plan, part)} for part in plan.parts}
    ahead = [] if args.tables else [(part, cell) for part, cell in ahead if cell.name not in done[part]]
    seconds: dict[str, list[float]] = {}
    failed = 0
    for i, (part, cell) in enumerate(ahead, 1):
        code, spent = run(plan, part, cell)
        if code == 130:
            return code
        failed += code != 0
        if not code:
            seconds.setdefault(kind(cell), []).append(spent)
            publish(plan, part)
        said = "done" if not code else f"FAILED, see {plan.folder(part) / cell.name}.log"
        remaining = left(seconds, [c for _, c in ahead[i:]])
        print(f"{i} of {len(ahead)}  {part}/{cell.name}  {said}  {spent:.0f} s{remaining}", flush=True)
    for part in plan.parts:
        publish(plan, part)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
